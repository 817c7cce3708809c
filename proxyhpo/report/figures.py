"""Figures by name, and their files: from evidence to pictures that say where they come from."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from proxyhpo.analysis.evidence import Evidence
from proxyhpo.config import InputError, choose, write_whole
from proxyhpo.report import drawings
from proxyhpo.report.style import STYLE

DRAWN_WITH = ("matplotlib", "numpy", "pandas", "scipy", "seaborn")


@dataclass(frozen=True)
class Kind:
    """A figure.

    Attributes:
        draw: what draws it.
        caption: what a reader should know to read it.
        panels: whether it has one for each table, and so a picture of its own for each data set.
    """

    draw: Callable[[Evidence], Figure]
    caption: str
    panels: bool = False


FIGURES: dict[str, Kind] = {
    "race": Kind(
        drawings.race_figure,
        "Test accuracy that N_B loses with what each way would choose if stopped, against the best "
        "one known, on weight seeds that nothing was chosen with; a line starts with the first "
        "answer, cut at 6 points. Same time: as many trials as fit into a full search, at least "
        "its own. Whiskers: 95 % for the mean of recordings, after a quarter, half and all of a "
        "full search on N_B. Dotted: half a point, that search's end.",
        panels=True,
    ),
    "speedup": Kind(
        drawings.speedup_figure,
        "Time saved by HPO on the pruned network against HPO on N_B, 1 - r - (k + b) / T: r from "
        "an interleaved benchmark, k verifications, b making the proxy, T trials of each, without "
        "a trial pruner. Bands: 95 %.",
        panels=True,
    ),
    "rank_correlation": Kind(
        drawings.rank_correlation_figure,
        "One training on the stand-in against one of N_B; the better half chosen on a third. "
        "Intervals: weight seeds redrawn and configurations resampled. Filled: the interval of "
        "the difference from N_B reseeded, from the same redraws, lies below zero. Marks that "
        "would lie on each other are moved aside. Averaged weights: over the epoch's second half.",
        panels=True,
    ),
    "regret": Kind(
        drawings.regret_figure,
        "Validation accuracy that N_B loses if only the stand-in's three best are tried on it. "
        "Filled: the difference from N_B reseeded has an interval above half a point. "
        "Where marks would meet, they are moved aside.",
        panels=True,
    ),
    "epoch_cost": Kind(
        drawings.epoch_cost_figure,
        "Time of an epoch, validation included, relative to N_B's: means over the rounds of an "
        "interleaved benchmark.",
    ),
    "shift": Kind(
        drawings.shift_figure,
        "Validation accuracy after the last epoch, means over weight seeds, at weight decay 5e-4; "
        "marks: vertex of a parabola through the peak.",
        panels=True,
    ),
    "sight": Kind(
        drawings.sight_figure,
        "Kendall's tau between one training on the stand-in and one of N_B along one "
        "hyperparameter, the mean over all values of the other.",
    ),
    "claims": Kind(
        drawings.claims_figure,
        "Estimates with intervals that hold together at 95 % for all claims of RESULTS.md "
        "(Bonferroni), wider than for the README's four answers; bar: the margin that decides.",
    ),
    "released": Kind(
        drawings.released_figure,
        "TPE on snip at 25 % of the multiply-accumulates, as many trials as half of the grid, "
        "successive halving, three verified; each line changes one thing to what the released "
        "code does. Bars: 1.96 standard errors of the mean of 100 replays, each on a redrawn "
        "table; another recording would lie further off.",
    ),
}


def draw(name: str, evidence: Evidence) -> Figure:
    """Draw figure ``name``, a key of :data:`FIGURES`.

    Raises:
        InputError: no such figure, or the evidence lacks what it shows; says what makes it.
    """
    with mpl.rc_context(STYLE):
        figure = choose("figure", name, FIGURES).draw(evidence)
        # laid out once, so that positions don't depend on the format that is written first
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
    return figure


def save_figure(figure: Figure, folder: str | Path, name: str, evidence: Evidence) -> list[Path]:
    """Write picture ``name.svg``, ``.png`` and ``.json`` into ``folder``, each by rename.

    The JSON says what the picture shows and which files it was drawn from. The same files and
    versions give the same bytes.
    """
    folder = Path(folder)
    shown = sources(name, evidence)
    paths = []
    with mpl.rc_context(STYLE):
        metadata = {"svg": {"Date": None, "Title": shown["caption"]}, "png": {"Software": None}}
        for suffix, own in metadata.items():
            content = io.BytesIO()
            figure.savefig(content, format=suffix, dpi=200, metadata=own)
            paths.append(folder / f"{name}.{suffix}")
            write_whole(paths[-1], content.getvalue())
    paths.append(folder / f"{name}.json")
    write_whole(paths[-1], (json.dumps(shown, indent=1) + "\n").encode())
    return paths


def sources(name: str, evidence: Evidence) -> dict[str, object]:
    """Return what picture ``name`` shows and which files it was drawn from, with their hashes."""
    curves, replays = evidence.folder, evidence.folder.parent / "replays"
    files = [
        path
        for table in evidence.tables
        for folder, end in ((curves, ".csv"), (curves, "-steps.csv"), (replays, "-*.csv"))
        for path in folder.glob(f"{table}{end}")
    ]
    return {
        "figure": name,
        "caption": FIGURES[name.partition("-")[0]].caption,
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(files)
        },
        "drawn with": {package: version(package) for package in DRAWN_WITH},
    }


def pictures(name: str, evidence: Evidence) -> dict[str, Evidence]:
    """Return the pictures of figure ``name``: its own, or "race-cifar10" and so on.

    Each with the evidence that it is drawn from.
    """
    if not FIGURES[name].panels:
        return {name: evidence}
    return {f"{name}-{dataset}": part for dataset, part in evidence.by_dataset.items()}


def draw_all(
    evidence: Evidence, folder: str | Path, report: Callable[[str], object] = print
) -> list[Path]:
    """Draw every figure into ``folder``; return the files.

    ``report`` gets one line for each figure, with the reason where it is left out.
    """
    paths: list[Path] = []
    for kind in FIGURES:
        for name, part in pictures(kind, evidence).items():
            try:
                figure = draw(kind, part)
            except InputError as reason:
                report(f"{name} left out: {reason}")
                continue
            paths += save_figure(figure, folder, name, part)
            report(f"{name} drawn")
    return paths
