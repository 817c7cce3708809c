"""Controls for a notebook: look through recorded rows, and run a small experiment.

For ipywidgets 7.7 and 8. What is shown are pictures and tables in plain widgets, so that a page is
never blank while something is drawn, and JupyterLab, Voila and Colab show the same. Nothing here
loads torch: experiments run in a process of their own.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd

from proxyhpo.config import PROFILES, InputError, home
from proxyhpo.explorer_drawing import (
    CHOICE,
    Tables,
    channels_figure,
    choices,
    overview_figure,
    png,
)
from proxyhpo.report import SMOKE, label, stand_in_label
from proxyhpo.results import load_results
from proxyhpo.small_study import DATASET, PROFILE, STAND_INS, Settings, SmallStudy

SECONDS_BETWEEN_LOOKS = 0.5
MOST_PICTURES = 200  # kept in memory, under 100 kB each
PICTURE_WIDTH = "920px"

_CONTROLS = {  # what each control is called, and what it does
    "profile": ("profile", "the scale of the runs: pictures, epochs, trials"),
    "dataset": ("data set", "the pictures that were trained on"),
    "network": ("network", "the base network N_B"),
    "sampler": ("sampler", "the HPO method that chose the configurations"),
    "proxy": ("stand-in", "what was tuned or ranked in place of N_B"),
    "pruning_ratio": ("pruning ratio", "the share of N_B's multiply-accumulates that is removed"),
}
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
            name: _tip(_dropdown(words), tip) for name, (words, tip) in _CONTROLS.items()
        }
        self.picture = _picture()
        self.status, self.numbers, self.table = (ipywidgets.HTML() for _ in range(3))
        above = ipywidgets.HTML(_problems(problems))
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
                        control.options = [(_word(name, value), value) for value in values]
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
            self.status.value = _error(f"This choice can't be drawn: {error}")
            return
        took = 1000 * (time.perf_counter() - began)
        note = f" <b>{SMOKE}</b>." if choice["profile"] == "smoke" else ""
        self.status.value = _status(
            "explorer", f"{len(mine.rows)} rows, drawn in {took:.0f} ms.{note}"
        )


class StudyPanel:
    """Controls that run a small experiment on digits: settings, progress, stop, what came of it.

    Attributes:
        controls: the settings, by field of :class:`proxyhpo.small_study.Settings`.
        start, stop: the buttons.
        bar, status: how far it is.
        picture, channels: its figure, and what pruning left of its network.
        widget: all of them, to be displayed.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Make the panel; its studies are kept in ``folder``, a temporary one by default."""
        self._folder = Path(folder or tempfile.mkdtemp(prefix="proxyhpo-"))
        self.study: SmallStudy | None = None
        atexit.register(self._leave, remove=not folder)
        self._seen = -1
        self._task: asyncio.Task[None] | None = None
        profile, default = PROFILES[PROFILE], Settings()
        offered = {
            "network": (profile.networks, "network"),
            "sampler": ((*profile.samplers, "random"), "sampler"),
            "proxy": (STAND_INS, "stand-in"),
            "pruning_ratio": ((0.5, 0.75, 0.9), "pruning ratio"),
        }
        self.controls: dict[str, ipywidgets.Widget] = {}
        for name, (values, words) in offered.items():
            control = _dropdown(words, [(_word(name, value), value) for value in values])
            self.controls[name] = _tip(control, _CONTROLS[name][1])
        for name, most, tip in (
            ("trials", 20, "configurations that each of the two studies tries"),
            ("epochs", profile.epochs, "epochs of a full training"),
        ):
            slider = ipywidgets.IntSlider(
                min=2, max=most, description=name, continuous_update=False, **_STYLE
            )
            self.controls[name] = _tip(slider, tip)
        for name, control in self.controls.items():
            control.value = getattr(default, name)
        self.start = ipywidgets.Button(
            description="Run", icon="play", tooltip=f"HPO on N_B and on N_P, on {DATASET}"
        )
        self.stop = ipywidgets.Button(
            description="Stop", icon="stop", tooltip="Stop now; Run goes on from there",
            disabled=True,
        )  # fmt: skip
        self.start.on_click(lambda _: self.begin())
        self.stop.on_click(lambda _: self.end())
        self.bar = ipywidgets.IntProgress(description="progress", min=0, max=1, **_STYLE)
        self.status = ipywidgets.HTML(_status("study", "not started"))
        self.picture, self.channels = _picture(), _picture()
        controls = ipywidgets.Box(list(self.controls.values()), layout={"flex_flow": "row wrap"})
        line = ipywidgets.Box([self.start, self.stop, self.bar], layout={"flex_flow": "row wrap"})
        self.widget = ipywidgets.VBox([controls, line, self.status, self.picture, self.channels])

    @property
    def settings(self) -> Settings:
        """What is set."""
        return Settings(**{name: control.value for name, control in self.controls.items()})

    def begin(self) -> None:
        """Start a study, and follow it where an event loop runs, as it does in a notebook."""
        if self.study and self.study.running:
            return
        self._seen = -1
        for picture in (self.picture, self.channels):
            picture.layout.display = "none"
        try:
            settings = self.settings
            self.study = SmallStudy(settings, self._folder / settings.name)
        except Exception as error:  # shown in place: nobody reads a callback's traceback
            self.status.value = _error(str(error))
            return
        self._enable(running=True)
        self._show(self.study)
        try:
            self._task = asyncio.get_running_loop().create_task(self.follow())
        except RuntimeError:
            self._task = None  # a script: it calls follow() itself

    def end(self) -> None:
        """Stop the study that runs."""
        if self.study:
            self.study.stop()
            self._show(self.study)

    async def follow(self) -> None:
        """Show what the study has come to until it ends."""
        while self.study and self.study.running:
            self._show(self.study)
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        if self.study:
            self._show(self.study)

    def _leave(self, remove: bool) -> None:
        """When the notebook's kernel ends: no process and no temporary folder outlives it."""
        if self.study:
            self.study.stop()
        if remove:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _enable(self, running: bool) -> None:
        for control in (*self.controls.values(), self.start):
            control.disabled = running
        self.stop.disabled = not running

    def _show(self, study: SmallStudy) -> None:
        try:
            self._look(study)
        except Exception as error:  # shown in place: nobody reads a task's traceback
            self.status.value = _error(f"The study can't be shown: {error}")
            self._enable(running=study.running)

    def _look(self, study: SmallStudy) -> None:
        state, rows = study.state, study.rows
        done, self.bar.max, told = study.progress(rows)
        self.bar.value = done
        if state == "failed":
            last = study.log.strip().rpartition("\n")[2] or "it ended without a word"
            self.status.value = _error(f"The study failed: {last}", study.log)
        elif state == "finished":
            few = "a small study: too little to be evidence"
            self.status.value = _status("study", f"finished, {len(rows)} rows; {few}")
        else:
            best = rows.loc[rows["purpose"] == "study", "val_accuracy"].max()
            best = f"; best validation accuracy so far {best:.0%}" if np.isfinite(best) else ""
            stopped = "stopped; Run goes on from here. " if state == "stopped" else ""
            self.status.value = _status("study", f"{stopped}{told}{best}")
        self._enable(running=state == "running")
        if len(rows) != self._seen:
            self._seen = len(rows)
            self._draw(study, rows)

    def _draw(self, study: SmallStudy, rows: pd.DataFrame) -> None:
        if (rows["purpose"] == "study").any():
            tables = Tables.of(rows)
            latest = choices(tables).iloc[-1].to_dict()
            self.picture.value = png(overview_figure(tables, latest))
            self.picture.layout.display = ""
        if kept := study.channels:
            settings = study.settings
            stand_in = stand_in_label(settings.proxy, settings.pruning_ratio)
            name = f"{settings.network}, {stand_in} of its multiply-accumulates"
            self.channels.value = png(channels_figure(kept, name))
            self.channels.layout.display = ""


_STYLE = {
    "style": {"description_width": "6.5em"},
    "layout": {"width": "19em"},
}


def _dropdown(words: str, options: Iterable[tuple[str, object]] = ()) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(options=list(options), description=words, **_STYLE)


def _tip(widget: ipywidgets.Widget, words: str) -> ipywidgets.Widget:
    """Give a control its tooltip, which ipywidgets 7 knows by another name."""
    setattr(widget, "tooltip" if widget.has_trait("tooltip") else "description_tooltip", words)
    return widget


def _picture() -> ipywidgets.Image:
    layout = {"width": PICTURE_WIDTH, "max_width": "100%", "display": "none"}
    return ipywidgets.Image(format="png", layout=layout)


def _word(name: str, value: Any) -> str:
    """Return how a value is called in its control."""
    if name == "pruning_ratio":
        return f"{100 * value:g} % removed"
    if name == "dataset":
        return label(value)
    nothing = {"sampler": "none: ranking study only", "proxy": "none yet"}
    return value or nothing.get(name, value)


def _status(which: str, words: str) -> str:
    """Return a line that screen readers are told of; ``words`` is HTML of ours."""
    return f'<span role="status" data-testid="{which}-status">{words}</span>'


def _error(words: str, more: str = "") -> str:
    """Return an error as HTML, and what else there is to read about it folded away."""
    fold = f"<details><summary>what it printed</summary><pre>{escape(more)}</pre></details>"
    return (
        f'<div role="alert" data-testid="error" style="color: #B34700; line-height: 1.4">'
        f"<b>Error.</b> {escape(words)}</div>{fold if more else ''}"
    )


def _problems(problems: Iterable[str]) -> str:
    return "".join(
        f'<div role="alert" data-testid="problem" style="line-height: 1.4">{escape(one)}</div>'
        for one in problems
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
    name = "-".join(_word(key, choice[key]).replace(" % removed", "") for key in CHOICE)
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
