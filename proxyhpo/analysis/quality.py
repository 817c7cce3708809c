"""What a way of tuning finds, and by when: regret on truth against cost.

Ways (:mod:`proxyhpo.analysis.ways`) are raced on recorded tables, and judged by truth: test
accuracy of N_B, trained on weight seeds that nothing was chosen with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
from scipy import stats

from proxyhpo.analysis.bootstrap import LEVEL, t_interval
from proxyhpo.analysis.ways import DESIGNED_ON, StudyWay, Way
from proxyhpo.config import InputError
from proxyhpo.hpo.curves import Table

BUDGETS = (
    *(0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 4.5, 6.0, 7.5, 9.0, 12.0, 15.0, 18.0),
    math.inf,
)
"""In full trainings of N_B; the last is a search that runs to its end."""
DRAWS, SEEDS = 20, 20
GP_LESS = 4
"""How many times less often searches by GP are replayed on redrawn tables."""
HALF_POINT = 0.5
"""Points of test accuracy that a search may lose and count as good enough."""
COLUMNS = ["way", "draw", "budget", "regret", "table"]
"""Of recorded races."""
SHARES = {"quarter": 0.25, "half": 0.5, "full": 1.0}
"""Of the time of a full search on N_B, after which ways are compared."""
OVERRUN = 0.01
"""Share by which a budget may be overrun: a sampler's milliseconds mustn't cost a training."""
SPLITS = 200


@lru_cache(maxsize=32)
def regrets(table: Table) -> np.ndarray:
    """Return the accuracy points that each configuration loses on truth, ``(C,)``.

    Against the best configuration known, which is chosen on one half of the weight seeds and
    judged on the other, as all others are, or the maximum would be biased upwards; the mean over
    random halves. The choice of half the seeds may miss the best one, so the reference is too low
    rather than too high; differences between two ways don't depend on it. A configuration of one
    truth seed is judged by that.

    Raises:
        InputError: the table's truth isn't recorded.
    """
    known = table.truth
    n = np.isfinite(known).sum(1)
    several = np.flatnonzero(n > 3)
    if not len(several) or (n == 0).any():
        raise InputError(f"table {table.name}: its truth isn't recorded yet")
    rng = np.random.default_rng(0)
    lost, judged = np.zeros(len(known)), np.nanmean(known, axis=1)
    tested = known[several, : n[several].min()]
    for _ in range(SPLITS):
        order = rng.permutation(tested.shape[1])
        half = len(order) // 2
        chosen = tested[:, order[:half]].mean(1)
        judged[several] = tested[:, order[half:]].mean(1)
        lost += judged[several[np.argmax(chosen)]] - judged
    return 100 * lost / SPLITS


def race(
    table: Table,
    ways: Mapping[str, Way],
    *,
    draws: int = DRAWS,
    seeds: int = SEEDS,
    each: Callable[..., Iterable[dict[str, list[dict]]]] = map,
) -> pd.DataFrame:
    """Return what each way has lost by each budget, on the recorded table and on repetitions of it.

    One line a way, draw and one of :data:`BUDGETS`: ``regret`` (accuracy points on truth) averaged
    over ``seeds`` studies, whose seeds no other table shares. Draw 0 is the table as it was
    recorded, with three times as many studies, the others are redrawn from it
    (:meth:`~proxyhpo.hpo.curves.Table.redrawn`), truth too, the same for every way. NaN where a way
    has no answer by then. ``each`` is ``map``, or the ``map`` of an executor, whose processes then
    replay ways side by side.
    """
    groups: dict[object, dict[str, Way]] = {}
    for name, way in ways.items():
        study = way.studied(table) if isinstance(way, StudyWay) else name
        groups.setdefault(study, {})[name] = way
    one = partial(_raced_ways, table, draws=draws, seeds=seeds)
    found = {name: own for lines in each(one, groups.values()) for name, own in lines.items()}
    return pd.DataFrame([line for name in ways for line in found[name]]).assign(table=table.name)


def _raced_ways(
    table: Table, ways: Mapping[str, Way], *, draws: int, seeds: int
) -> dict[str, list[dict]]:
    """Return the lines of ways that share their studies, by way."""
    slow = any(isinstance(way, StudyWay) and way.sampler == "gp" for way in ways.values())
    fewer = max(1, seeds // GP_LESS) if slow else seeds  # GP's trials take tens of times as long
    # samplers' luck mustn't be that of all tables, or pooling them couldn't see it
    own_seeds = 100_000 * (crc32(table.name.encode()) % 10_000)
    rng = np.random.default_rng(0)
    lines: dict[str, list[dict]] = {name: [] for name in ways}
    for draw in range(draws + 1):
        one = table.redrawn(rng) if draw else table
        lost = regrets(one)
        regret = {name: np.zeros(len(BUDGETS)) for name in ways}
        count = fewer if draw else 3 * seeds
        for seed in range(own_seeds + 1000 * draw, own_seeds + 1000 * draw + count):
            for name, way in ways.items():
                steps = list(way(one, seed))
                regret[name] += [_by(steps, budget, lost) for budget in BUDGETS]
        for name, total in regret.items():
            lines[name] += [
                {"way": name, "draw": draw, "budget": budget, "regret": round(mean, 4)}
                for budget, mean in zip(BUDGETS, total / count, strict=True)
            ]
    return lines


def _by(steps: list[tuple[float, int]], budget: float, lost: np.ndarray) -> float:
    """Return the regret of what a way answers by ``budget``, which it may overrun a little."""
    answers = [place for cost, place in steps if cost <= (1 + OVERRUN) * budget]
    return float(lost[answers[-1]]) if answers else np.nan


def race_summary(replays: pd.DataFrame, searches: Mapping[str, int]) -> pd.DataFrame:
    """Return one line a way and table: how soon it is good enough, and what it has lost by when.

    Args:
        replays: what :func:`race` recorded.
        searches: trainings of a full search on N_B, by table.

    Returns:
        ``cost_to_half_point``, trainings of N_B until no more than half a point is lost (infinite
        where that never happens); ``regret_quarter``, ``_half`` and ``_full``, the points lost at
        these shares of a full search; each with ``_low`` and ``_high`` over redrawn tables.
    """
    if replays.empty:
        return replays
    wide = _by_draw(replays)
    first = _good_from(wide)
    tables, ways = (first.index.get_level_values(level) for level in ("table", "way"))
    redrawn = first.drop(columns=0)
    spread = redrawn.quantile([0.025, 0.975], axis=1, interpolation="nearest").to_numpy()
    parts = tables.str.partition("-")
    columns = {"way": ways, "dataset": parts.get_level_values(0)}
    columns |= {"network": parts.get_level_values(2)}
    columns |= _ends("cost_to_half_point", (first[0].to_numpy(), *spread))
    for part, share in SHARES.items():
        at = pd.MultiIndex.from_arrays([tables, ways, share * tables.map(searches)])
        columns |= _ends(f"regret_{part}", _with_interval(wide.reindex(at)))
    return pd.DataFrame(columns).assign(replays=wide.shape[1])


def _by_draw(replays: pd.DataFrame) -> pd.DataFrame:
    """Return what was lost, a line a table, way and budget, with a column for each draw."""
    typed = replays.astype({"budget": float, "regret": float})  # of none, pandas can't know
    lost = typed.set_index(["table", "way", "budget", "draw"])["regret"]
    wide = lost.unstack()  # noqa: PD010, pivots lose NaN
    order = lost.index.droplevel("draw").drop_duplicates()  # sort=False mixes values in pandas 2
    return wide.reindex(order, columns=sorted({0, *wide.columns}))


def _ends(key: str, values: Iterable[Any]) -> dict[str, Any]:
    """Return an estimate with its interval: ``key``, ``{key}_low`` and ``{key}_high``."""
    return dict(zip((key, f"{key}_low", f"{key}_high"), values, strict=True))


def _good_from(wide: pd.DataFrame) -> pd.DataFrame:
    """Return the first budget at which no more than half a point is lost, by way and draw."""
    budgets = wide.index.get_level_values("budget").to_numpy()[:, None]
    good = (wide <= HALF_POINT).to_numpy() & np.isfinite(budgets)
    soon = pd.DataFrame(np.where(good, budgets, math.inf), wide.index, wide.columns)
    return soon.groupby(level=["table", "way"], sort=False).min()


def sooner(replays: pd.DataFrame, way: str, searches: Mapping[str, int]) -> pd.DataFrame:
    """Return how many times sooner ``way`` is within half a point than the best of its rivals.

    One line a table: the ``rival`` is the way of another method that is first on the recorded
    table; ``ratio`` of their costs with ``low`` and ``high`` over redrawn tables. A way that never
    comes so close counts as having taken a whole search on N_B, the ratio then as a bound. A last
    line has the geometric mean, with Student's t over tables, of those that weren't designed on, if
    there are three.
    """
    lines = []
    for name, own in _good_from(_by_draw(replays)).groupby(level="table", sort=False):
        cost = np.minimum(own.droplevel("table"), searches[str(name)])
        if not (rivals := _rivals(cost[0], way)).empty:
            ratio = np.log(cost.loc[rival := rivals.idxmin()] / cost.loc[way])
            lines.append((name, rival, *np.exp(_with_interval(ratio))))
    judged = [math.log(ratio) for name, _, ratio, *_ in lines if _judges(str(name))]
    if len(judged) > 2:
        lines.append(("", "", *np.exp(t_interval(np.array(judged)))))
    return pd.DataFrame(lines, columns=["table", "rival", "ratio", "low", "high"])


def _rivals(values: pd.Series, way: str) -> pd.Series:
    """Return the values of ways of another method than ``way``; none where that has no value."""
    others = values[[_method(one) != _method(way) for one in values.index]]
    return others.dropna() if way in values.index else others[:0]


def _method(way: str) -> str:
    """Return a way's name without its trials and verifications, which make no rival of it."""
    return way.partition(",")[0]


def _judges(table: str) -> bool:
    return table.partition("-")[0] != DESIGNED_ON


def _tables(summary: pd.DataFrame) -> pd.Series:
    return summary["dataset"] + "-" + summary["network"]


def overall(summary: pd.DataFrame, searches: Mapping[str, int]) -> pd.DataFrame:
    """Return how each way does over all tables of which nothing was chosen, the best first.

    Args:
        summary: what :func:`race_summary` returned. Ways that some of these tables lack are left
            out.
        searches: trainings of a full search on N_B, by table.

    Returns:
        One line a way: ``time``, the geometric mean of the time to half a point as a share of a
        full search, which counts for a way that never comes so close; means of
        ``regret_quarter``, ``_half`` and ``_full``, by whose average the lines are ordered, NaN
        for a way without an answer by then; each with ``_low`` and ``_high``, Student's t over the
        ``tables``.
    """
    names = _tables(summary)
    whole = names.map(searches)
    own = summary.assign(time=np.log(np.minimum(summary["cost_to_half_point"], whole) / whole))
    own = own[names.map(_judges)]
    sizes = own.groupby("way")["way"].transform("size")
    lost, lines = [f"regret_{part}" for part in SHARES], []
    for way, on in own[sizes == sizes.max()].groupby("way", sort=False):
        line: dict[str, object] = {"way": way, "tables": len(on)}
        for key in ("time", *lost):
            ends = np.array(t_interval(on[key].to_numpy(float)))
            line |= _ends(key, np.exp(ends) if key == "time" else ends)
        lines.append(line)
    frame = pd.DataFrame(lines, columns=["way", *lost] if not lines else None)
    average = frame[lost].mean(axis=1, skipna=False).to_numpy()
    return frame.iloc[np.argsort(average, kind="stable")].reset_index(drop=True)  # NaN last


def ahead(summary: pd.DataFrame, ways: Sequence[str]) -> pd.DataFrame:
    """Return how many points less the first of ``ways`` has lost than each of the others.

    By what :func:`overall` orders its lines by, the average of what is lost at :data:`SHARES` of
    a full search's time, on the tables of :func:`race_summary` that nothing was chosen on: one
    line a rival ``way``, ``points`` with ``low`` and ``high``, Student's t over these tables.
    """
    average = summary[[f"regret_{part}" for part in SHARES]].mean(axis=1, skipna=False)
    lines = summary[["way"]].assign(table=_tables(summary), average=average)
    wide = lines[lines["table"].map(_judges)].pivot_table("average", "table", "way")
    apart = [(way, *t_interval((wide[way] - wide[ways[0]]).to_numpy())) for way in ways[1:]]
    return pd.DataFrame(apart, columns=["way", "points", "low", "high"])


def behind(replays: pd.DataFrame, way: str, searches: Mapping[str, int]) -> pd.DataFrame:
    """Return how many points more than the best of its rivals ``way`` has lost in the same time.

    One line a table and share of a full search on N_B; the ``rival`` is the way that has lost least
    by then on the recorded table, which flatters it. ``points`` with ``low`` and ``high`` over
    redrawn tables.
    """
    lines = []
    for name, own in _by_draw(replays).groupby(level="table", sort=False):
        for share in SHARES.values():
            lost = own.xs((name, share * searches[str(name)]), level=("table", "budget"))
            if not (rivals := _rivals(lost[0], way)).empty:
                apart = lost.loc[way] - lost.loc[rival := rivals.idxmin()]
                lines.append((name, share, rival, *_with_interval(apart)))
    return pd.DataFrame(lines, columns=["table", "share", "rival", "points", "low", "high"])


def raced(replays: pd.DataFrame) -> pd.DataFrame:
    """Return each way's regret by budget, with ``low`` and ``high``."""
    wide = _by_draw(replays)
    ends = dict(zip(("regret", "low", "high"), _with_interval(wide), strict=True))
    return pd.DataFrame(ends, wide.index).reset_index()


def against(
    replays: pd.DataFrame, way: str, rival: str, budget: float, level: float = LEVEL
) -> np.ndarray:
    """Return by how many points ``way`` loses less than ``rival`` by ``budget``, low and high.

    What they lost on the recorded table, and an interval from the redrawn ones, on which both are
    replayed, so that what they share cancels.
    """
    lost = _by_draw(replays[replays["budget"] == budget])
    own, other = (lost.xs(name, level="way").iloc[0] for name in (way, rival))
    return _with_interval(other - own, level)


def _with_interval(values: pd.Series | pd.DataFrame, level: float = LEVEL) -> np.ndarray:
    """Return the recorded table's value, and an interval from the spread of the redrawn ones.

    ``(3, ...)`` of ``(..., draws)``, by Student's t for the mean of recordings, since draws are
    few and levels may be high; NaN bounds below three of them.
    """
    recorded, drawn = values.to_numpy(float)[..., 0], values.to_numpy(float)[..., 1:]
    half = np.full_like(recorded, math.nan)
    if (count := drawn.shape[-1]) > 2:
        half = stats.t.ppf((1 + level) / 2, count - 1) * np.std(drawn, axis=-1, ddof=1)
    return np.array([recorded, recorded - half, recorded + half])
