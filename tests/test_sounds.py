"""The synthetic world: what the words say is what one hears, and no part of the world knows another's captions."""

import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.tiny import sounds as S, words as W

SR, N = 16000, 32000


def rng(seed=0):
    return np.random.default_rng(seed)


def centroid(x):
    """Hz, of the power spectrum."""
    p = np.abs(np.fft.rfft(x)) ** 2
    return (p * np.fft.rfftfreq(len(x), 1 / SR)).sum() / p.sum()


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def onsets(x, floor=0.25):
    """How often the envelope (30 ms) climbs over `floor` of its maximum after it has been below a third of that."""
    e = np.abs(x[: len(x) // 480 * 480]).reshape(-1, 480).max(1)
    count, armed = 0, True
    for v in e / e.max():
        if armed and v > floor:
            count, armed = count + 1, False
        elif v < floor / 3:
            armed = True
    return count


def solo(name, **more):
    s = S.SOURCES[name]
    music = dict(tempo="slow", register="low", contour="wandering") if s.kind == "music" else {}
    voice = {k: more.pop(k) for k in ("count", "distance") if k in more}
    return S.Scene(
        s.kind, (S.Voice(name, **voice),), "solo", more.pop("noise", "quiet"), **{**music, **more}
    )


# -- sound


@pytest.mark.parametrize("name", list(S.SOURCES))
def test_source_renders(name):
    source = S.SOURCES[name]
    x, again, other = (source.render(rng(seed), N) for seed in (1, 1, 2))
    assert x.shape == (N,) and x.dtype == np.float32 and np.isfinite(x).all()
    assert 0.1 < np.abs(x).max() <= 1
    assert x.tobytes() == again.tobytes()
    assert np.abs(x - other).max() > 0.05
    assert abs(source.render(rng(3), 4001).mean()) < 0.1  # any length, no offset


def test_scenes_render_the_same_bytes_and_never_clip():
    for seed in range(60):
        r = rng(seed)
        scene = S.random_scene(r)
        x = S.render(scene, rng(seed))
        assert (
            x.shape == (N,)
            and x.dtype == np.float32
            and np.isfinite(x).all()
            and 0.02 < np.abs(x).max() < 0.96
        )
        if seed < 10:
            assert x.tobytes() == S.render(scene, rng(seed)).tobytes()
            assert x.tobytes() != S.render(scene, rng(seed + 1000)).tobytes()
    assert S.render(scene, rng(), seconds=1.0, sr=8000).shape == (8000,)


def test_siren_moves_and_train_horn_does_not():
    def spread(name):  # of the spectral centroid from frame to frame, as a share of itself
        c = [
            centroid(f * np.hanning(800))
            for f in S.SOURCES[name].recipe(rng(4), N, SR)[800:7200].reshape(-1, 800)
        ]
        return np.std(c) / np.mean(c)

    assert spread("siren") > 2 * spread("train horn")


def test_bell_decays_and_engine_does_not():
    def fall(name):
        x = S.SOURCES[name].recipe(rng(5), N, SR)
        return rms(x[-8000:]) / rms(x[:8000])

    assert (
        fall("church bell") < 0.5
        and fall("knocking") < 0.01
        and fall("engine") > 0.5
        and fall("rain") > 0.8
    )


@pytest.mark.parametrize("name", [s.name for s in S.SOURCES.values() if s.base])
def test_high_register_is_brighter_than_low(name):
    low, high = (
        np.mean([centroid(S.render(solo(name, register=r), rng(i))) for i in range(3)])
        for r in ("low", "high")
    )
    assert high > 1.25 * low


def test_pitch_goes_where_the_contour_says():
    for contour, sign in (("rising", 1), ("falling", -1)):
        for i in range(4):
            x = S.render(solo("clarinet", contour=contour, register="high", tempo="fast"), rng(i))
            peak = [
                np.abs(np.fft.rfft(x[a : a + 6000] * np.hanning(6000), N))[: N // 8].argmax()
                for a in (1000, 25000)
            ]
            assert sign * (peak[1] - peak[0]) > 0


def test_fast_has_more_beats_than_slow():
    for name in ("xylophone", "hi-hat", "piano"):
        fast, slow = (S.render(solo(name, tempo=t), rng(1)) for t in ("fast", "slow"))
        flux = lambda x: (np.diff(np.log(1e-3 + np.abs(x).reshape(-1, 320).max(1))) > 0.4).sum()
        assert flux(fast) > flux(slow)


def test_far_is_softer_and_duller_than_near():
    for name in ("dog bark", "rain", "siren", "glass break"):
        for i in range(3):
            near, far = (
                S.render(solo(name, count=1 if S.SOURCES[name].gap else 0, distance=d), rng(i))
                for d in ("near", "far")
            )
            assert rms(far) < 0.5 * rms(near) and centroid(far) < centroid(near)


@pytest.mark.parametrize("name", ["knocking", "dog bark", "alarm", "water drip", "frog croak"])
def test_count_is_what_one_hears(name):
    for count in (1, 2, 3, 5):
        heard = [
            onsets(S.render(solo(name, count=count, distance="near"), rng(i))) for i in range(8)
        ]
        assert Counter(heard)[count] >= 7, (count, heard)


def test_followed_by_is_seen_in_the_halves():
    scene = S.Scene("sound", (S.Voice("cricket"), S.Voice("engine")), "sequence", "quiet")
    for i in range(5):
        x = S.render(scene, rng(i))
        first, second = x[:14000], x[18000:]
        assert centroid(first) > 3000 and centroid(second) < 1000
        x = S.render(replace(scene, voices=scene.voices[::-1]), rng(i))
        assert centroid(x[:14000]) < 1000 and centroid(x[18000:]) > 3000


def test_noisy_is_noisier():
    quiet, noisy = (
        rms(S.render(solo("knocking", count=1, noise=x), rng(2))[-8000:])
        for x in ("quiet", "noisy")
    )
    assert noisy > 4 * quiet


# -- words


def test_subjects_are_nobody_elses_and_labels_are_clean():
    subjects = Counter(w for s in S.SOURCES.values() for w in s.subjects)
    assert max(subjects.values()) == 1
    assert len(S.labels()) == len(S.SOURCES) == len(S.labels("sound")) + len(S.labels("music"))
    assert not any("," in s.name + s.where + s.group for s in S.SOURCES.values())
    assert [
        W.ing(v) for v in ("barks", "claps", "crackles", "blows its horn", "revs", "meows")
    ] == ["barking", "clapping", "crackling", "blowing its horn", "revving", "meowing"]
    assert all(v.split()[0].endswith("s") for s in S.SOURCES.values() for v in s.verbs)


def test_captions_name_every_source_in_the_order_of_time():
    r = rng(6)
    for _ in range(600):
        scene = S.random_scene(r)
        text = W.caption(scene, r)
        assert text == text.strip() and "  " not in text and "{" not in text and " ," not in text
        for v in scene.voices:  # the bare noun: adjectives come between it and its article
            assert any(
                w.split(" ", 1)[-1] in text if w.split()[0] in ("a", "an", "the") else w in text
                for w in S.SOURCES[v.name].subjects
            ), (v, text)
        assert sum(
            any(w.split(" ", 1)[-1] in text for w in s.subjects) for s in S.SOURCES.values()
        ) >= len(scene.voices)


def test_captions_do_not_say_what_is_not_so():
    r = rng(7)
    words = {
        "near": W.ADVERBS["near"] + W.ADJECTIVES["near"],
        "far": W.ADVERBS["far"] + W.ADJECTIVES["far"],
    }
    for _ in range(600):
        scene = S.random_scene(r)
        text, said = W.describe(scene, r)
        for d, other in (("near", "far"), ("far", "near")):
            if all(v.distance != other for v in scene.voices):
                assert not any(w in text for w in words[other]), (scene, text)
        if scene.tempo:
            wrong = set(W.MUSIC["fast" if scene.tempo == "slow" else "slow"]) | set(
                W.MUSIC["high" if scene.register == "low" else "low"] if scene.register else ()
            )
            assert not wrong & set(text.split()), (scene, text)
        for v in scene.voices:
            told = any(w in text for w in W.COUNTS[v.count]) if v.count else False
            assert told or ("count", v.name) not in said
        assert ("noise" in said) == any(w in text for w in W.NOISE[scene.noise])


def test_captions_are_many():
    r = rng(8)
    assert len({W.caption(S.random_scene(r), r) for _ in range(5000)}) > 4500


def test_parts_are_disjoint_stable_and_of_the_right_size():
    r = rng(9)
    texts = {W.caption(S.random_scene(r), r) for _ in range(4000)}
    sizes = Counter(W.part(t) for t in texts)
    for name, share in W.PARTS.items():
        assert abs(sizes[name] / len(texts) - share) < 0.03
    assert all(W.part(t) == W.part(t.upper()) for t in texts)
    assert (
        W.part("rain falls") == W.part("rain falls", dict(W.PARTS))
        and W.part("x", {"all": 1.0}) == "all"
    )
    for where in W.PARTS:  # even the scene with the least to say has a caption in each part
        for name in ("clock tick", "hi-hat", "vacuum cleaner"):
            assert W.part(W.caption(solo(name), r, where)) == where
    with pytest.raises(ValueError, match="no caption of this scene"):
        W.caption(solo("rain"), r, "nowhere")


# -- triples


@pytest.fixture(scope="module")
def many():
    r = rng(10)
    scenes = [S.random_scene(r) for _ in range(2000)]
    return [(s, t) for s in scenes for t in W.triples(s, r, "train")]


def test_triples_are_valid(many):
    assert Counter(t["task"] for _, t in many).keys() == {
        "cls",
        "cap",
        "music_cap",
        "aqa",
        "open",
        "mcq",
    }
    for scene, t in many:
        assert set(t) == {"text", "instruction", "answer", "task"} | (
            {"choices"} if t["task"] == "mcq" else set()
        )
        assert all(
            isinstance(t[k], str) and t[k] for k in ("text", "instruction", "answer", "task")
        )
        assert W.part(t["text"]) == "train"
        if t["task"] == "cls":
            assert (
                sorted(t["answer"].split(", ")) == sorted(v.name for v in scene.voices)
                and t["instruction"] == "Classify events in the audio clip."
            )
        if t["task"].endswith("cap"):
            assert t["answer"] == t["text"] and (t["task"] == "music_cap") == (
                scene.kind == "music"
            )
        if t["task"] == "mcq":
            assert (
                len(t["choices"]) == len(set(t["choices"])) == 4
                and t["choices"].count(t["answer"]) == 1
            )
            assert (
                f"? Select one option: {', '.join(t['choices'])} Respond with exactly one of the options above."
                in t["instruction"]
            )


def test_yes_and_no_are_balanced_and_the_question_does_not_give_it_away(many):
    asked = [(t["instruction"], t["answer"]) for _, t in many if t["task"] == "aqa"]
    assert {a for _, a in asked} == {"yes", "no"} and 0.45 < sum(
        a == "yes" for _, a in asked
    ) / len(asked) < 0.55
    for start in (
        "Is there a sound of",
        "Can you hear",
        "Does the clip contain",
        "Is the music",
        "Is the pitch",
        "Is the",
    ):
        answers = [a for q, a in asked if q.startswith(start)]
        assert 0.4 < answers.count("yes") / len(answers) < 0.6, start


def test_mcq_answers_are_spread_over_the_positions(many):
    where = Counter(t["choices"].index(t["answer"]) for _, t in many if t["task"] == "mcq")
    assert min(where.values()) > 0.2 * where.total()


def test_answers_are_true_of_the_scene(many):
    names = {W.the(s.subjects[0]): s.name for s in S.SOURCES.values()}
    times = {w[0]: c for c, w in W.COUNTS.items()}
    checked = Counter()
    for scene, t in many:
        q, a = t["instruction"].split(" Select one option")[0], t["answer"]
        voice = {v.name: v for v in scene.voices}
        if t["task"] == "open" and q == "How many different sounds are there?":
            assert a == ("one", "two", "three")[len(voice) - 1]
        elif q.startswith("How many times does"):
            assert (
                times[a]
                == next(
                    v
                    for n, v in ((n, voice.get(names[n])) for n in names)
                    if v and q.startswith(f"How many times does {n} ")
                ).count
            )
        elif q.startswith("How far away is"):
            assert {"close by": "near", "far away": "far"}[a] == voice[names[q[16:-1]]].distance
        elif "come before" in q:
            x, y = q[5:-1].split(" come before ")
            assert (a == "yes") == (
                scene.voices[0].name == names[x] and scene.voices[1].name == names[y]
            )
        elif q.startswith("Does the clip contain"):
            assert (a == "yes") == (q[28:-1] in voice)
            assert len(t["instruction"]) > 30
        elif q == "Is there background noise?":
            assert (a == "yes") == (scene.noise == "noisy")
        elif q == "Is the music fast?":
            assert (a == "yes") == (scene.tempo == "fast")
        elif q.startswith("Which") and t["task"] == "mcq" and "first" in q:
            assert a == scene.voices[0].name
        elif (
            q.startswith("Which")
            and t["task"] == "mcq"
            and ("can be heard" in q or "in the clip" in q)
        ):
            assert set(t["choices"]) & set(voice) == {a}
        else:
            continue
        checked[q.split()[0] + " " + q.split()[1]] += 1
    assert len(checked) >= 6 and checked.total() > 1000


# -- the rest


def test_rendering_speed():
    r = rng(11)
    scenes = [S.random_scene(r) for _ in range(100)]
    start = time.process_time()
    for s in scenes:
        S.render(s, r)
    ms = (time.process_time() - start) * 10
    print(f"{ms:.1f} ms a clip")
    assert ms < 40  # 4 on the machine it was written on


def test_listen_writes_wav_and_never_overwrites(tmp_path):
    sf = pytest.importorskip("soundfile")
    run = lambda: subprocess.run(
        [sys.executable, "-m", "shards.tiny.words", str(tmp_path / "x"), "--n", "3"],
        capture_output=True,
        text=True,
        cwd=Path(W.__file__).parents[2],
    )
    assert run().returncode == 0
    x, sr = sf.read(tmp_path / "x" / "000.wav")
    assert (
        sr == SR
        and x.shape == (N,)
        and len((tmp_path / "x" / "captions.txt").read_text().splitlines()) == 3
    )
    again = run()
    assert again.returncode != 0 and "not empty" in again.stderr
