"""The figures themselves: rows in, a matplotlib figure out; :mod:`proxyhpo.figures` names them.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart, and never the
only difference. No text is smaller than 7 points at the printed width of 3.5 or 7 inches.
"""

from __future__ import annotations

import io
import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from proxyhpo.bootstrap import better_half
from proxyhpo.config import InputError
from proxyhpo.report import PAPER_REDUCTION, cell_label, label, stand_in_label
from proxyhpo.statistics import (
    CEILING,
    CELL,
    PAIR,
    STAND_IN,
    incumbent,
    is_control,
    rank_correlation,
    ranked,
    speedup,
    ways,
)

HALF, FULL = 3.5, 7.0  # inches: one column of print, and two
MOST_PANELS = 27
MOST_GROUPS = 9  # pairs of bars side by side in one panel
BLACK, GREY, ORANGE, SKY, GREEN = "#000000", "#8C8C8C", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
BASE, PROXY = BLUE, ORANGE
PURPOSES = {
    "data": ("loading the pictures", GREY),
    "proxy": ("building the proxy", PINK),
    "study": ("trials", SKY),
    "verify": ("verification on $N_B$", YELLOW),
    "final": ("final training of $N_B$", GREEN),
}
STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and restyled
    "svg.hashsalt": "proxyhpo",
}


class Picture(Figure):
    """A figure that keeps the house style wherever it is drawn.

    A notebook shows it without pyplot, hence in any thread and any front end.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draw, in the house style: ticks are made while drawing, as the style then is."""
        with mpl.rc_context(STYLE):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=130)
        return content.getvalue()


def speedup_figure(rows: pd.DataFrame) -> Figure:
    """Bars: time of HPO on N_B beside N_P for every experiment, the reduction written on top."""
    figure, panels = _bar_panels(rows)
    for axes, lines, factor, unit in panels:
        for at, one in enumerate(lines):
            base, search, hpo = (
                one[f"{name}_wall"] / factor for name in ("hpo_base", "search_proxy", "hpo_proxy")
            )
            axes.bar(at - 0.2, base, 0.38, color=BASE)
            axes.bar(at + 0.2, search, 0.38, color=PROXY)
            axes.bar(at + 0.2, hpo - search, 0.38, search, color="white", ec=PROXY, hatch="////")
            paper = base * (1 - PAPER_REDUCTION / 100)
            axes.hlines(paper, at - 0.42, at + 0.42, BLACK, "dashed", linewidth=0.9)
            axes.annotate(
                _reduction_text(one), (at, max(base, hpo)), (0, 2), textcoords="offset points",
                ha="center", va="bottom", fontsize=7, linespacing=1.05,
            )  # fmt: skip
        axes.set_ylabel(f"HPO, wall-clock {unit}")
        axes.margins(y=0.2)
    panels[0][0].set_title("numbers: time saved [95 % interval]", loc="right", fontsize=7)
    handles = [
        Patch(color=BASE, label="HPO on $N_B$"),
        Patch(color=PROXY, label="HPO on $N_P$, building it included"),
        Patch(facecolor="white", edgecolor=PROXY, hatch="////", label="verification on $N_B$"),
        Line2D([], [], color=BLACK, ls="dashed", lw=0.9, label="paper: up to 37 % less"),
    ]
    _legend(figure, handles)
    return figure


def _reduction_text(line: dict) -> str:
    value, low, high = (line[f"reduction_hpo_wall{bound}"] for bound in ("", "_low", "_high"))
    if not np.isfinite(value):
        return "unfinished"
    return f"{value:.0f} %\n[{low:.0f}, {high:.0f}]".replace("-", "−")


def ledger_figure(rows: pd.DataFrame) -> Figure:
    """Bars: stacked seconds by purpose, HPO on N_B beside HPO on N_P."""
    figure, panels = _bar_panels(rows, "total")
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
    _legend(figure, [Patch(fc=c, ec="black", lw=0.3, label=w) for w, c in PURPOSES.values()])
    return figure


Panel = tuple[Axes, list[dict], float, str]


def _bar_panels(rows: pd.DataFrame, scope: str = "hpo") -> tuple[Figure, list[Panel]]:
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
        factor, unit = _time_unit(
            max(one[f"{scope}_{w}_wall"] for one in lines for w in ("base", "proxy"))
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
        panels.append((axes, lines, factor, unit))
    return figure, panels


def incumbent_figure(rows: pd.DataFrame) -> Figure:
    """Curves: best validation accuracy so far, on N_B and on N_P, one panel an experiment."""
    curves = incumbent(rows)
    if curves.empty:
        raise InputError("figure incumbent: no trial was trained to its full budget")
    several = len(curves[STAND_IN].drop_duplicates()) > 1
    panels = list(curves.groupby([*CELL, *STAND_IN], dropna=False))
    figure, grid = _grid(len(panels), 1.75)
    for axes, (key, group) in zip(grid, panels, strict=True):
        line = dict(zip([*CELL, *STAND_IN], key, strict=True))
        factor, unit = _time_unit(group["wall"].max())
        for (way, measured), curve in group.groupby(["way", "measured_on"]):
            colour, style = (BASE, "-") if way == "base" else (PROXY, "--")
            if way != measured:
                colour, style = GREEN, ":"
            times, bests = _on_one_clock(curve)
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
        axes.set_xlabel(f"wall-clock {unit}")
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("best validation\naccuracy so far, %")
        axes.set_xlim(0, 1.04 * group["wall"].max() / factor)
    handles = [
        Line2D([], [], color=BASE, label="HPO on $N_B$"),
        Line2D([], [], color=PROXY, ls="--", label="HPO on $N_P$ ($N_P$'s own accuracy)"),
        Line2D([], [], color=GREEN, ls=":", marker="o", ms=3, label="verification on $N_B$"),
    ]
    if len(curves["seed"].unique()) > 1:
        handles.append(Patch(fc=GREY, alpha=0.3, label="range over seeds"))
    _legend(figure, handles)
    return figure


def _on_one_clock(curves: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return times and, for each seed at each of them, the best so far in per cent.

    From the first time at which every seed has a best.
    """
    seeds = [one.sort_values("wall") for _, one in curves.groupby("seed")]
    times = np.unique(curves["wall"])
    times = times[times >= max(one["wall"].min() for one in seeds)]
    at = [np.searchsorted(one["wall"], times, side="right") - 1 for one in seeds]
    bests = [100 * one["best"].to_numpy()[i] for one, i in zip(seeds, at, strict=True)]
    return times, np.array(bests)


def scatter_panels(rows: pd.DataFrame) -> list[tuple]:
    """Return the panels of the scatter figure: data set, network and stand-in.

    Controls are left out of a figure of more than :data:`MOST_PANELS` panels, and then whatever
    comes last.
    """
    keys = [tuple(i[k] for k in (*PAIR, *STAND_IN)) for i, _ in ranked(rows)]
    keys = [key for key in keys if key[3] != CEILING]
    if len(keys) > MOST_PANELS:
        keys = [key for key in keys if not is_control(key[3])] or keys
    return keys[:MOST_PANELS]


def rank_correlation_figure(rows: pd.DataFrame) -> Figure:
    """Scatter: accuracy on N_B against accuracy on each stand-in, one panel each."""
    import seaborn as sns  # here, since loading it takes longer than drawing most figures

    table = rank_correlation(rows).set_index([*PAIR, *STAND_IN])
    studies = {(*(i[k] for k in PAIR), *(i[k] for k in STAND_IN)): p for i, p in ranked(rows)}
    shown = scatter_panels(rows)
    if not shown:
        raise InputError("figure rank_correlation: no stand-in was ranked beside N_B")
    names = {
        k: (cell_label(dict(zip(PAIR, k[:3], strict=True))), stand_in_label(*k[3:])) for k in shown
    }
    wide = any(len(" ".join(name)) > 32 for name in names.values())
    names = {key: ("\n" if wide else "  ").join(name) for key, name in names.items()}
    figure, grid = _grid(len(shown), 2.6 if wide else 2.5)
    for axes, key in zip(grid, shown, strict=True):
        reseeded = (*key[:3], CEILING, 0.0)
        points = 100 * studies[key][["base", "proxy"]]
        points["better half"] = better_half(points["base"].to_numpy())
        if reseeded in studies:
            other = 100 * studies[reseeded][["base", "proxy"]]
            axes.plot(other["base"], other["proxy"], "x", color=GREY, ms=3, mew=0.7, zorder=1)
        sns.scatterplot(
            points, x="base", y="proxy", hue="better half", ax=axes, legend=False, s=16,
            palette={True: BLUE, False: ORANGE}, style="better half", zorder=2,
            markers={True: "o", False: "s"}, linewidth=0.3, edgecolor="white",
        )  # fmt: skip
        low, high = np.nanmin(points[["base", "proxy"]]), np.nanmax(points[["base", "proxy"]])
        axes.plot([low, high], [low, high], color=GREY, lw=0.6, zorder=0)
        one = table.loc[key]
        text = [f"all {one['n']:.0f}: " + _correlations(one, "")]
        text.append("half: " + _correlations(one, "_half"))
        if reseeded in studies:
            text.append("ceiling: " + _correlations(table.loc[reseeded], ""))
        axes.set_title("\n".join(text), fontsize=7, x=-0.12)
        axes.annotate(
            names[key], (-0.12, 1), (0, 8 + 8.4 * len(text)), xycoords="axes fraction",
            textcoords="offset points", fontsize=7, fontweight="bold",
        )  # fmt: skip
        axes.set(xlabel="validation accuracy, $N_B$, %", ylabel="")
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("validation accuracy,\nstand-in, %")
    handles = [
        Line2D([], [], ls="", marker="o", ms=4, color=BLUE, label="better half by $N_B$"),
        Line2D([], [], ls="", marker="s", ms=4, color=ORANGE, label="the other half"),
        Line2D([], [], ls="", marker="x", ms=4, color=GREY, label="$N_B$ reseeded (ceiling)"),
        Line2D([], [], color=GREY, lw=0.6, label="equal accuracy"),
    ]
    _legend(figure, handles)
    return figure


def _correlations(line: pd.Series, which: str) -> str:
    """Return rho and tau with their intervals, without leading zeros to save room."""

    def number(value: float) -> str:
        text = f"{value:.2f}" if abs(value) < 0.995 else f"{value:.1f}"
        return text.replace("-", "−").replace("0.", ".")

    texts = []
    for sign, name in (("ρ", f"rho{which}"), ("τ", f"tau{which}")):
        bounds = [line[f"{name}_low"], line[f"{name}_high"]]
        known = f" [{', '.join(map(number, bounds))}]" if np.isfinite(bounds).all() else ""
        value = number(line[name]) + known if np.isfinite(line[name]) else "undefined"
        texts.append(f"{sign} {value}")
    return ", ".join(texts)


TRUST = {
    "rho": "Spearman's ρ",
    "rho_half": "ρ, better half",
    "regret1": "regret@1, points",
    "tau": "Kendall's τ",
    "tau_half": "τ, better half",
    "regret3": "regret@3, points",
}


def trust_figure(rows: pd.DataFrame) -> Figure:
    """Points: rank correlation and regret against the measured share of N_B's time."""
    table = rank_correlation(rows)
    names = sorted(set(table["proxy"]) - {CEILING})
    if not names:
        raise InputError("figure trust: no stand-in was ranked beside N_B")
    colours = [BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK, YELLOW]
    look = {
        name: {"color": colours[i % 8], "marker": "osD^vP*X"[(i + i // 8) % 8]}
        for i, name in enumerate(names)
    }
    groups = list(table.groupby(PAIR))
    figure = Picture(figsize=(FULL, 0.7 + 3.1 * len(groups)), layout="constrained")
    blocks = np.atleast_1d(figure.subfigures(len(groups)))
    for block, (key, group) in zip(blocks, groups, strict=True):
        block.suptitle(cell_label(dict(zip(PAIR, key, strict=True))), fontsize=7.5, weight="bold")
        for axes, (name, words) in zip(block.subplots(2, 3).flat, TRUST.items(), strict=True):
            for one in group[group["proxy"] == CEILING].to_dict("records"):
                axes.axhspan(one[f"{name}_low"], one[f"{name}_high"], color=GREY, alpha=0.25, lw=0)
                axes.axhline(one[name], color=GREY, lw=0.8)
            for proxy, lines in group[group["proxy"] != CEILING].groupby("proxy"):
                lines = lines.sort_values("share_wall")
                x, y = 100 * lines["share_wall"], lines[name]
                error = np.array([y - lines[f"{name}_low"], lines[f"{name}_high"] - y])
                axes.errorbar(
                    x, y, error.clip(0), **look[proxy], ms=4, lw=0.8, elinewidth=0.6, capsize=1.5
                )
            least, most = group[f"{name}_low"].min(), group[f"{name}_high"].max()
            if name.startswith("regret"):
                most = max(most, 1) if np.isfinite(most) else 1
                axes.set_ylim(-0.07 * most, 1.07 * most)
            else:  # always on the whole scale, so that panels compare
                bottom = min(least, 0) if np.isfinite(least) else -1
                axes.set_ylim(bottom - 0.07 * (1 - bottom), 1 + 0.07 * (1 - bottom))
            axes.set_ylabel(words)
            axes.set_xlabel("measured time, % of $N_B$")
            axes.set_xlim(0, 110 * max(group["share_wall"][group["proxy"] != CEILING]))
    handles = [Line2D([], [], **look[name], ms=4, lw=0.8, label=name) for name in names]
    _legend(figure, [*handles, Patch(fc=GREY, alpha=0.25, label="$N_B$ reseeded (ceiling)")])
    return figure


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels, wrapped at three a row, each ``height`` inches high."""
    columns = min(3, count)
    lines = math.ceil(count / columns)
    width = HALF if columns == 1 else FULL
    figure = Picture(figsize=(width, 0.7 + height * lines), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _legend(figure: Figure, handles: list) -> None:
    columns = len(handles) if figure.get_figwidth() > HALF else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, 5))


def _time_unit(longest: float) -> tuple[float, str]:
    """Return seconds in a unit, and the unit's name, fit for times up to ``longest`` seconds."""
    for size, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if longest >= 2 * size:
            return size, unit
    return 1.0, "seconds"
