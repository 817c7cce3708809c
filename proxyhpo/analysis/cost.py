"""Recorded rows -> what hyperparameter optimisation cost, and what it had found by when.

Costs are in wall-clock seconds, CPU seconds and multiply-accumulates (MACs). A training step is
counted as three forward passes (forward, and backward to weights and to inputs), evaluation as
nothing: ``3 * macs * samples``.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from proxyhpo.analysis.bootstrap import interval, resamples, standard_error

COSTS = ("wall", "cpu", "macs")
PAIR = ["profile", "dataset", "network"]
CELL = [*PAIR, "sampler"]
EXPERIMENT = [*CELL, "seed"]
STAND_IN = ["proxy", "pruning_ratio"]
BUSY = 0.5  # load average above the process's own threads that makes wall-clock time doubtful


def cost(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what each row cost: columns ``wall`` and ``cpu`` (seconds) and ``macs``."""
    macs = 3.0 * rows["macs"] * rows["samples"]
    return pd.DataFrame({"wall": rows["wall_seconds"], "cpu": rows["cpu_seconds"], "macs": macs})


def ways(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that each way makes its user wait for, with a new column ``way``.

    ``base``: HPO on N_B: loading the pictures, its study, one final training with its choice.
    ``proxy``: HPO on N_P: loading the pictures, building the proxy, its study, verification on
    N_B, one final training with the verified choice (the proxy's own where none was verified).
    A row that both ways need comes twice. ``proxy`` and ``pruning_ratio`` name the experiment's
    stand-in in every row. Trials of every state are in, and what interrupted ones lost; ranking
    rows and repeated final trainings, which only measure, are not.
    """
    rows = rows[(rows["sampler"] != "") & (rows["purpose"] != "ranking")]
    rows = rows.assign(_experiment=rows.groupby(EXPERIMENT).ngroup())
    rows = rows.sort_values(["_experiment", "trial"], kind="stable")
    by_base, purpose = rows["role"] == "base", rows["purpose"]
    tuned = rows[~by_base & purpose.isin(["proxy", "study", "lost"])]
    final = rows[purpose == "final"]
    ended = pd.concat([_chosen(final, "verified"), _chosen(final, "proxy")])
    data, verify = rows[purpose == "data"], rows[purpose == "verify"]
    study = rows[by_base & purpose.isin(["study", "lost"])]
    steps = [  # in the order that a user waits for them
        *(("base", part) for part in (data, study, _first(_chosen(final, "base")))),
        *(("proxy", part) for part in (data, tuned, verify, _first(ended))),
    ]
    parts = [part.assign(way=way, _step=at) for at, (way, part) in enumerate(steps)]
    own = parts.pop(4)  # of one stand-in each; what's left is shared by all of its experiment
    shared = pd.concat(parts).drop(columns=STAND_IN)

    stand_ins = tuned[["_experiment", *STAND_IN]].drop_duplicates()
    without = sorted(set(rows["_experiment"]) - set(stand_ins["_experiment"]))
    if without:
        nothing = pd.DataFrame({"_experiment": without, "proxy": "", "pruning_ratio": np.nan})
        stand_ins = pd.concat([stand_ins, nothing])
    stand_ins["_which"] = range(len(stand_ins))
    whole = pd.concat([shared.merge(stand_ins, on="_experiment"), own.merge(stand_ins)])
    whole = whole.sort_values(["_experiment", "_which", "_step"], kind="stable", ignore_index=True)
    return whole[[*rows.columns.drop("_experiment"), "way"]]


def _chosen(final: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the final rows that train the choice of ``name``."""
    return final.loc[[name in choice.split("+") for choice in final["choice"]]]


def _first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the first of the rows of each experiment."""
    return rows.drop_duplicates("_experiment")


def with_proxy(rows: pd.DataFrame) -> pd.DataFrame:
    """Return ``rows`` less those of experiments that were finished on N_B alone, as rivals are."""
    tuned = (rows["role"] == "proxy") | rows["choice"].str.contains("proxy|verified")
    flags = rows[EXPERIMENT].assign(tuned=tuned, final=rows["purpose"] == "final")
    either = flags.groupby(EXPERIMENT)[["tuned", "final"]].transform("any")
    return rows[either["tuned"] | ~either["final"]]


def clock(rows: pd.DataFrame) -> str:
    """Return the measure of time that ``rows`` can be compared by, ``wall`` or ``cpu``.

    Wall-clock seconds are what a user waits for, but where others kept the machine busy they
    measure the others: then CPU seconds, as soon as the median load average lies more than
    :data:`BUSY` above the process's own threads.
    """
    ours = rows[rows["epochs"] > 0]
    return "cpu" if (ours["load"] - ours["threads"]).median() > BUSY else "wall"


CLOCKS = {"wall": "wall-clock", "cpu": "CPU", "macs": "MACs"}


def machines(rows: pd.DataFrame) -> list[str]:
    """Return what the rows were computed on, in words."""
    kinds = rows[["device", "threads"]].drop_duplicates().sort_values(["device", "threads"])
    plural = {1: "1 thread"}
    return [f"{d}, {plural.get(t, f'{t} threads')}" for d, t in kinds.itertuples(index=False)]


SCOPES = ("search", "hpo", "total")
_FIXED = {  # what each scope adds to the trials of N_B's study, and to those of N_P's
    "search": ((), ("proxy",)),
    "hpo": ((), ("proxy", "verify")),
    "total": (("data", "final"), ("data", "proxy", "verify", "final")),
}


def speedup(rows: pd.DataFrame, *, pool_seeds: bool = False) -> pd.DataFrame:
    """Return one line an experiment and stand-in: what HPO cost on N_B and on N_P.

    ``reduction_SCOPE_COST`` is ``1 - N_P / N_B`` in per cent, with ``_low`` and ``_high``:
    scope ``search`` is building the proxy and its trials against N_B's trials (the paper's
    comparison), ``hpo`` adds verification, ``total`` adds loading the pictures and the final
    training to both sides; COST is ``wall``, ``cpu`` or ``macs``. Every trial counts, stopped,
    diverged and failed ones too; seconds lost to interruptions don't, for they tell nothing of
    either. ``hpo_base``, ``hpo_proxy`` and the like are the sums, means over
    seeds where several are pooled; ``epochs_saved`` is the per cent of epochs not trained. An
    experiment on N_B alone has nothing to compare and no line.

    With one seed the interval comes from resampling the trials of each study, independently
    (``interval`` says "trials"); with ``pool_seeds`` and two or more, from resampling seeds, base
    and proxy together ("seeds"). ``_se`` is the standard error, ``n`` the number resampled. Where
    ``note`` says that an experiment isn't finished, what can't be compared yet is NaN.
    """
    parts = ways(with_proxy(rows))
    keys = [*(CELL if pool_seeds else EXPERIMENT), *STAND_IN]
    lines = []
    for key, group in parts.groupby(keys, dropna=False):
        line = dict(zip(keys, key, strict=True)) | {"seeds": group["seed"].nunique()}
        line["device"] = " and ".join(machines(group))
        for way, side in group.groupby("way"):
            trials = side[side["purpose"] == "study"]
            line[f"{way}_trials"] = len(trials)
            for state in ("stopped", "diverged", "failed"):
                line[f"{way}_{state}"] = int((trials["state"] == state).sum())
            full = trials["budget"].sum()
            line[f"{way}_epochs_saved"] = 100 * (1 - trials["epochs"].sum() / full) if full else 0
            line[f"{way}_load"] = trials["load"].mean()
        lines.append(line | _reductions([one for _, one in group.groupby("seed")]))
    return pd.DataFrame(lines)


def _reductions(experiments: list[pd.DataFrame]) -> dict[str, object]:
    """Return the sums, reductions and intervals of one line of :func:`speedup`."""
    trials, sums = [], []
    for rows in experiments:
        costs = cost(rows)
        where = {
            (way, purpose): costs[(rows["way"] == way) & (rows["purpose"] == purpose)].to_numpy()
            for way, purpose in product(("base", "proxy"), rows["purpose"].unique())
        }
        none = np.zeros((0, len(COSTS)))
        trials.append([where.get((way, "study"), none) for way in ("base", "proxy")])
        sums.append({k: part.sum(axis=0) for k, part in where.items() if len(part)})
    unfinished = [len(base) != len(proxy) or not len(base) for base, proxy in trials]
    untrained = [not {("base", "final"), ("proxy", "final")} <= set(total) for total in sums]
    note = ""
    if any(unfinished):
        base, proxy = trials[unfinished.index(True)]
        note = f"unfinished: {len(base)} trials on N_B, {len(proxy)} on N_P"
    elif any(untrained):
        note = "unfinished: no final training"
    by_seed = len(experiments) > 1
    n = len(experiments) if by_seed else min(map(len, trials[0]))
    line: dict[str, object] = {"interval": "seeds" if by_seed else "trials", "n": n, "note": note}
    for scope, fixed in _FIXED.items():
        fair = not any(unfinished) and not (scope == "total" and any(untrained))
        added = [
            np.array([sum((s.get((way, p), 0) for p in purposes), np.zeros(3)) for s in sums])
            for way, purposes in zip(("base", "proxy"), fixed, strict=True)
        ]
        whole = [
            added[side] + np.array([pair[side].sum(axis=0) for pair in trials]) for side in (0, 1)
        ]
        if by_seed:
            drawn = [resamples(len(experiments)) @ part for part in whole]
        else:
            drawn = [
                added[side] + (resamples(len(part), side) @ part if len(part) else part.sum(axis=0))
                for side, part in enumerate(trials[0])
            ]
        with np.errstate(divide="ignore", invalid="ignore"):
            value = 100 * (1 - whole[1].sum(axis=0) / whole[0].sum(axis=0))
            drawn = 100 * (1 - drawn[1] / drawn[0])
        low, high = interval(drawn) if fair else (value, value)
        error = standard_error(drawn, n) if fair else value
        for index, unit in enumerate(COSTS):
            line[f"{scope}_base_{unit}"] = whole[0].mean(axis=0)[index]
            line[f"{scope}_proxy_{unit}"] = whole[1].mean(axis=0)[index]
            name = f"reduction_{scope}_{unit}"
            line[name] = value[index] if fair else np.nan
            line[f"{name}_low"] = low[index] if fair else np.nan
            line[f"{name}_high"] = high[index] if fair else np.nan
            line[f"{name}_se"] = error[index] if fair else np.nan
    return line


def ledger(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the seconds of ``rows`` by experiment, role, proxy, purpose and kind.

    Kinds are proxy, train, eval, sampler and other (start-up, bookkeeping, compilation), so that
    the column ``seconds`` sums to the ``wall_seconds`` of all rows.
    """
    keys = [*EXPERIMENT, "role", *STAND_IN, "purpose"]
    kinds = [f"{kind}_seconds" for kind in ("proxy", "train", "eval", "sampler")]
    wide = rows[[*keys, *kinds]].assign(
        other_seconds=rows["wall_seconds"] - rows[kinds].sum(axis=1)
    )
    sums = wide.groupby(keys, as_index=False).sum()
    long = sums.melt(keys, [*kinds, "other_seconds"], "kind", "seconds")
    long["kind"] = long["kind"].str.removesuffix("_seconds")
    return long.sort_values([*keys, "kind"], ignore_index=True)


def incumbent(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the any-time curves: best validation accuracy so far against what was spent so far.

    One line a trial, from the first one trained to its full budget on; only such trials may become
    the incumbent, since a stopped one has no final accuracy. All trials advance the clock (columns
    wall, cpu, macs), summed one after another, building the proxy first. ``measured_on`` says
    whose accuracy ``best`` (a fraction) is: the proxy's own while HPO runs on N_P, which can't be
    compared with N_B's, and N_B's again during verification.
    """
    keys = [*EXPERIMENT, *STAND_IN, "way"]
    columns = [*keys, "measured_on", "trial", *COSTS, "best"]
    parts = []
    spent = ways(rows)
    spent = spent[spent["purpose"].isin(["proxy", "study", "verify"])]
    for _, group in spent.groupby(keys, dropna=False):
        group = group.assign(
            order=group["purpose"].map({"proxy": 0, "study": 1, "verify": 2})
        ).sort_values(["order", "trial"], kind="stable")
        group[list(COSTS)] = cost(group).cumsum()
        full = (group["state"] == "complete") & (group["epochs"] >= group["budget"])
        group = group.assign(measured_on=group["role"], best=group["val_accuracy"].where(full))
        group = group[group["purpose"] != "proxy"]
        group["best"] = group.groupby("purpose")["best"].transform(lambda x: x.cummax().ffill())
        parts.append(group.dropna(subset="best")[columns])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
