"""Recorded rows -> tables: speedup, rank correlation, regret, each with an interval.

Pure functions of a frame of rows (:mod:`proxyhpo.results`); none changes its input. Intervals are
those of :mod:`proxyhpo.bootstrap`, in columns ``NAME_low`` and ``NAME_high``.

Costs are in wall-clock seconds, CPU seconds and multiply-accumulates (MACs). A training step is
counted as three forward passes (forward, and backward to weights and to inputs), evaluation as
nothing: ``3 * macs * samples``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from proxyhpo.bootstrap import (
    MEASURES,
    Values,
    better_half,
    holm,
    interval,
    mean_interval,
    resamples,
    rho,
    tau,
)

COSTS = ("wall", "cpu", "macs")
PAIR = ["profile", "dataset", "network"]
CELL = [*PAIR, "sampler"]
EXPERIMENT = [*CELL, "seed"]
STAND_IN = ["proxy", "pruning_ratio"]
CEILING = "base reseeded"
CONTROLS = ("uniform", "random", "epochs", "subset", "resolution", "depth")


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
    stand-in in every row. Trials of every state are in; ranking rows and repeated final
    trainings, which only measure, are not.
    """
    parts = []
    rows = rows[rows["sampler"] != ""]
    for _, group in rows[rows["purpose"] != "ranking"].groupby(EXPERIMENT):
        group = group.sort_values("trial", kind="stable")
        by_base, purpose = group["role"] == "base", group["purpose"]
        data, study = group[purpose == "data"], group[by_base & (purpose == "study")]
        tuned = group[purpose.isin(["proxy", "study"]) & ~by_base]
        verify, final = group[purpose == "verify"], group[purpose == "final"]
        verified = _chosen(final, "verified")
        tuned_final = verified if len(verified) else _chosen(final, "proxy")
        stand_ins = tuned[STAND_IN].drop_duplicates().itertuples(index=False, name=None)
        for proxy, ratio in list(stand_ins) or [("", np.nan)]:
            own = tuned[(tuned["proxy"] == proxy) & (tuned["pruning_ratio"] == ratio)]
            members = {
                "base": [data, study, _chosen(final, "base").head(1)],
                "proxy": [data, own, verify, tuned_final.head(1)],
            }
            for way, frames in members.items():
                named = {"way": way, "proxy": proxy, "pruning_ratio": ratio}
                parts.append(pd.concat(frames).assign(**named))
    return pd.concat(parts, ignore_index=True) if parts else rows.head(0).assign(way="")


def _chosen(final: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the final rows that train the choice of ``name``."""
    return final.loc[[name in choice.split("+") for choice in final["choice"]]]


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
    diverged and failed ones too. ``hpo_base``, ``hpo_proxy`` and the like are the sums, means over
    seeds where several are pooled; ``epochs_saved`` is the per cent of epochs not trained.

    With one seed the interval comes from resampling the trials of each study, independently
    (``interval`` says "trials"); with ``pool_seeds`` and two or more, from resampling seeds, base
    and proxy together ("seeds"). Where ``note`` says that an experiment isn't finished, what
    can't be compared yet is NaN.
    """
    parts = ways(rows)
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
    line: dict[str, object] = {"interval": "seeds" if by_seed else "trials", "note": note}
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
            low, high = interval(100 * (1 - drawn[1] / drawn[0])) if fair else (value, value)
        for index, unit in enumerate(COSTS):
            line[f"{scope}_base_{unit}"] = whole[0].mean(axis=0)[index]
            line[f"{scope}_proxy_{unit}"] = whole[1].mean(axis=0)[index]
            name = f"reduction_{scope}_{unit}"
            line[name] = value[index] if fair else np.nan
            line[f"{name}_low"] = low[index] if fair else np.nan
            line[f"{name}_high"] = high[index] if fair else np.nan
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


def ranked(rows: pd.DataFrame) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    """Yield the ranking study of each stand-in: its identity, and one line a configuration.

    Columns ``base`` and ``proxy`` are validation accuracies, ``base_wall`` and so on the costs.
    N_B's accuracy is that of its smallest weight seed: a mean over seeds would hold the reseeded
    run whose correlation with it is the noise ceiling. That run, each configuration's second
    seed, comes as stand-in :data:`CEILING`; stand-ins too are taken at their smallest seed. A
    diverged run counts as accuracy 0, below chance, hence last in the ranking; a failed or
    stopped one leaves its configuration out.
    """
    study = rows[(rows["purpose"] == "ranking") & rows["state"].isin(["complete", "diverged"])]
    study = study.assign(
        accuracy=study["val_accuracy"].where(study["state"] != "diverged", 0.0), **cost(study)
    )
    wanted = ["accuracy", "state", *COSTS]
    for key, group in study.dropna(subset="accuracy").groupby(PAIR):
        group = group.sort_values(["config_id", "seed"], kind="stable")
        group = group.drop_duplicates(["role", *STAND_IN, "config_id", "seed"])
        base = group[group["role"] == "base"].groupby("config_id")
        others = {(CEILING, 0.0): base.nth(1)} | {
            name: part.groupby("config_id").nth(0)
            for name, part in group[group["role"] == "proxy"].groupby(STAND_IN)
        }
        first = base.nth(0).set_index("config_id")[wanted].add_prefix("base_")
        for (proxy, ratio), part in others.items():
            pairs = first.join(
                part.set_index("config_id")[wanted].add_prefix("proxy_"), how="inner"
            )
            pairs = pairs.rename(columns={"base_accuracy": "base", "proxy_accuracy": "proxy"})
            if len(pairs):
                identity = dict(zip(PAIR, key, strict=True))
                yield identity | {"proxy": proxy, "pruning_ratio": ratio}, pairs


def rank_correlation(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line a data set, network and stand-in: how far it ranks as N_B does.

    ``rho`` and ``tau`` (SciPy) over all ``n`` configurations, ``rho_half`` and ``tau_half`` over
    N_B's better half, ``overlap`` of the top :data:`TOP`, ``regret1`` and ``regret3`` in accuracy
    points after the stand-in's best 1 or 3 were evaluated on N_B; each with ``_low`` and ``_high``
    from resampling configurations. ``share_wall``, ``share_cpu`` and ``share_macs`` are what it
    cost, as measured fractions of N_B. The line :data:`CEILING` is N_B itself with another
    seed: no stand-in can be expected to do better. Accuracies are those of :func:`ranked`.
    """
    lines = []
    for identity, pairs in ranked(rows):
        x, y = pairs["base"].to_numpy(), pairs["proxy"].to_numpy()
        half = better_half(x)
        diverged = (pairs[["base_state", "proxy_state"]] == "diverged").any(axis=1).sum()
        line = identity | {"n": len(x), "n_half": int(half.sum()), "n_diverged": int(diverged)}
        for unit in COSTS:
            whole = pairs[f"base_{unit}"].sum()
            line[f"share_{unit}"] = pairs[f"proxy_{unit}"].sum() / whole if whole else np.nan
        for name, measure in MEASURES.items():
            line |= _with_interval(name, measure, x, y)
        for name in ("rho", "tau"):
            line |= _with_interval(f"{name}_half", MEASURES[name], x[half], y[half])
        lines.append(line)
    return pd.DataFrame(lines)


def _with_interval(name: str, measure: Callable, x: Values, y: Values) -> dict[str, float]:
    low, high = interval(measure(x, y, resamples(len(x))))
    if measure in (rho, tau):
        varied = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
        library = stats.spearmanr if measure is rho else stats.kendalltau
        value = library(x, y).statistic if varied else np.nan
    else:
        value = measure(x, y, np.ones((1, len(x))))[0]
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def is_control(proxy: str) -> bool:
    """Say whether a stand-in is one of the equal-cost controls, or a combination of them."""
    return all(part in CONTROLS for part in proxy.split("+"))


def proxy_differences(rows: pd.DataFrame, measure: str = "rho") -> pd.DataFrame:
    """Return how far stand-ins differ in ``measure``, paired over the same configurations.

    Every stand-in is compared with the noise ceiling, every one that isn't a control with the
    controls of the same target cost. ``difference`` is stand-in less rival; ``p`` is the two-sided
    bootstrap p-value, ``p_holm`` the same corrected for all comparisons of a data set and network.
    """
    function = MEASURES[measure]
    studies: dict[tuple, list] = {}
    for identity, pairs in ranked(rows):
        studies.setdefault(tuple(identity[k] for k in PAIR), []).append((identity, pairs))
    lines = []
    for key, members in studies.items():
        family = []
        for (one, mine), (other, theirs) in product(members, members):
            equal = round(one["pruning_ratio"] - other["pruning_ratio"], 6) == 0
            rival = other["proxy"] in CONTROLS and equal and not is_control(one["proxy"])
            if one["proxy"] == CEILING or not (rival or other["proxy"] == CEILING):
                continue
            both = mine[["base", "proxy"]].join(theirs["proxy"].rename("rival"), how="inner")
            x, y, z = (both[name].to_numpy() for name in ("base", "proxy", "rival"))
            if not len(x):
                continue
            point, drawn = (
                function(x, y, counts) - function(x, z, counts)
                for counts in (np.ones((1, len(x))), resamples(len(x)))
            )
            low, high = interval(drawn)
            known = drawn[np.isfinite(drawn)]
            tail = min((known <= 0).sum(), (known >= 0).sum()) + 1
            line = dict(zip(PAIR, key, strict=True)) | {name: one[name] for name in STAND_IN}
            line |= {"against": other["proxy"], "n": len(x), "difference": point[0]}
            line |= {
                "difference_low": low,
                "difference_high": high,
                "p": min(1.0, 2 * tail / (len(known) + 1)),
            }
            family.append(line)
        for line, p in zip(family, holm(line["p"] for line in family), strict=True):
            lines.append(line | {"p_holm": p})
    return pd.DataFrame(lines)


def final_quality(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the test accuracy of N_B trained with each choice: one line a cell and choice.

    ``test_accuracy`` is the mean over ``n`` trainings (a fraction), ``regret`` the mean over the
    same trainings of N_B's own choice less this one, in accuracy points; intervals from
    resampling trainings, NaN where there is one. A diverged training counts as 0.
    """
    final = rows[(rows["purpose"] == "final") & rows["state"].isin(["complete", "diverged"])]
    accuracy = final["test_accuracy"].where(final["state"] != "diverged", 0.0)
    final = final.assign(accuracy=accuracy, choice=final["choice"].str.split("+"))
    final = final.explode("choice").dropna(subset="accuracy")
    lines = []
    for key, group in final.groupby(CELL):
        # the k-th training of each choice within its experiment shares seed and order with the
        # k-th of the others, so differences are paired
        group = group.assign(repeat=group.groupby(["seed", "choice"]).cumcount())
        wide = group.pivot_table("accuracy", ["seed", "repeat"], "choice")
        for choice in (name for name in ("base", "proxy", "verified") if name in wide):
            mean, low, high = mean_interval(wide[choice].dropna())
            line = dict(zip(CELL, key, strict=True)) | {"choice": choice}
            line |= {"n": int(wide[choice].count()), "test_accuracy": mean}
            line |= {"test_accuracy_low": low, "test_accuracy_high": high}
            lost = 100 * (wide["base"] - wide[choice]).dropna() if "base" in wide else []
            mean, low, high = mean_interval(lost)
            lines.append(line | {"regret": mean, "regret_low": low, "regret_high": high})
    return pd.DataFrame(lines)
