"""Resampling: intervals, corrected p-values, and rank measures of whole sets of resamples.

Arrays in, arrays out. Intervals are 95 % percentile intervals of a seeded bootstrap (Efron and
Tibshirani 1993, chapter 13). A resample is a row of counts, how often each item was drawn, so
that every statistic of every resample comes from a few matrix products.

In the measures, ``x`` and ``y`` ``(n,)`` are the accuracies of the same n configurations on N_B and
on a stand-in (fractions), ``counts`` is ``(resamples, n)``, and the result has one value a
resample, NaN where it has none. A row of ones gives the measure of the sample itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import numpy as np

RESAMPLES = 2000
# for p-values: 2,000 resamples tell none under 0.001, and Holm's correction of 33 asks for 0.0015
FINE_RESAMPLES = 20000
TOP = 5  # configurations compared by the overlap of the best
Values = np.ndarray


@cache
def resamples(n: int, seed: int = 0, size: int = RESAMPLES) -> Values:
    """Return counts ``(size, n)``: how often each of n items is in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size).astype(float)


def interval(values: Values) -> Values:
    """Return ``(2, ...)``: the 2.5 % and 97.5 % percentiles over the first axis, the resamples.

    NaN where most resamples have no value.
    """
    values = np.asarray(values, dtype=float)
    known = np.isfinite(values).mean(axis=0) > 0.5
    bounds = np.nanpercentile(np.where(known, values, 0.0), [2.5, 97.5], axis=0)
    return np.where(known, bounds, np.nan)


def standard_error(values: Values, n: int) -> Values:
    """Return the standard error that the spread of ``values`` over the resamples gives.

    ``n`` is the number of items that were resampled: a bootstrap's spread is too small by
    ``sqrt((n - 1) / n)``, which is put right (Hesterberg 2015, section 3.2). NaN below two items
    and where most resamples have no value.
    """
    values = np.asarray(values, dtype=float)
    known = np.isfinite(values).mean(axis=0) > 0.5
    if n < 2:
        return np.full(values.shape[1:], np.nan)
    spread = np.nanstd(np.where(known, values, 0.0), axis=0) * np.sqrt(n / (n - 1))
    return np.where(known, spread, np.nan)


def mean_interval(values: Sequence[float] | Values) -> tuple[float, float, float]:
    """Return the mean of ``values`` and its interval; NaN bounds below two values."""
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return (float(sample.mean()) if len(sample) else np.nan), np.nan, np.nan
    low, high = interval(resamples(len(sample)) @ sample / len(sample))
    return float(sample.mean()), float(low), float(high)


def holm(p_values: Iterable[float]) -> Values:
    """Return the p-values adjusted for their number (Holm 1979); NaN stays and isn't counted."""
    p = np.asarray(list(p_values), dtype=float)
    adjusted = np.full(p.shape, np.nan)
    order = [i for i in np.argsort(p) if np.isfinite(p[i])]
    largest = 0.0
    for step, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - step) * p[index]))
        adjusted[index] = largest
    return adjusted


def rho(x: Values, y: Values, counts: Values) -> Values:
    """Spearman's rho of each resample: the correlation of mid-ranks."""
    a, b = (counts @ (v[:, None] < v) + 0.5 * (counts @ (v[:, None] == v)) for v in (x, y))
    a = a - (counts * a).sum(1, keepdims=True) / counts.sum(1, keepdims=True)
    b = b - (counts * b).sum(1, keepdims=True) / counts.sum(1, keepdims=True)
    return _ratio((counts * a * b).sum(1), (counts * a * a).sum(1), (counts * b * b).sum(1))


def tau(x: Values, y: Values, counts: Values) -> Values:
    """Kendall's tau-b of each resample: concordant less discordant pairs, ties taken out."""
    a, b = (np.sign(v[:, None] - v) for v in (x, y))
    both, one, other = (((counts @ m) * counts).sum(1) for m in (a * b, a * a, b * b))
    return _ratio(both, one, other)


def overlap(x: Values, y: Values, counts: Values, k: int = TOP) -> Values:
    """Share of N_B's k best configurations that are among the stand-in's k best."""
    k = min(k, len(x))
    best = [_best(v, counts, k) for v in (x, y)]
    return (best[0] & best[1]).sum(1) / best[0].sum(1)


def regret(x: Values, y: Values, counts: Values, k: int = 1) -> Values:
    """Accuracy points lost on N_B: its own best, less the best of the stand-in's k best."""
    found = np.where(_best(y, counts, k), x, -np.inf).max(1)
    return 100 * (np.where(counts > 0, x, -np.inf).max(1) - found)


def mean_of_best(values: Values, y: Values, counts: Values, k: int) -> Values:
    """Mean of ``values`` ``(n,)`` over the k best configurations of each resample, by ``y``."""
    best = _best(y, counts, k)
    return best @ values / best.sum(1)


MEASURES: dict[str, Callable[[Values, Values, Values], Values]] = {
    "rho": rho,
    "tau": tau,
    "overlap": overlap,
    "regret1": partial(regret, k=1),
    "regret3": partial(regret, k=3),
}


def _ratio(both: Values, one: Values, other: Values) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        value = both / np.sqrt(one * other)
    return np.where((one > 1e-9) & (other > 1e-9), value, np.nan)  # a constant has no rank


def _best(values: Values, counts: Values, k: int) -> Values:
    """Mark the k best of the distinct configurations of each resample; ties by position."""
    drawn = np.where(counts > 0, values, -np.inf)
    order = np.argsort(-drawn, axis=1, kind="stable")[:, :k]
    marked = np.zeros(counts.shape, dtype=bool)
    np.put_along_axis(marked, order, True, axis=1)
    return marked & (counts > 0)


def better_half(accuracy: Values) -> Values:
    """Mark the better half of the configurations (the larger one where n is odd)."""
    return _best(accuracy, np.ones((1, len(accuracy))), -(-len(accuracy) // 2))[0]
