"""index.json for a folder of tar shards that came without one.

python -m shards.index DIR
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from data import read_shard
from disk import DataError, sha256
from shards.embed import report
from shards.writer import command_line, write_index


def index(directory: str | Path) -> list[str]:
    """Writes index.json for the shards; returns a line for each part that cannot be read.

    Raises DataError where there is an index.json already, or no shard.
    """
    paths, shards, broken = sorted(Path(directory).glob("*.tar")), [], []
    sources, tasks = Counter(), Counter()
    if not paths:
        raise DataError(f"{directory}: no *.tar in it")
    if (Path(directory) / "index.json").exists():
        raise DataError(f"{directory}: has an index.json already")
    for path in tqdm(paths, unit=" shards"):
        samples = list(read_shard(str(path), broken=broken))
        sources.update(sample["source"] for sample in samples)
        tasks.update(sample["task"] for sample in samples)
        shards.append({"file": path.name, "n": len(samples), "sha256": sha256(path)})
    info = {"sources": dict(sources), "tasks": dict(tasks), "licences": {}, "vectors": None}
    write_index(directory, shards, **info, command=command_line())
    return broken


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", help="a folder of *.tar")
    try:
        broken = index(parser.parse_args().dir)
    except DataError as e:
        sys.exit(f"index.py: {e}")
    report(broken)


if __name__ == "__main__":
    main()
