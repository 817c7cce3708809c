"""Figures of cost: speedup, ledger, any-time curves, and every way of HPO against its rivals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from proxyhpo.analysis.cost import CELL, CLOCKS, PAIR, STAND_IN, clock, incumbent, speedup, ways
from proxyhpo.analysis.quality import RIVALS, rivals
from proxyhpo.config import InputError
from proxyhpo.report.style import (
    BASE,
    BLACK,
    FULL,
    GREEN,
    GREY,
    HALF,
    PINK,
    PROXY,
    RED,
    SKY,
    YELLOW,
    Picture,
    grid,
    legend,
    macs_unit,
    time_unit,
)
from proxyhpo.report.wording import PAPER_REDUCTION, cell_label, label, number, stand_in_label

MOST_GROUPS = 9  # pairs of bars side by side in one panel
PURPOSES = {
    "data": ("loading the pictures", GREY),
    "proxy": ("building the proxy", PINK),
    "study": ("trials", SKY),
    "lost": ("lost to interruptions", RED),
    "verify": ("verification on $N_B$", YELLOW),
    "final": ("final training of $N_B$", GREEN),
}


def speedup_figure(rows: pd.DataFrame) -> Figure:
    """Bars: time of HPO on N_B beside N_P for every experiment, the reduction written on top."""
    unit_of_time = clock(rows)
    figure, panels = _bar_panels(rows, "hpo", unit_of_time)
    for axes, lines, factor, unit in panels:
        for at, one in enumerate(lines):
            base, search, hpo = (
                one[f"{name}_{unit_of_time}"] / factor
                for name in ("hpo_base", "search_proxy", "hpo_proxy")
            )
            axes.bar(at - 0.2, base, 0.38, color=BASE)
            axes.bar(at + 0.2, search, 0.38, color=PROXY)
            axes.bar(at + 0.2, hpo - search, 0.38, search, color="white", ec=PROXY, hatch="////")
            paper = base * (1 - PAPER_REDUCTION / 100)
            axes.hlines(paper, at - 0.42, at + 0.42, BLACK, "dashed", linewidth=0.9)
            axes.annotate(
                _reduction_text(one, unit_of_time), (at, max(base, hpo)), (0, 2), ha="center",
                textcoords="offset points", va="bottom", fontsize=7, linespacing=1.05,
            )  # fmt: skip
        axes.set_ylabel(f"HPO, {CLOCKS[unit_of_time]} {unit}")
        axes.margins(y=0.2)
    panels[0][0].set_title("numbers: time saved [95 % interval]", loc="right", fontsize=7)
    handles = [
        Patch(color=BASE, label="HPO on $N_B$"),
        Patch(color=PROXY, label="HPO on $N_P$, building it included"),
        Patch(facecolor="white", edgecolor=PROXY, hatch="////", label="verification on $N_B$"),
        Line2D([], [], color=BLACK, ls="dashed", lw=0.9, label="paper: up to 37 % less"),
    ]
    legend(figure, handles)
    return figure


def _reduction_text(line: dict, unit: str) -> str:
    value, low, high = (line[f"reduction_hpo_{unit}{bound}"] for bound in ("", "_low", "_high"))
    if not np.isfinite(value):
        return "unfinished"
    return f"{number(value, '.0f')} %\n[{number(low, '.0f')}, {number(high, '.0f')}]"


def ledger_figure(rows: pd.DataFrame) -> Figure:
    """Bars: stacked seconds by purpose, HPO on N_B beside HPO on N_P."""
    figure, panels = _bar_panels(rows, "total", "wall")
    purposes = set(rows["purpose"])
    spent = ways(rows).groupby([*CELL, *STAND_IN, "way", "purpose"], dropna=False)
    spent = (spent["wall_seconds"].sum() / rows.groupby(CELL)["seed"].nunique()).to_dict()
    for axes, lines, factor, unit in panels:
        for at, one in enumerate(lines):
            for way, offset, mark in (("base", -0.2, "$N_B$"), ("proxy", 0.2, "$N_P$")):
                bottom = 0.0
                for purpose, (_, colour) in PURPOSES.items():
                    key = (*(one[name] for name in (*CELL, *STAND_IN)), way, purpose)
                    height = spent.get(key, 0.0) / factor
                    axes.bar(at + offset, height, 0.38, bottom, color=colour, ec="black", lw=0.3)
                    bottom += height
                axes.annotate(
                    mark, (at + offset, bottom), (0, 2), textcoords="offset points",
                    ha="center", fontsize=7,
                )  # fmt: skip
        axes.set_ylabel(f"wall-clock {unit}")
        axes.margins(y=0.12)
    shown = [kind for name, kind in PURPOSES.items() if name != "lost" or "lost" in purposes]
    legend(figure, [Patch(fc=c, ec="black", lw=0.3, label=w) for w, c in shown])
    return figure


Panel = tuple[Axes, list[dict], float, str]


def _bar_panels(rows: pd.DataFrame, scope: str, unit: str) -> tuple[Figure, list[Panel]]:
    """Return a figure with one panel a data set (or part of one) and what each panel shows."""
    table = speedup(rows, pool_seeds=True)
    several = len(table[STAND_IN].drop_duplicates()) > 1
    chunks = []
    for dataset, group in table.groupby("dataset"):
        lines = group.to_dict("records")
        size = math.ceil(len(lines) / math.ceil(len(lines) / MOST_GROUPS))
        chunks += [(dataset, lines[i : i + size]) for i in range(0, len(lines), size)]
    width = HALF if len(table) <= 4 else FULL
    figure = Picture(figsize=(width, 0.6 + 2.0 * len(chunks)), layout="constrained")
    widest = max(len(lines) for _, lines in chunks)
    panels = []
    for axes, (dataset, lines) in zip(
        figure.subplots(len(chunks), squeeze=False).flat, chunks, strict=True
    ):
        factor, unit_name = time_unit(
            max(one[f"{scope}_{w}_{unit}"] for one in lines for w in ("base", "proxy"))
        )
        names = [one["sampler"] for one in lines]
        if several:
            names = [
                f"{name}\n{stand_in_label(one['proxy'], one['pruning_ratio'])}"
                for name, one in zip(names, lines, strict=True)
            ]
        axes.set_xticks(range(len(lines)), names)
        centres = pd.Series(range(len(lines))).groupby([one["network"] for one in lines]).mean()
        axes.xaxis.remove_overlapping_locs = False
        below = "\n" * (2 if several else 1)
        axes.set_xticks(centres, [below + name for name in centres.index], minor=True)
        axes.tick_params(axis="x", which="both", length=0)
        axes.set_xlim(-0.6, widest - 0.4)
        axes.set_title(label(dataset), fontweight="bold")
        panels.append((axes, lines, factor, unit_name))
    return figure, panels


def incumbent_figure(rows: pd.DataFrame) -> Figure:
    """Curves: best validation accuracy so far, on N_B and on N_P, one panel an experiment."""
    curves, clocked = incumbent(rows), clock(rows)
    if curves.empty:
        raise InputError("figure incumbent: no trial was trained to its full budget")
    several = len(curves.loc[curves["proxy"] != "", STAND_IN].drop_duplicates()) > 1
    panels = list(curves.groupby([*CELL, *STAND_IN], dropna=False))
    figure, places = grid(len(panels), 1.75)
    for axes, (key, group) in zip(places, panels, strict=True):
        line = dict(zip([*CELL, *STAND_IN], key, strict=True))
        factor, unit = time_unit(group[clocked].max())
        for (way, measured), curve in group.groupby(["way", "measured_on"]):
            colour, style = (BASE, "-") if way == "base" else (PROXY, "--")
            if way != measured:
                colour, style = GREEN, ":"
            times, bests = _on_one_clock(curve, clocked)
            axes.step(
                times / factor, np.median(bests, axis=0), style, where="post", color=colour,
                marker="o" if way != measured else "", markersize=3,
            )  # fmt: skip
            if len(bests) > 1:
                axes.fill_between(
                    times / factor, bests.min(axis=0), bests.max(axis=0), step="post",
                    color=colour, alpha=0.2, lw=0,
                )  # fmt: skip
        name = f"\n{stand_in_label(*key[-2:])}" if several else ""
        axes.set_title(cell_label(line) + name)
        axes.set_xlabel(f"{CLOCKS[clocked]} {unit}")
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("best validation\naccuracy so far, %")
        axes.set_xlim(0, 1.04 * group[clocked].max() / factor)
    handles = [
        Line2D([], [], color=BASE, label="HPO on $N_B$"),
        Line2D([], [], color=PROXY, ls="--", label="HPO on $N_P$ ($N_P$'s own accuracy)"),
        Line2D([], [], color=GREEN, ls=":", marker="o", ms=3, label="verification on $N_B$"),
    ]
    if len(curves["seed"].unique()) > 1:
        handles.append(Patch(fc=GREY, alpha=0.3, label="range over seeds"))
    legend(figure, handles)
    return figure


def _on_one_clock(curves: pd.DataFrame, clocked: str) -> tuple[np.ndarray, np.ndarray]:
    """Return times and, for each seed at each of them, the best so far in per cent.

    From the first time at which every seed has a best.
    """
    seeds = [one.sort_values(clocked) for _, one in curves.groupby("seed")]
    times = np.unique(curves[clocked])
    times = times[times >= max(one[clocked].min() for one in seeds)]
    at = [np.searchsorted(one[clocked], times, side="right") - 1 for one in seeds]
    bests = [100 * one["best"].to_numpy()[i] for one, i in zip(seeds, at, strict=True)]
    return times, np.array(bests)


def rivals_figure(rows: pd.DataFrame) -> Figure:
    """Points: cost of HPO against test accuracy of N_B, every way; one row a data set and network.

    Left against time, right against MACs. A line leads from a method on N_B to the same on N_P.
    """
    table, clocked = rivals(rows), clock(rows)
    if table.empty:
        raise InputError("figure rivals: no final training is recorded")
    pairs = list(table.groupby(PAIR))
    samplers = sorted(table["sampler"].unique())
    marks = {name: "osD^vP*X"[i % 8] for i, name in enumerate(samplers)}
    figure = Picture(figsize=(FULL, 0.9 + 2.2 * len(pairs)), layout="constrained")
    places = figure.subplots(len(pairs), 2, squeeze=False, sharey="row")
    for line_of_axes, (key, group) in zip(places, pairs, strict=True):
        for axes, unit in zip(line_of_axes, (clocked, "macs"), strict=True):
            factor, name = (macs_unit if unit == "macs" else time_unit)(group[unit].max())
            for _, same in group.groupby("sampler"):
                ends = [same[same["way"] == way] for way in ("base", "proxy")]
                for _, end in ends[1].iterrows():
                    for _, start in ends[0].iterrows():
                        axes.plot(
                            [start[unit] / factor, end[unit] / factor],
                            [100 * start["test_accuracy"], 100 * end["test_accuracy"]],
                            color=GREY, lw=0.6, zorder=0,
                        )  # fmt: skip
            for one in group.to_dict("records"):
                axes.errorbar(
                    one[unit] / factor, 100 * one["test_accuracy"],
                    xerr=_bounds(one, unit, 1 / factor), yerr=_bounds(one, "test_accuracy", 100),
                    color=BASE if one["way"] == "base" else PROXY, marker=marks[one["sampler"]],
                    ms=5, mec="black", mew=0.4, elinewidth=0.6, capsize=1.5, ls="",
                )  # fmt: skip
            axes.set_xlim(0, 1.06 * group[[unit, f"{unit}_high"]].max(axis=None) / factor)
            axes.set_xlabel(f"HPO, {name}" if unit == "macs" else f"HPO, {CLOCKS[unit]} {name}")
        line_of_axes[0].set_ylabel("test accuracy of $N_B$, %")
        line_of_axes[0].set_title(cell_label(dict(zip(PAIR, key, strict=True))), weight="bold")
    handles = [
        Line2D(
            [], [], ls="", marker=marks[n], color="white", mec="black", ms=5, label=RIVALS.get(n, n)
        )
        for n in samplers
    ]
    handles.append(Patch(color=BASE, label="on $N_B$"))
    if (table["way"] == "proxy").any():
        handles.append(Patch(color=PROXY, label="on $N_P$, verified on $N_B$"))
    legend(figure, handles)
    return figure


def _bounds(line: dict, name: str, factor: float) -> list[list[float]]:
    """Return how far the interval of a value lies below and above it; nothing for one seed."""
    below = line[name] - line[f"{name}_low"], line[f"{name}_high"] - line[name]
    return [[max(0.0, float(np.nan_to_num(factor * one)))] for one in below]
