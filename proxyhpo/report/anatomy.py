"""The figure ``anatomy``: what pruning left of each layer, and what that saves in time."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from proxyhpo.config import InputError
from proxyhpo.report.style import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, STYLE, WIDTH, Picture

COSTS = ("multiply-accumulates", "parameters", "step seconds", "step time", "bytes for backward")
LOOKS = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"), (RED, "v"), (SKY, "P"), (GREY, "X")]


def anatomy_figure(rows: pd.DataFrame, asked: float) -> Figure:
    """Lines: share of channels kept by layer; points: measured time against MACs.

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
        figure = Picture(figsize=(WIDTH, 2.9), layout="constrained")
        widths, times = figure.subplots(1, 2, width_ratios=[1.9, 1])
        for (criterion, group), (colour, marker) in zip(
            chosen.groupby("criterion", sort=False), LOOKS, strict=False
        ):
            # the classifier's outputs are the classes, which nothing removes
            layers = group[~group["item"].isin(COSTS)]["share"].to_numpy()[:-1]
            widths.plot(range(1, len(layers) + 1), 100 * layers, color=colour, label=criterion)
            points = rows[rows["criterion"] == criterion].pivot_table(
                index="asked", columns="item", values="share", sort=False
            )
            times.plot(
                100 * points["multiply-accumulates"],
                100 * points["step seconds"],
                marker,
                color=colour,
                ms=4,
            )
        widths.set_title(f"channels kept at {100 * asked:g} % of the multiply-accumulates")
        widths.set(xlabel="layer", ylabel="channels kept, %", ylim=(0, 105))
        times.set_title("what that saves")
        times.axline((0, 0), slope=1, color="black", lw=0.6, ls="dashed")
        times.annotate("time = MACs", (62, 55), rotation=38, fontsize=7, ha="center")
        times.set(xlabel="multiply-accumulates, % of $N_B$", ylabel="step time, % of $N_B$")
        top = 105 * max(1.0, rows.loc[rows["item"] == "step seconds", "share"].max())
        times.set(xlim=(0, 105), ylim=(0, top))
        figure.legend(*widths.get_legend_handles_labels(), loc="outside lower center", ncols=7)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure
