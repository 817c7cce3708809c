"""One experiment on a recorded table: the protocol's steps, looked up instead of trained.

:class:`ReplayedRun` has the steps of :class:`proxyhpo.experiment.protocol.Run`, so a notebook runs
either, and its rows have the same schema. Steps that the table can't answer yet give no rows.
Nothing here loads torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from proxyhpo.config import Experiment, choose
from proxyhpo.hpo.curves import NotRecordedError, Table, curves_folder, load_table
from proxyhpo.hpo.replay import interpolated, looked_up, replay
from proxyhpo.hpo.search import SAMPLERS
from proxyhpo.hpo.tables import TABLES, table_name
from proxyhpo.rows import as_frame, choices, identity, select

STAND_IN = "snip@0.25"


class ReplayedRun:
    """One experiment of profile ``table``; a context manager, as a live run is.

    On a table of learning rates alone the paper's own space is replayed, with learning rates
    between the recorded ones interpolated.

    Attributes:
        experiment: what is replayed.
        stand_in: what is tuned in N_B's place.
        table: what it is replayed on; ``None`` where too little is recorded for any study.
        missing: what isn't recorded, a line for each part, with the command that records it.
        rows: the rows so far.
    """

    def __init__(
        self, experiment: Experiment, *, stand_in: str = STAND_IN, folder: str | Path | None = None
    ) -> None:
        """Read the table; :class:`InputError` names the tables and samplers that there can be."""
        choose("sampler", experiment.sampler, SAMPLERS)
        name = table_name(experiment.dataset, experiment.network)
        regime = choose("table", name, TABLES)
        self.experiment, self.stand_in = experiment, stand_in
        self.missing: list[str] = []
        self.table: Table | None = None
        self.rows = as_frame([]).assign(param_lr=np.nan, param_weight_decay=np.nan)
        which = f"--dataset {experiment.dataset} --model {experiment.network}"
        record = f"./run_all.sh record {which}"
        if not (curves_folder(folder) / f"{name}.csv").exists():
            self.missing.append(f"table {name}; record it: {record}")
            return
        more = f"go on with it: {record}"
        try:
            table = load_table(experiment.dataset, experiment.network, folder)
        except NotRecordedError:  # begun, but no weight seed of N_B is whole
            self.missing.append(f"table {name}, which is under way; {more}")
            return
        if stand_in not in table.entrants:
            self.missing.append(f"{stand_in} in table {name}; {more}")
        if not len(table.steps):
            self.missing.append(f"step costs of table {name}: python benchmarks/steps.py {which}")
        if self.missing:
            return
        self.table, self.space = table, "grid" if len(regime.weight_decay) > 1 else "paper"
        if table.verification is None:
            self.missing.append(f"verification in table {name}; {more}")
        if not self._judges:
            self.missing.append(f"truth in table {name}; {more}")

    def __enter__(self) -> ReplayedRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def select(self, **values: str) -> pd.DataFrame:
        """Return the rows so far that have these values in these columns."""
        return select(self.rows, **values)

    @property
    def _judges(self) -> bool:
        """Whether every configuration has a truth."""
        return bool(self.table and np.isfinite(self.table.truth).any(axis=1).all())

    def close(self) -> None:
        """Do nothing: a live run lets go of its folder."""

    def _add(self, rows: pd.DataFrame) -> None:
        self.rows = rows if self.rows.empty else pd.concat([self.rows, rows], ignore_index=True)

    def search(self, role: str) -> pd.DataFrame:
        """HPO on N_B (``role="base"``) or on the stand-in (``"proxy"``); return the trials."""
        profile = self.experiment.profile
        if self.table and self.select(purpose="study", role=role).empty:
            verifies = role != "base" and self.table.verification is not None
            self._add(
                replay(
                    self.table,
                    stand_in="base" if role == "base" else self.stand_in,
                    sampler=self.experiment.sampler,
                    trials=profile.trials,
                    verify=profile.verify if verifies else 0,
                    trial_pruner=profile.trial_pruner,
                    seed=self.experiment.seed,
                    space=self.space,
                )
            )
        return self.select(purpose="study", role=role)

    def verify(self) -> pd.DataFrame:
        """Return N_B's trainings with the stand-in's best, on weight seeds of their own."""
        return self.select(purpose="verify")

    def final(self) -> pd.DataFrame:
        """Return each choice with N_B's test accuracy on truth seeds, interpolated if need be."""
        if self._judges and self.select(purpose="final").empty:
            assert self.table
            chosen = choices(self.rows)
            self._add(as_frame([self._final(self.table, *choice) for choice in chosen.items()]))
        return self.select(purpose="final")

    def _final(self, table: Table, name: str, chosen: dict[str, float]) -> dict[str, object]:
        accuracy = interpolated(table, np.nanmean(table.truth, axis=1), chosen)
        found = {"purpose": "final", "choice": name, "trial": 0, "test_accuracy": accuracy}
        return self._named(table, "base") | identity(chosen) | found

    def ranking(self) -> pd.DataFrame:
        """Return the table's own trainings as a ranking study: N_B, reseeded, and the stand-ins."""
        if self.table and self.select(purpose="ranking").empty:
            rows = []
            for name, curves in self.table.entrants.items():
                for seed in range(min(2 if name == "base" else 1, curves.final.shape[1])):
                    for place, levels in enumerate(self.table.regime.configurations):
                        accuracy = float(curves.final[place, seed])
                        found = {"purpose": "ranking", "seed": seed, "val_accuracy": accuracy}
                        configuration = identity(self.table.regime.configuration(levels))
                        rows.append(self._named(self.table, name) | configuration | found)
            self._add(as_frame(rows))
        return self.select(purpose="ranking")

    def _named(self, table: Table, entrant: str) -> dict[str, object]:
        """Return the columns that looked-up trainings of ``entrant`` have in common."""
        row = looked_up(table, entrant)
        own = {"sampler": self.experiment.sampler, "seed": self.experiment.seed}
        return row | own | {"epochs": row["budget"], "wall_seconds": 0.0, "cpu_seconds": 0.0}

    def finish(self) -> pd.DataFrame:
        """Return all rows; nothing is written, since the table is the record."""
        return self.rows
