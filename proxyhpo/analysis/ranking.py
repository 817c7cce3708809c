"""How far a stand-in ranks configurations as N_B does: gate, agreement, shift and sight.

All of it comes from a recorded table (:class:`proxyhpo.hpo.curves.Table`). Intervals are over what
would differ in a repetition: weight seeds (tables redrawn from pooled residuals) and, where ranks
are concerned, configurations.

A *view* is what a search can look at: an entrant trained in full ("uniform@0.25"), or one of its
early epochs ("base:1", "base:1 averaged").
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import permutations, product

import numpy as np
import pandas as pd
from scipy import stats

from proxyhpo.analysis.bootstrap import LEVEL, MEASURES, around, better_half, resamples, rho, tau
from proxyhpo.hpo.curves import Curves, Table
from proxyhpo.hpo.ladder import View

DRAWS = 200
RESAMPLES_A_DRAW = 10
ALL_MEASURES = (*MEASURES, "rho_half")
REGRETS = ["regret" in name for name in ALL_MEASURES]
LEVELS = ["level_lr", "level_weight_decay"]
CEILING = "N_B reseeded"
"""What N_B, trained again from other weights, reaches in the same measure."""


def gate(table: Table) -> dict[str, float]:
    """Return what tells whether a table's trainings mean something, accuracies in fractions.

    Of N_B at the first weight decay and all its weight seeds: the share of configurations more
    than 10 points above chance; over the better half the standard deviation between weight seeds,
    the binomial one of the validation split, the intra-class correlation of one training (ICC(1),
    Shrout and Fleiss 1979) and of the mean of all seeds (Spearman and Brown); the configurations
    within a point of the best; the best accuracy after the first epoch.
    """
    final, first = table.gate.final, table.gate.accuracy[:, :, 0]
    mean, chance, seeds = final.mean(1), 1 / table.regime.classes, final.shape[1]
    half = better_half(mean)
    within, icc = math.nan, math.nan
    if seeds > 1:
        within = float(final[half].var(axis=1, ddof=1).mean())
        between = float(final[half].mean(1).var(ddof=1)) - within / seeds
        icc = max(0.0, between / (between + within))
    held = table.regime.val * table.regime.classes
    return {
        "seeds": seeds,
        "above_chance": float((mean > chance + 0.1).mean()),
        "best": float(mean.max()),
        "plateau": int((mean > mean.max() - 0.01).sum()),
        "seed_sd": within**0.5,
        "binomial_sd": float(np.sqrt(mean[half] * (1 - mean[half]) / held).mean()),
        "icc": icc,
        "icc_mean": seeds * icc / (1 + (seeds - 1) * icc),
        "first_epoch_best": float(first.mean(1).max()),
    }


def plans(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how far trainings lie apart that another plan made, one line a pruned network.

    Of a table's ``rows``, over the configurations that are trained with several plans: the
    standard deviation of validation accuracy between plans, each from weights of its own
    (``plan_sd``, points), between weight seeds of the first plan (``seed_sd``), and the ``ratio``
    of their variances with its F interval, ``low`` and ``high``. Were the plan of no account, the
    ratio would be 1. Empty where no other plan is recorded; NaN without a second weight seed.
    """
    lines = []
    trained = rows[rows["purpose"] == "curve"].assign(points=100 * rows["val_accuracy"])
    for name, own in trained.groupby("proxy", sort=False):
        several = pd.MultiIndex.from_frame(own.loc[own["plan"] > 0, LEVELS].drop_duplicates())
        own = own.set_index(LEVELS)
        own = own[own.index.isin(several)]
        (plan_variance, of_plans), (seed_variance, of_seeds) = (
            _within(part["points"]) for part in (own[own["seed"] == 0], own[own["plan"] == 0])
        )
        if not of_plans:
            continue
        ratio = plan_variance / seed_variance
        ends = stats.f.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], of_plans, of_seeds or math.nan)
        lines.append(
            {"view": name, "configurations": len(several)}
            | {"plan_sd": plan_variance**0.5, "seed_sd": seed_variance**0.5}
            | dict(zip(("ratio", "low", "high"), (ratio, *(ratio / ends)), strict=True))
        )
    return pd.DataFrame(lines)


def _within(values: pd.Series) -> tuple[float, int]:
    """Return the variance within the groups of an index, pooled, and its degrees of freedom."""
    groups = values.groupby(level=LEVELS)
    degrees = len(values) - groups.ngroups
    squares = float(((values - groups.transform("mean")) ** 2).sum())
    return squares / degrees if degrees else math.nan, degrees


def views(table: Table) -> list[str]:
    """Return the views of a table: its entrants, and the early epochs of N_B."""
    early = [f"base:{epoch}" for epoch in (1, 2, 3) if epoch < table.curves("base").epochs]
    others = [name for name in table.entrants if name != "base"]
    return [*others, *early, "base:1 averaged", "base:1 loss"]


def seen(trainings: Callable[[str], Curves], view: str) -> np.ndarray:
    """Return what a view shows, higher is better, ``(C, S)``; ``trainings`` gives its entrant's."""
    look = View.of(view)
    values = getattr(trainings(look.stand_in), look.signal)[:, :, look.epochs - 1]
    return -values if look.signal == "loss" else values


def view_cost(table: Table, view: str) -> float:
    """Return the time of one trial seen through ``view``, in full trainings of N_B."""
    look = View.of(view)
    epochs = look.epochs or table.curves(look.stand_in).epochs
    return float(table.seconds(look.stand_in, epochs)) / table.whole


def _measured(
    base: np.ndarray, shown: np.ndarray, triples: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return the measures of each triple of trainings, ``(measures, triples, resamples)``.

    ``base`` and ``shown`` are ``(triples, C, S)``, or ``(1, C, S)`` for all; a triple has the
    trainings to compare, one of each, and that of ``base`` by which its better half is chosen.
    """
    which = np.arange(len(triples)) if len(base) > 1 else 0
    x, y, held = (v[which, :, s] for v, s in zip((base, shown, base), triples.T, strict=True))
    half = better_half(held)[:, None]
    inside = counts * half
    known = (inside > 0).sum(-1) > 2
    some = np.where(known[..., None], inside, half)  # none at all would be divided by
    values = [measure(x, y, counts) for measure in MEASURES.values()]
    return np.array([*values, np.where(known, rho(x, y, some), np.nan)])


@cache
def _repetitions(table: Table, draws: int) -> list[Table]:
    rng = np.random.default_rng(0)
    return [table.redrawn(rng) for _ in range(draws)]


def agreement(
    table: Table, names: Sequence[str] | None = None, *, draws: int = DRAWS
) -> pd.DataFrame:
    """Return how each view ranks the table's configurations, beside the noise ceiling.

    One line a view and measure (of :data:`~proxyhpo.analysis.bootstrap.MEASURES`, and "rho_half"
    over N_B's better half): ``estimate``, ``low``, ``high``, and the same of the ceiling
    (``ceiling``...) and of the difference to it (``difference``...). One training of the stand-in
    is compared with one of N_B, as one training of N_B is for the ceiling; the better half is
    chosen on a third training of N_B. ``configurations`` is their number, ``cost`` the view's.
    Empty where fewer than three trainings of N_B are recorded.
    """
    if table.trainings("base").final.shape[1] < 3:
        return pd.DataFrame()
    rng = np.random.default_rng(1)
    names = views(table) if names is None else list(names)
    count = len(table.regime.configurations)
    repetitions = _repetitions(table, draws)
    counts = np.array([resamples(count, RESAMPLES_A_DRAW, rng) for _ in repetitions])

    def trained(tables: Sequence[Table], view: str) -> np.ndarray:
        return np.array([seen(one.trainings, view) for one in tables])

    recorded, drawn_again = trained([table], "base"), trained(repetitions, "base")
    seeds = range(recorded.shape[2])

    def both(view: str) -> tuple[np.ndarray, np.ndarray]:
        """Return estimates ``(measures,)`` and draws ``(draws x resamples, measures)``.

        Of a view, or of N_B reseeded where it is "base". The estimate is the mean over all triples
        of trainings: of N_B, of the view, and of N_B again, for its better half.
        """
        own = trained([table], view)
        triples = np.array(
            [
                (a, b, held)
                for a, held in permutations(seeds, 2)
                for b in range(own.shape[2])
                if not view.startswith("base") or b not in (a, held)
            ]
        )
        once = _measured(recorded, own, triples, np.ones((1, 1, count)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a measure without any value is NaN
            estimate = np.nanmean(once[:, :, 0], axis=1)
        which = [triples[rng.integers(len(triples))] for _ in repetitions]
        drawn = _measured(drawn_again, trained(repetitions, view), np.array(which), counts)
        return estimate, drawn.reshape(len(estimate), -1).T

    ceiling, ceiling_draws = both("base")
    frames = []
    for view in names:
        estimate, drawn = both(view)
        ends, tops = around(estimate, drawn), around(ceiling, ceiling_draws)
        for bounds in (ends, tops):  # a regret here is against the best of the same trainings
            np.clip(bounds, np.where(REGRETS, 0, -1), np.where(REGRETS, np.inf, 1), out=bounds)
        gap = estimate - ceiling
        apart = around(gap, drawn - ceiling_draws)
        cost = view_cost(table, view) if View.of(view).stand_in in table.costs else np.nan
        columns = {"view": view, "measure": ALL_MEASURES, "configurations": count, "cost": cost}
        columns |= {"estimate": estimate, "low": ends[0], "high": ends[1]}
        columns |= {"ceiling": ceiling, "ceiling_low": tops[0], "ceiling_high": tops[1]}
        columns |= {"difference": gap, "difference_low": apart[0], "difference_high": apart[1]}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def best_rate(accuracy: np.ndarray, log_lr: np.ndarray) -> np.ndarray:
    """Return where accuracy peaks along the learning rate, ``(N,)`` of ``(N, L)``, in log2.

    The vertex of a parabola through the best of the neighbouring triples' means and its two
    neighbours to either side; the best rate itself where that is no peak.
    """
    found = []
    for values in accuracy:
        smooth = np.convolve(values, np.ones(3) / 3, "same")
        smooth[[0, -1]] = -np.inf
        top = int(np.argmax(smooth))
        low, high = max(0, top - 2), min(len(values), top + 3)
        a, b, _ = np.polyfit(log_lr[low:high], values[low:high], 2)
        vertex = -b / (2 * a) if a < 0 else log_lr[top]
        found.append(np.clip(vertex, log_lr[low], log_lr[high - 1]))
    return np.array(found)


def shift(table: Table, names: Sequence[str] | None = None, *, draws: int = DRAWS) -> pd.DataFrame:
    """Return by how many octaves each view's best learning rate lies above N_B's.

    At the first weight decay, from means over weight seeds: ``best`` (log2 of the learning rate),
    ``shift`` with ``low`` and ``high`` over redrawn tables, and ``lost``, the accuracy points that
    N_B loses with the view's best rate (of the grid) against its own.
    """
    rates = len(table.regime.lr)
    log_lr = np.log2(table.regime.lr)
    names = views(table) if names is None else list(names)

    def of(one: Table, view: str) -> float:
        means = seen(one.trainings, view)[:rates].mean(1)
        return float(best_rate(means[None], log_lr)[0])

    own, points = of(table, "base"), _points(table)
    repetitions = _repetitions(table, draws)
    own_draws = np.array([of(one, "base") for one in repetitions])
    lines = []
    for view in ("base", *names):
        best = of(table, view)
        apart = np.array([of(one, view) for one in repetitions]) - own_draws
        low, high = around(best - own, apart)
        lines.append(
            {"view": view, "best": best, "shift": best - own, "low": low, "high": high}
            | {"lost": points(own) - points(best)}
        )
    return pd.DataFrame(lines)


def corrections(tables: Mapping[str, Table], shifts: pd.DataFrame, view: str) -> pd.DataFrame:
    """Return what it gains to correct a view's best learning rate by what other tables show.

    One line a table whose network has others: ``expected``, the mean of ``shifts`` (made by
    :func:`shift`, with their ``table``) over the network's other tables; points of N_B's validation
    accuracy ``lost`` with the view's best rate as it is, and ``lost_corrected`` with that rate
    lowered by so many octaves; ``gain``, the difference. The table itself isn't used to correct it.
    """
    own = shifts[shifts["view"] == view].set_index("table")
    network = pd.Series({name: tables[name].regime.network for name in own.index}, dtype=object)
    lines = []
    for name, line in own.iterrows():
        others = own.loc[(network == network[name]) & (own.index != name), "shift"]
        if others.empty:
            continue
        points, expected = _points(tables[str(name)]), float(others.mean())
        gain = points(line["best"] - expected) - points(line["best"])
        lines.append(
            {"table": name, "view": view, "shift": line["shift"], "expected": expected}
            | {"lost": line["lost"], "lost_corrected": line["lost"] - gain, "gain": gain}
        )
    return pd.DataFrame(lines)


def _points(table: Table) -> Callable[[float], float]:
    """Return log2 of a learning rate -> N_B's accuracy in % at the nearest one of the grid."""
    log_lr = np.log2(table.regime.lr)
    base = 100 * table.trainings("base").final[: len(log_lr)].mean(1)
    return lambda rate: float(base[np.argmin(np.abs(log_lr - rate))])


def transfer(table: Table, *, draws: int = DRAWS) -> pd.DataFrame:
    """Return the exponent a in "best learning rate ~ width^a", one line.

    Fitted by least squares, in octaves, to N_B and the stand-ins of plain width ("uniform@0.25"),
    at the first weight decay; between two widths it is the slope. 0: the learning rate transfers.
    A width is the root of a network's MACs by N_B's, as nearly all of them go with its square.
    ``low`` and ``high`` come from fits to redrawn tables, so they carry the weight seeds' noise,
    but not that best learning rates may not follow a power of the width; NaN where no training of
    N_B is repeated. ``widths`` is their number, N_B's among them. Empty where only N_B's is there.
    """
    names = ["base", *(n for n in table.entrants if n.startswith("uniform@") and "+" not in n)]
    macs = np.array([table.curves(name).macs for name in names], float)
    log_width, log_lr = np.log2(macs / macs[0]) / 2, np.log2(table.regime.lr)
    if len(set(log_width)) < 2:
        return pd.DataFrame()

    def exponent(one: Table) -> float:
        means = [one.trainings(name).final[: len(log_lr)].mean(1) for name in names]
        return float(np.polyfit(log_width, best_rate(np.array(means), log_lr), 1)[0])

    estimate, low, high = exponent(table), math.nan, math.nan
    if table.trainings("base").final.shape[1] > 1:
        drawn = np.array([exponent(one) for one in _repetitions(table, draws)])
        low, high = around(estimate, drawn)
    line = {"exponent": estimate, "low": low, "high": high, "widths": len(set(log_width))}
    return pd.DataFrame([line])


def sight(table: Table, names: Sequence[str] | None = None, *, draws: int = DRAWS) -> pd.DataFrame:
    """Return how each view agrees with N_B along one hyperparameter, the others fixed.

    Kendall's tau between one training's ranking and N_B's, averaged over the slices of the other
    hyperparameter: one line a view and axis ("lr", "weight_decay"), with ``low``, ``high`` over
    redrawn tables, ``ceiling`` (N_B reseeded) and ``slices``. Empty where the table has one axis.
    """
    rates, decays = len(table.regime.lr), len(table.regime.weight_decay)
    names = views(table) if names is None else list(names)
    if decays < 2:
        return pd.DataFrame()

    def agree(one: Table, view: str, axis: str) -> float:
        base, shown = one.trainings("base").final, seen(one.trainings, view)
        found = []
        for a, b in product(range(base.shape[1]), range(shown.shape[1])):
            if view.startswith("base") and a == b:  # the same training
                continue
            x, y = (v.reshape(decays, rates) for v in (base[:, a], shown[:, b]))
            if axis == "weight_decay":
                x, y = x.T, y.T
            slices = [tau(p, q, np.ones((1, len(p))))[0] for p, q in zip(x, y, strict=True)]
            found.append(np.nanmean(slices))
        return float(np.mean(found)) if found else math.nan

    repetitions = _repetitions(table, draws // 4)
    lines = []
    for axis, slices in (("lr", decays), ("weight_decay", rates)):
        ceiling = agree(table, "base", axis)
        for view in names:
            estimate = agree(table, view, axis)
            drawn = np.array([agree(one, view, axis) for one in repetitions])
            low, high = around(estimate, drawn)
            lines.append(
                {"view": view, "axis": axis, "slices": slices, "estimate": estimate}
                | {"low": low, "high": high, "ceiling": ceiling}
            )
    return pd.DataFrame(lines)
