"""Puts the CLAP vector of every text (or clip) beside it, once, so that training never encodes.

python -m shards.embed SRC DST --clap microsoft/msclap       every distinct text is encoded once
python -m shards.embed SRC DST --side audio                  the clips' vectors, for MATS-Audio
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from tqdm import tqdm
from webdataset.tariterators import tarfile_samples

from clap import encode_file, load_clap
from data import Source, find_sources, read_shard
from disk import DataError, sha256, write_atomic
from shards.writer import command_line, npy_bytes, write_index


def embed(
    src: str | Path, dst: str | Path, clap, name: str, side: str = "text", progress: bool = True
) -> list[str]:
    """Copies one source's shards, with the CLAP vector of each text (or audio) beside it as npy.

    Returns a line for each part that was broken and left out. Every distinct text is encoded once.
    Shards that an interrupted call finished are kept. Raises DataError when dst was begun from
    other shards or with another encoder.
    """
    source, dst, broken, known = Source(src), Path(dst), [], {}
    made = {"from": source.index["hash"], "clap": name, "side": side, "dim": clap.dim}
    if is_finished(dst, made):
        return broken
    write_atomic(dst / "embed.json", json.dumps(made).encode())
    shards, disable = [], not progress
    with tqdm(
        total=len(source), unit=" samples", unit_scale=True, desc=source.name, disable=disable
    ) as bar:
        for i, shard in enumerate(source.shards):
            url, path = source.path(i), dst / shard["file"]
            if not path.exists():
                samples = usable(url, shard["n"], side, broken)
                if side == "text":
                    vectors = text_vectors(clap, samples, known)
                else:
                    vectors = audio_vectors(clap, samples, url, broken)
                copy_shard(url, path, vectors)
            n = sum(1 for _ in read_shard(str(path)))
            shards.append({"file": path.name, "n": n, "sha256": sha256(path)})
            bar.update(shard["n"])
    own = ("n", "hash", "shards", "vectors", "command")
    info = {field: value for field, value in source.index.items() if field not in own}
    write_index(dst, shards, **info, vectors=made, command=command_line())
    os.remove(dst / "embed.json")
    return broken


def is_finished(dst: Path, made: dict) -> bool:
    """Whether dst holds all vectors that `made` describes; raises DataError if it holds others."""
    if (dst / "index.json").exists():
        if Source(dst).index["vectors"] == made:
            return True
        raise DataError(
            f"{dst} holds shards made from others or with another encoder; choose another folder"
        )
    dst.mkdir(parents=True, exist_ok=True)
    begun = dst / "embed.json"
    if begun.exists() and json.loads(begun.read_text()) != made:
        raise DataError(
            f"{dst} was begun from other shards or with another encoder; "
            "delete it or choose another folder"
        )
    return False


def usable(url: str, n: int, side: str, broken: list[str]) -> list[dict]:
    """The shard's samples that have a text (or audio); the others are named in `broken`."""
    samples = []
    for sample in read_shard(url, n, broken=broken, audio=True):
        if sample.get(side) is None:
            broken.append(f"{url}: sample {sample['id']!r} has no {side}")
        else:
            samples.append(sample)
    return samples


def text_vectors(clap, samples: list[dict], known: dict[str, np.ndarray]) -> dict:
    """{key: vector of its text}. known: {text: its vector}, to which new ones are added."""
    new = list(dict.fromkeys(s["text"] for s in samples if s["text"] not in known))
    known.update(zip(new, clap.encode_text(new).cpu().numpy().astype(np.float16)))
    return {s["key"]: known[s["text"]] for s in samples}


def audio_vectors(clap, samples: list[dict], url: str, broken: list[str]) -> dict:
    """{key: vector of its audio}; clips that cannot be decoded are named in `broken`."""
    vectors = {}
    for sample in samples:
        try:
            vectors[sample["key"]] = encode_file(clap, sample["audio"]).cpu().numpy()
        except ValueError as e:
            broken.append(f"{url}: sample {sample['id']!r}: {e}")
    return vectors


def copy_shard(src: str, dst: Path, vectors: dict[str, np.ndarray]):
    """Copies the members of `src` (any URL) that have a vector, each with its vector as npy."""
    with wds.TarWriter(f"{dst}.part", encoder=False, mtime=0) as tar:
        for parts in tarfile_samples(iter([{"url": str(src)}]), handler=lambda e: True):
            key = parts["__key__"]
            if key in vectors:
                members = {k: v for k, v in parts.items() if not k.startswith("__")}
                tar.write({"__key__": key, **members, "npy": npy_bytes(vectors[key])})
    os.replace(f"{dst}.part", dst)


def report(broken: list[str]):
    """Prints the parts that were left out, the first twenty by name, on stderr."""
    for part in broken[:20]:
        print("left out:", part, file=sys.stderr)
    if broken:
        print(f"{len(broken)} broken parts were left out", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("src", help="a folder of shards, or a folder of such folders")
    option("dst")
    option("--clap", default="microsoft/msclap", help="name, folder or module:factory")
    option("--side", choices=("text", "audio"), default="text", help="audio: for MATS-Audio")
    option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    try:
        clap, broken = load_clap(args.clap), []
        if isinstance(clap, torch.nn.Module):
            clap.to(args.device)
        for source in find_sources(args.src)[0]:
            single = source.url == args.src.rstrip("/")
            dst = args.dst if single else f"{args.dst}/{source.name}"
            broken += embed(source.url, dst, clap, args.clap, args.side)
    except DataError as e:
        sys.exit(f"embed.py: {e}")
    report(broken)


if __name__ == "__main__":
    main()
