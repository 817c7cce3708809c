"""The protocol of one experiment: from a data set, a network and an HPO method to rows.

1. HPO on the base network N_B.
2. HPO on its proxy N_P: the same number of trials under the same budget rule.
3. Verification: the proxy study's best configurations, trained on N_B.
4. Final training: N_B with each study's choice, on training and validation pictures together,
   tested once. Nothing else ever reads the test split.
5. The ranking study, which the samplers of one (data set, network) share: one set of
   configurations fully trained on N_B, on N_B with other weights (the noise ceiling) and on each
   stand-in.

Each step records its rows as they come and skips those that are recorded, so the same call takes
up an experiment wherever it was interrupted.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial

from proxyhpo.config import Experiment, InputError, choose, home
from proxyhpo.experiment.checks import check, hold_settings, make_folder
from proxyhpo.experiment.ranking import rank
from proxyhpo.experiment.trial import Clock, Row, Workbench
from proxyhpo.experiment.workers import Task, train_alone, train_together
from proxyhpo.hpo import search
from proxyhpo.hpo.search import Configuration
from proxyhpo.hpo.stand_ins import epochs_of
from proxyhpo.hpo.storage import open_storage
from proxyhpo.hpo.study import Study
from proxyhpo.progress import Progress, StudyProgress
from proxyhpo.rows import append_rows, config_id, read_rows, write_rows

ROLES = ("base", "proxy")


def run_experiment(
    experiment: Experiment,
    *,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    storage: str | None = None,
    workers: int = 1,
) -> pd.DataFrame:
    """Run all five steps of ``experiment``, or what is missing of them; return its rows.

    The arguments are those of :class:`Run`.

    Raises:
        InputError: for unknown names, missing data, a folder that can't be written, a storage
            that can't be opened or results that can't be read; before any training.
    """
    with Run(experiment, out=out, data_dir=data_dir, storage=storage, workers=workers) as run:
        run.search("base")
        run.search("proxy")
        run.verify()
        run.final()
        run.ranking()
        return run.finish()


class Run:
    """One experiment under way; a context manager that holds the experiment's folder.

    A finished experiment is not run again: its steps return at once, and :attr:`rows` are those
    that were recorded.

    Attributes:
        experiment: what is run.
        path: where the experiment's rows are recorded once it is finished.
        ranking_path: the same for the ranking study, which it shares with the other samplers.
        folder: the studies and rows of what is under way.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        out: str | Path | None = None,
        data_dir: str | Path | None = None,
        storage: str | None = None,
        workers: int = 1,
    ) -> None:
        """Take note of what is to be run, and where; nothing is read or written yet.

        Args:
            experiment: what to run, at which scale.
            out: folder of results; :func:`proxyhpo.config.home` by default.
            data_dir: folder of the data sets, see :func:`proxyhpo.load_dataset`.
            storage: URL of a storage that Optuna can open, which machines may share; by default
                each study has a journal file in :attr:`folder`.
            workers: processes that share each study.

        Raises:
            InputError: an unknown name, or no worker.
        """
        check(experiment)
        if not isinstance(workers, int) or workers < 1:
            raise InputError(f"workers {workers!r}: a whole number, at least 1")
        self.experiment, self.profile = experiment, experiment.profile
        self._storage, self._workers = storage, workers
        out = home() if out is None else Path(out).expanduser().resolve()
        recorded, work = out / "results" / self.profile.name, out / "runs" / self.profile.name
        self.path = recorded / f"{experiment.name}.csv"
        self.ranking_path = recorded / f"{experiment.ranking_name}.csv"
        self.folder = work / experiment.name
        self._ranking_folder = work / experiment.ranking_name
        self._data_dir = None if data_dir is None else str(data_dir)
        self._lock = FileLock(self.folder / "lock")

    def check(self) -> None:
        """Make the folders, and check that what lies there can be read and taken up.

        Raises:
            InputError: a folder that can't be written, a file of rows that can't be read (it is
                left as it is), or an experiment that was started with other settings.
        """
        for folder in (self.path.parent, self.folder, self._ranking_folder):
            make_folder(folder)
        for file in self._files:
            if file.exists():
                read_rows(file)
        # a changed profile has but one name: rows of one must not pass for those of another
        if not self.finished or self.profile.name == "custom":
            hold_settings(self.folder / "settings.json", self.profile, self.path)
        if not self.finished:
            settings = self._ranking_folder / "settings.json"
            hold_settings(settings, self.profile, self.ranking_path)

    def open(self) -> Run:
        """Take hold of the experiment, check it, load its data; return the run.

        Raises:
            InputError: see :meth:`check`; also for missing data, or if another process runs it.
        """
        self.check()
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.folder} is in use: another process runs this experiment"
            ) from None
        try:
            if not self.finished:
                if self._storage:
                    open_storage(self._storage)
                _ = self.bench  # missing data shows before any training
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.release()

    def __enter__(self) -> Run:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def bench(self) -> Workbench:
        """Device, pictures and stand-ins, loaded at first use."""
        return Workbench.of(self.experiment, self._record, self._data_dir, workers=self._workers)

    @property
    def finished(self) -> bool:
        """Whether the experiment and its ranking study are recorded."""
        return self.path.exists() and (not self.experiment.ranks or self.ranking_path.exists())

    @property
    def rows(self) -> pd.DataFrame:
        """The rows so far: the experiment's, then its ranking study's."""
        frames = [read_rows(file) for file in self._files if file.exists()]
        return pd.concat(frames, ignore_index=True)

    def search(self, role: str) -> pd.DataFrame:
        """HPO on N_B (``role="base"``) or on its proxy N_P (``"proxy"``); return the trials."""
        choose("role", role, dict.fromkeys(ROLES))
        if not self.path.exists():
            self._search(role)
        return self.select(purpose="study", role=role)

    def _search(self, role: str) -> None:
        experiment, profile, bench = self.experiment, self.profile, self.bench
        clock = Clock()
        stand_in = "base" if role == "base" else profile.proxy

        def make(plan: str = "") -> str:
            with clock.paused():  # it has a row of its own
                return bench.stand_in(stand_in, self._record, plan).plan

        settings = search.StudySettings(
            name=experiment.name,
            space=search.SPACES[profile.space],
            sampler=experiment.sampler,
            trial_pruner=profile.trial_pruner,
            trials=profile.trials,
            epochs=epochs_of(stand_in, profile.epochs, 1 - profile.pruning_ratio),
            seed=experiment.seed,
            trains={"dataset": experiment.dataset, "network": experiment.network}
            | {"stand_in": stand_in, "pruning_ratio": profile.pruning_ratio}
            | {"batch_size": profile.batch_size}
            | profile.pictures,
        )
        where = self._storage or str(self.folder / f"{role}.journal")
        name = f"{profile.name}-{experiment.name}-{role}"
        exclusive = self._storage is None
        study = Study.open(settings, where, name, plan=make, exclusive=exclusive)
        make(study.plan)
        task = Task(
            experiment, role, stand_in, settings, where, name, self._data_dir, self._workers
        )
        recorded = set(self.select(purpose="study", role=role)["trial"])
        label = f"HPO on {_symbol(role)}"
        with StudyProgress(label, settings.trials, self._workers) as progress:
            for trial in study.finished:  # it knows of trials that the rows weren't given
                if trial.number not in recorded:
                    self._record(*trial.user_attrs["rows"])
                recorded.add(trial.number)
                progress.start_with(trial.user_attrs["rows"][-1])

            def after(_: FrozenTrial | None = None) -> None:
                # also what other machines told meanwhile, where they share the storage
                for trial in study.finished:
                    if trial.number in recorded:
                        continue
                    recorded.add(trial.number)
                    *lost, row = trial.user_attrs["rows"]
                    if self._workers > 1:
                        row["elapsed_seconds"] = clock.lap()["wall_seconds"]
                    self._record(*lost, row)
                    progress.tell(row)

            if self._workers == 1:
                train_alone(task, study, bench, after, clock, progress.epoch)
            else:
                train_together(task, study, bench, after, clock)
            after()

    def verify(self) -> pd.DataFrame:
        """Train the proxy study's k best configurations on N_B; return these trials."""
        if not self.path.exists() and self.profile.verify:
            best = ranked(self.select(purpose="study", role="proxy"))[: self.profile.verify]
            self._train_each(
                "verification on N_B",
                [(rank, configuration, {}) for rank, configuration in enumerate(best)],
                purpose="verify",
            )
        return self.select(purpose="verify")

    def final(self) -> pd.DataFrame:
        """Train N_B with each choice on training + validation pictures, and test it once."""
        if not self.path.exists():
            self._train_each(
                "final training of N_B",
                [
                    (repeat, configuration, {"choice": "+".join(names)})
                    for names, configuration in self._choices()
                    for repeat in range(self.profile.final_seeds)
                ],
                purpose="final",
            )
        return self.select(purpose="final")

    def _choices(self) -> list[tuple[list[str], Configuration]]:
        """Return the configurations to train finally, each with the names of who chose it."""
        tables = {
            "base": self.select(purpose="study", role="base"),
            "proxy": self.select(purpose="study", role="proxy"),
            "verified": self.select(purpose="verify"),
        }
        choices: list[tuple[list[str], Configuration]] = []
        for name, table in tables.items():
            for best in ranked(table)[:1]:
                names = next((names for names, known in choices if known == best), None)
                if names is None:
                    choices.append(([name], best))
                else:
                    names.append(name)
        return choices

    def _train_each(
        self, label: str, jobs: list[tuple[int, Configuration, dict]], *, purpose: str
    ) -> None:
        """Train N_B with each (number, configuration, more fields) that isn't recorded yet."""
        base = self.bench.stand_in("base", self._record)
        clock = Clock()
        recorded = self.select(purpose=purpose)
        done = set(zip(recorded["config_id"], recorded["trial"], strict=True))
        with Progress(label, len(jobs), len(done)) as progress:
            for number, configuration, more in jobs:
                if (config_id(configuration), number) in done:
                    continue
                outcome, row = self.bench.attempt(
                    clock,
                    base,
                    configuration,
                    seed=(purpose, number),
                    purpose=purpose,
                    trial=number,
                    **more,
                )
                self._record(row)
                progress.advance(outcome.told)

    def ranking(self) -> pd.DataFrame:
        """Train one set of configurations in full on N_B, on N_B reseeded and on the stand-ins."""
        if self.experiment.ranks and not self.ranking_path.exists():
            # the other samplers' experiments share this study: they wait, then find it done
            with FileLock(self._ranking_folder / "lock"):
                if not self.ranking_path.exists():
                    self._rank()
        return self.select(purpose="ranking")

    def _rank(self) -> None:
        rank(self.bench, self.select(purpose="ranking"), self._record_ranking)
        write_rows(self.ranking_path, read_rows(self._ranking_folder / "rows.csv"))

    def finish(self) -> pd.DataFrame:
        """Record the experiment as finished; return all rows."""
        if not self.path.exists():
            write_rows(self.path, read_rows(self.folder / "rows.csv"))
        return self.rows

    def select(self, **values: str) -> pd.DataFrame:
        """Return the rows so far that have these values in these columns."""
        rows = self.rows
        for column, value in values.items():
            rows = rows[rows[column] == value]
        return rows.reset_index(drop=True)

    @property
    def _files(self) -> list[Path]:
        """The files of rows as they stand: recorded, or pending while it is under way."""
        pairs = ((self.path, self.folder), (self.ranking_path, self._ranking_folder))
        return [path if path.exists() else folder / "rows.csv" for path, folder in pairs]

    def _record(self, *rows: Row) -> None:
        # a session that only takes up the ranking study adds nothing to a finished experiment
        if not self.path.exists():
            append_rows(self.folder / "rows.csv", rows)

    def _record_ranking(self, row: Row) -> None:
        append_rows(self._ranking_folder / "rows.csv", [row | {"sampler": ""}])


def ranked(trials: pd.DataFrame) -> list[Configuration]:
    """Return the configurations of ``trials`` that were trained in full, best first, each once.

    Accuracies after different numbers of epochs don't compare, so stopped trials are left out.
    """
    complete = trials[trials["state"] == "complete"]
    best = complete.sort_values("val_accuracy", ascending=False, kind="stable")
    best = best.drop_duplicates("config_id")
    names = [column for column in best if column.startswith("param_")]
    return [
        {name.removeprefix("param_"): row[name] for name in names if pd.notna(row[name])}
        for row in best.to_dict("records")
    ]


def _symbol(role: str) -> str:
    return {"base": "N_B", "proxy": "N_P"}[role]
