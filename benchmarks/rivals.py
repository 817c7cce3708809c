# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "neural-pipeline-search==0.17.0", "syne-tune==0.16.0", "fastparquet", "huggingface_hub",
#   "torch==2.14.1", "numpy==2.4.6", "pandas>=2.2,<3", "scipy", "optuna>=5.0,<6", "cmaes",
#   "filelock",
# ]
# ///
"""Rivals from outside, replayed on a recorded table: ASHA of Syne Tune, PriorBand of NePS.

    PYTHONPATH=. uv run benchmarks/rivals.py --dataset cifar10 --model resnet20

uv makes an environment of their own, with the versions above (5 GB, most of it CUDA libraries).
They search N_B's recorded trainings, one worker, and are raced as our own ways are
(:func:`proxyhpo.analysis.quality.race`), on the same redrawn tables. Writes
``results/replays/<table>-rivals.csv``, and prints what they have lost.

- Fidelity is epochs of a full training's schedule, from 1; the reduction factor is 3. A trial that
  goes on does so from its checkpoint, so an epoch is paid for once; ours are trained anew. The
  rivals' own seconds aren't counted. Both favour the rivals.
- A search ends when it has spent as many trainings of N_B as half of the grid has configurations,
  as our own do. Its answer is the configuration of the least error seen so far after any epoch,
  which is both packages' own rule.
- A configuration that is tried again meets N_B's next search seed, as in our own replays.
- ASHA reads the table from an export that Syne Tune's own loader opens
  (:func:`proxyhpo.hpo.blackbox.export_table`). It is the kind that stops trials, and draws its
  configurations at random, some of them twice.
- PriorBand searches a box around the grid, every level with an equal share, and gets the nearest
  level. Its prior was set before any truth was known, and not looked up in the table: learning
  rate 0.1, weight decay 5e-4 (the released code's), medium confidence. Brackets are Hyperband's.
- ifBO is left out: it downloads the weights of its surrogate when first used.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import Counter
from datetime import datetime
from functools import lru_cache
from itertools import count
from pathlib import Path

import neps
import numpy as np
import torch
from neps.optimizers.algorithms import priorband as neps_priorband
from neps.space import HPOFloat, HPOInteger, SearchSpace
from syne_tune.backend.trial_status import Trial
from syne_tune.blackbox_repository.blackbox_tabular import BlackboxTabular, deserialize
from syne_tune.optimizer.baselines import ASHA
from syne_tune.optimizer.scheduler import SchedulerDecision

from proxyhpo.analysis.evidence import write_replays
from proxyhpo.analysis.quality import race, raced
from proxyhpo.analysis.ways import NEPS, SYNE_TUNE, Steps
from proxyhpo.hpo.blackbox import export_table
from proxyhpo.hpo.curves import Table, curves_folder, load_table
from proxyhpo.hpo.replay import Recorded

PRIOR = {"lr": 0.1, "weight_decay": 5e-4}
ETA = 3


class Search:
    """What a rival has tried of a table, what that cost, and what it would answer."""

    def __init__(self, table: Table, seed: int) -> None:
        self.oracle = Recorded(table, "base", seed)
        self.epoch = float(table.seconds("base", 1)) / table.whole
        self.allowed = len(table.regime.configurations) // 2
        self.spent, self._least, self._answer = 0.0, np.inf, -1
        self._tried: Counter[int] = Counter()

    def meet(self, configuration: dict) -> tuple[int, int]:
        """Return the places of a configuration and of the weight seed that it meets now."""
        place = self.oracle.place(configuration)
        self._tried[place] += 1
        return place, self.oracle.seed(configuration, self._tried[place] - 1)

    def affords(self, epochs: int) -> bool:
        """Whether so many more are left to spend."""
        return self.spent + epochs * self.epoch <= self.allowed + 1e-9

    def pay(self, epochs: int, place: int, error: float) -> tuple[float, int]:
        """Return what was spent, ``epochs`` more, and the answer now."""
        self.spent += epochs * self.epoch
        if error < self._least:
            self._least, self._answer = error, place
        return self.spent, self._answer


@lru_cache(maxsize=2)
def blackbox(table: Table) -> BlackboxTabular:
    """Return N_B's trainings as Syne Tune opens them."""
    with tempfile.TemporaryDirectory() as folder:
        return deserialize(export_table(table, folder))[table.name]


def asha(table: Table, seed: int) -> Steps:
    """Yield what ASHA would answer after each epoch."""
    np.random.seed(seed)  # noqa: NPY002, what its searcher draws from
    known, search = blackbox(table), Search(table, seed)
    scheduler = ASHA(
        known.configuration_space,
        metric="valid_error",
        time_attr="epochs",
        max_t=table.curves("base").epochs,
        reduction_factor=ETA,
        random_seed=seed,
    )
    for number in count():
        trial = Trial(number, scheduler.suggest().config, datetime.now())
        scheduler.on_trial_add(trial)
        place, which = search.meet(trial.config)
        decision, epoch = SchedulerDecision.CONTINUE, 0
        while decision == SchedulerDecision.CONTINUE:  # it stops after the last epoch, too
            if not search.affords(1):
                return
            epoch += 1
            result = known(trial.config, {"epochs": epoch}, seed=which) | {"epochs": epoch}
            yield search.pay(1, place, float(result["valid_error"]))
            decision = scheduler.on_trial_result(trial, result)
        scheduler.on_trial_remove(trial)


def priorband(table: Table, seed: int) -> Steps:
    """Yield what PriorBand would answer after each evaluation."""
    np.random.seed(seed)  # noqa: NPY002, it draws from this and from torch's
    torch.manual_seed(seed)
    search, accuracy = Search(table, seed), table.curves("base").accuracy
    levels = {name: np.log(values) for name, values in _levels(table).items()}
    space = {name: _box(name, values) for name, values in levels.items()}
    space["epochs"] = HPOInteger(1, accuracy.shape[2], is_fidelity=True)
    rival = neps.AskAndTell(neps_priorband(SearchSpace(space), eta=ETA))
    met: dict[str, tuple[int, int]] = {}
    while True:
        trial = rival.ask()
        before, epochs = 0, trial.config["epochs"]
        if previous := trial.metadata.previous_trial_id:
            met[trial.id], before = met[previous], rival.trials[previous].config["epochs"]
        else:
            nearest = {
                name: _levels(table)[name][np.abs(values - np.log(trial.config[name])).argmin()]
                for name, values in levels.items()
            }
            met[trial.id] = search.meet(nearest)
        if not search.affords(epochs - before):
            return
        place, which = met[trial.id]
        error = float(1 - accuracy[place, which, epochs - 1])
        yield search.pay(epochs - before, place, error)
        rival.tell(trial, error)


def _levels(table: Table) -> dict[str, tuple[float, ...]]:
    """Return the levels of the hyperparameters that the table has several of."""
    both = {"lr": table.regime.lr, "weight_decay": table.regime.weight_decay}
    return {name: values for name, values in both.items() if len(values) > 1}


def _box(name: str, log_levels: np.ndarray) -> HPOFloat:
    """Return the range of a hyperparameter: half a step beyond its levels."""
    first, last = np.diff(log_levels)[[0, -1]] / 2
    return HPOFloat(
        float(np.exp(log_levels[0] - first)),
        float(np.exp(log_levels[-1] + last)),
        log=True,
        prior=PRIOR[name],
        prior_confidence="medium",
    )


RIVALS = {SYNE_TUNE: asha, NEPS: priorband}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, help="folder of the recorded tables")
    parser.add_argument("--out", type=Path, default=curves_folder().parent / "replays")
    parser.add_argument("--draws", type=int, default=20, help="redrawn tables")
    parser.add_argument("--seeds", type=int, default=10, help="searches on each, thrice on the own")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    table = load_table(options.dataset, options.model, options.folder)
    frame = race(table, RIVALS, draws=options.draws, seeds=options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{table.name}-rivals.csv"
    write_replays(path, frame)
    wide = raced(frame).pivot_table(index="budget", columns="way", values="regret")
    print(f"{path}: {len(frame)} lines; points lost by budget\n{wide.to_string()}")


if __name__ == "__main__":
    main()
