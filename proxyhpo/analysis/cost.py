"""What hyperparameter optimisation costs.

One rule for time, everywhere: :func:`seconds`. A replayed row's seconds are steps x measured
seconds a step, whatever else ran while the table was recorded; a live row's are CPU seconds of its
process, which neighbours on the machine hardly change, or wall-clock seconds where a GPU worked.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from proxyhpo.analysis.bootstrap import LEVEL, t_interval
from proxyhpo.hpo.curves import HELD_BACK, Table, stepped_as

GPU = r"NVIDIA|GeForce|Quadro|Tesla|Instinct|(?<!with )(?<!w/ )Radeon(?!.*Compute Cores)"
"""What the names of graphics processors hold, and those of other processors don't, as "AMD Ryzen 7
5800H with Radeon Graphics"."""
EXPERIMENT = ["profile", "dataset", "network", "sampler", "seed"]
SPENT = ("proxy", "study", "lost", "verify")
"""Purposes that a user waits for; ranking studies and final trainings only measure."""
PAPER = 0.37
"""Share of time that HPO on the proxy takes less, "up to" (Lee and Yim 2022, abstract)."""


def seconds(rows: pd.DataFrame) -> pd.Series:
    """Return the seconds of each row by the one rule of this module."""
    return rows["wall_seconds"].where(rows["device"].str.contains(GPU), rows["cpu_seconds"])


def epoch_costs(table: Table, *, level: float = LEVEL) -> pd.DataFrame:
    """Return what an epoch of each entrant costs by an epoch of N_B, validation included.

    One line an entrant: ``time``, the geometric mean over the rounds of the interleaved benchmark,
    each of which times all entrants, with Student's t interval of its logarithm (``low``,
    ``high``); ``macs``, the ratio of forward multiply-accumulates x pictures; ``trial``, the time
    of a full trial by N_B's; ``build``, of making it, in trainings of N_B; ``n``, rounds.
    """
    base = table.curves("base")
    held = HELD_BACK * base.samples
    rounds = table.steps.set_index(["repeat", "entrant"])

    def epoch(name: str) -> pd.Series:
        own = rounds.xs(stepped_as(name), level="entrant")
        steps = table.curves(name).samples // table.regime.batch_size
        return steps * own["step_seconds"] + held * own["picture_seconds"]

    whole = epoch("base")
    lines = []
    for name in table.costs:
        if name not in table.entrants:
            continue
        curves = table.curves(name)
        ratios = np.log((epoch(name) / whole).dropna().to_numpy(float))
        time, low, high = np.exp(t_interval(ratios, level))
        macs = curves.macs * curves.samples / (base.macs * base.samples)
        trial = curves.epochs / base.epochs
        lines.append(
            {"entrant": name, "time": time, "low": low, "high": high, "macs": macs}
            | {"trial": time * trial, "trial_low": low * trial, "trial_high": high * trial}
            | {"build": table.costs[name].build / table.whole, "n": len(ratios)}
        )
    return pd.DataFrame(lines)


def saving(
    trials: float | np.ndarray, verify: int, trial: float, *, build: float = 0.0
) -> float | np.ndarray:
    """Return the share of time saved without a trial pruner, S = 1 - r - (k + b) / T.

    Args:
        trials: T, of each study.
        verify: k, trainings of N_B to verify the stand-in's best.
        trial: r, the time of a full trial on the stand-in by one on N_B.
        build: b, the time of making the stand-in, in trainings of N_B.
    """
    return 1 - trial - (verify + build) / np.asarray(trials)


def break_even(verify: int, trial: float, *, build: float = 0.0) -> float:
    """Return the number of trials from which on a verified search on the stand-in saves time."""
    return float("inf") if trial >= 1 else (verify + build) / (1 - trial)


def ledger(rows: pd.DataFrame) -> pd.DataFrame:
    """Return where the time of experiments went: seconds by ``purpose`` and ``way``.

    ``way`` is "base" (HPO on N_B) or "proxy" (HPO on the stand-in: making it, its study and
    verification on N_B). Of the purposes :data:`SPENT`; stopped, failed and diverged trials count,
    and what kills cost.
    """
    table = _spent(rows).replace({"way": {"verify": "proxy"}})
    return table.groupby([*EXPERIMENT, "way", "purpose"], sort=False)["seconds"].sum().reset_index()


def _spent(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that a user waits for, their seconds, and the ``way`` that each is part of.

    That is "base", "proxy" or "verify". Interrupted final and ranking trainings, which only measure
    as those do that ended, are without a trial.
    """
    measured = (rows["purpose"] == "lost") & (rows["trial"] < 0)
    used = rows[rows["purpose"].isin(SPENT) & ~measured]
    lost = (used["purpose"] == "lost") & (used["choice"] == "verified")
    verify = (used["purpose"] == "verify") | lost
    return used.assign(way=used["role"].mask(verify, "verify"), seconds=seconds(used))


def reduction(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what HPO on the stand-in saved in each experiment: shares of the time on N_B.

    ``alone`` without verification, ``verified`` with it, and the seconds of both sides.
    """
    spent = ledger(rows).pivot_table(
        index=EXPERIMENT, columns=["way", "purpose"], values="seconds", fill_value=0.0
    )
    if "base" not in spent or "proxy" not in spent:
        return pd.DataFrame(columns=[*EXPERIMENT, "alone", "verified"])
    base, proxy = spent["base"].sum(axis=1), spent["proxy"].sum(axis=1)
    verify = spent["proxy"].get("verify", 0.0)
    table = pd.DataFrame({"base": base, "proxy": proxy})
    table["alone"], table["verified"] = 1 - (proxy - verify) / base, 1 - proxy / base
    return table[base > 0].reset_index()


def incumbent(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the best validation accuracy so far against the seconds spent so far.

    One line a trial and verification: ``way``, ``trial``, ``seconds``, its own ``accuracy`` (NaN
    unless it was trained in full), and ``best`` (NaN before the first that was). Accuracies of N_P
    and N_B don't compare, so ``way`` is "base", "proxy" or "verify", whose seconds go on from the
    proxy's.
    """
    used = _spent(rows)
    way, known = used["way"], used["val_accuracy"].where(used["state"] == "complete")
    table = used[[*EXPERIMENT, "trial", "way", "seconds"]].assign(accuracy=known)
    proxy = table["seconds"].where(way == "proxy", 0.0)
    before = proxy.groupby([table[key] for key in EXPERIMENT]).transform("sum")
    own = table.groupby([*EXPERIMENT, "way"], sort=False)
    table["best"] = own["accuracy"].transform(lambda known: known.cummax().ffill())
    table["seconds"] = own["seconds"].cumsum() + before.where(way == "verify", 0.0)
    return table.reset_index(drop=True)
