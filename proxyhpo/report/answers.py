"""The answers of the first screen, and when to use a stand-in: evidence -> sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import pandas as pd

from proxyhpo.analysis.certified import NOT_ASKED
from proxyhpo.analysis.claims import POOLED, PRUNED, QUESTIONS, VERIFIED
from proxyhpo.analysis.cost import break_even, saving
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.analysis.quality import (
    DESIGNED_ON,
    NEPS,
    SAME_TIME,
    SYNE_TUNE,
    WINNER,
    WINS_ON,
    StudyWay,
    study_way,
)
from proxyhpo.report.markdown import Columns, Line, markdown, measured, shown
from proxyhpo.report.style import DATASETS, case_label, label, sampler_label, table_label, way_label
from proxyhpo.report.tables import NOT_TIMED, PAPER_TABLES

MEANING = {
    "epoch": "{} less time",
    "saving": "{} less time",
    "quality": "{} of test accuracy lost",
    "better": "{} better",
}
"""What a claim's estimate says of a stand-in."""
SAID = {
    "epoch": {
        "yes": "An epoch on a pruned network takes less time.",
        "no": "An epoch on a pruned network takes no less time.",
        "undecided": "Whether an epoch on a pruned network takes less time is undecided.",
    },
    "saving": {
        "yes": "So does the whole search, its choice verified on N_B.",
        "no": "The whole search, its choice verified on N_B, takes no less.",
        "undecided": "Whether the whole search does, its choice verified on N_B, is undecided.",
    },
    "quality": {
        "yes": "The hyperparameters found are as good.",
        "no": "The hyperparameters found are worse.",
        "undecided": "Whether the hyperparameters that are found are as good is undecided.",
    },
    "better": {
        "yes": "Pruning beats a plainly narrower network.",
        "no": "Pruning by a criterion doesn't beat a plainly narrower network.",
        "undecided": "That pruning by a criterion beats a plainly narrower network isn't shown.",
    },
}
"""The answers in words, by outcome."""
_WORDS = {"yes": "shown", "no": "refuted", "undecided": "undecided"}


def answers(evidence: Evidence) -> str:
    """Return the four questions: the outcome, what was measured with its interval, and on what.

    Where there are enough tables to pool, the answer is about tables in general, and how each of
    them decides alone stands beside it. The answers in a sentence each come first.
    """
    lines, said = [], []
    for claim, question in QUESTIONS.items():
        known = evidence.headlines[evidence.headlines["claim"] == claim].to_dict("records")
        pooled = [line for line in known if line["table"] == POOLED]
        alone = [line for line in known if line["table"] != POOLED]
        lines.append(
            {
                "question": question,
                "answer": " / ".join(f"**{one}**" for one in _found(pooled or alone)) or "**open**",
                "measured [95 %, together]": _measured(MEANING[claim], pooled or alone),
                "tables taken singly": _singly(alone) if pooled else "",
                "of what": _scale(claim, pooled, alone, evidence.searches),
            }
        )
        said += [SAID[claim][one] for one in _found(pooled or alone)][:1]
    if len(evidence.overall):
        said.append(
            f"Of {len(evidence.overall)} ways of tuning, given the same time, "
            f"{way_label(_plain(evidence.overall['way'].iloc[0]))} loses least "
            "accuracy on average, on tables that nothing was chosen on."
        )
    return f"**In short.** {' '.join(said)}\n\n{markdown(lines)}"


def _found(lines: list[Line]) -> Counter[str]:
    return Counter(line["outcome"] for line in lines)


def _measured(meaning: str, lines: list[Line]) -> str:
    return meaning.format("; ".join(map(measured, lines))) if lines else "-"


def _singly(alone: list[Line]) -> str:
    """Return how tables decide alone, and from where to where they reach."""
    form = ".0f" if alone[0]["unit"].startswith("%") else ".1f"
    outcomes = ", ".join(f"{outcome} {n}" for outcome, n in _found(alone).items())
    return f"{outcomes}; {_span([line['estimate'] for line in alone], form)}"


def _scale(claim: str, pooled: list[Line], alone: list[Line], searches: Mapping[str, int]) -> str:
    if not alone:
        need = "step costs" if claim in ("epoch", "saving") else "truth and replays"
        return f"no {need} recorded yet"
    networks = {table_label(line["table"]).split(", ")[1] for line in alone}
    scales = [f"{line['n']} {line['of']} of {len(networks)} networks" for line in pooled] or [
        table_label(line["table"]) for line in alone
    ]
    case = case_label(alone[0]["case"])
    if claim in ("quality", "better"):
        case += f", {_numbers(searches[line['table']] for line in alone)} trials"
    if claim != "epoch":
        case += f", {VERIFIED} verified"
    return f"{case}; {', '.join(scales)}"


def advice(evidence: Evidence, *, full: bool = False) -> str:
    """Return when to tune on a stand-in and when not, as it follows from the claims.

    In a few sentences, or in ``full``.
    """
    if evidence.epoch_costs.empty:
        return NOT_TIMED
    parts = {"Time": _time(evidence), "Accuracy": _accuracy(evidence)}
    if evidence.cells["table"].isin(PAPER_TABLES).any():
        parts["The paper's own setting"] = _papers_setting(evidence.cells)
    parts["Rivals"] = _rivals(evidence)
    if len(evidence.races):
        parts["Cheapest"] = _cheapest(evidence)
    said = [
        f"- **{subject}.** {' '.join(filter(None, sentences if full else sentences[:1]))}"
        for subject, sentences in parts.items()
    ]
    return "\n".join(said) + _ways(evidence)


def _time(evidence: Evidence) -> tuple[str, str]:
    """Return from how many trials on a proxy saves time, and what a trial pruner does to that."""
    costs = evidence.epoch_costs
    pruned = costs[costs["entrant"].isin(PRUNED)]
    least = [math.ceil(break_even(VERIFIED, trial)) for trial in pruned["trial"]]
    text = (
        f"With {VERIFIED} of its best verified, a pruned network saves time from {_span(least)} "
        "trials on, depending on network and criterion; shorter searches belong on N_B."
    )
    if evidence.switches.empty:
        return text, ""
    name = evidence.switches["table"].iloc[0]
    own = evidence.switches[evidence.switches["table"] == name].set_index("switch")["saved"]
    return (
        f"{text} That is without a trial pruner: with successive halving on both, "
        f"{evidence.searches[name]} trials on {table_label(name)} come to "
        f"{_less(own['corrected'])} instead of {_less(own['trial pruner never asked'])}.",
        "N_B's own search then becomes so short that verification weighs more.",
    )


def _less(saved: float) -> str:
    return f"{abs(saved):.0f} % {'less' if saved > 0 else 'more'} time"


def _accuracy(evidence: Evidence) -> tuple[str, str]:
    """Return how far choices on a proxy can be trusted, and against which search."""
    frame, shift = evidence.claims, evidence.shift
    moved = shift[shift["view"].isin(PRUNED)]
    apart = moved[(moved["low"] > 0) | (moved["high"] < 0)]
    above = int((apart["shift"] > 0).sum())
    return (
        "Losing less than half a point against TPE on N_B is "
        f"{_outcomes(frame, 'quality')}, each a table and a criterion. So verify.",
        f"{_in_general(frame, 'quality')}{_held_against(evidence.baselines)}"
        f"{_at_so_few(evidence)} The best learning rate of a pruned network is shown to lie above "
        f"N_B's in {above}, below it in {len(apart) - above} of {len(moved)} cases, at 95 % each.",
    )


def _rivals(evidence: Evidence) -> tuple[str, str]:
    frame = evidence.claims
    room = frame.loc[frame["claim"] == "better", "table"].drop_duplicates()
    return (
        "That pruning by a criterion beats plain width, fewer epochs or fewer pictures by more "
        f"than half a point in the same time is {_outcomes(frame, 'better')}.",
        "Tables with room for many more trials than are verified: "
        f"{len(room[room != POOLED])} of {len(evidence.tables)}.",
    )


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
        f"Accuracy is judged after {_numbers(trials)} trials of each, at which {label(PRUNED[0])} "
        f"saves time on {sum(one > 0 for one in saved)} of {len(own)} tables."
    )


def _held_against(baselines: pd.DataFrame) -> str:
    """Return against which other searches on N_B a claim of quality isn't shown."""
    parts = []
    for case, own in baselines.groupby("case", sort=False):
        if "yes" in set(own["outcome"]):
            others = own.loc[own["outcome"] != "yes", "baseline"]
            parts += [
                f"For {label(str(case))} it isn't shown against "
                f"{', '.join(map(sampler_label, others))} on N_B, nor if the level is divided by "
                "the looks as tables came ([docs/method.md](docs/method.md#the-rule)). "
            ] * bool(len(others))
    return "".join(parts)


def _papers_setting(cells: pd.DataFrame) -> tuple[str, str]:
    """Return what the paper's recorded experiments came to, from one to the other."""
    cells = cells[cells["table"].isin(PAPER_TABLES)]
    own = cells.groupby(["table", "sampler"]).agg("mean", numeric_only=True)
    ways = [
        f"{how}, {_span(100 * own[f'saved{end}'], '.0f')} % less time and a median of "
        f"{own[f'lost{end}'].median():.1f} points of test accuracy lost, "
        f"{_span(own[f'lost{end}'], '.1f')}"
        for end, how in {"": "with the proxy's best trusted", "_verified": "three verified"}.items()
    ]
    worst, _ = own["lost"].idxmax()
    return (
        f"Learning rate alone, {cells['trials'].max()} trials, {len(own)} of 27 experiments "
        f"recorded: {'; '.join(ways)}.",
        f"Most is lost on {table_label(worst)}. Each is the mean of many replays, which lie far "
        "apart (see the paper's 27 experiments).",
    )


def _cheapest(evidence: Evidence) -> tuple[str, str]:
    """Return how the default does among all ways of tuning, and what its certificate costs."""
    frame, design = evidence.overall, DATASETS[DESIGNED_ON]
    if WINNER not in set(frame["way"]):
        return f"Not replayed yet on tables other than {design}'s.", ""
    place = 1 + frame["way"].tolist().index(WINNER)
    return (
        f"{way_label(_plain(WINNER))}, which is `tune` with `certify=0, verify=0`, was chosen on "
        f"the tables of {design}. On the {frame['tables'].iloc[0]} others it is number {place} of "
        f"{len(frame)} ways given the same time, by the mean of what is lost at the three times "
        f"below. {_same_time(evidence)} {_with_certificate(evidence)}",
        "",
    )


def _ways(evidence: Evidence) -> str:
    """Return a table of what the default and its main rivals have lost by when."""
    frame = evidence.overall
    rivals = [study_way("base", 0, sampler) for sampler in ("tpe", "cmaes")]
    rivals += [study_way(name, VERIFIED, same_time=True) for name in PRUNED]
    rivals += [study_way(WINS_ON, 0), SYNE_TUNE, NEPS]
    columns: Columns = {
        "points lost by the time of": lambda line: way_label(line["way"]),
        **{
            f"{text} of a full search": _lost(f"regret_{part}")
            for part, text in {"quarter": "a quarter", "half": "half", "full": "all"}.items()
        },
    }
    if WINNER not in set(frame.get("way", ())):
        return ""
    lines = [line for line in frame.to_dict("records") if line["way"] in (WINNER, *rivals)]
    return f"\n\n{markdown(lines, columns)}"


def _plain(way: str) -> str:
    """Return the name of a way without its number of trials."""
    return way.replace(SAME_TIME, "")


def _same_time(evidence: Evidence) -> str:
    """Return on how many tables "the same time" favours cheap stand-ins."""
    tables = [table for table in evidence.tables.values() if WINS_ON in table.stand_ins]
    search = StudyWay("tpe", WINS_ON, same_time=True)
    whole = sum(search.trials(table) == len(table.regime.configurations) for table in tables)
    return (
        f"That time has room for the whole grid on {whole} of {len(tables)} tables; a space that "
        "can't be tried as a whole would grant a cheap stand-in less."
    )


def _lost(key: str) -> Callable[[Line], str]:
    return lambda line: shown(line[key], ".1f")


def _with_certificate(evidence: Evidence) -> str:
    """Return which part of a full search's time the default takes, by its trials."""
    studies = evidence.certificates
    own = studies[studies["stand_in"] == WINS_ON]
    parts = []
    for trials, some in own.groupby(own["table"].map(evidence.searches), sort=False):
        plain = some["verdict"] == NOT_ASKED
        by_default = some[plain] if plain.any() else some
        how = "too few to earn one back, a third verified" if plain.any() else "that included"
        taken = 100 * by_default["cost"].mean() / trials
        parts.append(f"{taken:.0f} % of a full search's time at {trials} trials, {how}")
    return f"By default it asks for a certificate: {'; '.join(parts)}." if parts else ""


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
    general = "On all tables together, at the level that all claims share, it is "
    return f"{general}{', '.join(parts)}. " if parts else ""


def _numbers(values: Iterable[int]) -> str:
    return " or ".join(map(str, sorted({*values})))


def _span(values: Collection[float], form: str = "") -> str:
    low, high = (f"{end:{form}}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
