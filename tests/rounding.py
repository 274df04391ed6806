"""python tests/rounding.py CLAP: scores of hard predictions, as JSON.

test_tasks.py starts it under settings that stand in for other CPUs. The predictions are hard for
scores that rounding can move: the same labels in another order or twice, two labels at once, none.
"""

import json
import sys

import numpy as np
import torch

from clap import load_clap
from scoring.encoders import text_encoder
from scoring.tasks import BENCHMARKS, Context, chance, compared, measure, summaries
from shards.tiny.scenes import labels

CAPTION = "a dog barks and rain falls while bells ring near the old river in the distance"
ODD = ["", " ", ";, ,", "dog; dog, dog", "thunder and a car", "a sound of nothing in the list"]
TINY = ["sound", "music", "events", "caption", "music_caption", "yesno", "open", "mcq"]
OTHERS = ["fsd50k", "dcase2017", "mmau_mini", "clothoaqa", "audiocaps", "musiccaps"]
JUDGED = "airbench_sound"
N = 60


def some(rng, names, most):
    """1 to `most` of the names in any order, some of them twice."""
    return [str(name) for name in rng.choice(names, rng.integers(1, most + 1))]


def told(rng):
    return " ".join(some(rng, CAPTION.split(), 12))


def question(name, names, rng):
    """A row without a prediction."""
    row = {"instruction": "?", "category": str(rng.choice(["sound", "music"]))}
    if "caption" in name or name in ("audiocaps", "musiccaps"):
        return row | {"answer": [told(rng) for _ in range(5)]}
    if name == "clothoaqa":
        return row | {"answer": [*some(rng, ["yes", "no", "three"], 1)] * 2 + ["yes"]}
    if name == "yesno":
        return row | {"answer": some(rng, ["yes", "no"], 1)[0]}
    several = 3 if name in ("events", "fsd50k", "dcase2017") else 1
    answer = some(rng, names, several)
    return row | {"answer": ", ".join(answer), "choices": [*answer, *some(rng, names, 3)]}


def prediction(row, names, rng):
    """An odd one, or parts of the answer among other names, in any order."""
    if rng.random() < 0.3:  # the same labels again, in another order
        return ", ".join(rng.permutation(names[:5]))
    if rng.random() < 0.2:
        return str(rng.choice(ODD))
    answer = row["answer"]
    if isinstance(answer, list):
        return str(rng.choice(answer))[: rng.integers(40)] + told(rng) * int(rng.integers(2))
    said = answer.split(", ") * int(rng.integers(2)) + some(rng, names, 2)
    return str(rng.choice([", ", "; ", ","])).join(rng.permutation(said))


def scores(name, encoder):
    names = labels("music" if name == "music" else "sound")
    rng = np.random.default_rng(0)
    asked = [question(name, names, rng) | {"id": i} for i in range(N)]
    one, two = ([row | {"prediction": prediction(row, names, rng)} for row in asked] for _ in "ab")
    verdicts = {(i, "?"): 1 + i % 19 / 2 for i in range(N - 5)}
    context = Context(names, {"clap": encoder}, "{}", verdicts=verdicts)
    first, second = (measure(name, rows, context) for rows in (one, two))
    found = [summaries(first), summaries(second), compared(first, second)]
    found.append(chance(name, one, context))
    if BENCHMARKS[name].classes:  # zero-shot, from audio vectors as they are stored; clips repeat
        audio = torch.from_numpy(rng.normal(size=(N // 3, 16)) / 4).float().repeat(3, 1)
        context = Context(names, scores=audio.double() @ encoder(names).double().T)
        found.append(summaries(measure(name, one, context)))
    return found


if __name__ == "__main__":
    encoder = text_encoder("clap", lambda: load_clap(sys.argv[1]))
    print(json.dumps({name: scores(name, encoder) for name in [*TINY, *OTHERS, JUDGED]}))
