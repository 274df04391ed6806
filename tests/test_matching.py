import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score
from test_tasks import LABELS, headline, letters, row, score, values

from data import DataError
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


def test_map_is_scikit_learns():
    rng, labels = np.random.default_rng(0), ["dog", "bird", "rain", "church bell"]

    def some(labels, count):
        return ", ".join(sorted(rng.choice(labels, count, replace=False)))

    rows = [row(some(labels, 2), some(labels[:3], rng.integers(1, 3))) for _ in range(60)]
    classes = letters([f"sound of {label}" for label in labels])
    scores = torch.stack(
        [sum(classes @ letters([part])[0] for part in r["prediction"].split(", ")) for r in rows]
    )
    # Different predictions have scores far apart: another CPU's rounding makes or breaks no tie.
    apart = scores.sort(0).values.diff(dim=0)
    assert ((apart == 0) | (apart > 0.04)).all()
    truth = np.array([[label in r["answer"].split(", ") for label in labels] for r in rows])
    # no row is a church bell
    want = np.mean([average_precision_score(truth[:, c], scores[:, c]) for c in range(3)])
    context = Context(labels, {"clap": letters})
    result = score("events", rows, context)["mAP"]
    assert result["value"] == pytest.approx(want, abs=1e-5)
    assert result["ci95"][0] < want < result["ci95"][1]
    shifted = scores * 9 - 4  # outside [0, 1]: no sigmoid
    assert headline("events", rows, labels=labels, scores=shifted) == pytest.approx(want, abs=1e-5)


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
    nearest = [int((letters([r["prediction"]]) @ letters(labels).T).argmax()) for r in rows]
    assert result["ACC"] == pytest.approx(np.mean([true[i, c] for i, c in enumerate(nearest)]))


def test_zero_shot_scores_stand_in_for_similarities():
    labels = ["dog", "cat", "cow"]
    rows = [row("not read", "dog"), row("not read", "dog, cat")]
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.2, 0.3]])
    result = values("dcase2017", rows, labels=labels, scores=scores)
    assert result == {"ACC": 0.5, "micro-F1": pytest.approx(2 * 1 / (1 + 1 + 1 + 2))}
