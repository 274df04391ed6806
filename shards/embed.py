"""The CLAP vector of every text (or clip), put beside it once, so that training never encodes.

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
from data import DataError, Source, find_sources, read_shard, sha256, write_atomic
from shards.writer import command_line, npy_bytes, write_index


def embed(src, dst, clap, name, side="text", progress=True):
    """Copies the shards of one source, with the CLAP vector of each sample's text (or audio) beside it as npy.

    Every distinct text is encoded once. Shards that an earlier, interrupted call finished are kept. Returns the list of
    what was broken and left out. Raises DataError when dst was begun from other shards or with another encoder.
    """
    source, dst, broken, known = Source(src), Path(dst), [], {}
    made = {"from": source.index["hash"], "clap": name, "side": side, "dim": clap.dim}
    if (dst / "index.json").exists():
        if Source(dst).index["vectors"] == made:
            return broken
        raise DataError(
            f"{dst} holds shards made from others or with another encoder; choose another folder"
        )
    dst.mkdir(parents=True, exist_ok=True)
    if (dst / "embed.json").exists() and json.loads((dst / "embed.json").read_text()) != made:
        raise DataError(
            f"{dst} was begun from other shards or with another encoder; delete it or choose another folder"
        )
    write_atomic(dst / "embed.json", json.dumps(made).encode())

    shards, bar = (
        [],
        tqdm(
            total=len(source),
            unit=" samples",
            unit_scale=True,
            desc=source.name,
            disable=not progress,
        ),
    )
    for i, shard in enumerate(source.shards):
        path = dst / shard["file"]
        if not path.exists():
            samples, vectors = [], []
            for s in read_shard(source.path(i), shard["n"], broken=broken, audio=True):
                if s.get("text" if side == "text" else "audio") is None:
                    broken.append(f"{source.path(i)}: sample {s['id']!r} has no {side}")
                else:
                    samples.append(s)
            if side == "text":
                new = list(dict.fromkeys(s["text"] for s in samples if s["text"] not in known))
                known.update(zip(new, clap.encode_text(new).cpu().numpy().astype(np.float16)))
                vectors = [known[s["text"]] for s in samples]
            else:
                good = []
                for s in samples:
                    try:
                        vectors.append(encode_file(clap, s["audio"]).cpu().numpy())
                        good.append(s)
                    except ValueError as e:
                        broken.append(f"{source.path(i)}: sample {s['id']!r}: {e}")
                samples = good
            copy_shard(source.path(i), path, {s["key"]: v for s, v in zip(samples, vectors)})
        shards.append(
            {"file": path.name, "n": sum(1 for _ in read_shard(str(path))), "sha256": sha256(path)}
        )
        bar.update(shard["n"])
    bar.close()
    info = {
        k: v
        for k, v in source.index.items()
        if k not in ("n", "hash", "shards", "vectors", "command")
    }
    write_index(dst, shards, **info, vectors=made, command=command_line())
    os.remove(dst / "embed.json")
    return broken


def copy_shard(src, dst, vectors):
    """The members of `src` whose key is in `vectors`, each with its vector as npy; src may be any URL."""
    with wds.TarWriter(f"{dst}.part", encoder=False, mtime=0) as tar:
        for parts in tarfile_samples(iter([{"url": str(src)}]), handler=lambda e: True):
            if parts["__key__"] in vectors:
                members = {
                    k: v for k, v in parts.items() if not k.startswith("__") or k == "__key__"
                }
                tar.write({**members, "npy": npy_bytes(vectors[parts["__key__"]])})
    os.replace(f"{dst}.part", dst)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", help="a folder of shards, or a folder of such folders")
    parser.add_argument("dst")
    parser.add_argument(
        "--clap", default="microsoft/msclap", help="name, folder or module:factory (clap.load_clap)"
    )
    parser.add_argument(
        "--side",
        choices=("text", "audio"),
        default="text",
        help="encode the texts, or the audio (MATS-Audio)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    try:
        clap, broken = load_clap(args.clap), []
        if isinstance(clap, torch.nn.Module):
            clap.to(args.device)
        for source in find_sources(args.src)[0]:
            single = source.url == args.src.rstrip("/")
            broken += embed(
                source.url,
                args.dst if single else f"{args.dst}/{source.name}",
                clap,
                args.clap,
                args.side,
            )
    except DataError as e:
        sys.exit(f"embed.py: {e}")
    report(broken)


def report(broken):
    """Names on stderr what was left out, the first twenty."""
    for what in broken[:20]:
        print("left out:", what, file=sys.stderr)
    if broken:
        print(f"{len(broken)} broken parts were left out", file=sys.stderr)


if __name__ == "__main__":
    main()
