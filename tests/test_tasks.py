"""Scores against torchmetrics, scikit-learn, counts by hand, and what the real annotation files must give."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score
from torchmetrics.text import ROUGEScore, SacreBLEUScore

from data import DataError
from scoring import tasks
from scoring.tasks import BENCHMARKS, Context, Score, chance, items, score, share

LABELS = ["dog", "cat", "rain", "church bell"]


def letters(texts):
    """A text encoder by hand: counts of letters."""
    return F.normalize(
        torch.tensor(
            [[t.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for t in texts]
        ).float(),
        dim=-1,
    )


def row(prediction, answer, **more):
    return {"id": "x", "instruction": "?", "prediction": prediction, "answer": answer, **more}


def value(benchmark, rows, metric=None, **context):
    result = score(benchmark, rows, Context(**context))
    return result[metric or next(iter(result))]["value"]


MATCH = dict(labels=LABELS, encoders={"clap": letters})


# --- text matching ---


def test_text_matching_finds_the_label_that_was_said():
    rows = [row(f"sound of {p}", a) for p, a in zip(LABELS, ["dog", "cat", "rain", "rain"])]
    assert value("sound", rows, **MATCH) == 0.75 and value("sound", rows, "ACC", **MATCH) == 0.75
    with pytest.raises(DataError, match="sound: .*'fox'"):
        value("sound", [row("dog", "fox")], **MATCH)


def test_several_encoders_and_templates_score_the_same_predictions():
    other = lambda texts: F.normalize(
        torch.tensor([[float(t.startswith("c")), 1e-3] for t in texts]), dim=-1
    )
    result = score(
        "sound",
        [row("cat", "cat"), row("car", "dog")],
        Context(LABELS, {"clap": letters, "first letter": other}, "{}"),
    )
    assert (
        set(result) == {"ACC", "ACC (first letter)"}
        and result["ACC"]["value"] == 0.5 == result["ACC (first letter)"]["value"]
    )


def test_map_is_scikit_learns():
    rng = np.random.default_rng(0)
    rows = [
        row(
            ", ".join(rng.choice(LABELS, 2, replace=False)),
            ", ".join(rng.choice(LABELS[:3], rng.integers(1, 3), replace=False)),
        )
        for _ in range(60)
    ]
    scores = torch.stack(
        [
            sum(
                letters([p])[0] @ letters([f"sound of {l}"])[0] * torch.eye(4)[i]
                for p in r["prediction"].split(", ")
                for i, l in enumerate(LABELS)
            )
            for r in rows
        ]
    )
    truth = np.array([[l in r["answer"].split(", ") for l in LABELS] for r in rows])
    want = np.mean(
        [average_precision_score(truth[:, c], scores[:, c]) for c in range(3)]
    )  # no row is a church bell
    result = score("events", rows, Context(**MATCH))["mAP"]
    assert (
        result["value"] == pytest.approx(want, abs=1e-5)
        and result["ci95"][0] < want < result["ci95"][1]
    )
    shifted = Context(LABELS, scores=scores * 9 - 4)  # outside [0, 1]: no sigmoid
    assert score("events", rows, shifted)["mAP"]["value"] == pytest.approx(want, abs=1e-5)


def test_a_clip_with_several_labels():
    """DCASE2017: ACC counts a hit on any of them; micro-F1 is scikit-learn's. Labels may hold commas."""
    labels = ["air horn, truck horn", "dog", "cat"]
    rows = [
        row("dog", "air horn, truck horn, dog", labels=["Air horn, truck horn", "dog"]),
        row("dog, cat", "cat", labels=["cat"]),
        row("cat", "dog", labels=["dog"]),
    ]
    result = score("dcase2017", rows, Context(labels, {"clap": letters}, "{}"))
    said = np.array([[0, 1, 0], [0, 1, 1], [0, 0, 1]])
    true = np.array([[1, 1, 0], [0, 0, 1], [0, 1, 0]])
    assert result["micro-F1"]["value"] == pytest.approx(f1_score(true, said, average="micro"))
    nearest = [int((letters([r["prediction"]]) @ letters(labels).T).argmax()) for r in rows]
    assert result["ACC"]["value"] == pytest.approx(
        np.mean([true[i, n] for i, n in enumerate(nearest)])
    )


# --- captions ---


def test_caption_metrics_are_torchmetrics_on_the_whole_set():
    rng = np.random.default_rng(0)
    tell = lambda: " ".join(
        rng.choice(
            ["a", "dog", "barks", "while", "rain", "falls", "and", "bells", "ring"],
            rng.integers(5, 12),
        )
    )
    rows = [
        row(t, [tell(), t[rng.integers(9) :] + " " + tell(), tell()])
        for t in (tell() for _ in range(30))
    ] + [row("", ["a dog barks"])]
    bleu, rouge = SacreBLEUScore(n_gram=4, tokenize="13a"), ROUGEScore(rouge_keys="rougeL")
    for metric in (bleu, rouge):
        metric.update([r["prediction"] for r in rows], [r["answer"] for r in rows])
    for benchmark in ("caption", "musiccaps"):
        result = score(benchmark, rows, Context())
        assert result["BLEU4"]["value"] == pytest.approx(float(bleu.compute()), abs=1e-6)
        assert result["ROUGE-L"]["value"] == pytest.approx(
            float(rouge.compute()["rougeL_fmeasure"]), abs=1e-6
        )
        assert all(r["ci95"][0] < r["value"] < r["ci95"][1] for r in result.values())


def test_spice_or_why_not():
    rows = [
        row("a dog barks", ["a dog barks loudly", "a dog"]),
        row("rain falls", ["rain", "it rains"]),
    ]
    result = score("audiocaps", rows, Context(spice="no Java"))
    assert (
        result["SPICE"] == result["SPIDEr"] == {"value": None, "ci95": None, "why": "no Java"}
        and result["CIDEr-D"]["value"] > 0
    )

    class Exact:
        per_item = lambda self, preds, target: torch.tensor([0.5, 0.25])

    result = score("audiocaps", rows, Context(spice=Exact()))
    assert result["SPICE"]["value"] == 0.375 and result["SPIDEr"]["value"] == pytest.approx(
        (result["CIDEr-D"]["value"] + 0.375) / 2
    )

    class Mean(Exact):
        per_item = lambda self, preds, target: None
        update = reset = lambda self, *a: None
        compute = lambda self: torch.tensor(0.25)

    result = score("audiocaps", rows, Context(spice=Mean()))
    assert result["SPICE"] == {"value": 0.25, "ci95": None}


# --- questions ---


def test_yes_no():
    rows = [
        row("Yes, it is.", "yes"),
        row("no", "yes"),
        row("maybe", "no"),
        row("", "no"),
        row("NO", "no"),
    ]
    assert value("yesno", rows) == pytest.approx(2 / 5) and chance("yesno", rows, Context())[
        "B-ACC"
    ] == pytest.approx(3 / 5)


def test_open_questions_want_the_words_of_the_answer():
    rows = [
        row("A dog barking.", "a dog barking"),
        row("dog a barking", "a dog barking"),
        row("two", ["two", "three"]),
    ]
    assert value("open", rows) == pytest.approx(2 / 3)


def test_clothoaqa_by_hand():
    rows = [
        row("Yes", ["yes", "Yes", "yes"]),
        row("no", ["yes", "yes", "no"]),
        row("car", ["car", "truck", "bus"]),
        row("Bird!", ["bird", "bird", "owl"]),
    ]
    result = {k: v["value"] for k, v in score("clothoaqa", rows, Context()).items()}
    assert result == pytest.approx(
        {
            "ACC (majority)": 2 / 3,
            "B-ACC (majority)": 1 / 2,
            "ACC (rows)": (3 + 1 + 1 + 2) / 12,
            "B-ACC (rows)": 4 / 6,
            "ACC (unanimous)": 1,
            "B-ACC (unanimous)": 1,
        }
    )
    with pytest.raises(DataError, match="has 1 answers"):
        score("clothoaqa", [row("yes", "yes")], Context())


def test_multiple_choice_is_mmaus_rule(shared):
    cases = json.loads((shared / "vectors" / "mmau_string_match.json").read_text())["cases"]
    right = [tasks.chosen(row(c["prediction"], c["answer"], choices=c["choices"])) for c in cases]
    assert right == [c["correct"] for c in cases] and len(cases) > 10


def test_multiple_choice_by_kind():
    rows = [
        row(p, "red", choices=["red", "blue"], category=k)
        for p, k in (("red", "music"), ("blue", "music"), ("red", "sound"))
    ]
    result = {k: v["value"] for k, v in score("mmau_mini", rows, Context()).items()}
    assert result == pytest.approx({"MC-ACC": 2 / 3, "MC-ACC (music)": 1 / 2, "MC-ACC (sound)": 1})


def test_judged():
    rows = [row("a", "b") | {"id": i} for i in range(3)]
    assert "scoring.judge" in score("airbench_sound", rows, Context())["GPT4"]["why"]
    assert value("airbench_sound", rows, verdicts={(0, "?"): 8.0, (2, "?"): 5.0}) == 6.5


# --- what the real annotation files must give ---


def test_always_yes_on_clothoaqa(shared):
    """FACTS: 2,476 questions by majority, 1,892 of them yes/no, 56.4 % yes; 8,514 rows, at most .778 and .862 right; 1,312 and 1,109 unanimous."""
    groups = {}
    for r in csv.DictReader(
        open(shared / "data/clothoaqa/clotho_aqa_test.csv", newline="", encoding="utf-8")
    ):
        groups.setdefault((r["file_name"], r["QuestionText"]), []).append(r["answer"])
    rows = [
        row("Yes.", answers[i : i + 3])
        for answers in groups.values()
        for i in range(0, len(answers), 3)
    ]
    result = score("clothoaqa", rows, Context())
    assert (
        round(result["B-ACC (majority)"]["value"], 3)
        == 0.564
        == round(chance("clothoaqa", rows, Context())["B-ACC (majority)"], 3)
    )
    assert result["B-ACC (majority)"]["ci95"][0] < 0.564 < result["B-ACC (majority)"]["ci95"][1]
    counted = {
        k: int((~torch.isnan(v)).sum()) for k, v in items("clothoaqa", rows, Context()).items()
    }
    assert {k: v for k, v in counted.items() if "rows" not in k} == {
        "ACC (majority)": 2476,
        "B-ACC (majority)": 1892,
        "ACC (unanimous)": 1312,
        "B-ACC (unanimous)": 1109,
    }
    best = [r | {"prediction": Counter(r["answer"]).most_common(1)[0][0]} for r in rows]
    result = score("clothoaqa", best, Context())
    assert (round(result["ACC (rows)"]["value"], 3), round(result["B-ACC (rows)"]["value"], 3)) == (
        0.778,
        0.862,
    )
    assert result["ACC (majority)"]["value"] == result["B-ACC (unanimous)"]["value"] == 1


def test_each_human_caption_against_the_other_four(shared):
    """The first human caption has coco-caption's own score to 1e-9; the other four are as far from the rest as it is."""
    sets = {
        s["name"]: s["coco_caption"]
        for s in json.loads((shared / "vectors/caption_scores.json").read_text())["sets"]
    }
    clips = {}
    for r in csv.DictReader(open(shared / "data/audiocaps/test.csv", newline="", encoding="utf-8")):
        clips.setdefault(r["youtube_id"], []).append(r["caption"])
    scores = [
        score("audiocaps", [row(c[i], c[:i] + c[i + 1 :]) for c in clips.values()], Context())
        for i in range(5)
    ]
    want = sets["audiocaps_test_rot0"]
    assert [scores[0][m]["value"] for m in ("CIDEr-D", "BLEU4", "ROUGE-L")] == pytest.approx(
        [want[k] for k in ("cider_d", "bleu_4", "rouge_l")], abs=1e-9
    )
    assert all(0.87 < s["CIDEr-D"]["value"] < 0.94 for s in scores)  # as the README says
    rows = [
        [r[f"caption_{i}"] for i in range(1, 6)]
        for r in csv.DictReader(
            open(shared / "data/clotho/clotho_captions_evaluation.csv", newline="")
        )
    ]
    assert value("clotho", [row(c[0], c[1:]) for c in rows], "CIDEr-D") == pytest.approx(
        sets["clotho_eval_rot0"]["cider_d"], abs=1e-9
    )


def test_the_label_itself_is_right(shared):
    """ESC-50's own labels, and a class's text alone: 100 %. MMAU's first choice: counted by hand."""
    rows = list(csv.DictReader(open(shared / "data/esc50/esc50.csv", newline="")))
    labels = [
        c for _, c in sorted({(int(r["target"]), r["category"].replace("_", " ")) for r in rows})
    ]
    said = [row(r["category"].replace("_", " "), r["category"].replace("_", " ")) for r in rows]
    one_hot = lambda texts: torch.stack(
        [torch.tensor([float(t == l) for l in labels]) for t in texts]
    )
    result = score("esc50", said, Context(labels, {"clap": one_hot}, "{}"))["ACC"]
    assert result == {"value": 1.0, "ci95": [1.0, 1.0]} and chance(
        "esc50", said, Context(labels, {})
    )["ACC"] == pytest.approx(1 / 50)
    rows = json.loads((shared / "data/mmau/mmau-test-mini-300.json").read_text())
    first = [
        row(r["choices"][0], r["answer"], choices=r["choices"], category=r["task"]) for r in rows
    ]
    sure = np.mean([r["choices"][0].strip() == r["answer"].strip() for r in rows])
    assert (
        sure <= value("mmau_mini", first) <= sure + 0.02
    )  # permutations of the same words count too


# --- what every benchmark must bear ---


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_any_prediction_is_scored(name):
    answer = {"clothoaqa": ["yes", "no", "yes"]}.get(
        name,
        "dog"
        if BENCHMARKS[name].metrics not in (tasks.captions, tasks.music_captions)
        else ["a dog barks", ""],
    )
    odd = ["", " ", "word " * 1000, "Ein Hund bellt – 犬が吠える", "🐕", "dog; ; ,", "\n", "dog"]
    rows = [row(p, answer, choices=["dog", "cat"]) | {"id": i} for i, p in enumerate(odd)]
    context = Context(LABELS, {"clap": letters}, verdicts={(0, "?"): 1.0})
    result = score(name, rows, context)
    assert result and all(
        v["value"] is None and v["why"] or np.isfinite(v["value"]) for v in result.values()
    )


def test_intervals_are_those_of_the_binomial():
    right = [True] * 60 + [False] * 40
    value, (lo, hi) = share(right).interval()
    assert (
        value == 0.6
        and lo == pytest.approx(0.6 - 1.96 * (0.24 / 100) ** 0.5, abs=0.02)
        and hi == pytest.approx(0.6 + 1.96 * (0.24 / 100) ** 0.5, abs=0.02)
    )
    assert share(right).interval() == share(right).interval()  # seeded
    assert share([1, 1], [0, 0]).interval() == (None, None)
    slow = Score(share(right).stats, lambda s: s[:, 0].sum() / s[:, 1].sum(), additive=False)
    assert slow.interval()[0] == 0.6 and slow.interval()[1] == pytest.approx([lo, hi], abs=0.04)


def test_paired_tests_of_any_metric():
    """Of means they are the classic tests; of micro-F1, whose mean over clips is another thing, they have the sign of the score itself."""
    from scipy.stats import permutation_test

    rng = np.random.default_rng(0)
    a, b = (share(list(rng.random(80) < p)) for p in (0.7, 0.5))
    test = tasks.paired(a, b)
    x, y = (s.items().numpy() for s in (a, b))
    want = permutation_test(
        (x, y), lambda u, v: np.mean(u - v), permutation_type="samples", n_resamples=4000, rng=0
    ).pvalue
    assert test["difference"] == pytest.approx(x.mean() - y.mean()) and test["p"] == pytest.approx(
        want, abs=0.04
    )
    assert test["ci95"][0] < test["difference"] < test["ci95"][1] and tasks.paired(a, a)["p"] == 1
    labels = ["dog", "cat", "cow", "hen"]
    truth = [["dog", "cat", "cow"]] * 4 + [["hen"]] * 6
    rows = lambda said: [
        row(", ".join(p), ", ".join(t), labels=t) | {"id": i}
        for i, (p, t) in enumerate(zip(said, truth))
    ]
    one = rows([["dog", "cat", "cow"]] * 4 + [["dog"]] * 6)
    two = rows([["hen"]] * 4 + [["hen"]] * 6)
    context = Context(labels, {"clap": letters}, "{}")
    found = tasks.compared("dcase2017", one, two, context)["micro-F1"]
    values = [score("dcase2017", r, context)["micro-F1"]["value"] for r in (one, two)]
    assert found["difference"] == pytest.approx(values[1] - values[0]) and found["n"] == 10
    assert tasks.compared("events", one, two, context)["mAP"]["p"] <= 1
    assert "scoring.judge" in tasks.compared("airbench_sound", one, two, Context())["GPT4"]


def test_a_java_that_fails_costs_only_spice():
    class Broken:
        def per_item(self, preds, target):
            raise RuntimeError("Java ended with code 1")

    result = score(
        "audiocaps",
        [row("a dog", ["a dog barks"]), row("rain", ["it rains"])],
        Context(spice=Broken()),
    )
    assert (
        result["SPICE"]["why"] == "Java ended with code 1"
        and result["CIDEr-D"]["value"] is not None
    )


# --- the paired test ---


def test_paired_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a = rng.normal(0.5, 0.2, 200)
    b = a + rng.normal(0.02, 0.15, 200)
    result = tasks.paired_means(a, b)
    t = stats.ttest_rel(a, b)
    exact = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=1,
    )
    assert result["difference"] == pytest.approx(np.mean(a - b), abs=1e-15)
    assert 0.02 < exact.pvalue < 0.9  # a case where p means something
    assert result["p"] == pytest.approx(t.pvalue, abs=0.02) and result["p"] == pytest.approx(
        exact.pvalue, abs=0.02
    )
    assert np.allclose(result["ci95"], t.confidence_interval(), atol=0.003)
    boot = stats.bootstrap((a - b,), np.mean, method="percentile", rng=0)
    assert np.allclose(result["ci95"], boot.confidence_interval, atol=0.002)


def test_paired_on_right_and_wrong_is_the_sign_test():
    a, b = np.zeros(5000), np.zeros(5000)
    a[:40], b[40:64] = 1, 1  # a alone right 40 times, b alone 24 times
    result = tasks.paired_means(a, b, draws=100_000)
    assert result["difference"] == pytest.approx(16 / 5000)
    assert result["p"] == pytest.approx(stats.binomtest(40, 64).pvalue, abs=0.004)
    small = tasks.paired_means(
        [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0], draws=50_000
    )  # by hand: 2 of 2 ** 5 sign patterns are as far out
    assert small["p"] == pytest.approx(2 / 32, abs=0.005)


def test_paired_of_the_same_and_of_swapped_scores():
    rng = np.random.default_rng(3)
    for n in (1, 2, 7, 300):
        for scores in (rng.normal(size=(2, n)), rng.integers(0, 2, size=(2, n))):
            a, b = scores
            assert tasks.paired_means(a, a) == {"difference": 0, "ci95": [0, 0], "p": 1}
            ab, ba = tasks.paired_means(a, b), tasks.paired_means(b, a)
            assert ab["difference"] == -ba["difference"] and ab["p"] == ba["p"]
            assert np.allclose(ab["ci95"], np.negative(ba["ci95"])[::-1], atol=0.3 / n**0.5)
            assert (
                ab == tasks.paired_means(a, b)
                and 0 < ab["p"] <= 1
                and ab["ci95"][0] <= ab["ci95"][1]
            )
    assert tasks.paired_means([1.0] * 50, [0.0] * 50)["p"] == pytest.approx(1e-4, rel=0.01)


def test_false_alarms_are_as_many_as_p_says():
    rng = np.random.default_rng(0)
    p = [tasks.paired_means(*rng.normal(size=(2, 25)), draws=500, seed=i)["p"] for i in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    "a, b", [([], []), ([1], [1, 2]), ([[1]], [[1]]), ([1, float("nan")], [1, 2])]
)
def test_paired_refuses_what_cannot_be_paired(a, b):
    with pytest.raises(ValueError):
        tasks.paired_means(a, b)
