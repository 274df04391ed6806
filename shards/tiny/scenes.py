"""
Scenes: one or two things that sound, with a count, a distance, an order, a tempo.

    scene = random_scene(rng)
    wave = render(scene, rng)       two seconds at 16 kHz: (32000,) float32
"""

from dataclasses import dataclass, replace

import numpy as np

from shards.tiny.instruments import INSTRUMENTS, melody, random_style
from shards.tiny.signals import Tape, Wave, fft_length, frequencies, level
from shards.tiny.sounds import SOUNDS, Sounder

SR, SECONDS = 16000, 2.0
CLIP = 0.004  # seconds of one core that a clip takes to render, roughly
SOUNDERS = SOUNDS | INSTRUMENTS
TWO = {"sound": 0.45, "music": 0.25}  # odds of a second voice


@dataclass(frozen=True)
class Voice:
    name: str  # of a Sounder
    count: int = 0  # number of events; 0: continuous
    distance: str | None = None  # near | far | None: neither

    @property
    def sounder(self) -> Sounder:
        return SOUNDERS[self.name]


@dataclass(frozen=True)
class Scene:
    kind: str  # sound | music
    voices: tuple[Voice, ...]  # in the order of time when one follows the other
    layout: str  # solo | together | sequence
    noise: str  # quiet | noisy
    tempo: str | None = None  # music only: slow | fast
    register: str | None = None  # low | high; None: nothing in it has a pitch
    contour: str | None = None  # rising | falling | wandering

    @property
    def labels(self) -> list[str]:
        """The names of its voices: in the order of time in a sequence, else in the alphabet's."""
        names = [voice.name for voice in self.voices]
        return names if self.layout == "sequence" else sorted(names)


def labels(kind: str | None = None) -> list[str]:
    """The names of all sounders of a kind, "sound", "music" or None for both, in a fixed order."""
    return [s.name for s in SOUNDERS.values() if kind in (None, s.kind)]


# -- drawing a scene


def random_scene(rng: np.random.Generator, kind: str | None = None, n: int | None = None) -> Scene:
    """A scene of n voices, 1 or 2, and of a kind, "sound" or "music"; None: drawn."""
    kind = kind or ("sound" if rng.random() < 2 / 3 else "music")
    n = n or 1 + int(rng.random() < TWO[kind])
    layout = "solo" if n == 1 else "together"
    if n == 2 and kind == "sound" and rng.random() < 0.5:
        layout = "sequence"
    names = [str(name) for name in rng.choice(labels(kind), n, replace=False)]
    noise = "noisy" if rng.random() < 0.4 else "quiet"
    if kind == "sound":
        seconds = 0.95 if layout == "sequence" else 1.9
        voices = tuple(_random_voice(rng, name, seconds) for name in names)
        return Scene(kind, voices, layout, noise)
    tempo, register, contour = random_style(rng)
    voices = tuple(Voice(name) for name in names)
    if not any(voice.sounder.base for voice in voices):
        register = contour = None
    return Scene(kind, voices, layout, noise, tempo, register, contour)


def _random_voice(rng, name, seconds):
    """A voice whose events fit into `seconds`; one always does."""
    gap, count = SOUNDERS[name].gap, 0
    if gap:
        count = int(rng.choice([c for c in (1, 2, 3, 5) if c * gap <= max(seconds, gap)]))
    return Voice(name, count, [None, "near", "far"][rng.integers(3)])


def imagine(
    *seed: int, kind: str | None = None, voices: int | None = None
) -> tuple[np.random.Generator, Scene]:
    """(generator, scene): one seed per scene, so that each can be made alone."""
    rng = np.random.default_rng(seed)
    return rng, random_scene(rng, kind, voices)


# -- rendering it


def alone(sounder: Sounder, tape: Tape) -> Wave:
    """One event or one stretch of a sound, one melody of an instrument: (n,) float32."""
    if sounder.kind == "music":
        return level(melody(sounder, tape, *random_style(tape.rng)))
    return level(sounder.play(tape))


def render(scene: Scene, rng: np.random.Generator, seconds: float = SECONDS, sr: int = SR) -> Wave:
    """The scene as sound: (seconds * sr,) float32, peak at most 0.95."""
    tape = Tape(rng, int(seconds * sr), sr)
    out = np.zeros(tape.n, np.float32)
    cut = int(tape.n * rng.uniform(0.45, 0.55))
    turns = [(0, tape.n)] * len(scene.voices)
    if scene.layout == "sequence":
        turns = [(0, cut), (cut, tape.n)]
    for voice, (start, end) in zip(scene.voices, turns):
        turn = replace(tape, n=end - start)
        x = _perform(scene, voice, turn)
        if scene.layout == "sequence":
            x = x * turn.swell(0.01, 0.04)
        out[start:end] += _at_distance(x, voice.distance, turn)
    floor = rng.uniform(0.008, 0.02) if scene.noise == "noisy" else rng.uniform(5e-4, 2e-3)
    out += tape.noise(50, rng.uniform(3000, 8000), rng.uniform(-0.6, 0)) * floor
    return (out * min(1, 0.95 / np.abs(out).max())).astype(np.float32)


def _perform(scene, voice, tape):
    """A melody, a continuous sound, or `count` repeats of one event: the same dog, bell or door."""
    sounder = voice.sounder
    if sounder.kind == "music":
        return melody(sounder, tape, scene.tempo, scene.register, scene.contour)
    if not sounder.gap:
        return sounder.play(tape)
    late = [tape.uniform(0, 0.2 if k else 0.1) for k in range(voice.count)]
    starts = [tape.n / voice.count * (k + late[k]) for k in range(voice.count)]
    event = sounder.play(tape.event(4 * sounder.gap))
    gains = tape.rng.uniform(0.75, 1, voice.count).tolist()
    return tape.place(starts, [event * gain for gain in gains])


def _at_distance(x, distance, tape):
    """x near (loud and dry), far (soft, dull and reverberant) or between."""
    x = level(x)
    if distance == "near":
        return x * tape.uniform(0.85, 1.1)
    if distance is None:
        return x * tape.uniform(0.45, 0.65)
    echo = tape.grain(0.25)
    room = tape.rng.standard_normal(echo.n, dtype=np.float32)
    room = room * echo.decay(tape.uniform(0.06, 0.12)) * 0.04
    room[0] = 1
    n = fft_length(len(x) + echo.n)  # with room for the reverberation, else it would wrap around
    dull = 1 / (1 + (frequencies(n, tape.sr) / tape.uniform(900, 1500)) ** 2)
    wet = np.fft.irfft(np.fft.rfft(x, n) * np.fft.rfft(room, n) * dull)[: len(x)]
    return wet * (tape.uniform(0.18, 0.28) * np.sqrt(np.sum(x * x) / (np.sum(wet * wet) + 1e-12)))
