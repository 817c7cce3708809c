"""The explorer: every figure of every recorded table, and a calculator that answers "what if".

``from proxyhpo.notebook.explorer import explorer`` gives one widget. Figures are drawn by the
functions that draw the printed ones; time saved and accuracy lost come from the analysis that the
pages quote. What isn't recorded yet is named, with the command that records it. Torch isn't loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from html import escape
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd

from proxyhpo.analysis.cost import break_even, saving
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.analysis.quality import raced, regrets
from proxyhpo.analysis.ways import study_way
from proxyhpo.config import InputError
from proxyhpo.hpo.curves import Table
from proxyhpo.hpo.replay import Recorded, Replay, replay_study
from proxyhpo.notebook import controls as ui
from proxyhpo.report.figures import FIGURES, draw
from proxyhpo.report.markdown import between
from proxyhpo.report.style import label, table_label

SAMPLERS = ("tpe", "cmaes", "random")
"""Those replayed while a reader waits; Gaussian processes take minutes, and need torch."""
MOST_TRIALS, MOST_VERIFIED = 100, 5
REDRAWN, STUDIES = 15, 5
"""Of a replay made here: redrawn tables and studies on each; the table itself gets three times as
many studies."""
DEFAULTS = (("snip@0.25", 3), ("base", 0))
"""Stand-in and verifications of the two choices at first; the first is the pages' headline."""
LONGEST = 100
"""Epochs that no stand-in of a table exceeds: a slider's end before it knows its table."""
ENDS = ["regret", "low", "high"]
QUESTIONS = ("", "time saved", "pays from", "test accuracy lost", "on your network")
NOTE = (
    "Saved against as many trials on N_B. Brackets: 95 % intervals, of time over rounds of the "
    "benchmark, of accuracy over redrawn tables. No trial pruner; it is assumed that your network "
    "gains as much as this N_B."
)


@dataclass(frozen=True)
class Choice:
    """A way of tuning: sampler, stand-in ("base" is N_B), trials T and verifications k.

    ``epochs`` ends each trial early, while its learning rate is that of a whole one; None doesn't.
    """

    stand_in: str
    sampler: str
    trials: int
    verify: int
    epochs: int | None = None


def saved(evidence: Evidence, table: Table, choice: Choice) -> tuple[float, float, float, float]:
    """Return the percentage of time saved against T trials on N_B, its interval, and break-even.

    Raises:
        InputError: the step costs of the table or of the stand-in aren't measured.
    """
    if choice.stand_in not in table.costs:
        raise InputError("step costs aren't measured")
    costs = evidence.epoch_costs.set_index(["table", "entrant"])
    line = costs.loc[(table.name, choice.stand_in)]
    build, whole = line["build"], table.curves(choice.stand_in).epochs
    part = (choice.epochs or whole) / whole
    value, high, low = (
        100 * float(saving(choice.trials, choice.verify, part * line[end], build=build))
        for end in ("trial", "trial_low", "trial_high")
    )
    return value, low, high, break_even(choice.verify, part * line["trial"], build=build)


def recorded_loss(
    evidence: Evidence, table: Table, choice: Choice
) -> tuple[float, float, float] | None:
    """Return the test accuracy lost in recorded replays: points, low, high; None without any."""
    if choice.trials != table.trials or choice.epochs is not None:
        return None
    way = study_way(choice.stand_in, choice.verify, choice.sampler)
    ended = evidence.raced.set_index(["table", "way", "budget"])[ENDS]
    at = (table.name, way, math.inf)
    return tuple(ended.loc[at]) if at in ended.index else None


def ended_early(table: Table, stand_in: str, epochs: int | None) -> Table:
    """Return the table with each training on ``stand_in`` ended after ``epochs``."""
    curves = table.curves(stand_in)
    if epochs is None:
        return table
    accuracy, loss = curves.accuracy[:, :, :epochs], curves.loss[:, :, :epochs]
    diverged = np.isinf(loss[:, :, -1])  # later divergence isn't seen
    cut = replace(curves, accuracy=accuracy, loss=loss, diverged=diverged)
    return replace(table, entrants={**table.entrants, stand_in: cut})


def replayed_losses(
    table: Table,
    stand_in: str,
    sampler: str,
    epochs: int | None = None,
    advance: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Return the test accuracy lost, in points, by drawn table, trials and verifications.

    ``(1 + REDRAWN, T, 1 + MOST_VERIFIED)``: first the table as it was recorded, then redrawn ones;
    means over studies, each judged after every one of its trials. ``advance`` is called after each.

    Raises:
        InputError: the table's truth or verification isn't recorded.
    """
    rng, trials = np.random.default_rng(0), table.trials
    found = np.empty((1 + REDRAWN, trials, 1 + MOST_VERIFIED))
    for drawn in range(1 + REDRAWN):
        one = ended_early(table.redrawn(rng) if drawn else table, stand_in, epochs)
        if one.verification is None:
            raise InputError(f"table {table.name}: its verification isn't recorded yet")
        lost, checks = regrets(one), one.verification.final.mean(1)
        place = Recorded(one, "base", 0).place
        studies = np.full((STUDIES if drawn else 3 * STUDIES, *found.shape[1:]), np.nan)
        for seed, study in enumerate(studies):
            made = replay_study(
                one, stand_in=stand_in, sampler=sampler, trials=trials, seed=1000 * drawn + seed
            ).trials
            for done in range(1, trials + 1):
                best = [place(c) for c in Replay(made[:done]).best[:MOST_VERIFIED]]
                for k in range(1 + MOST_VERIFIED if best else 0):
                    study[done - 1, k] = lost[max(best[: max(1, k)], key=checks.__getitem__)]
            advance()
        found[drawn] = studies.mean(axis=0)
    return found


def missing(evidence: Evidence, table: Table) -> list[str]:
    """Return what isn't recorded of a table yet, each with the command that records it."""
    names = f"--dataset {table.regime.dataset} --model {table.regime.network}"
    lacking = []
    try:
        regrets(table)
    except InputError:
        lacking.append(f"truth: ./run_all.sh record {names}")
    if not len(table.steps):
        lacking.append(f"step costs: python benchmarks/steps.py {names}")
    if evidence.races.empty or table.name not in set(evidence.races["table"]):
        lacking.append(f"replays: ./run_all.sh replay {names}")
    return lacking


class Explorer(ipywidgets.VBox):
    """Dropdowns for table and figure, the picture, and the calculator below it.

    Attributes:
        table, figure: what is shown.
        picture: as PNG.
        status: the figure's caption, and what is missing.
        calculator: see :class:`Calculator`.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.picture, self.status = ui.blank_picture(), ipywidgets.HTML()
        narrowed = cache(lambda name: evidence.narrowed([name]))
        self._png = cache(lambda name, figure: ui.png(draw(figure, narrowed(name))))
        tables = [(table_label(name), name) for name in evidence.tables]
        figures = [(name.replace("_", " "), name) for name in FIGURES]
        self.table = ui.dropdown("table", "data set and base network N_B", tables, "22em")
        self.figure = ui.dropdown("figure", "what to look at", figures)
        self.calculator = Calculator(evidence)
        for name in FIGURES:  # the first that what is recorded suffices for
            self.figure.value = name
            self._redraw()
            if self.picture.layout.display != "none":
                break
        self.calculator.show_table(self.table.value)
        for control in (self.table, self.figure):
            control.observe(lambda _: self._redraw(), "value")
        self.table.observe(lambda change: self.calculator.show_table(change.new), "value")
        chosen = ui.row(self.table, self.figure)
        # as high as the highest, so that the calculator stays in its place
        shown = ipywidgets.VBox([self.picture, self.status], layout={"min_height": "380px"})
        super().__init__([chosen, shown, self.calculator])

    def _redraw(self) -> None:
        name, figure = self.table.value, self.figure.value
        text = escape(FIGURES[figure].caption)
        if lacking := missing(self.evidence, self.evidence.tables[name]):
            text += f"<br><b>Not recorded yet</b>: {escape('; '.join(lacking))}"
        picture = b""
        try:
            picture = self._png(name, figure)
        except InputError as error:
            text = f"<b>No picture</b>: {escape(str(error))}<br>{text}"
        except Exception as error:  # a callback's traceback goes where nobody looks
            text = ui.error_line(f"This figure can't be drawn: {error}")
        ui.show(self.picture, picture)
        self.status.value = ui.status_line("explorer", _small(text))


class Calculator(ipywidgets.VBox):
    """What two ways of tuning would save, lose and take on the reader's own network.

    Attributes:
        step, steps: seconds of a training step of the reader's N_B, and steps of a training.
        controls: for each of the two, by the fields of :class:`Choice`.
        answer: the table of answers.
        replay, bar: a button that replays what isn't recorded, as changing a choice does too, and
            its progress.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence, self.table = evidence, next(iter(evidence.tables.values()))
        self._replayed: dict[tuple[str, Choice], np.ndarray] = {}
        self._filling = True
        number = partial(ipywidgets.BoundedFloatText, min=1e-9, max=1e12)
        step = number(0.1, description="s a step")
        steps = number(50_000, description="steps")
        self.step = ui.fit(step, "seconds of a training step of your N_B", "11em")
        self.steps = ui.fit(steps, "steps of one full training of your N_B", "13em")
        self.replay = ipywidgets.Button(description="Replay", icon="play", layout={"width": "7em"})
        self.bar = ipywidgets.IntProgress(layout={"width": "10em", "visibility": "hidden"})
        self.controls = [_controls(stand_in, k) for stand_in, k in DEFAULTS]
        self.answer = ipywidgets.HTML()
        for widget in (self.step, self.steps):
            widget.observe(lambda _: self._update(), "value")
        for at, own in enumerate(self.controls):
            own["stand_in"].observe(lambda _, own=own: self._fit_epochs(own), "value")
            for widget in own.values():
                widget.observe(lambda _, at=at: self._update(replay=(at,)), "value")
        self.replay.on_click(lambda _: self._update(replay=(0, 1)))
        sides = [ui.row(*own.values()) for own in self.controls]
        for side in sides:
            side.layout.flex = "1 1 340px"  # beside each other where there is room
        head = ipywidgets.HTML("<b>What if?</b> Your network:")
        shared = ui.row(head, self.step, self.steps, self.replay, self.bar)
        super().__init__([shared, ui.row(*sides), self.answer])

    @property
    def choices(self) -> list[Choice]:
        """The two choices."""
        chosen = [{k: w.value for k, w in own.items()} for own in self.controls]
        for own in chosen:
            whole = own["epochs"] >= self.table.curves(own["stand_in"]).epochs
            own["epochs"] = None if whole else own["epochs"]
        return [Choice(**own) for own in chosen]

    def _fit_epochs(self, own: dict[str, ipywidgets.Widget]) -> None:
        """Let trials be as long as the stand-in's are, and whole if they were."""
        slider, filling = own["epochs"], self._filling
        whole = slider.value == slider.max
        longest = self.table.curves(own["stand_in"].value).epochs
        self._filling = True  # one answer for all that changes
        slider.max, slider.value = longest, longest if whole else min(slider.value, longest)
        self._filling = filling

    def show_table(self, name: str) -> None:
        """Show the answers of a table; choices that it has recorded are kept."""
        self.table, self._filling = self.evidence.tables[name], True
        entrants = list(self.table.entrants)
        for own, (default, _) in zip(self.controls, DEFAULTS, strict=True):
            if own["stand_in"].value is None:
                own["trials"].value = self.table.trials
            wanted = own["stand_in"].value or default
            own["stand_in"].options = [(label(entrant), entrant) for entrant in entrants]
            own["stand_in"].value = wanted if wanted in entrants else "base"
            self._fit_epochs(own)
        self._filling = False
        self._update()

    def _update(self, replay: Sequence[int] = ()) -> None:
        """Answer again; replay what the choices at the places ``replay`` lack."""
        if self._filling:
            return
        try:
            found = [self._answers(one, at in replay) for at, one in enumerate(self.choices)]
        except Exception as error:  # a callback's traceback goes where nobody looks
            self.answer.value = ui.error_line(f"This can't be calculated: {error}")
            return
        rows = zip(QUESTIONS, *found, strict=True)
        lines = [f"<th scope='row'>{q}</th><td>{a}</td><td>{b}</td>" for q, a, b in rows]
        style = "text-align: left; line-height: 1.5; border-spacing: 1.2em 0; margin-left: -1em"
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        table = f'<table style="{style}">{body}</table>'
        self.answer.value = ui.status_line("calculator", table + _small(NOTE))

    def _answers(self, choice: Choice, replay: bool) -> list[str]:
        """Return the answers to :data:`QUESTIONS` for one choice."""
        verified = f", {choice.verify} verified" if choice.verify else ""
        whole = self.table.curves(choice.stand_in).epochs
        early = f", {choice.epochs} of {whole} epochs" if choice.epochs else ""
        name = f"{choice.trials} trials on {label(choice.stand_in)}{early}{verified}"
        hours = self.step.value * self.steps.value * choice.trials / 3600
        share, pays, yours = "", "-", _hours(hours)
        try:
            value, low, high, least = saved(self.evidence, self.table, choice)
        except InputError as error:
            share, yours = escape(str(error)), f"{yours} on N_B"
        else:
            share = between(value, low, high, ".0f", "%")
            if choice.stand_in != "base" or choice.epochs:
                fewest = max(1, math.ceil(least)) if math.isfinite(least) else 0
                pays = f"{fewest} trial{'s' * (fewest > 1)}" if fewest else "none"
                yours = f"{_hours((1 - value / 100) * hours)} instead of {yours}"
        return [f"<b>{escape(name)}</b>", share, pays, self._lost(choice, replay), yours]

    def _lost(self, choice: Choice, replay: bool) -> str:
        table, most = self.table, self.table.trials
        if (known := recorded_loss(self.evidence, table, choice)) is not None:
            return f"{between(*known, unit='points')} (recorded replays)"
        if choice.trials > most:
            return f"this table replays up to {most} trials"
        key = (table.name, replace(choice, trials=0, verify=0))
        try:
            regrets(table)
            if key not in self._replayed and replay:
                self._replayed[key] = self._replay(choice)
        except InputError as error:
            return escape(str(error).rpartition(": ")[2])
        if key not in self._replayed:
            return "not replayed yet: press Replay"
        lost = self._replayed[key][:, choice.trials - 1, choice.verify]
        lines = {"table": table.name, "way": "", "budget": math.inf, "regret": lost}
        mean, low, high = raced(pd.DataFrame({**lines, "draw": range(len(lost))})).loc[0, ENDS]
        return f"{between(mean, low, high, unit='points')} (replayed now)"

    def _replay(self, choice: Choice) -> np.ndarray:
        self.bar.value, self.bar.max = 0, STUDIES * (3 + REDRAWN)
        self.bar.layout.visibility = "visible"

        def advance() -> None:
            self.bar.value += 1

        try:
            own = choice.stand_in, choice.sampler, choice.epochs
            return replayed_losses(self.table, *own, advance)
        finally:
            self.bar.layout.visibility = "hidden"


def _controls(stand_in: str, verify: int) -> dict[str, ipywidgets.Widget]:
    """Return the controls of one choice, by the fields of :class:`Choice`."""
    kept = "what is tuned; the share of multiply-accumulates, epochs or pictures that it keeps"
    wide, narrow = "calc(63% - 4px)", "calc(37% - 4px)"
    made = {
        "stand_in": ui.dropdown("stand-in", kept, width=wide),
        "sampler": ui.dropdown("by", "the sampler of the study", SAMPLERS, narrow),
        "trials": ui.slider("trials, T", "configurations that are tried", 2, MOST_TRIALS, wide),
        "verify": ui.slider("k", "verified: the best, trained on N_B", 0, MOST_VERIFIED, narrow),
        "epochs": ui.slider("epochs", "after which a trial ends", 1, LONGEST, wide),
    }
    made["verify"].value, made["epochs"].value = verify, LONGEST
    for name in ("sampler", "verify"):
        made[name].style.description_width = "1.5em"
    return made


def _small(text: str) -> str:
    return f'<div style="font-size: 12px; line-height: 1.35">{text}</div>'


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2g} h"


def explorer(folder: str | Path | None = None) -> Explorer | ipywidgets.HTML:
    """Return the explorer of the recorded tables, a widget to display; an error without any.

    ``folder`` holds the tables: by default ``results/curves`` here, else those of the package.
    """
    try:
        evidence = Evidence(folder)
    except InputError as error:
        return ipywidgets.HTML(ui.error_line(str(error)))
    return Explorer(evidence)
