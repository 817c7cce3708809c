"""The verdict: what recorded rows show, in sentences, the bad news first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from proxyhpo.analysis.cost import CLOCKS, clock, speedup
from proxyhpo.analysis.power import detectable
from proxyhpo.analysis.quality import RIVALS, at_equal_time, final_quality, rival_differences
from proxyhpo.analysis.ranking import (
    CEILING,
    CONTROLS,
    is_control,
    proxy_differences,
    rank_correlation,
)
from proxyhpo.report.wording import (
    PAPER_REDUCTION,
    SMOKE,
    cell_label,
    number,
    place,
    value,
)

FEW_CONFIGURATIONS, FEW_SEEDS = 24, 3
LOAD_APART = 1.0  # of the 1-minute load averages while N_B's and N_P's trials ran
SHOWN = 4  # experiments that a sentence names before it says how many more


def verdict(rows: pd.DataFrame) -> str:
    """Return in plain words, as a Markdown list, what the rows show, the bad news first.

    First where the paper's claim doesn't hold, then what these rows are too few to tell, then
    where it holds. A difference counts where its interval leaves out zero and, between proxies, its
    p-value stays under 5 % after Holm's correction.
    """
    return judge(rows).sentences


def judge(rows: pd.DataFrame) -> Judgement:
    """Return the sentences of :func:`verdict`, and in how many cases each claim holds."""
    words = _Words()
    parts = (_time_words, _rank_words, _quality_words, _equal_time_words, _rival_words)
    for part in (*parts, _power_words):
        part(rows, words)
    lines = [f"**{SMOKE}**", ""] if (rows["profile"] == "smoke").any() else []
    for title, found in {
        "Where the claim does not hold": words.fails,
        "What these rows can't tell": words.open,
        "Where it holds": words.holds,
    }.items():
        lines += [f"**{title}**", ""] + [f"- {x}" for x in found or ["nothing recorded"]] + [""]
    return Judgement("\n".join(lines), words.claims)


@dataclass(frozen=True)
class Judgement:
    """What recorded rows show.

    Attributes:
        sentences: in words, as a Markdown list.
        claims: in how many cases each claim does not hold, can't be told, and holds.
    """

    sentences: str
    claims: dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class _Words:
    """Sentences for the three parts of a verdict, and the claims that they are about."""

    fails: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    claims: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def weigh(self, claim: str, fails: _Told, open_: _Told, holds: _Told) -> None:
        """Note a claim: what to say, and of which cases, where it fails, is open, and holds."""
        told = (fails, open_, holds)
        counts = [len(some) for _, some in told]
        if any(counts):
            self.claims[claim] = (counts[0], counts[1], counts[2])
        for into, (said, some) in zip((self.fails, self.open, self.holds), told, strict=True):
            _count(into, said, some, sum(counts))


_Told = tuple[str, list[str]]
_NOTHING: _Told = ("", [])


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

    unit = clock(rows)

    def some(condition: Callable[[float], bool], scope: str = "hpo") -> list[str]:
        name = f"reduction_{scope}_{unit}"
        return [
            f"{cell_label(one)} {value(one, name, '.0f', ' %')}"
            for one in done
            if condition(one[name])
        ]

    goal = f"{PAPER_REDUCTION:.0f} % of the {CLOCKS[unit]} time (paper: up to 37 %)"
    spans = []
    for scope, counted in {
        "search": "without verification on N_B",
        "hpo": "with it",
        "total": "with the final training too",
    }.items():
        values = [one[f"reduction_{scope}_{unit}"] for one in done]
        spans.append(f"{number(min(values), '.0f')} to {number(max(values), '.0f')} % {counted}")
    for scope, way in {
        "search": "HPO on N_P alone, unverified as in the paper,",
        "hpo": "HPO on N_P, verified on N_B,",
    }.items():
        words.weigh(
            f"{way} saves at least {goal}",
            (f"{way} saves under {goal}", some(lambda value: value < PAPER_REDUCTION, scope)),
            _NOTHING,
            (f"{way} saves at least {goal}", some(lambda value: value >= PAPER_REDUCTION, scope)),
        )
    _count(
        words.fails,
        "It takes longer than HPO on N_B",
        some(lambda value: value <= 0),
        len(done),
    )
    words.holds.append(
        f"Time saved over the {len(done)} finished ({CLOCKS[unit]}): {', '.join(spans)}."
    )
    _count(
        words.open,
        f"Under {FEW_SEEDS} seeds, so the interval misses how much another seed's study differs",
        [cell_label(one) for one in done if one["seeds"] < FEW_SEEDS],
        len(done),
    )
    _count(
        words.open,
        "The machine was busier on one side, so MACs compare better than time (load averages)",
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
    by_chance: list[str] = []
    better: list[str] = []
    for one in lines:
        (better if one["rho_half_low"] > 0 else by_chance).append(
            f"{place(one)} rho {value(one, 'rho_half', '.2f')} (all: {value(one, 'rho', '.2f')})"
        )
    words.weigh(
        "Among N_B's better half the proxy ranks better than chance (rho)",
        ("Among N_B's better half the proxy isn't shown to rank at all", by_chance),
        _NOTHING,
        ("Among N_B's better half the proxy ranks better than chance", better),
    )
    few = [f"{place(one)} n = {one['n']}" for one in lines if one["n"] < FEW_CONFIGURATIONS]
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
    ahead: list[str] = []
    behind: list[str] = []
    level: list[str] = []
    for one in group.to_dict("records"):
        sure, better = one["p_holm"] < 0.05, sign * one["difference"] > 0
        found = level if not sure else ahead if better else behind
        found.append(f"{place(one)} {value(one, 'difference', form, unit)}, p {one['p_holm']:.2g}")
    by = f"(difference of {measure}; p after Holm's correction)"
    if rival == CEILING:
        words.weigh(
            f"The proxy does as well as N_B reseeded, the noise ceiling ({measure})",
            (f"Worse than N_B reseeded, above noise {by},", behind),
            (f"Not told apart from N_B reseeded {by}", level),
            (f"Ahead of N_B reseeded {by}", ahead),
        )
        return
    claim = f"ahead of {rival} at equal target cost {by}"
    words.weigh(
        f"The proxy is ahead of {rival} at equal target cost ({measure})",
        (f"The proxy isn't shown to be {claim}", behind + level),
        _NOTHING,
        (f"The proxy is {claim}", ahead),
    )


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
            f"{cell_label(one)} {value(one, 'regret', '.1f')} points (n = {one['n']})"
            for one in lines
        ]
        parts: dict[bool | None, list[str]] = {True: [], False: [], None: []}
        for text, is_lost, is_close in zip(told, lost, close, strict=True):
            parts[False if is_lost else True if is_close else None].append(text)
        claim = f"N_B trained with {name}"
        words.weigh(
            f"{claim} loses under one point of test accuracy",
            (f"{claim} loses test accuracy", parts[False]),
            (f"Test accuracy lost with {name} can't be told from noise", parts[None]),
            (f"{claim} loses under one point", parts[True]),
        )


def _equal_time_words(rows: pd.DataFrame, words: _Words) -> None:
    lines = at_equal_time(rows).to_dict("records")
    parts: dict[str, list[str]] = {"worse": [], "better": [], "open": []}
    for one in lines:
        enough = one["n"] >= FEW_SEEDS
        worse, better = one["equal_time_high"] < 0, one["equal_time_low"] > 0
        found = "worse" if enough and worse else "better" if enough and better else "open"
        text = f"{cell_label(one)} {value(one, 'equal_time', '.1f')} points (n = {one['n']}; "
        parts[found].append(f"{text}at equal trials {value(one, 'equal_trials', '.1f')})")
    by = f"{CLOCKS[clock(rows)]} time; N_B's validation accuracy, verified less N_B's own"
    claim = f"At equal time HPO on N_P, verified, had found better hyperparameters ({by})"
    words.weigh(
        claim,
        (f"At equal time N_B's own HPO had found better hyperparameters ({by})", parts["worse"]),
        (f"At equal time neither is shown to be ahead ({by})", parts["open"]),
        (claim, parts["better"]),
    )


def _rival_words(rows: pd.DataFrame, words: _Words) -> None:
    table = rival_differences(rows)
    if table.empty:
        return
    compared = table[table["against"].isin(RIVALS) & (table["against"] != table["sampler"])]
    if compared.empty:
        names = ", ".join(RIVALS.values())
        words.open.append(f"No way without a proxy is recorded beside it: {names}.")
        return
    parts: dict[str, list[str]] = {"beaten": [], "ahead": [], "open": []}
    for one in compared.to_dict("records"):
        dearer = one["share"] >= 1
        ahead = not dearer and one["difference_low"] >= 0 and one["n"] >= FEW_SEEDS
        found = "beaten" if dearer and one["difference"] <= 0 else "ahead" if ahead else "open"
        parts[found].append(
            f"{cell_label(one)} against {RIVALS[one['against']]}: {one['share']:.2f} of its time, "
            f"{value(one, 'difference', '.1f')} points (n = {one['n']})"
        )
    by = f"{CLOCKS[clock(rows)]} time of HPO; test accuracy of N_B, means over seeds"
    claim = f"HPO on N_P takes less time than a way without a proxy and ends no worse ({by})"
    other = "HPO on N_P and a way without a proxy trade time for accuracy, or can't be told"
    words.weigh(
        claim,
        (
            f"A way without a proxy takes no longer than HPO on N_P and ends no worse ({by})",
            parts["beaten"],
        ),
        (f"{other} ({by})", parts["open"]),
        (claim, parts["ahead"]),
    )


def _power_words(rows: pd.DataFrame, words: _Words) -> None:
    table = detectable(rows).dropna(subset="detectable")
    others = [f"less that of {name}" for name in CONTROLS if name != "uniform"]
    table = table[~table["quantity"].str.endswith(tuple(others))]
    told = []
    for (quantity, unit), group in table.groupby(["quantity", "unit"], sort=False):
        low, high = (
            number(x, ".2g" if x < 10 else ".0f") for x in group["detectable"].agg(["min", "max"])
        )
        span = low if low == high else f"{low} to {high}"
        told.append(f"{quantity}: {span}{' ' * bool(unit)}{unit}")
    if told:
        sizes = sorted(set(table["n"]))
        n = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
        words.open.append(
            f"With n = {n}, a difference has to be at least this large to be found with 80 % "
            f"power: {'; '.join(told)}."
        )
