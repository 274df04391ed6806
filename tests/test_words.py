"""Captions: they tell only what is so, and no part of the world knows another's."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hearing import SR, N, rng, solo

from shards.tiny import words as W
from shards.tiny.scenes import SOUNDERS, labels, random_scene


def test_subjects_are_nobody_elses_and_labels_are_clean():
    sounders = SOUNDERS.values()
    assert max(Counter(w for s in sounders for w in s.subjects).values()) == 1
    assert len(labels()) == len(SOUNDERS) == len(labels("sound")) + len(labels("music"))
    assert not any("," in s.name + s.where + s.group for s in sounders)
    assert all(v.split()[0].endswith("s") for s in sounders for v in s.verbs)


def test_verbs_and_articles():
    verbs = ("barks", "claps", "crackles", "blows its horn", "revs", "meows")
    doing = ["barking", "clapping", "crackling", "blowing its horn", "revving", "meowing"]
    assert [W.ing(verb) for verb in verbs] == doing
    assert W.base_form("blows its horn") == "blow its horn"
    assert (W.a("owl"), W.a("dog")) == ("an owl", "a dog")
    assert [W.the(s) for s in ("an ox", "the sea", "rain")] == ["the ox", "the sea", "the rain"]
    subjects = [W._with(s, "distant") for s in ("an ox", "the sea", "rain")]
    assert subjects == ["a distant ox", "the distant sea", "distant rain"]


def test_captions_name_every_source_in_the_order_of_time():
    def nouns(sounder):  # without the article: adjectives come between it and the noun
        return [w.split(" ", 1)[-1] for w in sounder.subjects]

    r = rng(6)
    for _ in range(600):
        scene = random_scene(r)
        text = W.caption(scene, r)
        assert text == text.strip()
        assert not any(x in text for x in ("  ", "{", " ,"))
        for voice in scene.voices:
            assert any(
                (w.split(" ", 1)[-1] if w.split()[0] in ("a", "an", "the") else w) in text
                for w in SOUNDERS[voice.name].subjects
            ), (voice, text)
        named = [s for s in SOUNDERS.values() if any(noun in text for noun in nouns(s))]
        assert len(named) >= len(scene.voices)


def test_captions_do_not_say_what_is_not_so():
    r = rng(7)
    words = {d: W.ADVERBS[d] + W.ADJECTIVES[d] for d in ("near", "far")}
    opposite = {"fast": "slow", "slow": "fast", "low": "high", "high": "low"}
    for _ in range(600):
        scene = random_scene(r)
        text, said = W.describe(scene, r)
        for distance in ("near", "far"):
            if all(voice.distance != distance for voice in scene.voices):
                assert not any(w in text for w in words[distance]), (scene, text)
        if scene.tempo:
            wrong = [opposite[fact] for fact in (scene.tempo, scene.register) if fact]
            assert not {w for fact in wrong for w in W.MUSIC[fact]} & set(text.split())
        for voice in scene.voices:
            told = voice.count and any(w in text for w in W.COUNTS[voice.count])
            assert told or ("count", voice.name) not in said


@pytest.mark.slow
def test_captions_are_many():
    r = rng(8)
    assert len({W.caption(random_scene(r), r) for _ in range(5000)}) > 4500


@pytest.mark.slow
def test_parts_are_disjoint_stable_and_of_the_right_size():
    r = rng(9)
    texts = {W.caption(random_scene(r), r) for _ in range(4000)}
    sizes = Counter(W.part(t) for t in texts)
    for name, share in W.PARTS.items():
        assert abs(sizes[name] / len(texts) - share) < 0.03
    assert all(W.part(t) == W.part(t.upper()) for t in texts)
    assert W.part("rain falls") == W.part("rain falls", dict(W.PARTS))
    assert W.part("x", {"all": 1.0}) == "all"
    for where in W.PARTS:  # even the scene with the least to say has a caption in each part
        for name in ("footsteps", "hi-hat", "vacuum cleaner"):
            assert W.part(W.caption(solo(name), r, where)) == where
    with pytest.raises(ValueError, match="no caption of this scene"):
        W.caption(solo("rain"), r, "nowhere")


@pytest.mark.slow
def test_listen_writes_wav_and_never_overwrites(tmp_path):
    sf = pytest.importorskip("soundfile")

    def run(*args):
        command = [sys.executable, "-m", "shards.tiny.words", *map(str, args)]
        root = Path(W.__file__).parents[2]
        return subprocess.run(command, capture_output=True, text=True, cwd=root)

    assert run(tmp_path / "x", "--n", 3).returncode == 0
    x, sr = sf.read(tmp_path / "x" / "000.wav")
    assert sr == SR
    assert x.shape == (N,)
    assert len((tmp_path / "x" / "captions.txt").read_text().splitlines()) == 3
    again = run(tmp_path / "x", "--n", 3)
    assert again.returncode != 0
    assert "not empty" in again.stderr
    assert run(tmp_path / "y", "--sources").returncode == 0
    assert len(list((tmp_path / "y").glob("*.wav"))) == len(SOUNDERS)
