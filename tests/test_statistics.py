import numpy as np
import pytest
import torch
from scipy import stats

from scoring.statistics import (
    Mean,
    Missing,
    Ratio,
    Value,
    WholeSet,
    paired,
    paired_means,
    steady,
)


def test_intervals_are_those_of_the_binomial():
    score = Mean([True] * 60 + [False] * 40)
    low, high = score.interval()
    deviation = (0.24 / 100) ** 0.5
    assert score.value == 0.6
    assert low == pytest.approx(0.6 - 1.96 * deviation, abs=0.02)
    assert high == pytest.approx(0.6 + 1.96 * deviation, abs=0.02)
    assert score.interval() == [low, high]  # seeded
    slow = WholeSet(score.statistics, lambda rows: rows[:, 0].sum() / rows[:, 1].sum())
    assert slow.value == 0.6 and slow.interval() == pytest.approx([low, high], abs=0.04)


def test_every_kind_has_its_summary():
    assert Value(0.25).summary() == {"value": 0.25, "ci95": None}
    assert Missing("no Java").summary() == {"value": None, "ci95": None, "why": "no Java"}
    nothing = Mean([1, 1], [False, False]).summary()
    assert nothing == {"value": None, "ci95": None, "why": "nothing here counts for it"}
    mean = Mean([1.0, 0.0, float("nan"), 1.0], [True, True, True, False])
    assert mean.value == 0.5 and mean.n == 2 and mean.summary()["ci95"] == [0, 1]
    assert mean.per_item.isnan().tolist() == [False, False, True, True]
    same = Ratio(mean.statistics, mean.function)
    assert same.summary() == mean.summary() and same.per_item is None


def test_steady_numbers_have_one_sum_in_any_order():
    rng = np.random.default_rng(0)
    x = 10 * rng.random(5000)
    near = steady(x)
    assert np.abs(near - x).max() <= 2**-33 and np.array_equal(steady(near), near)
    sums = {float(sum(rng.permutation(near))) for _ in range(5)} | {float(near.sum())}
    assert len(sums) == 1
    noisy = x * (1 + 1e-15 * rng.normal(size=len(x)))
    assert Mean(x).summary() == Mean(noisy).summary() and np.isnan(steady(np.array([np.nan])))


def test_paired_is_a_permutation_test_or_says_why_not():
    rng = np.random.default_rng(0)
    a, b = (Mean(rng.random(80) < p) for p in (0.7, 0.5))
    test = paired(a, b)
    x, y = (score.per_item.numpy() for score in (a, b))
    want = stats.permutation_test(
        (x, y), lambda u, v: np.mean(u - v), permutation_type="samples", n_resamples=4000, rng=0
    ).pvalue
    assert test["difference"] == pytest.approx(x.mean() - y.mean())
    assert test["p"] == pytest.approx(want, abs=0.04)
    assert test["ci95"][0] < test["difference"] < test["ci95"][1] and paired(a, a)["p"] == 1
    assert paired(Value(0.5), Value(0.25)) == "no score item by item"
    assert paired(Missing("a"), b) == "a" and paired(Missing("a"), Missing("b")) == "b"
    assert paired(Mean([1, 1], [False, False]), Mean([1, 1])) == "nothing here counts for it"
    assert paired(Mean([1, 1], [False, True]), Mean([1, 1], [True, False])) == (
        "no item has both scores"
    )


@pytest.mark.slow
def test_paired_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a = rng.normal(0.5, 0.2, 200)
    b = a + rng.normal(0.02, 0.15, 200)
    result = paired_means(a, b)
    t = stats.ttest_rel(a, b)
    exact = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=1,
    )
    assert result["difference"] == pytest.approx(np.mean(a - b), abs=2**-32)
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
    result = paired_means(a, b, draws=100_000)
    assert result["difference"] == pytest.approx(16 / 5000)
    assert result["p"] == pytest.approx(stats.binomtest(40, 64).pvalue, abs=0.004)
    small = paired_means(
        [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0], draws=50_000
    )  # by hand: 2 of 2 ** 5 sign patterns are as far out
    assert small["p"] == pytest.approx(2 / 32, abs=0.005)


@pytest.mark.slow
def test_paired_of_the_same_and_of_swapped_scores():
    rng = np.random.default_rng(3)
    for n in (1, 2, 7, 300):
        for scores in (rng.normal(size=(2, n)), rng.integers(0, 2, size=(2, n))):
            a, b = scores
            assert paired_means(a, a) == {"difference": 0, "ci95": [0, 0], "p": 1}
            ab, ba = paired_means(a, b), paired_means(b, a)
            assert ab["difference"] == -ba["difference"] and ab["p"] == ba["p"]
            assert np.allclose(ab["ci95"], np.negative(ba["ci95"])[::-1], atol=0.3 / n**0.5)
            assert ab == paired_means(a, b) and 0 < ab["p"] <= 1 and ab["ci95"][0] <= ab["ci95"][1]
    assert paired_means([1.0] * 50, [0.0] * 50)["p"] == pytest.approx(1e-4, rel=0.01)


@pytest.mark.slow
def test_false_alarms_are_as_many_as_p_says():
    rng = np.random.default_rng(0)
    p = [paired_means(*rng.normal(size=(2, 25)), draws=500, seed=i)["p"] for i in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    "a, b", [([], []), ([1], [1, 2]), ([[1]], [[1]]), ([1, float("nan")], [1, 2])]
)
def test_paired_refuses_what_cannot_be_paired(a, b):
    with pytest.raises(ValueError):
        paired_means(a, b)


def test_a_resample_that_repeats_items_moves_no_interval():
    """The largest of eight: without the correction every draw lies at or below it."""
    score = WholeSet(torch.arange(8.0).double()[:, None], lambda rows: rows.max())
    draws = score.resampled(np.random.default_rng(0))
    assert score.value == 7 and abs(draws.mean() - 7) < 1e-9 and draws.min() < 7 < draws.max()
