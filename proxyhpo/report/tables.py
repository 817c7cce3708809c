"""Tables and sentences of the pages: evidence -> Markdown. Nothing is typed in by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from proxyhpo.analysis.claims import POOLED, QUESTIONS, TRIALS, VERIFIED, headline
from proxyhpo.analysis.cost import break_even
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.config import PROFILES
from proxyhpo.report.style import DATASETS, NETWORKS, label, table_label

PAPER_GRID = PROFILES["paper"]


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
    lines = []
    for line in headline(evidence.claims).to_dict("records"):
        scale = f"{line['n']} {line['of']}"
        if line["table"] != POOLED:
            scale = f"{table_label(line['table'])}; {scale}"
        case = (
            line["case"].replace("snip@0.25", "snip 25 %").replace("uniform@0.25", "uniform 25 %")
        )
        lines.append(
            [
                QUESTIONS[line["claim"]],
                f"**{line['outcome']}**",
                _meaning(line["claim"], _value(line)),
                f"{case}; {scale}",
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
    frame = evidence.claims
    if evidence.epoch_costs.empty:
        return NOT_TIMED
    costs = evidence.epoch_costs.set_index(["table", "entrant"])
    names = [name for name in ("uniform@0.25", "snip@0.25") if name in costs.index.levels[1]]
    share = costs.xs(names[0], level="entrant")["trial"]
    least = [math.ceil(break_even(VERIFIED, value)) for value in share]
    quality = set(frame[(frame["claim"] == "quality") & (frame["table"] != POOLED)]["outcome"])
    better = frame[(frame["claim"] == "better") & (frame["table"] != POOLED)]
    won = int((better["outcome"] == "yes").sum())
    lines = [
        f"- A pruned network pays off in time from {min(least)} to {max(least)} trials on, by "
        f"network, if {VERIFIED} of its best are verified; short searches belong on N_B itself.",
        "- Always verify: a stand-in's accuracy isn't N_B's, and its best learning rate moves.",
        f"- Pruning by a criterion is shown to be better than a cheaper rival in {won} of "
        f"{len(better)} comparisons; fewer epochs and plain width are simpler.",
    ]
    if quality == {"undecided"}:
        lines[1] += " Whether half a point of accuracy is lost is undecided on every table."
    return "\n".join(lines)


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
        ]
        for line in frame.to_dict("records")
    ]
    head = ["claim", "table", "case", "estimate [interval]", "unit", "holds if", "n", "outcome"]
    return markdown(head, lines)


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
    """Return the paper's 27 experiments at a glance; those without a table are "not recorded"."""
    cells = evidence.cells
    lines = []
    for dataset in PAPER_GRID.datasets:
        for network in PAPER_GRID.networks:
            line = [f"{DATASETS[dataset]}, {NETWORKS[network]}"]
            for sampler in PAPER_GRID.samplers:
                own = cells
                if len(cells):
                    table = f"{dataset}-{network}"
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
            *(f"{100 * (1 - line['trial'] - VERIFIED / trials):.0f} %" for trials in TRIALS),
        ]
        for line in evidence.epoch_costs.to_dict("records")
        if line["entrant"] != "base"
    ]
    head = ["table", "stand-in", "MACs of an epoch", "time of an epoch", "time of a trial"]
    return markdown([*head, *(f"saved, T = {trials}, k = {VERIFIED}" for trials in TRIALS)], lines)
