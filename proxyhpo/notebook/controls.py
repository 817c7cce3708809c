"""Small parts of the explorer and the study panel: controls, pictures, lines of words.

For ipywidgets 7.7 and 8.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

import ipywidgets

from proxyhpo.report.tables import label

PICTURE_WIDTH = "920px"

CONTROLS = {  # what each control is called, and what it does
    "profile": ("profile", "the scale of the runs: pictures, epochs, trials"),
    "dataset": ("data set", "the pictures that were trained on"),
    "network": ("network", "the base network N_B"),
    "sampler": ("sampler", "the HPO method that chose the configurations"),
    "proxy": ("stand-in", "what was tuned or ranked in place of N_B"),
    "pruning_ratio": ("pruning ratio", "the share of N_B's multiply-accumulates that is removed"),
}

STYLE = {
    "style": {"description_width": "6.5em"},
    "layout": {"width": "19em"},
}


def dropdown(words: str, options: Iterable[tuple[str, object]] = ()) -> ipywidgets.Dropdown:
    """Return a dropdown named ``words``; ``options`` are pairs of text and value."""
    return ipywidgets.Dropdown(options=list(options), description=words, **STYLE)


def with_tip(widget: ipywidgets.Widget, words: str) -> ipywidgets.Widget:
    """Give a control its tooltip, which ipywidgets 7 knows by another name."""
    setattr(widget, "tooltip" if widget.has_trait("tooltip") else "description_tooltip", words)
    return widget


def blank_picture() -> ipywidgets.Image:
    """Return a place for a PNG, hidden until there is one."""
    layout = {"width": PICTURE_WIDTH, "max_width": "100%", "display": "none"}
    return ipywidgets.Image(format="png", layout=layout)


def shown_as(name: str, value: Any) -> str:
    """Return how a value is called in its control."""
    if name == "pruning_ratio":
        return f"{100 * value:g} % removed"
    if name == "dataset":
        return label(value)
    nothing = {"sampler": "none: ranking study only", "proxy": "none yet"}
    return value or nothing.get(name, value)


def status_line(which: str, words: str) -> str:
    """Return a line that screen readers are told of; ``words`` is HTML of ours."""
    return f'<span role="status" data-testid="{which}-status">{words}</span>'


def error_line(words: str, more: str = "") -> str:
    """Return an error as HTML, and what else there is to read about it folded away."""
    fold = f"<details><summary>what it printed</summary><pre>{escape(more)}</pre></details>"
    return (
        f'<div role="alert" data-testid="error" style="color: #B34700; line-height: 1.4">'
        f"<b>Error.</b> {escape(words)}</div>{fold if more else ''}"
    )


def problem_lines(problems: Iterable[str]) -> str:
    """Return what went wrong without stopping anything, as HTML, a line each."""
    return "".join(
        f'<div role="alert" data-testid="problem" style="line-height: 1.4">{escape(one)}</div>'
        for one in problems
    )
