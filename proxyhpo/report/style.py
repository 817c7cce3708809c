"""One style for all figures: sizes, colours, markers, panels.

Colours are seaborn's "colorblind" palette, after Okabe and Ito (2008), and never the only
difference. Figures are 7 inches wide and legible at 700 pixels.
"""

from __future__ import annotations

import io
import math
import re

import matplotlib as mpl
import seaborn
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure

WIDTH = 7.0  # inches
BLUE, ORANGE, GREEN, RED, PINK, _, _, GREY, _, SKY = seaborn.color_palette("colorblind").as_hex()
BLACK = "#000000"
BASE, PROXY = BLUE, ORANGE
OUTCOMES = {"yes": (GREEN, "o"), "no": (RED, "X"), "undecided": (GREY, "D")}
STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "figure.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and restyled
    "svg.hashsalt": "proxyhpo",
    "pdf.fonttype": 3,
}
KINDS = {
    "base": (BLUE, "o"),
    "uniform": (ORANGE, "s"),
    "snip": (RED, "D"),
    "epochs": (SKY, "^"),
    "subset": (PINK, "v"),
    "resolution": (GREEN, "P"),
    "frozen": (GREY, "X"),
    "uniform+epochs": (BLACK, "*"),
}
SIGNALS = {"averaged": "<", "loss": ">"}
NETWORKS = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "mobilenetv2": "MobileNetV2",
    "vgg16_bn": "VGG-16-BN",
}
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tinyimagenet": "Tiny ImageNet"}
SWITCHES = {"trial pruner never asked": "without a trial pruner"}
"""Switches of the released code that are recorded under another name than readers need."""
WAYS = {"ladder": "ladder: one epoch, a fifth goes on"}
"""Ways whose recorded names leave out what readers need."""
SAMPLERS = {
    "cmaes": "CMA-ES",
    "hyperband": "Hyperband",
    "priorband": "PriorBand",
    "random": "random search",
}
"""Samplers whose names aren't written in capitals."""
SMOKE = "SMOKE RUN, NO EVIDENCE"


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
        self.savefig(content, format="png", dpi=110)
        return content.getvalue()


def panels(count: int, height: float = 2.2, *, equal: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels, each ``height`` inches high, on equal axes if asked."""
    columns = 2 if count in (2, 4) else min(3, count)
    lines = math.ceil(count / columns)
    figure = Picture(figsize=(WIDTH, 0.9 + height * lines), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False, sharex=equal, sharey=equal).flat)
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[:count] if equal else ():
        axes.tick_params(labelbottom=True)
    return figure, grid[:count]


def look(stand_in: str) -> tuple[str, str]:
    """Return colour and marker of a stand-in or view, the same in every figure."""
    entrant, _, view = stand_in.partition(":")
    kinds = "+".join(part.partition("@")[0] for part in entrant.split("+"))
    colour, marker = KINDS.get(kinds, (GREEN, "h"))
    return colour, SIGNALS.get(view.partition(" ")[2], marker)


def label(stand_in: str) -> str:
    """Return a stand-in or view in a reader's words: "uniform width, 25 %"."""
    entrant, _, view = stand_in.partition(":")
    if view:
        epoch, _, signal = view.partition(" ")
        shown = {"averaged": ", averaged weights", "loss": ", by loss"}.get(signal, "")
        return f"{'N_B' if entrant == 'base' else label(entrant)}, epoch {epoch}{shown}"
    if entrant == "base":
        return "N_B"
    names = {"uniform": "uniform width", "snip": "snip", "epochs": "epochs", "subset": "pictures"}
    parts = []
    for part in entrant.split("+"):
        kind, at, share = part.partition("@")
        parts.append(names.get(kind, kind) + (f" {float(share):.0%}" if at else ""))
    return " + ".join(parts).replace("%", " %")


def case_label(case: str) -> str:
    """Return a claim's case in a reader's words: "snip 25 %, 18 trials"."""
    return re.sub(r"\w+@[\w.@+]+", lambda stand_in: label(stand_in[0]), case)


def table_label(name: str) -> str:
    """Return a table's name in a reader's words: "CIFAR-10, ResNet-20"."""
    dataset, _, network = name.partition("-")
    return f"{DATASETS.get(dataset, dataset)}, {NETWORKS.get(network, network)}"


def switch_label(name: str) -> str:
    """Return a switch of the released code in a reader's words."""
    return SWITCHES.get(name, name)


def sampler_label(name: str) -> str:
    """Return a sampler's name in a reader's words: "CMA-ES"."""
    return SAMPLERS.get(name, name.upper())


def way_label(name: str) -> str:
    """Return a way of tuning in a reader's words: "TPE on epochs 30 %"."""
    sampler, on, rest = name.partition(" on ")
    stand_in, comma, more = rest.partition(",")
    if not on:
        return WAYS.get(name, case_label(name))
    return f"{sampler_label(sampler)}{on}{label(stand_in)}{comma}{more}"


def legend(figure: Figure, axes: list[Axes], columns: int = 4) -> None:
    """Put one legend of all that the panels show under them."""
    shown: dict[str, object] = {}
    for one in axes:
        for handle, text in zip(*one.get_legend_handles_labels(), strict=True):
            shown.setdefault(text, handle)
    if shown:
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns)


def time_unit(longest: float) -> tuple[float, str]:
    """Return seconds in a unit, and the unit's name, fit for times up to ``longest`` seconds."""
    for size, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if longest >= 2 * size:
            return size, unit
    return 1.0, "seconds"
