"""Scores against torchmetrics, counts by hand, and what the real annotation files must give."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.text import ROUGEScore, SacreBLEUScore

from disk import DataError
from scoring import tasks
from scoring.tasks import BENCHMARKS, Context, chance, compared, measure, summaries
from shards.tiny import benchmarks

ROOT = Path(__file__).parents[1]
LABELS = ["dog", "cat", "rain", "church bell"]


def letters(texts):
    """A text encoder by hand: counts of letters."""
    "".join(texts).encode()  # as a tokenizer would
    alphabet = map(chr, range(ord("a"), ord("z") + 1))
    counts = [[text.lower().count(letter) for text in texts] for letter in alphabet]
    return F.normalize(torch.tensor(counts).double().T + 0.01, dim=-1)


def row(prediction, answer, **more):
    return {"id": "x", "instruction": "?", "prediction": prediction, "answer": answer, **more}


def score(benchmark, rows, context):
    return summaries(measure(benchmark, rows, context))


def values(benchmark, rows, **context):
    return {m: s.value for m, s in measure(benchmark, rows, Context(**context)).items()}


def headline(benchmark, rows, **context):
    return next(iter(values(benchmark, rows, **context).values()))


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- captions ---


def test_caption_metrics_are_torchmetrics_on_the_whole_set():
    rng = np.random.default_rng(0)
    vocabulary = ["a", "dog", "barks", "while", "rain", "falls", "and", "bells", "ring"]

    def tell():
        return " ".join(rng.choice(vocabulary, rng.integers(5, 12)))

    rows = [
        row(said, [tell(), said[rng.integers(9) :] + " " + tell(), tell()])
        for said in (tell() for _ in range(30))
    ]
    rows.append(row("", ["a dog barks"]))
    bleu, rouge = SacreBLEUScore(n_gram=4, tokenize="13a"), ROUGEScore(rouge_keys="rougeL")
    for metric in (bleu, rouge):
        metric.update([r["prediction"] for r in rows], [r["answer"] for r in rows])
    want = {"BLEU4": float(bleu.compute()), "ROUGE-L": float(rouge.compute()["rougeL_fmeasure"])}
    for benchmark in ("caption", "musiccaps"):
        result = score(benchmark, rows, Context())
        assert {m: s["value"] for m, s in result.items()} == pytest.approx(want, abs=1e-6)
        assert all(s["ci95"][0] < s["value"] < s["ci95"][1] for s in result.values())


class Exact:
    """A SPICE with scores per item."""

    def per_item(self, preds, target):
        return torch.tensor([0.5, 0.25])


class Printed:
    """A SPICE that prints the mean alone."""

    def per_item(self, preds, target):
        return None

    def update(self, *pairs):
        pass

    def reset(self):
        pass

    def compute(self):
        return torch.tensor(0.25)


class Broken:
    def per_item(self, preds, target):
        raise RuntimeError("Java ended with code 1")


def test_spice_or_why_not():
    rows = [
        row("a dog barks", ["a dog barks loudly", "a dog"]),
        row("rain falls", ["rain", "it rains"]),
    ]
    result = score("audiocaps", rows, Context(spice="no Java"))
    missing = {"value": None, "ci95": None, "why": "no Java"}
    assert result["SPICE"] == result["SPIDEr"] == missing and result["CIDEr-D"]["value"] > 0
    exact = values("audiocaps", rows, spice=Exact())
    assert exact["SPICE"] == 0.375
    assert exact["SPIDEr"] == pytest.approx((exact["CIDEr-D"] + 0.375) / 2)
    printed = score("audiocaps", rows, Context(spice=Printed()))
    assert printed["SPICE"] == {"value": 0.25, "ci95": None}
    broken = score("audiocaps", rows, Context(spice=Broken()))
    assert broken["SPICE"]["why"] == "Java ended with code 1"
    assert broken["CIDEr-D"]["value"] is not None


# --- questions ---


def test_yes_no():
    said = {"Yes, it is.": "yes", "no": "yes", "maybe": "no", "": "no", "NO": "no"}
    rows = [row(prediction, answer) for prediction, answer in said.items()]
    assert headline("yesno", rows) == pytest.approx(2 / 5)
    assert chance("yesno", rows, Context()) == {"B-ACC": pytest.approx(3 / 5)}


def test_open_questions_want_the_words_of_the_answer():
    rows = [
        row("A dog barking.", "a dog barking"),
        row("dog a barking", "a dog barking"),
        row("two", ["two", "three"]),
    ]
    assert headline("open", rows) == pytest.approx(2 / 3)


def test_clothoaqa_by_hand():
    rows = [
        row("Yes", ["yes", "Yes", "yes"]),
        row("no", ["yes", "yes", "no"]),
        row("car", ["car", "truck", "bus"]),
        row("Bird!", ["bird", "bird", "owl"]),
    ]
    want = {
        "ACC (majority)": 2 / 3,
        "B-ACC (majority)": 1 / 2,
        "ACC (rows)": (3 + 1 + 1 + 2) / 12,
        "B-ACC (rows)": 4 / 6,
        "ACC (unanimous)": 1,
        "B-ACC (unanimous)": 1,
    }
    measured = measure("clothoaqa", rows, Context())
    assert {m: s.value for m, s in measured.items()} == pytest.approx(want)
    assert list(measured) == list(want)  # the headline first
    assert measured["ACC (majority)"].per_item[[0, 1, 3]].tolist() == [1, 0, 1]
    assert measured["ACC (rows)"].per_item is None  # an item counts three times
    with pytest.raises(DataError, match="clothoaqa: .*has 1 answers"):
        measure("clothoaqa", [row("yes", "yes")], Context())


def test_multiple_choice_is_mmaus_rule(shared):
    cases = json.loads((shared / "vectors" / "mmau_string_match.json").read_text())["cases"]
    right = [
        tasks.chooses_right(row(case["prediction"], case["answer"], choices=case["choices"]))
        for case in cases
    ]
    assert right == [case["correct"] for case in cases] and len(cases) > 10


def test_mmaus_rule_word_by_word():
    """As MMAU publishes it: no word of the answer may be missing, and no word may occur that only
    wrong choices have; an empty prediction is wrong."""
    rng, vocabulary, seen = np.random.default_rng(0), ["red", "blue", "deep", "a"], Counter()
    for _ in range(4000):
        choices = [
            " ".join(rng.choice(vocabulary, rng.integers(1, 3), replace=False)) for _ in range(3)
        ]
        said = rng.choice([*vocabulary, "sky"], rng.integers(0, 4), replace=False)
        answer = choices[0].split()
        missing = [word for word in answer if word not in said]
        wrong = [w for c in choices[1:] for w in c.split() if w not in answer and w in said]
        right = tasks.chooses_right(row(", ".join(said).title(), choices[0], choices=choices))
        assert right == (not missing and not wrong and len(said) > 0)
        seen[bool(missing), bool(wrong)] += 1
    assert len(seen) == 4 and min(seen.values()) > 100


def test_multiple_choice_by_kind():
    rows = [
        row(p, "red", choices=["red", "blue"], category=kind)
        for p, kind in (("red", "music"), ("blue", "music"), ("red", "sound"))
    ]
    want = {"MC-ACC": 2 / 3, "MC-ACC (music)": 1 / 2, "MC-ACC (sound)": 1}
    assert values("mmau_mini", rows) == pytest.approx(want)
    assert chance("mmau_mini", rows, Context()) == {"MC-ACC": 0.5}
    assert chance("mmau", rows, Context()) == {}


def test_judged():
    rows = [row("a", "b") | {"id": i} for i in range(3)]
    assert "scoring.judge" in score("airbench_sound", rows, Context())["GPT4"]["why"]
    verdicts = {(0, "?"): 8.0, (2, "?"): 5.0}
    assert headline("airbench_sound", rows, verdicts=verdicts) == 6.5


# --- what the real annotation files must give ---


@pytest.mark.slow
def test_always_yes_on_clothoaqa(shared):
    """FACTS: 2,476 questions by majority, 1,892 of them yes/no, 56.4 % yes; 8,514 rows, at most
    .778 and .862 right; 1,312 and 1,109 unanimous."""
    groups = {}
    for r in rows_of(shared / "data/clothoaqa/clotho_aqa_test.csv"):
        groups.setdefault((r["file_name"], r["QuestionText"]), []).append(r["answer"])
    rows = [
        row("Yes.", answers[i : i + 3])
        for answers in groups.values()
        for i in range(0, len(answers), 3)
    ]
    measured = measure("clothoaqa", rows, Context())
    binary = measured["B-ACC (majority)"]
    assert round(binary.value, 3) == 0.564
    assert round(chance("clothoaqa", rows, Context())["B-ACC (majority)"], 3) == 0.564
    low, high = binary.summary()["ci95"]
    assert low < 0.564 < high
    counted = {
        metric: int((~score.per_item.isnan()).sum())
        for metric, score in measured.items()
        if score.per_item is not None
    }
    assert counted == {
        "ACC (majority)": 2476,
        "B-ACC (majority)": 1892,
        "ACC (unanimous)": 1312,
        "B-ACC (unanimous)": 1109,
    }
    best = [r | {"prediction": Counter(r["answer"]).most_common(1)[0][0]} for r in rows]
    best = values("clothoaqa", best)
    assert (round(best["ACC (rows)"], 3), round(best["B-ACC (rows)"], 3)) == (0.778, 0.862)
    assert best["ACC (majority)"] == best["B-ACC (unanimous)"] == 1


@pytest.mark.slow
def test_each_human_caption_against_the_other_four(shared):
    """The first human caption has coco-caption's own score to 1e-9; the other four are as far
    from the rest as it is."""
    sets = json.loads((shared / "vectors/caption_scores.json").read_text())["sets"]
    want = {entry["name"]: entry["coco_caption"] for entry in sets}
    clips = {}
    for r in rows_of(shared / "data/audiocaps/test.csv"):
        clips.setdefault(r["youtube_id"], []).append(r["caption"])
    scores = [
        values("audiocaps", [row(c[i], c[:i] + c[i + 1 :]) for c in clips.values()])
        for i in range(5)
    ]
    names = {"CIDEr-D": "cider_d", "BLEU4": "bleu_4", "ROUGE-L": "rouge_l"}
    first = {metric: scores[0][metric] for metric in names}
    theirs = {metric: want["audiocaps_test_rot0"][name] for metric, name in names.items()}
    assert first == pytest.approx(theirs, abs=1e-9)
    assert all(0.87 < s["CIDEr-D"] < 0.94 for s in scores)  # as the README says
    rows = [
        row(r["caption_1"], [r[f"caption_{i}"] for i in range(2, 6)])
        for r in rows_of(shared / "data/clotho/clotho_captions_evaluation.csv")
    ]
    cider = want["clotho_eval_rot0"]["cider_d"]
    assert values("clotho", rows)["CIDEr-D"] == pytest.approx(cider, abs=1e-9)


def test_the_label_itself_is_right(shared):
    """ESC-50's own labels, and a class's text alone: 100 %. MMAU's first choice: by hand."""
    named = [
        (int(r["target"]), r["category"].replace("_", " "))
        for r in rows_of(shared / "data/esc50/esc50.csv")
    ]
    labels = [label for _, label in sorted(set(named))]

    def one_hot(texts):
        return torch.tensor([[float(text == label) for label in labels] for text in texts])

    said = [row(label, label) for _, label in named]
    result = score("esc50", said, Context(labels, {"clap": one_hot}, "{}"))
    assert result == {"ACC": {"value": 1.0, "ci95": [1.0, 1.0]}}
    assert chance("esc50", said, Context(labels, {})) == {"ACC": pytest.approx(1 / 50)}
    rows = json.loads((shared / "data/mmau/mmau-test-mini-300.json").read_text())
    first = [
        row(r["choices"][0], r["answer"], choices=r["choices"], category=r["task"]) for r in rows
    ]
    sure = np.mean([r["choices"][0].strip() == r["answer"].strip() for r in rows])
    # permutations of the same words count too
    assert sure <= headline("mmau_mini", first) <= sure + 0.02


# --- what every benchmark must bear ---

SETTINGS = [  # each makes this CPU round as others would
    {},
    {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"},
    {"MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"},
    {"ATEN_CPU_CAPABILITY": "default"},
]


@pytest.mark.slow
def test_scores_are_the_same_on_every_cpu(project):
    def scores(setting):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", **setting}
        argv = [sys.executable, ROOT / "tests/rounding.py", project / "clap"]
        return json.loads(subprocess.check_output(argv, env=env))

    with ThreadPoolExecutor(2) as pool:
        first, *others = pool.map(scores, SETTINGS)
    assert set(first) >= {*benchmarks.TEST, "fsd50k", "dcase2017", "mmau_mini"}
    for setting, found in zip(SETTINGS[1:], others):
        assert {name: found[name] for name in first if found[name] != first[name]} == {}, setting


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_any_prediction_is_scored(name):
    answer = {
        "clothoaqa": ["yes", "no", "yes"],
        **dict.fromkeys(("audiocaps", "clotho", "musiccaps"), ["a dog barks", ""]),
    }.get(name, "dog")
    odd = [
        "",
        " ",
        "word " * 1000,
        "Ein Hund bellt – 犬が吠える",
        "🐕",
        "dog; ; ,",
        "\n",
        "half \ud83d",
        "dog",
    ]
    rows = [row(said, answer, choices=["dog", "cat"]) | {"id": i} for i, said in enumerate(odd)]
    context = Context(LABELS, {"clap": letters}, verdicts={(0, "?"): 1.0})
    result = score(name, rows, context)
    assert result
    for summary in result.values():
        assert summary["why"] if summary["value"] is None else np.isfinite(summary["value"])
    blind = chance(name, rows, context)
    assert set(blind) <= set(result) and all(map(np.isfinite, blind.values()))


def test_paired_tests_of_any_metric():
    """Of micro-F1, whose mean over clips is another thing, a test has the sign of the score."""
    labels = ["dog", "cat", "cow", "hen"]
    truth = [["dog", "cat", "cow"]] * 4 + [["hen"]] * 6

    def rows(said):
        return [
            row(", ".join(named), ", ".join(true), labels=true) | {"id": i}
            for i, (named, true) in enumerate(zip(said, truth))
        ]

    context = Context(labels, {"clap": letters}, "{}")
    first = rows([["dog", "cat", "cow"]] * 4 + [["dog"]] * 6)
    second = rows([["hen"]] * 4 + [["hen"]] * 6)

    def test(benchmark):
        return compared(*(measure(benchmark, said, context) for said in (first, second)))

    found = test("dcase2017")["micro-F1"]
    one, two = (measure("dcase2017", r, context)["micro-F1"].value for r in (first, second))
    assert found["difference"] == pytest.approx(two - one) and found["n"] == 10
    assert test("events")["mAP"]["p"] <= 1
    assert "scoring.judge" in test("airbench_sound")["GPT4"]


def test_chance_of_questions_and_captions_is_not_the_own_reference():
    rows = [{"id": str(i), "instruction": "?", "answer": [a]} for i, a in enumerate(("one", "two"))]
    assert chance("open", rows, Context())["EM"] == 0
    assert chance("caption", rows, Context())["ROUGE-L"] == 0


# --- rows before they are used ---


def sample(**more):
    plain = {"text": None, "instruction": "?", "answer": "dog", "task": "mcq", "source": "s"}
    return plain | {"id": "a", "choices": ["Dog", "cat"], "clip": "c"} | more


@pytest.mark.parametrize(
    "benchmark, changed, problem",
    [
        ("mcq", {}, ""),
        ("mcq", {"id": 5, "tag": None, "category": "music"}, ""),
        ("mcq", {"answer": "cow"}, "an answer that is not among its choices: 'cow'"),
        ("mcq", {"choices": "dog"}, "choices is 'dog' where it must be a list"),
        ("mcq", {"choices": ["dog", 5]}, "where it must be a list of strings"),
        ("mcq", {"choices": []}, "lacks its choices"),
        ("yesno", {"labels": "dog"}, "its labels are 'dog'"),
        ("yesno", {"id": ["a"]}, "id is ['a'] where it must be"),
        ("yesno", {"tag": 5}, "tag is 5 where it must be"),
        ("yesno", {"category": ["a"]}, "its category is ['a'], no text"),
        ("yesno", {"instruction": "half \ud83d"}, "instruction holds half a character"),
        ("yesno", {"answer": ["", " "]}, "answer is ['', ' '] where"),
        ("yesno", {"answer": ["", "yes"], "task": "aqa"}, "answer is ['', 'yes'] where"),
        ("yesno", {"answer": 5}, "answer is 5 where it must be a string"),
        ("yesno", {"answer": []}, "answer is [] where it must be a string"),
        ("mcq", {"answer": ""}, "its answer is empty"),
        ("mmau", {"answer": ""}, ""),
    ],
)
def test_rows_are_checked_before_use(benchmark, changed, problem):
    found = tasks.unfit(benchmark, sample(**changed))
    assert problem in found and bool(problem) == bool(found)


def test_rows_of_choices_need_them():
    bare = {name: value for name, value in sample(task="aqa").items() if name != "choices"}
    assert tasks.unfit("yesno", bare) == ""
    assert tasks.unfit("mcq", bare) == tasks.unfit("mmau", bare) == "it has no choices"


def heard(*rows):
    """deaf() of rows (instruction, answer, prediction), each with a clip of its own."""
    fields = ("instruction", "answer", "prediction")
    return tasks.deaf([{"id": i, "clip": i} | dict(zip(fields, r)) for i, r in enumerate(rows)])


def test_equal_answers_to_the_same_question():
    other = ["yes", "no"] * 6
    one = [("dog?", truth, "yes") for truth in other]
    assert heard(*one) == 12
    assert heard(*one[:9]) == 0  # too few
    assert heard(*one[:-1], ("dog?", "no", "no")) == 0
    assert heard(*[("dog?", "yes", "yes")] * 12) == 0  # all of them right
    # two questions, each with its own answer to all clips
    cats = [("cat?", truth, "no") for truth in other]
    assert heard(*one, *cats) == 24
    assert heard(*one, *cats[:-1], ("cat?", "yes", "yes")) == 0
    assert heard(*one, ("bird?", "yes", "no")) == 12  # asked of one clip alone
    # every clip has a question of its own
    assert heard(*[(f"{i}?", truth, "yes") for i, truth in enumerate(other)]) == 12
    assert heard(*[(f"{i}?", truth, truth) for i, truth in enumerate(other)]) == 0
    # a question that is asked of one clip again and again is one of its own
    again = [{"id": 0, "clip": 0, "instruction": "?", "answer": a, "prediction": ""} for a in other]
    more = [{**row, "id": i, "clip": i, "instruction": f"{i}?"} for i, row in enumerate(again)]
    assert tasks.deaf(again + more) == 12
    # many questions about one clip say nothing
    rows = [{"id": 0, "clip": 0, "instruction": "?", "answer": a, "prediction": ""} for a in other]
    assert tasks.deaf(rows) == 0
