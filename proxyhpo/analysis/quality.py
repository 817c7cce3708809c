"""Recorded rows -> what HPO found: test accuracies, at equal trials, at equal time, against rivals.

A **way** is an HPO method on N_B, or on N_P with verification on N_B. The **rivals** are ways
without any proxy: random search, Hyperband on random configurations, and the k best after one
epoch (arXiv:2307.15422); they are recorded as samplers of their own.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from proxyhpo.analysis.bootstrap import mean_interval
from proxyhpo.analysis.cost import (
    CELL,
    COSTS,
    EXPERIMENT,
    PAIR,
    STAND_IN,
    clock,
    cost,
    incumbent,
    ways,
)

RIVALS = {
    "random": "random search",
    "hyperband": "Hyperband",
    "best_k": "best k after one epoch",
}


def final_quality(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the test accuracy of N_B trained with each choice: one line a cell and choice.

    ``test_accuracy`` is the mean over ``n`` trainings (a fraction), ``regret`` the mean over the
    same trainings of N_B's own choice less this one, in accuracy points, ``regret_se`` its
    standard error; intervals from resampling trainings, NaN where there is one. A diverged
    training counts as 0.
    """
    final = _final(rows)
    lines = []
    for key, group in final.groupby(CELL):
        # the k-th training of each choice within its experiment shares seed and order with the
        # k-th of the others, so differences are paired
        group = group.assign(repeat=group.groupby(["seed", "choice"]).cumcount())
        wide = group.pivot_table("accuracy", ["seed", "repeat"], "choice")
        for choice in (name for name in ("base", "proxy", "verified") if name in wide):
            line = dict(zip(CELL, key, strict=True)) | {"choice": choice}
            line |= {"n": int(wide[choice].count()), "seeds": group["seed"].nunique()}
            line |= _mean("test_accuracy", wide[choice].dropna())
            lost = 100 * (wide["base"] - wide[choice]).dropna() if "base" in wide else pd.Series()
            lines.append(line | _mean("regret", lost))
    return pd.DataFrame(lines)


def _final(rows: pd.DataFrame) -> pd.DataFrame:
    """Return final trainings with their ``accuracy``, one line for each choice that they train."""
    final = rows[(rows["purpose"] == "final") & rows["state"].isin(["complete", "diverged"])]
    accuracy = final["test_accuracy"].where(final["state"] != "diverged", 0.0)
    final = final.assign(accuracy=accuracy, choice=final["choice"].str.split("+"))
    return final.explode("choice").dropna(subset="accuracy")


def _mean(name: str, values: pd.Series) -> dict[str, float]:
    """Return the mean of ``values`` with its interval and standard error, as columns."""
    mean, low, high = mean_interval(values)
    error = values.std() / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_se": float(error)}


def at_equal_time(rows: pd.DataFrame, unit: str | None = None) -> pd.DataFrame:
    """Return what N_B's own HPO had found by the time that HPO on N_P, verified, was done.

    One line a data set, network, sampler and stand-in. ``unit`` is the measure of time (a name of
    :data:`~proxyhpo.analysis.cost.COSTS`; :func:`~proxyhpo.analysis.cost.clock` by default),
    ``spent`` the mean over seeds of what HPO on N_P took, verification included. ``base_then`` and
    ``base_end`` are N_B's best validation accuracy by then and after all trials, ``verified`` that
    of the verified configurations on N_B (fractions); ``equal_time`` and ``equal_trials`` are
    ``verified`` less each, in accuracy points, means over the ``n`` seeds with intervals from
    resampling seeds. All
    are bests of several trials, so all flatter. ``settled`` counts the seeds in which N_B's own
    HPO had its final choice by then: there the test accuracies at equal time are those at equal
    trials. ``empty_handed`` counts seeds in which it had no full trial yet, which aren't in ``n``.
    """
    unit = unit or clock(rows)
    curves = incumbent(rows)
    found = []
    for key, group in curves[curves["proxy"] != ""].groupby([*EXPERIMENT, *STAND_IN]):
        base = group[group["way"] == "base"]
        verified = group[(group["way"] == "proxy") & (group["measured_on"] == "base")]
        if not len(base) or not len(verified):
            continue
        spent = verified[unit].max()
        then, end = base.loc[base[unit] <= spent, "best"].max(), base["best"].max()
        best = verified["best"].max()
        line = {"spent": spent, "base_then": then, "base_end": end, "verified": best}
        line |= {"equal_time": 100 * (best - then), "equal_trials": 100 * (best - end)}
        found.append(dict(zip([*EXPERIMENT, *STAND_IN], key, strict=True)) | line)
    lines = []
    for key, group in pd.DataFrame(found).groupby([*CELL, *STAND_IN]) if found else ():
        line = dict(zip([*CELL, *STAND_IN], key, strict=True))
        known = group.dropna(subset="base_then")
        line |= {"unit": unit, "n": len(known), "empty_handed": len(group) - len(known)}
        line["settled"] = int((known["base_then"] == known["base_end"]).sum())
        line |= {k: group[k].mean() for k in ("spent", "base_then", "base_end", "verified")}
        for name in ("equal_time", "equal_trials"):
            line |= _mean(name, known[name])
        lines.append(line)
    return pd.DataFrame(lines)


def rivals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what each way of HPO cost and how good N_B became: one line a way.

    ``way`` is "base" (on N_B) or "proxy" (on N_P, with building it and verification, where there
    was any). ``wall``, ``cpu`` and ``macs`` are the costs of HPO without the final training,
    ``test_accuracy`` (a fraction) that of N_B with the way's choice, the mean over its final
    trainings; all are means over ``n`` seeds, with intervals from resampling seeds, NaN where
    there is one. Ways without a final training aren't in.
    """
    each = _each_way(rows)
    lines = []
    for key, group in each.groupby([*CELL, "way", *STAND_IN]) if len(each) else ():
        line = dict(zip([*CELL, "way", *STAND_IN], key, strict=True)) | {"n": len(group)}
        for name in (*COSTS, "test_accuracy"):
            line |= _mean(name, group[name])
        lines.append(line)
    return pd.DataFrame(lines)


def _each_way(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line a way and seed: costs of HPO and test accuracy."""
    spent = ways(rows)
    spent = spent[spent["purpose"].isin(["proxy", "study", "verify"])]
    if not len(spent):
        return pd.DataFrame()
    # N_B's own way is the same beside each stand-in
    mine = spent["way"] == "base"
    spent = spent.assign(
        proxy=spent["proxy"].where(~mine, ""), pruning_ratio=spent["pruning_ratio"].where(~mine, 0)
    )
    spent = spent.drop_duplicates([*EXPERIMENT, "way", *STAND_IN, "role", "purpose", "trial"])
    accuracy = _final(rows).groupby([*EXPERIMENT, "choice"])["accuracy"].mean()
    lines = []
    for key, group in spent.groupby([*EXPERIMENT, "way", *STAND_IN]):
        line = dict(zip([*EXPERIMENT, "way", *STAND_IN], key, strict=True))
        wanted = ("base",) if line["way"] == "base" else ("verified", "proxy")
        cell = tuple(line[name] for name in EXPERIMENT)
        reached = [accuracy[(*cell, name)] for name in wanted if (*cell, name) in accuracy]
        if reached:
            lines.append(line | cost(group).sum().to_dict() | {"test_accuracy": reached[0]})
    return pd.DataFrame(lines)


def rival_differences(rows: pd.DataFrame, unit: str | None = None) -> pd.DataFrame:
    """Return each way with a proxy against each way on N_B of the same data set and network.

    ``against`` is the sampler on N_B. ``share`` is the cost of the way with the proxy in parts of
    the other's, ``difference`` its test accuracy less the other's, in points: both over the ``n``
    seeds that both have, with an interval from resampling seeds. ``unit`` as in
    :func:`at_equal_time`.
    """
    unit = unit or clock(rows)
    each = _each_way(rows)
    lines = []
    for key, group in each.groupby(PAIR) if len(each) else ():
        for mine, ours in group[group["way"] == "proxy"].groupby(["sampler", *STAND_IN]):
            for sampler, theirs in group[group["way"] == "base"].groupby("sampler"):
                both = ours.merge(theirs, on="seed", suffixes=("", "_rival"))
                if not len(both):
                    continue
                line = dict(zip([*CELL, *STAND_IN], (*key, *mine), strict=True))
                line |= {"against": sampler, "unit": unit, "n": len(both)}
                line["share"] = both[unit].sum() / both[f"{unit}_rival"].sum()
                gained = 100 * (both["test_accuracy"] - both["test_accuracy_rival"])
                lines.append(line | _mean("difference", gained))
    return pd.DataFrame(lines)
