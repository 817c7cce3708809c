"""A live study on a table's grid, which its replay has to match.

It trains what the replay looks up: the same samplers ask, and each trial has the weight seed of the
recorded training that the replay would meet. On the machine that recorded the table both give the
same trials, to the four digits that a curve keeps; elsewhere training amplifies rounding.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.storages import InMemoryStorage

from proxyhpo.experiment.curves import Table, table_bench, table_stand_in
from proxyhpo.experiment.progress import StudyProgress
from proxyhpo.experiment.trial import Clock, TrainOptions
from proxyhpo.hpo.curves import load_table
from proxyhpo.hpo.replay import Recorded, replay_settings
from proxyhpo.hpo.study import Claim, Study, work
from proxyhpo.hpo.tables import SEARCH_SEEDS, Job
from proxyhpo.rows import as_frame
from proxyhpo.training import Outcome


def live_study(
    dataset: str,
    network: str,
    *,
    folder: Path,
    stand_in: str = "base",
    sampler: str = "tpe",
    seed: int = 0,
    data_dir: str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Return the rows of a study that trains what :func:`~proxyhpo.hpo.replay.replay` looks up.

    Raises:
        InputError: a table that isn't recorded, or missing pictures.
    """
    table = load_table(dataset, network, folder)
    regime = table.regime
    manifest, plans = Table(regime, folder).begun()
    bench = table_bench(regime, manifest, data_dir)
    plan = plans.get(f"{stand_in} plan 0", "")
    one = table_stand_in(regime, manifest, data_dir, stand_in, 0, plan)
    oracle = Recorded(table, stand_in, seed)
    levels = regime.configurations
    seen: Counter[int] = Counter()

    def attempt(claim: Claim) -> tuple[Outcome, list[dict]]:
        place = oracle.place(claim.configuration)
        met = SEARCH_SEEDS[oracle.seed(claim.configuration, seen[place])]
        seen[place] += 1
        outcome, row = bench.attempt(
            Clock(),
            one,
            regime.configuration(levels[place]),
            TrainOptions(regime.weight_seed(Job(stand_in, levels[place], met)), claim.stop),
            purpose="study",
            trial=claim.number,
            sampler_seconds=claim.seconds,
        )
        return outcome, [row | regime.labels(stand_in) | {"sampler": sampler, "seed": seed}]

    settings = replay_settings(table, stand_in, sampler=sampler, seed=seed, **options)
    study = Study.open(settings, InMemoryStorage())
    with StudyProgress(f"{sampler} on {stand_in}, {table.name}", settings.trials) as progress:
        work(study, attempt, lambda trial: progress.tell(trial.user_attrs["rows"][-1]))
    return as_frame([row for trial in study.finished for row in trial.user_attrs["rows"]])
