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


@pytest.mark.parametrize(("name", "theirs"), [("rho", stats.spearmanr), ("tau", stats.kendalltau)])
@given(values=COUNTS, random=st.randoms(), seed=st.integers(0, 99))
def test_rank_measures_are_scipys_of_the_repeated_items(name, theirs, values, random, seed):
    x = np.array(values) / 40
    y = np.array(random.sample(values, len(values))) / 40
    counts = np.vstack([np.ones(len(x)), resamples(len(x), 3, np.random.default_rng(seed))])
    for count, ours in zip(counts, MEASURES[name](x, y, counts), strict=True):
        rows = np.repeat(np.arange(len(x)), count.astype(int))
        if len(set(x[rows])) > 1 and len(set(y[rows])) > 1:
            assert ours == pytest.approx(theirs(x[rows], y[rows]).statistic, abs=1e-9)
        else:
            assert np.isnan(ours)


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
    half = 4.303 / 3**0.5
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - half, 2 + half), abs=1e-3)
    assert np.isnan(t_interval([1.0, 2.0])[1:]).all()


def test_intervals_of_draws_lie_about_the_estimate():
    draws = np.random.default_rng(0).normal(5, 1, 20000)
    assert around(0.0, draws) == pytest.approx([-1.96, 1.96], abs=0.05)
    assert interval(draws) == pytest.approx([3.04, 6.96], abs=0.05)
    assert np.isnan(interval(np.array([np.nan, np.nan, 1.0]))).all()


def test_claims_that_are_shown_together_share_their_level():
    assert simultaneous_level(1) == 0.95
    assert 1 - simultaneous_level(20) == pytest.approx(0.0025)
