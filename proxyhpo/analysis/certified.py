"""What certificates are worth: searches that ask for one, replayed on a recorded table.

A replayed search goes as :func:`proxyhpo.tune` does with method "study": a few configurations run
on the stand-in and on N_B; the certificate then says whether the rest is tuned on the stand-in,
and how many of its best N_B verifies, or whether all else is tuned on N_B itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from proxyhpo.analysis.bootstrap import t_interval
from proxyhpo.analysis.certificate import certificate
from proxyhpo.analysis.quality import regrets
from proxyhpo.hpo.curves import Table
from proxyhpo.hpo.replay import Recorded, Trial, replay_study

FEW, RESEED = 4, 1
"""Configurations that run on both, at most half of a search's; N_B trains so many once more."""
STUDIES = 200


def certified(
    table: Table,
    stand_ins: Sequence[str] | None = None,
    *,
    studies: int = STUDIES,
    each: Callable[..., Iterable[dict[str, object]]] = map,
) -> pd.DataFrame:
    """Return certified searches, a line each: TPE on each stand-in, each study on a redrawn table.

    ``verdict`` ("use it", "verify", "don't"), ``verify`` (k), ``cost`` in trainings of N_B, and
    ``lost``: points of test accuracy by truth, against the best configuration known; ``lost_base``
    of a whole search on N_B. ``each`` is ``map`` or that of an executor.
    """
    names = table.stand_ins if stand_ins is None else stand_ins
    one = partial(_study, table)
    return pd.DataFrame(list(each(one, [(name, s) for s in range(studies) for name in names])))


def _study(table: Table, which: tuple[str, int]) -> dict[str, object]:
    name, seed = which
    one = table.redrawn(np.random.default_rng([seed, 5]), 2)
    trials = len(table.regime.configurations) // 2
    made = replay_study(one, stand_in=name, trials=trials, seed=seed).trials
    base = Recorded(one, "base", seed)

    def judged(trial: Trial, repeat: int = 0) -> float:
        return float(base.train(trial.configuration, repeat)["accuracy"][-1])

    few = made[: min(FEW, trials // 2)]
    again = sorted(few, key=lambda trial: -trial.accuracy)[:RESEED]
    share = float(one.seconds(name, one.curves(name).epochs)) / one.whole
    found = certificate(
        name,
        [(judged(trial), trial.accuracy) for trial in few],
        [(judged(trial), judged(trial, 1)) for trial in again],
        share,
        trials,
    )
    known = {base.place(trial.configuration): judged(trial) for trial in few}
    spent = len(few) + RESEED + one.costs[name].build / one.whole
    if found.verdict == "don't":
        # of another seed, or it would begin with the same configurations
        rest = replay_study(
            one, stand_in="base", trials=trials - len(few), seed=STUDIES + seed
        ).trials
        known |= {base.place(trial.configuration): trial.accuracy for trial in rest}
        spent += len(few) * share + len(rest)
    else:
        best = sorted(made, key=lambda trial: -trial.accuracy)
        places = dict.fromkeys(base.place(trial.configuration) for trial in best)
        assert one.verification is not None
        checked = [place for place in list(places)[: found.verify] if place not in known]
        known |= {place: float(one.verification.final[place].mean()) for place in checked}
        spent += trials * share + len(checked)
    alone = replay_study(one, stand_in="base", trials=trials, seed=seed).choice()
    lost = regrets(one)
    return {
        "table": table.name,
        "stand_in": name,
        "study": seed,
        "verdict": found.verdict.partition(" k = ")[0],
        "verify": found.verify,
        "cost": round(spent, 3),
        "lost": round(float(lost[max(known, key=lambda place: known[place])]), 3),
        "lost_base": np.nan if alone is None else round(float(lost[base.place(alone)]), 3),
    }


def certified_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line a table, stand-in and verdict: how often, its cost, and what it loses.

    ``lost`` against a whole search on N_B, with ``low`` and ``high``: Student's t over studies,
    each on a table redrawn anew, for the mean; how far tables differ, it can't say. How often
    certificates are right is not stated: that would take 59 independent cases (0.95^59 < 5 %).
    """
    keys = ["table", "stand_in", "verdict"]
    searches = frame.groupby(keys[:2]).size()
    lines = []
    for key, own in frame.groupby(keys, sort=False):
        lost, low, high = t_interval((own["lost"] - own["lost_base"]).dropna().to_numpy(float))
        lines.append(
            dict(zip(keys, key, strict=True))
            | {"studies": len(own), "share": len(own) / searches[key[:2]]}
            | {"cost": own["cost"].mean(), "lost": lost, "low": low, "high": high}
        )
    return pd.DataFrame(lines)
