"""The building blocks: each does to a wave as its name says."""

import numpy as np
import pytest
from hearing import SR, N, centroid, rms, rng

from shards.tiny.signals import Tape, band, level, rolloff


def tape(n=N):
    return Tape(rng(), n, SR)


def test_noise_lies_in_its_band_and_has_unit_rms():
    for n in (N, 4001):
        x = tape(n).noise(900, 1100)
        assert rms(x) == pytest.approx(1, rel=1e-4)
        assert 800 < centroid(x) < 1250
    assert centroid(tape().noise(tilt=-1)) < centroid(tape().noise())


def test_tone_has_its_pitch_and_none_above_the_nyquist_frequency():
    for hz in (440.0, np.full(N, 440.0)):
        assert centroid(tape().tone(hz)) == pytest.approx(440, rel=0.01)
    spectrum = np.abs(np.fft.rfft(tape().tone(3000, rolloff(20, 0))))
    assert set(np.flatnonzero(spectrum > 0.1 * spectrum.max()) // 2) == {3000, 6000}


def test_modes_are_decaying_sinusoids():
    x = tape().modes(500, (1, 20), (1, 1), 0.2)  # the second would alias
    assert centroid(x) == pytest.approx(500, rel=0.02)
    assert rms(x[3200:6400]) == pytest.approx(rms(x[:3200]) / np.e, rel=0.02)


def test_envelopes():
    t = tape()
    swell, decay = t.swell(0.5, 1.0), t.decay(0.1)
    assert swell[[0, 4000, 8000, 16000, 24000]].tolist() == [0, 0.5, 1, 1, 0.5]
    assert decay[1600] == pytest.approx(1 / np.e, rel=1e-4)
    assert t.curve([0, 2, 0]).max() == pytest.approx(2, abs=1e-3)
    assert t.wander(5, 3).min() == 0


def test_place_adds_and_cuts():
    out = tape(10).place([0, 2.7, 9, 10], [np.ones(3)] * 4)
    assert out.tolist() == [1, 1, 2, 1, 1, 0, 0, 0, 0, 1]
    assert tape().grain(3).n == 3 * SR
    assert tape().event(3).n == N


def test_filters_and_level():
    x = tape().noise()
    assert band(np.array([1000.0]), 100, 8000) > 0.9
    assert centroid(tape().band_pass(x, 100, 300)) < 400 < centroid(tape().formants(x, (3000, 1)))
    assert np.abs(level(x * 1000)).max() <= 0.8
    assert rms(level(x)) <= 0.161
