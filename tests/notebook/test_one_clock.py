"""One case, read as a reader sees it in every place that shows it: the numbers are the same.

Of CIFAR-10 and ResNet-20, tuned on snip at 25 %: the percentage of time that an epoch takes less,
and that 18 trials with three verified save.
"""

import re
from xml.etree import ElementTree

import nbformat
import numpy as np
import pytest

from proxyhpo.notebook.explorer import explorer
from proxyhpo.notebook.grid import FOLDER
from proxyhpo.report.style import look

ROOT = FOLDER.parent
TABLE = "CIFAR-10, ResNet-20"
FIRST = r"\| (\d+) \[[^]]+\] %(?:; \d+ \[[^]]+\] %)*"  # of several tables' numbers
SVG = "{http://www.w3.org/2000/svg}"
SPEEDUP = ElementTree.parse(ROOT / "figures" / "speedup-cifar10.svg")
SOLID, DASHDOT = "", r"stroke-dasharray: [\d.]+,[\d.]+,[\d.]+,.*?; "  # k = 3 and k = 0
CLAIM = rf"\| {TABLE} \| snip 25 %{{}} \| (\d+) \["
COSTS = rf"\| {TABLE} \| snip 25 % \| 0\.\d+ \| "


def one(pattern, text):
    """The number that ``pattern`` finds in ``text``, there at least once and always the same."""
    (found,) = set(re.findall(pattern, text))
    return float(found)


def shown_by(notebook):
    """What the outputs of a notebook in git say, as text."""
    cells = nbformat.read(FOLDER / f"{notebook}.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    data = [output.get("data", {}) for output in outputs]
    texts = [kinds.get("text/markdown", kinds.get("text/plain", "")) for kinds in data]
    return "\n".join([*texts, *(output.get("text", "") for output in outputs)])


def by_the_calculator(verify):
    view = explorer(ROOT / "results" / "curves")
    view.table.value = next(name for text, name in view.table.options if text == TABLE)
    own = view.calculator.controls[0]
    own["stand_in"].value, own["trials"].value, own["verify"].value = "snip@0.25", 18, verify
    return one(r"time saved</th><td>(\d+) \[", view.calculator.answer.value)


def by_the_ruler(dashes):
    """Read figures/speedup-cifar10.svg: snip's line over 18 trials, held against the ticks."""
    panels = groups(SPEEDUP, "axes_")
    (panel,) = [p for p in panels if TABLE in [text.text for text in p.iter(f"{SVG}text")]]
    line = rf"fill: none; {dashes}stroke: {look('snip')[0].lower()}; stroke-width: 1\.4"
    paths = [path for path in panel.iter(f"{SVG}path") if path.get("clip-path")]
    (drawn,) = [path.get("d") for path in paths if re.match(line, path.get("style"))]
    across, down = np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", drawn), float).T
    at = dict(zip(labels(panel, "x"), marks(panel, "x"), strict=True))["18"]
    # the first panel alone is labelled with percentages, which all share
    percents = dict(zip(labels(panels[0], "y"), marks(panel, "y"), strict=True))
    share = (np.interp(at, across, down) - percents["0"]) / (percents["100"] - percents["0"])
    return 100 * share


def groups(within, kind):
    return [one for one in within.iter(f"{SVG}g") if one.get("id", "").startswith(kind)]


def labels(panel, axis):
    return [tick.findtext(f".//{SVG}text") for tick in groups(panel, f"{axis}tick_")]


def marks(panel, axis):
    return [float(tick.find(f".//{SVG}use").get(axis)) for tick in groups(panel, f"{axis}tick_")]


def agree(whole, finer):
    assert len(set(whole.values())) == 1, whole
    for place, value in finer.items():
        assert value == pytest.approx(next(iter(whole.values())), abs=0.6), (place, finer, whole)


@pytest.fixture(scope="module")
def pages():
    pages = ("README", "RESULTS")
    texts = {name: (ROOT / f"{name}.md").read_text(encoding="utf-8") for name in pages}
    return texts | {name: shown_by(name) for name in ("00_start_here", "review")}


def answers(pages, pattern):
    """The README's number, unless it is of several tables together."""
    part = pages["README"].partition("generated: answers")[2].partition("<!-- end -->")[0]
    return {} if re.search(r"\d tables", part) else {"README": one(pattern, part)}


def claimed(pages, claim):
    """The number of a claim on each page that lists the claims."""
    listing = ("00_start_here", "review", "RESULTS")
    return {f"{name}, claims": one(claim, pages[name]) for name in listing}


def test_a_verified_search_saves_the_same_everywhere(pages):
    start, results = pages["00_start_here"], pages["RESULTS"]
    whole = {
        "the explorer": by_the_calculator(verify=3),
        "by the formula": one(r"18 trials, 3 verified: (\d+)% saved", start),
        "by two searches": one(r"these two searches: (\d+)% saved", start),
        "costs": one(rf"{COSTS}0\.\d+ \[.*?\] \| 0\.\d+ \| (\d+) %", results),
        **claimed(pages, rf"\| saving {CLAIM.format(', 18 trials')}"),
        **answers(pages, rf"{FIRST} less time \|.*\| snip 25 %, 18 trials, 3 verified; {TABLE}"),
    }
    finer = {
        "review, its control": one(r"cifar10-resnet20 +snip@0\.25 +(\d+\.\d)", pages["review"]),
        "the figure": by_the_ruler(SOLID),
    }
    agree(whole, finer)


def test_an_epoch_takes_the_same_time_everywhere(pages):
    shares = {
        "00_start_here": one(r"cifar10-resnet20: r = (0\.\d+) ", pages["00_start_here"]),
        "costs": one(rf"{COSTS}(0\.\d+) \[", pages["RESULTS"]),
    }
    whole = {
        "the explorer, nothing verified": by_the_calculator(verify=0),
        **{place: round(100 * (1 - share)) for place, share in shares.items()},
        **claimed(pages, rf"\| epoch {CLAIM.format('')}"),
        **answers(pages, rf"{FIRST} less time \|.*\| snip 25 %; {TABLE}"),
    }
    agree(whole, {"the figure": by_the_ruler(DASHDOT)})
