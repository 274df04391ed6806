"""The benchmarks of the tiny world: clips that were never heard, captions that were never read."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf

from disk import write_atomic
from scoring.tasks import BENCHMARKS
from shards.tiny.questions import ask_caption, ask_choice, ask_label, ask_open, ask_yes_no
from shards.tiny.scenes import CLIP, SECONDS, SR, Scene, imagine, labels, render
from shards.tiny.words import caption, describe_in
from shards.tiny.work import progress
from shards.writer import ShardWriter

CLIPS = 1000  # of each of PLACES


class Test(NamedTuple):
    """A benchmark: a task on clips of one of PLACES, at most n, of scenes that fit."""

    place: str
    ask: Callable
    n: int
    fits: Callable[[Scene], bool] = lambda scene: True


def references(scene: Scene, text: str, said: set, rng: np.random.Generator) -> dict:
    """The caption task with five references, none of which is the text."""
    captions = {text}
    while len(captions) < 6:
        captions.add(caption(scene, rng, "test"))
    others = sorted(captions - {text}, key=lambda c: hashlib.sha1(c.encode()).digest())
    return ask_caption(scene, text, said, rng) | {"answer": others}


def is_sound(scene):
    return scene.kind == "sound"


# Where clips are heard: what imagine() should imagine. A mixed clip serves several benchmarks.
PLACES = {
    "sound": dict(kind="sound", voices=1),
    "music": dict(kind="music", voices=1),
    "mixed": {},
}
TEST = {
    "sound": Test("sound", ask_label, 1000),
    "music": Test("music", ask_label, 1000),
    "events": Test("mixed", ask_label, 300, lambda s: is_sound(s) and len(s.voices) == 2),
    "caption": Test("mixed", references, 300, is_sound),
    "music_caption": Test("mixed", references, 150, lambda s: s.kind == "music"),
    "yesno": Test("mixed", ask_yes_no, 1000),
    "open": Test("mixed", ask_open, 500),
    "mcq": Test("mixed", ask_choice, 1000),
}


def scene_of(place: str, i: int) -> Scene:
    return imagine(2, list(PLACES).index(place), i, **PLACES[place])[1]


def wave_of(place: str, i: int) -> np.ndarray:
    """The i-th clip of a place: (SECONDS * SR,) float32."""
    progress(CLIP)
    rng = np.random.default_rng((8, list(PLACES).index(place), i))
    return render(scene_of(place, i), rng, SECONDS, SR)


def samples_of(name: str) -> Iterator[tuple[int, dict]]:
    """(number of its clip, sample) for all samples of a benchmark. A sample's id is its clip's."""
    test, k = TEST[name], 0
    for i in range(CLIPS):
        scene = scene_of(test.place, i)
        if test.fits(scene) and k < test.n:
            rng = np.random.default_rng((9, list(TEST).index(name), i))
            sample = test.ask(scene, *describe_in(scene, rng, "test"), rng)
            yield i, sample | {"source": f"tiny-{name}", "id": f"{test.place}-{i}"}
            k += 1


def seconds() -> float:
    return len(PLACES) * CLIPS * CLIP


def write_test(directory: Path) -> None:
    flacs = {place: [flac(wave_of(place, i)) for i in range(CLIPS)] for place in PLACES}
    for name, test in TEST.items():
        with ShardWriter(directory / name, licences={"tiny": "MIT"}) as writer:
            for i, sample in samples_of(name):
                writer.write(sample, audio=("flac", flacs[test.place][i]))
        if BENCHMARKS[name].classes:
            kind = "music" if name == "music" else "sound"
            classes = json.dumps(labels(kind), indent=1)
            write_atomic(directory / name / "labels.json", classes.encode())


def flac(wave: np.ndarray) -> bytes:
    out = io.BytesIO()
    sf.write(out, wave, SR, format="FLAC")
    return out.getvalue()


def write_listen(directory: Path) -> None:
    directory.mkdir()
    captions = {
        i: sample["text"] for name in ("caption", "music_caption") for i, sample in samples_of(name)
    }
    lines = []
    for i in range(12):
        sf.write(directory / f"{i:02d}.wav", wave_of("mixed", i), SR)
        lines.append(f"{i:02d}.wav\t{captions[i]}\n")
    (directory / "captions.tsv").write_text("".join(lines))
