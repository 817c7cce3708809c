"""Studies on a recorded learning-curve table: what a study would have seen, in milliseconds.

A replayed study asks the same samplers and trial pruners as a real one, and looks its trials up
instead of training them. Which of the recorded weight seeds a configuration meets first is drawn
from the study's seed; a repeated configuration meets the next one, and pays for it. Verification
and truth look at trainings of N_B that no study sees.

Costs are steps x measured seconds a step, evaluation of a tenth as many pictures as are trained
on after each epoch, making the stand-in, and the sampler's own seconds; never the seconds that
recording took beside other work.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution

from proxyhpo.config import InputError, choose, home
from proxyhpo.hpo.search import SAMPLERS, SPACES, Configuration, Grid, StudySettings, trial_value
from proxyhpo.hpo.tables import SEARCH_SEEDS, TABLES, VERIFY_SEED, Regime, table_rows
from proxyhpo.rows import as_frame, config_id, provenance

HELD_BACK = 0.1
"""Pictures that a user would hold back to validate on, by those trained on."""
SIGNALS = ("accuracy", "loss", "averaged", "averaged_loss")
"""What a rung can look at; the last two of weights averaged over half an epoch."""
_ARRAYS = (*SIGNALS, "test", "diverged")
NEIGHBOURS = 4
"""Configurations to either side, by mean accuracy, whose residuals count as one's own."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The trainings of one entrant, by configuration c, weight seed s, epoch e.

    Attributes:
        accuracy, loss: on the validation pictures, ``(C, S, E)``; chance and infinite from
            divergence on.
        averaged, averaged_loss: of averaged weights, ``(C, S, A)``, for the first A epochs.
        test: test accuracy after the last epoch, ``(C, S)``; chance where it diverged.
        diverged: ``(C, S)``.
        samples: pictures that an epoch trains on.
        macs, parameters: of the network.
    """

    accuracy: np.ndarray
    loss: np.ndarray
    averaged: np.ndarray
    averaged_loss: np.ndarray
    test: np.ndarray
    diverged: np.ndarray
    samples: int
    macs: int
    parameters: int

    @property
    def epochs(self) -> int:
        """Epochs of a full training."""
        return self.accuracy.shape[2]

    @property
    def final(self) -> np.ndarray:
        """Validation accuracy after the last epoch, ``(C, S)``."""
        return self.accuracy[:, :, -1]

    def take(self, seeds: slice | list[int]) -> Curves:
        """Return the trainings of some weight seeds."""
        arrays: dict[str, Any] = {name: getattr(self, name)[:, seeds] for name in _ARRAYS}
        return replace(self, **arrays)

    def redrawn(self, seeds: int, rng: np.random.Generator, lender: Curves | None = None) -> Curves:
        """Return ``seeds`` new trainings: each mean, and residuals of configurations like it.

        A residual is a whole training less its configuration's mean, widened by
        ``sqrt(S / (S - 1))``, and drawn among the configurations of nearest rank. An entrant of
        which one weight seed is recorded has none; it borrows those of ``lender``, N_B.
        """
        own = self.final.shape[1]
        source = lender if own == 1 and lender is not None else self
        count, known = source.final.shape
        order = np.argsort(source.final.mean(1), kind="stable")
        rank = np.argsort(np.argsort(self.final.mean(1), kind="stable"))
        apart = rng.integers(-NEIGHBOURS, NEIGHBOURS + 1, (count, seeds))
        likes = order[np.clip(rank[:, None] + apart, 0, count - 1)]
        which = rng.integers(known, size=(count, seeds))
        widen = math.sqrt(known / max(1, known - 1))

        def drawn(name: str) -> np.ndarray:
            mean, theirs = getattr(self, name).mean(1, keepdims=True), getattr(source, name)
            with np.errstate(invalid="ignore"):  # infinite losses have no residual
                residual = np.nan_to_num((theirs - theirs.mean(1, keepdims=True)) * widen, nan=0.0)
            if residual.ndim == 3:  # the last epochs, where a stand-in has fewer
                residual = residual[:, :, residual.shape[2] - mean.shape[2] :]
            return mean + residual[likes, which]

        values: dict[str, Any] = {name: drawn(name) for name in _ARRAYS if name != "diverged"}
        values |= {name: np.clip(values[name], 0, 1) for name in ("accuracy", "averaged", "test")}
        kept = which if source is self else np.zeros_like(which)
        diverged = self.diverged[np.arange(count)[:, None], kept]
        return replace(self, **values, diverged=diverged)


@dataclass(frozen=True)
class StepCost:
    """Measured seconds, medians of an interleaved benchmark: a step, a picture, the making."""

    step: float
    picture: float
    build: float


@dataclass(frozen=True, eq=False)
class Table:
    """A recorded table in memory.

    Attributes:
        regime: what its trainings are.
        entrants: by name, "base" for N_B: the trainings that studies may see.
        gate: N_B at the first weight decay, on its seeds of search and verification.
        verification: N_B on the seeds of verification.
        truth: test accuracies of N_B on seeds that nothing was chosen with, by configuration;
            NaN where there are fewer, ``(C, N)``.
        steps: measured seconds, one line an entrant and repeat; empty where not measured.
    """

    regime: Regime
    entrants: Mapping[str, Curves]
    gate: Curves
    verification: Curves | None
    truth: np.ndarray
    steps: pd.DataFrame

    @property
    def name(self) -> str:
        """Of its files."""
        return self.regime.name

    @cached_property
    def costs(self) -> dict[str, StepCost]:
        """Medians of the measured seconds, by entrant."""
        medians = self.steps.groupby("entrant", sort=False).median(numeric_only=True)
        return {
            str(name): StepCost(
                line["step_seconds"], line["picture_seconds"], line["build_seconds"]
            )
            for name, line in medians.iterrows()
        }

    @cached_property
    def grid(self) -> Grid:
        """Its search space."""
        levels = {"lr": self.regime.lr}
        if len(self.regime.weight_decay) > 1:
            levels["weight_decay"] = self.regime.weight_decay
        return Grid(levels)

    def place(self, levels: Mapping[str, int]) -> int:
        """Return the place of a configuration on the first axis of all arrays."""
        return levels["lr"] + len(self.regime.lr) * levels.get("weight_decay", 0)

    def curves(self, entrant: str) -> Curves:
        """Return the trainings of ``entrant``.

        Raises:
            InputError: it isn't recorded; names those that are.
        """
        return choose("stand-in of this table", entrant, self.entrants)

    def seconds(self, entrant: str, epochs: float | np.ndarray = 1) -> float | np.ndarray:
        """Return the seconds of training ``epochs`` of ``entrant`` and validating after each.

        Raises:
            InputError: the table's step costs aren't measured.
        """
        samples = self.curves(entrant).samples
        cost = choose("entrant with measured steps", entrant, self.costs)
        steps = samples // self.regime.batch_size
        # a stand-in validates on what its user holds back: a tenth of N_B's training pictures
        held_back = HELD_BACK * self.curves("base").samples
        return epochs * (steps * cost.step + held_back * cost.picture)

    @property
    def whole(self) -> float:
        """Seconds of one full training of N_B: the unit of cost."""
        return float(self.seconds("base", self.curves("base").epochs))

    def trainings(self, entrant: str) -> Curves:
        """Return all trainings of ``entrant`` but truth: N_B's of search and of verification."""
        own = self.curves(entrant)
        if entrant != "base" or self.verification is None:
            return own
        both: dict[str, Any] = {
            name: np.concatenate([getattr(own, name), getattr(self.verification, name)], 1)
            for name in _ARRAYS
        }
        return replace(own, **both)

    def redrawn(self, rng: np.random.Generator, seeds: int | None = None) -> Table:
        """Return the table as another recording might have come out, see :meth:`Curves.redrawn`.

        ``seeds`` of search an entrant; as many as are recorded by default.
        """
        pools = {name: self.trainings(name) for name in self.entrants}
        drawn = {
            name: pools[name].redrawn(seeds or curves.final.shape[1], rng, pools["base"])
            for name, curves in self.entrants.items()
        }
        verification = self.verification
        if verification is not None:
            verification = pools["base"].redrawn(verification.final.shape[1], rng)
        return replace(self, entrants=drawn, verification=verification)


def load_table(dataset: str, network: str, folder: str | Path | None = None) -> Table:
    """Return the recorded table of a data set and a network.

    An entrant has the weight seeds for which all configurations are recorded.

    Args:
        dataset: of the table.
        network: of the table.
        folder: where tables lie; by default ``results/curves`` of the checkout, else the copy
            that came with the package.

    Raises:
        InputError: there is no such table, or nothing of it is recorded yet; names the command
            that records it.
    """
    regime = choose("table", f"{dataset}-{network}", TABLES)
    path = curves_folder(folder) / f"{regime.name}.csv"
    hint = f"record it: ./run_all.sh record --dataset {dataset} --model {network}"
    if not path.exists():
        raise InputError(f"table {regime.name} isn't recorded ({path} isn't there); {hint}")
    steps = path.with_name(f"{regime.name}-steps.csv")
    measured = pd.read_csv(steps) if steps.exists() else pd.DataFrame(columns=["entrant"])
    return table_of(regime, table_rows(path), measured)


def curves_folder(folder: str | Path | None = None) -> Path:
    """Return the folder of recorded tables: this checkout's, or else those in the package."""
    if folder is not None:
        return Path(folder)
    package = Path(__file__).resolve().parents[1]
    checkouts = (checkout / "results" / "curves" for checkout in (home(), package.parent))
    return next(filter(Path.is_dir, checkouts), package / "recorded" / "curves")


def table_of(regime: Regime, rows: pd.DataFrame, steps: pd.DataFrame) -> Table:
    """Return the table that ``rows`` hold, see :func:`load_table`."""
    rows = rows[rows["plan"] == 0]
    entrants = {}
    for name in (*regime.entrants, *regime.extras):
        own = rows[rows["proxy"] == ("" if name == "base" else name)]
        if (curves := _curves(regime, own, SEARCH_SEEDS)) is not None:
            entrants[name] = curves
    base = rows[rows["proxy"] == ""]
    if "base" not in entrants:
        raise InputError(f"table {regime.name}: no weight seed of N_B is recorded in full yet")
    truth = base[base["purpose"] == "truth"]
    places = truth["level_lr"] + len(regime.lr) * truth["level_weight_decay"]
    values = [truth["test_accuracy"][places == c] for c in range(len(regime.configurations))]
    width = max(map(len, values), default=0)
    known = np.full((len(values), width), np.nan)
    for row, own in zip(known, values, strict=True):
        row[: len(own)] = own
    sliced = base[base["level_weight_decay"] == 0]
    gate = _curves(regime, sliced, (*SEARCH_SEEDS, VERIFY_SEED), len(regime.lr))
    assert gate is not None  # a seed of all configurations holds one of these
    verification = _curves(regime, base, (VERIFY_SEED,))
    return Table(regime, entrants, gate, verification, known, steps)


def _curves(
    regime: Regime, rows: pd.DataFrame, seeds: tuple[int, ...], count: int | None = None
) -> Curves | None:
    """Return the trainings of the weight seeds that are recorded in full; None without any.

    In full: all ``count`` configurations, by default the whole grid.
    """
    count = count or len(regime.configurations)
    places = (rows["level_lr"] + len(regime.lr) * rows["level_weight_decay"]).astype(int)
    rows = rows.assign(place=places).sort_values(["seed", "place"])
    parts = [rows[rows["seed"] == seed] for seed in seeds]
    parts = [part for part in parts if len(part) == count]
    if not parts:
        return None
    first = parts[0].iloc[0]
    chance = 1 / regime.classes

    def filled(column: str, width: int, rest: float) -> np.ndarray:
        """Return ``(C, S, width)``; ``rest`` stands from the epoch of divergence on."""
        values = np.full((count, len(parts), width), rest)
        for s, part in enumerate(parts):
            for c, (text, state) in enumerate(zip(part[column], part["state"], strict=True)):
                numbers = np.array(str(text).split(), float)[:width]
                values[c, s, : len(numbers)] = numbers
                if state == "diverged":
                    values[c, s, max(0, len(numbers) - 1) :] = rest
        return values

    budget = int(first["budget"])
    average = len(str(first["curve_averaged"]).split())
    test = np.stack([part["test_accuracy"].to_numpy(float) for part in parts], 1)
    return Curves(
        accuracy=filled("curve", budget, chance),
        loss=filled("curve_loss", budget, math.inf),
        averaged=filled("curve_averaged", average, chance),
        averaged_loss=filled("curve_averaged_loss", average, math.inf),
        test=np.nan_to_num(test, nan=chance),
        diverged=np.stack([(part["state"] == "diverged").to_numpy() for part in parts], 1),
        samples=int(first["samples"]) // max(1, int(first["epochs"])),
        macs=int(first["macs"]),
        parameters=int(first["parameters"]),
    )


class Oracle(Protocol):
    """What a replayed trial trains on: its search space, and curves for configurations."""

    @property
    def space(self) -> Mapping[str, BaseDistribution] | Grid:
        """The search space."""

    def train(self, configuration: Configuration, repeat: int) -> dict[str, np.ndarray]:
        """Return one training's curves, by :data:`SIGNALS`, and "diverged"."""


class Recorded:
    """The grid itself: trainings as they were recorded."""

    def __init__(self, table: Table, entrant: str, seed: int) -> None:
        self.space = table.grid
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
        """Return one training's curves."""
        c, s = self.place(configuration), self.seed(configuration, repeat)
        curves = {name: getattr(self._curves, name)[c, s] for name in (*SIGNALS, "diverged")}
        return curves | {"test": self._curves.test[c, s]}


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
        """Return one training's curves."""
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

        found = {name: drawn(getattr(curves, name)) for name in SIGNALS}
        found |= {name: np.clip(found[name], 0, 1) for name in ("accuracy", "averaged")}
        return found | {"diverged": curves.diverged[nearest, s], "test": drawn(curves.test)}


OBJECTIVES: dict[str, Callable[[dict[str, np.ndarray], int], float]] = {
    "last": lambda curves, done: float(curves["accuracy"][done - 1]),
    # as the released code has it; both flatter what they choose
    "best epoch": lambda curves, done: float(curves["accuracy"].max()),
    "test split": lambda curves, done: float(curves["test"]),
}

ORACLES: dict[str, Callable[[Table, str, int], Oracle]] = {
    "grid": Recorded,
    "paper": Interpolated,
}
"""Search spaces that a table can stand for."""


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
    sampler: str,
    trials: int,
    trial_pruner: str,
    seed: int,
    space: str = "grid",
) -> StudySettings:
    """Return the settings of a study on ``table``, replayed or live.

    The first rung is the first epoch after which the median configuration is 5 points above chance:
    an earlier one would compare chance with chance.

    Raises:
        InputError: an unknown name, or more trials than half of the grid's configurations.
    """
    choose("space of a table", space, ORACLES)
    curves = table.curves(stand_in)
    most = len(table.regime.configurations) // 2
    if space == "grid" and not 1 <= trials <= most:
        raise InputError(f"trials {trials}: from 1 to {most}, half of the table's configurations")
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
    sampler: str = "tpe",
    trials: int = 18,
    verify: int = 0,
    trial_pruner: str = "none",
    seed: int = 0,
    space: str = "grid",
    signal: str = "accuracy",
    objective: str = "last",
) -> Replay:
    """Replay one study on ``table``, see :func:`replay`.

    ``signal`` is what the trial pruner looks at, a name of :data:`SIGNALS`; ``objective`` what a
    trained trial is judged by, a key of :data:`OBJECTIVES`.
    """
    choose("objective", objective, OBJECTIVES)
    settings = replay_settings(
        table, stand_in, sampler=sampler, trials=trials, trial_pruner=trial_pruner, seed=seed,
        space=space,
    )  # fmt: skip
    oracle = ORACLES[space](table, stand_in, seed)
    study = optuna.create_study(direction="maximize", pruner=settings.build_trial_pruner())
    seen: Counter[tuple] = Counter()
    done = [
        _trial(study, settings, oracle, seen, number, signal, objective) for number in range(trials)
    ]
    study_done = Replay(tuple(done))
    if not verify:
        return study_done
    best = study_done.best[:verify]
    return replace(study_done, verified=tuple((c, _verified(table, c, seed, space)) for c in best))


def _trial(
    study: optuna.Study,
    settings: StudySettings,
    oracle: Oracle,
    seen: Counter[tuple],
    number: int,
    signal: str,
    objective: str,
) -> Trial:
    began = time.perf_counter()
    study.sampler = settings.build_sampler(number)
    trial = study.ask(fixed_distributions=settings.asked)
    spent = time.perf_counter() - began
    configuration = settings.configuration(trial.params)
    key = tuple(configuration.items())
    curves = oracle.train(configuration, seen[key])
    epochs = settings.epochs
    state, done = "diverged" if curves["diverged"] else "complete", epochs
    rungs = curves[signal] if not signal.endswith("loss") else -curves[signal]
    for epoch in range(1, epochs):
        if epoch <= len(rungs):
            trial.report(float(np.nan_to_num(rungs[epoch - 1], neginf=-1e9)), epoch)
            if trial.should_prune():
                state, done = "stopped", epoch
                break
    judged = OBJECTIVES[objective if done == epochs else "last"]
    accuracy = float(judged(curves, done))
    began = time.perf_counter()
    study.tell(trial, **trial_value(settings, state, accuracy))
    spent += time.perf_counter() - began
    repeat = seen[key]
    seen[key] += 1
    curve = tuple(float(value) for value in curves["accuracy"][:done])
    loss = float(curves["loss"][done - 1])
    return Trial(configuration, state, done, accuracy, curve, loss, spent, repeat)


def _verified(table: Table, configuration: Configuration, seed: int, space: str) -> float:
    """Return N_B's validation accuracy with ``configuration`` on a seed of verification."""
    if table.verification is None:
        raise InputError(f"table {table.name}: its verification isn't recorded yet")
    oracle = ORACLES[space](replace(table, entrants={"base": table.verification}), "base", seed)
    return float(oracle.train(configuration, 0)["accuracy"][-1])


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

    Args:
        table: see :func:`load_table`.
        stand_in: what is tuned, an entrant of the table; "base" is N_B itself.
        sampler: a key of :data:`proxyhpo.hpo.search.SAMPLERS`.
        trials: of the study, at most half of the grid's configurations.
        verify: how many of the study's best N_B is trained with, on seeds of its own.
        trial_pruner: a key of :data:`proxyhpo.hpo.search.TRIAL_PRUNERS`.
        seed: of the sampler, and of which recorded training a trial meets.
        space: "grid", or "paper": the learning rate alone, interpolated.

    Returns:
        Rows of the schema of a real study (:data:`proxyhpo.rows.COLUMNS`).

    Raises:
        InputError: a name that the table or a registry doesn't know, too many trials, or a part
            of the table that isn't recorded.
    """
    choose("sampler", sampler, SAMPLERS)
    found = replay_study(
        table, stand_in=stand_in, sampler=sampler, trials=trials, verify=verify,
        trial_pruner=trial_pruner, seed=seed, space=space,
    )  # fmt: skip
    own, base = table.curves(stand_in), table.curves("base")
    shared = {
        "profile": "table",
        "dataset": table.regime.dataset,
        "network": table.regime.network,
        "sampler": sampler,
        "seed": seed,
        "side": table.regime.side,
        "batch_size": table.regime.batch_size,
        "device": "replayed",
        "threads": 1,
        **provenance(),
    }

    def row(one: Trial, entrant: str, curves: Curves, **fields: object) -> dict[str, object]:
        cost = table.costs[entrant]
        train = one.epochs * (curves.samples // table.regime.batch_size) * cost.step
        validate = float(table.seconds(entrant, one.epochs)) - train
        spent = train + validate + one.sampler_seconds
        proxy = "" if entrant == "base" else entrant
        return {
            **shared,
            "role": "proxy" if proxy else "base",
            "proxy": proxy,
            "state": one.state,
            "epochs": one.epochs,
            "budget": curves.epochs,
            "val_accuracy": one.accuracy,
            "val_loss": one.loss,
            "curve": " ".join(f"{value:.4f}" for value in one.curve),
            "wall_seconds": spent,
            "cpu_seconds": spent,
            "elapsed_seconds": spent,
            "train_seconds": train,
            "eval_seconds": validate,
            "sampler_seconds": one.sampler_seconds,
            "samples": one.epochs * curves.samples,
            "macs": curves.macs,
            "parameters": curves.parameters,
            "config_id": config_id(one.configuration),
            **{f"param_{name}": value for name, value in one.configuration.items()},
            **fields,
        }

    rows = [
        row(trial, stand_in, own, purpose="study", trial=number)
        for number, trial in enumerate(found.trials)
    ]
    if stand_in != "base" and table.costs[stand_in].build:
        built = table.costs[stand_in].build
        spent = dict.fromkeys(("wall_seconds", "cpu_seconds", "elapsed_seconds"), built)
        made = {"proxy_seconds": built, "purpose": "proxy", "state": "complete"}
        rows.insert(0, {**shared, "role": "proxy", "proxy": stand_in, **spent, **made})
    for rank, (configuration, accuracy) in enumerate(found.verified):
        full = base.epochs
        trained = Trial(configuration, "complete", full, accuracy, (accuracy,), math.nan, 0.0, 0)
        rows.append(row(trained, "base", base, purpose="verify", trial=rank))
    return as_frame(rows)
