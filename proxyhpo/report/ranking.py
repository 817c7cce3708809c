"""Figures of trust: scatter of accuracies, rank correlation against cost, learning rates' shift."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from proxyhpo.analysis.bootstrap import better_half
from proxyhpo.analysis.cost import CLOCKS, PAIR, STAND_IN, clock
from proxyhpo.analysis.ranking import (
    CEILING,
    is_control,
    learning_rate_shift,
    rank_correlation,
    ranked,
)
from proxyhpo.config import InputError
from proxyhpo.report.style import (
    BLACK,
    BLUE,
    FULL,
    GREEN,
    GREY,
    HALF,
    ORANGE,
    PINK,
    RED,
    SKY,
    YELLOW,
    Picture,
    grid,
    legend,
)
from proxyhpo.report.wording import cell_label, stand_in_label

MOST_PANELS = 27


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
    titles = {key: ("\n" if wide else "  ").join(name) for key, name in names.items()}
    figure, places = grid(len(shown), 2.6 if wide else 2.5)
    for axes, key in zip(places, shown, strict=True):
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
            titles[key], (-0.12, 1), (0, 8 + 8.4 * len(text)), xycoords="axes fraction",
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
    legend(figure, handles)
    return figure


def _correlations(line: pd.Series, which: str) -> str:
    """Return rho and tau with their intervals, without leading zeros to save room."""

    def number(value: float) -> str:
        text = f"{value:.2f}" if abs(value) < 0.995 else f"{value:.0f}"
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


TOGETHER = 6  # stand-ins that one panel can show with their intervals


def trust_figure(rows: pd.DataFrame) -> Figure:
    """Points: rank correlation and regret against the measured share of N_B's time.

    Up to :data:`TOGETHER` stand-ins share their panels; more get a column for each kind, with the
    others in grey behind.
    """
    table, unit = rank_correlation(rows), clock(rows)
    names = _names(table, "trust")
    look = _looks(names)
    groups = list(table.groupby(PAIR))
    dense = [len(group[group["proxy"] != CEILING]) > TOGETHER for _, group in groups]
    heights = [6.9 if one else 3.1 for one in dense]
    figure = Picture(figsize=(FULL, 0.7 + sum(heights)), layout="constrained")
    blocks = np.atleast_1d(figure.subfigures(len(groups), height_ratios=heights))
    for block, (key, group), many in zip(blocks, groups, dense, strict=True):
        block.suptitle(cell_label(dict(zip(PAIR, key, strict=True))), fontsize=7.5, weight="bold")
        block.supxlabel(f"measured {CLOCKS[unit]} time, % of $N_B$", fontsize=7.5)
        columns = _columns(group) if many else [("", list(names))] * 3
        places = block.subplots(6 if many else 2, len(columns), squeeze=False, sharex=True)
        # all configurations over the better half, in columns or in rows
        measures = [list(TRUST)[:3], list(TRUST)[3:]]
        if many:
            measures = [[name] * len(columns) for name in sorted(TRUST, key=ORDER.index)]
        for line_of_axes, measured in zip(places, measures, strict=True):
            for axes, (title, mine), name in zip(line_of_axes, columns, measured, strict=True):
                _trust_panel(axes, group, f"share_{unit}", name, mine, look)
                first = axes.get_subplotspec().is_first_col()
                if many:
                    axes.label_outer()
                    axes.set_ylabel(SHORT[name] if first else "")
                else:
                    axes.set_ylabel(TRUST[name])
                if axes.get_subplotspec().is_first_row():
                    axes.set_title(title)
    handles = [Line2D([], [], **look[name], ms=4, lw=0.8, label=name) for name in names]
    if any(dense):
        handles.append(Line2D([], [], color=PALE, marker=".", ms=4, lw=0.6, label="the others"))
    legend(figure, [*handles, Patch(fc=GREY, alpha=0.25, label="$N_B$ reseeded (ceiling)")])
    return figure


ORDER = ("rho", "rho_half", "tau", "tau_half", "regret1", "regret3")
SHORT = {
    name: words.replace(", ", ",\n").replace("Spearman's ", "").replace("Kendall's ", "")
    for name, words in TRUST.items()
}
PALE = "#C8C8C8"


def _names(table: pd.DataFrame, figure: str) -> list[str]:
    names = sorted(set(table["proxy"]) - {CEILING}) if len(table) else []
    if not names:
        raise InputError(f"figure {figure}: no stand-in was ranked beside N_B")
    return names


def _looks(names: list[str]) -> dict[str, dict[str, str]]:
    """Return a colour and a marker for each kind of stand-in, no two alike."""
    colours = [BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK, YELLOW]
    return {
        name: {"color": colours[i % 8], "marker": "osD^vPX<"[(i + i // 8) % 8]}
        for i, name in enumerate(names)
    }


def _columns(group: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Return a title and the kinds of stand-in of each column: those at one share come together."""
    shares = group[group["proxy"] != CEILING].groupby("proxy")["pruning_ratio"].nunique()
    single = list(shares.index[shares == 1])
    columns = [(name, [name]) for name in shares.index[shares > 1]]
    title = "controls" if all(is_control(name) for name in single) else "at one share"
    return columns + ([(title, single)] if single else [])


def _trust_panel(
    axes: Axes, group: pd.DataFrame, share: str, name: str, mine: list[str], look: dict
) -> None:
    """Draw one measure of the stand-ins ``mine`` with intervals, of the others in pale grey."""
    _ceiling(axes, group, name)
    others = group[group["proxy"] != CEILING]
    for proxy, lines in others.groupby("proxy"):
        lines = lines.sort_values(share)
        x, y = 100 * lines[share], lines[name]
        if proxy in mine:
            axes.errorbar(x, y, _error(lines, name), **look[proxy], **BARS)
        else:
            axes.plot(x, y, color=PALE, marker=".", ms=3, lw=0.6, zorder=0.5)
    least, most = group[f"{name}_low"].min(), group[f"{name}_high"].max()
    if name.startswith("regret"):
        most = max(most, 1) if np.isfinite(most) else 1
        axes.set_ylim(-0.07 * most, 1.07 * most)
    else:  # always on the whole scale, so that panels compare
        bottom = min(least, 0) if np.isfinite(least) else -1
        axes.set_ylim(bottom - 0.07 * (1 - bottom), 1 + 0.07 * (1 - bottom))
    axes.set_xlim(0, 110 * max(others[share]))


BARS = {"ms": 4, "lw": 0.8, "elinewidth": 0.6, "capsize": 1.5}


def _ceiling(axes: Axes, group: pd.DataFrame, name: str) -> None:
    for one in group[group["proxy"] == CEILING].to_dict("records"):
        axes.axhspan(one[f"{name}_low"], one[f"{name}_high"], color=GREY, alpha=0.25, lw=0)
        axes.axhline(one[name], color=GREY, lw=0.8)


def _error(lines: pd.DataFrame, name: str) -> np.ndarray:
    y = lines[name]
    return np.array([y - lines[f"{name}_low"], lines[f"{name}_high"] - y]).clip(0)


def shift_figure(rows: pd.DataFrame) -> Figure:
    """Points: how far each stand-in's best learning rates lie from N_B's, against its MACs."""
    table = learning_rate_shift(rows)
    names = _names(table, "shift")
    look = _looks(names)
    groups = list(table.groupby(PAIR))
    columns = [_columns(group) for _, group in groups]
    widest = max(map(len, columns))
    width = HALF if widest == 1 else FULL
    figure = Picture(figsize=(width, 0.8 + 1.9 * len(groups)), layout="constrained")
    blocks = np.atleast_1d(figure.subfigures(len(groups)))
    for block, (key, group), mine in zip(blocks, groups, columns, strict=True):
        block.suptitle(cell_label(dict(zip(PAIR, key, strict=True))), fontsize=7.5, weight="bold")
        block.supxlabel("multiply-accumulates, % of $N_B$", fontsize=7.5)
        places = block.subplots(1, len(mine), squeeze=False, sharex=True, sharey=True)[0]
        for axes, (title, kinds) in zip(places, mine, strict=True):
            _ceiling(axes, group, "shift")
            axes.axhline(0, color=BLACK, lw=0.6, ls=":")
            for at, proxy in enumerate(kinds):
                lines = group[group["proxy"] == proxy].sort_values("share_macs")
                aside = 2.5 * (at - (len(kinds) - 1) / 2)  # equal shares stand side by side
                x = 100 * lines["share_macs"] + aside
                axes.errorbar(x, lines["shift"], _error(lines, "shift"), **look[proxy], **BARS)
            axes.set_title(title if len(mine) > 1 else "")
            axes.set_xlim(0, 10 + 100 * group["share_macs"][group["proxy"] != CEILING].max())
        places[0].set_ylabel("shift of the best\nlearning rates, octaves")
    handles = [Line2D([], [], **look[name], ms=4, lw=0.8, label=name) for name in names]
    legend(figure, [*handles, Patch(fc=GREY, alpha=0.25, label="$N_B$ reseeded (ceiling)")])
    return figure
