"""Scores, their bootstrap intervals and paired tests."""

from dataclasses import dataclass

import numpy as np
import torch

DRAWS, SLOW_DRAWS = 1000, 100  # bootstrap resamples; of metrics that are no function of a sum


@dataclass
class Score:
    """stats (n, k) float64, a row an item. Of their sum (k,), or of a resample's rows if not `additive`, `value` makes the score."""

    stats: torch.Tensor
    value: object = lambda s: s[..., 0] / s[..., 1]
    additive: bool = True

    def interval(self, seed=0):
        """(value, [lo, hi]): the 95 % bootstrap interval over items. value is None where nothing counts."""
        n, rng = len(self.stats), np.random.default_rng(seed)
        if self.additive:
            value = float(self.value(self.stats.sum(0)))
            draws = torch.cat(
                [
                    self.value(self.stats[rng.integers(n, size=(20, n))].sum(1))
                    for _ in range(DRAWS // 20)
                ]
            ).numpy()
        else:
            value = float(self.value(self.stats))
            draws = np.array(
                [float(self.value(self.stats[rng.integers(n, size=n)])) for _ in range(SLOW_DRAWS)]
            )
            draws += value - np.nanmean(
                draws
            )  # a resample repeats items, which average precision rewards: without that bias
        return (
            (None, None)
            if np.isnan(value)
            else (value, [float(q) for q in np.nanpercentile(draws, [2.5, 97.5])])
        )

    def items(self):
        """(n,) scores item by item, nan where an item does not count; None where the metric is no mean over items (mAP, BLEU, micro-F1)."""
        mean = (
            self.additive
            and self.stats.shape[1] == 2
            and bool(((self.stats[:, 1] == 0) | (self.stats[:, 1] == 1)).all())
        )
        return self.stats[:, 0] / self.stats[:, 1] if mean else None

    def of(self, stats):
        """The value of other statistics: rows (n, k)."""
        return float(self.value(stats.sum(0) if self.additive else stats))


def paired_means(a, b, draws=10_000, seed=0):
    """Is the mean of a above that of b? a, b (n,): scores of two sets of predictions, item by item on the same clips.

    Returns {"difference": mean(a - b), "ci95": its paired bootstrap interval, "p": two-sided, from random flips of the signs of a - b
    (under the null hypothesis either of the two could have been either)}; (1 + hits) / (1 + draws), so that p is never 0. Raises
    ValueError where there is nothing to pair.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(
            f"paired scores are two lists of one length, one score an item; here {a.shape} and {b.shape}"
        )
    if not np.isfinite(a - b).all():
        raise ValueError(
            f"{int((~np.isfinite(a - b)).sum())} of {len(a)} pairs have no score; leave them out on both sides"
        )
    difference, n, rng = a - b, len(a), np.random.default_rng(seed)
    # Items of the same difference are alike, so it is enough to draw how often each distinct value comes up (multinomial), or how many
    # of its items keep their sign (binomial). Right and wrong answers have 3 distinct values, however many clips there are.
    values, counts = np.unique(difference, return_counts=True)
    sizes, often = np.unique(np.abs(difference), return_counts=True)
    step = max(1, (1 << 21) // len(values))
    blocks = [min(step, draws - i) for i in range(0, draws, step)]
    # The flips first: they see only sizes, so that paired_means(b, a) draws the same and has the same p.
    flipped = np.concatenate(
        [(2 * rng.binomial(often, 0.5, (k, len(often))) - often) @ sizes for k in blocks]
    )
    means = np.concatenate([rng.multinomial(n, counts / n, k) @ values / n for k in blocks])
    observed = (
        abs(difference.sum()) - 1e-12 * np.abs(difference).sum()
    )  # sums in another order round differently
    return {
        "difference": float(difference.mean()),
        "ci95": np.quantile(means, [0.025, 0.975]).tolist(),
        "p": float((1 + (np.abs(flipped) >= observed).sum()) / (1 + draws)),
    }


def paired(a, b, seed=0):
    """Is Score a above Score b, of two predictions for the same items? As `paired_means` where both are means over items; else the same with
    the value of resampled, or swapped, statistics in place of the mean."""
    x, y = a.items(), b.items()
    if x is not None and y is not None:
        counts = ~(x.isnan() | y.isnan())
        return paired_means(x[counts].numpy(), y[counts].numpy(), seed=seed)
    n, rng = len(a.stats), np.random.default_rng(seed)
    draws = DRAWS if a.additive else SLOW_DRAWS
    difference, drawn, swapped = a.of(a.stats) - b.of(b.stats), [], []
    for _ in range(draws):
        i, swap = rng.integers(n, size=n), torch.from_numpy(rng.random((n, 1)) < 0.5)
        drawn.append(a.of(a.stats[i]) - b.of(b.stats[i]))
        swapped.append(
            a.of(torch.where(swap, b.stats, a.stats)) - b.of(torch.where(swap, a.stats, b.stats))
        )
    drawn = np.array(drawn) + difference - np.nanmean(drawn)
    return {
        "difference": difference,
        "ci95": [float(q) for q in np.nanpercentile(drawn, [2.5, 97.5])],
        "p": float((1 + (np.abs(swapped) >= abs(difference) - 1e-12).sum()) / (1 + draws)),
    }


def share(right, counts=None):
    """The share of right answers, of those that count; right may be a number of several answers to one question."""
    right = torch.tensor(right).double()
    counts = torch.ones_like(right) if counts is None else torch.tensor(counts).double()
    return Score(torch.stack([right * (counts > 0), counts], 1))
