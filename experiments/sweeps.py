"""Santa's settings, swept over several runs: around the paper's values, and the best ones here.

    lambda, tau, L, K, M    of Figure S6 and Tables S9, S10, S14, S13

Two rounds. The first changes one setting at a time and leaves the others at the run's own values,
which are the paper's but for the memory's size. The best value of each setting, chosen on one half
of the clips, makes the best Santa. The second round changes one setting of that at a time. Whether
a best value is really better is tested on the other half of the clips.

Scores are kept beside each run, in sweep.NAME.ROUND.json.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disk import write_atomic
from experiments.ablate import changed, inference, vectors_of
from experiments.differences import Side, best_of, compare, halved
from experiments.runs import Run, by_clip
from santa import Santa
from scoring.evaluation import digest
from scoring.paper import CHOSEN

VALUES = {  # the paper's, and some beyond
    "lambda": [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0],
    "tau": [1 / 150, 1 / 80, 1 / 40, 1 / 20, 1 / 10, 1.0],
    "L": [1, 4, 8, 16, 32, 64],
    "K": [1, 10, 30, 60, 100, 150],
    "M": [500, 1000, 2000, 3500, 5172, 7000],
}
AROUND = ("the paper's values", "the best values here")  # of the two rounds


class Around(NamedTuple):
    """The Santa of a run that a round changes one setting of."""

    santa: Santa | None  # None: the run's own
    column: str = "santa"  # the name of its predictions


def both_rounds(runs: list[Run], names: list[str]) -> dict:
    """Both rounds. {"rounds": a list of {name: found}, "best": {name: value}, "whole": compare}.

    found: {"rows": {label: {benchmark: mean}}, "own", "reference", "best": labels, "tests":
    {label: against the reference, all clips}, "test": the best on the second half, or None}.
    whole: the best Santa against the runs' own, on the second half.
    """
    own = [Around(None) for _ in runs]
    first = {name: found_in(sides_of(runs, own, name, 0), name) for name in names}
    best = {name: found["best"] for name, found in first.items()}
    changes = {name: best[name] for name in names if best[name] != first[name]["own"]}
    if not changes:
        return {"rounds": [first], "best": best, "whole": None}
    around = [best_santa(run, changes) for run in runs]
    second, whole = {}, None
    for name in names:
        sides = sides_of(runs, around, name, 1)
        second[name] = found_in(sides, name, own=best[name])
        whole = whole or sides[best[name]]
    before = sides_of(runs, own, names[0], 0)[first[names[0]]["own"]]
    return {"rounds": [first, second], "best": best, "whole": against(whole, before, False)}


def best_santa(run: Run, changes: dict[str, str]) -> Around:
    """The run's Santa with other values: the memory first, then its clusters, then the rest."""
    santa = run.evaluation.model.santa
    if "M" in changes:
        texts, _ = vectors_of(memory_of(run))
        santa = changed(santa, "m", int(changes["M"]), texts)
    if "K" in changes:
        santa = changed(santa, "k", int(changes["K"]), santa.clean)
    fields = {"lambda": "lam", "tau": "tau", "L": "L"}
    for name in changes.keys() & fields.keys():
        santa = santa.but(**{fields[name]: value_of(name, changes[name])})
    return Around(santa, ",".join(f"{name}={value}" for name, value in changes.items()))


def value_of(name: str, label: str) -> float:
    """The value that a label stands for, unrounded."""
    return next((v for v in VALUES[name] if f"{v:g}" == label), float(label))


def memory_of(run: Run) -> str:
    """Shards of texts for memories that are larger than the run's own."""
    return str(run.world / "train")


def sides_of(runs: list[Run], around: list[Around], name: str, turn: int) -> dict[str, Side]:
    """{label: {benchmark: [{clip: score} of each run]}}, the own value first."""
    found = [rows_of(run, own, name, turn) for run, own in zip(runs, around)]
    labels = [label for label in found[0] if all(label in rows for rows in found)]
    benchmarks = list(found[0][labels[0]])
    return {label: {b: [rows[label][b] for rows in found] for b in benchmarks} for label in labels}


def rows_of(run: Run, around: Around, name: str, turn: int) -> dict[str, dict]:
    """{label: {benchmark: {clip: score}}} of one run, made now or read."""
    path: Path = run.folder / f"sweep.{name}.{turn + 1}.json"
    key = digest(run.key, around.column, VALUES[name])
    if path.exists() and (stored := json.loads(path.read_text()))["key"] == key:
        return stored["rows"]
    print(f"{run.name}: {name} around {AROUND[turn]}", flush=True)
    evaluation = run.claimed
    memory = memory_of(run) if name == "M" else None
    variants = inference(evaluation, name, VALUES[name], memory, around.santa, around.column)
    rows = {label: by_clip(evaluation, variant) for label, variant in variants.items()}
    write_atomic(path, json.dumps({"key": key, "rows": rows}).encode())
    return rows


def found_in(sides: dict[str, Side], name: str, own: str | None = None) -> dict:
    """A sweep's means and tests; own: the label of the value that the others are tested against.

    Without it that is the paper's value, or the run's own where the paper's is not among them.
    """
    first = next(iter(sides))
    paper = f"{CHOSEN[name]:g}"
    reference = own or (paper if paper in sides else first)
    best = best_of({label: on_half(side, True) for label, side in sides.items()})
    others = [label for label in sides if label != reference]
    return {
        "rows": {label: means(side) for label, side in sides.items()},
        "own": first,
        "reference": reference,
        "best": best,
        "tests": {label: against(sides[label], sides[reference]) for label in others},
        "test": against(sides[best], sides[reference], False) if best != reference else None,
    }


def against(a: Side, b: Side, half: bool | None = None) -> dict:
    return compare(on_half(a, half), on_half(b, half))


def on_half(side: Side, half: bool | None) -> Side:
    return {name: [halved(run, half) for run in runs] for name, runs in side.items()}


def means(side: Side) -> dict[str, float]:
    """{benchmark: the mean over runs and clips}."""
    return {
        name: float(np.mean([np.nanmean([*run.values()]) for run in runs]))
        for name, runs in side.items()
    }
