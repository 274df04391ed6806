"""The label nearest to a text, and the descriptions that the check drops."""

import json
from collections import Counter

import pytest
import torch
from conftest import small_clap
from topics import Topics

from disk import DataError
from shards.describe import describe
from shards.descriptions import misses
from shards.nearest import Nearest, load_encoder

DOG, RAIN = ("dog",), ("rain", "thunder")
LABELS = {"dog", "fox", "rain", "thunder"}
FOX_STORY = "A fox gazes at the moon and wanders home."


def texts_of(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_the_nearest_label_of_each_text_in_one_call():
    clap = Topics()
    nearest = Nearest(clap, LABELS)
    assert clap.calls == [[f"sound of {label}" for label in sorted(LABELS)]]
    texts = [FOX_STORY, "A dog barks.", "A dog barks at a dog and a fox.", FOX_STORY]
    assert nearest(texts) == ["fox", "dog", "dog", "fox"]
    assert clap.calls[1:] == [texts]


def test_labels_are_encoded_as_text_matching_does():
    clap = Topics()
    assert Nearest(clap, ["Red_Fox", "Dog, hound"])(["A FOX."]) == ["Red_Fox"]
    assert sorted(clap.calls[0]) == ["sound of dog, hound", "sound of red_fox"]


def test_texts_without_a_vector_have_no_nearest_label():
    nearest = Nearest(Topics(), LABELS)
    texts = ["A dog barks!", "A dog?", "A dog barks.", "A fox!", "A fox."]
    assert nearest(texts) == [None, None, "dog", None, "fox"]
    assert nearest(["A dog!"]) == nearest(["A dog?"]) == [None]


def test_other_errors_of_the_encoder_are_no_fault_of_a_text():
    nearest = Nearest(Topics(), LABELS)
    nearest.clap.encode_text = lambda texts: torch.ones(1, 3)
    with pytest.raises(DataError, match="not a row for each"):
        nearest(["A dog.", "A fox."])


def test_one_label_is_always_the_nearest():
    assert Nearest(Topics(), DOG)([FOX_STORY]) == ["dog"]


@pytest.mark.parametrize("label", ["dog!", "dog?"])
def test_a_label_without_a_vector_is_named(label):
    with pytest.raises(DataError, match=r"the label 'dog.': .*--clap, or .*--no-check") as error:
        Nearest(Topics(), ["fox", label])
    assert "\n" not in str(error.value)


def test_labels_of_broken_characters_are_encoded():
    class Strict(Topics):
        def encode_text(self, texts):
            "".join(texts).encode()  # as a tokenizer would
            return super().encode_text([text.replace("?", "") for text in texts])

    assert Nearest(Strict(), ["fox", "dog \udc80"])(["A dog.", "A \udc80"]) == ["dog \udc80", None]


def test_why_texts_are_dropped():
    nearest = Nearest(Topics(), LABELS)
    texts = ["A dog barks.", FOX_STORY, "Thunder.", "Rain.", "A dog!", "A dog?", "A dog in rain."]
    owners = [DOG, DOG, RAIN, RAIN, DOG, DOG, ("fox", "thunder")]
    other = "nearer to another label"
    reasons = [None, other, None, None, "no vector", "no vector", other]
    assert misses(texts, owners, nearest) == reasons
    assert misses(texts, owners, None) == [None] * len(texts)
    nearest.clap.calls.clear()
    assert misses([], [], nearest) == [] and not nearest.clap.calls


# --- in a run -----------------------------------------------------------------------------


def test_a_run_drops_and_counts_and_asks_again(tmp_path):
    answers = [
        f"A dog barks far away.\n{FOX_STORY}\nA dog howls at home!\nIs it a dog at home?\nA dog.",
        "A fox yelps at the moon.\nA dog barks twice.\nA dog growls at home.",
    ]
    nearest = Nearest(Topics(), LABELS)
    nearest.clap.calls.clear()
    report = describe(
        Counter({DOG: 2}),
        lambda messages: (answers.pop(0), {}),
        tmp_path / "a.jsonl",
        "m",
        workers=1,
        nearest=nearest,
    )
    assert texts_of(tmp_path / "a.jsonl") == ["A dog barks far away.", "A dog barks twice."]
    assert not report.missing and report.dropped == {
        "nearer to another label": 2,
        "no vector": 2,
        "too short": 1,
        "more than wanted": 1,
    }
    first, second = nearest.clap.calls[0], nearest.clap.calls[-1]
    assert len(first) == 4 and len(second) == 3  # whole answers, without what the filter drops


def test_a_run_without_the_check_keeps_the_story(tmp_path):
    report = describe(
        Counter({DOG: 1}), lambda messages: (FOX_STORY, {}), tmp_path / "a.jsonl", "m", workers=1
    )
    assert texts_of(tmp_path / "a.jsonl") == [FOX_STORY] and not report.dropped


def test_a_text_that_is_dropped_for_one_set_of_labels_may_serve_another(tmp_path):
    report = describe(
        Counter({DOG: 1, ("fox",): 1}),
        lambda messages: ("A fox yelps as a fox does, not as a dog.", {}),
        tmp_path / "a.jsonl",
        "m",
        workers=1,
        nearest=Nearest(Topics(), LABELS),
    )
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in rows] == [["fox"]] and report.missing == {DOG: 1}


def test_stories_for_ever_give_the_label_set_up(tmp_path):
    report = describe(
        Counter({DOG: 5}),
        lambda messages: (FOX_STORY, {}),
        tmp_path / "a.jsonl",
        "m",
        workers=1,
        nearest=Nearest(Topics(), LABELS),
    )
    assert report.missing == {DOG: 5} and "nothing new in 3 calls" in report.given_up[DOG]
    assert report.dropped == {"nearer to another label": 3}


# --- the encoder --------------------------------------------------------------------------


def test_the_encoder_is_loaded_and_checked():
    assert isinstance(load_encoder("topics:Topics"), Topics)


def test_a_clap_of_a_folder_finds_its_own_labels_and_refuses_half_a_character(tokenizer, tmp_path):
    small_clap(tokenizer).save_pretrained(tmp_path / "clap")
    nearest = Nearest(load_encoder(str(tmp_path / "clap")), LABELS)
    texts = [f"sound of {label}" for label in LABELS]
    assert nearest([*texts, "A dog \udc80 barks."]) == [*LABELS, None]


@pytest.mark.parametrize(
    "name", ["topics:Nothing", "no_such_pair:Pair", "test_nearest:Long", "./no"]
)
def test_an_encoder_that_cannot_be_used_ends_in_one_line(name):
    with pytest.raises(
        DataError, match=r"name another encoder with --clap, .*--no-check$"
    ) as error:
        load_encoder(name)
    assert "\n" not in str(error.value)


class Long(Topics):
    def encode_text(self, texts):
        return 3 * super().encode_text(texts)
