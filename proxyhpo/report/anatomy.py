"""The figure ``anatomy``: what pruning left of each layer, and what that saves in time."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from proxyhpo.config import InputError
from proxyhpo.report.style import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, STYLE, WIDTH, Picture

COSTS = ("multiply-accumulates", "parameters", "step seconds", "step time", "bytes for backward")
LOOKS = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"), (RED, "v"), (SKY, "P"), (GREY, "X")]


def anatomy_figure(rows: pd.DataFrame, asked: float) -> Figure:
    """Lines: share of channels kept by layer; points, set a little aside: time against MACs.

    Args:
        rows: of :func:`proxyhpo.pruning.proxy.survey`, as a frame.
        asked: the share of MACs whose layers are shown; the points show all of them.

    Raises:
        InputError: no row was made for that share.
    """
    chosen = rows[rows["asked"] == asked]
    if chosen.empty:
        known = ", ".join(f"{share:g}" for share in sorted(set(rows["asked"])))
        raise InputError(f"share {asked!r}: choose from {known}")
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(WIDTH, 3.1), layout="constrained")
        widths, times = figure.subplots(1, 2, width_ratios=[1.9, 1])
        groups = chosen.groupby("criterion", sort=False)
        aside = 2.5 * (np.arange(len(groups)) - (len(groups) - 1) / 2)  # or marks hide each other
        for (criterion, group), (colour, marker), offset in zip(groups, LOOKS, aside, strict=False):
            # the classifier's outputs are the classes, which nothing removes
            layers = group[~group["item"].isin(COSTS)]["share"].to_numpy()[:-1]
            look = {"marker": marker, "color": colour, "ms": 4}
            widths.plot(range(1, len(layers) + 1), 100 * layers, lw=1, label=criterion, **look)
            points = rows[rows["criterion"] == criterion].pivot_table(
                index="asked", columns="item", values="share", sort=False
            )
            macs = 100 * points["multiply-accumulates"] + offset
            times.plot(macs, 100 * points["step seconds"], ls="", **look)
        seconds = 100 * chosen.loc[chosen["item"] == "step seconds", "share"]
        figure.suptitle(
            f"At {100 * asked:g} % of the multiply-accumulates, a step takes "
            f"{seconds.min():.0f} to {seconds.max():.0f} % of the time"
        )
        kept = np.concatenate([line.get_ydata() for line in widths.lines])
        widths.set_title(
            f"there, a layer keeps {kept.min():.0f} to {kept.max():.0f} % of its channels"
        )
        widths.set(xlabel="layer", ylabel="channels kept, %")
        widths.xaxis.set_major_locator(MaxNLocator(integer=True))
        times.set_title("time at each share")
        times.axline((0, 0), slope=1, color="black", lw=0.6, ls="dashed")
        times.annotate("time = MACs", (62, 55), rotation=38, fontsize=7, ha="center")
        times.set(xlabel="multiply-accumulates, % of $N_B$", ylabel="step time, % of $N_B$")
        top = 105 * max(1.0, rows.loc[rows["item"] == "step seconds", "share"].max())
        times.set(xlim=(0, 105), ylim=(0, top))
        figure.legend(*widths.get_legend_handles_labels(), loc="outside lower center", ncols=7)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure
