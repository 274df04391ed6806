import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score
from test_tasks import LABELS, letters, row, value

from data import DataError
from scoring.tasks import Context, score

MATCH = dict(labels=LABELS, encoders={"clap": letters})


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
