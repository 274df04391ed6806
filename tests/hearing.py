"""What tests of the tiny world hear in a wave, and scenes for them."""

import numpy as np

from shards.tiny.scenes import SOUNDERS, Scene, Voice

SR, N = 16000, 32000


def rng(seed=0):
    return np.random.default_rng(seed)


def centroid(x):
    """Hz, of the power spectrum."""
    power = np.abs(np.fft.rfft(x)) ** 2
    return (power * np.fft.rfftfreq(len(x), 1 / SR)).sum() / power.sum()


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def onsets(x, floor=0.25):
    """How often the envelope (30 ms) climbs over `floor` of its maximum after a third of that."""
    envelope = np.abs(x[: len(x) // 480 * 480]).reshape(-1, 480).max(1)
    count, armed = 0, True
    for value in envelope / envelope.max():
        if armed and value > floor:
            count, armed = count + 1, False
        elif value < floor / 3:
            armed = True
    return count


def solo(name, count=0, distance=None, noise="quiet", **music):
    """A scene of one voice; music is slow, low and wandering unless told otherwise."""
    kind = SOUNDERS[name].kind
    if kind == "music":
        music = dict(tempo="slow", register="low", contour="wandering") | music
    return Scene(kind, (Voice(name, count, distance),), "solo", noise, **music)
