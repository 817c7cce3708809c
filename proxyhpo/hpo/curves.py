"""Recorded learning-curve tables in memory: arrays of trainings, and what they cost.

What a table holds is decided in :mod:`proxyhpo.hpo.tables`; studies on it are replayed by
:mod:`proxyhpo.hpo.replay`.

Costs are steps x measured seconds a step, evaluation of a tenth as many pictures as are trained
on after each epoch, and making the stand-in; never the seconds that recording took beside other
work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd

from proxyhpo.config import InputError, choose, home
from proxyhpo.hpo.search import Grid
from proxyhpo.hpo.tables import SEARCH_SEEDS, TABLES, VERIFY_SEED, Regime, table_name, table_rows

HELD_BACK = 0.1
"""Pictures that a user would hold back to validate on, by those trained on."""
NEIGHBOURS = 4
"""Configurations to either side, by mean accuracy, whose residuals count as one's own."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The trainings of one entrant, by configuration c, weight seed s, epoch e.

    Attributes:
        accuracy, loss: on the validation pictures, ``(C, S, E)``; chance and infinite from
            divergence on.
        averaged: accuracy of averaged weights, ``(C, S, A)``, for the first A epochs.
        test: test accuracy after the last epoch, ``(C, S)``; chance where it diverged.
        diverged: ``(C, S)``.
        samples: pictures that an epoch trains on.
        macs, parameters: of the network.
    """

    accuracy: np.ndarray
    loss: np.ndarray
    averaged: np.ndarray
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

    def map(self, change: Callable[[str], Any]) -> Curves:
        """Return these trainings with the arrays that ``change`` gives, by their names."""
        names = ("accuracy", "loss", "averaged", "test", "diverged")
        return replace(self, **{name: change(name) for name in names})

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

        kept = which if source is self else np.zeros_like(which)

        def drawn(name: str) -> np.ndarray:
            if name == "diverged":
                return self.diverged[np.arange(count)[:, None], kept]
            mean, theirs = getattr(self, name).mean(1, keepdims=True), getattr(source, name)
            with np.errstate(invalid="ignore"):  # infinite losses have no residual
                residual = np.nan_to_num((theirs - theirs.mean(1, keepdims=True)) * widen, nan=0.0)
            if residual.ndim == 3:  # the last epochs, where a stand-in has fewer
                residual = residual[:, :, residual.shape[2] - mean.shape[2] :]
            values = mean + residual[likes, which]
            return values if name == "loss" else np.clip(values, 0, 1)

        return self.map(drawn)


@dataclass(frozen=True)
class StepCost:
    """Measured seconds, by medians of an interleaved benchmark: a step, a picture, the making."""

    step: float
    picture: float
    build: float


def stepped_as(entrant: str) -> str:
    """Return the entrant whose step and evaluation of a picture ``entrant`` has: often its own.

    Fewer epochs and fewer pictures leave those of the network, N_B or a pruned one, as they are;
    what they were timed to take is a timing's control, and its scatter no cost.
    """
    parts = entrant.split("+")
    changed = [part for part in parts if not part.startswith(("epochs@", "subset@"))]
    return "+".join(changed) or "base"


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

    def __repr__(self) -> str:
        count = len(self.regime.configurations)
        seeds = ", ".join(f"{name} {own.final.shape[1]}" for name, own in self.entrants.items())
        return f"Table {self.name}: {count} configurations; weight seeds of each entrant: {seeds}"

    @property
    def name(self) -> str:
        """Of its files."""
        return self.regime.name

    @property
    def trials(self) -> int:
        """Of a full search on N_B: half of the grid's configurations."""
        return len(self.regime.configurations) // 2

    @cached_property
    def costs(self) -> dict[str, StepCost]:
        """Medians of the measured seconds, by entrant; none where none were measured.

        A step is that of :func:`stepped_as`. Entrants that were timed later, on another machine
        perhaps, are in seconds of the first timing: by N_B's step, which both have timed.
        """
        if self.steps.empty:
            return {}
        keys = ["recorded", "entrant"]
        medians = self.steps.groupby(keys, sort=False).median(numeric_only=True)
        parts = medians[["step_seconds", "picture_seconds", "build_seconds"]]
        base = parts["step_seconds"].xs("base", level="entrant")
        in_first = parts.mul(base.iloc[0] / base, axis=0, level="recorded").droplevel("recorded")
        first = in_first[~in_first.index.duplicated()]
        same = first.loc[list(map(stepped_as, first.index)), ["step_seconds", "picture_seconds"]]
        lines = zip(first.index, same.to_numpy(), first["build_seconds"], strict=True)
        return {name: StepCost(*map(float, (*both, build))) for name, both, build in lines}

    @property
    def stand_ins(self) -> list[str]:
        """Its entrants apart from N_B that studies can be replayed on: those with step costs."""
        return [name for name in self.entrants if name != "base" and name in self.costs]

    @cached_property
    def grid(self) -> Grid:
        """Its search space."""
        levels = {"lr": self.regime.lr}
        if len(self.regime.weight_decay) > 1:
            levels["weight_decay"] = self.regime.weight_decay
        return Grid(levels)

    def curves(self, entrant: str) -> Curves:
        """Return the trainings of ``entrant``; :class:`InputError` names those that there are."""
        return choose("stand-in of this table", entrant, self.entrants)

    def seconds(self, entrant: str, epochs: float | np.ndarray = 1) -> float | np.ndarray:
        """Return the measured seconds of ``epochs`` of ``entrant``, each validated.

        Raises:
            InputError: the table's step costs aren't measured.
        """
        samples = self.curves(entrant).samples
        cost = choose("entrant with measured steps", entrant, self.costs)
        steps = samples // self.regime.batch_size
        # a stand-in validates on what its user holds back: a tenth of N_B's training pictures
        held_back = HELD_BACK * self.curves("base").samples
        return epochs * (steps * cost.step + held_back * cost.picture)

    def share(self, entrant: str) -> float:
        """Return the time of a full trial on ``entrant`` by one on N_B."""
        return float(self.seconds(entrant, self.curves(entrant).epochs)) / self.whole

    @property
    def whole(self) -> float:
        """Seconds of one full training of N_B: the unit of cost."""
        return float(self.seconds("base", self.curves("base").epochs))

    def trainings(self, entrant: str) -> Curves:
        """Return all trainings of ``entrant`` but truth: N_B's of search and of verification."""
        own = self.curves(entrant)
        held = self.verification
        if entrant != "base" or held is None:
            return own
        return own.map(lambda name: np.concatenate([getattr(own, name), getattr(held, name)], 1))

    def redrawn(self, rng: np.random.Generator, seeds: int | None = None) -> Table:
        """Return the table as another recording might have come out, see :meth:`Curves.redrawn`.

        ``seeds`` of search an entrant; as many as are recorded by default. Truth is redrawn too.
        Each part has a stream of its own: an entrant that joins leaves the others' draws.
        """
        key = int(rng.integers(2**32))

        def stream(part: str) -> np.random.Generator:
            return np.random.default_rng([key, crc32(part.encode())])

        pools = {name: self.trainings(name) for name in self.entrants}
        drawn = {
            name: pools[name].redrawn(seeds or curves.final.shape[1], stream(name), pools["base"])
            for name, curves in self.entrants.items()
        }
        verification = self.verification
        if verification is not None:
            count = verification.final.shape[1]
            verification = pools["base"].redrawn(count, stream("verification"))
        truth = _redrawn_truth(self.truth, stream("truth"))
        return replace(self, entrants=drawn, verification=verification, truth=truth)


def _redrawn_truth(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return truth as other weight seeds might have given it: means, and pooled residuals."""
    count = np.isfinite(truth).sum(1)
    own = truth[count > 1]
    if not len(own):
        return truth
    widen = np.sqrt(count[count > 1] / (count[count > 1] - 1))[:, None]
    residuals = (own - np.nanmean(own, axis=1, keepdims=True)) * widen
    drawn = rng.choice(residuals[np.isfinite(residuals)], truth.shape)
    mean = np.nansum(truth, axis=1, keepdims=True) / np.maximum(count, 1)[:, None]
    return np.where(np.isfinite(truth), mean + drawn, np.nan)


class NotRecordedError(InputError):
    """A table of which no weight seed is recorded in full."""


def load_table(
    dataset: str, network: str, folder: str | Path | None = None, *, scale: str = ""
) -> Table:
    """Return the recorded table of a data set and a network, at one of the tables' scales.

    An entrant has the weight seeds for which all configurations are recorded. Tables lie in
    ``folder``, by default in ``results/curves`` of the checkout, else in the copy that came with
    the package.

    Raises:
        InputError: there is no such table, or its file is damaged.
        NotRecordedError: nothing of it is recorded yet; names the command that records it.
    """
    regime = choose("table", table_name(dataset, network, scale), TABLES)
    path = curves_folder(folder) / f"{regime.name}.csv"
    hint = f"record it: ./run_all.sh record --dataset {dataset} --model {network}"
    hint += f" --profile {scale}" if scale else ""
    if not path.exists():
        raise NotRecordedError(f"table {regime.name} isn't recorded ({path} isn't there); {hint}")
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


def curves_under(out: str | Path) -> Path:
    """Return the folder of tables under ``out``, or else the recorded ones, which are only read."""
    own = Path(out, "results", "curves")
    return own if any(own.glob("*.csv")) else curves_folder()


def table_of(regime: Regime, rows: pd.DataFrame, steps: pd.DataFrame) -> Table:
    """Return the table that ``rows`` hold, see :func:`load_table`."""
    rows = rows[rows["plan"] == 0]
    rows = rows.assign(place=rows["level_lr"] + len(regime.lr) * rows["level_weight_decay"])
    entrants = {}
    for name in (*regime.entrants, *regime.extras):
        own = rows[rows["proxy"] == ("" if name == "base" else name)]
        if (curves := _curves(regime, own, SEARCH_SEEDS)) is not None:
            entrants[name] = curves
    base = rows[rows["proxy"] == ""]
    if "base" not in entrants:
        raise NotRecordedError(
            f"table {regime.name}: no weight seed of N_B is recorded in full yet"
        )
    truth = base[base["purpose"] == "truth"]
    nth = truth.groupby("place").cumcount()
    known = np.full((len(regime.configurations), 1 + max(nth, default=-1)), np.nan)
    known[truth["place"], nth] = truth["test_accuracy"]
    sliced = base[base["level_weight_decay"] == 0]
    gate = _curves(regime, sliced, (*SEARCH_SEEDS, VERIFY_SEED), len(regime.lr))
    assert gate is not None  # a seed of all configurations holds one of these
    verification = _curves(regime, base, (VERIFY_SEED,))
    return Table(regime, entrants, gate, verification, known, steps)


def _curves(
    regime: Regime, rows: pd.DataFrame, seeds: tuple[int, ...], count: int | None = None
) -> Curves | None:
    """Return the trainings of weight seeds of which all ``count`` configurations are there."""
    count = count or len(regime.configurations)
    rows = rows.sort_values(["seed", "place"])
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
    test = np.stack([part["test_accuracy"].to_numpy(float) for part in parts], 1)
    return Curves(
        accuracy=filled("curve", budget, chance),
        loss=filled("curve_loss", budget, math.inf),
        averaged=filled("curve_averaged", len(str(first["curve_averaged"]).split()), chance),
        test=np.nan_to_num(test, nan=chance),
        diverged=np.stack([(part["state"] == "diverged").to_numpy() for part in parts], 1),
        samples=int(first["samples"]) // max(1, int(first["epochs"])),
        macs=int(first["macs"]),
        parameters=int(first["parameters"]),
    )
