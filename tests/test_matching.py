import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score
from test_tasks import LABELS, headline, letters, row, score, values

from disk import DataError
from scoring.matching import average_precision, parts, steps
from scoring.tasks import Context

MATCH = dict(labels=LABELS, encoders={"clap": letters})


def test_text_matching_finds_the_label_that_was_said():
    rows = [
        row(f"sound of {said}", label)
        for said, label in zip(LABELS, ["dog", "cat", "rain", "rain"])
    ]
    assert values("sound", rows, **MATCH) == {"ACC": 0.75}
    with pytest.raises(DataError, match="sound: .*'fox'"):
        headline("sound", [row("dog", "fox")], **MATCH)


def test_several_encoders_and_templates_score_the_same_predictions():
    def first_letter(texts):
        return F.normalize(torch.tensor([[float(t.startswith("c")), 1e-3] for t in texts]), dim=-1)

    rows = [row("cat", "cat"), row("car", "dog")]
    encoders = {"clap": letters, "first letter": first_letter}
    result = values("sound", rows, labels=LABELS, encoders=encoders, template="{}")
    assert result == {"ACC": 0.5, "ACC (first letter)": 0.5}


def some(rng, labels, count):
    """`count` labels, drawn and named in any order."""
    return ", ".join(rng.choice(labels, count, replace=False))


def test_map_is_scikit_learns():
    rng, labels = np.random.default_rng(0), ["dog", "bird", "rain", "church bell"]
    rows = [row(some(rng, labels, 2), some(rng, labels[:3], rng.integers(1, 3))) for _ in range(60)]
    classes = letters([f"sound of {label}" for label in labels])
    scores = torch.stack(
        [sum(steps(classes @ letters([part])[0]) for part in parts(r["prediction"])) for r in rows]
    )
    truth = np.array([[label in r["answer"].split(", ") for label in labels] for r in rows])
    # no row is a church bell
    want = np.mean([average_precision_score(truth[:, c], scores[:, c]) for c in range(3)])
    result = score("events", rows, Context(labels, {"clap": letters}))["mAP"]
    assert result["value"] == pytest.approx(want, abs=2**-32)
    assert result["ci95"][0] < want < result["ci95"][1]
    shifted = scores * 9 - 4  # outside [0, 1]: no sigmoid
    value = headline("events", rows, labels=labels, scores=shifted)
    assert value == pytest.approx(want, abs=2**-32)


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_average_precision_of_ties_is_scikit_learns(levels):
    rng = np.random.default_rng(levels)
    for n in (1, 2, 9, 80):
        scores, truth = rng.integers(-levels, levels, (n, 5)), rng.integers(0, 2, (n, 5))
        truth[:, 0], truth[0, 1] = 0, 1  # nobody has class 0, and somebody class 1
        seen = [c for c in range(5) if truth[:, c].any()]
        want = np.mean([average_precision_score(truth[:, c], scores[:, c]) for c in seen])
        found = average_precision(torch.from_numpy(np.hstack([scores, truth])).double())
        assert float(found) == pytest.approx(want, abs=2**-32)


@pytest.mark.parametrize("benchmark", ["events", "fsd50k", "dcase2017"])
def test_the_order_of_parts_and_rounding_change_no_score(benchmark):
    rng, labels = np.random.default_rng(0), ["dog", "god", "bird", "rain", "hen", "church bell"]
    said = [some(rng, labels, rng.integers(1, 5)) for _ in range(60)] + ["", ";, ,", "hen; hen"]
    truth = [some(rng, labels, rng.integers(1, 3)) for _ in said]

    def rounded(texts):  # as on another CPU
        rows = letters(texts)
        return rows * (1 + 1e-15 * torch.from_numpy(rng.normal(size=rows.shape)))

    def scores(said, encode):
        rows = [row(prediction, answer) for prediction, answer in zip(said, truth)]
        found = score(benchmark, rows, Context(labels, {"clap": encode}))
        found.pop("ACC", None)  # it matches the whole text, whose order is its own
        return found

    want = scores(said, letters)
    for _ in range(5):
        shuffled = [", ".join(rng.permutation(parts(prediction))) for prediction in said]
        assert scores(shuffled, letters) == scores(shuffled, rounded) == want


def test_noise_around_a_round_similarity_changes_no_step():
    around = torch.tensor(
        [1 - 1e-12, 1.0, 1 + 1e-12, -1 - 1e-12, 0.25 - 1e-13], dtype=torch.float64
    )
    assert steps(around).tolist() == [10_000, 10_000, 10_000, -10_000, 2500]


def test_the_first_of_equal_labels_is_the_nearest():
    """Anagrams are the same to `letters`."""
    rows = [row("dog", "dog"), row("dog", "god"), row("god", "god")]
    for labels in (["dog", "god", "cat"], ["cat", "god", "dog"]):
        result = values("sound", rows, labels=labels, encoders={"clap": letters})
        first = min(labels.index("dog"), labels.index("god"))
        assert result["ACC"] == pytest.approx(np.mean([r["answer"] == labels[first] for r in rows]))
    equal = steps(torch.full((7, 300), 1 / 3) + 1e-6 * torch.randn(7, 300))
    assert equal.argmax(1).tolist() == [0] * 7


def test_a_clip_with_several_labels():
    """DCASE2017: ACC counts a hit on any of them; micro-F1 is scikit-learn's. Labels may hold
    commas."""
    labels = ["air horn, truck horn", "dog", "cat"]
    rows = [
        row("dog", "air horn, truck horn, dog", labels=["Air horn, truck horn", "dog"]),
        row("dog, cat", "cat", labels=["cat"]),
        row("cat", "dog", labels=["dog"]),
    ]
    result = values("dcase2017", rows, labels=labels, encoders={"clap": letters}, template="{}")
    said = np.array([[0, 1, 0], [0, 1, 1], [0, 0, 1]])
    true = np.array([[1, 1, 0], [0, 0, 1], [0, 1, 0]])
    assert result["micro-F1"] == pytest.approx(f1_score(true, said, average="micro"))
    # "dog, cat" as a whole is as near to "dog" as to "cat": it counts as the first, and is wrong
    assert result["ACC"] == pytest.approx(1 / 3)


def test_zero_shot_scores_stand_in_for_similarities():
    labels = ["dog", "cat", "cow"]
    rows = [row("not read", "dog"), row("not read", "dog, cat")]
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.2, 0.3]])
    result = values("dcase2017", rows, labels=labels, scores=scores)
    assert result == {"ACC": 0.5, "micro-F1": pytest.approx(2 * 1 / (1 + 1 + 1 + 2))}
