"""What certificates are worth: searches that ask for one, replayed on a recorded table.

A replayed search goes as :func:`proxyhpo.tune` does with method "study": a few configurations,
drawn at random, run on the stand-in and on N_B; the certificate then says whether the rest is tuned
on the stand-in, and how many of its best N_B verifies, or whether all else is tuned on N_B itself.
Where a search is too short to earn a certificate back, the default one, which doesn't ask, is
replayed as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from proxyhpo.analysis.bootstrap import t_interval
from proxyhpo.analysis.certificate import AGAIN, CONFIGURATIONS, affordable, certificate
from proxyhpo.analysis.quality import regrets
from proxyhpo.analysis.ways import WINS_ON
from proxyhpo.hpo.curves import Table
from proxyhpo.hpo.ladder import Ladder
from proxyhpo.hpo.replay import Recorded, Trial, replay_study

STUDIES = 200
NOT_ASKED = "not asked"
"""The verdict of a search without a certificate."""


def certified(
    table: Table,
    stand_ins: Sequence[str] | None = None,
    *,
    studies: int = STUDIES,
    each: Callable[..., Iterable[dict[str, object]]] = map,
) -> pd.DataFrame:
    """Return certified searches, a line each: TPE on each stand-in, each study on a redrawn table.

    ``verdict`` ("use it", "verify", "don't", or :data:`NOT_ASKED`), ``verify`` (k), ``cost`` in
    trainings of N_B, and ``lost``: points of test accuracy by truth, against the best configuration
    known; ``lost_base`` of a whole search on N_B. ``each`` is ``map`` or that of an executor.
    """
    names = table.stand_ins if stand_ins is None else stand_ins
    searches = [
        (name, few, seed)
        for name in names
        for few in (min(CONFIGURATIONS, table.trials // 2), 0)
        for seed in range(studies)
        if few or (name == WINS_ON and not affordable(table.trials, table.share(name)))
    ]
    return pd.DataFrame(list(each(partial(_study, table), searches)))


def _study(table: Table, which: tuple[str, int, int]) -> dict[str, object]:
    name, count, seed = which
    one = table.redrawn(np.random.default_rng([seed, 5]), 2)
    trials, share = one.trials, one.share(name)
    made = replay_study(one, stand_in=name, trials=trials, seed=seed, drawn=count).trials
    base = Recorded(one, "base", seed)

    def judged(trial: Trial, repeat: int = 0) -> float:
        return float(base.train(trial.configuration, repeat)["accuracy"][-1])

    few = made[:count]
    again = sorted(few, key=lambda trial: -trial.accuracy)[:AGAIN]
    verdict, verify = NOT_ASKED, Ladder((name, "base")).counts(trials)[-1]
    if few:
        pairs = [(judged(trial), trial.accuracy) for trial in few]
        twice = [(judged(trial), judged(trial, 1)) for trial in again]
        found = certificate(name, pairs, twice, share, trials)
        verdict, verify = found.verdict.partition(" k = ")[0], found.verify
    known = {base.place(trial.configuration): judged(trial) for trial in few}
    known |= {base.place(t.configuration): (judged(t) + judged(t, 1)) / 2 for t in again}
    spent = len(few) + len(again) + one.costs[name].build / one.whole
    if verdict == "don't":
        # of another seed, or it would begin with the same configurations
        rest = replay_study(one, stand_in="base", trials=trials - count, seed=STUDIES + seed).trials
        known |= {base.place(trial.configuration): trial.accuracy for trial in rest}
        spent += count * share + len(rest)
    else:
        best = sorted(made, key=lambda trial: -trial.accuracy)
        places = dict.fromkeys(base.place(trial.configuration) for trial in best)
        assert one.verification is not None
        checked = [place for place in list(places)[:verify] if place not in known]
        known |= {place: float(one.verification.final[place].mean()) for place in checked}
        spent += trials * share + len(checked)
    alone = replay_study(one, stand_in="base", trials=trials, seed=seed).choice()
    lost = regrets(one)
    return {
        "table": table.name,
        "stand_in": name,
        "study": seed,
        "verdict": verdict,
        "verify": verify,
        "cost": round(spent, 3),
        "lost": round(float(lost[max(known, key=lambda place: known[place])]), 3),
        "lost_base": np.nan if alone is None else round(float(lost[base.place(alone)]), 3),
    }


def certified_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line a table, stand-in and verdict: how often, its cost, and what it loses.

    ``lost`` against a whole search on N_B, with ``low`` and ``high``: Student's t over studies,
    each on a table redrawn anew, for the mean; how far tables differ, it can't say. How often
    certificates are right is not stated: that would take 59 independent cases (0.95^59 < 5 %).
    ``share`` is that of the searches that asked, or of those that didn't.
    """
    keys = ["table", "stand_in", "verdict"]
    alike = frame.groupby([*keys[:2], frame["verdict"] == NOT_ASKED])["study"]
    frame, lines = frame.assign(searches=alike.transform("size")), []
    for key, own in frame.groupby(keys, sort=False):
        lost, low, high = t_interval((own["lost"] - own["lost_base"]).dropna().to_numpy(float))
        lines.append(
            dict(zip(keys, key, strict=True))
            | {"studies": len(own), "share": len(own) / own["searches"].iloc[0]}
            | {"cost": own["cost"].mean(), "lost": lost, "low": low, "high": high}
        )
    return pd.DataFrame(lines)
