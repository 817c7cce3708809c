"""What the explorer and the study panel share: controls, pictures, lines of HTML.

For ipywidgets 7.7 and 8.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from html import escape

import ipywidgets
from matplotlib.figure import Figure

PICTURE_WIDTH = 690  # pixels: with its controls, one screen of 1280 x 800 in JupyterLab
DPI = 125


def dropdown(
    name: str, tip: str, options: Iterable[str | tuple[str, object]] = (), width: str = "19em"
) -> ipywidgets.Dropdown:
    """Return a dropdown; ``options`` are values, or pairs of text and value."""
    made = ipywidgets.Dropdown(options=list(options), description=name)
    return fit(made, tip, width)


def slider(name: str, tip: str, low: int, high: int, width: str = "19em") -> ipywidgets.IntSlider:
    """Return a slider for whole numbers that reports a change once, on release."""
    made = ipywidgets.IntSlider(min=low, max=high, description=name, continuous_update=False)
    return fit(made, tip, width)


def fit(widget: ipywidgets.Widget, tip: str, width: str) -> ipywidgets.Widget:
    """Return a control with its tooltip, a width, and room for a short name."""
    widget.style.description_width = "5.5em"
    widget.layout.width = width
    # ipywidgets 7 knows tooltips by another name
    setattr(widget, "tooltip" if widget.has_trait("tooltip") else "description_tooltip", tip)
    return widget


def row(*widgets: ipywidgets.Widget) -> ipywidgets.Box:
    """Return widgets side by side, wrapped where the page is narrow."""
    return ipywidgets.Box(widgets, layout={"flex_flow": "row wrap"})


def blank_picture() -> ipywidgets.Image:
    """Return a place for a PNG, hidden until there is one."""
    narrow = "calc(100% - 4px)"  # less its margins
    layout = {"width": f"{PICTURE_WIDTH}px", "max_width": narrow, "display": "none"}
    return ipywidgets.Image(format="png", layout=layout)


def show(picture: ipywidgets.Image, content: bytes) -> None:
    """Show a PNG; an empty one hides the picture."""
    if content:
        picture.value = content
    picture.layout.display = "" if content else "none"


def png(figure: Figure) -> bytes:
    """Return a figure as PNG for the screen, compressed quickly rather than well."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, pil_kwargs={"compress_level": 1})
    return content.getvalue()


def status_line(which: str, text: str) -> str:
    """Return ``text`` (HTML) as a line that screen readers announce."""
    return f'<span role="status" data-testid="{which}-status">{text}</span>'


def error_line(text: str, more: str = "") -> str:
    """Return an error as HTML, with what was printed (``more``) folded away."""
    fold = f"<details><summary>what it printed</summary><pre>{escape(more)}</pre></details>"
    return (
        f'<div role="alert" data-testid="error" style="color: #B34700; line-height: 1.4">'
        f"<b>Error.</b> {escape(text)}</div>{fold if more else ''}"
    )
