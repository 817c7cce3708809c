"""What a step costs: one interleaved benchmark of all entrants of a table, kept beside its rows.

In each round every entrant takes its turn, so that whatever slows the machine slows all of them.
CPU seconds of one thread, which neighbours on the machine hardly change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from proxyhpo.config import choose
from proxyhpo.experiment.curves import Table, table_bench, table_stand_in
from proxyhpo.experiment.trial import Workbench
from proxyhpo.hpo.stand_ins import StandIn
from proxyhpo.hpo.tables import TABLES
from proxyhpo.rows import provenance, write_whole
from proxyhpo.training import evaluate, train

STEPS = 12
"""Training steps of an entrant in a round."""
EVALUATED = 1000
"""Pictures of an entrant's evaluation in a round."""
ROUNDS = 15


def measure_steps(
    name: str, folder: Path, *, data_dir: str | None = None, rounds: int = ROUNDS
) -> pd.DataFrame:
    """Time the entrants of a table; write ``<name>-steps.csv`` beside its rows, and return it.

    One line an entrant and round: ``step_seconds`` of a training step, ``picture_seconds`` of
    evaluating a picture, ``build_seconds`` of making the stand-in (pruning included, once).

    Raises:
        InputError: an unknown table, one that isn't begun, or missing pictures.
    """
    regime = choose("table", name, TABLES)
    manifest, plans = Table(regime, folder).begun()
    bench = table_bench(regime, manifest, data_dir)
    torch.set_num_threads(1)
    timed = []
    for entrant in (*regime.entrants, *regime.extras):
        plan = plans.get(f"{entrant} plan 0", "")
        made = table_stand_in(regime, manifest, data_dir, entrant, 0, plan)
        build = 0.0 if entrant == "base" else _making(bench, entrant)
        timed.append((entrant, _turns(bench, made, regime.batch_size), build))
    found = provenance()
    known = {"device": bench.device.label, "recorded": found["recorded"], "torch": found["torch"]}
    lines = []
    for repeat in range(rounds):
        for entrant, turns, build in timed:
            step, picture = next(turns)
            if repeat:  # the first round warms up
                lines.append(
                    {"entrant": entrant, "repeat": repeat - 1}
                    | {"step_seconds": round(step, 6), "picture_seconds": round(picture, 8)}
                    | {"build_seconds": round(build, 3), "load": round(os.getloadavg()[0], 2)}
                    | known
                )
        print(f"{name}: round {repeat + 1} of {rounds}", flush=True)
    frame = pd.DataFrame(lines)
    write_whole(folder / f"{name}-steps.csv", frame.to_csv(index=False).encode())
    return frame


def _making(bench: Workbench, entrant: str) -> float:
    """Return the CPU seconds of making a stand-in anew, pruning and scoring included."""
    began = time.process_time()
    bench.stand_in(entrant, lambda _: None)
    return time.process_time() - began


def _turns(bench: Workbench, made: StandIn, batch_size: int) -> Iterator[tuple[float, float]]:
    """Yield the seconds of a training step and of evaluating a picture, turn after turn."""
    train_on = made.dataset.train.take(torch.arange(STEPS * batch_size))
    few = made.dataset.with_train(train_on)
    training = bench.feed(few, "train", batch_size)
    one = bench.feed(made.dataset.with_train(train_on.take(torch.arange(1))), "train")
    judged = made.dataset.with_train(made.dataset.val.take(torch.arange(EVALUATED)))
    evaluation = bench.feed(judged, "train")
    # untimed first: oneDNN keeps 1,024 kernels, and many networks in turns push each other's out
    warm = bench.feed(few.with_train(train_on.take(torch.arange(batch_size))), "train", batch_size)
    network = made.build(0)
    while True:
        train(network, warm, one, {}, epochs=1, seed=0, device=bench.device)
        began = time.process_time()
        train(network, training, one, {}, epochs=1, seed=0, device=bench.device)
        step = (time.process_time() - began) / len(training)
        evaluate(network, evaluation, bench.device)
        began = time.process_time()
        evaluate(network, evaluation, bench.device)
        yield step, (time.process_time() - began) / EVALUATED
