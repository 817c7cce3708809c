"""Seconds of 200 replayed studies of 18 trials on one core.

    PYTHONPATH=. python benchmarks/replays.py

On the recorded table of CIFAR-10 and ResNet-20, for each sampler; GP takes a tenth as many.
"""

from __future__ import annotations

import time

from proxyhpo.hpo.curves import load_table
from proxyhpo.hpo.replay import replay_study

STUDIES = {"random": 200, "tpe": 200, "cmaes": 200, "gp": 20}


def main() -> None:
    table = load_table("cifar10", "resnet20")
    for sampler, studies in STUDIES.items():
        began, repeats = time.process_time(), 0
        for seed in range(studies):
            repeats += replay_study(table, sampler=sampler, trials=18, seed=seed).repeats
        seconds = time.process_time() - began
        print(
            f"{sampler}: {studies} studies of 18 trials in {seconds:.1f} s of one core, "
            f"{seconds / studies / 18 * 1000:.1f} ms a trial; {repeats / studies / 18:.0%} of the "
            "trials repeat a configuration",
            flush=True,
        )


if __name__ == "__main__":
    main()
