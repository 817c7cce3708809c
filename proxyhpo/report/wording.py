"""Names and numbers in words, the same in tables, sentences and figures."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from proxyhpo.analysis.cost import CELL
from proxyhpo.analysis.ranking import CEILING

PAPER_REDUCTION = 37.0  # per cent less time for the HPO framework, "up to" (arXiv:2205.08695)
SMOKE = "smoke run: not evidence"


def place(line: dict) -> str:
    """Return the name of a line's data set, network and stand-in."""
    return f"{cell_label(line)} {stand_in_label(line['proxy'], line['pruning_ratio'])}"


def label(dataset: str) -> str:
    """Return a data set's name without the path that it was read from."""
    kind, colon, path = dataset.partition(":")
    return path.rstrip("/").rpartition("/")[2] if colon else kind


def cell_label(line: dict) -> str:
    """Return the name of a line's data set, network and, where it has one, sampler."""
    return " / ".join([label(line["dataset"]), *(line[k] for k in CELL[2:] if line.get(k))])


def stand_in_label(proxy: str, pruning_ratio: float) -> str:
    """Return a stand-in's name with the share of N_B's cost that it was made for."""
    if proxy == CEILING:
        return "N_B reseeded"
    return f"{proxy} {100 * (1 - pruning_ratio):.0f} %" if proxy else "no stand-in yet"


def number(value: float, form: str) -> str:
    """Return a number with a true minus sign, and without one where it rounds to zero."""
    text = f"{value:{form}}"
    return text.replace("-", "−" if any(digit in text for digit in "123456789") else "")


def value(line: dict, name: str, form: str, unit: str = "") -> str:
    """Return a value and, in brackets, its interval where it has one; "-" where it is missing."""
    if not np.isfinite(line.get(name, np.nan)):
        return "-"
    low, high = line.get(f"{name}_low", np.nan), line.get(f"{name}_high", np.nan)
    text = number(line[name], form) + unit
    return f"{text} [{number(low, form)}, {number(high, form)}]" if np.isfinite(low) else text


def span(counts: Iterable[int]) -> str:
    """Return "3", or "3 to 5" where the counts differ."""
    counts = list(counts)
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low} to {high}"


def matching(table: pd.DataFrame, line: dict, keys: list[str]) -> list[dict]:
    """Return the lines of ``table`` that agree with ``line`` in ``keys``."""
    if table.empty:
        return []
    same = np.logical_and.reduce([table[key] == line[key] for key in keys])
    return table[same].to_dict("records")
