"""SPICE's Java played by spice_java.py: the fixture `java`, and captions with known scores."""

import json
import sys
from pathlib import Path

import pytest

from scoring.spice import PIECES, run_spice
from scoring.spice.cache import PARSED

ROOT = Path(__file__).parents[1]
STAND_IN = Path(__file__).with_name("spice_java.py")
# What the real engine gave: a caption, its tokens, the score. From shared/vectors (see its README).
REFERENCES = ["A dog barks loudly while people talk.", "Dogs are barking, and a man speaks"]
SENT = " | a dog barks loudly while people talk | dogs are barking and a man speaks"
OWN = [
    ("A DOG BARKS LOUDLY", "a dog barks loudly", 0.5),
    ("a dog barks loudly", "a dog barks loudly", 0.5),
    ("🔊 a dog 🐶 barks", "a dog barks", 0.5),
    ("Un chien aboie très fort — où ça?", "un chien aboie très fort où ça", 0.0),
    ("a dog barks\n\nA man talks.\nThe end", "a dog barks a man talks the end", 0.0),
    ('{"a": "dog"} \\ barks', "-lcb- a dog -rcb- \\ barks", 0.1818181818181818),
    ("12345 6789", "12345 6789", 0.0),
    ("dog", "dog", 0.2857142857142857),
    ("(a dog) [barks]", "-lrb- a dog -rrb- -lsb- barks -rsb-", 0.1818181818181818),
    (
        "A man's dog doesn't bark; it's quiet!",
        "a man 's dog does n't bark it 's quiet",
        0.5454545454545454,
    ),
    ("Two dogs & three cats...", "two dogs & three cats", 0.2222222222222222),
    ("a dog\tbarks   loudly", "a dog barks loudly", 0.5),
]
PREDS = [caption for caption, _, _ in OWN]
SCORES = [score for _, _, score in OWN]
TARGETS = [REFERENCES] * len(OWN)
MEAN = sum(SCORES) / len(OWN)


class StandIn:
    """Puts the stand-in on PATH as Java, and the names of the jars into SPICE_HOME."""

    def __init__(self, folder, patch):
        self.folder, self.patch, self.home = folder, patch, folder / "SPICE home"
        self.known = {tokens + SENT: score for _, tokens, score in OWN}
        patch.delenv("JAVA_HOME", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(folder / "user"))
        patch.setenv("STAND_IN_FOLDER", str(folder))
        patch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        patch.setenv("SPICE_HOME", str(self.home))
        for name in PIECES:
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        self.put(folder / "bin")
        self.knows({})
        run_spice.cache_clear()
        PARSED.clear()

    def put(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "java"
        path.write_text(f"#!{sys.executable} -S\n{STAND_IN.read_text()}")
        path.chmod(0o755)

    def version(self, version, engine=False):
        self.patch.setenv("STAND_IN_VERSION", version)
        if engine:
            (self.home / "lib/nashorn-core-15.4.jar").touch()

    def knows(self, rows):
        """Adds rows, {"test | ref | ref": score}, in tokens."""
        self.known |= rows
        (self.folder / "rows.json").write_text(json.dumps(self.known))

    def goes_wrong(self, mode):
        self.patch.setenv("STAND_IN", mode)

    def runs(self):
        log = self.folder / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def parsed(self):
        return [text for run in self.runs() for text in run["parsed"]]


@pytest.fixture
def java(tmp_path, monkeypatch):
    return StandIn(tmp_path, monkeypatch)
