"""A live study at a table's scale beside its replay: do replays tell the truth?

    PYTHONPATH=. python benchmarks/live.py --dataset cifar10 --model resnet20

Writes ``results/live/<table>-<stand-in>-<sampler>.csv``, one line a trial with what was trained and
what was looked up. On the machine that recorded the table both are the same to four digits; on
another one accuracies differ, since training amplifies rounding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from proxyhpo.experiment.live import live_study
from proxyhpo.hpo.curves import curves_folder, load_table
from proxyhpo.hpo.replay import replay_study
from proxyhpo.rows import provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--stand-in", default="uniform@0.25+epochs@0.3")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--trials", type=int, default=18)
    parser.add_argument("--out", type=Path, default=curves_folder().parent)
    parser.add_argument("--data-dir", help="folder of the data sets")
    options = parser.parse_args()
    table = load_table(options.dataset, options.model, options.out / "curves")
    trials = min(options.trials, len(table.regime.configurations) // 2)
    same = {"stand_in": options.stand_in, "sampler": options.sampler, "trials": trials}
    looked_up = replay_study(table, **same).trials
    live = live_study(
        options.dataset, options.model, folder=options.out / "curves", data_dir=options.data_dir,
        **same,
    )  # fmt: skip
    beside = pd.DataFrame(
        {
            "table": table.name,
            **same,
            "trial": range(trials),
            "lr_live": live["param_lr"],
            "lr_replay": [trial.configuration["lr"] for trial in looked_up],
            "weight_decay_live": live.get("param_weight_decay"),
            "weight_decay_replay": [
                trial.configuration.get("weight_decay", float("nan")) for trial in looked_up
            ],
            "accuracy_live": live["val_accuracy"],
            "accuracy_replay": [trial.accuracy for trial in looked_up],
            "device": live["device"],
            "commit": provenance()["commit"],
            "recorded": live["recorded"],
        }
    )
    path = options.out / "live" / f"{table.name}-{options.stand_in}-{options.sampler}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.to_csv(path, index=False)
    print(beside.drop(columns=["table", "device", "commit", "recorded"]).to_string())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
