"""Figures by name: from recorded rows to files that tell where they come from.

:data:`FIGURES` maps a name to a function from rows to a :class:`matplotlib.figure.Figure`, pure
and drawn in one style. The only number in any figure that isn't ours is the paper's "up to 37 %",
and it is labelled so. A figure of smoke rows says in the picture that it is no evidence.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from proxyhpo.analysis.bootstrap import RESAMPLES
from proxyhpo.analysis.cost import CLOCKS, clock, machines, speedup, with_proxy
from proxyhpo.analysis.quality import rivals
from proxyhpo.analysis.ranking import BEST, CEILING, ranked
from proxyhpo.config import InputError, choose
from proxyhpo.report import cost as cost_drawing
from proxyhpo.report import ranking as trust_drawing
from proxyhpo.report import style as drawing
from proxyhpo.report.wording import SMOKE, span
from proxyhpo.rows import write_whole

TIMED = ("speedup", "incumbent", "trust", "rivals")  # in the measure of time that costs.clock says
DRAWN_WITH = ("matplotlib", "numpy", "pandas", "scipy", "seaborn")


@dataclass(frozen=True)
class Kind:
    """One figure: what draws it, the purposes of the rows it is drawn from, what it shows.

    ``compares``: N_B with N_P, so that experiments on N_B alone are left out.
    """

    draw: Callable[[pd.DataFrame], Figure]
    purposes: tuple[str, ...]
    shows: str
    compares: bool = False


KINDS: dict[str, Kind] = {
    "speedup": Kind(
        cost_drawing.speedup_figure,
        ("proxy", "study", "verify"),
        "Time of hyperparameter optimisation on the base network N_B and on its proxy N_P, with "
        "building the proxy and verification on N_B. Numbers: time saved in per cent, with its "
        'interval. Dashed: the paper\'s "up to 37 %" less, relative to each N_B bar.',
        compares=True,
    ),
    "ledger": Kind(
        cost_drawing.ledger_figure,
        ("data", "proxy", "study", "lost", "verify", "final"),
        "All seconds that a user waits for, by purpose, when hyperparameters are searched for on "
        "N_B (left bar) and on its proxy N_P (right bar), up to one final training of N_B. "
        "Stopped, diverged and failed trials are in; the ranking study, which only measures, is "
        "not.",
        compares=True,
    ),
    "incumbent": Kind(
        cost_drawing.incumbent_figure,
        ("proxy", "study", "verify"),
        "Best validation accuracy so far against the time spent so far, trials one after another. "
        "Only trials trained to their full budget count as best; all trials take time. The dashed "
        "curve is N_P's own accuracy, which shows how its search went on but can't be compared "
        "with N_B's; dots are N_B again, trained with N_P's best configurations. Of several "
        "seeds: median and range.",
    ),
    "rank_correlation": Kind(
        trust_drawing.rank_correlation_figure,
        ("ranking",),
        "The same configurations fully trained on N_B and on a stand-in: validation accuracies, "
        "Spearman's rho and Kendall's tau over all of them, over N_B's better half, and between "
        "N_B and N_B reseeded, the noise ceiling. A diverged run counts as accuracy 0.",
    ),
    "trust": Kind(
        trust_drawing.trust_figure,
        ("ranking",),
        "How far each stand-in can be trusted against what it costs: rank correlation with N_B, "
        "and accuracy points lost on N_B when the stand-in's best 1 or 3 configurations are tried "
        "there; a line joins the shares of one stand-in. Bars are intervals; the band is N_B "
        "reseeded, the noise ceiling.",
    ),
    "shift": Kind(
        trust_drawing.shift_figure,
        ("ranking",),
        "How far the best learning rates on a stand-in lie from N_B's, in octaves: mean log2 of "
        f"the learning rates of its {BEST} best configurations, less the same of N_B's; above 0 "
        "the stand-in wants larger steps. Weight decay and momentum vary along. Against the "
        "measured share of multiply-accumulates; equal shares stand side by side. The band is N_B "
        "reseeded.",
    ),
    "rivals": Kind(
        cost_drawing.rivals_figure,
        ("proxy", "study", "verify", "final"),
        "What each way of HPO costs, without the final training, and how good N_B becomes with its "
        "choice: each method on N_B, on its proxy N_P with verification on N_B (grey lines lead "
        "from one to the other), and the ways without a proxy. Up and to the left is better. "
        "Means over seeds.",
    ),
}


def draw(name: str, rows: pd.DataFrame) -> Figure:
    """Draw figure ``name`` of ``rows``.

    Raises:
        InputError: no such figure, or no rows for it.
    """
    used = used_rows(name, rows)
    if used.empty:
        raise InputError(f"figure {name}: no rows with purpose {' or '.join(KINDS[name].purposes)}")
    with mpl.rc_context(drawing.STYLE):
        figure = KINDS[name].draw(used)
        if (used["profile"] == "smoke").any():
            figure.suptitle(SMOKE, color=drawing.RED, fontsize=13, fontweight="bold")
        # laid out once, so that positions don't depend on the format that is written first
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
    return figure


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {name: partial(draw, name) for name in KINDS}


def used_rows(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that figure ``name`` is drawn from."""
    kind = choose("figure", name, KINDS)
    rows = with_proxy(rows) if kind.compares else rows
    # what was built for a ranking study alone has no sampler, and belongs to no experiment
    ours = (rows["sampler"] != "") | (rows["purpose"] == "ranking")
    return rows[rows["purpose"].isin(kind.purposes) & ours]


def caption(name: str, rows: pd.DataFrame) -> str:
    """Return what figure ``name`` shows of ``rows``: n, seeds, device, profile and interval."""
    used = used_rows(name, rows)
    profiles = [f"{p} ({SMOKE})" if p == "smoke" else p for p in sorted(used["profile"].unique())]
    seeds = ", ".join(map(str, sorted(used["seed"].unique())))
    if "ranking" in KINDS[name].purposes:
        studies = [(identity["proxy"], len(pairs)) for identity, pairs in ranked(used)]
        n = f"n = {span([n for _, n in studies])} configurations; weight seeds {seeds}"
        over = "configurations"
        hidden = sum(proxy != CEILING for proxy, _ in studies)
        hidden -= len(trust_drawing.scatter_panels(used))
        if name == "rank_correlation" and hidden:
            n += f"; {hidden} more stand-ins are left out for room, controls first"
    elif name == "rivals":
        table = rivals(used)
        n = f"n = {span(table['n'])} seeds a way ({seeds})"
        over = "seeds"
    else:
        table = speedup(used, pool_seeds=True)
        trials = table["base_trials"] // table["seeds"]
        n = f"n = {len(table)} experiments, {span(trials)} trials a study; seeds {seeds}"
        over = " or ".join(sorted(table["interval"].unique()))
    words = f"{KINDS[name].shows} Profile {', '.join(profiles)}; {n}; {', '.join(machines(used))}."
    if name in TIMED and clock(used) == "cpu":
        words += f" Time is {CLOCKS['cpu']} time, since others kept the machine busy."
    if (workers := used["workers"].max()) > 1:
        words += f" Seconds are summed over up to {workers} workers that shared a study."
    if name == "rivals" and max(table["n"], default=1) < 2:
        return f"{words} One seed, hence no intervals."
    if name in ("ledger", "incumbent"):
        return words
    return f"{words} Intervals: 95 %, percentile bootstrap over {over}, {RESAMPLES} resamples."


def save_figure(
    figure: Figure, folder: str | Path, name: str, rows: pd.DataFrame, profile: str
) -> list[Path]:
    """Write ``name.svg``, ``.pdf``, ``.png`` and ``.json`` into ``folder``, each by rename.

    The JSON tells where the picture comes from: caption, files and numbers of rows used, device,
    commits, versions. The same rows and versions give the same bytes.

    Raises:
        InputError: ``rows`` hold another profile than ``profile``, or the folder holds this
            figure of another profile, so that a smoke run can't overwrite evidence.
    """
    folder, used = Path(folder), used_rows(name, rows)
    if strange := set(used["profile"]) - {profile}:
        raise InputError(f"figure {name} of profile {profile}: rows of profile {min(strange)}")
    sidecar = folder / f"{name}.json"
    if sidecar.exists():
        there = json.loads(sidecar.read_text(encoding="utf-8"))["profile"]
        if there != profile:
            raise InputError(f"{sidecar} belongs to profile {there}, not {profile}")
    told = _provenance(name, used, profile)
    paths = []
    title, dpi = told["caption"], figure.dpi
    with mpl.rc_context(drawing.STYLE):
        # not by savefig: it draws all once more beforehand, to lay out what here is laid out
        for suffix, write in {
            "svg": partial(
                FigureCanvasSVG(figure).print_svg, metadata={"Date": None, "Title": title}
            ),
            "pdf": partial(
                FigureCanvasPdf(figure).print_pdf, metadata={"CreationDate": None, "Title": title}
            ),
            "png": FigureCanvasAgg(figure).print_png,
        }.items():
            content = io.BytesIO()
            figure.dpi = 200
            write(content)
            paths.append(folder / f"{name}.{suffix}")
            write_whole(paths[-1], content.getvalue())
    figure.dpi = dpi
    write_whole(sidecar, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    return [*paths, sidecar]


def _provenance(name: str, used: pd.DataFrame, profile: str) -> dict[str, object]:
    files = used["file"] if "file" in used else pd.Series("", used.index)
    columns = {"torch": "torch", "optuna": "optuna", "proxyhpo": "version"}
    return {
        "figure": name,
        "profile": profile,
        "caption": caption(name, used),
        "rows": len(used),
        "files": files.value_counts().sort_index().to_dict(),
        "purposes": used["purpose"].value_counts().sort_index().to_dict(),
        "seeds": sorted(map(int, used["seed"].unique())),
        "device": machines(used),
        "commits": sorted(used["commit"].unique()),
        "measured with": {k: sorted(set(used[column]) - {""}) for k, column in columns.items()},
        "drawn with": {package: version(package) for package in DRAWN_WITH},
        "recorded": [used["recorded"].min(), used["recorded"].max()],
    }


def draw_all(
    rows: pd.DataFrame,
    folder: str | Path,
    profile: str,
    report: Callable[[str], object] = print,
    each: Callable[..., Iterable] = map,
) -> list[Path]:
    """Draw every figure of the rows of ``profile`` into ``folder``; return the files.

    ``report`` gets one line for each figure that is left out, with the reason. ``each`` is ``map``,
    or the ``map`` of an executor, whose processes then draw side by side.

    Raises:
        InputError: as :func:`save_figure`.
    """
    mine = rows[rows["profile"] == profile]
    paths = []
    for written, reason in each(partial(_drawn, mine, folder, profile), FIGURES):
        paths += written
        if reason:
            report(f"left out: {reason}")
    return paths


def _drawn(
    rows: pd.DataFrame, folder: str | Path, profile: str, name: str
) -> tuple[list[Path], str]:
    """Draw one figure; return its files, or none and the reason."""
    try:
        figure = draw(name, rows)
    except InputError as reason:
        return [], str(reason)
    return save_figure(figure, folder, name, rows, profile), ""
