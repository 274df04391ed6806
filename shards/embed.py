"""Puts the CLAP vector of every text (or clip) beside it, once, so that training never encodes.

python -m shards.embed SRC DST --clap microsoft/msclap       every distinct text is encoded once
python -m shards.embed SRC DST --side audio                  the clips' vectors, for MATS-Audio
python -m shards.embed index DIR       index.json for a folder of tar shards that came without one
"""

import argparse
import itertools
import os
import re
import shlex
import sys
import tarfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from tqdm import tqdm

from clap import encode_file, load_clap
from data import Source, find_sources, is_hidden, read_shard, read_tar
from disk import (
    DataError,
    command,
    read_json,
    replacing,
    seems,
    sha256,
    visible_problem,
    write_atomic,
)
from distributed import find_device
from encoders.checks import faster, probe, ready, same_encoder
from shards.build import for_each
from shards.writer import command_line, encode_json, npy_bytes, write_index

PACKED = {
    b"\x1f\x8b": ("gz", "gunzip"),
    b"BZh": ("bz2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zst", "unzstd"),
}

# --- vectors ------------------------------------------------------------------------------


def embed(
    src: str | Path, dst: str | Path, clap, name: str, side: str = "text", progress: bool = True
) -> list[str]:
    """Copies one source's shards, with the CLAP vector of each text (or audio) beside it as npy.

    Returns a line for each part that was broken and left out. Every distinct text is encoded once.
    Shards that an interrupted call finished are kept. Raises DataError when dst was begun from
    other shards or with another encoder, and when no sample gets a vector.
    """
    source, dst, broken, known = Source(src), Path(dst), [], {}
    made = {"from": source.index["hash"], "clap": name, "side": side, "dim": clap.dim}
    made["probe"] = probe(clap)
    if is_finished(dst, made):
        return broken
    begun = dst / "embed.json"
    write_atomic(begun, encode_json(made).encode(errors="backslashreplace"))
    shards, style = [], {"unit": " samples", "unit_scale": True, "disable": not progress}
    with tqdm(total=len(source), desc=source.name, **style) as bar:
        for i, shard in enumerate(source.shards):
            url, path = source.path(i), dst / shard["file"]
            if not path.exists():
                samples = usable(url, shard["n"], side, broken)
                if side == "text":
                    vectors = text_vectors(clap, samples, url, known, broken)
                else:
                    vectors = audio_vectors(clap, samples, url, broken)
                copy_shard(url, path, vectors)
            n = sum(1 for _ in read_shard(str(path)))
            shards.append({"file": path.name, "n": n, "sha256": sha256(path)})
            bar.update(shard["n"])
    if not any(shard["n"] for shard in shards):
        clear(dst, [begun, *(dst / shard["file"] for shard in shards)])
        raise DataError(f"{source.url}: not one sample got a vector; at first: {broken[0]}")
    own = ("n", "hash", "shards", "vectors", "command")
    info = {field: value for field, value in source.index.items() if field not in own}
    write_index(dst, shards, **info, vectors=made, command=command_line())
    os.remove(begun)
    return broken


def clear(folder: Path, paths: list[Path]):
    """Removes these files, and the folder where it is empty then: the next try starts anew."""
    for path in paths:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def is_finished(dst: Path, made: dict) -> bool:
    """Whether dst holds all vectors that `made` describes; raises DataError if it holds others."""
    if (dst / "index.json").exists():
        check_same(dst, Source(dst).index.get("vectors"), made, "holds shards made")
        return True
    dst.mkdir(parents=True, exist_ok=True)
    begun, shards = dst / "embed.json", list(dst.glob("*.tar"))
    if not shards:
        return False  # nothing to keep, whatever a damaged embed.json says
    if not begun.exists():
        raise DataError(
            f"{dst} holds shards, and no embed.json that tells their encoder; "
            "delete it or choose another folder"
        )
    try:
        before = read_json(begun)
    except DataError as e:
        raise DataError(f"{e}; it belongs to unfinished shards: delete {dst}") from e
    check_same(dst, before, made, "was begun")
    return False


def check_same(dst: Path, before, made: dict, state: str):
    """Raises DataError unless `before`, an earlier call's `made`, has the same shards and encoder.

    A folder from before encoders left their probe is accepted, with a note.
    """
    before = dict(before) if isinstance(before, dict) else {}
    then, now = before.pop("probe", None), made["probe"]
    if before != {field: value for field, value in made.items() if field != "probe"}:
        raise DataError(
            f"{dst} {state} from other shards or with another encoder; "
            "delete it or choose another folder"
        )
    if then is None:
        print(f"{dst}: does not tell whether {made['clap']} has changed since; taken as it is")
        return
    numbers = isinstance(then, list) and all(isinstance(x, int | float) for x in then)
    if not numbers or not same_encoder(then, now):
        raise DataError(
            f"{dst} {state} with another encoder of the same name (it has changed since); "
            "delete it or choose another folder"
        )


def usable(url: str, n: int, side: str, broken: list[str]) -> list[dict]:
    """The shard's samples that have a text (or audio); the others are named in `broken`."""
    samples = []
    for sample in read_shard(url, n, broken=broken, audio=True):
        if sample.get(side) is None:
            broken.append(f"{url}: sample {sample['id']!r} has no {side}")
        else:
            samples.append(sample)
    return samples


def text_vectors(clap, samples: list[dict], url: str, known: dict, broken: list[str]) -> dict:
    """{key: vector of its text}; texts that CLAP cannot take are named in `broken`.

    known: {text: its vector, or why there is none}, to which new ones are added.
    """
    new = list(dict.fromkeys(s["text"] for s in samples if s["text"] not in known))
    known.update(encode_texts(clap, new) if new else {})
    vectors = {}
    for sample in samples:
        vector = known[sample["text"]]
        if isinstance(vector, str):
            broken.append(f"{url}: sample {sample['id']!r}: {vector}")
        else:
            vectors[sample["key"]] = vector
    return vectors


def encode_texts(clap, texts: list[str]) -> dict[str, np.ndarray | str]:
    """{text: its vector, or why there is none}. Where the encoder fails, it is asked for halves.

    Raises DataError where it returns anything but a row for each text.
    """
    try:
        z = clap.encode_text(texts).cpu().numpy().astype(np.float16)
    except (ValueError, TypeError) as e:  # other errors are the machine's: they would hit all texts
        if len(texts) < 2:
            return dict.fromkeys(texts, f"CLAP cannot take its text ({e})")
        half = len(texts) // 2
        return encode_texts(clap, texts[:half]) | encode_texts(clap, texts[half:])
    if z.shape != (len(texts), clap.dim):
        raise DataError(f"the encoder made {z.shape} of {len(texts)} texts, not a row for each")
    finite = np.isfinite(z).all(1)
    why = "CLAP makes no finite vector of its text"
    return {text: row if good else why for text, row, good in zip(texts, z, finite)}


def audio_vectors(clap, samples: list[dict], url: str, broken: list[str]) -> dict:
    """{key: vector of its audio}; clips that cannot be decoded are named in `broken`."""
    vectors = {}
    for sample in samples:
        try:
            vector = encode_file(clap, sample["audio"]).cpu().numpy()
            if not np.isfinite(vector).all():
                raise ValueError("CLAP makes no finite vector of it")
            vectors[sample["key"]] = vector
        except ValueError as e:
            broken.append(f"{url}: sample {sample['id']!r}: {e}")
    return vectors


def copy_shard(src: str, dst: Path, vectors: dict[str, np.ndarray]):
    """Copies the members of `src` (any URL) that have a vector, each with its vector as npy."""
    how = {"encoder": False, "mtime": 0}
    with replacing(dst) as part, open(part, "wb") as file, wds.TarWriter(file, **how) as tar:
        for parts in read_tar(src, lambda problem: True):  # `usable` has named them
            key = parts["__key__"]
            if key in vectors and "json" in parts:
                members = {k: v for k, v in parts.items() if not k.startswith("__")}
                tar.write({"__key__": key, **members, "npy": npy_bytes(vectors[key])})


# --- index.json -----------------------------------------------------------------------------


def index(directory: str | Path) -> list[str]:
    """Writes index.json for the shards; returns a line for each part that cannot be read.

    Raises DataError where there is an index.json already, no shard, or no sample in any.
    """
    directory = Path(directory)
    if (directory / "index.json").exists():
        raise DataError(f"{directory}: has an index.json already; delete it to make another")
    paths, broken = shards_in(directory)
    shards, sources, tasks = [], Counter(), Counter()
    for path in tqdm(paths, unit=" shards"):
        n = 0
        for sample in read_shard(str(path), broken=broken):
            sources[sample["source"]] += 1
            tasks[sample["task"]] += 1
            n += 1
        shards.append({"file": path.name, "n": n, "sha256": sha256(path)})
    if not any(shard["n"] for shard in shards):
        problem = f"{directory}: not one sample in its {len(paths):,} shards{dotted(paths)}"
        raise DataError("; ".join([problem, *broken[:5]]))
    info = {"sources": dict(sources), "tasks": dict(tasks), "licences": {}, "vectors": None}
    write_index(directory, shards, **info, command=command_line())
    return broken


def shards_in(directory: Path) -> tuple[list[Path], list[str]]:
    """The tar files, and a line for each file that is none, or is compressed."""
    paths, broken = [], []
    for path in sorted(directory.iterdir()):
        if is_hidden(path.name) or not re.search(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$", path.name):
            continue
        if path.suffix == ".tar" and not visible_problem(path):
            paths.append(path)
        else:
            broken.append(f"{path} {seems(path)}{unpack(path)}")
    if not paths:
        raise DataError(f"{directory}: no *.tar in it{''.join(f'; {line}' for line in broken[:5])}")
    return paths, broken


def unpack(path: Path) -> str:
    """After a colon, the command that unpacks a compressed file; empty for any other."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        head = file.read(8)
    name = shlex.quote(path.name)
    for magic, (kind, tool) in PACKED.items():
        if not head.startswith(magic):
            continue
        if path.suffix == ".tar":
            return f": mv {name} {name}.{kind} && {tool} {name}.{kind}"
        return f": {tool} {name}"
    return ""


def dotted(paths: list[Path]) -> str:
    """A part of a sentence that says why, where members have dots within their names."""
    for path in paths:
        with suppress(tarfile.TarError, OSError), tarfile.open(path, "r:") as tar:
            for member in itertools.islice(tar, 100):
                stem, _, extensions = Path(member.name).name.partition(".")
                if stem and extensions.endswith(".json"):
                    return (
                        f": the first dot in a member's name begins its extension, so "
                        f"{member.name!r} holds no json but {extensions!r}; "
                        "rename the members, with no other dot"
                    )
    return ""


# --- the command --------------------------------------------------------------------------


def report(broken: list[str]):
    """Prints the parts that were left out, the first twenty by name, on stderr."""
    for part in broken[:20]:
        print("left out:", part, file=sys.stderr)
    if broken:
        print(f"{len(broken)} broken parts were left out", file=sys.stderr)


def sources_of(src: str, dst: str) -> dict[str, tuple[str, str]]:
    """{name: (its folder or URL, where its vectors go)}: src itself, or the folders in it."""
    names = sorted(path.parent.name for path in Path(src).glob("*/index.json"))
    if Path(src, "index.json").exists() or not names:
        find_sources(src)  # raises where there are no shards
        return {src: (src, dst)}
    return {name: (f"{src}/{name}", f"{dst}/{name}") for name in names}


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    if argv[:1] == ["index"]:  # a folder of that name is ./index
        option("index", help="the word")
        option("dir", help="a folder of *.tar")
        report(index(parser.parse_args(argv).dir))
        return
    option("src", help="a folder of shards, or a folder of such folders")
    option("dst")
    option("--clap", default="microsoft/msclap", help="name, folder or module:factory")
    option("--side", choices=("text", "audio"), default="text", help="audio: for MATS-Audio")
    option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    sources, broken = sources_of(args.src.rstrip("/"), args.dst), []
    device = find_device(args.device)
    clap = ready(load_clap(args.clap), args.clap, device)
    if line := faster(clap, args.side):
        print(f"{args.clap}: {line}")

    def work(name):
        broken.extend(embed(*sources[name], clap, args.clap, args.side))

    try:
        for_each(sources, work)
    finally:
        report(broken)
        if cut := getattr(clap, "cut", 0):
            most = clap.max_tokens
            print(f"{cut:,} texts are longer than CLAP's {most} tokens: their ends were not read")


if __name__ == "__main__":
    with command("embed.py"):
        main()
