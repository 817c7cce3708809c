"""The answers of the first screen, and when to use a stand-in: evidence -> sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from proxyhpo.analysis.certified import NOT_ASKED
from proxyhpo.analysis.claims import (
    EQUAL_TIME,
    POOLED,
    PRUNED,
    QUESTIONS,
    TIME,
    VERIFIED,
    outcome,
)
from proxyhpo.analysis.cost import break_even, saving
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.analysis.ways import (
    DESIGNED_ON,
    NEPS,
    SAME_TIME,
    SYNE_TUNE,
    WINNER,
    WINS_ON,
    StudyWay,
    study_way,
)
from proxyhpo.report.markdown import Columns, Line, between, markdown, measured, span
from proxyhpo.report.style import DATASETS, case_label, label, sampler_label, table_label, way_label
from proxyhpo.report.tables import NOT_TIMED, PAPER_TABLES, number, step_ratios

MEANING = {
    "epoch": "{} less time",
    "saving": "{} less time",
    "quality": "{} of test accuracy lost",
    "better": "{} better",
}
"""What a claim's estimate says of a stand-in."""
SAID = {
    "epoch": {
        "yes": "On one CPU core, an epoch on a pruned network takes less time.",
        "no": "On one CPU core, an epoch on a pruned network takes no less time.",
        "undecided": "Whether, on one CPU core, an epoch on a pruned network takes less time is "
        "undecided.",
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
FIRST = 4
"""How many of the best ways the table of the advice shows."""
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
                "of what": _scale(claim, pooled, alone, evidence),
            }
        )
        said += [SAID[claim][one] for one in _found(pooled or alone)][:1]
    if len(evidence.overall):
        said.append(_first(evidence))
    return f"**In short.** {' '.join(said)}\n\n{markdown(lines)}"


def _first(evidence: Evidence) -> str:
    """Return which way has lost least on average, and whether it is shown to beat the next."""
    more = f"{SAME_TIME} (with as many trials as that time allows),"
    first = way_label(evidence.overall["way"].iloc[0]).replace(SAME_TIME, more)
    said = (
        f"Of {len(evidence.overall)} ways of tuning, compared after a quarter, half and all of a "
        f"full search's time, {first} has the lowest mean loss on tables that nothing was chosen on"
    )
    apart = evidence.ahead.to_dict("records")
    if not apart:
        return f"{said}."
    beaten = sum(outcome(one["low"], one["high"], 0) == "yes" for one in apart)
    verdict = f"is shown to beat {beaten} of" if beaten else "isn't shown to beat"
    ends = " and ".join(between(one["points"], one["low"], one["high"]) for one in apart)
    return (
        f"{said}; it {verdict} the next {'one' if len(apart) == 1 else 'two'} ({ends} points "
        "ahead, at 95 % each)."
    )


def _found(lines: list[Line]) -> Counter[str]:
    return Counter(line["outcome"] for line in lines)


def _measured(meaning: str, lines: list[Line]) -> str:
    return meaning.format("; ".join(map(measured, lines))) if lines else "-"


def _singly(alone: list[Line]) -> str:
    """Return how tables decide alone, and from where to where they reach."""
    form = ".0f" if alone[0]["unit"].startswith("%") else ".1f"
    outcomes = ", ".join(f"{outcome} {n}" for outcome, n in _found(alone).items())
    return f"{outcomes}; {span([line['estimate'] for line in alone], form)}"


def _scale(claim: str, pooled: list[Line], alone: list[Line], evidence: Evidence) -> str:
    if not alone:
        need = "step costs" if claim in ("epoch", "saving") else "truth and replays"
        return f"no {need} recorded yet"
    networks = {table_label(line["table"]).split(", ")[1] for line in alone}
    scales = [f"{line['n']} {line['of']} of {len(networks)} networks" for line in pooled] or [
        table_label(line["table"]) for line in alone
    ]
    case = case_label(alone[0]["case"])
    judged = alone if claim in ("quality", "better") else []
    trials = Counter(evidence.searches[line["table"]] for line in judged)
    if claim == "better":
        case += f", the time of {_numbers(EQUAL_TIME * one for one in trials)} trainings each"
    elif len(trials) == 1:
        case += f", {_numbers(trials)} trials"
    if claim != "epoch":
        case += f", {VERIFIED} verified"
    if claim == "quality" and len(trials) > 1:
        case += f"; {_by_trials(trials, evidence)}"
    return f"{case}; {', '.join(scales)}"


def _by_trials(tables: Mapping[int, int], evidence: Evidence) -> str:
    """Return on how many tables a search has how many trials, and on how many of them saves none.

    ``tables`` is their number, by trials.
    """
    parts = []
    for trials, count in sorted(tables.items()):
        saved = [one > 0 for size, one in _searches_saved(evidence) if size == trials]
        on, of = ("one table", "") if count == 1 else (f"{count} tables", " on {} of them")
        none = f" (no time saved{of.format(saved.count(False))})" if not all(saved) else ""
        parts.append(f"{trials} trials on {on}{none}")
    return ", ".join(parts)


def advice(evidence: Evidence, *, full: bool = False) -> str:
    """Return when to tune on a stand-in and when not, as it follows from the claims.

    In a few sentences, or in ``full``.
    """
    if evidence.epoch_costs.empty:
        return NOT_TIMED
    parts = {"Time": _time(evidence), "Accuracy": _accuracy(evidence)}
    if evidence.cells["table"].isin(PAPER_TABLES).any():
        parts["The paper's space and trials"] = _papers_setting(evidence.cells)
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
    parts = zip(pruned["trial"], pruned["build"], strict=True)
    ends = [break_even(VERIFIED, trial + TIME, build=build) for trial, build in parts]
    least = [math.ceil(one) for one in ends if math.isfinite(one)]
    margin = f"{100 * TIME:.0f} % of the time"
    when = f"starts to save {margin} at {span(least)} trials" if least else f"doesn't save {margin}"
    when += f" (never in {len(ends) - len(least)} of {len(ends)} cases)" * (len(least) < len(ends))
    text = (
        f"With {VERIFIED} of its best verified, a pruned network {when} (estimates), depending on "
        "network and criterion; shorter searches belong on N_B."
    )
    on_a_gpu = _on_a_gpu(evidence.scaled_steps)
    if evidence.switches.empty:
        return text + on_a_gpu, ""
    name = evidence.switches["table"].iloc[0]
    own = evidence.switches[evidence.switches["table"] == name].set_index("switch")["saved"]
    return (
        f"{text} That is without a trial pruner (which ends poor trials early): with successive "
        "halving on both, "
        f"{evidence.searches[name]} trials on {table_label(name)} come to "
        f"{_less(own['corrected'])} instead of {_less(own['trial pruner never asked'])}."
        f"{on_a_gpu}",
        "Halving makes N_B's own search so short that verification weighs more.",
    )


def _on_a_gpu(steps: pd.DataFrame) -> str:
    """Return what a pruned network's step takes on a GPU, where one has timed it."""
    parts = []
    for table, own in steps.groupby("table", sort=False) if len(steps) else ():
        ratios = step_ratios(own)
        pruned = ratios[[name for name in PRUNED if name in ratios]]
        takes = "less" if (pruned < 1).to_numpy().all() else "no less"
        texts = [f"{label(name)}: {ratio:.2f}" for name, ratio in pruned.median().items()]
        network = table_label(str(table)).split(", ")[1]
        parts.append(f"a step of {network} takes {takes} time pruned ({', '.join(texts)} of N_B's)")
    on = " On the one GPU tried,"
    return f"{on} {'; '.join(parts)}." if parts else ""


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
    saved = _searches_saved(evidence)
    return (
        f"Accuracy is judged after {_numbers(trials for trials, _ in saved)} trials of each, at "
        f"which {label(PRUNED[0])} saves time on {sum(one > 0 for _, one in saved)} of "
        f"{len(saved)} tables."
    )


def _searches_saved(evidence: Evidence) -> list[tuple[int, float]]:
    """Return the trials of each table's verified search, and the share of time that it saves."""
    costs = evidence.epoch_costs
    own = costs[costs["entrant"] == PRUNED[0]].to_dict("records")
    trials = [evidence.searches[line["table"]] for line in own]
    return [
        (count, float(saving(count, VERIFIED, line["trial"], build=line["build"])))
        for count, line in zip(trials, own, strict=True)
    ]


def _held_against(baselines: pd.DataFrame) -> str:
    """Return against which other searches on N_B a claim of quality isn't shown."""
    parts = []
    for case, own in baselines.groupby("case", sort=False):
        if "yes" in set(own["outcome"]):
            others = own.loc[own["outcome"] != "yes", "baseline"]
            parts += [
                f"For {label(str(case))} it isn't shown against "
                f"{', '.join(map(sampler_label, others))} on N_B, and its level isn't divided by "
                "the looks as tables came ([docs/method.md](docs/method.md#the-rule)). "
            ] * bool(len(others))
    return "".join(parts)


def _papers_setting(cells: pd.DataFrame) -> tuple[str, str]:
    """Return what the paper's recorded experiments came to, from one to the other."""
    cells = cells[cells["table"].isin(PAPER_TABLES) & (cells["draw"] == 0)]
    own = cells.groupby(["table", "sampler"]).agg("mean", numeric_only=True)
    ways = [
        f"{how}, {span(100 * own[f'saved{end}'], '.0f')} % less time and a median of "
        f"{own[f'lost{end}'].median():.1f} points of test accuracy lost, "
        f"{span(own[f'lost{end}'], '.1f')}"
        for end, how in {"": "with the proxy's best trusted", "_verified": "three verified"}.items()
    ]
    worst, _ = own["lost"].idxmax()
    return (
        f"Learning rate alone, {cells['trials'].max()} trials, interpolated from our short "
        f"trainings, {len(own)} of 27 experiments replayed: {'; '.join(ways)}.",
        f"Most is lost on {table_label(worst)}. Each is the mean of replays on the recorded table; "
        "on redrawn ones they lie far apart (see the paper's 27 experiments).",
    )


def _cheapest(evidence: Evidence) -> tuple[str, str]:
    """Return how the way of ``tune``'s method does among all, and what its certificate costs."""
    frame, design = evidence.overall, DATASETS[DESIGNED_ON]
    if WINNER not in set(frame["way"]):
        return f"Not replayed yet on tables other than {design}'s.", ""
    place = 1 + frame["way"].tolist().index(WINNER)
    return (
        f"{way_label(study_way(WINS_ON, 0))} was chosen on the tables of {design}. On the "
        f"{frame['tables'].iloc[0]} others, {way_label(WINNER)}, is number {place} of {len(frame)} "
        "ways by the mean of what is lost at the three times below; how `tune` goes that way: "
        "[your own network](README.md#your-own-network). "
        f"{_sooner(evidence.sooner)}{_same_time(evidence)} {_with_certificate(evidence)}",
        "",
    )


def _ways(evidence: Evidence) -> str:
    """Return a table of what the first ways, that one and its main rivals have lost by when."""
    frame = evidence.overall
    rivals = [WINNER, study_way("base", 0), SYNE_TUNE, NEPS]
    rivals += [study_way(name, 0, same_time=True) for name in PRUNED]
    columns: Columns = {
        "points lost by the time of": lambda line: way_label(line["way"]),
        **{
            f"{text} of a full search": number(f"regret_{part}", ".1f")
            for part, text in {"quarter": "a quarter", "half": "half", "full": "all"}.items()
        },
    }
    if WINNER not in set(frame.get("way", ())):
        return ""
    lines = frame[(frame.index < FIRST) | frame["way"].isin(rivals)].to_dict("records")
    judging = {name for name in evidence.races["table"] if not name.startswith(f"{DESIGNED_ON}-")}
    sizes = {evidence.searches[name] for name in judging}
    return (
        " A full search: half of the grid's configurations on N_B, "
        f"{_numbers(sizes)} trainings on each of these {len(judging)} tables; a quarter is "
        f"{_numbers(size / 4 for size in sizes)} trainings. The first {FIRST} of all ways, and "
        f"some others:\n\n{markdown(lines, columns)}"
    )


def _sooner(frame: pd.DataFrame) -> str:
    """Return how soon that way is good enough, by the best other way of each table."""
    return "".join(
        "To come within half a point, each table's soonest other way, chosen in hindsight, takes "
        f"{between(one['ratio'], one['low'], one['high'], '.2f')} of its time. "
        for one in frame[frame["table"] == ""].to_dict("records")
    )


def _same_time(evidence: Evidence) -> str:
    """Return on how many tables "same time" favours cheap stand-ins."""
    tables = [table for table in evidence.tables.values() if WINS_ON in table.stand_ins]
    search = StudyWay("tpe", WINS_ON, same_time=True)
    whole = sum(search.trials(table) == len(table.regime.configurations) for table in tables)
    most = _numbers({search.trials(table) for table in tables})
    return (
        f"A full search's time has room for the whole grid on {whole} of {len(tables)} tables, "
        f"{most} trials, and it was judged with no more; a space that can't be tried as a whole "
        "would grant a cheap stand-in less."
    )


def _with_certificate(evidence: Evidence) -> str:
    """Return which part of a full search's time ``tune`` by default takes, by its trials."""
    studies = evidence.certificates
    own = studies[studies["stand_in"] == WINS_ON]
    parts = []
    for trials, some in own.groupby(own["table"].map(evidence.searches), sort=False):
        plain = some["verdict"] == NOT_ASKED
        by_default = some[plain] if plain.any() else some
        how = "too few to earn one back, a third verified" if plain.any() else "that included"
        taken = 100 * by_default["cost"].mean() / trials
        parts.append(f"{taken:.0f} % of a full search's time at {trials} trials, {how}")
    asks = (
        "By default `tune` asks for a certificate (a few configurations trained on both, to say "
        "how far the stand-in can be trusted)"
    )
    return f"{asks}: {'; '.join(parts)}." if parts else ""


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


def _numbers(values: Iterable[float]) -> str:
    return " or ".join(f"{value:g}" for value in sorted({*values}))
