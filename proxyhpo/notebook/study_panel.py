"""Controls that run a small experiment: settings, progress, stop, what came of it.

Nothing here loads torch: the experiment runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd

from proxyhpo.config import PROFILES
from proxyhpo.notebook.controls import (
    CONTROLS,
    STYLE,
    blank_picture,
    dropdown,
    error_line,
    shown_as,
    status_line,
    with_tip,
)
from proxyhpo.notebook.explorer_drawing import channels_figure, overview_figure, png
from proxyhpo.notebook.explorer_tables import Tables, choices
from proxyhpo.notebook.small_study import DATASET, PROFILE, STAND_INS, Settings, SmallStudy
from proxyhpo.report.tables import stand_in_label

SECONDS_BETWEEN_LOOKS = 0.5


class StudyPanel:
    """Controls that run a small experiment on digits: settings, progress, stop, what came of it.

    Attributes:
        controls: the settings, by field of :class:`proxyhpo.notebook.small_study.Settings`.
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
            control = dropdown(words, [(shown_as(name, value), value) for value in values])
            self.controls[name] = with_tip(control, CONTROLS[name][1])
        for name, most, tip in (
            ("trials", 20, "configurations that each of the two studies tries"),
            ("epochs", profile.epochs, "epochs of a full training"),
        ):
            slider = ipywidgets.IntSlider(
                min=2, max=most, description=name, continuous_update=False, **STYLE
            )
            self.controls[name] = with_tip(slider, tip)
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
        self.bar = ipywidgets.IntProgress(description="progress", min=0, max=1, **STYLE)
        self.status = ipywidgets.HTML(status_line("study", "not started"))
        self.picture, self.channels = blank_picture(), blank_picture()
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
            self.status.value = error_line(str(error))
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
            self.status.value = error_line(f"The study can't be shown: {error}")
            self._enable(running=study.running)

    def _look(self, study: SmallStudy) -> None:
        state, rows = study.state, study.rows
        done, self.bar.max, told = study.progress(rows)
        self.bar.value = done
        if state == "failed":
            last = study.log.strip().rpartition("\n")[2] or "it ended without a word"
            self.status.value = error_line(f"The study failed: {last}", study.log)
        elif state == "finished":
            few = "a small study: too little to be evidence"
            self.status.value = status_line("study", f"finished, {len(rows)} rows; {few}")
        else:
            best = rows.loc[rows["purpose"] == "study", "val_accuracy"].max()
            best = f"; best validation accuracy so far {best:.0%}" if np.isfinite(best) else ""
            stopped = "stopped; Run goes on from here. " if state == "stopped" else ""
            self.status.value = status_line("study", f"{stopped}{told}{best}")
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
