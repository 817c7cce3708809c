"""Figures of recorded tables: one message each, one panel a network, pure functions of evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proxyhpo.analysis.claims import POOLED, PRUNED
from proxyhpo.analysis.cost import PAPER, saving
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.analysis.quality import HALF_POINT, SHARES
from proxyhpo.analysis.ranking import CEILING
from proxyhpo.analysis.released import AS_RELEASED, VERIFY
from proxyhpo.analysis.ways import SYNE_TUNE, WINNER, study_way
from proxyhpo.config import InputError
from proxyhpo.report.style import (
    BLACK,
    BLUE,
    GREY,
    OUTCOMES,
    RED,
    WIDTH,
    Picture,
    label,
    legend,
    look,
    panels,
    switch_label,
    table_label,
    way_label,
)

HIDDEN = ("base:2", "base:3", "base:1 loss", "uniform@0.5", "uniform@0.1")
"""Views that tables list and figures leave out."""


def race_figure(evidence: Evidence) -> Figure:
    """Regret on truth against cost, for each way of tuning, with intervals at three budgets."""
    raced, searches = evidence.raced, evidence.searches
    if raced.empty:
        raise InputError("figure race: no recorded replays; make them: ./run_all.sh replay")
    shown = {
        WINNER: (way_label(WINNER), look("epochs")[0], "-"),
        study_way("base", 0): ("TPE on N_B", BLUE, "-"),
        **{
            study_way(name, 0, same_time=True): (
                f"TPE on {label(name)}, same time",
                look(name)[0],
                "-",
            )
            for name in PRUNED
        },
        "best after one epoch": ("best after one epoch of N_B", BLACK, "--"),
        SYNE_TUNE: (way_label(SYNE_TUNE), look("subset")[0], "--"),
        study_way("base", 0, "random"): ("random search on N_B", GREY, ":"),
    }
    aside = np.geomspace(0.86, 1 / 0.86, len(shown))  # or intervals would lie on each other
    names = raced["table"].unique()
    figure, grid = panels(len(names), 2.4)
    for axes, name in zip(grid, names, strict=True):
        own = raced[(raced["table"] == name) & np.isfinite(raced["budget"])]
        for (way, (text, colour, line)), factor in zip(shown.items(), aside, strict=True):
            one = own[own["way"] == way].sort_values("budget").dropna(subset=["regret"])
            if one.empty:
                continue
            axes.plot(one["budget"], one["regret"], line, color=colour, label=text)
            at = one[one["budget"].isin([share * searches[name] for share in SHARES.values()])]
            reach = [at["regret"] - at["low"], at["high"] - at["regret"]]
            axes.errorbar(
                factor * at["budget"], at["regret"], reach,
                fmt="o", ms=2.5, lw=0.8, alpha=0.8, color=colour,
            )  # fmt: skip
        axes.axhline(HALF_POINT, color=GREY, lw=0.6, ls=":")
        axes.axvline(searches[name], color=GREY, lw=0.6, ls=":")
        axes.set_ylim(-1, 6)
    ticks = (0.5, 1, 2, 4, 8, 16)
    _frame(grid, names, "full trainings of N_B", ticks, "test accuracy lost, points")
    figure.suptitle(_least_lost(evidence.race_summary, {way: shown[way][0] for way in shown}))
    legend(figure, grid, 2)
    return figure


def _least_lost(summary: pd.DataFrame, texts: Mapping[str, str]) -> str:
    """Return which way's mean loss is the lowest after a quarter and after all of a full search."""
    parts = ["regret_quarter", "regret_full"]
    own = summary[summary["way"].isin(list(texts))].groupby("way", sort=False)[parts]
    everywhere = own.size() == own.size().max()
    means = own.agg(lambda lost: lost.mean(skipna=False))[everywhere]
    first, last = means.idxmin()
    lowest = f"Lowest mean loss of the {len(means)} ways shown"
    if first == last:
        lost = " and ".join(f"{means.loc[first, part]:z.1f}" for part in parts)
        return (
            f"{lowest}, after a quarter and after all of a full search:\n"
            f"{texts[first]} ({lost} points)"
        )
    return (
        f"{lowest}:\nafter a quarter of a full search "
        f"{texts[first]} ({means.loc[first, 'regret_quarter']:z.1f} points),\n"
        f"after all of it {texts[last]} ({means.loc[last, 'regret_full']:z.1f} points)"
    )


def speedup_figure(evidence: Evidence) -> Figure:
    """Time saved against the number of trials, for k verifications."""
    costs = evidence.epoch_costs
    if costs.empty:
        raise InputError("figure speedup: no step costs; measure them: benchmarks/steps.py")
    tables = [table for table in evidence.timed if PRUNED[0] in table.entrants]
    trials, styles = np.geomspace(4, 200, 60), {0: "-.", 1: "--", 3: "-"}
    figure, grid = panels(len(tables))
    for axes, table in zip(grid, tables, strict=True):
        lines = costs[costs["table"] == table.name].set_index("entrant")
        for name in PRUNED:
            colour, build = look(name)[0], lines.loc[name, "build"]
            axes.plot([], [], color=colour, label=label(name))
            for verify, style in styles.items():
                ends = [
                    100 * saving(trials, verify, float(lines.loc[name, end]), build=build)
                    for end in ("trial", "trial_low", "trial_high")
                ]
                axes.plot(trials, ends[0], style, color=colour)
                axes.fill_between(trials, ends[2], ends[1], color=colour, alpha=0.15, lw=0)
        for verify, style in styles.items():
            axes.plot([], [], style, color=GREY, label=f"k = {verify}")
        axes.axhline(0, color=BLACK, lw=0.6)
        most = f"the paper's maximum, {PAPER:.0%}".replace("%", " %")
        axes.axhline(100 * PAPER, color=BLACK, lw=0.8, ls=":", label=most)
        axes.set_ylim(-40, 100)
    names, ticks = [table.name for table in tables], (5, 18, 50, 100, 200)
    _frame(grid, names, "trials T", ticks, "time saved, %")
    figure.suptitle(
        "Verification eats the saving of a short search: k trainings of N_B for T trials"
    )
    legend(figure, grid, 3)
    return figure


def _frame(
    grid: list[Axes], names: Sequence[str], xlabel: str, ticks: Sequence[float], ylabel: str
) -> None:
    """Name each panel after its table, and label its axes: a logarithmic one with ``ticks``."""
    for axes, name in zip(grid, names, strict=True):
        axes.set(title=table_label(name), xscale="log", xlabel=xlabel)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(ylabel)


def _against_time(
    evidence: Evidence, measure: str, title: str, ylabel: str, none: str = ""
) -> Figure:
    """Draw a measure of each view against its time, one panel a table, with the ceiling's band.

    ``title`` says of how many cases, ``{shown}``, what the intervals show of them; ``none`` is
    added where that is none.
    """
    frame = evidence.agreement
    if frame.empty:
        raise InputError(f"figure of {measure}: no table has three weight seeds of N_B yet")
    frame = frame[(frame["measure"] == measure) & frame["cost"].notna()]
    names = frame["table"].unique()
    if not len(names):
        raise InputError(f"figure of {measure}: no step costs; measure them: benchmarks/steps.py")
    frame = frame[~frame["view"].isin(HIDDEN)].assign(worse=partial(_worse, measure=measure))
    figure, grid = panels(len(names), 2.4)
    for axes, name in zip(grid, names, strict=True):
        own = frame[frame["table"] == name]
        first = own.iloc[0]
        axes.axhspan(first["ceiling_low"], first["ceiling_high"], color=BLUE, alpha=0.10, lw=0)
        axes.axhline(first["ceiling"], color=BLUE, lw=0.8, label=f"{CEILING}: noise ceiling")
        places = 100 * _aside(own["cost"])
        for place, line in zip(places, own.to_dict("records"), strict=True):
            colour, marker = look(line["view"])
            axes.plot([place] * 2, [line["low"], line["high"]], color=colour, lw=0.9, zorder=1)
            size = 8 if marker == "*" else 6  # a star has least inside
            hollow = {"color": colour, "ms": size, "ls": "", "markerfacecolor": "white"}
            filled = {"markerfacecolor": colour} if line["worse"] else {}
            axes.plot([place], [line["estimate"]], marker, **hollow | filled)
            axes.plot([], [], marker, **hollow, label=label(line["view"]))
    grid[-1].plot([], [], "o", color=GREY, ms=6, ls="", label="filled: shown to be so")
    _frame(grid, names, "time of a trial, % of N_B's", (5, 10, 20, 50, 100), ylabel)
    count = frame["worse"].sum()
    found = f"{count or 'none'} of {len(frame)} cases (95 % each{'' if count else none})"
    figure.suptitle(title.format(shown=found))
    legend(figure, grid, 3)
    return figure


def _worse(frame: pd.DataFrame, measure: str) -> pd.Series:
    """Return which views are shown to be worse than the ceiling, by the difference from it.

    Of points lost it takes :data:`~proxyhpo.analysis.quality.HALF_POINT` more: where nearly all
    redraws of the ceiling have the same best, next to nothing would be shown to be more. An
    interval of correlations without width decides nothing.
    """
    low, high = frame["difference_low"], frame["difference_high"]
    return low > HALF_POINT if "regret" in measure else (high < 0) & ~np.isclose(low, high)


def _aside(costs: pd.Series) -> pd.Series:
    """Return places for marks at ``costs``, moved as little as keeps them a mark's width apart."""
    ranks = np.argsort(np.argsort(costs, kind="stable"))
    room = 0.085 * np.arange(len(costs))
    lone = np.log(np.sort(costs)) - room
    right, left = np.maximum.accumulate(lone), np.minimum.accumulate(lone[::-1])[::-1]
    return pd.Series(np.exp((right + left) / 2 + room)[ranks], costs.index)


def rank_correlation_figure(evidence: Evidence) -> Figure:
    """Rank correlation with N_B over its better half, against time."""
    title = "Stand-ins shown to rank N_B's better half worse than N_B reseeded:\n{shown}"
    wide = "; intervals are wide"
    return _against_time(evidence, "rho_half", title, "Spearman's rho, better half", wide)


def regret_figure(evidence: Evidence) -> Figure:
    """Points lost with the stand-in's three best, against time."""
    title = f"Stand-ins whose three best are shown to lose {HALF_POINT:g} points more "
    title += "than N_B reseeded's:\n{shown}"
    return _against_time(evidence, "regret3", title, "validation accuracy lost, points")


def epoch_cost_figure(evidence: Evidence) -> Figure:
    """Time of an epoch on pruned networks, by network, beside their multiply-accumulates."""
    costs = evidence.epoch_costs
    if costs.empty:
        raise InputError("figure epoch_cost: no step costs; measure them: benchmarks/steps.py")
    costs = costs[costs["entrant"].isin(PRUNED)]
    costs = costs.assign(network=[table_label(name).split(", ")[1] for name in costs["table"]])
    order = costs.groupby("network")["time"].mean().sort_values(ascending=False).index
    figure, (axes,) = panels(1, 0.5 + 0.45 * len(order))
    macs = costs["macs"].mean()
    axes.axvline(macs, color=GREY, lw=0.8, ls="--", label="multiply-accumulates kept")
    for line in costs.to_dict("records"):
        colour, marker = look(line["entrant"])
        place = order.get_loc(line["network"]) + (0.12 if line["entrant"] == PRUNED[0] else -0.12)
        axes.plot([line["low"], line["high"]], [place] * 2, color=colour, lw=0.9)
        axes.plot(
            [line["time"]], [place], marker, color=colour, ms=5, ls="", label=label(line["entrant"])
        )
    axes.set_yticks(range(len(order)), order)
    axes.set(xlim=(0, 1.05), ylim=(-0.5, len(order) - 0.5))
    axes.set(xlabel="time of an epoch, relative to N_B's; a mark is a table")
    ends = [costs.loc[costs["time"].idxmin()], costs.loc[costs["time"].idxmax()]]
    alike = ends[0]["network"] == ends[1]["network"]
    least, most = (
        f"{100 * end['time']:.0f} % ({label(end['entrant']) if alike else end['network']})"
        for end in ends
    )
    figure.suptitle(
        f"An epoch of a network pruned to {100 * macs:.0f} % takes\n{least} to {most} of N_B's time"
    )
    legend(figure, [axes], 3)
    return figure


def shift_figure(evidence: Evidence) -> Figure:
    """Accuracy against learning rate, N_B over its stand-ins, and where the best ones lie."""
    tables = list(evidence.tables.values())
    usual = {name for table in tables for name in table.regime.entrants}
    shifts = evidence.shift
    figure, grid = panels(len(tables), 2.4)
    for axes, table in zip(grid, tables, strict=True):
        rates = len(table.regime.lr)
        own = shifts[shifts["table"] == table.name].set_index("view")
        for name in table.entrants:
            if name not in usual:
                continue
            colour, marker = look(name)
            mean = 100 * table.trainings(name).final[:rates].mean(1)
            axes.plot(table.regime.lr, mean, color=colour, lw=1.2)
            best = 2 ** own.loc[name, "best"]
            height = np.interp(math.log(best), np.log(table.regime.lr), mean)
            axes.plot([best], [height], marker, color=colour, ms=6)
            axes.plot([], [], marker, color=colour, ms=6, ls="-", lw=1.2, label=label(name))
    ticks = (0.003, 0.01, 0.03, 0.1, 0.3)
    _frame(grid, list(evidence.tables), "learning rate", ticks, "validation accuracy, %")
    moved = shifts[shifts["view"].isin(PRUNED)]
    apart = ((moved["low"] > 0) | (moved["high"] < 0)).sum()
    figure.suptitle(
        f"Best learning rate of pruned networks: {moved['shift'].min():+.1f} to "
        f"{moved['shift'].max():+.1f} octaves from N_B's,\n"
        f"shown to differ from it in {apart} of {len(moved)} cases (95 % each)"
    )
    legend(figure, grid, 3)
    return figure


def sight_figure(evidence: Evidence) -> Figure:
    """Which hyperparameter each stand-in can see: agreement with N_B along one axis."""
    sight = evidence.sight
    if sight.empty:
        raise InputError("figure sight: no table with two hyperparameters")
    axis_names = {"lr": "learning rate", "weight_decay": "weight decay"}
    name = sight["table"].iloc[0]
    sight = sight[sight["table"] == name]
    views = [v for v in dict.fromkeys(sight["view"]) if v not in HIDDEN[:2]]
    shown = []
    figure, grid = panels(2, 0.6 + 0.24 * len(views), equal=False)
    for axes, (axis, text) in zip(grid, axis_names.items(), strict=True):
        own = sight[sight["axis"] == axis].set_index("view").loc[views]
        shown.append(f"{(own['low'] > 0).sum() or 'none'} of {len(own)} on {text}s")
        places = np.arange(len(views))[::-1]
        if np.isfinite(own["ceiling"].iloc[0]):
            ceiling = float(own["ceiling"].iloc[0])
            axes.axvline(ceiling, color=BLUE, lw=1, label=f"{CEILING}: noise ceiling")
        axes.axvline(0, color=BLACK, lw=0.6)
        for place, (view, line) in zip(places, own.iterrows(), strict=True):
            colour, marker = look(str(view))
            axes.plot([line["low"], line["high"]], [place] * 2, color=colour, lw=1)
            axes.plot([line["estimate"]], [place], marker, color=colour, ms=6)
        axes.set(title=f"along the {text}", xlabel="Kendall's tau with N_B", xlim=(-0.4, 1))
        axes.set_yticks(places, [label(view) for view in views] if axes is grid[0] else [])
    figure.suptitle(
        "Stand-ins shown to agree with N_B (tau above 0):\n"
        f"{', '.join(shown)} ({table_label(name)})"
    )
    legend(figure, grid[:1], 1)
    return figure


CLAIMED = {
    "epoch": "time of an epoch saved with {}",
    "saving": "time saved with {}",
    "quality": "accuracy lost with {}",
    "better": "accuracy gained by {}",
}
"""What is measured of a case, by claim."""
DECIDED = {"yes": "holds", "no": "refuted", "undecided": "undecided"}
"""Outcomes in a reader's words."""


def claims_figure(evidence: Evidence) -> Figure:
    """Claims about tables in general, as far as there are any, with the interval that decides.

    A forest plot: estimate, interval, margin, outcome by colour and mark.
    """
    claims = evidence.claims
    pooled = claims[claims["table"] == POOLED]
    frame = pooled if len(pooled) else claims
    if frame.empty:
        raise InputError("figure claims: no claims; record tables and measure their steps first")
    lines = frame["unit"].value_counts(sort=False)
    names = frame["table"].unique()
    figure = Picture(figsize=(WIDTH, 1.5 + 0.31 * len(frame)), layout="constrained")
    grid = list(figure.subplots(len(lines), 1, squeeze=False, height_ratios=lines).flat)
    for axes, unit in zip(grid, lines.index, strict=True):
        own = frame[frame["unit"] == unit].sort_values(["claim", "case"], kind="stable")
        places = np.arange(len(own))[::-1]
        texts = []
        for place, line in zip(places, own.to_dict("records"), strict=True):
            colour, marker = OUTCOMES[line["outcome"]]
            axes.plot([line["low"], line["high"]], [place] * 2, color=colour, lw=1.2)
            axes.plot(
                [line["estimate"]], [place], marker, color=colour, ms=4, ls="",
                label=DECIDED[line["outcome"]],
            )  # fmt: skip
            axes.plot([line["margin"]], [place], "|", color=BLACK, ms=9)
            texts.append(_reading(line, with_table=len(names) > 1))
        axes.set_yticks(places, texts)
        known = own[["low", "high"]].to_numpy(float)
        widest = 1.05 * min(float(np.nanmax(np.abs(known))), 100.0)
        axes.set(xlabel=unit, xlim=(-0.3 * widest if unit.startswith("%") else -widest, widest))
        axes.set_ylim(-0.6, len(own) - 0.4)
        axes.axvline(0, color=GREY, lw=0.5)
    grid[-1].plot([], [], "|", color=BLACK, ms=9, label="margin")
    where = table_label(names[0]) if len(names) == 1 else f"On {len(names)} tables"
    where = "Over all tables" if len(pooled) else where
    found = frame["outcome"].value_counts()
    held = "claims holds" if found.get("yes") == 1 else "claims hold"
    others = [f", {found[one]} {DECIDED[one]}" for one in ("undecided", "no") if one in found]
    figure.suptitle(f"{where}: {found.get('yes', 'none')} of {len(frame)} {held}{''.join(others)}")
    legend(figure, grid, 4)
    return figure


def _reading(line: Mapping[str, Any], *, with_table: bool) -> str:
    """Return a claim's line in a reader's words: what is measured, and when the claim holds."""
    case, _, rival = line["case"].partition(" against ")
    stand_in, *trials = case.split(", ")
    what = ", ".join([CLAIMED[line["claim"]].format(label(stand_in)), *trials])
    unit = "%" if line["unit"].startswith("%") else line["unit"]
    holds = f"holds {'above' if line['above'] else 'below'} {line['margin']:g} {unit}"
    table = f" ({table_label(line['table'])})" if with_table else ""
    return f"{what} over\n{label(rival)}, {holds}{table}" if rival else f"{what},\n{holds}{table}"


def released_figure(evidence: Evidence) -> Figure:
    """Draw what each defect of the released code does to reported accuracy and saving."""
    frame = evidence.switches
    if frame.empty:
        raise InputError("figure released: no recorded replays; make them: ./run_all.sh replay")
    name = frame["table"].iloc[0]
    own = frame[frame["table"] == name]
    places = np.arange(len(own))[::-1]
    figure, grid = panels(2, 0.4 + 0.26 * len(own), equal=False)
    for axes, column, text in (
        (grid[0], "optimism", "reported minus true accuracy, points"),
        (grid[1], "saved", "time saved against N_B, %"),
    ):
        axes.axvline(0, color=BLACK, lw=0.6)
        for place, line in zip(places, own.to_dict("records"), strict=True):
            colour = BLUE if line["switch"] == "corrected" else RED
            half = 1.96 * line[f"{column}_se"]
            axes.plot([line[column] - half, line[column] + half], [place] * 2, color=colour, lw=1)
            axes.plot([line[column]], [place], "o", color=colour)
        axes.set_xlabel(text)
        axes.set_yticks(places, own["switch"].map(switch_label) if axes is grid[0] else [])
    saved = own.set_index("switch")["saved"]
    corrected, released = saved["corrected"], saved[AS_RELEASED]
    figure.suptitle(
        f"With a trial pruner and {VERIFY} verified, {abs(corrected):.0f} % "
        f"{'less' if corrected >= 0 else 'more'} time;\nas released it seems to "
        f"{'save' if released >= 0 else 'take'} {abs(released):.0f} %"
        f"{'' if released >= 0 else ' more'} ({table_label(name)})"
    )
    return figure
