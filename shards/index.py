"""index.json for a folder of tar shards that came without one.

python -m shards.index DIR
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from data import DataError, read_shard, sha256
from shards.embed import report
from shards.writer import command_line, write_index


def index(directory):
    """Writes index.json for a folder of tar shards that has none; names what cannot be read."""
    paths, shards, broken, sources, tasks = (
        sorted(Path(directory).glob("*.tar")),
        [],
        [],
        Counter(),
        Counter(),
    )
    if not paths or (Path(directory) / "index.json").exists():
        raise DataError(
            f"{directory}: {'has an index.json already' if paths else 'no *.tar in it'}"
        )
    for path in tqdm(paths, unit=" shards"):
        samples = [(s["source"], s["task"]) for s in read_shard(str(path), broken=broken)]
        sources.update(s for s, _ in samples)
        tasks.update(t for _, t in samples)
        shards.append({"file": path.name, "n": len(samples), "sha256": sha256(path)})
    write_index(
        directory,
        shards,
        sources=dict(sources),
        tasks=dict(tasks),
        licences={},
        vectors=None,
        command=command_line(),
    )
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
