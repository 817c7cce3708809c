"""One trial: from a configuration on a stand-in to an outcome and a whole row.

A row's seconds span everything that was waited for on its account, by wall-clock and by CPU time
of the process, so that the rows of a run add up to the run.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any
from zlib import crc32

from proxyhpo.config import Experiment
from proxyhpo.data.datasets import Dataset, Feed, Split, load_dataset
from proxyhpo.hpo.search import Configuration
from proxyhpo.hpo.stand_ins import Builder, StandIn, make_stand_in
from proxyhpo.hpo.study import Claim
from proxyhpo.models import Network, build_network, check_side
from proxyhpo.rows import PARAMETER, config_id, provenance
from proxyhpo.training import Outcome, evaluate, this_device, train

EVALUATION_BATCH = 256

Row = dict[str, Any]
Record = Callable[[Row], None]


class Clock:
    """Wall-clock and CPU seconds, lap by lap, so that nothing between two rows goes uncounted."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
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
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self._restart()
        return spent(wall) | {"cpu_seconds": cpu}


class Workbench:
    """What the trials of one experiment share: device, pictures, base network, stand-ins.

    Attributes:
        experiment: what is run; its names label the rows, its profile sets the scale.
        device: where it is trained.
        dataset: its pictures.
        base: seed -> N_B with fresh weights drawn from it.
    """

    def __init__(
        self, experiment: Experiment, dataset: Dataset, base: Builder, *, workers: int = 1
    ) -> None:
        self.experiment, self.profile = experiment, experiment.profile
        self.dataset, self.base = dataset, base
        self.device = this_device()
        self._workers = workers
        self._stand_ins = {"base": self._make("base")}
        self._feeds: dict[tuple[Dataset, str, int], Feed] = {}

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        record: Record,
        data_dir: str | Path | None = None,
        *,
        workers: int = 1,
    ) -> Workbench:
        """Load the pictures of ``experiment``, and record what that cost.

        Raises:
            InputError: missing data, or pictures that these networks don't take.
        """
        clock = Clock()
        dataset = load_dataset(
            experiment.dataset,
            data_dir=data_dir,
            seed=experiment.seed,
            **experiment.profile.pictures,
        )
        check_side(dataset.side)
        bench = cls(experiment, dataset, builder(experiment.network, dataset), workers=workers)
        record(bench.row(clock, purpose="data"))
        return bench

    def stand_in(self, name: str, record: Record, plan: str = "") -> StandIn:
        """Return stand-in ``name``, made and recorded at its first use; "base" is N_B itself.

        Where the name gives no share, the profile's pruning ratio decides. ``plan`` is that of a
        proxy made earlier (:meth:`proxyhpo.Proxy.to_json`), which is built and not pruned again.
        """
        if name not in self._stand_ins:
            clock = Clock()
            self._stand_ins[name] = made = self._make(name, plan)
            record(self.row(clock, made, purpose="proxy", proxy_seconds=made.seconds))
        return self._stand_ins[name]

    def _make(self, name: str, plan: str = "") -> StandIn:
        return make_stand_in(
            name,
            self.base,
            self.dataset,
            self.profile.epochs,
            1 - self.profile.pruning_ratio,
            self.experiment.seed,
            plan=plan,
        )

    def attempt(
        self,
        clock: Clock,
        stand_in: StandIn,
        configuration: Configuration,
        *,
        seed: int | Sequence[object],
        stop: Callable[[int, float], bool] | None = None,
        average: int = 0,
        test: bool = False,
        **fields: object,
    ) -> tuple[Outcome, Row]:
        """Train ``configuration`` on ``stand_in`` from fresh weights.

        Args:
            clock: its lap began when the waiting for this trial did, and ends with it.
            stand_in: what is trained.
            configuration: hyperparameters.
            seed: of weights, batches and augmentation; several things stand for a seed that
                follows from them and the experiment's.
            stop: the trial pruner, see :func:`proxyhpo.training.train`.
            average: epochs to evaluate with averaged weights too, likewise.
            test: evaluate a complete training on the test split too, for rows of a table.
            fields: the row's ``purpose`` and what else it is to say. The purpose "final" trains
                on training and validation pictures together and is evaluated once, on the test
                split.

        Returns:
            The outcome, and the row that records it.
        """
        final = fields["purpose"] == "final"
        if not isinstance(seed, int):
            seed = crc32(repr((self.experiment.seed, *seed)).encode())
        batch_size = round(configuration.get("batch_size", self.profile.batch_size))
        training = self.feed(stand_in.dataset, "train+val" if final else "train", batch_size)
        evaluation = self.feed(stand_in.dataset, "test" if final else "val")
        for microbatches in (1, 2):  # the second only where the first ran out of memory
            network = stand_in.build(seed)
            outcome = train(
                network,
                training,
                evaluation,
                configuration,
                epochs=stand_in.epochs,
                seed=seed,
                device=self.device,
                stop=stop,
                every_epoch=not final,
                average=average,
                microbatches=microbatches,
            )
            if outcome.state != "failed":
                break
        measured, none = (outcome.accuracy, outcome.loss), (math.nan, math.nan)
        validated, tested = (none, measured) if final else (measured, none)
        if test and outcome.state == "complete":
            feed = self.feed(stand_in.dataset, "test")
            tested = evaluate(network, feed, self.device, outcome.precision, microbatches)
        curves = {
            "curve": () if final else outcome.curve,
            "curve_loss": () if final else outcome.losses,
            "curve_averaged": outcome.averaged,
            "curve_averaged_loss": outcome.averaged_losses,
        }
        row = self.row(
            clock,
            stand_in,
            state=outcome.state,
            epochs=outcome.epochs,
            budget=stand_in.epochs,
            val_accuracy=validated[0],
            val_loss=validated[1],
            test_accuracy=tested[0],
            test_loss=tested[1],
            train_seconds=outcome.train_seconds,
            eval_seconds=outcome.eval_seconds,
            samples=outcome.samples,
            side=stand_in.dataset.side,
            batch_size=batch_size,
            microbatches=outcome.microbatches,
            precision=outcome.precision,
            **{name: " ".join(f"{one:.4f}" for one in curve) for name, curve in curves.items()},
            **identity(configuration),
            **fields,
        )
        return outcome, row

    def untrained_row(
        self, stand_in: StandIn, configuration: Configuration, seconds: float, **fields: object
    ) -> Row:
        """Return the row of a trial that came to nothing: ``seconds`` spent on it.

        Its CPU seconds are unknown, and taken as those by the clock.
        """
        ended = {"state": "failed", "budget": stand_in.epochs, **identity(configuration)}
        return self.row(Clock(), stand_in, **ended, **fields) | spent(seconds)

    def attempts(
        self,
        clock: Clock,
        stand_in: StandIn,
        role: str,
        epoch: Callable[[int, int], object] = lambda done, total: None,
    ) -> Callable[[Claim], tuple[Outcome, list[Row]]]:
        """Return what trains a study's claims on ``stand_in``, see :func:`proxyhpo.hpo.study.work`.

        The rows of a trial are what earlier workers lost on it, then its own. ``epoch`` is called
        with the epochs done, and of how many.
        """

        def attempt(claim: Claim) -> tuple[Outcome, list[Row]]:
            def stop(done: int, accuracy: float) -> bool:
                epoch(done, stand_in.epochs)
                return claim.stop(done, accuracy)

            outcome, row = self.attempt(
                clock,
                stand_in,
                claim.configuration,
                seed=(role, claim.number),
                stop=stop,
                purpose="study",
                trial=claim.number,
                sampler_seconds=claim.seconds,
            )
            lost = [
                self.untrained_row(
                    stand_in, claim.configuration, seconds, purpose="lost", trial=claim.number
                )
                for seconds in claim.lost
            ]
            return outcome, [*lost, row]

        return attempt

    def feed(self, dataset: Dataset, part: str, batch_size: int = 0) -> Feed:
        """Return batches of a part of ``dataset``, made once.

        Args:
            dataset: a stand-in's.
            part: "train", "val", "test", or "train+val".
            batch_size: of augmented training batches; 0 for batches to evaluate on.
        """
        key = dataset, part, batch_size
        if key not in self._feeds:
            splits = [getattr(dataset, name) for name in part.split("+")]
            self._feeds[key] = Feed(
                reduce(Split.join, splits),
                mean=dataset.mean,
                std=dataset.std,
                device=self.device.name,
                batch_size=batch_size or EVALUATION_BATCH,
                augmentation=dataset.augmentation if batch_size else None,
                drop_last=bool(batch_size),
            )
        return self._feeds[key]

    def row(self, clock: Clock, stand_in: StandIn | None = None, **fields: object) -> Row:
        """Return a whole row: identity, cost by ``clock``, provenance, and ``fields``."""
        experiment = self.experiment
        proxy, ratio = stand_in.identity if stand_in else ("", 0.0)
        return {
            "profile": self.profile.name,
            "dataset": experiment.dataset,
            "network": experiment.network,
            "role": "proxy" if proxy else "base",
            "proxy": proxy,
            "pruning_ratio": ratio,
            "sampler": experiment.sampler,
            "seed": experiment.seed,
            "state": "complete",
            "macs": stand_in.macs if stand_in else 0,
            "parameters": stand_in.parameters if stand_in else 0,
            "load": round(os.getloadavg()[0], 2),
            "device": self.device.label,
            "threads": self.device.threads,
            "workers": self._workers,
            "precision": "",
            **provenance(),
            **clock.lap(),
            **fields,
        }


def builder(network: str, dataset: Dataset) -> Builder:
    """Return what builds base network ``network`` for ``dataset`` from a seed."""

    def base(seed: int) -> Network:
        return build_network(
            network, classes=len(dataset.classes), channels=dataset.channels, seed=seed
        )

    return base


def identity(configuration: Configuration) -> Row:
    """Return the columns that say which configuration a row is about."""
    values = {f"{PARAMETER}{name}": value for name, value in configuration.items()}
    return {"config_id": config_id(configuration), **values}


def spent(seconds: float) -> dict[str, float]:
    """Return the columns of all seconds of a row, as far as the wall clock tells them."""
    return dict.fromkeys(("wall_seconds", "cpu_seconds", "elapsed_seconds"), seconds)
