"""Downloads public data sets from their official places, in the layout that the builders read.

    python -m shards.fetch --root DIR                       every data set, and what DIR has of it
    python -m shards.fetch esc50 clotho --root DIR          annotations, and audio of the benchmarks
    python -m shards.fetch all --text-only --root DIR       annotations alone
    python -m shards.fetch spice                            SPICE's jars (490 MB), tried out

A stopped download resumes with the same command. Checksums are compared. Data that wants a form, an
account or a crawl is listed with its steps.
"""

import argparse

from disk import command
from shards.benchmarks import BENCHMARKS
from shards.fetch import entries_of, fetch, in_words, missing
from shards.fetch.catalog import PARTS, Entry, File, read_catalog
from shards.sources import EVERY


def users_of(entry: Entry) -> str:
    """What is built of the data set."""
    trained = [name for name, source in EVERY.items() if source.folder == entry.name]
    tested = [name for name, benchmark in BENCHMARKS.items() if benchmark.folder == entry.name]
    uses = [f"train: {', '.join(trained)}"] if trained else []
    uses += [f"test: {', '.join(tested)}"] if tested else []
    return "; ".join(uses) or "no builder reads it yet"


def folder_of(name: str) -> str:
    """The data set of a source or a benchmark; any other name as it is."""
    part = EVERY.get(name) or BENCHMARKS.get(name)
    return part.folder if part else name


def overview(entries: list[Entry], root: str) -> None:
    """Prints what there is of each data set, and what is under the root."""
    for entry in entries:
        print(f"{entry.name:17} {users_of(entry)}")
        for part in PARTS:
            files = [file for file in entry.files if file.part == part]
            if files:
                there = len(files) - len(missing([entry.name], root, [part]))
                print(f"    {part:5} {bytes_of(files):>12}   {there} of {len(files)} files there")
        print(f"    {entry.page} ({entry.licence})")
        print(*by_hand(entry), sep="\n", end="\n" if entry.hand else "")


def bytes_of(files: list[File]) -> str:
    """Their bytes in words; with a "+" where not all are known."""
    known = [file.size for file in files if file.size]
    more = "+" if len(known) < len(files) else ""
    return f"{in_words(sum(known))}{more}" if known else "?"


def by_hand(entry: Entry, audio: bool = True) -> list[str]:
    """The steps to what cannot be fetched, a line each."""
    steps = [step for step in entry.hand if audio or not step.startswith("audio:")]
    return [f"    by hand: {step}" for step in steps]


def set_up_spice(args: argparse.Namespace) -> list[str]:
    """Sets SPICE up; returns the other names that were given."""
    from shards.fetch.spice import fetch_spice  # slow to import

    fetch_spice(args.accept, args.yes)
    return [name for name in args.names if name != "spice"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m shards.fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    known = f"all, or any of: {', '.join(read_catalog())}; or a source or benchmark of one; spice"
    option("names", nargs="*", metavar="NAME", help=known)
    option("--root", help="the folder that holds the data sets' folders; not for spice")
    option("--list", action="store_true", help="print them, and what is there")
    option("--text-only", action="store_true", help="annotations alone, without audio")
    option("--train-audio", action="store_true", help="also the training clips, for MATS-Audio")
    option(
        "--accept", action="store_true", help="take files that have changed since, or lack clips"
    )
    option("--yes", action="store_true", help="do not ask before gigabytes, and before spice")
    args = parser.parse_args(argv)
    if args.text_only and args.train_audio:
        parser.error("--text-only leaves out what --train-audio adds")
    if "spice" in args.names and not args.list:
        args.names = set_up_spice(args)
        if not args.names:
            return None
    if args.root is None:
        parser.error("the following arguments are required: --root")
    if not args.root:
        parser.error("--root names no folder")
    asked = [folder_of(name) for name in args.names]
    names = list(read_catalog()) if not asked or "all" in asked else asked
    entries = entries_of(names)
    if args.list or not args.names:
        return overview(entries, args.root)
    parts = PARTS[: 1 if args.text_only else 2 + args.train_audio]
    try:
        fetch(names, args.root, parts, args.accept, args.yes)
    finally:
        for entry in entries:
            if steps := by_hand(entry, audio=not args.text_only):
                print(entry.name, *steps, sep="\n")
    there = [entry.name for entry in entries if entry.files]
    if there:
        print(f"all that can be fetched of {', '.join(there)} is in {args.root}")
    return None


if __name__ == "__main__":
    with command("shards.fetch"):
        main()
