"""The generated parts of README.md, RESULTS.md and figures/README.md.

Each stands between a pair of comments; everything else on these pages is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from proxyhpo.analysis.evidence import Evidence
from proxyhpo.config import InputError, write_changed
from proxyhpo.report.answers import advice, answers
from proxyhpo.report.figures import FIGURES, pictures
from proxyhpo.report.findings import behind, held, informative, live_apart, reported
from proxyhpo.report.tables import TABLES

_PART = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

PARTS: dict[str, Callable[[Evidence], str]] = {
    "answers": answers,
    "advice": advice,
    "advice_in_full": partial(advice, full=True),
    "behind": behind,
    "held": held,
    "informative": informative,
    "reported": reported,
    "live_apart": live_apart,
    **TABLES,
}

WORDS = """
N_B is the base network that is tuned; its proxy network N_P is N_B, pruned before training. A
stand-in is whatever is tuned in N_B's place; the percentage in its name is the share that is kept.
"""
"""What opens a page without a text of its own."""


def render(text: str, evidence: Evidence, report: Callable[[str], object] = lambda _: None) -> str:
    """Return a page with its generated parts made anew, each of which ``report`` gets a line for.

    Raises:
        InputError: a part that nothing generates.
    """

    def part(match: re.Match) -> str:
        if match[2] not in PARTS:
            raise InputError(f"generated part {match[2]!r}: choose from {', '.join(PARTS)}")
        made = f"{match[1]}{PARTS[match[2]](evidence).strip()}\n{match[4]}"
        report(f"generated: {match[2]}")
        return made

    return _PART.sub(part, text)


def contact_sheet(folder: Path, evidence: Evidence) -> str:
    """Return Markdown that shows every figure in ``folder`` with its caption."""
    lines = ["# All figures", "", "Drawn from the recorded tables: `./run_all.sh figures`.", WORDS]
    for kind, figure in FIGURES.items():
        drawn = [name for name in pictures(kind, evidence) if (folder / f"{name}.json").exists()]
        lines += [f"## {kind}", "", f"*{figure.caption}*", ""] if drawn else []
        for name in drawn:
            lines += [f"![{name}]({name}.png)", ""]
            lines += [f"[SVG]({name}.svg), [what it was drawn from]({name}.json)", ""]
    return "\n".join(lines)


def generate(root: Path, report: Callable[[str], object] = print) -> list[Path]:
    """Write the generated parts of the pages in checkout ``root``; return what changed.

    ``report`` gets one line for each part.
    """
    evidence = Evidence(root / "results" / "curves")
    pages = [path for path in (root / "README.md", root / "RESULTS.md") if path.exists()]
    wanted = {path: render(path.read_text(encoding="utf-8"), evidence, report) for path in pages}
    wanted[root / "figures" / "README.md"] = contact_sheet(root / "figures", evidence)
    return write_changed(wanted)
