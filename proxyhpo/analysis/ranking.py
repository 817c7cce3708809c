"""Recorded rows -> how far each stand-in ranks configurations as N_B does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from proxyhpo.analysis.bootstrap import (
    FINE_RESAMPLES,
    MEASURES,
    Values,
    better_half,
    holm,
    interval,
    mean_of_best,
    resamples,
    rho,
    standard_error,
    tau,
)
from proxyhpo.analysis.cost import COSTS, PAIR, STAND_IN, cost

CEILING = "base reseeded"
CONTROLS = ("uniform", "random", "epochs", "subset", "resolution", "depth")
BEST = 3  # configurations whose learning rates make an optimum: as many as are verified


def ranked(rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield the ranking study of each stand-in: its identity, and one line a configuration.

    Columns ``base`` and ``proxy`` are validation accuracies, ``base_wall`` and so on the costs,
    ``base_lr`` the learning rate.
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
    study["lr"] = study.get("param_lr", np.nan)
    wanted = ["accuracy", "state", "lr", *COSTS]
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
    points after the stand-in's best 1 or 3 were evaluated on N_B; each with ``_low``, ``_high`` and
    ``_se``, its standard error, from resampling configurations. ``share_wall``, ``share_cpu`` and
    ``share_macs`` are what it cost, as measured fractions of N_B. The line :data:`CEILING` is N_B
    itself with another seed: no stand-in can be expected to do better. Accuracies are those of
    :func:`ranked`.
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
    drawn = measure(x, y, resamples(len(x)))
    low, high = interval(drawn)
    if measure in (rho, tau):
        varied = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
        library = stats.spearmanr if measure is rho else stats.kendalltau
        value = library(x, y).statistic if varied else np.nan
    else:
        value = measure(x, y, np.ones((1, len(x))))[0]
    bounds = {f"{name}_low": float(low), f"{name}_high": float(high)}
    return {name: float(value), **bounds, f"{name}_se": float(standard_error(drawn, len(x)))}


def is_control(proxy: str) -> bool:
    """Say whether a stand-in is one of the equal-cost controls, or a combination of them."""
    return all(part in CONTROLS for part in proxy.split("+"))


def proxy_differences(rows: pd.DataFrame, measure: str = "rho") -> pd.DataFrame:
    """Return how far stand-ins differ in ``measure``, paired over the same configurations.

    Every stand-in is compared with the noise ceiling, every one that isn't a control with the
    controls of the same target cost. ``measure`` is a key of
    :data:`~proxyhpo.analysis.bootstrap.MEASURES`,
    with ``_half`` at its end over N_B's better half only. ``difference`` is stand-in less rival,
    ``difference_se`` its standard error; ``p`` is the two-sided bootstrap p-value (twice the share
    of resamples on the smaller side of zero), ``p_holm`` the same corrected for all comparisons of
    a data set and network.
    """
    function = MEASURES[measure.removesuffix("_half")]
    measured: dict[tuple[bytes, bytes], list[Values]] = {}

    def of(base: Values, stand_in: Values) -> list[Values]:
        """Return the measure and that of every resample; a stand-in is in several pairs."""
        key = base.tobytes(), stand_in.tobytes()
        if key not in measured:
            counts = np.ones((1, len(base))), resamples(len(base), size=FINE_RESAMPLES)
            measured[key] = [function(base, stand_in, one) for one in counts]
        return measured[key]

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
            if measure.endswith("_half") and len(both):
                both = both[better_half(both["base"].to_numpy())]
            x, y, z = (both[name].to_numpy() for name in ("base", "proxy", "rival"))
            if not len(x):
                continue
            point, drawn = (ours - rivals for ours, rivals in zip(of(x, y), of(x, z), strict=True))
            low, high = interval(drawn)
            known = drawn[np.isfinite(drawn)]
            tail = min((known <= 0).sum(), (known >= 0).sum()) + 1
            line = dict(zip(PAIR, key, strict=True)) | {name: one[name] for name in STAND_IN}
            line |= {"against": other["proxy"], "n": len(x), "difference": point[0]}
            line |= {
                "difference_low": low,
                "difference_high": high,
                "difference_se": float(standard_error(drawn, len(x))),
                "p": min(1.0, 2 * tail / (len(known) + 1)),
            }
            family.append(line)
        for line, p in zip(family, holm(line["p"] for line in family), strict=True):
            lines.append(line | {"p_holm": p})
    return pd.DataFrame(lines)


def learning_rate_shift(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how far each stand-in's best learning rates lie from N_B's: one line each.

    ``shift`` is in octaves: the mean of log2(learning rate) over the stand-in's :data:`BEST` best
    configurations, less the same of N_B's; positive where the stand-in wants larger steps. The
    single best, which jumps from one configuration to the next, is ``shift_top``. The other
    hyperparameters vary along. ``_low``, ``_high`` and ``_se`` come from resampling
    configurations; ``share_macs`` and ``n`` are as in :func:`rank_correlation`. No line where no
    learning rate was searched for; diverged runs come last.
    """
    lines = []
    for identity, pairs in ranked(rows):
        octaves = np.log2(pairs["base_lr"].to_numpy(dtype=float))
        if not np.isfinite(octaves).all():
            continue
        whole = pairs["base_macs"].sum()
        share = pairs["proxy_macs"].sum() / whole if whole else np.nan
        line = identity | {"n": len(pairs), "share_macs": share}
        x, y = pairs["base"].to_numpy(), pairs["proxy"].to_numpy()
        for name, k in (("shift", BEST), ("shift_top", 1)):
            point, drawn = (
                mean_of_best(octaves, y, counts, k) - mean_of_best(octaves, x, counts, k)
                for counts in (np.ones((1, len(x))), resamples(len(x)))
            )
            low, high = interval(drawn)
            line |= {name: float(point[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
            line[f"{name}_se"] = float(standard_error(drawn, len(x)))
        lines.append(line)
    return pd.DataFrame(lines)


def frontier(table: pd.DataFrame, measure: str, unit: str) -> pd.DataFrame:
    """Return the stand-ins of :func:`rank_correlation` that no cheaper one equals, cheapest first.

    That is what each second buys: from one line to the next, cost (``share_`` ``unit``) and
    ``measure`` both rise. For one data set and network; the noise ceiling is no stand-in.
    """
    lines = table[(table["proxy"] != CEILING) & table[measure].notna()]
    lines = lines.sort_values([f"share_{unit}", measure], ascending=[True, False], kind="stable")
    before = lines[measure].cummax().shift(fill_value=-np.inf)
    return lines[lines[measure] > before]
