"""Studies on a recorded learning-curve table: what a study would have seen, in milliseconds.

A replayed study asks the same samplers and trial pruners as a real one, and looks its trials up
instead of training them. Which of the recorded weight seeds a configuration meets first is drawn
from the study's seed; a repeated configuration meets the next one, and pays for it. Verification
and truth look at trainings of N_B that no study sees.

A study costs what its table says (:mod:`proxyhpo.hpo.curves`), and the sampler's own seconds.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
import pandas as pd

from proxyhpo.config import InputError, check_integer, check_seed, check_verify, choose
from proxyhpo.hpo.curves import Table
from proxyhpo.hpo.search import SPACES, Configuration, StudySettings, trial_value
from proxyhpo.rows import as_frame, identity, provenance, spent


class Recorded:
    """The grid itself: trainings as they were recorded."""

    def __init__(self, table: Table, entrant: str, seed: int) -> None:
        self._curves = table.curves(entrant)
        count, seeds = self._curves.final.shape
        rng = np.random.default_rng([seed, 1])
        self._order = rng.permuted(np.tile(np.arange(seeds), (count, 1)), axis=1)
        self._table = table
        self._place = {
            tuple(table.regime.configuration(levels).values()): c
            for c, levels in enumerate(table.regime.configurations)
        }

    def place(self, configuration: Configuration) -> int:
        """Return the place of a configuration in the table."""
        whole = {**self._table.regime.configuration((0, 0)), **configuration}
        return self._place[tuple(whole.values())]

    def seed(self, configuration: Configuration, repeat: int) -> int:
        """Return the place of the weight seed that the ``repeat``-th trial of it meets."""
        order = self._order[self.place(configuration)]
        return int(order[repeat % len(order)])

    def train(self, configuration: Configuration, repeat: int) -> dict[str, np.ndarray]:
        """Return one training's "accuracy" and "loss" by epoch, its "test" accuracy, "diverged"."""
        c, s = self.place(configuration), self.seed(configuration, repeat)
        names = ("accuracy", "loss", "test", "diverged")
        return {name: getattr(self._curves, name)[c, s] for name in names}


class Interpolated:
    """The paper's own space, the learning rate alone, uniform in 1e-5 to 0.2.

    Between recorded learning rates the mean curve is linear in log lr, and a residual of the
    nearest one is added; below the lowest, the lowest stands. An approximation, to be labelled.
    """

    space = SPACES["paper"]

    def __init__(self, table: Table, entrant: str, seed: int) -> None:
        self._curves = table.curves(entrant)
        self._log_lr = np.log(table.regime.lr)
        self._rng = np.random.default_rng([seed, 2])

    def train(self, configuration: Configuration, repeat: int) -> dict[str, np.ndarray]:
        """Return one training's curves, as :meth:`Recorded.train` does."""
        curves, count = self._curves, len(self._log_lr)
        at = np.interp(math.log(configuration["lr"]), self._log_lr, np.arange(count))
        below = min(int(at), count - 2)
        share, nearest = at - below, round(float(at))
        seeds = curves.final.shape[1]
        s, widen = self._rng.integers(seeds), math.sqrt(seeds / max(1, seeds - 1))

        def drawn(values: np.ndarray) -> np.ndarray:
            mean = values[:count].mean(1)
            with np.errstate(invalid="ignore"):
                here = (1 - share) * mean[below] + share * mean[below + 1]
                residual = np.nan_to_num(values[nearest, s] - mean[nearest], nan=0.0)
            return here + widen * residual

        found = {"accuracy": np.clip(drawn(curves.accuracy), 0, 1), "loss": drawn(curves.loss)}
        return found | {"diverged": curves.diverged[nearest, s], "test": drawn(curves.test)}


OBJECTIVES: dict[str, Callable[[dict[str, np.ndarray], int], float]] = {
    "last": lambda curves, done: float(curves["accuracy"][done - 1]),
    # as the released code has it; both flatter what they choose
    "best epoch": lambda curves, done: float(curves["accuracy"].max()),
    "test split": lambda curves, done: float(curves["test"]),
}

ORACLES: dict[str, type[Recorded] | type[Interpolated]]
ORACLES = {"grid": Recorded, "paper": Interpolated}
"""Search spaces that a table can stand for, and what a replayed trial of them trains on."""


@dataclass(frozen=True)
class Trial:
    """One replayed trial."""

    configuration: Configuration
    state: str
    epochs: int
    accuracy: float
    curve: tuple[float, ...]
    loss: float
    sampler_seconds: float
    repeat: int


@dataclass(frozen=True)
class Replay:
    """A replayed study and its verification.

    Attributes:
        trials: in the order of their numbers.
        verified: the k best of the study, and N_B's accuracy with each on verification seeds.
    """

    trials: tuple[Trial, ...]
    verified: tuple[tuple[Configuration, float], ...] = ()

    @property
    def best(self) -> list[Configuration]:
        """The configurations trained in full, best first, each once."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        complete.sort(key=lambda trial: -trial.accuracy)
        return list({tuple(t.configuration.items()): t.configuration for t in complete}.values())

    def choice(self, k: int = 0) -> Configuration | None:
        """Return what is chosen with ``k`` verifications; None if no trial was trained in full."""
        if k and self.verified:
            return max(self.verified[:k], key=lambda pair: pair[1])[0]
        return next(iter(self.best), None)

    @property
    def epochs(self) -> int:
        """Epochs that all trials together took."""
        return sum(trial.epochs for trial in self.trials)

    @property
    def repeats(self) -> int:
        """Trials of a configuration that was tried before."""
        return sum(trial.repeat > 0 for trial in self.trials)


def replay_settings(
    table: Table,
    stand_in: str,
    *,
    sampler: str = "tpe",
    trials: int = 18,
    trial_pruner: str = "none",
    seed: int = 0,
    space: str = "grid",
) -> StudySettings:
    """Return the settings of a study on ``table``, replayed or live; see :func:`replay`.

    The first rung is the first epoch after which the median configuration is 5 points above chance:
    an earlier one would compare chance with chance.

    Raises:
        InputError: an unknown name, a seed that is none, or more trials than the grid has
            configurations.
    """
    if not isinstance(table, Table):
        raise InputError(f"table {table!r}: what load_table('cifar10', 'resnet20') returns")
    choose("space of a table", space, ORACLES)
    check_integer("trials", trials, 1)
    check_seed(seed)
    curves, most = table.curves(stand_in), len(table.regime.configurations)
    if space == "grid" and trials > most:
        raise InputError(f"trials {trials}: from 1 to {most}, the table's configurations")
    median = np.median(curves.accuracy.mean(1), axis=0)
    return StudySettings(
        name=f"{table.regime.name}-{sampler}-seed{seed}",
        space=table.grid if space == "grid" else Interpolated.space,
        sampler=sampler,
        trial_pruner=trial_pruner,
        trials=trials,
        epochs=curves.epochs,
        seed=seed,
        first_rung=1 + int(np.argmax(median > 1 / table.regime.classes + 0.05)),
    )


def replay_study(
    table: Table,
    *,
    stand_in: str = "base",
    verify: int = 0,
    seed: int = 0,
    space: str = "grid",
    objective: str = "last",
    drawn: int = 0,
    **settings: Any,
) -> Replay:
    """Replay one study on ``table``, see :func:`replay`.

    ``objective`` is what a trained trial, and N_B in verification, is judged by, a key of
    :data:`OBJECTIVES`; ``drawn``, how many of the first trials are drawn at random, whatever the
    sampler; ``settings`` are those of :func:`replay_settings`.
    """
    choose("objective", objective, OBJECTIVES)
    chosen = replay_settings(table, stand_in, seed=seed, space=space, **settings)
    check_verify(verify, chosen.trials)
    at_random = replace(chosen, sampler="random")
    oracle, seen = ORACLES[space](table, stand_in, seed), Counter[tuple]()
    study = optuna.create_study(direction="maximize", pruner=chosen.build_trial_pruner())

    def trained(number: int) -> Trial:
        began = time.perf_counter()
        study.sampler = (at_random if number < drawn else chosen).build_sampler(number)
        trial = study.ask(fixed_distributions=chosen.asked)
        seconds = time.perf_counter() - began
        configuration = chosen.configuration(trial.params)
        key = tuple(configuration.items())
        repeat = seen[key]
        seen[key] += 1
        curves = oracle.train(configuration, repeat)
        state, done = "diverged" if curves["diverged"] else "complete", chosen.epochs
        for epoch, value in enumerate(curves["accuracy"][: chosen.epochs - 1], 1):
            trial.report(float(value), epoch)
            if trial.should_prune():
                state, done = "stopped", epoch
                break
        judged = OBJECTIVES[objective if done == chosen.epochs else "last"]
        accuracy = judged(curves, done)
        began = time.perf_counter()
        study.tell(trial, **trial_value(chosen, state, accuracy))
        seconds += time.perf_counter() - began
        curve = tuple(float(value) for value in curves["accuracy"][:done])
        loss = float(curves["loss"][done - 1])
        return Trial(configuration, state, done, accuracy, curve, loss, seconds, repeat)

    done = Replay(tuple(map(trained, range(chosen.trials))))
    best = done.best[:verify]
    if not best:
        return done
    if table.verification is None:
        raise InputError(f"table {table.name}: its verification isn't recorded yet")
    held = replace(table, entrants={"base": table.verification})

    def accuracy(configuration: Configuration) -> float:
        curves = ORACLES[space](held, "base", seed).train(configuration, 0)
        return OBJECTIVES[objective](curves, len(curves["accuracy"]))

    return replace(done, verified=tuple((one, accuracy(one)) for one in best))


def replay(
    table: Table,
    *,
    stand_in: str = "base",
    sampler: str = "tpe",
    trials: int = 18,
    verify: int = 3,
    trial_pruner: str = "none",
    seed: int = 0,
    space: str = "grid",
) -> pd.DataFrame:
    """Return the rows that a study on ``table`` would have recorded, and its verification's.

    The rows have the schema of a real study (:data:`proxyhpo.rows.COLUMNS`).

    Args:
        table: see :func:`load_table`.
        stand_in: what is tuned, an entrant of the table; "base" is N_B itself.
        sampler: a key of :data:`proxyhpo.hpo.search.SAMPLERS`.
        trials: of the study, at most as many as the grid has configurations.
        verify: how many of the study's best N_B is trained with, on seeds of its own.
        trial_pruner: a key of :data:`proxyhpo.hpo.search.TRIAL_PRUNERS`.
        seed: of the sampler, and of which recorded training a trial meets.
        space: "grid", or "paper": the learning rate alone, interpolated.

    Raises:
        InputError: a name that the table or a registry doesn't know, too many trials, or a part
            of the table that isn't recorded.
    """
    found = replay_study(
        table, stand_in=stand_in, sampler=sampler, trials=trials, verify=verify,
        trial_pruner=trial_pruner, seed=seed, space=space,
    )  # fmt: skip
    known = {"sampler": sampler, "seed": seed}

    def row(one: Trial, entrant: str, **fields: object) -> dict[str, object]:
        cost, curves = table.costs[entrant], table.curves(entrant)
        train = one.epochs * (curves.samples // table.regime.batch_size) * cost.step
        validate = float(table.seconds(entrant, one.epochs)) - train
        return {
            **looked_up(table, entrant),
            **known,
            "state": one.state,
            "epochs": one.epochs,
            "val_accuracy": one.accuracy,
            "val_loss": one.loss,
            "curve": " ".join(f"{value:.4f}" for value in one.curve),
            **spent(train + validate + one.sampler_seconds),
            "train_seconds": train,
            "eval_seconds": validate,
            "sampler_seconds": one.sampler_seconds,
            "samples": one.epochs * curves.samples,
            **identity(one.configuration),
            **fields,
        }

    rows = [
        row(trial, stand_in, purpose="study", trial=number)
        for number, trial in enumerate(found.trials)
    ]
    if stand_in != "base" and (built := table.costs[stand_in].build):
        made = {"purpose": "proxy", "proxy_seconds": built, **spent(built)}
        rows.insert(0, looked_up(table, stand_in) | known | made)
    full = table.curves("base").epochs
    for rank, (configuration, accuracy) in enumerate(found.verified):
        trained = Trial(configuration, "complete", full, accuracy, (accuracy,), math.nan, 0.0, 0)
        rows.append(row(trained, "base", purpose="verify", trial=rank))
    return as_frame(rows)


def interpolated(table: Table, values: np.ndarray, configuration: Configuration) -> float:
    """Return a value of each configuration, ``(C,)``, at any learning rate: linear in log lr."""
    rates = len(table.regime.lr)
    decay = configuration.get("weight_decay", table.regime.weight_decay[0])
    start = rates * table.regime.weight_decay.index(decay)
    own = values[start : start + rates]
    return float(np.interp(math.log(configuration["lr"]), np.log(table.regime.lr), own))


def looked_up(table: Table, entrant: str) -> dict[str, object]:
    """Return the columns that all looked-up trainings of ``entrant`` have in common."""
    regime, curves = table.regime, table.curves(entrant)
    return {
        **regime.labels(entrant),
        "state": "complete",
        "budget": curves.epochs,
        "side": regime.side,
        "batch_size": regime.batch_size,
        "macs": curves.macs,
        "parameters": curves.parameters,
        "device": "replayed",
        "threads": 1,
        **provenance(),
    }
