"""Tables and sentences of the pages: evidence -> Markdown. Nothing is typed in by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from proxyhpo.analysis.claims import (
    POOLED,
    PRUNED,
    QUESTIONS,
    TRIALS,
    VERIFIED,
    outcome,
)
from proxyhpo.analysis.cost import break_even, saving
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.analysis.quality import WINNER
from proxyhpo.config import PROFILES
from proxyhpo.report.style import label, table_label

PAPER_GRID = PROFILES["paper"]
TWICE = 2.0
"""How many times sooner the default should be good enough: set before the first race."""


def markdown(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    body = [[str(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(one)} |" for one in (head, ["---"] * len(head), *body))


NOT_TIMED = "No step costs yet: `benchmarks/steps.py` measures them."
NOT_REPLAYED = "Not replayed yet: `./run_all.sh replay`."


def shown(value: float, form: str) -> str:
    """Return a number as text, "-" where there is none."""
    return f"{value:{form}}" if math.isfinite(value) else "-"


def between(estimate: float, low: float, high: float, form: str = ".1f", unit: str = "") -> str:
    """Return an estimate with its interval: "1.1 [-0.1, 2.4] points"; infinity is "never"."""
    if math.isnan(estimate):
        return "-"
    text, *ends = (
        "never" if math.isinf(one) else shown(one, form) for one in (estimate, low, high)
    )
    if not (math.isnan(low) or math.isnan(high)):
        text += f" [{', '.join(ends)}]"
    return f"{text} {unit}".strip()


def _value(line: dict, unit: bool = True) -> str:
    form = ".0f" if line["unit"].startswith("%") else ".1f"
    shown = line["unit"].replace("% of time", "%") if unit else ""
    return between(line["estimate"], line["low"], line["high"], form, shown)


def answers_markdown(evidence: Evidence) -> str:
    """Return the four questions, each with one number, its interval, its scale and the outcome."""
    lines, known = [], evidence.headlines
    for claim, question in QUESTIONS.items():
        own = known[known["claim"] == claim].to_dict("records")
        if not own:
            need = "step costs" if claim in ("epoch", "saving") else "truth and replays"
            lines.append([question, "**open**", "-", f"no {need} recorded yet"])
            continue
        outcomes = list(dict.fromkeys(line["outcome"] for line in own))
        scales = [
            f"{line['n']} {line['of']}"
            if line["table"] == POOLED
            else f"{table_label(line['table'])} ({line['n']} {line['of']})"
            for line in own
        ]
        lines.append(
            [
                question,
                " / ".join(f"**{outcome}**" for outcome in outcomes),
                _meaning(claim, "; ".join(_value(line) for line in own)),
                f"{own[0]['case'].replace('@0.25', ' 25 %')}; {'; '.join(scales)}",
            ]
        )
    return markdown(["question", "answer", "measured [95 %, together]", "of what"], lines)


def _meaning(claim: str, value: str) -> str:
    return {
        "epoch": f"{value} less time",
        "saving": f"{value} less time, {VERIFIED} verified",
        "quality": f"{value} of test accuracy lost",
        "better": f"{value} better",
    }[claim]


def advice(evidence: Evidence) -> str:
    """Return when to tune on a stand-in and when not, as it follows from the claims."""
    frame, shift = evidence.claims, evidence.shift
    if evidence.epoch_costs.empty:
        return NOT_TIMED
    pruned = evidence.epoch_costs[evidence.epoch_costs["entrant"].isin(PRUNED)]
    least = [math.ceil(break_even(VERIFIED, trial)) for trial in pruned["trial"]]
    lines = [
        f"- **Time.** With {VERIFIED} of its best verified, a pruned network saves time in "
        f"searches of {_span(least)} trials or more, depending on network and criterion; shorter "
        "ones belong on N_B."
    ]
    moved = shift[shift["view"].isin(PRUNED)]
    apart = moved[(moved["low"] > 0) | (moved["high"] < 0)]
    cases = [
        f"{label(one['view'])}, {table_label(one['table'])}" for one in apart.to_dict("records")
    ]
    lines.append(
        "- **Accuracy.** The best learning rate of a pruned network is shown to lie elsewhere than "
        f"N_B's in {len(apart)} of {len(moved)} cases{' (' * bool(cases)}{'; '.join(cases)}"
        f"{')' * bool(cases)}; losing less than half a point is {_outcomes(frame, 'quality')}. "
        "So verify."
    )
    lines.append(
        f"- **Rivals.** That pruning by a criterion beats plain width, fewer epochs or fewer "
        f"pictures by more than half a point in the same time is {_outcomes(frame, 'better')}."
    )
    if len(evidence.races):
        lines.append(
            f"- **Cheapest.** Within half a point of the best soonest: {_soonest(evidence)}. What "
            f"`tune` does by default was chosen on the first of these tables: {_way(WINNER)}, "
            'nothing pruned, with a certificate on top. "Never": some redrawn tables don\'t come '
            "so close."
        )
    return "\n".join(lines)


def _way(name: str) -> str:
    """Return a way's name in a reader's words: "TPE on epochs 30 %"."""
    sampler, on, rest = name.partition(" on ")
    stand_in, comma, verified = rest.partition(",")
    return f"{sampler.upper()}{on}{label(stand_in)}{comma}{verified}" if on else name


def _soonest(evidence: Evidence) -> str:
    """Return the way that is good enough first, and when, table by table."""
    parts = []
    for (dataset, network), own in evidence.race_summary.groupby(
        ["dataset", "network"], sort=False
    ):
        # a way that no redrawn table bears out was lucky on the recorded one
        known = own[own["cost_to_half_point_low"] <= own["cost_to_half_point"]]
        first = known.loc[known["cost_to_half_point"].idxmin()]
        cost, low, high = (first[f"cost_to_half_point{end}"] for end in ("", "_low", "_high"))
        table = table_label(f"{dataset}-{network}")
        soon = between(cost, low, high, ".2g")
        parts.append(
            f"{_way(first['way'])} after {soon} trainings of N_B ({table})"
            if math.isfinite(first["cost_to_half_point"])
            else f"no way ({table})"
        )
    return "; ".join(parts)


def _outcomes(frame: pd.DataFrame, claim: str) -> str:
    """Return how often a claim was decided how, tables apart: "shown in 1 of 3 cases, ..."."""
    own = frame[(frame["claim"] == claim) & (frame["table"] != POOLED)]["outcome"]
    if own.empty:
        return "not judged yet"
    words = {"yes": "shown", "no": "refuted", "undecided": "undecided"}
    parts = [f"{words[kind]} in {n}" for kind in words if (n := int((own == kind).sum()))]
    return f"{', '.join(parts)} of {len(own)} cases"


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def claims_markdown(frame: pd.DataFrame) -> str:
    """Return every claim."""
    lines = [
        [
            line["claim"],
            line["table"] if line["table"] == POOLED else table_label(line["table"]),
            line["case"],
            _value(line, unit=False),
            line["unit"],
            f"{'above' if line['above'] else 'below'} {line['margin']:g}",
            f"{line['n']} {line['of']}",
            line["outcome"],
            _more(line["more"]),
        ]
        for line in frame.to_dict("records")
    ]
    head = ["claim", "table", "case", "estimate [interval]", "unit", "holds if", "n", "outcome"]
    head.append("would take")
    return markdown(head, lines)


def _more(times: float) -> str:
    return "" if math.isnan(times) else f"{times:.0f} x" if times < 100 else "over 100 x"


def gates_markdown(evidence: Evidence) -> str:
    """Return the gate of each table, which says whether its trainings mean something."""
    lines = []
    for name, line in evidence.gates.iterrows():
        lines.append(
            [
                table_label(str(name)),
                shown(line["above_chance"], ".0%"),
                shown(line["best"], ".1%"),
                shown(line["plateau"], ".0f"),
                shown(100 * line["seed_sd"], ".1f"),
                shown(100 * line["binomial_sd"], ".1f"),
                shown(line["icc"], ".2f"),
                f"{shown(line['icc_mean'], '.2f')} ({line['seeds']:.0f})",
                shown(line["first_epoch_best"], ".1%"),
            ]
        )
    head = [
        "table", "10 points above chance", "best of N_B", "within 1 point", "SD of seeds",
        "binomial SD", "ICC of one", "ICC of the mean (seeds)", "best after one epoch",
    ]  # fmt: skip
    return markdown(head, lines)


def cells_markdown(evidence: Evidence) -> str:
    """Return the paper's 27 experiments at a glance; those without a table are "not recorded".

    Tables of other networks on which they were replayed follow.
    """
    cells = evidence.cells
    paper = [f"{data}-{one}" for data in PAPER_GRID.datasets for one in PAPER_GRID.networks]
    recorded = list(dict.fromkeys(cells["table"])) if len(cells) else []
    lines = []
    for table in dict.fromkeys([*paper, *recorded]):
        line = [table_label(table)]
        for sampler in PAPER_GRID.samplers:
            own = cells
            if len(cells):
                own = cells[(cells["table"] == table) & (cells["sampler"] == sampler)]
            line.append(_cell(own) if len(own) else "not recorded")
        lines.append(line)
    return markdown(["less time; points lost", *PAPER_GRID.samplers], lines)


def _cell(own: pd.DataFrame) -> str:
    saved = 100 * own["saved_verified"].mean()
    low, high = np.percentile(own["lost_verified"], [5, 95])
    alone = 100 * own["saved"].mean()
    lost = between(own["lost_verified"].mean(), low, high)
    return f"{alone:.0f} %, verified {saved:.0f} %; {lost}"


def agreement_markdown(evidence: Evidence) -> str:
    """Return how well each view ranks, and the ceiling."""
    frame = evidence.agreement
    if frame.empty:
        return "No table has three weight seeds of N_B yet."
    wide = frame.set_index(["table", "view", "measure"]).sort_index()
    lines = []
    for table, view in frame[["table", "view"]].drop_duplicates().itertuples(index=False):
        own = wide.loc[(table, view)]
        rho, half, lost = (own.loc[name] for name in ("rho", "rho_half", "regret3"))
        cost = "" if pd.isna(rho["cost"]) else f"{rho['cost']:.0%}"
        lines.append(
            [
                table_label(table),
                label(view),
                cost,
                between(rho["estimate"], rho["low"], rho["high"], ".2f"),
                f"{rho['ceiling']:.2f}",
                between(half["estimate"], half["low"], half["high"], ".2f"),
                f"{half['ceiling']:.2f}",
                between(half["difference"], half["difference_low"], half["difference_high"], ".2f"),
                between(lost["estimate"], lost["low"], lost["high"]),
            ]
        )
    head = [
        "table", "seen through", "time", "rho", "ceiling", "rho, better half", "ceiling",
        "less the ceiling", "points lost, best 3 tried",
    ]  # fmt: skip
    return markdown(head, lines)


def shift_markdown(evidence: Evidence) -> str:
    """Return where each view's best learning rate lies."""
    lines = [
        [
            table_label(line["table"]),
            label(line["view"]),
            f"{2 ** line['best']:.3f}",
            between(line["shift"], line["low"], line["high"], "+.1f"),
            f"{line['lost']:.1f}",
        ]
        for line in evidence.shift.to_dict("records")
    ]
    head = ["table", "seen through", "best learning rate", "octaves above N_B's", "points lost"]
    return markdown(head, lines)


def transfer_markdown(evidence: Evidence) -> str:
    """Return how the best learning rate goes with width."""
    if evidence.transfer.empty:
        return "No table has a stand-in of plain width yet."
    lines = [
        [
            table_label(line["table"]),
            f"{line['widths']:.0f}",
            between(line["exponent"], line["low"], line["high"], "+.1f"),
        ]
        for line in evidence.transfer.to_dict("records")
    ]
    return markdown(["table", "widths", "exponent a in learning rate ~ width^a"], lines)


def recorded_markdown(evidence: Evidence) -> str:
    """Return what is recorded: regime, trainings, core-hours, truth."""
    lines = []
    for name, table in evidence.tables.items():
        regime, rows = table.regime, pd.read_csv(evidence.folder / f"{name}.csv", comment="#")
        seeds = np.isfinite(table.truth).sum(1)
        several = seeds[seeds > 3]
        lines.append(
            [
                table_label(name),
                f"{regime.samples:,} pictures of {regime.side} pixels, {regime.epochs} epochs",
                f"{len(regime.configurations)}",
                f"{len(rows):,}",
                f"{rows['cpu_seconds'].sum() / 3600:.1f}",
                f"{len(several)} x {several.min()}" if len(several) else "-",
            ]
        )
    head = ["table", "a training of N_B", "configurations", "trainings", "core-hours", "truth"]
    return markdown(head, lines)


def live_markdown(evidence: Evidence) -> str:
    """Return how far live studies and their replays agree."""
    frame = evidence.live
    if frame.empty:
        return "No live study yet: `benchmarks/live.py` trains one."
    lines = []
    for (table, stand_in, sampler), own in frame.groupby(["table", "stand_in", "sampler"]):
        same = own["lr_live"] == own["lr_replay"]
        same &= (own["weight_decay_live"] == own["weight_decay_replay"]) | own[
            "weight_decay_live"
        ].isna()
        apart = 100 * (own["accuracy_live"] - own["accuracy_replay"])[same]
        lines.append(
            [
                table_label(str(table)),
                f"{sampler} on {label(str(stand_in))}",
                f"{same.sum()} of {len(own)}",
                f"{shown(apart.mean(), '+.1f')} ({shown(apart.std(), '.1f')})",
            ]
        )
    head = ["table", "study", "same configurations", "live less replay, points (SD)"]
    return markdown(head, lines)


def race_markdown(evidence: Evidence, budgets: Sequence[float] = (2.0, 4.5, 9.0, 18.0)) -> str:
    """Return the regret of each way at some budgets, and what it takes to be good enough."""
    raced = evidence.raced
    if raced.empty:
        return NOT_REPLAYED
    good = evidence.race_summary
    soon = {
        (f"{one['dataset']}-{one['network']}", one["way"]): between(
            one["cost_to_half_point"],
            one["cost_to_half_point_low"],
            one["cost_to_half_point_high"],
            ".3g",
        )
        for one in good.to_dict("records")
    }
    lines = []
    for (table, way), own in raced.groupby(["table", "way"], sort=False):
        by = own.set_index("budget")
        line = [table_label(str(table)), str(way), soon[str(table), str(way)]]
        for budget in budgets:
            here = by.reindex([budget]).iloc[0]
            line.append(between(here["regret"], here["low"], here["high"]))
        lines.append(line)
    head = ["table", "way", "trainings of N_B to half a point"]
    head += [f"lost after {budget:g}" for budget in budgets]
    return markdown(head, lines)


def sooner_markdown(evidence: Evidence) -> str:
    """Return how much sooner ``tune``'s default is good enough than its best rival."""
    frame = evidence.sooner
    if frame.empty:
        return NOT_REPLAYED
    lines = [
        [
            table_label(line["table"]) if line["table"] else "geometric mean",
            line["rival"],
            between(line["ratio"], line["low"], line["high"]),
            outcome(line["low"], line["high"], TWICE),
        ]
        for line in frame.to_dict("records")
    ]
    return markdown(["table", "best rival", "times sooner", f"more than {TWICE:g} times"], lines)


def certified_markdown(evidence: Evidence) -> str:
    """Return what searches that asked for a certificate came to."""
    frame = evidence.certified
    if frame.empty:
        return NOT_REPLAYED
    lines = [
        [
            table_label(line["table"]),
            label(line["stand_in"]),
            line["verdict"],
            f"{line['share']:.0%} of {line['studies'] / line['share']:.0f}",
            f"{line['cost']:.1f}",
            between(line["lost"], line["low"], line["high"]),
        ]
        for line in frame.to_dict("records")
    ]
    head = ["table", "stand-in", "verdict", "searches", "trainings of N_B"]
    return markdown([*head, "points lost against a whole search on N_B"], lines)


def switches_markdown(evidence: Evidence) -> str:
    """Return what each defect of the released code does."""
    frame = evidence.switches
    if frame.empty:
        return NOT_REPLAYED
    lines = [
        [
            table_label(line["table"]),
            line["switch"],
            *(f"{line[key]:.1f} ± {line[f'{key}_se']:.1f}" for key in
              ("reported", "true", "optimism", "saved")),
        ]
        for line in frame.to_dict("records")
    ]  # fmt: skip
    head = ["table", "switch", "reported, %", "true, %", "optimism, points", "time saved, %"]
    return markdown(head, lines)


def costs_markdown(evidence: Evidence) -> str:
    """Return what an epoch costs, and the saving that follows for some numbers of trials."""
    if evidence.epoch_costs.empty:
        return NOT_TIMED
    lines = [
        [
            table_label(line["table"]),
            label(line["entrant"]),
            f"{line['macs']:.2f}",
            between(line["time"], line["low"], line["high"], ".2f"),
            f"{line['trial']:.2f}",
            *(
                f"{100 * saving(trials, VERIFIED, line['trial'], build=line['build']):.0f} %"
                for trials in TRIALS
            ),
        ]
        for line in evidence.epoch_costs.to_dict("records")
        if line["entrant"] != "base"
    ]
    head = ["table", "stand-in", "MACs of an epoch", "time of an epoch", "time of a trial"]
    return markdown([*head, *(f"saved, T = {trials}, k = {VERIFIED}" for trials in TRIALS)], lines)
