"""The explorer's pictures: one experiment and one stand-in at a glance, drawn in a blink.

Panels have fixed places: to lay them out by the text in them, as the printed figures are, takes
longer than to draw them. They are drawn from :class:`~proxyhpo.notebook.explorer_tables.Tables`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from proxyhpo.analysis.bootstrap import better_half
from proxyhpo.analysis.cost import STAND_IN
from proxyhpo.analysis.ranking import CEILING
from proxyhpo.config import InputError
from proxyhpo.notebook.explorer_tables import Tables, lines_of
from proxyhpo.report.cost import PURPOSES
from proxyhpo.report.style import (
    BASE,
    BLACK,
    GREEN,
    GREY,
    ORANGE,
    PROXY,
    RED,
    SKY,
    STYLE,
    Picture,
)
from proxyhpo.report.tables import PAPER_REDUCTION, SMOKE, cell_label, stand_in_label

DPI = 100
_SCREEN = {**STYLE, "text.hinting": "none"}  # quicker, and hardly to be told apart

_WIDTH, _HEAD, _ROW = 9.2, 0.42, 2.95  # inches: the picture, its title, a row of panels
_BELOW, _HIGH = 0.98, 1.62  # inches: of a row, under its axes (labels, legend), and its axes
_TIMES = ((1.12, 1.75), (3.5, 1.05), (6.75, 2.3))  # inches: left edge and width of each panel
_RANKS = ((0.62, 2.25), (3.6, 2.25), (6.75, 2.3))
_SCOPES = {"search": "trials on N_P", "hpo": "+ verification", "total": "+ final training"}
_UNITS = {"wall": ("time", BASE, "o", "●"), "macs": ("multiply-accumulates", ORANGE, "s", "■")}


def overview_figure(tables: Tables, choice: Mapping[str, Any]) -> Figure:
    """Draw one experiment and stand-in: time saved, ledger, any-time curve, ranking, trust.

    The upper row of panels is there where HPO was run, the lower one where stand-ins were ranked.

    Args:
        tables: of all rows.
        choice: a value for each of :data:`~proxyhpo.notebook.explorer_tables.CHOICE`, out of
            :func:`~proxyhpo.notebook.explorer_tables.choices`.

    Raises:
        InputError: nothing is recorded for that choice.
    """
    mine = tables.narrowed(choice)
    above, below = len(mine.spent) > 0, len(mine.points) > 0
    if not above and not below:
        raise InputError(f"nothing is recorded for {', '.join(map(str, choice.values()))}")
    high = _HEAD + _ROW * (above + below)
    with mpl.rc_context(_SCREEN):
        figure = Picture(figsize=(_WIDTH, high))
        title = [cell_label(dict(choice)), f"profile {choice['profile']}"]
        title.insert(1, stand_in_label(choice["proxy"], choice["pruning_ratio"]))
        figure.text(0.01, 1 - 0.1 / high, ", ".join(title), va="top", weight="bold", fontsize=9)
        if choice["profile"] == "smoke":
            figure.text(0.99, 1 - 0.1 / high, SMOKE, va="top", ha="right", color=RED, fontsize=9)
        if above:
            saved, ledger, curve = _panels(figure, _TIMES, high - _HEAD - _ROW)
            _draw_saved(saved, mine.speeds)
            _draw_ledger(ledger, mine.spent)
            _draw_curves(curve, mine.curves)
        if below:
            scatter, *trust = _panels(figure, _RANKS, 0)
            _draw_scatter(scatter, mine.points, choice)
            for axes, name in zip(trust, ("rho", "regret1"), strict=True):
                _draw_trust(axes, mine.ranks, choice, name)
    return figure


def _panels(figure: Figure, places: Sequence[tuple[float, float]], bottom: float) -> list[Axes]:
    """Return axes at ``places``, in a row that begins ``bottom`` inches above the lower edge."""
    width, high = figure.get_size_inches()
    panels = []
    for left, wide in places:
        place = (left / width, (bottom + _BELOW) / high, wide / width, _HIGH / high)
        axes = figure.add_axes(place)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        panels.append(axes)
    return panels


Entry = tuple[str, str, str]
"""What a sign means: the sign as text, its colour, the words."""


def _title(axes: Axes, words: str, left: float = -0.45) -> None:
    """Put a title at a fixed place, ``left`` inches of the axes' edge or right of it.

    Without a height, matplotlib would look for a free one each time that it draws.
    """
    axes.set_title(words, x=left / _wide(axes), y=1.04, weight="bold")


def _key(axes: Axes, entries: Sequence[Entry], left: float = -0.45) -> None:
    """Say under the axes, in two columns, what the signs mean; a legend takes ten times as long."""
    wide = _wide(axes)
    look = {"transform": axes.transAxes, "va": "center", "fontsize": 7}
    for index, (sign, colour, words) in enumerate(entries):
        x, y = (left + 1.5 * (index % 2)) / wide, (-0.52 - 0.17 * (index // 2)) / _HIGH
        axes.text(x, y, sign, color=colour, **look)
        axes.text(x + 0.2 / wide, y, words, **look)


def _wide(axes: Axes) -> float:
    return axes.get_position().width * _WIDTH


def _say(axes: Axes, words: str) -> None:
    look = {"ha": "center", "va": "center", "color": "#555555", "backgroundcolor": "white"}
    axes.text(0.5, 0.5, words, transform=axes.transAxes, **look)


def _draw_saved(axes: Axes, speeds: pd.DataFrame) -> None:
    """Points with intervals: per cent less time and MACs on N_P, counted in three ways."""
    _title(axes, "saved by HPO on N_P, %", -1.0)
    axes.set_yticks(range(len(_SCOPES)), _SCOPES.values())
    axes.set_ylim(len(_SCOPES) - 0.45, -0.55)
    (line,) = speeds.to_dict("records")
    for shift, (unit, (_, colour, marker, _)) in zip((-0.13, 0.13), _UNITS.items(), strict=True):
        names = [f"reduction_{scope}_{unit}" for scope in _SCOPES]
        at = np.arange(len(_SCOPES)) + shift
        bounds = [[line[f"{name}_low"], line[f"{name}_high"]] for name in names]
        axes.hlines(at, *np.transpose(bounds), color=colour, lw=1)
        axes.plot([line[name] for name in names], at, marker, color=colour, ms=4.5)
    axes.axvline(0, color=GREY, lw=0.6, zorder=0)
    axes.axvline(PAPER_REDUCTION, color=BLACK, ls="dashed", lw=0.9, zorder=0)
    if not np.isfinite(line["reduction_search_wall"]):
        axes.set_xlim(-10, 100)
        _say(axes, line["note"].replace(": ", ":\n").replace(", ", ",\n"))
    entries = [(sign, colour, words) for words, colour, _, sign in _UNITS.values()]
    _key(axes, [*entries, ("┅", BLACK, f"paper: up to {PAPER_REDUCTION:.0f} %")], -1.0)


def _draw_ledger(axes: Axes, spent: pd.DataFrame) -> None:
    """Stacked bars: the seconds that a user waits for, by purpose, on N_B and by way of N_P."""
    _title(axes, "where the time goes")
    sums = spent.set_index(["way", "purpose"])["wall_seconds"]
    factor, unit = _unit(sums.groupby("way").sum().max())
    bottom = np.zeros(2)
    for purpose, (_, colour) in PURPOSES.items():
        heights = np.array([sums.get((way, purpose), 0.0) / factor for way in ("base", "proxy")])
        axes.bar([0, 1], heights, 0.7, bottom, color=colour, ec="black", lw=0.3)
        bottom += heights
    axes.set_xticks([0, 1], ["N_B", "N_P"])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(f"wall-clock {unit}")
    words = [
        (colour, name.replace("$", ""))
        for purpose, (name, colour) in PURPOSES.items()
        if purpose != "lost" or "lost" in sums.index.get_level_values("purpose")
    ]
    look = {"transform": axes.transAxes, "va": "center", "fontsize": 7}
    for at, (colour, name) in enumerate(words):
        axes.text(1.08, 0.1 + 0.2 * at, "■", color=colour, **look)
        axes.text(1.22, 0.1 + 0.2 * at, name, **look)


def _unit(seconds: float) -> tuple[float, str]:
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def _draw_curves(axes: Axes, curves: pd.DataFrame) -> None:
    """Curves: best validation accuracy so far, one a seed."""
    _title(axes, "any-time: who knew the best when?")
    axes.set_ylabel("best so far, %")
    looks = {("base", "base"): (BASE, "-", ""), ("proxy", "proxy"): (PROXY, "--", "")}
    verified = (GREEN, ":", "o")
    factor, unit = _unit(curves["wall"].max() if len(curves) else 0.0)
    width = 0.7 if len(set(curves["seed"] if len(curves) else ())) > 1 else 1.3
    for key, curve in curves.groupby(["way", "measured_on", "seed"]) if len(curves) else ():
        colour, style, marker = looks.get(key[:2], verified)
        marker = marker if len(curve) > 1 else "o"  # a single trial makes no line
        axes.step(
            curve["wall"] / factor, 100 * curve["best"], style, where="post", color=colour,
            marker=marker, ms=3.5, lw=width,
        )  # fmt: skip
    if curves.empty:
        _say(axes, "no trial was trained in full yet")
    else:
        axes.set_xlim(0, 1.04 * curves["wall"].max() / factor)
    axes.set_xlabel(f"wall-clock {unit}")
    words = ("HPO on N_B", "HPO on N_P, its own accuracy", "N_B, verified")
    signs = (("━", BASE, words[0]), ("┅", PROXY, words[1]), ("●", GREEN, words[2]))
    _key(axes, [signs[0], signs[2], signs[1]])


def _draw_scatter(axes: Axes, points: pd.DataFrame, choice: Mapping[str, Any]) -> None:
    """Points: accuracy on N_B against accuracy on the stand-in, and on N_B reseeded."""
    _title(axes, "does it rank as N_B does?")
    axes.set(xlabel="validation accuracy, N_B, %", ylabel="stand-in, %")
    both = ["on_base", "on_stand_in"]
    ceiling = 100 * points[points["proxy"] == CEILING][both].to_numpy()
    mine = 100 * lines_of(points, choice, STAND_IN)[both].to_numpy()
    axes.plot(*ceiling.T, "x", color=GREY, ms=3.5, mew=0.8)
    if not len(mine):
        _say(axes, "it was not ranked")
    half = better_half(mine[:, 0]) if len(mine) else np.zeros(0, dtype=bool)
    for chosen, colour, marker in ((half, BASE, "o"), (~half, ORANGE, "s")):
        axes.plot(*mine[chosen].T, marker, color=colour, ms=4.2, mec="white", mew=0.3)
    shown = np.concatenate([mine, ceiling])
    low, high = shown.min(), shown.max()
    axes.plot([low, high], [low, high], color=GREY, lw=0.6, zorder=0)
    signs = (("●", BASE, "better half by N_B"), ("■", ORANGE, "the other half"))
    _key(axes, [*signs, ("✕", GREY, "N_B reseeded"), ("─", GREY, "equal accuracy")])


_MEASURES = {
    "rho": ("trust against cost", "Spearman's ρ with N_B"),
    "regret1": ("what trusting it costs", "regret@1, accuracy points"),
}


def _draw_trust(axes: Axes, ranks: pd.DataFrame, choice: Mapping[str, Any], name: str) -> None:
    """Points: a measure of trust against the measured share of N_B's time, all stand-ins."""
    title, label = _MEASURES[name]
    _title(axes, title)
    axes.set(xlabel="measured time, % of N_B", ylabel=label)
    for one in ranks[ranks["proxy"] == CEILING].to_dict("records"):
        axes.axhspan(one[f"{name}_low"], one[f"{name}_high"], color=GREY, alpha=0.25, lw=0)
        axes.axhline(one[name], color=GREY, lw=0.8)
    stand_ins = ranks[ranks["proxy"] != CEILING]
    mine = lines_of(stand_ins, choice, STAND_IN)
    others = stand_ins.drop(mine.index)
    axes.plot(100 * others["share_wall"], others[name], "D", color=SKY, ms=4, mec=BLACK, mew=0.4)
    x = 100 * mine["share_wall"]
    axes.vlines(x, mine[f"{name}_low"], mine[f"{name}_high"], color=RED, lw=1)
    axes.plot(x, mine[name], "o", color=RED, ms=5.5)
    axes.set_xlim(0, 110 * max(stand_ins["share_wall"].max(), 0.1) if len(stand_ins) else 100)
    values = ranks[[name, f"{name}_low", f"{name}_high"]].to_numpy(float)
    values = values[np.isfinite(values)]
    if name == "rho":  # always on the whole scale, so that pictures compare
        axes.set_ylim(min(values.min(initial=0.0), 0.0) - 0.05, 1.05)
    else:
        axes.set_ylim(-0.07 * values.max(initial=1.0), 1.07 * values.max(initial=1.0))
    band = ("■", "#E2E2E2", "N_B reseeded: the ceiling")
    _key(axes, [("●", RED, "this stand-in"), ("◆", SKY, "the others"), band])


def channels_figure(rows: Sequence[Mapping[str, Any]], name: str) -> Figure:
    """Draw the channels of each layer, N_B's and what pruning left of them.

    Args:
        rows: of :func:`proxyhpo.notebook.small_study.channels`: ``item``, ``base`` and ``proxy``.
        name: what the picture is of.
    """
    before, after = ([float(row[key]) for row in rows] for key in ("base", "proxy"))
    at = np.arange(1, len(rows) + 1)
    with mpl.rc_context(_SCREEN):
        figure = Picture(figsize=(_WIDTH, 2.1))
        axes = figure.add_axes((0.06, 0.3, 0.92, 0.54))
        axes.bar(at, after, 0.8, color=PROXY, lw=0)
        axes.bar(at, before, 0.8, fill=False, ec=BASE, lw=1)
        axes.set_title(f"channels kept: {name}", y=1.08, weight="bold")
        axes.set(xlabel="layer, from the picture to the classifier", ylabel="channels")
        axes.set_xlim(0.4, len(rows) + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        look = {"transform": axes.transAxes, "ha": "right", "va": "center"}
        axes.text(0.93, 1.13, "□ N_B", color=BASE, **look)
        axes.text(1.0, 1.13, "■ N_P", color=PROXY, **look)
    return figure


def png(figure: Figure) -> bytes:
    """Return a picture as PNG for the screen, packed quickly rather than tightly."""
    content = io.BytesIO()
    with mpl.rc_context(_SCREEN):
        figure.savefig(content, format="png", dpi=DPI, pil_kwargs={"compress_level": 1})
    return content.getvalue()
