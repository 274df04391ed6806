"""Scenes: what they hold is what one hears."""

import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hearing import N, centroid, onsets, rms, rng, solo

from shards.tiny.scenes import SOUNDERS, Scene, Voice, random_scene, render


def test_scenes_render_the_same_bytes_and_never_clip():
    for seed in range(60):
        scene = random_scene(rng(seed))
        x = render(scene, rng(seed))
        assert x.shape == (N,)
        assert x.dtype == np.float32
        assert np.isfinite(x).all()
        assert 0.02 < np.abs(x).max() < 0.96
        if seed < 10:
            assert x.tobytes() == render(scene, rng(seed)).tobytes()
            assert x.tobytes() != render(scene, rng(seed + 1000)).tobytes()
    assert render(scene, rng(), seconds=1.0, sr=8000).shape == (8000,)


@pytest.mark.parametrize("name", [s.name for s in SOUNDERS.values() if s.base])
def test_high_register_is_brighter_than_low(name):
    low, high = (
        np.mean([centroid(render(solo(name, register=register), rng(i))) for i in range(3)])
        for register in ("low", "high")
    )
    assert high > 1.25 * low


def test_pitch_goes_where_the_contour_says():
    def peak(x):
        return np.abs(np.fft.rfft(x * np.hanning(6000), N))[: N // 8].argmax()

    for contour, sign in (("rising", 1), ("falling", -1)):
        scene = solo("clarinet", contour=contour, register="high", tempo="fast")
        for i in range(4):
            x = render(scene, rng(i))
            assert sign * (peak(x[25000:31000]) - peak(x[1000:7000])) > 0


def test_fast_has_more_beats_than_slow():
    def beats(name, tempo):
        x = render(solo(name, tempo=tempo), rng(1))
        envelope = np.log(1e-3 + np.abs(x).reshape(-1, 320).max(1))
        return (np.diff(envelope) > 0.4).sum()

    for name in ("xylophone", "hi-hat", "piano"):
        assert beats(name, "fast") > beats(name, "slow")


def test_far_is_softer_and_duller_than_near():
    for name in ("dog bark", "rain", "siren", "glass break"):
        count = 1 if SOUNDERS[name].gap else 0
        for i in range(3):
            near, far = (
                render(solo(name, count, distance), rng(i)) for distance in ("near", "far")
            )
            assert rms(far) < 0.5 * rms(near)
            assert centroid(far) < centroid(near)


@pytest.mark.parametrize("name", ["dog bark", "frog croak"])
def test_count_is_what_one_hears(name):
    for count in (1, 2, 3, 5):
        heard = [onsets(render(solo(name, count, "near"), rng(i))) for i in range(8)]
        assert Counter(heard)[count] >= 7, (count, heard)


def test_followed_by_is_seen_in_the_halves():
    scene = Scene("sound", (Voice("cricket"), Voice("engine")), "sequence", "quiet")
    for i in range(5):
        x = render(scene, rng(i))
        assert centroid(x[:14000]) > 3000
        assert centroid(x[18000:]) < 1000
        x = render(replace(scene, voices=scene.voices[::-1]), rng(i))
        assert centroid(x[:14000]) < 1000
        assert centroid(x[18000:]) > 3000


def test_noisy_is_noisier():
    quiet, noisy = (
        rms(render(solo("glass break", 1, noise=noise), rng(2))[-8000:])
        for noise in ("quiet", "noisy")
    )
    assert noisy > 4 * quiet


@pytest.mark.slow
def test_rendering_speed():
    r = rng(11)
    scenes = [random_scene(r) for _ in range(100)]
    start = time.process_time()
    waves = [render(scene, r) for scene in scenes]
    rendered = time.process_time()
    for wave in waves:
        np.fft.irfft(np.fft.rfft(wave))
    transformed = time.process_time() - rendered
    assert rendered - start < 50 * transformed  # about 6 times: 4 ms a clip on a fast core
