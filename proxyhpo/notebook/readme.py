"""The generated parts of the README, and the contact sheet of the figures.

Each stands between a pair of comments; everything else in the README is written by hand. No number
of a result is typed in: all of them come from the committed rows.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd

from proxyhpo.analysis.cost import CLOCKS, EXPERIMENT
from proxyhpo.analysis.quality import RIVALS
from proxyhpo.config import PROFILES, InputError, Profile, grid
from proxyhpo.notebook import grid as notebooks
from proxyhpo.progress import duration
from proxyhpo.report.figures import FIGURES
from proxyhpo.report.tables import (
    claims_markdown,
    equal_time_markdown,
    judge,
    rivals_markdown,
    summary,
    trust_markdown,
    trust_words,
)
from proxyhpo.report.wording import span
from proxyhpo.rows import load_results, write_whole

ROOT = notebooks.FOLDER.parent
EVIDENCE = "laptop"
"""The profile of the paper's grid in the README."""
TRUST = "trust"
"""The profile of many stand-ins, rivals and seeds on one network, shown beside it."""

_PART = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def render(text: str) -> str:
    """Return the README's text with its generated parts made anew.

    Raises:
        InputError: a part that nothing generates.
    """
    rows = recorded()
    judged = cache(lambda: judge(rows))
    parts = {
        "figure": lambda: _figure("speedup"),
        "claims": lambda: claims_markdown(judged().claims),
        "results": lambda: f"{results_table(rows)}\n\n{recorded_words(rows)}",
        "verdict": lambda: judged().sentences,
        "ranking": lambda: _figure("rank_correlation"),
        "rivals": lambda: rivals_part(rows),
        "trust": lambda: trust_part(rows),
        "notebooks": notebooks_table,
    }

    def part(match: re.Match) -> str:
        if match[2] not in parts:
            raise InputError(f"README part {match[2]!r}: choose from {', '.join(parts)}")
        return f"{match[1]}{parts[match[2]]().strip()}\n{match[4]}"

    return _PART.sub(part, text)


def recorded() -> pd.DataFrame:
    """Return the committed rows that the README tells of."""
    folders = [ROOT / "results" / profile for profile in (EVIDENCE, TRUST)]
    return pd.concat([load_results(folder) for folder in folders], ignore_index=True)


def generate() -> list[Path]:
    """Write the README's generated parts and the contact sheet; return the files that changed."""
    path, sheet = ROOT / "README.md", ROOT / "figures" / "README.md"
    wanted = {path: render(path.read_text(encoding="utf-8")), sheet: contact_sheet(sheet.parent)}
    changed = []
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text.encode())
            changed.append(path)
    return changed


def results_table(rows: pd.DataFrame) -> str:
    """Return the results as Markdown: the paper's 27 experiments at a glance, then all that ran."""
    whole = summary(rows, grid(PROFILES[EVIDENCE]))
    run = whole[whole["status"] != "not run"].to_dict("records")
    table = whole[whole["profile"] == EVIDENCE]
    cells = {
        (one["dataset"], one["network"], one["sampler"]): (
            f"{one['search']:.0f} %, verified {one['reduction']:.0f} %"
        )
        for one in run
        if one["profile"] == EVIDENCE
    }
    samplers = PROFILES[EVIDENCE].samplers
    clocks = " or ".join(CLOCKS[name] for name in sorted(set(whole["clock"].dropna())))
    glance = [[f"less {clocks} time for HPO", *samplers]]
    pairs = table[["dataset", "network"]].drop_duplicates()
    for dataset, network in pairs.itertuples(index=False):
        found = [cells.get((dataset, network, sampler), "not run") for sampler in samplers]
        glance.append([f"{dataset}, {network}", *found])
    detail = [
        [
            *("profile", "experiment", "seeds"),
            *(f"HPO on N_B, {clocks}", "on N_P", f"less {clocks} time"),
            *("verified [95 %]", "fewer MACs"),
            *("rho", "better half", "N_B reseeded", "test accuracy: N_B's choice"),
            *("N_P's", "N_P's, verified"),
        ]
    ]
    for one in run:
        name = f"{one['dataset']}, {one['network']}, {one['sampler']}"
        interval = f"[{one['reduction_low']:.0f}, {one['reduction_high']:.0f}]"
        detail.append(
            [
                one["profile"],
                name,
                f"{one['seeds']:.0f}",
                duration(one["base_seconds"]),
                duration(one["search_seconds"]),
                f"{one['search']:.0f} %",
                f"{one['reduction']:.0f} % {interval}",
                f"{one['search_macs']:.0f} %",
                *(_number(one[key], ".2f") for key in ("rho", "rho_half", "ceiling")),
                *(_number(one[f"test_{key}"], ".1%") for key in ("base", "proxy", "verified")),
            ]
        )
    return "\n\n".join([_markdown(glance), *([_markdown(detail)] if run else [])])


def recorded_words(rows: pd.DataFrame) -> str:
    """Return what the recorded experiments are, profile by profile, as a Markdown list."""
    lines = ["Recorded so far:", ""]
    for name, mine in rows.groupby("profile"):
        profile, tuned = PROFILES[name], mine[mine["purpose"] == "final"]
        ranked = mine[mine["purpose"] == "ranking"]
        whole = len(grid(profile))
        count = len(tuned[EXPERIMENT].drop_duplicates())
        seeds = ", ".join(map(str, sorted(tuned["seed"].unique())))
        told = f"{count} of {whole} experiments" + (f", seeds {seeds}" if seeds else "")
        if len(ranked):
            pairs = ranked[["dataset", "network"]].drop_duplicates().itertuples(index=False)
            each = ranked.groupby(["dataset", "network"])["config_id"].nunique()
            told += f"; ranking studies of {span(each)} configurations on "
            told += ", ".join(f"{network} ({dataset})" for dataset, network in pairs)
        lines.append(f"- profile `{name}`: {told}. {_scale(profile)}")
    return "\n".join(lines)


def _scale(profile: Profile) -> str:
    """Return in words what a trial of ``profile`` is trained on, and for how long."""
    classes = f"the first {profile.classes} classes, " if profile.classes else ""
    pictures = f"{profile.subset} pictures a class" if profile.subset else "all pictures"
    side = f" reduced to {profile.resolution} pixels" if profile.resolution else ""
    return (
        f"Its scale: {classes}{pictures}{side}, {100 * profile.val:.0f} % of them to validate on; "
        f"{profile.trials} trials a study, {profile.epochs} epochs a full trial."
    )


def rivals_part(rows: pd.DataFrame) -> str:
    """Return each way of HPO beside its rivals, and at equal time; nothing without rivals."""
    parts = []
    for profile, mine in rows.groupby("profile"):
        if mine["sampler"].isin(RIVALS).any():
            parts += ["### Against ways without a proxy", _figure("rivals", profile)]
            parts += [rivals_markdown(mine), _figure("speedup", profile)]
            parts += [_figure("incumbent", profile)]
    if parts:
        parts += ["### At equal time", equal_time_markdown(rows)]
    return "\n\n".join(part.strip() for part in parts)


def trust_part(rows: pd.DataFrame) -> str:
    """Return which stand-in gives the most trust for a second; nothing without such rows."""
    rows = rows[rows["profile"] == TRUST]
    if not (rows["purpose"] == "ranking").any():
        return ""
    parts = ["### Which stand-in gives the most trust for a second?", trust_words(rows)]
    parts += [_figure("trust", TRUST), _figure("shift", TRUST), trust_markdown(rows)]
    return "\n\n".join(part.strip() for part in parts)


def contact_sheet(folder: Path) -> str:
    """Return Markdown that shows every figure in ``folder``, with captions, profile by profile.

    Figures of profile smoke, which are no evidence and not in git, are left out.
    """
    lines = ["# All figures", ""]
    lines += ["Every figure of the recorded rows. Generated: `python -m proxyhpo generate`.", ""]
    for profile in sorted(path.name for path in folder.glob("*") if path.is_dir()):
        drawn = [name for name in FIGURES if (folder / profile / f"{name}.json").exists()]
        if profile == "smoke" or not drawn:
            continue
        lines += [f"## Profile {profile}", ""]
        for name in drawn:
            told = json.loads((folder / profile / f"{name}.json").read_text(encoding="utf-8"))
            lines += [f"### {name}", "", f"![{name}]({profile}/{name}.png)", ""]
            lines += [f"*{told['caption']}*", ""]
            kinds = {"SVG": "svg", "PDF": "pdf", "where it comes from": "json"}
            links = [f"[{words}]({profile}/{name}.{kind})" for words, kind in kinds.items()]
            lines += [", ".join(links), ""]
    return "\n".join(lines)


def _markdown(lines: list[list[str]]) -> str:
    head, *body = lines
    return "\n".join("| " + " | ".join(one) + " |" for one in (head, ["---"] * len(head), *body))


def notebooks_table() -> str:
    """Return the notebooks with their questions and badges as Markdown."""
    lines = ["| notebook | what it asks | |", "|---|---|---|"]
    for path in sorted(notebooks.FOLDER.glob("*.ipynb")):
        title = _title(path)
        lines.append(
            f"| [{path.name}](notebooks/{path.name}) | {title} | {notebooks.badge(path.name)} |"
        )
    count = len(list((notebooks.FOLDER / "grid").glob("*.ipynb")))
    lines.append(
        f"| [grid/](notebooks/grid) | {count} notebooks, one for each data set, network and HPO "
        "method of the paper | each its own |"
    )
    return "\n".join(lines)


def _title(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [c for c in notebook.cells if "title" in c.metadata.get("tags", [])]
    return cell.source.splitlines()[0].removeprefix("# ")


def _figure(name: str, profile: str = EVIDENCE) -> str:
    """Return a committed figure of a profile with its caption as Markdown."""
    folder = ROOT / "figures" / profile
    sidecar = folder / f"{name}.json"
    if not sidecar.exists():
        return "Not drawn yet: no rows are recorded."
    caption = json.loads(sidecar.read_text(encoding="utf-8"))["caption"]
    return f"![{name}](figures/{profile}/{name}.png)\n\n*{caption}*"


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else f"{value:{form}}"
