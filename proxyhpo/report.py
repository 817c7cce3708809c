"""Words that follow the tables: the results table of the README, and the verdict.

Everything said here is generated from recorded rows; nothing is typed in by hand but the one
number of the paper's abstract, :data:`PAPER_REDUCTION`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from proxyhpo.config import Experiment
from proxyhpo.progress import duration
from proxyhpo.statistics import (
    CEILING,
    CELL,
    PAIR,
    STAND_IN,
    final_quality,
    is_control,
    proxy_differences,
    rank_correlation,
    speedup,
)

PAPER_REDUCTION = 37.0  # per cent less time for the HPO framework, "up to" (arXiv:2205.08695)
SMOKE = "smoke run: not evidence"
FEW_CONFIGURATIONS, FEW_SEEDS = 24, 3
LOAD_APART = 1.0  # of the 1-minute load averages while N_B's and N_P's trials ran
SHOWN = 4  # experiments that a sentence names before it says how many more


def summary(rows: pd.DataFrame, grid: Iterable[Experiment] | None = None) -> pd.DataFrame:
    """Return the results, one line a data set, network, sampler and stand-in.

    ``status`` is "run", what is unfinished, or "not run" for the experiments of ``grid`` that
    have no row. Seconds, reductions (per cent) and regret (accuracy points) are those of
    :func:`~proxyhpo.statistics.speedup` with seeds pooled, scope ``hpo`` unless said otherwise;
    rank correlations those of :func:`~proxyhpo.statistics.rank_correlation`, ``ceiling`` being
    rho of N_B with itself reseeded; ``test_CHOICE`` mean test accuracies (fractions), and
    ``lost`` the points lost with the choice that HPO on N_P ends with.
    """
    speeds = speedup(rows, pool_seeds=True)
    ranks, quality = rank_correlation(rows), final_quality(rows)
    lines = []
    for one in speeds.to_dict("records"):
        line = {name: one[name] for name in (*CELL, *STAND_IN, "seeds")}
        line |= {"status": one["note"] or "run", "trials": one["base_trials"]}
        line |= {"base_seconds": one["hpo_base_wall"], "proxy_seconds": one["hpo_proxy_wall"]}
        for bound in ("", "_low", "_high"):
            line[f"reduction{bound}"] = one[f"reduction_hpo_wall{bound}"]
        line |= {unit: one[f"reduction_hpo_{unit}"] for unit in ("cpu", "macs")}
        line |= {scope: one[f"reduction_{scope}_wall"] for scope in ("search", "total")}
        line["search_seconds"] = one["search_proxy_wall"]
        line["search_macs"] = one["reduction_search_macs"]
        for mine in _matching(ranks, one, [*PAIR, *STAND_IN]):
            line |= {name: mine[name] for name in ("n", "rho", "rho_low", "rho_high", "rho_half")}
            line["regret1"] = mine["regret1"]
        for ceiling in _matching(ranks, one | {"proxy": CEILING}, [*PAIR, "proxy"]):
            line["ceiling"] = ceiling["rho"]
        for final in _matching(quality, one, CELL):
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
    columns = [*CELL, *STAND_IN, "status", "seeds", "trials", "base_seconds", "proxy_seconds"]
    columns += ["reduction", "reduction_low", "reduction_high", "cpu", "macs", "total", "n"]
    columns += ["search", "search_seconds", "search_macs"]
    columns += ["rho", "rho_low", "rho_high", "rho_half", "ceiling", "regret1", "test_base"]
    columns += ["test_proxy", "test_verified", "lost", "lost_low", "lost_high"]
    return pd.DataFrame(lines, columns=columns).sort_values(CELL, ignore_index=True)


def summary_markdown(table: pd.DataFrame) -> str:
    """Return the table of :func:`summary` as Markdown; cells without rows say "not run"."""
    head = [
        "data", "network", "HPO method", "stand-in", "trials x seeds", "HPO on N_B", "HPO on N_P",
        "less time", "less CPU time", "fewer MACs", "less time, with final training",
        "rho", "rho, better half", "rho of N_B reseeded",
        "test accuracy: N_B's own choice", "proxy's", "verified", "points lost",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
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
                one["status"] if one["status"] != "run" else _value(one, "reduction", ".0f", " %"),
                *(_value(one, name, ".0f", " %") for name in ("cpu", "macs", "total")),
                *(_value(one, name, ".2f") for name in ("rho", "rho_half", "ceiling")),
                *(_value(one, f"test_{name}", ".1%") for name in ("base", "proxy", "verified")),
                _value(one, "lost", ".1f"),
            ]
        )
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def verdict(rows: pd.DataFrame) -> str:
    """Return in plain words, as a Markdown list, what the rows show, the bad news first.

    First where the paper's claim doesn't hold, then what these rows are too few to tell, then
    where it holds. A difference counts where its interval leaves out zero and, between proxies, its
    p-value stays under 5 % after Holm's correction.
    """
    words = _Words()
    for part in (_time_words, _rank_words, _quality_words):
        part(rows, words)
    lines = [f"**{SMOKE}**", ""] if (rows["profile"] == "smoke").any() else []
    for title, found in {
        "Where the claim does not hold": words.fails,
        "What these rows can't tell": words.open,
        "Where it holds": words.holds,
    }.items():
        lines += [f"**{title}**", ""] + [f"- {x}" for x in found or ["nothing recorded"]] + [""]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Words:
    """Sentences for the three parts of a verdict."""

    fails: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)


def _count(into: list[str], claim: str, some: list[str], whole: int) -> None:
    """Add "``claim`` in 2 of 9: these." unless it is true of none."""
    if some:
        rest = f"; and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
        into.append(f"{claim} in {len(some)} of {whole}: {'; '.join(some[:SHOWN])}{rest}.")


def _time_words(rows: pd.DataFrame, words: _Words) -> None:
    speeds = speedup(rows, pool_seeds=True).to_dict("records")
    done = [one for one in speeds if not one["note"]]
    unfinished = [f"{cell_label(one)} ({one['note']})" for one in speeds if one["note"]]
    _count(words.open, "The experiment isn't finished", unfinished, len(speeds))
    if not done:
        words.open.append("No finished experiment is recorded: nothing is known about the time.")
        return

    def some(condition: Callable[[dict], bool], scope: str = "hpo") -> list[str]:
        name = f"reduction_{scope}_wall"
        return [
            f"{cell_label(one)} {_value(one, name, '.0f', ' %')}" for one in done if condition(one)
        ]

    goal = f"{PAPER_REDUCTION:.0f} % of the time (paper: up to 37 %)"
    spans = []
    for scope, counted in {
        "search": "without verification on N_B",
        "hpo": "with it",
        "total": "with the final training too",
    }.items():
        values = [one[f"reduction_{scope}_wall"] for one in done]
        spans.append(f"{_number(min(values), '.0f')} to {_number(max(values), '.0f')} % {counted}")
    _count(
        words.fails,
        f"HPO on N_P, verified on N_B, saves under {goal}",
        some(lambda one: one["reduction_hpo_wall"] < PAPER_REDUCTION),
        len(done),
    )
    _count(
        words.fails,
        "It takes longer than HPO on N_B",
        some(lambda one: one["reduction_hpo_wall"] <= 0),
        len(done),
    )
    _count(
        words.holds,
        f"HPO on N_P, verified on N_B, saves at least {goal}",
        some(lambda one: one["reduction_hpo_wall"] >= PAPER_REDUCTION),
        len(done),
    )
    words.holds.append(f"Time saved over the {len(done)} finished: {', '.join(spans)}.")
    _count(
        words.open,
        f"Under {FEW_SEEDS} seeds, so the interval misses how much another seed's study differs",
        [cell_label(one) for one in done if one["seeds"] < FEW_SEEDS],
        len(done),
    )
    _count(
        words.open,
        "The machine was busier on one side, so CPU seconds or MACs compare better (load averages)",
        [
            f"{cell_label(one)} {one['base_load']:.1f} and {one['proxy_load']:.1f}"
            for one in done
            if abs(one["base_load"] - one["proxy_load"]) > LOAD_APART
        ],
        len(done),
    )
    _count(
        words.open,
        "Seconds of different machines are compared",
        [cell_label(one) for one in done if " and " in one["device"]],
        len(done),
    )


def _rank_words(rows: pd.DataFrame, words: _Words) -> None:
    ranks = rank_correlation(rows)
    if ranks.empty:
        words.open.append("No ranking study is recorded: nothing is known about the ranking.")
        return
    used = set(rows.loc[(rows["purpose"] == "study") & (rows["role"] == "proxy"), "proxy"])
    used = used or {name for name in ranks["proxy"] if name != CEILING and not is_control(name)}
    lines = ranks[ranks["proxy"].isin(used)].to_dict("records")
    better = [one["rho_half_low"] > 0 for one in lines]
    for into, wanted, claim in (
        (words.fails, False, "Among N_B's better half the proxy isn't shown to rank at all"),
        (words.holds, True, "Among N_B's better half the proxy ranks better than chance"),
    ):
        some = [
            f"{_place(one)} rho {_value(one, 'rho_half', '.2f')} (all: {_value(one, 'rho', '.2f')})"
            for one, is_better in zip(lines, better, strict=True)
            if is_better == wanted
        ]
        _count(into, claim, some, len(lines))
    few = [f"{_place(one)} n = {one['n']}" for one in lines if one["n"] < FEW_CONFIGURATIONS]
    claim = f"Under {FEW_CONFIGURATIONS} configurations are ranked, so intervals are wide"
    _count(words.open, claim, few, len(lines))
    for measure, sign, form, unit in (("rho", 1, ".2f", ""), ("regret1", -1, ".1f", " points")):
        compared = proxy_differences(rows, measure)
        if compared.empty:
            continue
        compared = compared[compared["proxy"].isin(used)]
        for rival, group in compared.groupby("against"):
            if rival == CEILING or measure == "rho":
                _against(words, rival, group, measure, sign, form, unit)


def _against(
    words: _Words, rival: str, group: pd.DataFrame, measure: str, sign: int, form: str, unit: str
) -> None:
    """Say where the proxies are ahead of, behind, or level with ``rival``."""
    ahead, behind, level = [], [], []
    for one in group.to_dict("records"):
        sure, better = one["p_holm"] < 0.05, sign * one["difference"] > 0
        found = level if not sure else ahead if better else behind
        found.append(f"{_place(one)} {_value(one, 'difference', form, unit)}")
    by = f"(difference of {measure})"
    if rival == CEILING:
        _count(words.fails, f"Worse than N_B reseeded, above noise {by},", behind, len(group))
        _count(words.open, f"Not told apart from N_B reseeded {by}", level, len(group))
        _count(words.holds, f"Ahead of N_B reseeded {by}", ahead, len(group))
        return
    claim = f"The proxy isn't shown to be ahead of {rival} at equal target cost {by}"
    _count(words.fails, claim, behind + level, len(group))
    claim = f"The proxy is ahead of {rival} at equal target cost {by}"
    _count(words.holds, claim, ahead, len(group))


def _quality_words(rows: pd.DataFrame, words: _Words) -> None:
    quality = final_quality(rows)
    if quality.empty:
        words.open.append("No final training is recorded: nothing is known about test accuracy.")
        return
    for choice, name in (("proxy", "the proxy's choice"), ("verified", "the verified choice")):
        lines = quality[quality["choice"] == choice].to_dict("records")
        lost = [one["regret_low"] > 0 for one in lines]
        close = [one["n"] >= FEW_SEEDS and one["regret_high"] < 1 for one in lines]
        told = [
            f"{cell_label(one)} {_value(one, 'regret', '.1f')} points (n = {one['n']})"
            for one in lines
        ]
        parts = {True: [], False: [], None: []}
        for text, is_lost, is_close in zip(told, lost, close, strict=True):
            parts[False if is_lost else True if is_close else None].append(text)
        claim = f"N_B trained with {name}"
        _count(words.fails, f"{claim} loses test accuracy", parts[False], len(lines))
        _count(words.holds, f"{claim} loses under one point", parts[True], len(lines))
        claim = f"Test accuracy lost with {name} can't be told from noise"
        _count(words.open, claim, parts[None], len(lines))


def _place(line: dict) -> str:
    return f"{cell_label(line)} {stand_in_label(line['proxy'], line['pruning_ratio'])}"


def label(dataset: str) -> str:
    """Return a data set's name without the path that it was read from."""
    kind, colon, path = dataset.partition(":")
    return path.rstrip("/").rpartition("/")[2] if colon else kind


def cell_label(line: dict) -> str:
    """Return the name of a line's data set, network and, where it has one, sampler."""
    return " / ".join([label(line["dataset"]), *(line[k] for k in CELL[2:] if line.get(k))])


def stand_in_label(proxy: str, pruning_ratio: float) -> str:
    """Return a stand-in's name with the share of N_B's cost that it was made for."""
    if proxy == CEILING:
        return "N_B reseeded"
    return f"{proxy} {100 * (1 - pruning_ratio):.0f} %" if proxy else "no stand-in yet"


def _number(value: float, form: str) -> str:
    text = f"{value:{form}}"
    return text.replace("-", "−" if any(digit in text for digit in "123456789") else "")


def _value(line: dict, name: str, form: str, unit: str = "") -> str:
    """Return a value and, in brackets, its interval where it has one; "-" where it is missing."""
    if not np.isfinite(line.get(name, np.nan)):
        return "-"
    low, high = line.get(f"{name}_low", np.nan), line.get(f"{name}_high", np.nan)
    text = _number(line[name], form) + unit
    return f"{text} [{_number(low, form)}, {_number(high, form)}]" if np.isfinite(low) else text


def _matching(table: pd.DataFrame, line: dict, keys: list[str]) -> list[dict]:
    if table.empty:
        return []
    same = np.logical_and.reduce([table[key] == line[key] for key in keys])
    return table[same].to_dict("records")
