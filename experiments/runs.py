"""The quick start, run again and again: over seeds, and over settings that round differently.

    RUNS/SETTING/world               the world of a setting, built with its variables
    RUNS/SETTING/seedN               a run: all that train.py and eval.py leave
    RUNS/SETTING/seedN-no-noise      the same seed, trained without noise
    RUNS/.../train.txt, eval.txt     the output of these two programs
    RUNS/.../clips.json              the score of every clip with every column

Another CPU rounds differently, and small differences grow over a training run. The variables of
SETTINGS change the rounding of one CPU, so that one machine stands in for several. They are set
before Python starts: every step of a run is a process of its own. What is done is never redone.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

from config import tiny
from disk import DataError, write_atomic
from eval import arguments, context, encode, evaluation_of
from experiments.ablate import Variant, scores
from scoring.evaluation import Evaluation, digest
from scoring.report import keyed
from scoring.tasks import chance, guessed
from shards.tiny.recipe import recipe

SETTINGS = {  # name: environment variables of a setting
    "base": {},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
    "sse41": {"MKL_CBWR": "COMPATIBLE", "DNNL_MAX_CPU_ISA": "SSE41"},
}
VARIABLES = {variable for setting in SETTINGS.values() for variable in setting}
CLAIMED = {  # benchmarks that the claims are tested on, scored clip by clip: their short names
    "sound": "sounds",
    "music": "instruments",
    "mcq": "choice",
    "caption": "captions",
}
OTHERS = ("text", "none", "nearest", "memory", "projection", "shift")
COLUMNS = (*OTHERS, "santa-kmeans", "santa-ae", "santa-gn", "santa")
PROGRAMS = Path(__file__).parents[1]

Clips = dict[str, dict[str, dict[str, float]]]  # column: {benchmark: {clip: score}}


@dataclass(frozen=True)
class Run:
    """One training of MATS on the world of one setting, and its evaluation."""

    root: Path
    setting: str
    seed: int
    noise: bool = True  # while training, and in the memory
    options: tuple[str, ...] = ()  # more of train.py's

    @property
    def name(self) -> str:
        return f"{self.setting}, seed {self.seed}{'' if self.noise else ', without noise'}"

    @property
    def folder(self) -> Path:
        return self.root / self.setting / f"seed{self.seed}{'' if self.noise else '-no-noise'}"

    @property
    def world(self) -> Path:
        return self.root / self.setting / "world"

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that the claims ask for: without noise only a few."""
        return COLUMNS if self.noise else ("text", "none", "santa")

    @property
    def commands(self) -> dict[str, list[str]]:
        """The command line of each step, in order."""
        parts = [f"--{part}={self.world / part}" for part in ("train", "val", "llm", "clap")]
        train = ["train.py", "tiny", *parts, f"--out={self.folder}", f"--seed={self.seed}"]
        quiet = [] if self.noise else ["--variance=0"]
        shards = ["--shards", str(self.world / "test"), "--columns", ",".join(self.columns)]
        evaluate = ["eval.py", "--ckpt", str(self.folder / "model"), *shards]
        return {"train": [*train, *self.options, *quiet], "eval": evaluate}

    @property
    def key(self) -> str:
        """A digest of the run's commands, settings and world. After other changes: delete runs."""
        commands = [words[1:] for words in self.commands.values()]
        return digest(commands, SETTINGS[self.setting], list(CLAIMED), recipe(), tiny.config)

    @property
    def done(self) -> bool:
        clips, results = self.folder / "clips.json", self.folder / "eval" / "results.json"
        if not (clips.exists() and results.exists()):
            return False
        return json.loads(clips.read_text())["key"] == self.key

    @cached_property
    def evaluation(self) -> Evaluation:
        ckpt, shards = str(self.folder / "model"), str(self.world / "test")
        return evaluation_of(arguments().parse_args(["--ckpt", ckpt, "--shards", shards]))

    @cached_property
    def claimed(self) -> Evaluation:
        """The evaluation on the claims' benchmarks alone."""
        names = [name for name in self.evaluation.names if name in CLAIMED]
        if not names:
            raise DataError(f"{self.evaluation.shards} has none of {', '.join(CLAIMED)}")
        return self.evaluation.on(names)


@dataclass
class Result:
    """What a run left."""

    setting: str
    seed: int
    noise: bool
    clips: Clips
    results: dict  # eval.py's results.json


# --- running ------------------------------------------------------------------------------------


def finish(runs: list[Run]) -> list[Result]:
    """The results of all runs; those that are not done are made now, one after the other.

    Prints a line for each, with an estimate of the time that is left. Raises DataError with the
    command of a step that fails.
    """
    missing, spent = [run for run in runs if not run.done], []
    if len(missing) < len(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are done already", flush=True)
    for i, run in enumerate(missing):
        is_first = not run.world.exists()
        logs = f"{run.folder}/train.txt, then eval.txt"
        print(f"run {i + 1} of {len(missing)}: {run.name}; its output is in {logs}", flush=True)
        seconds = make(run)
        spent.append((is_first, seconds))
        left = estimate(spent, missing[i + 1 :])
        known = f"about {left / 60:.0f} min left" if missing[i + 1 :] else "all runs are done"
        print(f"    {seconds:.0f} s; {known}", flush=True)
    return [read(run) for run in runs]


def estimate(spent: list[tuple[bool, float]], left: list[Run]) -> float:
    """Seconds for the runs that are left. The first run of a setting builds its world, too."""
    every = mean(seconds for _, seconds in spent)
    of_kind = {
        kind: mean([seconds for first, seconds in spent if first == kind] or [every])
        for kind in (True, False)
    }
    worlds = {run.world for run in left if not run.world.exists()}
    return len(worlds) * of_kind[True] + (len(left) - len(worlds)) * of_kind[False]


def make(run: Run) -> float:
    """Trains, evaluates and scores a run, or the rest of it. Returns its seconds."""
    start = time.time()
    run.folder.mkdir(parents=True, exist_ok=True)
    for step, words in run.commands.items():
        call(run, step, words)
    found = {"key": run.key, "clips": clips_of(run)}
    write_atomic(run.folder / "clips.json", json.dumps(found).encode())
    return time.time() - start


def call(run: Run, step: str, words: list[str]) -> None:
    """One step as a process of its own, in the setting's environment.

    Raises DataError where it fails, with its command and its last line.
    """
    program, *rest = words
    variables, log = SETTINGS[run.setting], run.folder / f"{step}.txt"
    others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, str(PROGRAMS / program), *rest]
    with open(log, "ab") as output:
        code = subprocess.run(
            command, env=others | variables, stdout=output, stderr=subprocess.STDOUT
        ).returncode
    if code:
        lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
        said = lines[-1].strip() if lines else "nothing"
        if "holds a run with another" in said:
            said += "; here that is another --runs"
        shown = shlex.join([*(f"{name}={value}" for name, value in variables.items()), *command])
        raise DataError(f"{run.name}: {shown} ended with code {code} and said: {said} ({log})")


# --- scores clip by clip ------------------------------------------------------------------------


def clips_of(run: Run) -> Clips:
    """The headline score of every clip, of all columns and of chance."""
    evaluation = run.claimed
    variants = {column: Variant(run.evaluation, column) for column in run.columns}
    found = {label: by_clip(evaluation, variant) for label, variant in variants.items()}
    return found | {"chance": {name: guesses(evaluation, name) for name in evaluation.names}}


def by_clip(evaluation: Evaluation, variant: Variant) -> dict[str, dict[str, float]]:
    """{benchmark: {clip: headline score}} of a column, or of a setting of Santa."""
    found = {}
    for name, measured in scores(evaluation, variant).items():
        headline = next(iter(measured.values())).per_item.tolist()
        found[name] = dict(zip(clip_names(evaluation, name), headline))
    return found


def guesses(evaluation: Evaluation, name: str) -> dict[str, float]:
    """{clip: the score of an answer that did not listen}: of a guess, or what is expected."""
    rows, known = encode(evaluation, name).rows, context(evaluation, name)
    clips, guess = clip_names(evaluation, name), guessed(name, rows, known)
    if guess:
        return dict(zip(clips, next(iter(guess.values())).per_item.tolist()))
    return dict.fromkeys(clips, next(iter(chance(name, rows, known).values())))


def clip_names(evaluation: Evaluation, name: str) -> list[str]:
    """One name a row, the same in every run: the clip, the question, and which of several."""
    return [json.dumps(key) for key in keyed(encode(evaluation, name).rows)]


def read(run: Run) -> Result:
    clips = json.loads((run.folder / "clips.json").read_text())["clips"]
    results = json.loads((run.folder / "eval" / "results.json").read_text())
    return Result(run.setting, run.seed, run.noise, clips, results)
