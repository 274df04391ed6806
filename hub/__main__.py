"""The card of a trained model, and its way to the hub.

    python -m hub out/tiny/model                         print the card that would be pushed
    python -m hub out/tiny/model user/name --private     push the model; `hf auth login` comes first
    python -m hub out/tiny/model --to FOLDER             a copy of all that it needs

A README.md in the model's folder is pushed as it is, in place of that card.
"""

import argparse
import tempfile
from pathlib import Path

from disk import command
from hub import card
from hub.push import export, pack, push


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hub",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", help="a model as train.py writes it")
    add("name", nargs="?", help="user/name: push it there; without, only the card is printed")
    add("--private", action="store_true", help="where the repository is new")
    add("--branch", help="default: main")
    add("--to", metavar="FOLDER", help="write the model there, and what goes along")
    args = parser.parse_args(argv)
    if args.to:
        export(args.folder, args.to)
        return
    if args.name:
        print(push(args.folder, args.name, args.private, args.branch))
        return
    with tempfile.TemporaryDirectory() as upload:
        pack(Path(args.folder), Path(upload))
        print(card.write(Path(upload), "user/name", Path(args.folder)))


if __name__ == "__main__":
    with command("python -m hub"):
        main()
