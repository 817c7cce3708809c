"""Figures of one experiment's rows, live or replayed: where the time went, what was found."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proxyhpo.analysis.cost import EXPERIMENT, incumbent, ledger, reduction
from proxyhpo.config import InputError
from proxyhpo.report.style import (
    BASE,
    GREY,
    ORANGE,
    PROXY,
    RED,
    SMOKE,
    STYLE,
    Picture,
    legend,
    time_unit,
)

PARTS = {"proxy": GREY, "study": BASE, "lost": RED, "verify": ORANGE}


def experiment_figure(rows: pd.DataFrame) -> Figure:
    """Return one experiment in two panels: seconds by purpose, accuracy found by seconds.

    Raises:
        InputError: ``rows`` hold no study.
    """
    if not (rows["purpose"] == "study").any():
        raise InputError("no trials in these rows: run the experiment first")
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(7.0, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
        _spent(left, rows)
        _found(right, rows)
        legend(figure, [right], 3)
        saved = reduction(rows)
        title = "HPO on N_B and on its stand-in"
        if len(saved):
            verified = 100 * saved["verified"].mean()
            kind = "less" if verified >= 0 else "more"
            checked = (rows["purpose"] == "verify").any()
            how = "verification included" if checked else "not verified"
            title += f": {abs(verified):.0f} % {kind} time, {how}"
        figure.suptitle("\n".join([title, *_reached(rows)]))
        if (rows["profile"] == "smoke").any():
            right.set_title(SMOKE, color=RED, loc="right", fontsize=7)
    return figure


def _reached(rows: pd.DataFrame) -> list[str]:
    """Return a line on what N_B reaches with its own choice and with the stand-in's verified one.

    None before both are known: the stand-in's own accuracy isn't N_B's.
    """
    best = incumbent(rows).groupby(["way", *EXPERIMENT])["best"].max()
    means = 100 * best.groupby("way").mean()
    if not {"base", "verify"} <= {*means.dropna().index}:
        return []
    return [
        f"N_B's validation accuracy: {means['base']:.1f} % with its own choice, "
        f"{means['verify']:.1f} % with the stand-in's"
    ]


def _spent(axes: Axes, rows: pd.DataFrame) -> None:
    """Stack the seconds of both ways by purpose."""
    spent = ledger(rows).groupby(["way", "purpose"])["seconds"].sum()
    unit, name = time_unit(float(spent.groupby("way").sum().max()))
    for place, way in enumerate(("base", "proxy")):
        bottom = 0.0
        for purpose, colour in PARTS.items():
            height = float(spent.get((way, purpose), 0.0)) / unit
            if height:
                axes.bar(place, height, bottom=bottom, color=colour, width=0.6, label=purpose)
                bottom += height
        axes.annotate(f"{bottom:.1f}", (place, bottom), ha="center", va="bottom", fontsize=8)
    axes.set_xticks([0, 1], ["on N_B", "on the stand-in"])
    axes.set_ylabel(name)
    seen = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = {"proxy": "making it", "study": "study", "lost": "lost", "verify": "verification"}
    axes.legend(seen.values(), [names[name] for name in seen], loc="upper right")
    axes.set_ylim(0, 1.7 * axes.get_ylim()[1])


def _found(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the best validation accuracy so far against time, and that of each verification."""
    table = incumbent(rows)
    unit, name = time_unit(float(table["seconds"].max()))
    looks = {
        "base": (BASE, "-", "best", "N_B, best so far"),
        "proxy": (PROXY, "--", "best", "stand-in itself, best so far"),
        "verify": (PROXY, "o", "accuracy", "N_B, each verification"),
    }
    for way, (colour, line, column, text) in looks.items():
        for _, own in table[table["way"] == way].groupby("seed"):
            spent, values = own["seconds"] / unit, 100 * own[column]
            axes.plot(spent, values, line, drawstyle="steps-post", color=colour, label=text)
    axes.set(xlabel=f"{name} spent on the search", ylabel="validation accuracy, %")


def ranking_figure(rows: pd.DataFrame) -> Figure:
    """Return the ranking study of one experiment: N_B against its stand-ins, point by point.

    Raises:
        InputError: ``rows`` hold no ranking study.
    """
    ranking = rows[rows["purpose"] == "ranking"]
    if ranking.empty:
        raise InputError("no ranking study in these rows")
    seeds = sorted(ranking["seed"].unique())
    base = ranking[(ranking["proxy"] == "") & (ranking["seed"] == seeds[0])]
    base = base.set_index("config_id")["val_accuracy"]
    others = ranking[(ranking["proxy"] != "") | (ranking["seed"] != seeds[0])]
    names = list(dict.fromkeys(others["proxy"]))
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(max(7.0, 1.75 * len(names)), 2.4), layout="constrained")
        grid = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for axes, name in zip(grid, names, strict=True):
            own = others[others["proxy"] == name].set_index("config_id")["val_accuracy"]
            shared = base.index.intersection(own.index)
            x, y = 100 * base[shared].fillna(0), 100 * own[shared].fillna(0)
            rho = x.rank().corr(y.rank())
            axes.plot(x, y, "o", color=BASE if not name else PROXY, ms=4)
            told = f": rho {rho:.2f}" if np.isfinite(rho) else ""
            axes.set(title=f"{name or 'N_B reseeded'}{told}", xlabel="accuracy on N_B, %")
        grid[0].set_ylabel("on the stand-in, %")
        figure.suptitle("The same configurations on N_B and on its stand-ins")
    return figure
