"""Seconds of a change in the explorer and of the study panel's first sign of life, in a browser.

    PYTHONPATH=.:tests python benchmarks/explorer.py

Opens explore.ipynb in Voila over tables made by formula; needs chromium and playwright. The first
changes draw anew, the others show pictures that were drawn before. Prints the machine's load, too:
on a busy one everything takes longer.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from pathlib import Path

import browser
from made_tables import made_evidence

NAMES = ("speedup", "rank correlation", "regret", "epoch cost", "shift", "sight", "claims", "race")
CHANGES = 20


def main() -> None:
    if lacking := browser.missing():
        raise SystemExit(f"lacks {lacking}")
    with tempfile.TemporaryDirectory() as name, browser.chromium() as chromium:
        folder = Path(name)
        shutil.copy(browser.ROOT / "notebooks" / "explore.ipynb", folder)
        made_evidence(folder / "results")
        with browser.in_voila(chromium, folder) as (page, _):
            order = [NAMES[at % len(NAMES)] for at in range(CHANGES)]
            seconds = [browser.redraws(page, "figure", figure) for figure in order]
            sign = browser.first_sign(page)
    first, again = seconds[: len(NAMES) - 1], seconds[len(NAMES) - 1 :]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for what, some in (("a change", seconds), ("drawn anew", first), ("drawn before", again)):
        median, most = statistics.median(some), max(some)
        print(f"{what}: {median:.2f} s (median of {len(some)}), {most:.2f} s at most")
    print(f"the study panel's first sign of life: {sign:.2f} s")


if __name__ == "__main__":
    main()
