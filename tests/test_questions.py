"""Triples: valid, balanced, and true of the scene."""

from collections import Counter

import pytest
from hearing import rng

from shards.tiny import words as W
from shards.tiny.questions import lesson, triples
from shards.tiny.scenes import random_scene


@pytest.fixture(scope="module")
def many():
    """(scene, triple) pairs."""
    r = rng(10)
    scenes = [random_scene(r) for _ in range(2000)]
    return [(s, t) for s in scenes for t in triples(s, r, "train")]


@pytest.mark.slow
def test_triples_are_valid(many):
    tasks = {"cls", "cap", "music_cap", "aqa", "open", "mcq"}
    assert {t["task"] for _, t in many} == tasks
    fields = {"text", "instruction", "answer", "task"}
    for scene, t in many:
        assert set(t) - {"choices"} == fields
        assert ("choices" in t) == (t["task"] == "mcq")
        assert all(isinstance(t[field], str) and t[field] for field in fields)
        assert W.part(t["text"]) == "train" or t["text"].startswith("sound of ")
        if t["task"] == "cls":
            assert sorted(t["answer"].split(", ")) == sorted(v.name for v in scene.voices)
            assert t["instruction"] == "Classify events in the audio clip."
        if t["task"].endswith("cap"):
            assert t["answer"] == t["text"]
            assert (t["task"] == "music_cap") == (scene.kind == "music")
        if t["task"] == "mcq":
            assert len(t["choices"]) == len(set(t["choices"])) == 4
            assert t["choices"].count(t["answer"]) == 1
            assert t["instruction"].endswith(f"? Select one option: {', '.join(t['choices'])}")


@pytest.mark.slow
def test_yes_and_no_are_balanced_and_the_question_does_not_give_it_away(many):
    asked = [(t["instruction"], t["answer"]) for _, t in many if t["task"] == "aqa"]
    assert {answer for _, answer in asked} == {"yes", "no"}
    assert 0.45 < sum(answer == "yes" for _, answer in asked) / len(asked) < 0.55
    for question, n in Counter(question for question, _ in asked).items():
        yes = asked.count((question, "yes"))
        assert abs(yes / n - 0.5) < 0.1 + 2 / n**0.5, question  # 2 / sqrt(n): four deviations


def test_mcq_answers_are_spread_over_the_positions(many):
    where = Counter(t["choices"].index(t["answer"]) for _, t in many if t["task"] == "mcq")
    assert min(where.values()) > 0.2 * where.total()


TIMES = {words[0]: count for count, words in W.COUNTS.items()}


def number(scene, answer, question):
    return answer == ("one", "two")[len(scene.voices) - 1]


def only_one_sound(scene, answer, question):
    return (answer == "yes") == (len(scene.voices) == 1)


def count(scene, answer, question):
    return [voice.count for voice in scene.voices] == [TIMES[answer]]


def distance(scene, answer, question):
    far = {"close by": "near", "far away": "far"}[answer]
    return [voice.distance for voice in scene.voices] == [far]


def group(scene, answer, question):
    """Of "Is there an animal sound?"."""
    groups = {voice.sounder.group for voice in scene.voices}
    return (answer == "yes") == (question.split()[3] in groups)


def together(scene, answer, question):
    return (answer == "yes") == (scene.layout == "together")


def first(scene, answer, question):
    return answer == scene.voices[0].name


def last(scene, answer, question):
    return answer == scene.voices[-1].name


def only_one(scene, answer, choices):
    return set(choices) & {v.name for v in scene.voices} == {answer}


def place(scene, answer, question):
    return [voice.sounder.where for voice in scene.voices] == [answer]


def family(scene, answer, question):
    return [voice.sounder.group for voice in scene.voices] == [answer]


def maker(scene, answer, question):
    return any(answer in voice.sounder.subjects for voice in scene.voices)


def feeling(scene, answer, question):
    return answer == {"slow": "calm and gentle", "fast": "lively and energetic"}[scene.tempo]


def height(scene, answer, question):
    return answer == {"low": "low and deep", "high": "high in pitch"}[scene.register]


def style(scene, answer, question):
    return answer == f"{scene.tempo} and {scene.register}"


CHECKS = {
    "Where could this be recorded?": place,
    "What kind of sound is it?": family,
    "Which family does the instrument belong to?": family,
    "What is making the sound?": maker,
    "Which instrument is playing?": maker,
    "How does the music feel?": feeling,
    "How high is the music?": height,
    "How is the music played?": style,
    "How many different sounds are there?": number,
    "How many times does it sound?": count,
    "How far away is it?": distance,
    "Is there only one sound?": only_one_sound,
    "Is there a": group,
    "Do the sounds happen at the same time?": together,
    "Which sound comes first?": first,
    "Which sound comes last?": last,
    "Which sound can be heard?": only_one,
    "Which instrument can be heard?": only_one,
}


def test_answers_are_true_of_the_scene(many):
    checked = Counter()
    for scene, t in many:
        question = t["instruction"].split(" Select one option")[0]
        check = next((CHECKS[s] for s in CHECKS if question.startswith(s)), None)
        if check is None:
            continue
        told = t["choices"] if check is only_one else question
        assert check(scene, t["answer"], told), (scene, t)
        checked[check.__name__] += 1
    assert set(checked) == {check.__name__ for check in CHECKS.values()}
    assert checked.total() > 1000


@pytest.mark.slow
def test_lessons_are_true_of_tags():
    """What a lesson asks beside the label is in its tags; its caption is no tag."""
    r, checked = rng(12), Counter()
    for _ in range(2000):
        scene = random_scene(r)
        for t in lesson(scene, r, "train"):
            names = [v.name for v in scene.voices]
            assert all(name in t["text"] for name in names)
            if t["instruction"] == "How many times does it sound?":
                assert t["text"].startswith(f"{names[0]} {t['answer']}")
            if t["instruction"] == "How does the music feel?":
                assert (", slow" in t["text"]) == (t["answer"] == "calm and gentle")
            if t["task"] == "aqa":
                assert set(t["text"].split(", ")) == set(names) or t["text"] == " then ".join(names)
            distances = {voice.distance for voice in scene.voices}
            assert not ("close by" in t["text"] and "near" not in distances)
            assert not ("far away" in t["text"] and "far" not in distances)
            if t["task"].endswith("cap"):
                assert t["answer"] != t["text"]
                assert W.part(t["answer"]) == "train"
            checked[t["instruction"]] += 1
    assert checked["How many times does it sound?"] > 10
    assert checked["How does the music feel?"] > 20
