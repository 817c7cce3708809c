"""Seconds of a training step of every entrant of a table, interleaved, on an idle machine.

    PYTHONPATH=. python benchmarks/steps.py --dataset cifar10 --model resnet20

Pause recordings meanwhile, and time one table at a time: N_B takes two turns a round, and where
the second comes out more than 5 % off the first, nothing is written. Else it writes
``results/curves/<table>-steps.csv``, on which the cost of every replay rests, and prints what was
timed: medians over rounds, and ratios of the steps to N_B's. Of a table that is timed in part, the
entrants are timed that are missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from proxyhpo.config import InputError
from proxyhpo.experiment.curves import ROUNDS, measure_steps
from proxyhpo.hpo.curves import curves_folder
from proxyhpo.hpo.tables import SCALES, table_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--scale", default="", choices=SCALES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, default=curves_folder())
    parser.add_argument("--data-dir", help="folder of the data sets")
    options = parser.parse_args()
    name = table_name(options.dataset, options.model, options.scale)
    where = {"data_dir": options.data_dir, "rounds": options.rounds}
    try:
        frame = measure_steps(name, options.folder, **where)
    except InputError as error:
        raise SystemExit(str(error)) from None
    seconds = ["step_seconds", "picture_seconds", "build_seconds"]
    for recorded, own in frame.groupby("recorded"):
        medians = own.groupby("entrant", sort=False)[seconds].median()
        medians["by N_B's"] = medians["step_seconds"] / medians["step_seconds"].iloc[0]
        print(f"{recorded}, {own['device'].iloc[0]}")
        print(medians.to_string(float_format="{:.5f}".format))


if __name__ == "__main__":
    main()
