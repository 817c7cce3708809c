"""One trial: from a configuration on a stand-in to an outcome and a whole row.

A row's seconds span everything that was waited for on its account, by wall-clock and by CPU time
of the process, so that the rows of a run add up to the run.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, Generic, TypeVar
from zlib import crc32

from proxyhpo.config import Experiment
from proxyhpo.data.datasets import Dataset, Feed, Split, load_dataset
from proxyhpo.hpo.search import Configuration
from proxyhpo.hpo.stand_ins import Builder, Entrant, StandIn, make_stand_in
from proxyhpo.hpo.study import Claim
from proxyhpo.models import build_network, check_side, seeded
from proxyhpo.rows import identity, provenance, spent
from proxyhpo.training import Outcome, evaluate, this_device, train

EVALUATION_BATCH = 128
"""On a CPU as fast as any for ResNets and VGG, 1.3 times as fast as 256 for MobileNetV2."""
LABELS = ("profile", "dataset", "network", "sampler", "seed")

Row = dict[str, Any]
Record = Callable[[Row], None]
One = TypeVar("One", bound=Entrant)


class Clock:
    """Wall-clock and CPU seconds, lap by lap, so that nothing between two rows goes uncounted."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the seconds of the block, which another row counts, out of this lap."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._wall += time.perf_counter() - wall
        self._cpu += time.process_time() - cpu

    def lap(self) -> dict[str, float]:
        """Return the columns of this lap's seconds; start the next."""
        wall, cpu = self._wall, self._cpu
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return spent(self._wall - wall) | {"cpu_seconds": self._cpu - cpu}


@dataclass(frozen=True)
class TrainOptions:
    """How one configuration is trained from fresh weights.

    Attributes:
        seed: of weights, batches and augmentation.
        stop: the trial pruner, see :func:`proxyhpo.training.train`.
        average: epochs to evaluate with averaged weights too, likewise.
        test: evaluate a complete training on the test split too.
        final: train on training and validation pictures together, and evaluate once, on the test
            split.
    """

    seed: int
    stop: Callable[[int, float], bool] | None = None
    average: int = 0
    test: bool = False
    final: bool = False


@dataclass(frozen=True)
class Task:
    """What the rows of a bench are labelled with, and the scale of a full trial on N_B.

    Pictures a step, and the share of N_B's cost that a stand-in keeps, hold where a configuration
    or a name doesn't say.
    """

    profile: str
    dataset: str
    network: str
    sampler: str
    seed: int
    epochs: int
    batch_size: int
    share: float


class Bench(ABC, Generic[One]):
    """What the trials of one task share, whatever code trains them.

    ``base`` draws N_B's fresh weights from a seed.
    """

    def __init__(self, task: Task, base: Builder, *, workers: int = 1) -> None:
        self.task, self.base, self.device = task, base, this_device()
        self._workers = workers
        self._stand_ins = {"base": self._make("base")}

    @abstractmethod
    def _make(self, name: str, plan: str = "") -> One:
        """Return stand-in ``name``, built by ``plan`` where there is one."""

    @abstractmethod
    def _train(
        self, stand_in: One, configuration: Configuration, options: TrainOptions
    ) -> tuple[Outcome, Row]:
        """Return the outcome of a training, and columns of its row."""

    def attempt(
        self,
        clock: Clock,
        stand_in: One,
        configuration: Configuration,
        options: TrainOptions,
        **fields: object,
    ) -> tuple[Outcome, Row]:
        """Train ``configuration`` on ``stand_in``; return the outcome and the row that records it.

        The lap of ``clock`` began when the waiting for this trial did, and ends with it;
        ``fields`` are more columns of the row.
        """
        outcome, found = self._train(stand_in, configuration, options)
        known = {
            "state": outcome.state,
            "epochs": outcome.epochs,
            "budget": stand_in.epochs,
            "train_seconds": outcome.train_seconds,
            **identity(configuration),
            **found,
            **fields,
        }
        return outcome, self.row(clock, stand_in, **known)

    def seed(self, *names: object) -> int:
        """Return the seed that follows from the task's and these ``names``."""
        return crc32(repr((self.task.seed, *names)).encode())

    def stand_in(self, name: str, record: Record, plan: str = "") -> One:
        """Return stand-in ``name``, made and recorded at its first use; "base" is N_B itself.

        A ``plan`` (:meth:`proxyhpo.Proxy.to_json`) is built and not pruned again; it replaces one
        made here, where another machine's was kept.
        """
        if name not in self._stand_ins or plan not in ("", self._stand_ins[name].plan):
            clock = Clock()
            self._stand_ins[name] = made = self._make(name, plan)
            record(self.row(clock, made, purpose="proxy", proxy_seconds=made.seconds))
        return self._stand_ins[name]

    def attempts(
        self,
        clock: Clock,
        stand_in: One,
        *names: object,
        purpose: str = "study",
        until: int = 0,
        spared: int = 0,
        average: int = 0,
        epoch: Callable[[int, int], object] = lambda done, total: None,
        catch: tuple[type[Exception], ...] = (),
    ) -> Callable[[Claim], tuple[Outcome, list[Row]]]:
        """Return what trains a study's claims, see :func:`proxyhpo.hpo.study.work`.

        The rows of a trial are what earlier workers lost on it, then its own. Its seed follows
        from the study's ``names`` and its number. It is complete after ``until`` epochs, 0 for all
        of the stand-in's; the first ``spared`` ones are never stopped early. ``epoch`` is called
        with the epochs done, and of how many. A training that raises one of ``catch`` has failed.
        """
        last = until or stand_in.epochs

        def attempt(claim: Claim) -> tuple[Outcome, list[Row]]:
            def stop(done: int, score: float) -> bool:
                epoch(done, last)
                return done >= last or (claim.stop(done, score) and claim.number >= spared)

            options = TrainOptions(self.seed(*names, claim.number), stop, average)
            of = {"purpose": purpose, "trial": claim.number, "sampler_seconds": claim.seconds}
            try:
                outcome, row = self.attempt(clock, stand_in, claim.configuration, options, **of)
            except catch as error:
                claim.note(error)
                outcome = Outcome("failed", 0, math.nan, math.nan, (), 0.0, 0.0, 0, "")
                of |= {"state": "failed", "budget": stand_in.epochs}
                row = self.row(clock, stand_in, **identity(claim.configuration), **of)
            if outcome.state == "stopped" and outcome.epochs >= last:
                outcome = replace(outcome, state="complete")
                row |= {"state": "complete", "budget": last}
            lost = partial(self.untrained_row, purpose="lost", trial=claim.number)
            wasted = [lost(stand_in, claim.configuration, seconds) for seconds in claim.lost]
            return outcome, [*wasted, row]

        return attempt

    def untrained_row(
        self, stand_in: One, configuration: Configuration, seconds: float, **fields: object
    ) -> Row:
        """Return the row of a trial that came to nothing; CPU seconds are taken as the clock's."""
        ended = {"state": "failed", "budget": stand_in.epochs, **identity(configuration)}
        return self.row(Clock(), stand_in, **ended, **fields) | spent(seconds)

    def row(self, clock: Clock, stand_in: One | None = None, **fields: object) -> Row:
        """Return a whole row: identity, cost by ``clock``, provenance, and ``fields``."""
        one = stand_in or self._stand_ins["base"]
        proxy, ratio = one.identity
        size = {"macs": one.macs, "parameters": one.parameters} if stand_in else {}
        return {
            **{name: getattr(self.task, name) for name in LABELS},
            "role": "proxy" if proxy else "base",
            "proxy": proxy,
            "pruning_ratio": ratio,
            "state": "complete",
            **size,
            "load": machine_load(),
            "device": self.device.label,
            "threads": self.device.threads,
            "workers": self._workers,
            **provenance(),
            **clock.lap(),
            **fields,
        }


def machine_load() -> float:
    """Return the average number of processes that wanted to run in the last minute, or NaN.

    Windows doesn't count them.
    """
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else math.nan


class Workbench(Bench[StandIn]):
    """A bench whose trials are trained on N_B's pictures by our own loop."""

    def __init__(self, task: Task, dataset: Dataset, base: Builder, *, workers: int = 1) -> None:
        self.dataset = dataset
        self._moved: dict[tuple[Dataset, str], Split] = {}
        super().__init__(task, base, workers=workers)

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        record: Record,
        data_dir: str | Path | None = None,
        *,
        workers: int = 1,
    ) -> Workbench:
        """Load the pictures of ``experiment``, if networks take them; record what that cost.

        Raises:
            InputError: missing data, or pictures that these networks don't take.
        """
        clock, profile, seed = Clock(), experiment.profile, experiment.seed
        dataset = load_dataset(experiment.dataset, data_dir=data_dir, seed=seed, **profile.pictures)
        check_side(dataset.side)
        names = profile.name, experiment.dataset, experiment.network, experiment.sampler
        scale = profile.epochs, profile.batch_size, 1 - profile.pruning_ratio
        task = Task(*names, seed, *scale)
        bench = cls(task, dataset, builder(experiment.network, dataset), workers=workers)
        record(bench.row(clock, purpose="data"))
        return bench

    def _make(self, name: str, plan: str = "") -> StandIn:
        task = self.task
        return make_stand_in(
            name, self.base, self.dataset, task.epochs, task.share, task.seed, plan=plan
        )

    def _train(
        self, stand_in: StandIn, configuration: Configuration, options: TrainOptions
    ) -> tuple[Outcome, Row]:
        batch_size = round(configuration.get("batch_size", self.task.batch_size))
        parts = ("train+val", "test") if options.final else ("train", "val")
        training = self.feed(stand_in.dataset, parts[0], batch_size)
        evaluation = self.feed(stand_in.dataset, parts[1])
        for microbatches in (1, 2):  # the second only where the first ran out of memory
            network = stand_in.build(options.seed)
            with seeded(options.seed, self.device.name):  # what the network itself draws: dropout
                outcome = train(
                    network,
                    training,
                    evaluation,
                    configuration,
                    epochs=stand_in.epochs,
                    seed=options.seed,
                    device=self.device,
                    stop=options.stop,
                    every_epoch=not options.final,
                    average=options.average,
                    microbatches=microbatches,
                )
            if outcome.state != "failed":
                break
        measured = {parts[1]: (outcome.accuracy, outcome.loss)}
        if options.test and outcome.state == "complete":
            feed = self.feed(stand_in.dataset, "test")
            measured["test"] = evaluate(network, feed, self.device, outcome.precision, microbatches)
        curves = {
            "curve_averaged": outcome.averaged,
            "curve_averaged_loss": outcome.averaged_losses,
        }
        if not options.final:
            curves |= {"curve": outcome.curve, "curve_loss": outcome.losses}
        return outcome, {
            **{f"{split}_accuracy": accuracy for split, (accuracy, _) in measured.items()},
            **{f"{split}_loss": loss for split, (_, loss) in measured.items()},
            "eval_seconds": outcome.eval_seconds,
            "samples": outcome.samples,
            "side": stand_in.dataset.side,
            "batch_size": batch_size,
            "microbatches": outcome.microbatches,
            "precision": outcome.precision,
            **{name: " ".join(f"{one:.4f}" for one in curve) for name, curve in curves.items()},
        }

    def feed(self, dataset: Dataset, part: str, batch_size: int = 0) -> Feed:
        """Return batches of a part of ``dataset``, such as "val" or "train+val".

        They are augmented, of ``batch_size`` pictures; with 0, as they are, to evaluate on. The
        pictures are moved to the device once, whatever the batch sizes.
        """
        if (dataset, part) not in self._moved:
            whole = reduce(Split.join, [getattr(dataset, name) for name in part.split("+")])
            self._moved[dataset, part] = whole.to(self.device.name)
        return Feed(
            self._moved[dataset, part],
            mean=dataset.mean,
            std=dataset.std,
            device=self.device.name,
            batch_size=batch_size or EVALUATION_BATCH,
            augmentation=dataset.augmentation if batch_size else None,
            drop_last=bool(batch_size),
        )


def builder(network: str, dataset: Dataset) -> Builder:
    """Return what builds base network ``network`` for ``dataset`` from a seed."""
    fitting = {"classes": len(dataset.classes), "channels": dataset.channels}
    return lambda seed: build_network(network, **fitting, seed=seed)
