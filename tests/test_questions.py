"""Triples: valid, balanced, and true of the scene."""

from collections import Counter

import pytest
from hearing import rng

from shards.tiny import words as W
from shards.tiny.questions import triples
from shards.tiny.scenes import SOUNDERS, random_scene


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
        assert W.part(t["text"]) == "train"
        if t["task"] == "cls":
            assert sorted(t["answer"].split(", ")) == sorted(v.name for v in scene.voices)
            assert t["instruction"] == "Classify events in the audio clip."
        if t["task"].endswith("cap"):
            assert t["answer"] == t["text"]
            assert (t["task"] == "music_cap") == (scene.kind == "music")
        if t["task"] == "mcq":
            assert len(t["choices"]) == len(set(t["choices"])) == 4
            assert t["choices"].count(t["answer"]) == 1
            assert t["instruction"].endswith(
                f"? Select one option: {', '.join(t['choices'])}"
                " Respond with exactly one of the options above."
            )


@pytest.mark.slow
def test_yes_and_no_are_balanced_and_the_question_does_not_give_it_away(many):
    asked = [(t["instruction"], t["answer"]) for _, t in many if t["task"] == "aqa"]
    assert {answer for _, answer in asked} == {"yes", "no"}
    assert 0.45 < sum(answer == "yes" for _, answer in asked) / len(asked) < 0.55
    starts = "Is there a sound of|Can you hear|Does the clip contain|Is the music|Is the pitch"
    for start in [*starts.split("|"), "Is the"]:
        answers = [answer for question, answer in asked if question.startswith(start)]
        assert 0.4 < answers.count("yes") / len(answers) < 0.6, start


def test_mcq_answers_are_spread_over_the_positions(many):
    where = Counter(t["choices"].index(t["answer"]) for _, t in many if t["task"] == "mcq")
    assert min(where.values()) > 0.2 * where.total()


NAMES = {W.the(s.subjects[0]): s.name for s in SOUNDERS.values()}
TIMES = {words[0]: count for count, words in W.COUNTS.items()}


def number(scene, answer, question):
    return answer == ("one", "two", "three")[len(scene.voices) - 1]


def count(scene, answer, question):
    """Of "How many times does the dog bark?"."""
    return any(
        v.count == TIMES[answer]
        for who, name in NAMES.items()
        for v in scene.voices
        if v.name == name and question.startswith(f"How many times does {who} ")
    )


def distance(scene, answer, question):
    voices = {v.name: v for v in scene.voices}
    name = NAMES[question.removeprefix("How far away is ")[:-1]]
    return voices[name].distance == {"close by": "near", "far away": "far"}[answer]


def before(scene, answer, question):
    pair = question.removeprefix("Does ")[:-1].split(" come before ")
    in_order = [v.name for v in scene.voices] == [NAMES[who] for who in pair]
    return (answer == "yes") == in_order


def contains(scene, answer, question):
    name = question.removeprefix("Does the clip contain this: ")[:-1]
    return (answer == "yes") == (name in [v.name for v in scene.voices])


def noisy(scene, answer, question):
    return (answer == "yes") == (scene.noise == "noisy")


def fast(scene, answer, question):
    return (answer == "yes") == (scene.tempo == "fast")


def first(scene, answer, question):
    return answer == scene.voices[0].name


def last(scene, answer, question):
    return answer == scene.voices[-1].name


def only_one(scene, answer, choices):
    return set(choices) & {v.name for v in scene.voices} == {answer}


CHECKS = {
    "How many different sounds are there?": number,
    "How many times does": count,
    "How far away is": distance,
    "Does the clip contain": contains,
    "Is there background noise?": noisy,
    "Is the music fast?": fast,
    "Which sound comes first?": first,
    "Which sound comes last?": last,
    "Which of these": only_one,
    "Which sound can be heard?": only_one,
    "Which instrument can be heard?": only_one,
}


def test_answers_are_true_of_the_scene(many):
    checked = Counter()
    for scene, t in many:
        question = t["instruction"].split(" Select one option")[0]
        start = next((s for s in CHECKS if question.startswith(s)), None)
        check = before if "come before" in question else CHECKS.get(start)
        if check is None:
            continue
        told = t["choices"] if check is only_one else question
        assert check(scene, t["answer"], told), (scene, t)
        checked[check.__name__] += 1
    assert set(checked) == {"before", *(check.__name__ for check in CHECKS.values())}
    assert checked.total() > 1000
