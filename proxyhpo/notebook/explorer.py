"""Controls over recorded rows: choose an experiment and a stand-in, see what came of it.

Nothing here loads torch.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd

from proxyhpo.config import PROFILES, InputError, home
from proxyhpo.notebook.controls import (
    CONTROLS,
    blank_picture,
    dropdown,
    error_line,
    problem_lines,
    shown_as,
    status_line,
    with_tip,
)
from proxyhpo.notebook.explorer_drawing import overview_figure, png
from proxyhpo.notebook.explorer_tables import CHOICE, Tables, choices
from proxyhpo.report.tables import SMOKE
from proxyhpo.rows import load_results

MOST_PICTURES = 200  # kept in memory, under 100 kB each

_SHOWN = ("purpose", "role", "proxy", "seed", "trial", "state", "epochs")
_MEASURED = ("val_accuracy", "test_accuracy", "wall_seconds")


def recorded(out: str | Path | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of every profile in ``out`` and what couldn't be read.

    ``out`` is the folder that holds ``results/``; :func:`proxyhpo.config.home` by default.
    """
    folder = (Path(out).expanduser() if out else home()) / "results"
    order = [*PROFILES, "custom"]
    order.append(order.pop(order.index("smoke")))  # no evidence, so the last that is offered
    found = [folder / name for name in order if (folder / name).is_dir()]
    found += sorted(path for path in folder.glob("*") if path.is_dir() and path not in found)
    parts, problems = [], []
    for path in found:
        try:
            parts.append(load_results(path))
        except InputError as error:
            problems.append(str(error))
    parts = [part for part in parts if len(part)]
    if not parts:
        return load_results(folder / "none"), [*problems, _no_rows(folder)]
    return pd.concat(parts, ignore_index=True), problems


def _no_rows(folder: Path) -> str:
    return (
        f"No rows are recorded in {folder}. They come with a clone of the repository (give its "
        "folder as `out`); ./run_all.sh records those of profile smoke in 10 minutes; and the "
        "panel below runs a small study."
    )


class Explorer:
    """Controls over recorded rows: choose an experiment and a stand-in, see what came of it.

    Each control offers what is recorded for the choices above it, so there is always something to
    see. A choice that still exists is kept when one above it changes.

    Attributes:
        tables: all that can be shown.
        controls: the dropdowns, by the column that they choose.
        picture: the figure, as PNG.
        status, numbers, table: what was drawn, its figures in words, and its rows.
        widget: all of them, to be displayed.
    """

    def __init__(self, out: str | Path | None = None) -> None:
        rows, problems = recorded(out)
        self.tables = Tables.of(rows)
        order = list(dict.fromkeys(rows["profile"]))
        self._choices = choices(self.tables).sort_values(
            "profile", key=lambda names: names.map(order.index), kind="stable"
        )
        self._drawn: dict[tuple, bytes] = {}
        self._narrowing = False
        self.controls = {
            name: with_tip(dropdown(words), tip) for name, (words, tip) in CONTROLS.items()
        }
        self.picture = blank_picture()
        self.status, self.numbers, self.table = (ipywidgets.HTML() for _ in range(3))
        above = ipywidgets.HTML(problem_lines(problems))
        if self._choices.empty:
            self.widget = ipywidgets.VBox([above])
            return
        self._narrow(0)
        self._redraw()
        for at, control in enumerate(self.controls.values()):
            control.observe(lambda _, at=at: self._changed(at), "value")
        controls = ipywidgets.Box(list(self.controls.values()), layout={"flex_flow": "row wrap"})
        self.widget = ipywidgets.VBox(
            [above, controls, self.status, self.picture, self.numbers, self.table]
        )

    @property
    def choice(self) -> dict[str, object]:
        """What is chosen, by column."""
        return {name: control.value for name, control in self.controls.items()}

    def _changed(self, at: int) -> None:
        if not self._narrowing:
            self._narrow(at + 1)
            self._redraw()

    def _narrow(self, first: int) -> None:
        """Offer in the controls from the ``first`` on what exists given those before it."""
        self._narrowing = True
        try:
            there = self._choices
            for at, (name, control) in enumerate(self.controls.items()):
                if at >= first:
                    kept, values = control.value, list(dict.fromkeys(there[name]))
                    with control.hold_sync():  # one message to the page, not one a change
                        control.options = [(shown_as(name, value), value) for value in values]
                        control.value = kept if kept in values else values[0]
                    control.disabled = len(values) == 1
                there = there[there[name] == control.value]
        finally:
            self._narrowing = False

    def _redraw(self) -> None:
        began, choice = time.perf_counter(), self.choice
        try:
            key = tuple(choice.values())
            if key not in self._drawn:
                if len(self._drawn) >= MOST_PICTURES:
                    self._drawn.pop(next(iter(self._drawn)))
                self._drawn[key] = png(overview_figure(self.tables, choice))
            mine = self.tables.narrowed(choice)
            self.numbers.value, self.table.value = _numbers(mine, choice), _table(mine.rows, choice)
            self.picture.value, self.picture.layout.display = self._drawn[key], ""
        except Exception as error:  # a callback's traceback goes where nobody looks
            self.picture.layout.display = "none"
            self.numbers.value = self.table.value = ""
            self.status.value = error_line(f"This choice can't be drawn: {error}")
            return
        took = 1000 * (time.perf_counter() - began)
        note = f" <b>{SMOKE}</b>." if choice["profile"] == "smoke" else ""
        self.status.value = status_line(
            "explorer", f"{len(mine.rows)} rows, drawn in {took:.0f} ms.{note}"
        )


def _interval(line: Mapping[str, Any], name: str, form: str, unit: str = "") -> str:
    """Return a value with its interval; an empty text where there is no value."""
    value, low, high = (line[f"{name}{bound}"] for bound in ("", "_low", "_high"))
    if not np.isfinite(value):
        return ""
    known = f" [{low:{form}}, {high:{form}}]" if np.isfinite(low) else ""
    return f"{value:{form}}{unit}{known}".replace("-", "−")


def _numbers(tables: Tables, choice: Mapping[str, object]) -> str:
    """Return the picture's numbers in words, for those who can't see it."""
    told = []
    for line in tables.speeds.to_dict("records"):
        for scope, words in (("search", "trials on N_P alone"), ("hpo", "with verification")):
            if value := _interval(line, f"reduction_{scope}_wall", ".0f", " %"):
                told.append(f"time saved, {words}: {value}")
        told += [line["note"]] if line["note"] else []
    ranks = tables.ranks
    names = {choice["proxy"]: "this stand-in", "base reseeded": "N_B reseeded"}
    for line in ranks.to_dict("records"):
        ratio = line["pruning_ratio"]
        if line["proxy"] in names and ratio in (choice["pruning_ratio"], 0.0):
            rho = _interval(line, "rho", ".2f")
            half = _interval(line, "rho_half", ".2f")
            told.append(
                f"{names[line['proxy']]} ranks with ρ {rho or '-'}, better half {half or '-'} "
                f"(n = {line['n']})"
            )
    note = "Brackets and bars are 95 % bootstrap intervals."
    return f'<div style="line-height: 1.5">{escape("; ".join(told))}. {note}</div>' if told else ""


def _table(rows: pd.DataFrame, choice: Mapping[str, object]) -> str:
    """Return rows as an HTML table that scrolls, with a link that saves them whole as CSV."""
    parameters = [column for column in rows if column.startswith("param_")]
    columns = [*_SHOWN, *parameters, *_MEASURED]
    columns = [column for column in columns if rows[column].notna().any()]
    head = "".join(f'<th scope="col">{escape(c.removeprefix("param_"))}</th>' for c in columns)
    cells = zip(*([_cell(value) for value in rows[column]] for column in columns), strict=True)
    body = "".join("<tr><td>" + "</td><td>".join(line) + "</td></tr>" for line in cells)
    name = "-".join(shown_as(key, choice[key]).replace(" % removed", "") for key in CHOICE)
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    content = base64.b64encode(rows.to_csv(index=False).encode()).decode()
    link = f"data:text/csv;charset=utf-8;base64,{content}"
    return (
        f'<a style="text-decoration: underline" download="{name}.csv" href="{link}">'
        f"Download these {len(rows)} rows, all columns (CSV)</a>"
        '<div tabindex="0" role="region" aria-label="the rows that are shown" '
        'style="max-height: 16em; overflow: auto; margin-top: 0.5em">'
        '<table style="border-spacing: 1em 0; line-height: 1.5; text-align: left">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}"
    return "" if value == -1 else escape(str(value))
