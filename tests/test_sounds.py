"""Recipes of sounds and instruments: seeded, finite, level, and like what they are named after."""

import numpy as np
import pytest
from hearing import SR, N, centroid, rms, rng

from shards.tiny.scenes import SOUNDERS, alone
from shards.tiny.signals import Tape


@pytest.mark.parametrize("name", list(SOUNDERS))
def test_sounder_renders(name):
    def render(seed, n=N):
        return alone(SOUNDERS[name], Tape(rng(seed), n))

    x, again, other = render(1), render(1), render(2)
    assert x.shape == (N,)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert 0.1 < np.abs(x).max() <= 1
    assert x.tobytes() == again.tobytes()
    assert np.abs(x - other).max() > 0.05
    assert render(3, 4001).shape == (4001,)
    assert abs(render(3, 4001).mean()) < 0.1  # any length, no offset


def test_siren_moves_and_train_horn_does_not():
    def spread(name):  # of the spectral centroid from frame to frame, as a share of itself
        x = SOUNDERS[name].play(Tape(rng(4), N, SR))
        frames = x[800:7200].reshape(-1, 800) * np.hanning(800)
        centroids = [centroid(frame) for frame in frames]
        return np.std(centroids) / np.mean(centroids)

    assert spread("siren") > 2 * spread("train horn")


def test_bell_decays_and_engine_does_not():
    def remains(name):
        x = SOUNDERS[name].play(Tape(rng(5), N, SR))
        return rms(x[-8000:]) / rms(x[:8000])

    assert remains("church bell") < 0.5
    assert remains("glass break") < 0.01
    assert remains("engine") > 0.5
    assert remains("rain") > 0.8


def test_a_short_tape_shortens_an_event():
    for name in ("cow moo", "train horn"):  # the event is longer than the tape
        x = SOUNDERS[name].play(Tape(rng(6), 4001, SR))
        assert x.shape == (4001,)
        assert abs(x[-1]) < 0.05 * np.abs(x).max()  # it fades out rather than being cut
