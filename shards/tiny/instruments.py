"""
Instruments and the melodies they play. A recipe is one note: of a pitch, else of a beat.

    melody(INSTRUMENTS["harp"], Tape(rng, 32000), "slow", "low", "rising")      (32000,) floats
"""

from dataclasses import replace
from functools import partial

import numpy as np

from shards.tiny.signals import Tape, Wave, rolloff
from shards.tiny.sounds import Sounder, sounder

TEMPOS, REGISTERS, CONTOURS = ("slow", "fast"), ("low", "high"), ("rising", "falling", "wandering")
PENTATONIC = np.array([[0, 2, 4, 7, 9], [0, 3, 5, 7, 10]])  # major, minor: semitones

INSTRUMENTS: dict[str, Sounder] = {}

# --------------------------------------------------------------------------------------------------
string = partial(sounder, INSTRUMENTS, "music", "string")


@string("in a concert hall", "a harp|a lyre", "plays", base=131)
def harp(tape, hz):
    return _pluck(tape, hz, 0.48, 1.8, 0.9)


def _pluck(tape, hz, where, ring, power):
    """A string plucked `where` along its length: the higher the harmonic, the sooner it is gone."""
    k = np.arange(1, 21)
    amplitudes = np.abs(np.sin(np.pi * k * where)) * k ** -float(1 + power / 2)
    decays = ring * min(1, (200 / hz) ** 0.5) / (1 + 0.25 * (k - 1))
    return tape.modes(hz, k, amplitudes, decays) * tape.fade_in(0.001)


@string("in a concert hall", "a violin|a fiddle", "plays", base=196)
def violin(tape, hz):
    string = tape.tone(hz * _vibrato(tape, 0.008), rolloff(25, 0.8))
    bow = 0.03 * tape.noise(2000, 7000)
    body = tape.formants(string + bow, (500, 0.8), (1000, 0.6), (3000, 1))
    return body * tape.swell(0.07, 0.06)


def _vibrato(tape, depth):
    """A curve around 1 that begins to swing within 0.3 seconds."""
    swing = np.sin(2 * np.pi * (tape.uniform(4.5, 6.5) * tape.t + tape.rng.random()))
    return 1 + depth * np.minimum(1, tape.t / 0.3) * swing


# --------------------------------------------------------------------------------------------------
wind = partial(sounder, INSTRUMENTS, "music", "wind")


@wind("in a concert hall", "a flute|a wooden flute", "plays", base=262)
def flute(tape, hz):
    breath = tape.noise(hz, min(hz * 4, 7000)) * tape.uniform(0.05, 0.12)
    pipe = tape.tone(hz * _vibrato(tape, 0.004), (1, 0.3, 0.1, 0.03))
    return (pipe + breath) * tape.swell(0.05, 0.05)


@wind("in a jazz club", "a clarinet|a chalumeau", "plays", base=147)
def clarinet(tape, hz):
    odd = (1, 0.03, 0.6, 0.05, 0.4, 0.05, 0.25, 0.05, 0.12)  # a closed pipe: odd harmonics
    return tape.tone(hz, odd) * tape.swell(0.04, 0.05)


@wind("in a jazz club", "a trumpet|a bugle", "plays|blows", base=165)
def trumpet(tape, hz):
    dark = tape.tone(hz, rolloff(20, 1.5))
    bright = tape.tone(hz, np.exp(-np.arange(20) / 7.0))
    push = tape.swell(0.1, 0.1) ** 2  # brass brightens as it gets loud
    return (dark * (1 - push) + bright * push) * tape.swell(0.03, 0.05)


# --------------------------------------------------------------------------------------------------
keyboard = partial(sounder, INSTRUMENTS, "music", "keyboard")


@keyboard("in a concert hall", "a piano|a grand piano", "plays", base=82)
def piano(tape, hz):
    k = np.arange(1, 10)
    stretched = k * np.sqrt(1 + 0.0006 * k * k)  # a stiff string: the higher harmonics are sharp
    return tape.modes(hz, stretched, k**-1.1, 0.7 / (1 + 0.25 * k)) * tape.fade_in(0.004)


@keyboard("in a church", "an organ|a pipe organ", "plays", base=98)
def organ(tape, hz):
    pipes = tape.chord(hz, (0.5, 1, 1.498, 2.003), (1, 0.5, 0.3, 0.25, 0.1, 0.15))
    return pipes * tape.swell(0.02, 0.04)


# --------------------------------------------------------------------------------------------------
percussion = partial(sounder, INSTRUMENTS, "music", "percussion")


@percussion("in a school music room", "a xylophone|a marimba", "plays", base=262)
def xylophone(tape, hz):
    mallet = tape.noise(500, 3000) * tape.decay(0.004) * 0.2
    bar = tape.modes(hz, (1, 3.0, 6.1, 9.8), (1, 0.5, 0.25, 0.1), (0.12, 0.05, 0.025, 0.01))
    return bar + mallet


@percussion("in a dance club", "a drum kit|a drummer", "plays|pounds")
def drum_loop(tape, step):
    """Kick, hi-hat, snare, hi-hat."""
    hit = tape.event(0.25)
    if step % 4 == 0:
        return hit.tone(50 + 110 * np.exp(-hit.t / 0.03)) * hit.decay(0.12) * 1.5
    if step % 4 == 2:
        wires = hit.noise(1200, 6000) * hit.decay(0.06) * 0.5
        return wires + hit.tone(190) * hit.decay(0.05) * 0.6
    return hit.noise(6000, 8000) * hit.decay(0.02) * 0.25


@percussion("in a rehearsal room", "a hi-hat|a cymbal", "plays|taps", name="hi-hat")
def hi_hat(tape, step):
    hit = tape.event(0.3)
    ring = 0.12 if step % 4 == 3 else 0.025  # open on the fourth beat, else closed
    return hit.noise(5500, 8000) * hit.decay(ring, 0.001)


# --------------------------------------------------------------------------------------------------


def random_style(rng: np.random.Generator) -> tuple[str, str, str]:
    """A tempo, a register and a contour."""
    tempo, register, contour = (str(rng.choice(v)) for v in (TEMPOS, REGISTERS, CONTOURS))
    return tempo, register, contour


def melody(
    instrument: Sounder, tape: Tape, tempo: str, register: str | None, contour: str | None
) -> Wave:
    """One note a beat, all over the tape; the two registers lie two octaves apart."""
    beat = tape.uniform(0.5, 0.7) if tempo == "slow" else tape.uniform(0.14, 0.22)
    starts = np.arange(0, tape.n, beat * tape.sr)
    if instrument.base:
        pitches = _pitches(tape.rng, instrument, len(starts), register, contour)
        note = replace(tape, n=int(beat * tape.sr * tape.uniform(0.9, 1.3)))
    else:
        pitches, note = range(len(starts)), tape.grain(0.5)
    return tape.place(starts, [_note(instrument, note, pitch) for pitch in pitches])


def _note(instrument, tape, pitch):
    x = instrument.play(tape, pitch)
    return x * replace(tape, n=len(x)).swell(0.001, 0.03) * tape.uniform(0.8, 1)


def _pitches(rng, instrument, k, register, contour):
    """k notes of a pentatonic scale, within an octave and a half: (k,) Hz."""
    scale = PENTATONIC[rng.integers(2)]
    wandering = np.cumsum(rng.integers(-2, 3, k))
    degree = {"rising": np.arange(k), "falling": np.arange(k)[::-1], "wandering": wandering}[
        contour
    ]
    degree = degree - degree.min()
    degree = np.round(degree * min(1, 7 / max(degree.max(), 1))).astype(int)
    semitones = scale[degree % 5] + 12 * (degree // 5) + rng.integers(0, 5)
    lowest = instrument.base * (4 if register == "high" else 1)
    return lowest * 2 ** (semitones / 12)
