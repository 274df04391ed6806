"""SPICE and SPIDEr, through the official jar: no other implementation exists.

    captions ──► rows of JSON ──► java SpiceScorer ──► a score per item, or the printed mean

Java up to 14, and a later one with nashorn-core and its asm jars in lib/, has the JavaScript engine
that SPICE needs to write scores per item. Without one, the printed mean is read: 3 decimals.
"""

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from scoring.captions import CaptionMetric, checked, cider_d
from scoring.llm import WRONG_FORM
from scoring.ptb import cached_tokens

JAR = "spice-1.0.jar"
GET_JARS = (
    "pip install --no-deps --target spice pycocoevalcap && "
    "export SPICE_HOME=$PWD/spice/pycocoevalcap/spice"
)
GET_PARSER = (
    "curl -LO http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip && "
    "unzip -j stanford-corenlp-full-2015-12-09.zip '*/stanford-corenlp-3.6.0*.jar' -d {home}/lib"
)
PIECES = {
    JAR: GET_JARS,
    "lib/Meteor-1.5.jar": GET_JARS,
    "lib/SceneGraphParser-1.0.jar": GET_JARS,
    "lib/stanford-corenlp-3.6.0.jar": GET_PARSER,
    "lib/stanford-corenlp-3.6.0-models.jar": GET_PARSER,
}


class SpiceMissing(RuntimeError):
    """SPICE cannot run here. The message names each missing piece and the command that gets it."""


def find_java():
    """(path, version) of JAVA_HOME's java, else of PATH's; None for what there is not."""
    folder = Path(os.environ.get("JAVA_HOME") or "/nowhere", "bin")
    java = shutil.which("java", path=folder) or shutil.which("java")
    if java:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = [java, "-version"]
            said = subprocess.run(command, capture_output=True, check=True, timeout=60)
            version = re.search(rb'version "(?:1\.)?(\d+)', said.stderr + said.stdout)
            if version:
                return java, int(version[1])
    return java, None


def find_missing(home: Path | None, java: str | None, version: int | None) -> list[str]:
    """A line for each missing piece: its name, where it was looked for, how to get it."""
    missing = []
    if not version:
        where = java or "none on PATH or in JAVA_HOME"
        missing.append(f"Java 8 or later ({where}): apt-get install default-jre-headless")
    where = f"not in {home}" if home else "SPICE_HOME is not set"
    folder = shlex.quote(str(home)) if home else "$SPICE_HOME"
    for name, command in PIECES.items():
        if not home or not (home / name).is_file():
            missing.append(f"{name} ({where}): {command.format(home=folder)}")
    return missing


# --- one run of Java ----------------------------------------------------------------------------


def run_java(command: list[str], timeout: float, out: Path, err: Path) -> None:
    # into files, since a pipe would wait for a killed child's children
    with out.open("wb") as stdout, err.open("wb") as stderr:
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, timeout=timeout
        )
    if ran.returncode == -signal.SIGKILL:
        raise ValueError("Java was killed: too little memory?")
    if ran.returncode:
        raise ValueError(f"Java ended with code {ran.returncode}")


def last_words(*printed: Path) -> str:
    """The error that Java printed, else its last line, in one line."""
    texts = [path.read_text("utf-8", "replace") for path in printed if path.exists()]
    lines = [line for text in texts for line in map(str.strip, text.split("\n")) if line]
    errors = [i for i, line in enumerate(lines) if re.search(r"(Error|Exception)\b", line)]
    start = errors[0] if errors else max(len(lines) - 1, 0)
    return " ".join(" ".join(lines[start:]).split())[:300] or "nothing"


def read_items(path: Path):
    """(mean, number, {id: score}) of the captions, as SPICE writes them with -out."""
    rows = json.loads(path.read_bytes())
    scores = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in rows}
    return sum(scores.values()) / max(len(scores), 1), len(scores), scores


def read_printed(text: str):
    """(mean, number, None) of the captions, as SPICE prints them."""
    said = re.search(r"All tuples\s+f-score:\s*([\d.]+).*?num images:\s*(\d+)", text, re.S)
    if not said:
        raise ValueError("it names no score")
    return float(said[1]), int(said[2]), None


# Spice and Spider of one collection score the same captions, and Java takes minutes.
@functools.lru_cache(4)
def run_spice(command: tuple[str, ...], engine: bool, timeout: float, captions: str, n: int):
    """(mean, {id: score}) of n captions, given as SPICE's input; None without an engine.

    Raises RuntimeError, in one line, where the run fails, hangs or gives no score.
    """
    said = "nothing"
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            source, result, out, err = (
                Path(folder, name) for name in ("in.json", "out.json", "stdout", "stderr")
            )
            source.write_text(captions)
            command = (*command, str(source), *(["-out", str(result)] if engine else []))
            try:
                run_java(command, timeout, out, err)
                if engine:
                    mean, count, scores = read_items(result)
                else:
                    mean, count, scores = read_printed(out.read_text("utf-8", "replace"))
                if count != n or not 0 <= mean <= 1:
                    raise ValueError(f"read a mean of {mean} over {count} captions")
            except Exception:
                said = last_words(err, out)
                raise
    except (*WRONG_FORM, OSError, subprocess.TimeoutExpired) as error:
        why = error
        if isinstance(error, subprocess.TimeoutExpired):
            why = "out of time: give a longer timeout"
        raise RuntimeError(
            f"SPICE gave no score for {n} captions ({why}). Java said: {said}. "
            f"The command was: {shlex.join(command)}"
        ) from error
    return mean, scores


# --- Metrics ------------------------------------------------------------------------------------


class Spice(CaptionMetric):
    """SPICE of all captions given, float64 in 0..1: the mean F1 over the tuples of scene graphs.

    Anderson et al. 2016. home: the folder with the jar and lib/, by default SPICE_HOME. memory:
    Java's -Xmx. timeout: seconds that bound one run, which takes minutes for a thousand clips.
    Predictions without a token score 0 unsent. Under torch.distributed each rank runs Java.
    Raises SpiceMissing when constructed, and RuntimeError as `run_spice`.
    """

    def __init__(
        self, home: str | None = None, memory: str = "8G", timeout: float = 2 * 3600, **kwargs
    ):
        super().__init__(**kwargs)
        home = home or os.environ.get("SPICE_HOME")
        home = Path(home).expanduser().resolve() if home else None
        java, version = find_java()
        if missing := find_missing(home, java, version):
            raise SpiceMissing("\n  ".join(["SPICE cannot run; it lacks", *missing]))
        self.timeout = timeout
        self.engine = version < 15 or any((home / "lib").glob("nashorn-core*.jar"))
        self.command = (
            java,
            f"-Xmx{memory}",
            "-Duser.language=en",  # others print 0,123
            "-cp",
            f"{home / JAR}{os.pathsep}{home}/lib/*",  # the jar's manifest knows no engine
            "edu.anu.spice.SpiceScorer",  # never -cache: Java >= 16 ends
        )

    def _score(self, preds, target):
        """(mean, list of each item's score); None without a JavaScript engine."""
        preds, target = checked(preds, target)
        rows = [
            {"image_id": i, "test": pred, "refs": target[i]}
            for i, pred in enumerate(preds)
            if cached_tokens(pred)
        ]
        mean, scores = 0.0, {}
        if rows:
            sent = json.dumps(rows)
            mean, scores = run_spice(self.command, self.engine, self.timeout, sent, len(rows))
        mean *= len(rows) / max(len(preds), 1)
        if scores is None:
            return mean, None
        return mean, [scores.get(i, 0.0) for i in range(len(preds))]

    def per_item(self, preds, target) -> Tensor | None:
        """(n,) float64; None without a JavaScript engine."""
        scores = self._score(preds, target)[1]
        return None if scores is None else torch.tensor(scores, dtype=torch.float64)

    def compute(self) -> Tensor:
        return torch.tensor(self._score(*self.captions())[0], dtype=torch.float64)


class Spider(Spice):
    """SPIDEr = (CIDEr-D + SPICE) / 2 of all captions given, float64 in 0..5.5 (Liu et al. 2017)."""

    def per_item(self, preds, target) -> Tensor | None:
        scores = super().per_item(preds, target)
        return None if scores is None else (cider_d(preds, target) + scores) / 2

    def compute(self) -> Tensor:
        return (cider_d(*self.captions()).mean() + super().compute()) / 2
