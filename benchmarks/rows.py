"""Milliseconds to append one row, by the rows that a file holds: ``python benchmarks/rows.py``.

    PYTHONPATH=. python benchmarks/rows.py --rows 10 10000

Appending adds a line under a lock and waits for the disk. Beside it what it took to read all rows
and write them again, which is how a row was added before. Medians; the two take turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas as pd

from proxyhpo.rows import append_rows, read_rows, write_rows

ROW = {
    "profile": "smoke",
    "dataset": "cifar10",
    "network": "resnet56",
    "role": "base",
    "sampler": "tpe",
    "purpose": "study",
    "seed": 0,
    "state": "complete",
    "val_accuracy": 0.5123456789,
    "curve": "0.1234 0.2345 0.3456 0.4567",
    "wall_seconds": 12.3456789,
    "cpu_seconds": 12.3456789,
    "device": "a processor",
    "threads": 1,
    "recorded": "2026-11-21T12:00:00+00:00",
}


def append(path: Path) -> None:
    append_rows(path, [ROW])


def rewrite(path: Path) -> None:
    rows = read_rows(path)
    write_rows(path.with_name("whole.csv"), pd.concat([rows, rows[:1]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[10, 10_000])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    print("rows: append, rewrite (ms); rewrite / append")
    with tempfile.TemporaryDirectory() as folder:
        for count in options.rows:
            path = Path(folder, f"{count}.csv")
            append_rows(path, [ROW | {"trial": i, "param_lr": 1 / (i + 1)} for i in range(count)])
            spent: dict[str, list[float]] = {"append": [], "rewrite": []}
            for _ in range(options.repeats):
                for way in (append, rewrite):
                    begun = time.perf_counter()
                    way(path)
                    spent[way.__name__].append(1000 * (time.perf_counter() - begun))
            one, whole = (median(times) for times in spent.values())
            print(f"{count}: {one:.1f}, {whole:.0f}; {whole / one:.0f}")


if __name__ == "__main__":
    main()
