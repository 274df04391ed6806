"""Partial results of all processes, which survive a kill."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from distributed import Ranks


class Parts:
    """Partial results of all processes, {key: value}, in files beside the `path` of the whole.

    Each part appears whole under its name, so a kill loses at most the part in hand. `save` and
    `load` write and read one: save(found, file), load(file).
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
        return {key: value for part in self.files() for key, value in self.load(part).items()}

    def add(self, found: dict) -> None:
        self.count += 1
        temporary = Path(f"{self.path}.tmp{self.ranks.rank}")
        self.save(found, temporary)
        name = f"{self.path.stem}.{self.ranks.rank}.{self.count}.part"
        os.replace(temporary, self.path.parent / name)

    def remove(self) -> None:
        for part in self.files():
            part.unlink()


def whole_lines(path: Path) -> list[dict]:
    """The JSON lines of a file; a kill may have cut the last one."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
