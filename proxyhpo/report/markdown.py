"""How a number, an interval and a table are written in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from operator import itemgetter
from typing import Any

import pandas as pd

Line = dict[str, Any]
Columns = dict[str, Callable[[Line], object]]
"""Columns by their heads: what each shows of a line."""


def markdown(lines: pd.DataFrame | Iterable[Line], columns: Columns | None = None) -> str:
    """Return a Markdown table: of each line what ``columns`` show, or else all that it has."""
    lines = lines.to_dict("records") if isinstance(lines, pd.DataFrame) else list(lines)
    columns = columns or {head: itemgetter(head) for line in lines for head in line}
    body = [[str(cell(line)) for cell in columns.values()] for line in lines]
    return "\n".join(f"| {' | '.join(one)} |" for one in (columns, ["---"] * len(columns), *body))


def shown(value: float, form: str) -> str:
    """Return a number as text, "-" where there is none; what rounds to zero has no minus."""
    return f"{value:{form.replace('.', 'z.')}}" if math.isfinite(value) else "-"


def between(estimate: float, low: float, high: float, form: str = ".1f", unit: str = "") -> str:
    """Return an estimate with its interval: "1.1 [-0.1, 2.4] points"; infinity is "never"."""
    if math.isnan(estimate):
        return "-"
    text, *ends = (
        "never" if math.isinf(one) else shown(one, form) for one in (estimate, low, high)
    )
    if not (math.isnan(low) or math.isnan(high)):
        text += f" [{', '.join(ends)}]"
    return f"{text} {unit}".strip()


def measured(line: Line, unit: bool = True) -> str:
    """Return what a claim's line measured, with its interval."""
    form = ".0f" if line["unit"].startswith("%") else ".1f"
    name = line["unit"].replace("% of time", "%") if unit else ""
    return between(line["estimate"], line["low"], line["high"], form, name)


def span(values: Collection[float], form: str = "") -> str:
    """Return the least and the greatest of ``values``, or the one that they are."""
    low, high = (f"{end:{form}}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
