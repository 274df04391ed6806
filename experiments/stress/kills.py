"""Commands that are killed at random moments, or whose disk fills up: do they resume exactly?"""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import torch

from disk import sha256
from experiments.stress.forks import Disk, Ended, command, fork

TIMES = ("samples_per_s", "tokens_per_s", "tflops", "mfu")  # fields of log.jsonl that may differ
DRAWN = (".png", ".html")  # not compared: drawn from files that are


def fingerprint(folder: str) -> dict[str, str]:
    """{file under the folder: hash of all that must be the same}."""
    made = {}
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_file() or path.suffix in DRAWN:
            continue
        if path.name == "state.pt":
            state = torch.load(path, weights_only=True)
            made[str(path.relative_to(folder))] = hashlib.sha256(flat(state).encode()).hexdigest()
        elif path.name == "log.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            lines = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
            made[path.name] = json.dumps(lines)
        else:
            made[str(path.relative_to(folder))] = sha256(path)
    return made


def flat(value) -> str:
    """All tensors and values of a state, as text."""
    if isinstance(value, torch.Tensor):
        data = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        return f"{value.dtype}{tuple(value.shape)}{data}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{flat(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(flat, value)) + "]"
    return repr(value)


class Whole:
    """A command's uninterrupted run."""

    def __init__(self, name: str, module: str, argv: list[str], world: str):
        self.name, self.module, self.argv, self.world = name, module, argv, world

    def run(self, folder: Path, **how) -> Ended:
        return command(self.module, self.argv, folder, limit=120, **how)

    def measure(self) -> "Whole":
        """Runs it again: raises RuntimeError unless it ends as in world/first_NAME."""
        folder = Path(self.world, f"again_{self.name}")
        folder.mkdir()
        ended = self.run(folder)
        if ended.status:
            raise RuntimeError(f"{self.name} itself fails: {ended.output[-3000:]}")
        self.seconds, self.files = ended.seconds, fork(fingerprint, str(folder / "out")).value
        self.largest = max(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        first = fork(fingerprint, f"{self.world}/first_{self.name}/out").value
        if not first or first != self.files:
            raise RuntimeError(f"two uninterrupted runs of {self.name} differ")
        return self

    def judge(self, ended: Ended, folder: Path) -> tuple[str | None, list[str]]:
        """(what is wrong with a run that was let finish, files that are left behind)."""
        if ended.status:
            return f"ends with status {ended.status}: {last_line(ended)}", []
        made = fork(fingerprint, str(folder / "out"))
        if made.value is None:
            return f"its files cannot be read: {made.error}", []
        left = sorted(made.value.keys() - self.files.keys())
        changed = [name for name in self.files if made.value.get(name) != self.files[name]]
        return (f"another result: {', '.join(changed[:4])}" if changed else None), left


def last_line(ended: Ended) -> str:
    lines = ended.output.replace("\r", "\n").strip().splitlines()
    return lines[-1].strip()[:300] if lines else "(no output)"


# --- killed -------------------------------------------------------------------------------------


def killed(whole: Whole, seed: int, kills: int) -> dict:
    """So many kills, each at a random moment of a run that was killed before or is new."""
    rng, folder = random.Random(f"kill {whole.name} {seed}"), Path(whole.world, f"k_{os.getpid()}")
    found = {"part": "kill", "name": whole.name, "kills": 0, "finished": 0, "same": 0}
    found |= {"problems": [], "left": [], "most": 0}
    folder.mkdir()
    in_a_row = 0
    while True:
        last = found["kills"] == kills
        at = None if last else rng.uniform(0, whole.seconds)
        ended = whole.run(folder, kill_at=at)
        if ended.status == -9 and not ended.late:
            found["kills"] += 1
            in_a_row += 1
            found["most"] = max(found["most"], in_a_row)
            continue
        problem, left = whole.judge(ended, folder)
        found["finished"] += 1
        found["same"] += problem is None
        found["left"] = sorted({*found["left"], *left})
        if problem:
            found["problems"].append(f"seed {seed}, after {in_a_row} kills: {problem}")
        in_a_row = 0
        shutil.rmtree(folder)
        if last:
            return found
        folder.mkdir()


# --- without room -------------------------------------------------------------------------------


def full(whole: Whole, seed: int) -> dict:
    """A run whose disk fills up at a random moment, then the same command with room."""
    rng, folder = random.Random(f"disk {whole.name} {seed}"), Path(whole.world, f"d_{os.getpid()}")
    found = {"part": "disk", "name": whole.name, "full": 0, "one_line": 0, "same": 0}
    found |= {"problems": [], "left": []}
    folder.mkdir()
    size = rng.choice((0, 1, int(whole.largest ** rng.random())))
    ended = whole.run(folder, disk=Disk(rng.uniform(0, whole.seconds), size))
    if ended.status:
        found["full"] = 1
        traced = "Traceback (most recent call last)" in ended.output
        if ended.status == 1 and not traced and last_line(ended) != "(no output)":
            found["one_line"] = 1
        else:
            why = f"status {ended.status}{', a traceback' if traced else ''}: {last_line(ended)}"
            found["problems"].append(f"seed {seed}, files of at most {size} bytes: {why}")
        ended = whole.run(folder)
    problem, found["left"] = whole.judge(ended, folder)
    found["same"] = int(problem is None)
    if problem:
        found["problems"].append(
            f"seed {seed}, files of at most {size} bytes, then room: {problem}"
        )
    shutil.rmtree(folder)
    return found
