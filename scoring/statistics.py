"""Kinds of scores, their bootstrap intervals, and paired tests between them.

    Mean(values)                     one value an item                    accuracy, ROUGE-L, CIDEr-D
    Ratio(statistics, function)      a function of summed statistics      BLEU, micro-F1
    WholeSet(statistics, function)   a function of all items at once      mAP
    Value(value)                     a number without items               the mean that SPICE prints
    Missing(why)                     no number, and the reason

Every kind has `value`, `summary()` and `per_item`. `paired` tests if one score is above another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def steady(x: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """x (float64) to the nearest multiple of 2^-32.

    The last digits of log, exp and long sums depend on the CPU; on this grid they are gone. Sums of
    its numbers are exact in any order, up to 2^21.
    """
    return (x * 2.0**32).round() / 2.0**32


class Score:
    """One metric of one set of predictions."""

    value: float | None = None
    why: str = "nothing here counts for it"  # the reason where `value` is None
    per_item: Tensor | None = None  # (n,) float64, of a mean; nan where an item does not count
    unparsed: tuple[str, ...] = ()  # ids of items that could not be scored, and count as 0

    def interval(self, seed: int = 0) -> list[float] | None:
        """The 95 % bootstrap interval over items, [low, high]; None where there are no items."""

    def summary(self) -> dict:
        """{"value": float or None, "ci95": [low, high] or None}, and "why" where value is None.

        And "unparsed", ids, where there are any.
        """
        if self.value is None:
            return {"value": None, "ci95": None, "why": self.why}
        found = {"value": self.value, "ci95": self.interval()}
        return found | {"unparsed": list(self.unparsed)} if self.unparsed else found


@dataclass
class Value(Score):
    value: float


@dataclass
class Missing(Score):
    why: str


class Sampled(Score):
    """A score of items that can be drawn again.

    statistics: (n, k) float64, a row an item. n: how many items count. Subclasses define `of`, the
    value of other items (m, k); `resampled`, values of items drawn with replacement; and `draws`,
    how many of these.
    """

    def __init__(self, statistics: Tensor, function: Callable[[Tensor], Tensor]):
        self.statistics, self.function, self.n = statistics, function, len(statistics)
        value = self.of(statistics)
        self.value = None if np.isnan(value) else value

    def interval(self, seed: int = 0) -> list[float]:
        draws = self.resampled(np.random.default_rng(seed))
        return np.nanpercentile(draws, [2.5, 97.5]).tolist()


class Ratio(Sampled):
    """A function (..., k) -> (...) of the items' summed statistics."""

    draws = 1000

    def of(self, rows):
        return float(self.function(rows.sum(0)))

    def resampled(self, rng):
        n = len(self.statistics)
        blocks = []
        for _ in range(self.draws // 20):
            sums = self.statistics[rng.integers(n, size=(20, n))].sum(1)
            blocks.append(self.function(sums))
        return torch.cat(blocks).numpy()


class WholeSet(Sampled):
    """A function (m, k) -> () of all items at once. Slow, so drawn less often."""

    draws = 100

    def of(self, rows):
        return float(self.function(rows))

    def resampled(self, rng):
        n = len(self.statistics)
        draws = np.array(
            [self.of(self.statistics[rng.integers(n, size=n)]) for _ in range(self.draws)]
        )
        # A resample repeats items, and average precision rewards that: take out the bias.
        return draws + (self.value - np.nanmean(draws))


def quotient(sums: Tensor) -> Tensor:
    """The first of two summed statistics (..., 2) over the second."""
    return sums[..., 0] / sums[..., 1]


class Mean(Ratio):
    """The mean of `values` (n,). Items that are nan, or false in `counts` (n,), do not count."""

    def __init__(self, values, counts=None):
        values = steady(torch.as_tensor(values).double())
        if counts is not None:
            values = values.where(torch.as_tensor(counts), torch.nan)
        counts = ~values.isnan()
        super().__init__(torch.stack([values.where(counts, 0), counts], 1), quotient)
        self.per_item, self.n = values, int(counts.sum())


def paired(a: Score, b: Score, seed: int = 0) -> dict | str:
    """Is a above b, two scores of one metric on the same items? As `paired_means`, or why not.

    Scores that are no means are resampled, and swapped, by their statistics.
    """
    for score in (b, a):
        if score.value is None:
            return score.why
    if not (isinstance(a, Sampled) and isinstance(b, Sampled)):
        return "no score item by item"
    if not isinstance(a, Mean):
        return paired_sets(a, b, seed)
    count = ~(a.per_item.isnan() | b.per_item.isnan())
    if not count.any():
        return "no item has both scores"
    return paired_means(a.per_item[count].numpy(), b.per_item[count].numpy(), seed=seed)


def paired_means(a, b, draws: int = 10_000, seed: int = 0) -> dict:
    """Is the mean of a above that of b? a, b (n,): two scores of the same n items.

    Returns {"difference": mean(a - b), "ci95": its paired bootstrap interval, "p"}. p is two-sided,
    from random flips of the signs of a - b: under the null hypothesis either of the two could have
    been either. It is (1 + hits) / (1 + draws), so never 0. Scores are `steady`, so that equal
    sums are equal. Raises ValueError where a and b differ in length, are empty, or are not finite.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(
            "paired scores are two lists of one length, one score an item; "
            f"here {a.shape} and {b.shape}"
        )
    difference = steady(a) - steady(b)
    if not np.isfinite(difference).all():
        lacking = int((~np.isfinite(difference)).sum())
        raise ValueError(f"{lacking} of {len(a)} pairs have no score; leave them out on both sides")
    # Items of the same difference are alike. So it is enough to draw how often each distinct value
    # comes up (multinomial), or how many of its items keep their sign (binomial). Right and wrong
    # answers have 3 distinct values, however many clips there are.
    n, rng = len(a), np.random.default_rng(seed)
    values, counts = np.unique(difference, return_counts=True)
    sizes, often = np.unique(np.abs(difference), return_counts=True)
    step = max(1, (1 << 21) // len(values))
    blocks = [min(step, draws - start) for start in range(0, draws, step)]
    # The flips come first and see only sizes: paired_means(b, a) draws the same, so p is the same.
    sums = np.concatenate(
        [(2 * rng.binomial(often, 0.5, (block, len(often))) - often) @ sizes for block in blocks]
    )
    means = [rng.multinomial(n, counts / n, block) @ values / n for block in blocks]
    return {
        "difference": float(difference.mean()),
        "ci95": np.quantile(np.concatenate(means), [0.025, 0.975]).tolist(),
        "p": float((1 + (np.abs(sums) >= abs(difference.sum())).sum()) / (1 + draws)),
    }


def paired_sets(a: Sampled, b: Sampled, seed: int) -> dict:
    """As `paired_means`, with the value of resampled or swapped statistics in place of the mean."""
    n, rng = len(a.statistics), np.random.default_rng(seed)
    difference, drawn, swapped = a.value - b.value, [], []
    for _ in range(a.draws):
        items = rng.integers(n, size=n)
        swap = torch.from_numpy(rng.random((n, 1)) < 0.5)
        drawn.append(a.of(a.statistics[items]) - b.of(b.statistics[items]))
        first = torch.where(swap, b.statistics, a.statistics)
        second = torch.where(swap, a.statistics, b.statistics)
        swapped.append(a.of(first) - b.of(second))
    drawn = np.array(drawn) + difference - np.nanmean(drawn)
    hits = (np.abs(swapped) >= abs(difference) - 1e-12).sum()
    return {
        "difference": difference,
        "ci95": np.nanpercentile(drawn, [2.5, 97.5]).tolist(),
        "p": float((1 + hits) / (1 + a.draws)),
    }
