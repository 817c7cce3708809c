"""Where trials are trained: on pictures by our own loop, or by a user's own code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from zlib import crc32

import optuna
import torch
from torch import Tensor, nn

from proxyhpo.config import InputError, choose
from proxyhpo.data.datasets import Dataset
from proxyhpo.experiment.trial import Clock, Row, Workbench, identity
from proxyhpo.hpo.search import Configuration
from proxyhpo.hpo.stand_ins import Builder, epochs_of, parse
from proxyhpo.models import count_parameters
from proxyhpo.pruning.criteria import CRITERIA
from proxyhpo.pruning.measure import count_macs
from proxyhpo.pruning.proxy import Proxy, make_proxy, seeded
from proxyhpo.training import Outcome, this_device
from proxyhpo.tuning.settings import Settings

OWN_STAND_INS = (*CRITERIA, "epochs", "subset")
"""What stands in for a network in a user's own training code, which sees to all else itself."""

NAN = math.nan


@dataclass(frozen=True)
class Budget:
    """What a training of a user's own is to spend.

    Attributes:
        epochs: of the training; a schedule ends with the last.
        share: of the training data, in (0, 1].
    """

    epochs: int
    share: float = 1.0


Report = Callable[[int, float], None]


class Objective(Protocol):
    """A user's own training code."""

    def __call__(
        self,
        build: Callable[[], nn.Module],
        configuration: Configuration,
        budget: Budget,
        report: Report,
        /,
    ) -> float:
        """Train what ``build()`` returns and return a score to maximise.

        ``report(epoch, score)`` after each epoch, counted from 1, raises ``optuna.TrialPruned``
        where the training is to end early.
        """


@dataclass(frozen=True)
class Task:
    """What the rows of a search say of it, and the scale of its full trial."""

    dataset: str
    network: str
    sampler: str
    seed: int
    epochs: int
    batch_size: int
    pruning_ratio: float
    name: str = "custom"

    @property
    def profile(self) -> Task:
        """The scale, as a workbench asks for it."""
        return self

    @classmethod
    def of(cls, network: str, dataset: str, sampler: str, settings: Settings) -> Task:
        """Return the task of a search with ``settings``."""
        scale = settings.epochs, settings.batch_size, 1 - settings.share
        return cls(dataset, network, sampler, settings.seed, *scale)


@dataclass(frozen=True, eq=False)
class Variant:
    """What a user's own code trains: N_B, or a stand-in for it; see :class:`StandIn`."""

    name: str
    build: Builder
    epochs: int
    pictures: float = 1.0
    macs: int = 0
    parameters: int = 0
    seconds: float = 0.0
    proxy: Proxy | None = None
    target: float = 1.0

    @property
    def plan(self) -> str:
        """The pruned part, to be built again; "" where none is pruned."""
        return self.proxy.to_json() if self.proxy else ""

    @property
    def identity(self) -> tuple[str, float]:
        """What rows know it by."""
        return ("", 0.0) if self.name == "base" else (self.name, round(1 - self.target, 6))


class OwnBench(Workbench):
    """A workbench whose trials are trained by a user's own code."""

    def __init__(self, task: Task, base: Builder, objective: Objective, batch: Any) -> None:
        self.experiment: Any = task
        self.profile: Any = task
        self.base, self.objective, self.batch = base, objective, batch
        self.device, self._workers = this_device(), 1
        self._stand_ins: dict[str, Any] = {"base": self._make("base")}

    def _make(self, name: str, plan: str = "") -> Any:
        task, began = self.profile, time.perf_counter()
        inputs = self.batch[0] if isinstance(self.batch, tuple | list) else self.batch
        build, proxy, share = self.base, None, 1 - task.pruning_ratio
        shares = {} if name == "base" else parse(name, share)
        for kind, own in shares.items():
            choose("stand-in of your own training code", kind, dict.fromkeys(OWN_STAND_INS))
            if kind in CRITERIA:
                if inputs is None:
                    raise InputError(
                        f"stand-in {name!r}: give a batch of the network's inputs as data, by "
                        "which it is traced; without one there are 'epochs' and 'subset'"
                    )
                network = build(task.seed)
                whole = tuple(self.batch) if isinstance(self.batch, tuple | list) else None
                proxy = (
                    Proxy.from_json(plan, network)
                    if plan
                    else make_proxy(
                        network, inputs[:1], criterion=kind, macs=own, batch=whole, seed=task.seed
                    )
                )
                build = proxy.build
        network = build(task.seed)
        return Variant(
            name=name if name == "base" else "+".join(shares),
            build=build,
            epochs=epochs_of(name, task.epochs, share),
            pictures=shares.get("subset", 1.0),
            macs=0 if inputs is None else count_macs(network, inputs),
            parameters=count_parameters(network),
            seconds=time.perf_counter() - began,
            proxy=proxy,
            target=math.prod(shares.values()),
        )

    def attempt(
        self,
        clock: Clock,
        stand_in: Any,
        configuration: Configuration,
        *,
        seed: int | Sequence[object],
        stop: Callable[[int, float], bool] | None = None,
        average: int = 0,
        test: bool = False,
        **fields: object,
    ) -> tuple[Outcome, Row]:
        """Train ``configuration`` by the user's code; see :meth:`Workbench.attempt`."""
        if not isinstance(seed, int):
            seed = crc32(repr((self.experiment.seed, *seed)).encode())
        curve: list[float] = []

        def report(epoch: int, score: float) -> None:
            curve.append(float(score))
            if not math.isfinite(score):
                raise optuna.TrialPruned
            if stop is not None and epoch < stand_in.epochs and stop(epoch, float(score)):
                raise optuna.TrialPruned

        began, state = time.perf_counter(), "complete"
        budget = Budget(stand_in.epochs, stand_in.pictures)
        try:
            with seeded(seed):
                score: Any = self.objective(
                    partial(stand_in.build, seed), dict(configuration), budget, report
                )
        except optuna.TrialPruned:
            state, score = "stopped", curve[-1] if curve else NAN
        except (torch.OutOfMemoryError, MemoryError):
            state, score = "failed", NAN
        if isinstance(score, bool) or not isinstance(score, int | float | Tensor):
            raise InputError(f"objective returned {score!r}: a score to maximise, a number")
        score = float(score)
        if state != "failed" and not math.isfinite(score):
            state, score = "diverged", NAN
        seconds, epochs = time.perf_counter() - began, len(curve) or stand_in.epochs
        # a failed trial has no value in Optuna: zero may be the best score there is
        told = "failed" if state == "diverged" else state
        outcome = Outcome(told, epochs, score, NAN, tuple(curve), seconds, 0.0, 0, "")
        row = self.row(
            clock,
            stand_in,
            state=state,
            epochs=epochs,
            budget=stand_in.epochs,
            score=score,
            train_seconds=seconds,
            **identity(configuration),
            **fields,
        )
        return outcome, row


def builder(network: Callable[[], nn.Module]) -> Builder:
    """Return seed -> N_B with fresh weights; raise :class:`InputError` if it can't be called."""
    if isinstance(network, nn.Module) or not callable(network):
        raise InputError(
            f"network {type(network).__name__}: a callable that builds one with fresh weights, "
            "such as lambda: MyNetwork(classes=10)"
        )

    def build(seed: int) -> nn.Module:
        with seeded(seed):
            built = network()
        if not isinstance(built, nn.Module):
            raise InputError(f"network built a {type(built).__name__}, not a torch.nn.Module")
        return built

    return build


def check_network(network: nn.Module, data: Dataset) -> None:
    """Raise :class:`InputError` unless ``network`` gives scores for the classes of ``data``."""
    pictures, classes = torch.zeros(2, data.channels, data.side, data.side), len(data.classes)
    try:
        with torch.no_grad():
            shape = tuple(network.eval()(pictures).shape)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"network can't take pictures {tuple(pictures.shape)}: {str(error).splitlines()[0]}"
        ) from error
    if shape != (2, classes):
        raise InputError(
            f"network gives {shape} for 2 pictures; the {classes} classes of the data need "
            f"{(2, classes)}"
        )
