"""Descriptions by templates."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from topics import Choosy, Topics

from disk import DataError
from shards.descriptions import key_of
from shards.nearest import Nearest
from shards.templates import BATCH, TEMPLATES, from_templates, readable, sentences

ROOT = Path(__file__).parent.parent
DOG, RAIN, CAT = ("dog",), ("rain", "thunder"), ("cat",)
PLAN = Counter({DOG: 5, RAIN: 2, CAT: 40, ("fox", "dog"): 1})


def rows(path):
    """The file's lines; fails on half a line, and on two descriptions that are the same."""
    data = path.read_bytes()
    assert data.endswith(b"\n")
    found = [json.loads(line) for line in data.decode().splitlines()]
    assert len({key_of(row["text"]) for row in found}) == len(found)
    return found


def counts(path):
    return Counter(tuple(row["labels"]) for row in rows(path))


# --- the texts ----------------------------------------------------------------------------


def test_templates_differ_in_more_than_a_word():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 16
    assert all(t.count("{labels}") == 1 and t.endswith(".") for t in TEMPLATES)
    lengths = {len(t.split()) for t in TEMPLATES}
    assert min(lengths) == 4 and max(lengths) >= 15 and len(lengths) >= 6
    assert len({t.split()[0] for t in TEMPLATES}) >= 10


@pytest.mark.parametrize(
    "labels, text",
    [
        (("dog",), "dog"),
        (("rain", "thunder"), "rain and thunder"),
        (("Bark", "Dog", "Animal"), "bark, dog and animal"),
        (("residential_area",), "residential area"),
        (("Chirp_and_tweet", "Wild_animals"), "chirp and tweet and wild animals"),
        (("Air horn, truck horn", "Train"), "air horn, truck horn and train"),
        (("cafe/restaurant",), "cafe/restaurant"),
        (("{x} 100%",), "{x} 100%"),
    ],
)
def test_labels_are_readable(labels, text):
    assert readable(labels) == text
    made = list(sentences(labels))
    assert len(set(made)) == len(TEMPLATES) and all(text in m or text in m.lower() for m in made)
    assert all(m[0] == m[0].upper() for m in made)


def test_labels_begin_at_different_templates():
    firsts = set()
    for i in range(200):
        firsts.add(next(sentences((f"label{i}",))).replace(f"abel{i}", "").lower())
    assert len(firsts) == len(TEMPLATES)


# --- the file -----------------------------------------------------------------------------


def test_a_set_of_labels_gets_its_number_or_one_of_each_template(tmp_path):
    path = tmp_path / "d" / "farm.jsonl"
    report = from_templates(PLAN, path)
    assert counts(path) == {DOG: 5, RAIN: 2, CAT: 16, ("fox", "dog"): 1}
    assert report.missing == {CAT: 24} and not report.dropped and not report.given_up
    first = rows(path)[0]
    assert list(first) == ["labels", "text", "model"] and first["model"] == "templates"
    cats = {row["text"] for row in rows(path) if row["labels"] == ["cat"]}
    assert cats == {
        t.format(labels="Cat" if t.startswith("{") else "cat") for t in TEMPLATES
    }  # all of them


def test_the_same_plan_makes_the_same_file(tmp_path):
    """In another process, too: no hash of Python's, which differs in each."""
    code = (
        "import sys\nfrom collections import Counter\n"
        "from shards.templates import from_templates\n"
        f"from_templates(Counter({dict(PLAN)!r}), sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "b.jsonl")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    from_templates(PLAN, tmp_path / "a.jsonl")
    made = (tmp_path / "a.jsonl").read_bytes()
    assert (tmp_path / "b.jsonl").read_bytes() == made
    from_templates(PLAN, tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == made


def test_a_kill_leaves_nothing_to_repair(tmp_path):
    whole, path = tmp_path / "whole.jsonl", tmp_path / "a.jsonl"
    from_templates(PLAN, whole)
    data = whole.read_bytes()
    for end in (1, 60, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        from_templates(PLAN, path)
        assert path.read_bytes() == data


def test_a_models_descriptions_count_and_are_not_repeated(tmp_path):
    path, first = tmp_path / "a.jsonl", next(sentences(DOG))
    lines = [{"labels": ["dog"], "text": "A dog barks twice.", "model": "m"}]
    lines.append({"labels": ["cat"], "text": first.upper(), "model": "m"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = from_templates(Counter({DOG: 16, CAT: 1}), path)
    assert rows(path)[:2] == lines
    assert counts(path) == {DOG: 16, CAT: 1} and not report.missing
    assert first not in [row["text"] for row in rows(path)]


def test_labels_that_read_the_same_share_the_templates(tmp_path):
    report = from_templates(Counter({("dog_bark",): 10, ("Dog bark",): 10}), tmp_path / "a.jsonl")
    assert len(rows(tmp_path / "a.jsonl")) == 16 and report.missing.total() == 4


def test_a_line_that_is_no_description_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("half a li\n")
    with pytest.raises(DataError, match="a.jsonl, line 1 is no description"):
        from_templates(PLAN, tmp_path / "a.jsonl")


# --- the check ----------------------------------------------------------------------------


def test_another_template_replaces_one_that_is_dropped(tmp_path):
    path, nearest = tmp_path / "a.jsonl", Nearest(Choosy(), ["dog", "cat", "rain", "thunder"])
    report = from_templates(Counter({DOG: 14, RAIN: 3, ("cat",): 16}), path, nearest)
    assert counts(path) == {DOG: 14, RAIN: 3, ("cat",): 16} and not report.missing
    dogs = " ".join(row["text"] for row in rows(path) if row["labels"] == ["dog"])
    assert "quiet" not in dogs and "distance" not in dogs
    assert report.dropped["nearer to another label"] >= 2
    report = from_templates(Counter({DOG: 16}), path, nearest)
    assert report.missing == {DOG: 2} and report.dropped == {"nearer to another label": 2}
    assert counts(path)[DOG] == 14


def test_labels_whose_templates_are_all_dropped_are_named(tmp_path):
    path, nearest = tmp_path / "a.jsonl", Nearest(Topics(), ["dog", "fox", "what"])
    plan = Counter({("dog", "what?"): 2, ("what, a fox",): 1, DOG: 1})
    report = from_templates(plan, path, nearest)
    assert counts(path) == {DOG: 1} and report.missing == plan - counts(path)
    assert report.dropped == {"no vector": 16, "nearer to another label": 16}
    assert list(report.given_up) == [("dog", "what?"), ("what, a fox",)]


def test_after_a_kill_the_check_leaves_the_same_descriptions(tmp_path):
    plan, whole, path = Counter({DOG: 10, RAIN: 12}), tmp_path / "whole", tmp_path / "a.jsonl"
    nearest = Nearest(Choosy(), ["dog", "cat", "rain", "thunder"])
    from_templates(plan, whole, nearest)
    data = whole.read_bytes()
    for end in range(0, len(data), 97):
        path.write_bytes(data[:end])
        from_templates(plan, path, nearest)
        assert sorted(path.read_bytes().splitlines()) == sorted(data.splitlines())


def test_the_encoder_gets_batches_of_many_sets_of_labels(tmp_path):
    plan = Counter({(f"dog {'x' * i}",): 2 for i in range(BATCH)})
    nearest = Nearest(Topics(), ["dog"])
    nearest.clap.calls.clear()
    report = from_templates(plan, tmp_path / "a.jsonl", nearest)
    assert report.missing == plan and len(report.given_up) == BATCH
    lengths = [len(texts) for texts in nearest.clap.calls]
    assert lengths == [BATCH] * len(TEMPLATES)  # two for each, eight times
