"""Differences between columns of several runs, clip by clip, with their spread over clips and runs.

A side of a comparison is {benchmark: [{clip: score} of each run]}. Clips are matched by name, runs
by place.
"""

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from disk import DataError
from scoring.statistics import paired_means

Side = dict[str, list[dict[str, float]]]


def in_first_half(clip: str) -> bool:
    """Whether a clip is in the half that a best value is chosen on, by its id.

    So all its questions are in one half, those of other benchmarks too.
    """
    return hashlib.sha256(json.loads(clip)[0].encode()).digest()[0] % 2 == 0


def shared_clips(sides: Iterable[dict[str, float]]) -> list[str]:
    """The clips that have a score on every side, in the first one's order."""
    first, *others = sides
    known = [
        clip for clip, score in first.items() if all(clip in other for other in (first, *others))
    ]
    scores = np.array([[side[clip] for clip in known] for side in (first, *others)], float)
    return [clip for clip, fine in zip(known, np.isfinite(scores).all(0)) if fine]


def pooled(a: list[dict], b: list[dict]) -> dict:
    """Is a above b? Each a list of runs, {clip: score}; run i of both is compared.

    Returns what `summary` does.
    """
    clips = shared_clips([*a, *b])
    if not clips:
        raise DataError("these runs have no clip in common")
    first, second = ([[run[clip] for clip in clips] for run in side] for side in (a, b))
    return summary(np.array(first, float), np.array(second, float))


def summary(a: np.ndarray, b: np.ndarray) -> dict:
    """The difference a - b of scores (runs, clips), with both spreads.

    {"difference", "ci95", "p"} over clips, of scores averaged over runs; {"each": a difference a
    run, "sd": None for one run, "same": runs with the sign of the mean}; "n" clips.
    """
    each = a.mean(1) - b.mean(1)
    test = paired_means(a.mean(0), b.mean(0))
    return test | {
        "each": each.tolist(),
        "sd": float(each.std(ddof=1)) if len(each) > 1 else None,
        "same": int((np.sign(each) == np.sign(test["difference"])).sum()),
        "n": a.shape[1],
    }


def together(a: dict[str, list[dict]], b: dict[str, list[dict]]) -> dict:
    """As `pooled` over several benchmarks, each with the same weight: the mean of its means."""
    clips = {name: shared_clips([*a[name], *b[name]]) for name in a}
    total = sum(map(len, clips.values()))
    sides = []
    for side in (a, b):
        blocks = []
        for name, known in clips.items():
            scores = np.array([[run[clip] for clip in known] for run in side[name]], float)
            blocks.append(scores * total / (len(clips) * len(known)))
        sides.append(np.concatenate(blocks, 1))
    return summary(*sides)


def halved(clips: dict[str, float], half: bool | None) -> dict[str, float]:
    if half is None:
        return clips
    return {clip: score for clip, score in clips.items() if in_first_half(clip) == half}


def compare(a: dict, b: dict) -> dict:
    """{"together": ..., and for each benchmark: as `pooled`}."""
    return {"together": together(a, b)} | {name: pooled(a[name], b[name]) for name in a}


def best_of(sides: dict[str, dict]) -> str:
    """The label whose mean score on the first half is highest, each benchmark counted once."""

    def mean_score(side):
        return np.mean([np.mean([np.nanmean([*run.values()]) for run in runs]) for runs in side])

    return max(sides, key=lambda label: mean_score(list(sides[label].values())))
