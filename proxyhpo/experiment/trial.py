"""One trial: from a configuration on a stand-in to an outcome and a whole row.

A row's seconds span everything that was waited for on its account, by wall-clock and by CPU time
of the process, so that the rows of a run add up to the run.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from zlib import crc32

from proxyhpo.config import Experiment
from proxyhpo.data.datasets import Dataset, Feed, Split, load_dataset
from proxyhpo.hpo.search import Configuration
from proxyhpo.hpo.stand_ins import Builder, StandIn, make_stand_in
from proxyhpo.hpo.study import Claim
from proxyhpo.models import Network, build_network, check_side
from proxyhpo.rows import PARAMETER, config_id, provenance
from proxyhpo.training import Outcome, this_device, train

EVALUATION_BATCH = 256

Row = dict[str, object]
Record = Callable[[Row], None]


class Clock:
    """Wall-clock and CPU seconds, lap by lap, so that nothing between two rows goes uncounted."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Name the seconds of the block within this lap."""
        began = time.perf_counter()
        yield
        self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the seconds of the block, which another row counts, out of this lap."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._wall += time.perf_counter() - wall
        self._cpu += time.process_time() - cpu

    def lap(self) -> dict[str, float]:
        """Return the columns of this lap's seconds, the named parts among them; start anew."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        spent = {"wall_seconds": wall, "cpu_seconds": cpu, "elapsed_seconds": wall}
        seconds = spent | self._parts
        self._restart()
        return seconds


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
        self._feeds: dict[tuple[object, ...], Feed] = {}

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
            InputError: data that is missing, or pictures that these networks don't take.
        """
        clock = Clock()
        dataset = load_dataset(
            experiment.dataset,
            data_dir=data_dir,
            seed=experiment.seed,
            **experiment.profile.pictures,
        )
        check_side(dataset.side)

        def base(seed: int) -> Network:
            return build_network(
                experiment.network,
                classes=len(dataset.classes),
                channels=dataset.channels,
                seed=seed,
            )

        bench = cls(experiment, dataset, base, workers=workers)
        record(bench.row(clock, purpose="data"))
        return bench

    def stand_in(self, name: str, record: Record, plan: str = "") -> StandIn:
        """Return stand-in ``name``, made and recorded at its first use; "base" is N_B itself.

        Where the name has no share of its own, the profile's pruning ratio decides it. ``plan`` is
        a proxy that was made earlier (:meth:`proxyhpo.Proxy.to_json`): no pruning is done then.
        """
        if name not in self._stand_ins:
            clock = Clock()
            with clock.part("proxy_seconds"):
                self._stand_ins[name] = self._make(name, plan)
            record(self.row(clock, self._stand_ins[name], purpose="proxy"))
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
        seed: tuple[str, int],
        stop: Callable[[int, float], bool] | None = None,
        **fields: object,
    ) -> tuple[Outcome, Row]:
        """Train ``configuration`` on ``stand_in`` from fresh weights.

        Args:
            clock: its lap began when the waiting for this trial did, and ends with it.
            stand_in: what is trained.
            configuration: hyperparameters.
            seed: with the experiment's seed, decides weights, shuffling and augmentation.
            stop: the trial pruner, see :func:`proxyhpo.training.train`.
            fields: the row's ``purpose`` and what else it is to say. The purpose "final" trains
                on training and validation pictures together and is evaluated once, on the test
                split; any other never sees the test split.

        Returns:
            The outcome, and the row that records it.
        """
        final = fields["purpose"] == "final"
        weights = crc32(repr((self.experiment.seed, *seed)).encode())
        batch_size = round(configuration.get("batch_size", self.profile.batch_size))
        training = self.feed(stand_in.dataset, "train+val" if final else "train", batch_size)
        evaluation = self.feed(stand_in.dataset, "test" if final else "val")
        for microbatches in (1, 2):  # the second only where the first ran out of memory
            outcome = train(
                stand_in.build(weights),
                training,
                evaluation,
                configuration,
                epochs=stand_in.epochs,
                seed=weights,
                device=self.device,
                stop=stop,
                every_epoch=not final,
                microbatches=microbatches,
            )
            if outcome.state != "failed":
                break
        accuracy = "test_accuracy" if final else "val_accuracy"
        row = self.row(
            clock,
            stand_in,
            state=outcome.state,
            epochs=outcome.epochs,
            budget=stand_in.epochs,
            val_loss=math.nan if final else outcome.loss,
            curve="" if final else " ".join(f"{value:.4f}" for value in outcome.curve),
            train_seconds=outcome.train_seconds,
            eval_seconds=outcome.eval_seconds,
            samples=outcome.samples,
            microbatches=outcome.microbatches,
            precision=outcome.precision,
            **{accuracy: outcome.accuracy},
            **identity(configuration),
            **fields,
        )
        return outcome, row

    def untrained_row(
        self, stand_in: StandIn, configuration: Configuration, seconds: float, **fields: object
    ) -> Row:
        """Return the row of a trial that ended its worker: what that spent on it, and nothing else.

        Its CPU seconds are unknown, and taken as those by the clock.
        """
        spent = dict.fromkeys(("wall_seconds", "cpu_seconds", "elapsed_seconds"), seconds)
        ended = {"state": "failed", "budget": stand_in.epochs}
        return self.row(Clock(), stand_in, **ended, **identity(configuration), **fields) | spent

    def attempts(
        self,
        clock: Clock,
        stand_in: StandIn,
        role: str,
        epoch: Callable[[int, int], object] = lambda done, total: None,
    ) -> Callable[[Claim], tuple[Outcome, list[Row]]]:
        """Return what trains a study's claims on ``stand_in``, see :func:`proxyhpo.hpo.study.work`.

        The rows of a trial are what earlier workers lost on it, then its own. ``epoch`` is told
        the epochs done, of how many.
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
        key = (id(dataset), part, batch_size)
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
            "load": os.getloadavg()[0],
            "device": self.device.label,
            "threads": self.device.threads,
            "workers": self._workers,
            "precision": "",
            **provenance(),
            **clock.lap(),
            **fields,
        }


def identity(configuration: Configuration) -> Row:
    """Return the columns that say which configuration a row is about."""
    values = {f"{PARAMETER}{name}": value for name, value in configuration.items()}
    return {"config_id": config_id(configuration), **values}
