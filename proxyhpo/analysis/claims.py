"""Claims as data: one frame, decided by one rule.

A claim says that a value lies above (or below) a margin. It holds ("yes") where its whole interval
does, fails ("no") where its whole interval lies on the other side, and is "undecided" otherwise:
never by the estimate alone. The claims of a page share their level by Bonferroni, so that the
interval that is shown is the one that decides (docs/method.md states the rule's error).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from proxyhpo.analysis.bootstrap import simultaneous_level, t_interval
from proxyhpo.analysis.cost import epoch_costs, saving
from proxyhpo.analysis.quality import against
from proxyhpo.analysis.ranking import view_cost
from proxyhpo.analysis.ways import study_way
from proxyhpo.hpo.curves import Table

POINTS = 0.5
"""Margin of accuracy, in points of test accuracy."""
TIME = 0.05
"""Margin of time, as a share."""
OF_TIME = "% of time"
"""The unit of claims on time, which are pooled by the logarithm of the time that is left."""
EQUAL_TIME = 2 / 3
"""Share of a full search's time after which a stand-in is held against a rival."""
VERIFIED = 3
"""Verifications of the headline claims, k."""
TRIALS = (18, 100)
"""Trials of the headline savings: a short search, and the released code's."""
PRUNED = ("snip@0.25", "uniform@0.25")
RIVALS = ("uniform@0.25", "epochs@0.3", "uniform@0.25+epochs@0.3", "subset@0.25")
BASELINES = ("tpe", "random", "cmaes", "gp")
"""Samplers of the search on N_B whose choice a stand-in's is held against."""
QUESTIONS = {
    "epoch": "Does an epoch on the pruned network take less time?",
    "saving": "Is the search cheaper once its choice is verified on N_B?",
    "quality": "Are the hyperparameters as good, within half a point of test accuracy?",
    "better": "Is pruning better than a rival given the same time, by more than half a point?",
}
HEADLINES = {
    "epoch": "snip@0.25",
    "saving": f"snip@0.25, {TRIALS[0]} trials",
    "quality": "snip@0.25",
    "better": "snip against uniform@0.25",
}
"""The case of each question that its first answer is about."""
POOLED = "all tables"
LEAST = 3
"""Tables below which none are pooled."""
COLUMNS = [
    "claim", "table", "case", "n", "of", "estimate", "low", "high", "unit", "margin", "above",
    "outcome", "more",
]  # fmt: skip


def outcome(low: float, high: float, margin: float, *, above: bool = True) -> str:
    """Return "yes", "no" or "undecided" for: the value is above (or below) ``margin``."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "undecided"
    beyond, short = (low > margin, high < margin) if above else (high < margin, low > margin)
    return "yes" if beyond else "no" if short else "undecided"


def more_needed(estimate: float, low: float, high: float, margin: float) -> float:
    """Return how many times as much evidence would decide, if the estimate stays where it is.

    Intervals shrink with the square root of what they are over: ((half width) / (distance of the
    estimate from the margin))^2. Infinite on the margin, NaN without an interval.
    """
    apart = abs(estimate - margin)
    return ((high - low) / 2 / apart) ** 2 if apart else math.inf


def claims(
    tables: Sequence[Table], races: pd.DataFrame, cases: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return every claim, decided: one line a claim, table and case, and pooled over tables.

    Args:
        tables: those whose step costs are measured; three or more are pooled.
        races: what :func:`proxyhpo.analysis.quality.race` returned of them; tables that aren't in
            it have claims on time alone.
        cases: the case of each claim that is asked for; all by default. Fewer share their level.

    Returns:
        Columns :data:`COLUMNS`; ``n`` says how many of what (``of``) the interval is over, and
        ``more``, where nothing is decided, how many times as much would do
        (:func:`more_needed`). Shares of time and points of accuracy are both given as percentages.
    """
    # counted first: the level of each depends on how many there are
    drafts = [
        draft
        for table in tables
        for draft in _drafts(table, races)
        if cases is None or cases.get(draft["claim"]) == draft["case"]
    ]
    found = Counter((one["claim"], one["case"]) for one in drafts)
    level = simultaneous_level(len(drafts) + sum(n >= LEAST for n in found.values()))
    lines = []
    for one in drafts:
        make: Callable[[float], tuple[float, float, float]] = one.pop("interval")
        lines.append(_decided(one, *make(level)))
    frame = pd.DataFrame(lines, columns=COLUMNS)
    pooled = [
        _pooled(own, own["table"], "tables", level)
        for _, own in frame.groupby(["claim", "case"], sort=False)
        if len(own) >= LEAST
    ]
    return pd.DataFrame([*lines, *pooled], columns=COLUMNS)


def baselines(races: pd.DataFrame, level: float) -> pd.DataFrame:
    """Return the claim of quality against each sampler on N_B, pooled over tables at ``level``.

    One line a pruned network and ``baseline``, a sampler: a choice is as good only by what it is
    held against, and :func:`claims` holds it against TPE, the paper's first.
    """
    ended = races[np.isinf(races["budget"].to_numpy(float)) & (races["draw"] == 0)]
    lost = ended.pivot_table(index="table", columns="way", values="regret")
    lines = []
    for name, baseline in product(PRUNED, BASELINES):
        ways = [study_way(name, VERIFIED), study_way("base", 0, baseline)]
        known = lost.reindex(columns=ways).dropna().to_numpy(float)
        if len(known) >= LEAST:
            ends = t_interval(known[:, 0] - known[:, 1], level)
            decided = outcome(*ends[1:], POINTS, above=False)
            lines.append((name, baseline, len(known), *ends, decided))
    columns = ["case", "baseline", "tables", "points", "low", "high", "outcome"]
    return pd.DataFrame(lines, columns=columns)


def by_network(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the claims of :func:`claims` with networks as their unit, each over all its tables.

    A check of what is pooled over tables as if they were independent: Student's t over the means
    of each network's tables. There have to be three networks. These share their own level.
    """
    alone = frame[frame["table"] != POOLED]
    networks = alone["table"].map(lambda name: name.partition("-")[2])
    kinds = list(alone.groupby(["claim", "case"], sort=False))
    level, lines = simultaneous_level(len(kinds)), []
    for _, own in kinds:
        if networks[own.index].nunique() >= LEAST:
            lines.append(_pooled(own, networks, "networks", level))
    return pd.DataFrame(lines, columns=COLUMNS)


def _pooled(alone: pd.DataFrame, unit: pd.Series, of: str, level: float) -> dict[str, object]:
    """Return what a claim's lines say together: Student's t over means of each ``unit``'s lines.

    Time is pooled by the logarithm of what is left of it, as ratios are.
    """
    line = alone.iloc[0].to_dict() | {"table": POOLED, "of": of}
    estimates, margin = alone["estimate"].astype(float), line["margin"]
    if line["unit"] == OF_TIME:
        estimates, margin = np.log1p(-estimates / 100), math.log1p(-margin / 100)
    means = estimates.groupby(unit).mean().to_numpy()
    ends = mean, low, high = t_interval(means, level)
    more = more_needed(*ends, margin)
    if line["unit"] == OF_TIME:
        mean, low, high = (-100 * math.expm1(end) for end in (mean, high, low))
    return _decided(line | {"n": len(means)}, mean, low, high, more)


def _decided(
    line: dict, estimate: float, low: float, high: float, more: float | None = None
) -> dict[str, object]:
    margin = line["margin"]
    decided = outcome(low, high, margin, above=line["above"])
    if more is None:
        more = more_needed(estimate, low, high, margin)
    ends = {"estimate": estimate, "low": low, "high": high, "outcome": decided}
    return {**line, **ends, "more": more if decided == "undecided" else math.nan}


def _drafts(table: Table, races: pd.DataFrame) -> Iterable[dict]:
    """Yield the claims about one table, each with a function from a level to its interval."""
    shared = {"table": table.name}
    time = {"unit": OF_TIME, "margin": 100 * TIME, "above": True, "of": "timed rounds"}
    for name in PRUNED:
        if name not in table.entrants:
            continue
        time["n"] = int((table.steps["entrant"] == name).sum())
        yield {
            **shared, **time, "claim": "epoch", "case": name,
            "interval": partial(_saved, table, name, math.inf),
        }  # fmt: skip
        for trials in TRIALS:
            yield {
                **shared, **time, "claim": "saving", "case": f"{name}, {trials} trials",
                "interval": partial(_saved, table, name, trials),
            }  # fmt: skip
    own = races[races["table"] == table.name] if len(races) else races
    if own.empty:
        return
    points = {"unit": "points", "margin": POINTS, "of": "redrawn tables"}
    points["n"] = int(own["draw"].max())
    budget = EQUAL_TIME * table.trials
    replayed = set(own["way"])
    for name in PRUNED:
        way = study_way(name, VERIFIED)
        if way in replayed:
            yield {
                **shared, **points, "claim": "quality", "case": name, "above": False,
                "interval": partial(against, own, study_way("base", 0), way, math.inf),
            }  # fmt: skip
    pruned = study_way(PRUNED[0], VERIFIED, same_time=True)
    for name in RIVALS:
        way = study_way(name, VERIFIED, same_time=True)
        if {way, pruned} <= replayed and all(
            _chooses(table, one, budget) for one in (name, PRUNED[0])
        ):
            yield {
                **shared, **points, "claim": "better", "case": f"snip against {name}",
                "above": True, "interval": partial(against, own, pruned, way, budget),
            }  # fmt: skip


def _chooses(table: Table, name: str, budget: float) -> bool:
    """Return whether a search affords twice as many trials on a stand-in as N_B verifies.

    With fewer, what is verified is nearly all that was tried, whatever the stand-in: two searches
    then choose the same, and their difference says nothing.
    """
    return (budget - VERIFIED) / view_cost(table, name) >= 2 * VERIFIED


def _saved(table: Table, name: str, trials: float, level: float) -> tuple[float, float, float]:
    """Return the percentage of time saved with its interval; of endless trials, an epoch's."""
    line = epoch_costs(table, level=level).set_index("entrant").loc[name]
    estimate, low, high = (
        100 * float(saving(trials, VERIFIED, line[end], build=line["build"]))
        for end in ("time", "high", "low")
    )
    return estimate, low, high
