"""Partial results of all processes, which survive a kill."""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from disk import DataError, seems
from distributed import Ranks


class Parts:
    """Partial results of all processes, {key: value}, in files beside the `path` of the whole.

    Each part appears whole under its name, so a kill loses at most the part in hand. `save` and
    `load` write and read one: save(found, file), all or nothing; load(file), which raises DataError
    where the file is damaged. Such a part is named and removed: its results are made again.
    """

    def __init__(self, path: Path, ranks: Ranks, save: Callable, load: Callable):
        self.path, self.ranks, self.save, self.load = path, ranks, save, load
        path.parent.mkdir(parents=True, exist_ok=True)
        self.count = max((int(part.name.split(".")[-2]) for part in self.files()), default=0)

    def files(self) -> list[Path]:
        # STEM.RANK.COUNT.part; other writers have .part files beside the whole, too
        name = re.compile(re.escape(self.path.stem) + r"\.\d+(\.\d+)?\.part")
        return sorted(f for f in self.path.parent.glob("*.part") if name.fullmatch(f.name))

    def merged(self) -> dict:
        found = {}
        for part in self.files():
            try:
                found |= self.load(part)
            except DataError as error:
                print(f"{error}; this part is made again", file=sys.stderr)
                part.unlink(missing_ok=True)
            except FileNotFoundError:  # another process has just removed it
                continue
        return found

    def add(self, found: dict) -> None:
        self.count += 1
        self.save(found, self.path.parent / f"{self.path.stem}.{self.ranks.rank}.{self.count}.part")

    def remove(self) -> None:
        for part in self.files():
            part.unlink(missing_ok=True)


def json_lines(values: Iterable) -> bytes:
    """A line of JSON a value. Half a surrogate pair, which UTF-8 cannot hold, is escaped."""
    lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in values]
    return "".join(lines).encode("utf-8", "backslashreplace")


def whole_lines(path: Path) -> list[dict]:
    """The JSON objects of a file, one a line; a kill may have cut the last one.

    Raises DataError, naming the line, where one is damaged.
    """
    found, broken = readable_lines(path)
    if broken:
        raise DataError(f"{path} {seems(path)}; line {broken[0]} should hold a JSON object")
    return found


def readable_lines(path: Path) -> tuple[list[dict], list[int]]:
    """(the JSON objects of a file, one a line; the numbers of the lines that hold none)."""
    found, broken = [], []
    # at "\n" alone: answers may hold other characters that end a line of text
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            broken.append(number)
    return found, broken
