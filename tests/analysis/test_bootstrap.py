import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from proxyhpo.analysis.bootstrap import (
    MEASURES,
    around,
    better_half,
    interval,
    resamples,
    simultaneous_level,
    t_interval,
)

COUNTS = st.lists(st.integers(0, 40), min_size=4, max_size=30)


@given(COUNTS, st.randoms())
def test_rank_measures_are_scipys(values, random):
    x = np.array(values) / 40
    y = np.array(random.sample(values, len(values))) / 40
    ones = np.ones((1, len(x)))
    for name, theirs in (("rho", stats.spearmanr), ("tau", stats.kendalltau)):
        ours = MEASURES[name](x, y, ones)[0]
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert ours == pytest.approx(theirs(x, y).statistic, abs=1e-9)
        else:
            assert np.isnan(ours)


def test_resampled_measures_are_those_of_the_repeated_items():
    rng = np.random.default_rng(0)
    x, y = rng.random(9), rng.random(9)
    counts = resamples(9, 20, rng)
    for name in ("rho", "tau"):
        for count, ours in zip(counts, MEASURES[name](x, y, counts), strict=True):
            rows = np.repeat(np.arange(9), count.astype(int))
            theirs = {"rho": stats.spearmanr, "tau": stats.kendalltau}[name]
            assert ours == pytest.approx(theirs(x[rows], y[rows]).statistic)


def test_regret_and_overlap_by_hand():
    base = np.array([0.5, 0.6, 0.4, 0.55])
    proxy = np.array([0.9, 0.1, 0.2, 0.8])
    ones = np.ones((1, 4))
    assert MEASURES["regret1"](base, proxy, ones) == pytest.approx([10.0])
    assert MEASURES["regret3"](base, proxy, ones) == pytest.approx([5.0])
    without = np.array([[1.0, 0.0, 1.0, 1.0]])  # the best of N_B isn't in this resample
    assert MEASURES["regret1"](base, proxy, without) == pytest.approx([5.0])
    assert better_half(base).tolist() == [False, True, False, True]


def test_few_values_get_students_t():
    mean, low, high = t_interval(np.array([1.0, 2.0, 3.0]))
    assert (mean, low, high) == pytest.approx(
        (2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3
    )
    assert np.isnan(t_interval(np.array([1.0, 2.0]))[1:]).all()


def test_intervals_of_draws_lie_about_the_estimate():
    draws = np.random.default_rng(0).normal(5, 1, 20000)
    assert around(0.0, draws) == pytest.approx([-1.96, 1.96], abs=0.05)
    assert interval(draws) == pytest.approx([3.04, 6.96], abs=0.05)
    assert np.isnan(interval(np.array([np.nan, np.nan, 1.0]))).all()


def test_claims_that_are_shown_together_share_their_level():
    assert simultaneous_level(1) == 0.95
    assert 1 - simultaneous_level(20) == pytest.approx(0.0025)
