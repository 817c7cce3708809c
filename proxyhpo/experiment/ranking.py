"""The ranking study: the same configurations, trained in full on N_B and on its stand-ins.

What a stand-in is worth shows where it orders configurations as N_B does. N_B itself, trained again
from other weights, sets the noise ceiling: no stand-in can be asked for more.
"""

from __future__ import annotations

import pandas as pd

from proxyhpo.experiment.trial import Clock, Record, Workbench
from proxyhpo.hpo import search
from proxyhpo.progress import Progress
from proxyhpo.rows import config_id


def rank(bench: Workbench, recorded: pd.DataFrame, record: Record) -> None:
    """Train what isn't recorded of the ranking study of the experiment on ``bench``.

    Configuration by configuration, so that what an interrupted study leaves can be compared.

    Args:
        bench: the experiment's; its profile says how many configurations and which stand-ins.
        recorded: ranking rows of an earlier call.
        record: gets each row as it comes, and one for each stand-in that is made.
    """
    profile, seed = bench.profile, bench.experiment.seed
    configurations = search.sample(search.SPACES[profile.space], profile.ranking, seed=seed)
    # Weights and batches: N_B under one seed; all that is compared with it under another, so
    # that N_B reseeded has no more in common with it than a stand-in has.
    entrants = [(bench.stand_in("base", record), weights) for weights in (seed, seed + 1)]
    entrants += [(bench.stand_in(name, record), seed + 1) for name in profile.ranked]
    keys = ["config_id", "proxy", "pruning_ratio", "seed"]
    done = set(recorded[keys].itertuples(index=False, name=None))
    jobs = [
        (configuration, stand_in, weights)
        for configuration in configurations
        for stand_in, weights in entrants
        if (config_id(configuration), *stand_in.identity, weights) not in done
    ]
    total = len(configurations) * len(entrants)
    clock = Clock()
    with Progress("ranking study", total, total - len(jobs)) as progress:
        for configuration, stand_in, weights in jobs:
            outcome, row = bench.attempt(
                clock, stand_in, configuration, seed=("ranking", weights), purpose="ranking"
            )
            record(row | {"seed": weights})
            progress.advance(outcome.told)
