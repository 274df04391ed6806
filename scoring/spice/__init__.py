"""SPICE and SPIDEr, through the official jar: no other implementation exists.

    captions ──► PTB tokens ──► rows of JSON ──► java SpiceScorer ──► a score per item, or the mean

    java.py     finds Java and the jars, and runs them
    cache.py    SPICE's cache of parses
    runs.py     groups of captions, and what to do about those that cannot be parsed

Java up to 14, and a later one with nashorn-core and its asm jars in lib/, has the JavaScript engine
that SPICE needs to write scores per item. Without one, the printed mean is read: 3 decimals.
`python -m shards.fetch spice` gets all of it.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from scoring.captions import CaptionMetric, checked, cider_d
from scoring.ptb import cached_tokens
from scoring.spice.cache import find_cache
from scoring.spice.java import JAR, PIECES, SpiceMissing, find_spice, heap
from scoring.spice.runs import Row, Settings, run_spice

__all__ = ["JAR", "PIECES", "Spice", "SpiceMissing", "Spider", "run_spice"]


class Scored(NamedTuple):
    """SPICE of n items."""

    mean: float
    scores: list[float] | None  # None without a JavaScript engine
    unparsed: dict[int, str]  # items that could not be parsed, which score 0, and why


def joined(text: str) -> str:
    """A caption as the field sends it: PTB tokens joined by one space."""
    return " ".join(cached_tokens(text))


class Spice(CaptionMetric):
    """SPICE of all captions given, float64 in 0..1: the mean F1 over the tuples of scene graphs.

    Anderson et al. 2016, on coco-caption's tokens. Predictions without a token score 0 unsent, and
    so do those of too many words to be parsed: `unparsed` tells which of the last ones, and why.

    home: the folder with the jar and lib/; default SPICE_HOME, else where shards.fetch puts them.
    memory: Java's -Xmx, by default a quarter of the machine's. timeout: seconds that bound all runs
    of one scoring; a thousand clips take minutes. cache: a folder for parses, in place of the
    user's; False: none. patience: seconds that one caption may take. Under torch.distributed one
    rank runs Java, where the metric is synchronised. Raises SpiceMissing when constructed, and
    RuntimeError as `run_spice`.
    """

    def __init__(
        self,
        home: str | None = None,
        memory: str | None = None,
        timeout: float | None = 2 * 3600,
        cache: str | Path | bool = True,
        patience: float = 300,
        **kwargs,
    ):
        super().__init__(**kwargs)
        java = find_spice(home)
        self.engine = java.engine
        self.settings = Settings(java, memory or heap(), find_cache(java, cache), timeout, patience)
        self.unparsed: dict[int, str] = {}

    def _score(self, preds, target) -> Scored:
        preds, target = checked(preds, target)
        rows = {
            i: Row(joined(pred), tuple(map(joined, target[i])))
            for i, pred in enumerate(preds)
            if cached_tokens(pred) and any(map(cached_tokens, target[i]))
        }
        if not rows:
            return Scored(0.0, [0.0] * len(preds), {})
        found = run_spice(self.settings, tuple(rows.values()))
        places = list(rows)
        unparsed = {places[i]: why for i, why in found.unparsed.items()}
        mean = found.mean * len(rows) / len(preds)
        if found.scores is None:
            return Scored(mean, None, unparsed)
        scores = dict(zip(places, found.scores))
        return Scored(mean, [scores.get(i, 0.0) for i in range(len(preds))], unparsed)

    def per_item(self, preds, target) -> Tensor | None:
        """(n,) float64; None without a JavaScript engine."""
        found = self._score(preds, target)
        self.unparsed = found.unparsed
        return None if found.scores is None else torch.tensor(found.scores, dtype=torch.float64)

    def compute(self) -> Tensor:
        captions = self.captions()

        def score() -> Scored:
            return self._score(*captions)

        found = on_one_rank(score, self.process_group) if self._is_synced else score()
        self.unparsed = found.unparsed
        return torch.tensor(found.mean, dtype=torch.float64)


class Spider(Spice):
    """SPIDEr = (CIDEr-D + SPICE) / 2 of all captions given, float64 in 0..5.5 (Liu et al. 2017)."""

    def per_item(self, preds, target) -> Tensor | None:
        scores = super().per_item(preds, target)
        return None if scores is None else (cider_d(preds, target) + scores) / 2

    def compute(self) -> Tensor:
        return (cider_d(*self.captions()).mean() + super().compute()) / 2


def on_one_rank(work: Callable[[], Scored], group=None) -> Scored:
    """work() of the group's first rank, in all of them. Its error is a RuntimeError in all of them.

    Without a group it is all ranks, and the others wait for days if need be: their own group's
    time-out would end them.
    """
    patient = group or dist.new_group(timeout=timedelta(days=7), backend="gloo")
    first, answer = dist.get_process_group_ranks(patient)[0], [None]
    if dist.get_rank() == first:
        try:
            answer = [work()]
        except Exception as error:  # or the others would wait for days
            answer = [str(error) or type(error).__name__]
    dist.broadcast_object_list(answer, first, group=patient)
    if group is None:
        dist.destroy_process_group(patient)
    if isinstance(answer[0], str):
        raise RuntimeError(answer[0])
    return answer[0]
