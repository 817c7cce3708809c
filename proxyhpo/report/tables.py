"""Tables of the pages: evidence -> Markdown. Nothing is typed in by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from proxyhpo.analysis.claims import LEAST, POOLED, QUESTIONS, TRIALS, VERIFIED, outcome
from proxyhpo.analysis.cost import saving
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.analysis.quality import HALF_POINT
from proxyhpo.analysis.ranking import gate, shift
from proxyhpo.config import PROFILES
from proxyhpo.report.style import label, table_label

PAPER_GRID = PROFILES["paper"]
TWICE = 2.0
"""How many times sooner the default should be good enough: set before the first race."""
NOT_TIMED = "No step costs yet: `benchmarks/steps.py` measures them."
NOT_REPLAYED = "Not replayed yet: `./run_all.sh replay`."

Line = dict[str, Any]
Columns = dict[str, Callable[[Line], object]]
"""Columns by their heads: what each shows of a line."""


def markdown(lines: pd.DataFrame | Iterable[Line], columns: Columns) -> str:
    """Return a Markdown table."""
    if isinstance(lines, pd.DataFrame):
        lines = lines.to_dict("records")
    body = [[str(cell(line)) for cell in columns.values()] for line in lines]
    return "\n".join(f"| {' | '.join(one)} |" for one in (columns, ["---"] * len(columns), *body))


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


def measured(line: Line, unit: bool = True) -> str:
    """Return what a claim's line measured, with its interval."""
    form = ".0f" if line["unit"].startswith("%") else ".1f"
    name = line["unit"].replace("% of time", "%") if unit else ""
    return between(line["estimate"], line["low"], line["high"], form, name)


def _number(key: str, form: str, scale: float = 1) -> Callable[[Line], str]:
    return lambda line: shown(scale * line[key], form)


def _interval(key: str, form: str = ".1f", ends: str = "") -> Callable[[Line], str]:
    """Return a column of ``key`` between ``{ends}low`` and ``{ends}high``."""
    return lambda line: between(line[key], line[f"{ends}low"], line[f"{ends}high"], form)


def _name(key: str = "table", words: Callable[[str], str] = table_label) -> Callable[[Line], str]:
    return lambda line: words(line[key])


def _more(line: Line) -> str:
    times = line["more"]
    return "" if math.isnan(times) else f"{times:.0f} x" if times < 100 else "over 100 x"


CLAIMS: Columns = {
    "claim": lambda line: line["claim"],
    "table": lambda line: POOLED if line["table"] == POOLED else table_label(line["table"]),
    "case": lambda line: line["case"],
    "estimate [interval]": lambda line: measured(line, unit=False),
    "unit": lambda line: line["unit"],
    "holds if": lambda line: f"{'above' if line['above'] else 'below'} {line['margin']:g}",
    "n": lambda line: f"{line['n']} {line['of']}",
    "outcome": lambda line: line["outcome"],
    "would take": _more,
}


def _cells(evidence: Evidence) -> Iterator[Line]:
    """Yield the paper's nine tables, then the others on which its experiments were replayed."""
    cells = evidence.cells
    paper = [f"{data}-{one}" for data in PAPER_GRID.datasets for one in PAPER_GRID.networks]
    known = dict(list(cells.groupby(["table", "sampler"]))) if len(cells) else {}
    for table in dict.fromkeys([*paper, *(name for name, _ in known)]):
        none = "recorded in part" if table in evidence.tables else "not recorded"
        own = {sampler: known.get((table, sampler), none) for sampler in PAPER_GRID.samplers}
        yield {"table": table, **own}


def _cell(own: pd.DataFrame | str) -> str:
    if isinstance(own, str):
        return own
    parts = []
    for how, end in {"trusted": "", "verified": "_verified"}.items():
        lost = own[f"lost{end}"]
        points = between(lost.mean(), *np.percentile(lost, [5, 95]))
        parts.append(f"{how}: {100 * own[f'saved{end}'].mean():.0f} %, {points}")
    return "; ".join(parts)


def _agreement(evidence: Evidence) -> Iterator[Line]:
    """Yield a line a view of a table: all measures, ``rho_half`` as ``rho_half_low`` and so on."""
    for (table, view), own in evidence.agreement.groupby(["table", "view"], sort=False):
        line: Line = {"table": table, "view": view, "cost": own["cost"].iloc[0]}
        for one in own.to_dict("records"):
            line |= {f"{one['measure']}_{key}": value for key, value in one.items()}
        yield line


def _recorded(evidence: Evidence) -> Iterator[Line]:
    for name, table in evidence.tables.items():
        rows = pd.read_csv(evidence.folder / f"{name}.csv", comment="#")
        seeds = np.isfinite(table.truth).sum(1)
        several = seeds[seeds > 3]
        regime = table.regime
        yield {
            "table": name,
            "base": regime.training,
            "configurations": len(regime.configurations),
            "trainings": len(rows),
            "device": " / ".join(rows["device"].unique()),
            "hours": rows["cpu_seconds"].sum() / 3600,
            "truth": f"{len(several)} x {several.min()}" if len(several) else "-",
        }


def _scaled(evidence: Evidence) -> Iterator[Line]:
    rates = evidence.shift[evidence.shift["view"] == "base"].set_index("table")["best"]
    for name, table in evidence.scaled.items():
        regime = table.regime
        small = f"{regime.dataset}-{regime.network}"
        rows = pd.read_csv(evidence.folder / f"{name}.csv", comment="#")
        yield {
            "table": small,
            "base": regime.training,
            "device": " / ".join(rows["device"].unique()),
            "trainings": len(rows),
            "best": gate(table)["best"],
            "rate": 2 ** shift(table, [])["best"].iloc[0],
            "small_rate": 2 ** rates.get(small, math.nan),
        }


def _scaled_steps(evidence: Evidence) -> Iterator[Line]:
    for table, own in evidence.scaled_steps.groupby("table", sort=False):
        seconds = own.pivot_table(index="repeat", columns="entrant", values="step_seconds")
        for entrant in own["entrant"].unique()[1:]:
            ratios = seconds[entrant] / seconds["base"]
            yield {
                "table": table,
                "entrant": entrant,
                "device": own["device"].iloc[0],
                "step": own["step"].iloc[0],
                "milliseconds": 1000 * seconds["base"].median(),
                "ratio": ratios.median(),
                "low": ratios.min(),
                "high": ratios.max(),
            }


def _live(evidence: Evidence) -> Iterator[Line]:
    for (table, stand_in, sampler), own in evidence.live.groupby(["table", "stand_in", "sampler"]):
        rows = pd.read_csv(evidence.folder / f"{table}.csv", comment="#")
        recorded = rows.loc[rows["proxy"].fillna("base") == stand_in, "device"]
        same = own["lr_live"] == own["lr_replay"]
        decays = own["weight_decay_live"], own["weight_decay_replay"]
        same &= decays[0].isna() | decays[1].isna() | (decays[0] == decays[1])
        apart = 100 * (own["accuracy_live"] - own["accuracy_replay"])[same]
        yield {
            "table": table,
            "study": f"{sampler} on {label(stand_in)}",
            "processors": " / ".join(own["device"].unique()),
            "recorded": " / ".join(recorded.unique()),
            "same": f"{same.sum()} of {len(own)}",
            "apart": f"{shown(apart.mean(), '+.1f')} ({shown(apart.std(), '.1f')})",
        }


BUDGETS = (2.0, 4.5, 9.0, 18.0)
"""Trainings of N_B after which a race's table says what is lost."""


def _race(evidence: Evidence) -> Iterator[Line]:
    soon = {
        (f"{one['dataset']}-{one['network']}", one["way"]): one
        for one in evidence.race_summary.to_dict("records")
    }
    for (table, way), own in evidence.raced.groupby(["table", "way"], sort=False):
        lost = own.set_index("budget")[["regret", "low", "high"]].reindex(BUDGETS)
        by_budget = zip(map(str, BUDGETS), lost.itertuples(index=False), strict=True)
        yield {**soon[table, way], "table": table, **dict(by_budget)}


def _lost(budget: float) -> Callable[[Line], str]:
    return lambda line: between(*line[str(budget)])


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
        lines: makes its lines from the evidence.
        columns: what it shows of each.
        empty: what stands in its place while ``needs`` isn't recorded.
        needs: an attribute of the evidence, of which ``lines`` are the default.
    """

    columns: Columns
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
    "gates": Table(
        {
            "table": _name(),
            "10 points above chance": _number("above_chance", ".0%"),
            "best of N_B": _number("best", ".1%"),
            "within 1 point": _number("plateau", ".0f"),
            "SD of seeds": _number("seed_sd", ".1f", 100),
            "binomial SD": _number("binomial_sd", ".1f", 100),
            "ICC of one": _number("icc", ".2f"),
            "ICC of the mean (seeds)": lambda line: (
                f"{shown(line['icc_mean'], '.2f')} ({line['seeds']:.0f})"
            ),
            "best after one epoch": _number("first_epoch_best", ".1%"),
        },
        lines=lambda evidence: evidence.gates.rename_axis("table").reset_index(),
    ),
    "cells": Table(
        {
            "less time, points lost": _name(),
            **{name: _name(name, _cell) for name in PAPER_GRID.samplers},
        },
        lines=_cells,
    ),
    "agreement": Table(
        {
            "table": _name(),
            "seen through": _name("view", label),
            "time": lambda line: "" if math.isnan(line["cost"]) else f"{line['cost']:.0%}",
            "rho": _interval("rho_estimate", ".2f", "rho_"),
            "ceiling": _number("rho_ceiling", ".2f"),
            "rho, better half": _interval("rho_half_estimate", ".2f", "rho_half_"),
            "its ceiling": _number("rho_half_ceiling", ".2f"),
            "less the ceiling": _interval("rho_half_difference", ".2f", "rho_half_difference_"),
            "points lost, best 3 tried": _interval("regret3_estimate", ends="regret3_"),
        },
        "agreement",
        "No table has three weight seeds of N_B yet.",
        _agreement,
    ),
    "shift": Table(
        {
            "table": _name(),
            "seen through": _name("view", label),
            "best learning rate": lambda line: f"{2 ** line['best']:.3f}",
            "octaves above N_B's": _interval("shift", "+.1f"),
            "points lost": _number("lost", ".1f"),
        },
        "shift",
    ),
    "transfer": Table(
        {
            "table": _name(),
            "widths": _number("widths", ".0f"),
            "exponent a in learning rate ~ width^a": _interval("exponent", "+.1f"),
        },
        "transfer",
        "No table has a stand-in of plain width yet.",
    ),
    "recorded": Table(
        {
            "table": _name(),
            "a training of N_B": lambda line: line["base"],
            "configurations": lambda line: line["configurations"],
            "trainings": _number("trainings", ","),
            "recorded on": lambda line: line["device"],
            "core-hours": _number("hours", ".1f"),
            "truth": lambda line: line["truth"],
        },
        lines=_recorded,
    ),
    "scaled": Table(
        {
            "table": _name(),
            "a training of N_B": lambda line: line["base"],
            "recorded on": lambda line: line["device"],
            "trainings": _number("trainings", ","),
            "best of N_B": _number("best", ".1%"),
            "at learning rate": _number("rate", ".3f"),
            "in the table above, at": _number("small_rate", ".3f"),
        },
        "scaled",
        "Nothing yet: `./run_all.sh record --profile gpu` lists what there could be.",
        _scaled,
    ),
    "scaled_steps": Table(
        {
            "table": _name(),
            "timed on": lambda line: line["device"],
            "a step": lambda line: line["step"],
            "N_B, ms": _number("milliseconds", ".1f"),
            "stand-in": _name("entrant", label),
            "its time by N_B's [least, most]": _interval("ratio", ".2f"),
        },
        "scaled_steps",
        "Not timed yet: `benchmarks/steps.py --scale gpu`.",
        _scaled_steps,
    ),
    "live": Table(
        {
            "table": _name(),
            "study": lambda line: line["study"],
            "trained on": lambda line: line["processors"],
            "recorded on": lambda line: line["recorded"],
            "same configurations": lambda line: line["same"],
            "live less replay, points (SD)": lambda line: line["apart"],
        },
        "live",
        "No live study yet: `benchmarks/live.py` trains one.",
        _live,
    ),
    "race": Table(
        {
            "table": _name(),
            "way": lambda line: line["way"],
            "trainings of N_B to half a point": _interval(
                "cost_to_half_point", ".3g", "cost_to_half_point_"
            ),
            **{f"lost after {budget:g}": _lost(budget) for budget in BUDGETS},
        },
        "raced",
        NOT_REPLAYED,
        _race,
    ),
    "overall": Table(
        {
            "way": lambda line: line["way"],
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
            "best rival": lambda line: line["rival"],
            "times sooner": _interval("ratio"),
            f"more than {TWICE:g} times": lambda line: outcome(line["low"], line["high"], TWICE),
        },
        "sooner",
        NOT_REPLAYED,
    ),
    "behind": Table(
        {
            "table": _name(),
            "time of a full search": lambda line: f"{line['share']:.0%}",
            "best rival": lambda line: line["rival"],
            "points behind": _interval("points"),
            f"more than {HALF_POINT:g} points": lambda line: outcome(
                line["low"], line["high"], HALF_POINT
            ),
        },
        "behind",
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
            "trainings of N_B": _number("cost", ".1f"),
            "points lost against a whole search on N_B": _interval("lost"),
        },
        "certified",
        NOT_REPLAYED,
    ),
    "switches": Table(
        {
            "table": _name(),
            "switch": lambda line: line["switch"],
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
            "MACs of an epoch": _number("macs", ".2f"),
            "time of an epoch": _interval("time", ".2f"),
            "time of a trial": _number("trial", ".2f"),
            **{f"saved, T = {trials}, k = {VERIFIED}": _saved(trials) for trials in TRIALS},
        },
        "epoch_costs",
        NOT_TIMED,
        lambda evidence: evidence.epoch_costs.query("entrant != 'base'"),
    ),
}
"""The tables of the pages, by the names of their parts."""
