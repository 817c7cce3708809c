"""Tables of the pages: evidence -> Markdown. Nothing is typed in by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from proxyhpo.analysis.claims import LEAST, POOLED, QUESTIONS, TRIALS, VERIFIED, outcome
from proxyhpo.analysis.cost import saving
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.analysis.quality import HALF_POINT
from proxyhpo.analysis.ranking import gate, shift
from proxyhpo.config import PROFILES
from proxyhpo.report.markdown import Columns, Line, between, markdown, measured, shown
from proxyhpo.report.style import (
    case_label,
    label,
    sampler_label,
    switch_label,
    table_label,
    way_label,
)

PAPER_GRID = PROFILES["paper"]
TWICE = 2.0
"""How many times sooner the way of ``tune``'s method should be good enough: set beforehand."""
NOT_TIMED = "No step costs yet: `benchmarks/steps.py` measures them."
NOT_REPLAYED = "Not replayed yet: `./run_all.sh replay`."


def number(key: str, form: str, scale: float = 1) -> Callable[[Line], str]:
    """Return a column of ``key``, times ``scale``."""
    return lambda line: shown(scale * line[key], form)


def _interval(key: str, form: str = ".1f", ends: str = "") -> Callable[[Line], str]:
    """Return a column of ``key`` between ``{ends}low`` and ``{ends}high``."""
    return lambda line: between(line[key], line[f"{ends}low"], line[f"{ends}high"], form)


def _name(key: str = "table", words: Callable[[str], str] = table_label) -> Callable[[Line], str]:
    return lambda line: words(line[key])


def _more(line: Line) -> str:
    """Return how many times as much evidence would decide: two digits, rounded up, never "1 x"."""
    times = line["more"]
    if not times < 100:
        return "" if math.isnan(times) else "over 100 x"
    return f"{max(1.1, math.ceil(10 * times) / 10 if times < 10 else math.ceil(times)):g} x"


CLAIMS: Columns = {
    "claim": lambda line: line["claim"],
    "table": lambda line: POOLED if line["table"] == POOLED else table_label(line["table"]),
    "case": _name("case", case_label),
    "estimate [interval]": lambda line: measured(line, unit=False),
    "unit": lambda line: line["unit"],
    "holds if": lambda line: f"{'above' if line['above'] else 'below'} {line['margin']:g}",
    "n": lambda line: f"{line['n']} {line['of']}",
    "outcome": lambda line: line["outcome"],
    "would take": _more,
}


PAPER_TABLES = tuple(map("-".join, product(PAPER_GRID.datasets, PAPER_GRID.networks)))
"""The names of the nine tables of the paper's data sets and networks, recorded or not."""


def _cells(evidence: Evidence) -> Iterator[Line]:
    """Yield the paper's nine tables, then the others on which its experiments were replayed."""
    cells = evidence.cells
    known = dict(list(cells.groupby(["table", "sampler"]))) if len(cells) else {}
    for table in dict.fromkeys([*PAPER_TABLES, *(name for name, _ in known)]):
        none = "recorded in part" if table in evidence.tables else "not recorded"
        own = {
            sampler: _cell(known[table, sampler]) if (table, sampler) in known else none
            for sampler in PAPER_GRID.samplers
        }
        yield {"less time, points lost": table_label(table), **own}


def _cell(own: pd.DataFrame) -> str:
    parts, recorded = [], own["draw"] == 0
    for how, end in {"trusted": "", "verified": "_verified"}.items():
        redrawn, lost = own.loc[~recorded, f"lost{end}"], own.loc[recorded, f"lost{end}"].mean()
        points = between(lost, *(lost - redrawn.mean() + redrawn.quantile([0.05, 0.95])))
        parts.append(f"{how}: {100 * own.loc[recorded, f'saved{end}'].mean():.0f} %, {points}")
    return "; ".join(parts)


def _agreement(evidence: Evidence) -> Iterator[Line]:
    correlation, points = _interval("estimate", ".2f"), _interval("estimate")
    apart = _interval("difference", ".2f", "difference_")
    for (table, view), own in evidence.agreement.groupby(["table", "view"], sort=False):
        measures = own.set_index("measure").to_dict("index")
        rho, half, regret = (measures[name] for name in ("rho", "rho_half", "regret3"))
        yield {
            "table": table_label(table),
            "seen through": label(view),
            "time": "" if math.isnan(rho["cost"]) else f"{rho['cost']:.0%}",
            "rho": correlation(rho),
            "ceiling": shown(rho["ceiling"], ".2f"),
            "rho, better half": correlation(half),
            "its ceiling": shown(half["ceiling"], ".2f"),
            "less the ceiling": apart(half),
            "points lost, best 3 tried": points(regret),
        }


def _recorded(evidence: Evidence) -> Iterator[Line]:
    for name, table in evidence.tables.items():
        rows = evidence.rows(name)
        tested = table.truth[np.isfinite(table.truth).sum(1) > 3]
        truth, error = "-", "-"
        if len(tested):
            seeds = np.isfinite(tested).sum(1).min()
            truth = f"{len(tested)} x {seeds}"
            variance = np.nanvar(tested, axis=1, ddof=1).mean()
            error = f"{100 * np.sqrt(variance / seeds):.2f}"
        stand_ins = {table.curves(one).final.shape[1] for one in table.entrants if one != "base"}
        yield {
            "table": table_label(name),
            "a training of N_B": table.regime.training,
            "configurations": len(table.regime.configurations),
            "trainings": f"{len(rows):,}",
            "recorded on": " / ".join(rows["device"].unique()),
            "core-hours": f"{rows['cpu_seconds'].sum() / 3600:.1f}",
            "seeds of a stand-in": " or ".join(map(str, sorted(stand_ins))),
            "truth": truth,
            "its standard error, points": error,
        }


def _scaled(evidence: Evidence) -> Iterator[Line]:
    rates = evidence.shift[evidence.shift["view"] == "base"].set_index("table")["best"]
    for name, table in evidence.scaled.items():
        rows = evidence.rows(name)
        small = f"{table.regime.dataset}-{table.regime.network}"
        yield {
            "table": table_label(small),
            "a training of N_B": table.regime.training,
            "recorded on": " / ".join(rows["device"].unique()),
            "trainings": f"{len(rows):,}",
            "best of N_B": f"{gate(table)['best']:.1%}",
            "at learning rate": f"{2 ** shift(table, [])['best'].iloc[0]:.3f}",
            "in the table above, at": shown(2 ** rates.get(small, math.nan), ".3f"),
        }


def step_ratios(steps: pd.DataFrame) -> pd.DataFrame:
    """Return each entrant's seconds a step by N_B's: a line a round, a column an entrant."""
    seconds = steps.pivot_table(index="repeat", columns="entrant", values="step_seconds")
    return seconds.div(seconds["base"], axis=0)


def _scaled_steps(evidence: Evidence) -> Iterator[Line]:
    for table, own in evidence.scaled_steps.groupby("table", sort=False):
        base = own.loc[own["entrant"] == "base", "step_seconds"].median()
        every = step_ratios(own)
        for entrant in own["entrant"].unique()[1:]:
            ratios = every[entrant]
            spread = between(ratios.median(), ratios.min(), ratios.max(), ".2f")
            yield {
                "table": table_label(str(table)),
                "timed on": own["device"].iloc[0],
                "a step": own["step"].iloc[0],
                "N_B, ms": f"{1000 * base:.1f}",
                "stand-in": label(entrant),
                "its time by N_B's [least, most]": spread,
            }


def live_studies(evidence: Evidence) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """Yield live studies by table, stand-in and sampler.

    ``same`` says which trials have the configurations of their replay.
    """
    if evidence.live.empty:
        return
    for study, own in evidence.live.groupby(["table", "stand_in", "sampler"]):
        same = own["lr_live"] == own["lr_replay"]
        decays = own["weight_decay_live"], own["weight_decay_replay"]
        same &= decays[0].isna() | decays[1].isna() | (decays[0] == decays[1])
        yield study, own.assign(same=same)


def _live(evidence: Evidence) -> Iterator[Line]:
    for (table, stand_in, sampler), own in live_studies(evidence):
        rows = evidence.rows(table)
        recorded = rows.loc[rows["proxy"].replace("", "base") == stand_in, "device"]
        same = own["same"]
        apart = 100 * (own["accuracy_live"] - own["accuracy_replay"])[same]
        yield {
            "table": table_label(table),
            "study": f"{sampler} on {label(stand_in)}",
            "trained on": " / ".join(own["device"].unique()),
            "recorded on": " / ".join(recorded.unique()),
            "same configurations": f"{same.sum()} of {len(own)}",
            "live less replay, points (SD)": (
                f"{shown(apart.mean(), '+.1f')} ({shown(apart.std(), '.1f')})"
            ),
        }


BUDGETS = (2.0, 4.5, 9.0, 18.0)
"""Trainings of N_B after which a race's table says what is lost."""


def _race(evidence: Evidence) -> Iterator[Line]:
    summary = evidence.race_summary
    names = summary["dataset"] + "-" + summary["network"]
    soon = summary.set_index([names, "way"]).to_dict("index")
    first = _interval("cost_to_half_point", ".3g", "cost_to_half_point_")
    for (table, way), own in evidence.raced.groupby(["table", "way"], sort=False):
        lost = own.set_index("budget")[["regret", "low", "high"]].reindex(BUDGETS)
        yield {
            "table": table_label(table),
            "way": way_label(str(way)),
            "trainings of N_B to half a point [least, most]": first(soon[table, way]),
            **{f"lost after {budget:g}": between(*lost.loc[budget]) for budget in BUDGETS},
        }


def _saved(trials: int) -> Callable[[Line], str]:
    return lambda line: (
        f"{100 * saving(trials, VERIFIED, line['trial'], build=line['build']):.0f} %"
    )


def _estimate(key: str) -> Callable[[Line], str]:
    return lambda line: f"{line[key]:.1f} ± {line[f'{key}_se']:.1f}"


@dataclass(frozen=True)
class Table:
    """A table of the pages.

    Attributes:
        columns: what it shows of each line; all that there is by default.
        needs: an attribute of the evidence, whose lines are the default.
        empty: what stands in its place while ``needs`` isn't recorded.
        lines: makes its lines from the evidence.
    """

    columns: Columns | None = None
    needs: str = "tables"
    empty: str = ""
    lines: Callable[[Evidence], pd.DataFrame | Iterable[Line]] | None = None

    def __call__(self, evidence: Evidence) -> str:
        """Return the table in Markdown."""
        needed = getattr(evidence, self.needs)
        if not len(needed):
            return self.empty
        return markdown(self.lines(evidence) if self.lines else needed, self.columns)


TABLES: dict[str, Table] = {
    "claims": Table(CLAIMS, "claims", NOT_TIMED),
    "by_network": Table(
        {
            "question": lambda line: QUESTIONS[line["claim"]],
            **{head: CLAIMS[head] for head in list(CLAIMS)[2:]},
        },
        "headlines_by_network",
        f"Not enough networks yet: {LEAST} are needed.",
    ),
    "baselines": Table(
        {
            "tuned on": lambda line: f"{label(line['case'])}, {VERIFIED} verified",
            "against": lambda line: f"{sampler_label(line['baseline'])} on N_B",
            "tables": number("tables", ".0f"),
            "points lost": _interval("points"),
            f"less than {HALF_POINT:g} points": lambda line: line["outcome"],
        },
        "baselines",
        NOT_REPLAYED,
    ),
    "gates": Table(
        {
            "table": _name(),
            "10 points above chance": number("above_chance", ".0%"),
            "best of N_B": number("best", ".1%"),
            "within 1 point": number("plateau", ".0f"),
            "SD of seeds": number("seed_sd", ".1f", 100),
            "binomial SD": number("binomial_sd", ".1f", 100),
            "ICC of one": number("icc", ".2f"),
            "ICC of the mean (seeds)": lambda line: (
                f"{shown(line['icc_mean'], '.2f')} ({line['seeds']:.0f})"
            ),
            "best after one epoch": number("first_epoch_best", ".1%"),
        },
        lines=lambda evidence: evidence.gates.rename_axis("table").reset_index(),
    ),
    "cells": Table(lines=_cells),
    "agreement": Table(
        needs="agreement", empty="No table has three weight seeds of N_B yet.", lines=_agreement
    ),
    "shift": Table(
        {
            "table": _name(),
            "seen through": _name("view", label),
            "best learning rate": lambda line: f"{2 ** line['best']:.3f}",
            "octaves above N_B's": _interval("shift", "+.1f"),
            "points lost": number("lost", ".1f"),
        },
        "shift",
    ),
    "plans": Table(
        {
            "table": _name(),
            "pruned network": _name("view", label),
            "configurations": number("configurations", ".0f"),
            "SD between plans, points": number("plan_sd", ".1f"),
            "between weight seeds": number("seed_sd", ".1f"),
            "variance by that of seeds": _interval("ratio"),
        },
        "plans",
        "No table has trainings with another plan yet.",
    ),
    "corrections": Table(
        {
            "table": lambda line: table_label(line["table"]) if line["table"] else POOLED,
            "seen through": _name("view", label),
            "octaves above N_B's": number("shift", "+.1f"),
            "on the network's other tables": number("expected", "+.1f"),
            "points lost": number("lost", ".1f"),
            "corrected": number("lost_corrected", ".1f"),
            "gained": _interval("gain"),
            f"more than {HALF_POINT:g} points": lambda line: (
                "" if line["table"] else outcome(line["low"], line["high"], HALF_POINT)
            ),
        },
        "corrections",
        "No network has two tables yet.",
    ),
    "transfer": Table(
        {
            "table": _name(),
            "widths": number("widths", ".0f"),
            "exponent a in learning rate ~ width^a": _interval("exponent", "+.1f"),
        },
        "transfer",
        "No table has a stand-in of plain width yet.",
    ),
    "recorded": Table(lines=_recorded),
    "scaled": Table(
        needs="scaled",
        empty="Nothing yet: `./run_all.sh record --profile gpu` lists what there could be.",
        lines=_scaled,
    ),
    "scaled_steps": Table(
        needs="scaled_steps",
        empty="Not timed yet: `benchmarks/steps.py --scale gpu`.",
        lines=_scaled_steps,
    ),
    "live": Table(
        needs="live", empty="No live study yet: `benchmarks/live.py` trains one.", lines=_live
    ),
    "race": Table(needs="raced", empty=NOT_REPLAYED, lines=_race),
    "overall": Table(
        {
            "way": _name("way", way_label),
            "tables": lambda line: line["tables"],
            "time to half a point, % of a full search": lambda line: between(
                100 * line["time"], 100 * line["time_low"], 100 * line["time_high"], ".0f"
            ),
            "lost after a quarter": _interval("regret_quarter", ends="regret_quarter_"),
            "lost after half": _interval("regret_half", ends="regret_half_"),
            "lost after all of it": _interval("regret_full", ends="regret_full_"),
        },
        "overall",
        NOT_REPLAYED,
    ),
    "sooner": Table(
        {
            "table": lambda line: (
                table_label(line["table"])
                if line["table"]
                else "geometric mean of those not designed on"
            ),
            "best rival": _name("rival", way_label),
            "times sooner": _interval("ratio"),
            f"more than {TWICE:g} times": lambda line: outcome(line["low"], line["high"], TWICE),
        },
        "sooner",
        NOT_REPLAYED,
    ),
    "certified": Table(
        {
            "table": _name(),
            "stand-in": _name("stand_in", label),
            "verdict": lambda line: line["verdict"],
            "searches": lambda line: (
                f"{line['share']:.0%} of {line['studies'] / line['share']:.0f}"
            ),
            "trainings of N_B": number("cost", ".1f"),
            "points lost against a whole search on N_B [of the mean]": _interval("lost"),
        },
        "certified",
        NOT_REPLAYED,
    ),
    "switches": Table(
        {
            "table": _name(),
            "switch": _name("switch", switch_label),
            "reported, %": _estimate("reported"),
            "true, %": _estimate("true"),
            "optimism, points": _estimate("optimism"),
            "time saved, %": _estimate("saved"),
        },
        "switches",
        NOT_REPLAYED,
    ),
    "costs": Table(
        {
            "table": _name(),
            "stand-in": _name("entrant", label),
            "MACs of an epoch": number("macs", ".2f"),
            "time of an epoch": _interval("time", ".2f"),
            "time of a trial": number("trial", ".2f"),
            **{f"saved, T = {trials}, k = {VERIFIED}": _saved(trials) for trials in TRIALS},
        },
        "epoch_costs",
        NOT_TIMED,
        lambda evidence: evidence.epoch_costs.query("entrant != 'base'"),
    ),
}
"""The tables of the pages, by the names of their parts."""
