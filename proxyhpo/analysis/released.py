"""The paper's own setting on recorded tables, and the released code's defects as switches.

The paper tunes the learning rate alone, uniform in 1e-5..0.2, by 100 trials, with Hyperband
configured and never asked, and trusts the proxy's best trial. On a table that is approximated by
interpolating along log lr (:class:`proxyhpo.hpo.replay.Interpolated`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from proxyhpo.analysis.quality import regrets
from proxyhpo.hpo.curves import Table
from proxyhpo.hpo.replay import Replay, interpolated, replay_study
from proxyhpo.hpo.tables import SEARCH_SEEDS

SAMPLERS = {"tpe": 30, "cmaes": 30, "gp": 10}
"""Replays of each: fewer by GP, whose trials take Optuna eight times as long as CMA-ES's."""
STAND_IN, TRIALS, VERIFY = "snip@0.25", 100, 3

SWITCHES: dict[str, dict[str, object]] = {
    "corrected": {},
    "chosen on the test split": {"objective": "test split"},
    "best epoch instead of the last": {"objective": "best epoch"},
    "trial pruner never asked": {"trial_pruner": "none"},
    "learning rate drawn on a linear scale": {"space": "paper"},
    "not verified on N_B": {"verify": 0},
}
"""What the released code does otherwise, one change each from the corrected protocol."""
AS_RELEASED = "all of these, on the last epoch"
"""The released code takes the best epoch on the test split; only the last was tested here."""


def cells(
    table: Table,
    *,
    samplers: Mapping[str, int] = SAMPLERS,
    trials: int = TRIALS,
    each: Callable[..., Iterable[dict[str, object]]] = map,
) -> pd.DataFrame:
    """Return the paper's experiments of one data set and network: a line a sampler and study.

    ``saved`` and ``saved_verified``: shares of the time on N_B; ``lost`` and ``lost_verified``:
    points of test accuracy that N_B loses with the stand-in's choice against the choice of its own
    search. ``samplers`` says how many studies of each, every one on the recorded table, ``draw`` 0,
    and on one redrawn anew. ``each`` is ``map`` or that of an executor.
    """
    one = partial(_cell, table, trials)
    studies = range(max(samplers.values()))
    which = [
        (name, study, draw)
        for study in studies
        for draw in (study + 1, 0)
        for name in samplers
        if study < samplers[name]
    ]
    return pd.DataFrame(list(each(one, which)))


def _cell(table: Table, trials: int, which: tuple[str, int, int]) -> dict[str, object]:
    """Return one experiment; NaN where a study trained nothing in full."""
    sampler, study, draw = which
    one = table.redrawn(np.random.default_rng([study, 4]), len(SEARCH_SEEDS)) if draw else table
    replayed = partial(replay_study, one, sampler=sampler, trials=trials, seed=study, space="paper")
    base, tuned = replayed(), replayed(stand_in=STAND_IN, verify=VERIFY)
    choices = base.choice(), tuned.choice(), tuned.choice(VERIFY)
    own, alone, verified = (
        np.nan if choice is None else interpolated(one, regrets(one), choice) for choice in choices
    )
    spent, whole = _cost(one, STAND_IN, tuned), _cost(one, "base", base)
    line = {
        "saved": 1 - spent / whole, "saved_verified": 1 - (spent + VERIFY) / whole,
        "lost": alone - own, "lost_verified": verified - own,
    }  # fmt: skip
    named = {"table": table.name, "stand_in": STAND_IN, "sampler": sampler, "study": study}
    named |= {"draw": draw, "trials": trials}
    return named | {name: round(float(v), 5) for name, v in line.items()}


def switches(table: Table, *, studies: int = 100) -> pd.DataFrame:
    """Return what each defect of the released code does, alone and all together.

    By 18 trials, or as many as half of the table's configurations. One line a switch:
    ``reported``, the accuracy that the search would report for its choice; ``true``, the choice's
    test accuracy on truth, which is redrawn with the rest; their difference ``optimism``, all in
    per cent; ``saved``, the share of time against the same search on N_B, by the mean logarithm of
    their ratio; standard errors over studies in ``..._se``.
    """
    trials = min(18, table.trials)
    rng = np.random.default_rng(0)
    repetitions = [table.redrawn(rng) for _ in range(studies)]
    together: dict[str, object] = {}
    for change in SWITCHES.values():
        together = change | together  # of the two objectives the first, the test split
    lines = []
    for name, change in {**SWITCHES, AS_RELEASED: together}.items():
        options = {"trial_pruner": "halving", "verify": VERIFY, **change}
        found = [_switched(one, trials, study, options) for study, one in enumerate(repetitions)]
        values = np.array([values for values in found if values is not None])
        means, errors = values.mean(0), stats.sem(values)
        taken = math.exp(means[-1])
        means[-1], errors[-1] = 1 - taken, taken * errors[-1]
        line = {"table": table.name, "switch": name, "studies": len(values)}
        quantities = ("reported", "true", "optimism", "saved")
        for quantity, *both in zip(quantities, 100 * means, 100 * errors, strict=True):
            line |= zip((quantity, f"{quantity}_se"), both, strict=True)
        lines.append(line)
    return pd.DataFrame(lines)


def _switched(table: Table, trials: int, seed: int, options: dict) -> tuple[float, ...] | None:
    """Return what a study on a redrawn table comes to; None without a choice.

    Accuracies as :func:`switches` has them, and the logarithm of its time by that of N_B's search.
    """
    base = replay_study(table, trials=trials, seed=seed, **{**options, "verify": 0})
    tuned = replay_study(table, stand_in=STAND_IN, trials=trials, seed=seed, **options)
    verify = int(options["verify"])
    choice = tuned.choice(verify)
    if choice is None:
        return None
    if verify:
        reported = max(accuracy for _, accuracy in tuned.verified)
    else:
        reported = max(t.accuracy for t in tuned.trials if t.state == "complete")
    true = interpolated(table, np.nanmean(table.truth, axis=1), choice)
    spent = _cost(table, STAND_IN, tuned) + verify
    return reported, true, reported - true, math.log(spent / _cost(table, "base", base))


def _cost(table: Table, name: str, study: Replay) -> float:
    """Return what a study cost, in full trainings of N_B, its making included."""
    sampler = sum(trial.sampler_seconds for trial in study.trials)
    spent = table.seconds(name, study.epochs) + table.costs[name].build + sampler
    return float(spent) / table.whole
