"""The results as tables, in words: what the README and the notebooks show of recorded rows.

Everything said here is generated from recorded rows; nothing is typed in by hand but the one
number of the paper's abstract. What the rows say for and against the claim is
:mod:`proxyhpo.report.verdict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from proxyhpo.analysis.cost import CELL, CLOCKS, PAIR, STAND_IN, clock, speedup
from proxyhpo.analysis.power import detectable
from proxyhpo.analysis.quality import RIVALS, at_equal_time, final_quality, rivals
from proxyhpo.analysis.ranking import (
    CEILING,
    frontier,
    learning_rate_shift,
    proxy_differences,
    rank_correlation,
)
from proxyhpo.config import Experiment
from proxyhpo.progress import duration
from proxyhpo.report.verdict import judge, verdict
from proxyhpo.report.wording import (
    PAPER_REDUCTION,
    SMOKE,
    cell_label,
    label,
    matching,
    number,
    stand_in_label,
    value,
)

__all__ = [
    "PAPER_REDUCTION",
    "SMOKE",
    "cell_label",
    "claims_markdown",
    "equal_time_markdown",
    "judge",
    "label",
    "power_markdown",
    "rivals_markdown",
    "stand_in_label",
    "summary",
    "summary_markdown",
    "trust_markdown",
    "trust_words",
    "verdict",
]


def claims_markdown(claims: Mapping[str, tuple[int, int, int]]) -> str:
    """Return as Markdown in how many cases each claim of :func:`judge` fails, is open, holds."""
    head = ["what is claimed", "does not hold", "can't be told", "holds"]
    lines = [
        [claim, *(f"{count} of {sum(counts)}" if count else "-" for count in counts)]
        for claim, counts in claims.items()
    ]
    return _markdown(head, lines)


def summary(rows: pd.DataFrame, grid: Iterable[Experiment] | None = None) -> pd.DataFrame:
    """Return the results, one line a data set, network, sampler and stand-in.

    ``status`` is "run", what is unfinished, or "not run" for the experiments of ``grid`` that
    have no row. Seconds, reductions (per cent) and regret (accuracy points) are those of
    :func:`~proxyhpo.statistics.speedup` with seeds pooled, scope ``hpo`` unless said otherwise, in
    the measure of time that ``clock`` names (:func:`~proxyhpo.analysis.cost.clock`);
    rank correlations those of :func:`~proxyhpo.statistics.rank_correlation`, ``ceiling`` being
    rho of N_B with itself reseeded; ``test_CHOICE`` mean test accuracies (fractions), and
    ``lost`` the points lost with the choice that HPO on N_P ends with.
    """
    speeds = speedup(rows, pool_seeds=True)
    ranks, quality = rank_correlation(rows), final_quality(rows)
    lines, unit = [], clock(rows)
    for one in speeds.to_dict("records"):
        line = {name: one[name] for name in (*CELL, *STAND_IN, "seeds")}
        line |= {"status": one["note"] or "run", "trials": one["base_trials"]}
        line |= {"clock": unit, "base_seconds": one[f"hpo_base_{unit}"]}
        line["proxy_seconds"] = one[f"hpo_proxy_{unit}"]
        for bound in ("", "_low", "_high"):
            line[f"reduction{bound}"] = one[f"reduction_hpo_{unit}{bound}"]
        line |= {name: one[f"reduction_hpo_{name}"] for name in ("cpu", "macs")}
        line |= {scope: one[f"reduction_{scope}_{unit}"] for scope in ("search", "total")}
        line["search_seconds"] = one[f"search_proxy_{unit}"]
        line["search_macs"] = one["reduction_search_macs"]
        for mine in matching(ranks, one, [*PAIR, *STAND_IN]):
            line |= {name: mine[name] for name in ("n", "rho", "rho_low", "rho_high", "rho_half")}
            line["regret1"] = mine["regret1"]
        for ceiling in matching(ranks, one | {"proxy": CEILING}, [*PAIR, "proxy"]):
            line["ceiling"] = ceiling["rho"]
        for final in matching(quality, one, CELL):
            line[f"test_{final['choice']}"] = final["test_accuracy"]
            if final["choice"] != "base":  # "verified" comes last: it is what a user ends with
                line |= {f"lost{b}": final[f"regret{b}"] for b in ("", "_low", "_high")}
        lines.append(line)
    known = {tuple(line[name] for name in CELL) for line in lines}
    for one in grid or ():
        key = (one.profile.name, one.dataset, one.network, one.sampler)
        if key not in known:
            known.add(key)
            lines.append(dict(zip(CELL, key, strict=True)) | {"status": "not run"})
    columns = [
        *CELL,
        *STAND_IN,
        "status",
        "clock",
        "seeds",
        "trials",
        "base_seconds",
        "proxy_seconds",
    ]
    columns += ["reduction", "reduction_low", "reduction_high", "cpu", "macs", "total", "n"]
    columns += ["search", "search_seconds", "search_macs"]
    columns += ["rho", "rho_low", "rho_high", "rho_half", "ceiling", "regret1", "test_base"]
    columns += ["test_proxy", "test_verified", "lost", "lost_low", "lost_high"]
    return pd.DataFrame(lines, columns=columns).sort_values(CELL, ignore_index=True)


def summary_markdown(table: pd.DataFrame) -> str:
    """Return the table of :func:`summary` as Markdown; cells without rows say "not run"."""
    clocks = " or ".join(CLOCKS[name] for name in sorted(set(table["clock"].dropna())))
    head = [
        "data", "network", "HPO method", "stand-in", "trials x seeds", "HPO on N_B", "HPO on N_P",
        f"less {clocks} time", "less CPU time", "fewer MACs",
        f"less {clocks} time, with final training",
        "rho", "rho, better half", "rho of N_B reseeded",
        "test accuracy: N_B's own choice", "proxy's", "verified", "points lost",
    ]  # fmt: skip
    lines = []
    for one in table.to_dict("records"):
        names = [label(one["dataset"]), one["network"], one["sampler"]]
        if one["status"] == "not run":
            lines.append([*names, *["not run"] * (len(head) - 3)])
            continue
        lines.append(
            [
                *names,
                stand_in_label(one["proxy"], one["pruning_ratio"]),
                f"{one['trials'] / one['seeds']:.0f} x {one['seeds']:.0f}",
                duration(one["base_seconds"]),
                duration(one["proxy_seconds"]),
                one["status"] if one["status"] != "run" else value(one, "reduction", ".0f", " %"),
                *(value(one, name, ".0f", " %") for name in ("cpu", "macs", "total")),
                *(value(one, name, ".2f") for name in ("rho", "rho_half", "ceiling")),
                *(value(one, f"test_{name}", ".1%") for name in ("base", "proxy", "verified")),
                value(one, "lost", ".1f"),
            ]
        )
    return _markdown(head, lines)


def trust_words(rows: pd.DataFrame) -> str:
    """Return in words which stand-in gives the most trust for a second, the bad news first.

    One sentence a data set and network for each of: what the noise ceiling allows, which stand-ins
    no cheaper one equals in rho over N_B's better half, and which differ from uniform width after
    Holm's correction.
    """
    ranks = rank_correlation(rows)
    if ranks.empty:
        return "No ranking study is recorded."
    unit = clock(rows)
    lines = []
    for key, group in ranks.groupby(PAIR):
        name = cell_label(dict(zip(PAIR, key, strict=True)))
        mine = rows[np.logical_and.reduce([rows[k] == v for k, v in zip(PAIR, key, strict=True)])]
        lines += [f"- {name}: {text}" for text in _trust_of(mine, group, unit)]
    return "\n".join(lines)


def _trust_of(rows: pd.DataFrame, ranks: pd.DataFrame, unit: str) -> list[str]:
    """Return the sentences of :func:`trust_words` for one data set and network."""
    texts = []
    compared = proxy_differences(rows)
    for rival in ("uniform", "random"):
        pairs = compared[compared["against"] == rival] if len(compared) else compared
        if len(pairs):
            sure = pairs[pairs["p_holm"] < 0.05]
            ahead = [_stand_in(one) for one in sure[sure["difference"] > 0].to_dict("records")]
            behind = [_stand_in(one) for one in sure[sure["difference"] < 0].to_dict("records")]
            texts.append(
                f"of {len(pairs)} pruned proxies, {_these(ahead)} ahead of {rival} at equal target "
                f"cost and {_these(behind)} behind it (rho, Holm's correction)."
            )
    steps = [
        f"{_stand_in(one)} ({100 * one[f'share_{unit}']:.0f} % of the time, "
        f"rho {value(one, 'rho_half', '.2f')})"
        for one in frontier(ranks, "rho_half", unit).to_dict("records")
    ]
    if steps:
        texts.append(
            f"most trust for a second of {CLOCKS[unit]} time, by rho over N_B's better half, from "
            f"the cheapest up: {'; '.join(steps)}. No other is ahead of every cheaper one."
        )
    for one in ranks[ranks["proxy"] == CEILING].to_dict("records"):
        texts.append(
            f"N_B reseeded, the noise ceiling, has rho {value(one, 'rho', '.2f')}, over the better "
            f"half {value(one, 'rho_half', '.2f')}, and a regret@1 of "
            f"{value(one, 'regret1', '.1f')} points (n = {one['n']})."
        )
    return texts


def _stand_in(line: dict) -> str:
    return stand_in_label(line["proxy"], line["pruning_ratio"])


def _these(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def trust_markdown(rows: pd.DataFrame) -> str:
    """Return as Markdown what each stand-in costs and how far it ranks as N_B does, cheapest first.

    Stand-ins that no cheaper one equals in rho over the better half are in bold. The first line of
    each data set and network is N_B reseeded, the noise ceiling.
    """
    table = rank_correlation(rows)
    if table.empty:
        return "No ranking study is recorded."
    unit = clock(rows)
    shifts = learning_rate_shift(rows)
    head = [
        "data, network", "stand-in", "n", f"{CLOCKS[unit]} time, % of N_B", "MACs, % of N_B",
        "rho", "rho, better half", "tau", "regret@1, points", "regret@3, points",
        "shift of the learning rate, octaves",
    ]  # fmt: skip
    lines = []
    for _, group in table.groupby(PAIR):
        best = frontier(group, "rho_half", unit).index
        group = group.assign(ceiling=group["proxy"] != CEILING)
        group = group.sort_values(["ceiling", f"share_{unit}"], kind="stable")
        for index, one in zip(group.index, group.to_dict("records"), strict=True):
            name = stand_in_label(one["proxy"], one["pruning_ratio"])
            shift = matching(shifts, one, [*PAIR, *STAND_IN])
            lines.append(
                [
                    f"{label(one['dataset'])}, {one['network']}",
                    f"**{name}**" if index in best else name,
                    f"{one['n']:.0f}",
                    *(f"{100 * one[f'share_{cost}']:.0f}" for cost in (unit, "macs")),
                    *(value(one, name, ".2f") for name in ("rho", "rho_half", "tau")),
                    *(value(one, name, ".1f") for name in ("regret1", "regret3")),
                    value(shift[0], "shift", ".1f") if shift else "-",
                ]
            )
    return _markdown(head, lines)


def rivals_markdown(rows: pd.DataFrame) -> str:
    """Return as Markdown what each way of HPO cost and how good N_B became, cheapest first."""
    table = rivals(rows)
    if table.empty:
        return "No final training is recorded."
    unit = clock(rows)
    head = [
        "data, network", "HPO", "seeds", f"{CLOCKS[unit]} time of HPO", "MACs of HPO, 10^12",
        "test accuracy of N_B, %",
    ]  # fmt: skip
    lines = []
    for _, group in table.groupby(PAIR):
        for one in group.sort_values(unit, kind="stable").to_dict("records"):
            points = {key: 100 * x for key, x in one.items() if key.startswith("test_")}
            trillions = {key: x / 1e12 for key, x in one.items() if key.startswith("macs")}
            stand_in = stand_in_label(one["proxy"], one["pruning_ratio"])
            where = "N_B" if one["way"] == "base" else f"{stand_in}, verified"
            lines.append(
                [
                    f"{label(one['dataset'])}, {one['network']}",
                    f"{RIVALS.get(one['sampler'], one['sampler'])} on {where}",
                    f"{one['n']}",
                    duration(one[unit]),
                    value(trillions, "macs", ".3g"),
                    value(points, "test_accuracy", ".1f"),
                ]
            )
    return _markdown(head, lines)


def equal_time_markdown(rows: pd.DataFrame) -> str:
    """Return :func:`~proxyhpo.analysis.quality.at_equal_time` as Markdown."""
    table = at_equal_time(rows)
    if table.empty:
        return "No experiment with verification is recorded."
    head = [
        "experiment", "stand-in", "seeds", f"HPO on N_P, verified, {CLOCKS[clock(rows)]}",
        "N_B's own best by then, %", "after all trials, %", "verified, %",
        "verified less N_B's own, points: at equal time", "at equal trials",
    ]  # fmt: skip
    lines = [
        [
            cell_label(one),
            stand_in_label(one["proxy"], one["pruning_ratio"]),
            f"{one['n']}",
            duration(one["spent"]),
            *(number(100 * one[name], ".1f") for name in ("base_then", "base_end", "verified")),
            *(value(one, name, ".1f") for name in ("equal_time", "equal_trials")),
        ]
        for one in table.to_dict("records")
    ]
    return _markdown(head, lines)


def power_markdown(rows: pd.DataFrame) -> str:
    """Return :func:`~proxyhpo.analysis.power.detectable` as Markdown."""
    lines = []
    for one in detectable(rows).to_dict("records"):
        unit = f" {one['unit']}" if one["unit"] else ""
        shown = [number(one[name], ".2f") for name in ("seen", "se", "detectable")]
        shown = ["-" if not np.isfinite(one[n]) else t + unit
                 for n, t in zip(("seen", "se", "detectable"), shown, strict=True)]  # fmt: skip
        stand_in = stand_in_label(one["proxy"], one["pruning_ratio"]) if one["proxy"] else ""
        lines.append(
            [cell_label(one), stand_in, one["quantity"], f"{one['n']} {one['items']}", *shown]
        )
    head = ["experiment", "stand-in", "quantity", "n", "seen", "standard error", "detectable"]
    return _markdown(head, lines)


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    whole = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in whole)
