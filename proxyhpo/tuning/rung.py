"""A rung of a search: a study, of what one view shows, that survives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any
from zlib import crc32

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from proxyhpo.experiment.progress import StudyProgress
from proxyhpo.experiment.trial import Bench, Clock, Record, Row
from proxyhpo.hpo import storage
from proxyhpo.hpo.ladder import View, promote
from proxyhpo.hpo.search import Configuration, Space, StudySettings
from proxyhpo.hpo.stand_ins import Entrant, epochs_of
from proxyhpo.hpo.study import Claim, Outcome, Study, work
from proxyhpo.rows import PARAMETER, config_id
from proxyhpo.tuning.settings import Settings

PURPOSES = {"search": "study", "certificate": "verify", "verification": "verify"}
"""What the seconds of a rung are spent on, and the purpose of its rows."""

_OTHERWISE = (
    "a search keeps its settings and can't be extended to more trials: "
    "use another storage=, or Settings(study_name=...)"
)


@dataclass(frozen=True)
class Site:
    """What the rungs of a search share: where trials are trained, what with, and where kept.

    ``trains`` says what is trained; later calls with the same storage are held to it.
    """

    bench: Bench[Any]
    trains: Mapping[str, object]
    settings: Settings
    space: Space
    where: BaseStorage
    record: Record


@dataclass(frozen=True, eq=False)
class Rung:
    """A rung of a search.

    Attributes:
        site: what it shares with the others.
        name: of what its trials are seen through, see :class:`proxyhpo.hpo.ladder.View`.
        trials: the budget.
        purpose: a key of :data:`PURPOSES`.
        role: distinguishes it from others of this name.
        sampler, trial_pruner: of its study.
        fixed: the configurations that it trains; none leaves them to the sampler.
        spared: the first so many trials are never stopped.
    """

    site: Site
    name: str
    trials: int
    purpose: str = "search"
    role: str = "search"
    sampler: str = "random"
    trial_pruner: str = "none"
    fixed: Sequence[Configuration] = ()
    spared: int = 0

    @property
    def view(self) -> View:
        """What its trials are seen through."""
        return View.of(self.name)

    @cached_property
    def study(self) -> Study:
        """Its study, made where it is new, with the configurations that are fixed."""
        bench, own = self.site.bench, self.site.settings
        task = bench.task
        whole = epochs_of(self.view.stand_in, own.epochs, own.share)
        settings = StudySettings(
            name=f"{task.network}-{task.sampler}-seed{task.seed}",
            space=self.site.space,
            sampler=self.sampler,
            trial_pruner=self.trial_pruner,
            trials=self.trials,
            epochs=self.view.epochs or whole,
            # what goes on elsewhere mustn't begin with the same configurations
            seed=task.seed if self.role == "search" else crc32(f"{task.seed} {self.role}".encode()),
            trains={"network": task.network, "view": self.name, "share": own.share}
            | {"of": whole, "batch_size": own.batch_size, **self.site.trains},
        )
        name = f"{own.study_name or settings.name}-{self.role}-{self.name}"
        if self.fixed:
            name += f"-{crc32(repr([config_id(one) for one in self.fixed]).encode()):08x}"
        stand_in = partial(bench.stand_in, self.view.stand_in, self.site.record)
        where, plan = self.site.where, lambda: stand_in().plan
        study = Study.open(settings, where, name, plan=plan, otherwise=_OTHERWISE)
        for number, one in enumerate(self.fixed):
            storage.set_params(storage.open_trial(study.optuna, number), one, settings.asked)
        return study

    @cached_property
    def stand_in(self) -> Entrant:
        """What its trials train."""
        return self.site.bench.stand_in(self.view.stand_in, self.site.record, self.study.plan)

    @property
    def rows(self) -> list[Row]:
        """All rows of the trials that have ended."""
        return [row for trial in self.study.finished for row in trial.user_attrs["rows"]]

    @property
    def ended(self) -> list[Row]:
        """The row of each trial that has ended, without those of what was lost."""
        return [trial.user_attrs["rows"][-1] for trial in self.study.finished]

    def score(self, row: Row) -> float:
        """Return what the rung saw of a trial, higher is better; NaN unless it went to the end."""
        if row["state"] != "complete":
            return math.nan
        if "score" in row:
            return row["score"]
        if self.view.signal == "averaged":
            return float(row["curve_averaged"].split()[-1])
        return -row["val_loss"] if self.view.signal == "loss" else row["val_accuracy"]

    def configuration(self, row: Row) -> Configuration:
        """Return what a row was trained with."""
        return {name: row[f"{PARAMETER}{name}"] for name in self.site.space}

    def best(self, count: int, first: int | None = None) -> list[Configuration]:
        """Return the best configurations, each once, of the ``first`` trials that ended or all."""
        ended = self.ended[:first]
        order = promote([self.score(row) for row in ended], len(ended))
        once: dict[str, Row] = {}
        for place in order:
            once.setdefault(ended[place]["config_id"], ended[place])
        return [self.configuration(row) for row in list(once.values())[:count]]

    def work(self, first: int = 0) -> None:
        """Train what waits; of the ``first`` trials alone, drawn at random, if asked."""
        study, stand_in, whole = self.study, self.stand_in, self.study.settings
        if first:
            study.settings = replace(whole, trials=first, sampler="random")
        try:
            if not study.done:
                self._work(study, stand_in)
        finally:
            study.settings = whole

    def _work(self, study: Study, stand_in: Entrant) -> None:
        label = f"tuning on {self.name}" if self.purpose == "search" else self.purpose
        with StudyProgress(label, study.settings.trials) as progress:
            for trial in study.finished:
                progress.start_with(_shown(trial))

            def after(trial: FrozenTrial) -> None:
                progress.tell(_shown(trial))
                for callback in self.site.settings.callbacks:
                    callback(study.optuna, trial)

            budget = study.settings.epochs
            trained = self.site.bench.attempts(
                Clock(),
                stand_in,
                self.role,
                self.name,
                purpose=PURPOSES[self.purpose],
                until=budget,
                spared=self.spared,
                average=budget if self.view.signal == "averaged" else 0,
                epoch=progress.epoch,
                catch=self.site.settings.catch,
            )

            def attempt(claim: Claim) -> tuple[Outcome, list[Row]]:
                try:
                    return trained(claim)
                except Exception as error:
                    error.add_note(
                        f"in trial {claim.number} on {self.name}, with {claim.configuration}; it "
                        f"is the first to be trained again, unless Settings(catch=("
                        f"{type(error).__name__},)) lets such trials fail and the search go on"
                    )
                    raise

            work(study, attempt, after)


def _shown(trial: FrozenTrial) -> Row:
    """Return a trial's row as progress shows it, by its score."""
    row = trial.user_attrs["rows"][-1]
    return {"val_accuracy": row.get("score", math.nan), **row}
