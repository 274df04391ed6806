"""SPICE and SPIDEr: a subprocess to the official jar."""

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from scoring.captions import _Captions, _checked, cider_d
from scoring.ptb import _tokens


class SpiceMissing(RuntimeError):
    """SPICE cannot run here. The message names each missing piece and the command that gets it."""


_PIECES = [
    "spice-1.0.jar",
    *(
        f"lib/{name}.jar"
        for name in (
            "Meteor-1.5",
            "SceneGraphParser-1.0",
            "stanford-corenlp-3.6.0",
            "stanford-corenlp-3.6.0-models",
        )
    ),
]
_GET_JARS = "pip install --no-deps --target spice pycocoevalcap && export SPICE_HOME=$PWD/spice/pycocoevalcap/spice"
_GET_PARSER = (
    "curl -LO http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip && "
    "unzip -j stanford-corenlp-full-2015-12-09.zip '*/stanford-corenlp-3.6.0*.jar' -d {}/lib"
)


@functools.lru_cache(
    4
)  # Spice and Spider of one collection score the same captions: Java takes minutes
def _run_spice(command, engine, timeout, captions, n):
    """The mean over n captions, given as SPICE's input, and each one's score by its id, None without a JavaScript engine."""
    with tempfile.TemporaryDirectory() as folder:
        source, result, out, err = (
            Path(folder) / name for name in ("in.json", "out.json", "stdout", "stderr")
        )
        source.write_text(captions)
        command = [*command, str(source), *(["-out", str(result)] if engine else [])]
        try:
            with (
                out.open("wb") as o,
                err.open("wb") as e,
            ):  # files: a pipe would wait for a killed child's children
                code = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=o, stderr=e, timeout=timeout
                ).returncode
            if code:
                raise ValueError(f"Java ended with code {code}")
            if engine:
                scores = {
                    row["image_id"]: float(row["scores"]["All"]["f"])
                    for row in json.loads(result.read_text())
                }
                mean, count = sum(scores.values()) / n, len(scores)
            else:
                said = re.search(
                    r"All tuples\s+f-score:\s*([\d.]+).*?num images:\s*(\d+)",
                    out.read_text(errors="replace"),
                    re.S,
                )
                scores, mean, count = (
                    None,
                    float(said[1]) if said else -1,
                    int(said[2]) if said else 0,
                )
            if count != n or not 0 <= mean <= 1:
                raise ValueError(
                    f"read a mean of {mean} over {count} captions" if count else "it names no score"
                )
        except (ValueError, TypeError, KeyError, OSError, subprocess.TimeoutExpired) as error:
            why = (
                "out of time: give a longer timeout"
                if isinstance(error, subprocess.TimeoutExpired)
                else error
            )
            last = (
                err.read_text(errors="replace").strip() or out.read_text(errors="replace").strip()
            )[-800:]
            raise RuntimeError(
                f"SPICE gave no score for {n} captions ({why}): {shlex.join(command)}\n{last}"
            ) from error
    return mean, scores


class Spice(_Captions):
    """SPICE of all captions given, float64 in 0..1: the mean F1 over the tuples of scene graphs (Anderson et al. 2016).

    A subprocess to the official spice-1.0.jar, since no other implementation exists. `home` (default: SPICE_HOME) is the folder
    with the jar and lib/; java is JAVA_HOME's, else PATH's; `memory` is its -Xmx; `timeout` (seconds) bounds one run, which takes
    minutes for a thousand clips. Java up to 14, and a later one with nashorn-core and its asm jars in lib/, has the JavaScript
    engine that SPICE needs to write scores per item; else the printed mean is read, which has 3 decimals, and `per_item(preds,
    target)`, (n,) float64, gives None. Predictions without a token score 0 unsent. Under torch.distributed each rank runs Java.
    Raises SpiceMissing when constructed, and RuntimeError with Java's last words where a run fails, hangs or gives no score.
    """

    def __init__(self, home=None, memory="8G", timeout=2 * 3600, **kwargs):
        super().__init__(**kwargs)
        home, version, missing = home or os.environ.get("SPICE_HOME"), None, []
        home = home and Path(home).expanduser().resolve()
        java = shutil.which(
            "java", path=Path(os.environ.get("JAVA_HOME") or "/nowhere", "bin")
        ) or shutil.which("java")
        if java:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                said = subprocess.run(
                    [java, "-version"], capture_output=True, check=True, timeout=60
                )
                version = re.search(rb'version "(?:1\.)?(\d+)', said.stderr + said.stdout)
        if not version:
            missing.append(
                f"Java 8 or later ({java or 'none on PATH or in JAVA_HOME'}): apt-get install default-jre-headless"
            )
        where, folder = (
            (f"not in {home}", shlex.quote(str(home)))
            if home
            else ("SPICE_HOME is not set", "$SPICE_HOME")
        )
        for name in _PIECES:
            if not home or not (home / name).is_file():
                missing.append(
                    f"{name} ({where}): "
                    + (_GET_PARSER if "corenlp" in name else _GET_JARS).format(folder)
                )
        if missing:
            raise SpiceMissing("\n  ".join(["SPICE cannot run; it lacks", *missing]))
        self.timeout, self.engine = (
            timeout,
            int(version[1]) < 15 or any((home / "lib").glob("nashorn-core*.jar")),
        )
        # a wildcard, since the jar's manifest knows no engine; English, since others print 0,123; never -cache: Java >= 16 ends
        self.command = (
            java,
            f"-Xmx{memory}",
            "-Duser.language=en",
            "-cp",
            f"{home / _PIECES[0]}{os.pathsep}{home}/lib/*",
            "edu.anu.spice.SpiceScorer",
        )

    def _score(self, preds, target):
        preds, target = _checked(preds, target)
        rows = [
            {"image_id": i, "test": pred, "refs": target[i]}
            for i, pred in enumerate(preds)
            if _tokens(pred)
        ]
        mean, scores = (
            _run_spice(self.command, self.engine, self.timeout, json.dumps(rows), len(rows))
            if rows
            else (0.0, {})
        )
        return mean * len(rows) / max(len(preds), 1), None if scores is None else [
            scores.get(i, 0.0) for i in range(len(preds))
        ]

    def per_item(self, preds, target):
        scores = self._score(preds, target)[1]
        return None if scores is None else torch.tensor(scores, dtype=torch.float64)

    def compute(self):
        return torch.tensor(self._score(*self.captions())[0], dtype=torch.float64)


class Spider(Spice):
    """SPIDEr = (CIDEr-D + SPICE) / 2 of all captions given, float64 in 0..5.5 (Liu et al. 2017). Otherwise as Spice."""

    def per_item(self, preds, target):
        scores = super().per_item(preds, target)
        return None if scores is None else (cider_d(preds, target) + scores) / 2

    def compute(self):
        return (cider_d(*self.captions()).mean() + super().compute()) / 2
