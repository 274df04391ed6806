import numpy as np
import pytest
from scipy import stats

from scoring.statistics import Score, paired_means, share


def test_intervals_are_those_of_the_binomial():
    right = [True] * 60 + [False] * 40
    value, (lo, hi) = share(right).interval()
    assert (
        value == 0.6
        and lo == pytest.approx(0.6 - 1.96 * (0.24 / 100) ** 0.5, abs=0.02)
        and hi == pytest.approx(0.6 + 1.96 * (0.24 / 100) ** 0.5, abs=0.02)
    )
    assert share(right).interval() == share(right).interval()  # seeded
    assert share([1, 1], [0, 0]).interval() == (None, None)
    slow = Score(share(right).stats, lambda s: s[:, 0].sum() / s[:, 1].sum(), additive=False)
    assert slow.interval()[0] == 0.6 and slow.interval()[1] == pytest.approx([lo, hi], abs=0.04)


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
    assert result["difference"] == pytest.approx(np.mean(a - b), abs=1e-15)
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
