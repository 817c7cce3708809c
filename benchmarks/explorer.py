"""Time of the explorer: opening it, and a redraw after each change of a control.

    python benchmarks/explorer.py [--out DIR] [--repeats 3]

Goes through the choices, one control after another as a reader does, and prints the medians of what
a change takes: with no picture kept from before, then with pictures kept in memory. The machine's
load is printed as well: on a busy machine, CPU time says more than wall-clock time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from proxyhpo.notebook.explorer import Explorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="folder that holds results/ (default: this checkout)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=int, default=40, help="choices that are drawn")
    options = parser.parse_args()

    began = time.perf_counter()
    explorer = Explorer(options.out)
    opened = time.perf_counter() - began
    lines = explorer._choices.head(options.most).to_dict("records")
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print(f"opened in {opened:.2f} s: {len(explorer.tables.rows)} rows, {len(lines)} choices drawn")
    for words, forget in (("a change", True), ("a change, picture kept", False)):
        wall, cpu = [], []
        for repeat in range(options.repeats + 1):
            for line in lines:
                for name, control in explorer.controls.items():
                    if control.value == line[name]:
                        continue
                    if forget:
                        explorer._drawn.clear()
                    began, spent = time.perf_counter(), time.process_time()
                    control.value = line[name]
                    if repeat:  # the first time loads fonts, or draws what is kept
                        wall.append(time.perf_counter() - began)
                        cpu.append(time.process_time() - spent)
        told = [f"{1000 * statistics.median(seconds):.0f}" for seconds in (wall, cpu)]
        worst = 1000 * max(wall)
        print(f"{words}: {told[0]} ms wall, {told[1]} ms CPU (medians), {worst:.0f} ms at most")


if __name__ == "__main__":
    main()
