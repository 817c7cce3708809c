"""The answers of the first screen, and when to use a stand-in: evidence -> sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import pandas as pd

from proxyhpo.analysis.claims import POOLED, PRUNED, QUESTIONS, VERIFIED
from proxyhpo.analysis.cost import break_even, saving
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.analysis.quality import DESIGNED_ON, NEPS, SYNE_TUNE, WINNER, study_way
from proxyhpo.report.markdown import Columns, Line, markdown, measured, shown
from proxyhpo.report.style import DATASETS, label, table_label
from proxyhpo.report.tables import NOT_TIMED, PAPER_TABLES

MEANING = {
    "epoch": "{} less time",
    "saving": f"{{}} less time, {VERIFIED} verified",
    "quality": "{} of test accuracy lost",
    "better": "{} better",
}
"""What a claim's estimate says of a stand-in."""
_WORDS = {"yes": "shown", "no": "refuted", "undecided": "undecided"}


def answers(evidence: Evidence) -> str:
    """Return the four questions: the outcome, what was measured with its interval, and on what.

    Where there are enough tables to pool, the answer is about tables in general, and how each of
    them decides alone stands beside it.
    """
    lines = []
    for claim, question in QUESTIONS.items():
        known = evidence.headlines[evidence.headlines["claim"] == claim].to_dict("records")
        pooled = [line for line in known if line["table"] == POOLED]
        alone = [line for line in known if line["table"] != POOLED]
        lines.append(
            {
                "question": question,
                "answer": _answer(pooled, alone),
                "measured [95 %, together]": _measured(MEANING[claim], pooled, alone),
                "of what": _scale(claim, pooled, alone, evidence.searches),
            }
        )
    return markdown(lines)


def _answer(pooled: list[Line], alone: list[Line]) -> str:
    found = Counter(line["outcome"] for line in alone)
    if not pooled:
        return " / ".join(f"**{outcome}**" for outcome in found) or "**open**"
    singly = ", ".join(f"{outcome} on {n}" for outcome, n in found.items())
    return f"**{pooled[0]['outcome']}** for tables in general; taken singly, {singly}"


def _measured(meaning: str, pooled: list[Line], alone: list[Line]) -> str:
    if not alone:
        return "-"
    text = meaning.format("; ".join(map(measured, pooled or alone)))
    if pooled:
        estimates = [line["estimate"] for line in alone]
        text += f"; on single tables {min(estimates):.2g} to {max(estimates):.2g}"
    return text


def _scale(claim: str, pooled: list[Line], alone: list[Line], searches: Mapping[str, int]) -> str:
    if not alone:
        need = "step costs" if claim in ("epoch", "saving") else "truth and replays"
        return f"no {need} recorded yet"
    networks = {table_label(line["table"]).split(", ")[1] for line in alone}
    scales = [f"{line['n']} {line['of']} of {len(networks)} networks" for line in pooled] or [
        f"{table_label(line['table'])} ({line['n']} {line['of']})" for line in alone
    ]
    case = alone[0]["case"].replace("@0.25", " 25 %")
    if claim in ("quality", "better"):
        trials = sorted({searches[line["table"]] for line in alone})
        case += f", {' or '.join(map(str, trials))} trials, {VERIFIED} verified"
    return f"{case}; {'; '.join(scales)}"


def advice(evidence: Evidence) -> str:
    """Return when to tune on a stand-in and when not, as it follows from the claims."""
    frame, shift = evidence.claims, evidence.shift
    if evidence.epoch_costs.empty:
        return NOT_TIMED
    pruned = evidence.epoch_costs[evidence.epoch_costs["entrant"].isin(PRUNED)]
    least = [math.ceil(break_even(VERIFIED, trial)) for trial in pruned["trial"]]
    lines = [
        f"- **Time.** With {VERIFIED} of its best verified, a pruned network saves time from "
        f"{_span(least)} trials on, depending on network and criterion; shorter searches belong on "
        f"N_B. {_at_so_few(evidence)}"
    ]
    moved = shift[shift["view"].isin(PRUNED)]
    apart = moved[(moved["low"] > 0) | (moved["high"] < 0)]
    above = int((apart["shift"] > 0).sum())
    lines.append(
        "- **Accuracy.** The best learning rate of a pruned network is shown to lie above N_B's in "
        f"{above}, below it in {len(apart) - above} of {len(moved)} cases, each a table and a "
        "criterion, at 95 % each; losing less than half a point against TPE on N_B is "
        f"{_outcomes(frame, 'quality')}{_in_general(frame, 'quality')}. "
        f"{_held_against(evidence.baselines)}So verify."
    )
    if evidence.cells["table"].isin(PAPER_TABLES).any():
        lines.append(f"- **The paper's own setting.** {_papers_setting(evidence.cells)}")
    room = frame.loc[frame["claim"] == "better", "table"].drop_duplicates()
    lines.append(
        "- **Rivals.** That pruning by a criterion beats plain width, fewer epochs or fewer "
        "pictures by more than half a point in the same time is "
        f"{_outcomes(frame, 'better')}, of the {len(room[room != POOLED])} of "
        f"{len(evidence.tables)} tables with room for many more trials than are verified."
    )
    if len(evidence.races):
        lines.append(f"- **Cheapest.** {_cheapest(evidence)}")
    return "\n".join(lines)


def _at_so_few(evidence: Evidence) -> str:
    """Return on how many tables the search whose choice is judged saves time at all."""
    costs = evidence.epoch_costs
    own = costs[costs["entrant"] == PRUNED[0]].to_dict("records")
    trials = [evidence.searches[line["table"]] for line in own]
    saved = [
        saving(count, VERIFIED, line["trial"], build=line["build"])
        for count, line in zip(trials, own, strict=True)
    ]
    return (
        f"At the {' or '.join(map(str, sorted({*trials})))} trials after which accuracy is judged "
        f"here, {label(PRUNED[0])} saves time on {sum(one > 0 for one in saved)} of {len(own)} "
        "tables."
    )


def _held_against(baselines: pd.DataFrame) -> str:
    """Return against which other searches on N_B a claim of quality isn't shown."""
    parts = []
    for case, own in baselines.groupby("case", sort=False):
        if "yes" in set(own["outcome"]):
            others = own.loc[own["outcome"] != "yes", "baseline"]
            parts += [
                f"Against {', '.join(map(_sampler, others))} on N_B it isn't shown for "
                f"{label(str(case))}, nor corrected for looks as tables came. "
            ] * bool(len(others))
    return "".join(parts)


def _papers_setting(cells: pd.DataFrame) -> str:
    """Return what the paper's recorded experiments came to, from one to the other."""
    cells = cells[cells["table"].isin(PAPER_TABLES)]
    own = cells.groupby(["table", "sampler"]).agg("mean", numeric_only=True)
    ways = [
        f"{_span(100 * own[f'saved{end}'], '.0f')} % less time and "
        f"{_span(own[f'lost{end}'], '.1f')} points of test accuracy lost "
        f"(median {own[f'lost{end}'].median():.1f}) with {how}"
        for end, how in {"": "the proxy's best trusted", "_verified": "three verified"}.items()
    ]
    return (
        f"Learning rate alone, {cells['trials'].max()} trials, {len(own)} of 27 experiments "
        f"recorded: {'; '.join(ways)}. Each is the mean of many replays, which lie far apart "
        "(RESULTS.md)."
    )


def _sampler(name: str) -> str:
    return {"priorband": "PriorBand", "cmaes": "CMA-ES", "random": "random search"}.get(
        name, name.upper()
    )


def _way(name: str) -> str:
    """Return a way's name in a reader's words: "TPE on epochs 30 %"."""
    sampler, on, rest = name.partition(" on ")
    stand_in, comma, verified = rest.partition(",")
    return f"{_sampler(sampler)}{on}{label(stand_in)}{comma}{verified}" if on else name


def _cheapest(evidence: Evidence) -> str:
    """Return what the default and its main rivals have lost by when."""
    frame, design = evidence.overall, DATASETS[DESIGNED_ON]
    if WINNER not in set(frame["way"]):
        return f"Not replayed yet on tables other than {design}'s."
    place = 1 + frame["way"].tolist().index(WINNER)
    rivals = [study_way("base", 0, sampler) for sampler in ("tpe", "cmaes")]
    rivals += [*(study_way(name, VERIFIED) for name in PRUNED), SYNE_TUNE, NEPS]
    columns: Columns = {
        "points lost by the time of": lambda line: _way(line["way"]),
        **{
            f"{text} of a full search": _lost(f"regret_{part}")
            for part, text in {"quarter": "a quarter", "half": "half", "full": "all"}.items()
        },
    }
    lines = [line for line in frame.to_dict("records") if line["way"] in (WINNER, *rivals)]
    return (
        f"Means over the {frame['tables'].iloc[0]} tables of other data sets than {design} "
        f"(RESULTS.md has the intervals). {_way(WINNER)} is `tune` with `certify=0, verify=0`; "
        f"chosen on the tables of {design}, on the others it is number {place} of {len(frame)} "
        f"ways by the mean of the three. {_with_certificate(evidence)}"
        f"\n\n{markdown(lines, columns)}"
    )


def _lost(key: str) -> Callable[[Line], str]:
    return lambda line: shown(line[key], ".1f")


def _with_certificate(evidence: Evidence) -> str:
    """Return which part of a full search's time the default takes with its certificate."""
    studies = evidence.certificates
    own = studies[studies["stand_in"] == WINNER.removeprefix("tpe on ")]
    trials = own["table"].map(evidence.searches)
    parts = [
        f"{taken:.0%} at {count} trials"
        for count, taken in (own["cost"] / trials).groupby(trials, sort=False).mean().items()
    ]
    return (
        f"With its certificate, as by default, it takes {', '.join(parts)} of a full search's time."
        if parts
        else ""
    )


def _outcomes(frame: pd.DataFrame, claim: str) -> str:
    """Return how often a claim was decided how, tables apart: "shown in 1 of 3 cases, ..."."""
    own = frame[(frame["claim"] == claim) & (frame["table"] != POOLED)]["outcome"]
    if own.empty:
        return "not judged yet"
    parts = [f"{word} in {n}" for kind, word in _WORDS.items() if (n := int((own == kind).sum()))]
    return f"{', '.join(parts)} of {len(own)} cases"


def _in_general(frame: pd.DataFrame, claim: str) -> str:
    """Return how a claim is decided about tables in general, as far as there are enough."""
    pooled = frame[(frame["claim"] == claim) & (frame["table"] == POOLED)].to_dict("records")
    parts = [
        f"{_WORDS[one['outcome']]} for {label(one['case'])} ({measured(one)})" for one in pooled
    ]
    return f", and on all tables together {', '.join(parts)}" if parts else ""


def _span(values: Collection[float], form: str = "") -> str:
    low, high = (f"{end:{form}}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
