"""SPICE's own cache of parses: a folder with an LMDB, apart for each version of jars and Java."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from scoring.spice.java import Java, user_folder

# Of a damaged LMDB: its errors begin so, or Java crashes, where the file was cut off.
DAMAGED = ("MDB_", "SIGBUS", "SIGSEGV")
PARSED: dict[Path | None, set[str]] = {}  # by cache


def find_cache(java: Java, cache: str | Path | bool = True) -> Path | None:
    """The folder of these jars' parses. cache: a folder above it; True: the user's; False: none."""
    if cache is False:
        return None
    above = user_folder() / "spice-parses" if cache is True else Path(cache).expanduser()
    return above.resolve() / java.parses


class Cache:
    """The cache during one scoring.

    Whatever goes wrong with it costs time and never a score: a damaged one is set aside, and one
    that cannot be used is left out. Either is said in one line.
    """

    def __init__(self, folder: Path | None):
        self.folder, self.told = folder, False
        self.known = PARSED.setdefault(folder, set())  # captions that this process has parsed
        if folder:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self.leave_out(error.strerror)

    def arguments(self) -> list[str]:
        return ["-cache", str(self.folder)] if self.folder else []

    def add(self, captions: Iterable[str]) -> None:
        """Notes that these have been parsed."""
        if self.folder:
            self.known.update(captions)

    def state(self) -> int | None:
        """What tells this folder from one that takes its place."""
        return self.folder.stat().st_ino if self.folder and self.folder.exists() else None

    def set_aside(self, state: int | None) -> bool:
        """Makes an empty one in its place, if it is still the one of that state. Whether it did."""
        if self.told or self.folder is None:
            return False
        self.told = True
        self.known.clear()
        aside = self.folder.with_name(f"{self.folder.name}.damaged")
        try:
            if self.state() == state:  # or another process was faster
                shutil.rmtree(aside, ignore_errors=True)
                self.folder.rename(aside)
                print(f"SPICE: a damaged cache of parses was set aside: {aside}", file=sys.stderr)
            self.folder.mkdir(exist_ok=True)
        except OSError:
            return False
        return True

    def leave_out(self, why: str) -> None:
        """Does without it from here on."""
        print(
            f"SPICE: the cache of parses {self.folder} cannot be used ({why}); all captions are "
            "parsed without it. Another folder: --spice-cache",
            file=sys.stderr,
        )
        self.folder, self.known = None, set()
