"""One style for all figures: sizes, colours, panels, legends.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart, and never the
only difference. No text is smaller than 7 points at the printed width of 3.5 or 7 inches.
"""

from __future__ import annotations

import io
import math

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure

HALF, FULL = 3.5, 7.0  # inches: one column of print, and two
BLACK, GREY, ORANGE, SKY, GREEN = "#000000", "#8C8C8C", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
BASE, PROXY = BLUE, ORANGE
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
    "pdf.fonttype": 3,  # text that can be searched; TrueType would take as long as all the drawing
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


def grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels, wrapped at three a row, each ``height`` inches high."""
    columns = min(3, count)
    lines = math.ceil(count / columns)
    width = HALF if columns == 1 else FULL
    figure = Picture(figsize=(width, 0.7 + height * lines), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def legend(figure: Figure, handles: list) -> None:
    """Put one legend under all panels."""
    columns = len(handles) if figure.get_figwidth() > HALF else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, 5))


def time_unit(longest: float) -> tuple[float, str]:
    """Return seconds in a unit, and the unit's name, fit for times up to ``longest`` seconds."""
    for size, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if longest >= 2 * size:
            return size, unit
    return 1.0, "seconds"


def macs_unit(most: float) -> tuple[float, str]:
    """Return multiply-accumulates in a unit, and the unit's name, fit for values up to ``most``."""
    power = next((p for p in (18, 15, 12, 9, 6) if most >= 2 * 10**p), 0)
    return 10.0**power, f"$10^{{{power}}}$ MACs" if power else "MACs"
