"""The protocol of one experiment: from a data set, a network and an HPO method to rows.

1. HPO on the base network N_B.
2. HPO on its proxy N_P: the same number of trials under the same budget rule.
3. Verification: the proxy study's best configurations, trained on N_B.
4. Final training: N_B with each study's choice, on training and validation pictures together,
   tested once. Nothing else ever reads the test split.
5. The ranking study, which the samplers of one (data set, network) share: one set of
   configurations trained in full on N_B, on N_B with other weights and on each stand-in. A
   stand-in is worth its name where it orders them as N_B does; N_B reseeded is the noise ceiling.

Each step records its rows as they come and skips those that are recorded, so the same call resumes
an experiment wherever it was interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import pandas as pd

from proxyhpo.config import (
    Experiment,
    InputError,
    check_integer,
    check_processes,
    choose,
    home,
    whole_path,
)
from proxyhpo.data.datasets import DATASETS, load_dataset
from proxyhpo.experiment.engine import share
from proxyhpo.experiment.progress import Progress, StudyProgress
from proxyhpo.experiment.records import Records
from proxyhpo.experiment.trial import Clock, Row, TrainOptions, Workbench
from proxyhpo.hpo import search
from proxyhpo.hpo.search import Configuration, StudySettings
from proxyhpo.hpo.stand_ins import StandIn, epochs_of, parse
from proxyhpo.hpo.storage import open_storage
from proxyhpo.hpo.study import Study, work
from proxyhpo.models import MODELS
from proxyhpo.rows import choices, config_id, ranked, select
from proxyhpo.training import Device, check_configuration, this_device

SYMBOLS = {"base": "N_B", "proxy": "N_P"}
"""What is tuned, by role."""

KEYS = ["config_id", "trial", "proxy", "pruning_ratio", "seed"]
"""The columns that identify a training within a step."""

Training = tuple[StandIn, Configuration, tuple[object, ...], Row]
"""A training of a step: stand-in, configuration, what its seed follows from, columns of its row."""


def run_experiment(experiment: Experiment, **options: Any) -> pd.DataFrame:
    """Run all five steps of ``experiment``, or what is missing of them; return its rows.

    The ``options`` are those of :class:`Run`.

    Raises:
        InputError: for whatever doesn't fit or can't be reached, before any training.
    """
    with Run(experiment, **options) as run:
        run.search("base")
        run.search("proxy")
        run.verify()
        run.final()
        run.ranking()
        return run.finish()


class Run:
    """One experiment under way; a context manager that holds the experiment's folder.

    A finished experiment isn't run again: its steps return at once what was recorded. Studies and
    rows of what is under way lie in :attr:`folder`.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        out: str | Path | None = None,
        data_dir: str | Path | None = None,
        storage: str | None = None,
        workers: int = 1,
        scheduler: str | None = None,
    ) -> None:
        """Say what is to be run, and where; nothing is read or written yet.

        Args:
            experiment: what to run, at which scale.
            out: folder of results; :func:`proxyhpo.config.home` by default.
            data_dir: folder of the data sets, see :func:`proxyhpo.load_dataset`.
            storage: URL of a storage that Optuna can open, which machines may share; by default
                the one that ``PROXYHPO_STORAGE`` names, else a journal file in :attr:`folder` for
                each study.
            workers: processes that share each study.
            scheduler: address of a dask scheduler whose workers they are, instead of processes of
                this machine; they have to reach the storage.

        Raises:
            InputError: an unknown name, an invalid number of workers, or a scheduler without a
                storage.
        """
        storage = storage or os.environ.get("PROXYHPO_STORAGE") or None
        check(experiment)
        if scheduler is None:
            check_processes("workers", workers)
        else:
            check_integer("workers", workers, 1)
        if scheduler is not None and storage is None:
            raise InputError(f"scheduler {scheduler!r}: give a storage that its workers reach too")
        self.experiment, self.profile = experiment, experiment.profile
        self._storage, self._workers, self._scheduler = storage, workers, scheduler
        out = home() if out is None else whole_path("out", out)
        recorded, work = out / "results" / self.profile.name, out / "runs" / self.profile.name
        self._own = Records(recorded, work, experiment.name)
        ranking = f"{experiment.pair}-ranking-seed{experiment.seed}"  # of all samplers
        self._shared = Records(recorded, work, ranking, sampler="")
        self.folder = self._own.folder
        self._data_dir = None if data_dir is None else str(data_dir)

    def check(self) -> None:
        """Make the folders, and check that what lies there can be read and resumed; find the data.

        Raises:
            InputError: a folder that can't be written or is in use, rows that can't be read (they
                are left as they are), an experiment that was started with other settings, or
                missing data.
        """
        self._own.hold()
        try:
            # finished or not: rows of one scale must not pass for those of another
            self._own.check_settings(self.profile.scale)
            if not self.finished:
                self._shared.check_settings(self.profile.scale)
                where, pictures = self._data_dir, self.profile.pictures
                load_dataset(self.experiment.dataset, data_dir=where, **pictures)
            _ = self.rows
        finally:
            self.close()

    def open(self) -> Self:
        """Hold the experiment's folder, check it, load the data; return the run.

        Raises:
            InputError: see :meth:`check`; also for pictures that networks don't take.
        """
        self._own.hold()
        try:
            self.check()
            if not self.finished:
                if self._storage:
                    open_storage(self._storage)
                _ = self.bench
                self._own.count_lost()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Let go of the folder."""
        self._own.lock.release()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def device(self) -> Device:
        """What trains here."""
        return this_device()

    @cached_property
    def bench(self) -> Workbench:
        """Device, pictures and stand-ins, loaded at first use."""
        add = self._own.add
        return Workbench.of(self.experiment, add, self._data_dir, workers=self._workers)

    @property
    def finished(self) -> bool:
        """Whether the experiment and its ranking study are recorded."""
        return self._own.finished and (not self.experiment.ranks or self._shared.finished)

    @property
    def rows(self) -> pd.DataFrame:
        """The rows so far: the experiment's, then its ranking study's."""
        return pd.concat([self._own.read(), self._shared.read()], ignore_index=True)

    def select(self, **values: str) -> pd.DataFrame:
        """Return the rows so far that have these values in these columns."""
        return select(self.rows, **values)

    def search(self, role: str) -> pd.DataFrame:
        """HPO on N_B (``role="base"``) or on its proxy N_P (``"proxy"``); return the trials."""
        choose("role", role, SYMBOLS)
        if not self._own.finished:
            self._search(role, "base" if role == "base" else self.profile.proxy)
        return self.select(purpose="study", role=role)

    def _search(self, role: str, name: str) -> None:
        clock = Clock()

        def make(plan: str = "") -> StandIn:
            with clock.paused():  # it has a row of its own
                return self.bench.stand_in(name, self._own.add, plan)

        study = Study.open(
            self._settings(name),
            self._storage or str(self.folder / f"{role}.journal"),
            f"{self.profile.name}-{self.experiment.name}-{role}",
            plan=lambda: make().plan,
            exclusive=self._storage is None,
            otherwise="use another --out or --storage",
        )
        stand_in = make(study.plan)
        shared = self._workers > 1 or self._scheduler is not None
        recorded = set(self.select(purpose="study", role=role)["trial"])
        label = f"HPO on {SYMBOLS[role]}"
        with StudyProgress(label, self.profile.trials, self._workers) as progress:
            for trial in study.finished:
                if trial.number not in recorded:  # an interruption came between study and rows
                    self._own.add(*trial.user_attrs["rows"])
                recorded.add(trial.number)
                progress.start_with(trial.user_attrs["rows"][-1])

            def record(_: object = None) -> None:
                for trial in study.finished:  # other processes may have trained some of them
                    if trial.number not in recorded:
                        recorded.add(trial.number)
                        *lost, row = trial.user_attrs["rows"]
                        if shared:
                            row["elapsed_seconds"] = clock.lap()["wall_seconds"]
                        self._own.add(*lost, row)
                        progress.tell(row)

            if shared:
                share(
                    study, self.experiment, self.bench, role, name, workers=self._workers,
                    scheduler=self._scheduler, data_dir=self._data_dir, after=record,
                )  # fmt: skip
            else:
                attempt = self.bench.attempts(clock, stand_in, role, epoch=progress.epoch)
                work(study, attempt, record)
            record()

    def _settings(self, stand_in: str) -> StudySettings:
        experiment, profile = self.experiment, self.profile
        trains: Row = {"dataset": experiment.dataset, "network": experiment.network}
        trains |= {"stand_in": stand_in, "pruning_ratio": profile.pruning_ratio}
        return StudySettings(
            name=experiment.name,
            space=search.SPACES[profile.space],
            sampler=experiment.sampler,
            trial_pruner=profile.trial_pruner,
            trials=profile.trials,
            epochs=epochs_of(stand_in, profile.epochs, 1 - profile.pruning_ratio),
            seed=experiment.seed,
            first_rung=profile.first_rung,
            trains={**trains, "batch_size": profile.batch_size, **profile.pictures},
        )

    def verify(self) -> pd.DataFrame:
        """Train the proxy study's k best configurations on N_B; return these trials."""
        if not self._own.finished and self.profile.verify:
            base = self.bench.stand_in("base", self._own.add)
            best = ranked(self.select(purpose="study", role="proxy"))[: self.profile.verify]
            trainings = [(base, c, ("verify", k), {"trial": k}) for k, c in enumerate(best)]
            self._train_each("verification on N_B", "verify", trainings, self._own)
        return self.select(purpose="verify")

    def final(self) -> pd.DataFrame:
        """Train N_B with each choice on training + validation pictures, and test it once."""
        if not self._own.finished:
            base = self.bench.stand_in("base", self._own.add)
            chosen = choices(self.rows)
            agreed: dict[str, list[str]] = {}  # what several choose is trained once
            for name, configuration in chosen.items():
                agreed.setdefault(config_id(configuration), []).append(name)
            trainings = [
                (base, chosen[names[0]], ("final", k), {"trial": k, "choice": "+".join(names)})
                for names in agreed.values()
                for k in range(self.profile.final_seeds)
            ]
            self._train_each("final training of N_B", "final", trainings, self._own)
        return self.select(purpose="final")

    def ranking(self) -> pd.DataFrame:
        """Train one set of configurations in full on N_B, on N_B reseeded and on the stand-ins."""
        if self.experiment.ranks and not self._shared.finished:
            # the other samplers' experiments share this study: they wait, then find it done
            with self._shared.lock:
                if not self._shared.finished:
                    self._shared.count_lost()
                    self._rank()
                    self._shared.finish()
        return self.select(purpose="ranking")

    def _rank(self) -> None:
        profile, seed = self.profile, self.experiment.seed
        configurations = search.sample(search.SPACES[profile.space], profile.ranking, seed=seed)
        # Weights and batches: N_B under one seed; all that is compared with it under another, so
        # that N_B reseeded has no more in common with it than a stand-in has.
        make = partial(self.bench.stand_in, record=self._shared.add)
        entrants = [(make("base"), seed), (make("base"), seed + 1)]
        entrants += [(make(name), seed + 1) for name in profile.ranked]
        trainings = [
            (stand_in, configuration, ("ranking", weights), {"seed": weights})
            for configuration in configurations  # what an interruption leaves can be compared
            for stand_in, weights in entrants
        ]
        self._train_each("ranking study", "ranking", trainings, self._shared)

    def _train_each(
        self, label: str, purpose: str, trainings: Sequence[Training], records: Records
    ) -> None:
        """Train those that aren't recorded yet, and add them to ``records``."""
        known = self.select(purpose=purpose)[KEYS].itertuples(index=False, name=None)
        done, clock = set(known), Clock()
        with Progress(label, len(trainings), len(done)) as progress:
            for stand_in, configuration, seed, more in trainings:
                fields = {"trial": -1, "seed": self.experiment.seed, **more}
                key = config_id(configuration), fields["trial"], *stand_in.identity, fields["seed"]
                if key in done:
                    continue
                lost = {**fields, "purpose": "lost", "choice": "verified"}
                if purpose != "verify":  # it only measures, and nobody's search waits for it
                    lost |= {"choice": "", "trial": -1}
                row = self.bench.untrained_row(stand_in, configuration, 0.0, **lost)
                with records.under_way(row):
                    options = TrainOptions(self.bench.seed(*seed), final=purpose == "final")
                    outcome, row = self.bench.attempt(
                        clock, stand_in, configuration, options, purpose=purpose
                    )
                    records.add(row | fields)
                progress.advance(f"{outcome.state}, accuracy {outcome.accuracy:.3f}")

    def finish(self) -> pd.DataFrame:
        """Record the experiment as finished; return all rows."""
        self._own.finish()
        return self.rows


def check(experiment: Experiment) -> None:
    """Raise :class:`InputError` for any name in ``experiment`` that no registry knows."""
    profile = experiment.profile
    if not experiment.dataset.startswith("imagefolder:"):
        choose("dataset", experiment.dataset, {**DATASETS, "imagefolder:PATH": None})
    choose("network", experiment.network, MODELS)
    choose("sampler", experiment.sampler, search.SAMPLERS)
    choose("trial pruner", profile.trial_pruner, search.TRIAL_PRUNERS)
    for end in search.ends(choose("search space", profile.space, search.SPACES)):
        check_configuration(end)
    for name in (profile.proxy, *profile.ranked):
        parse(name)
