"""Trials that are trained by a user's own code."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import optuna
import torch
from torch import nn

from proxyhpo.config import InputError, check_integer, choose
from proxyhpo.data.datasets import Dataset
from proxyhpo.experiment.trial import Bench, Row, Task, TrainOptions
from proxyhpo.hpo.search import Configuration
from proxyhpo.hpo.stand_ins import Builder, Entrant, epochs_of, parse, prune
from proxyhpo.models import place_both, seeded
from proxyhpo.pruning.criteria import CRITERIA
from proxyhpo.pruning.cut import brief
from proxyhpo.pruning.measure import count_macs, count_parameters
from proxyhpo.training import Outcome, out_of_memory, threads_kept

OWN_STAND_INS = (*CRITERIA, "epochs", "subset")
"""The stand-ins of a user's own training code."""


@dataclass(frozen=True)
class Budget:
    """What a training of a user's own is to spend.

    Attributes:
        epochs: of the training; a schedule ends with the last.
        share: of the training data, in (0, 1].
    """

    epochs: int
    share: float = 1.0


class Objective(Protocol):
    """A user's own training code."""

    def __call__(
        self,
        build: Callable[[], nn.Module],
        configuration: Configuration,
        budget: Budget,
        report: Callable[[int, float], None],
        /,
    ) -> float:
        """Train what ``build()`` returns and return a score to maximise.

        ``report(epoch, score)`` after each epoch, counted from 1, raises ``optuna.TrialPruned``
        where the training is to end early.
        """


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnEntrant(Entrant):
    """What a user's own code trains, on a share ``pictures`` of the training data."""

    pictures: float = 1.0


class OwnBench(Bench[OwnEntrant]):
    """A bench whose trials are trained by a user's own code, ``objective``.

    ``batch`` is inputs, or inputs and targets, by which N_B is traced; None without any.
    """

    def __init__(self, task: Task, base: Builder, objective: Objective, batch: Any) -> None:
        if not _takes(objective, *range(4)):
            name = getattr(objective, "__name__", repr(objective))
            raise InputError(f"objective {name}: called with build, configuration, budget, report")
        self._objective = objective
        given = () if batch is None else (batch,)
        self._batch = tuple(batch) if isinstance(batch, tuple | list) else given
        with threads_kept():
            super().__init__(task, base)
        self.device = replace(self.device, threads=torch.get_num_threads())

    def _make(self, name: str, plan: str = "") -> OwnEntrant:
        task, began = self.task, time.perf_counter()
        build, proxy = self.base, None
        shares = {} if name == "base" else parse(name, task.share)
        for kind, share in shares.items():
            choose("stand-in of your own training code", kind, dict.fromkeys(OWN_STAND_INS))
            if kind not in CRITERIA:
                continue
            if not self._batch:
                raise InputError(
                    f"stand-in {name!r}: give a batch of the network's inputs as data, by "
                    "which it is traced; without one there are 'epochs' and 'subset'"
                )
            proxy = prune(build, kind, share, self._batch, task.seed, plan)
            build = proxy.build
        network = build(task.seed)
        try:
            macs = count_macs(network, self._batch[0]) if self._batch else 0
        except Exception as error:  # whatever a network raises
            kind = type(network).__name__
            raise InputError(f"data: network {kind} can't take it ({brief(error)})") from error
        return OwnEntrant(
            name="+".join(shares) or name,
            build=build,
            epochs=epochs_of(name, task.epochs, task.share),
            pictures=shares.get("subset", 1.0),
            macs=macs,
            parameters=count_parameters(network),
            seconds=time.perf_counter() - began,
            proxy=proxy,
            target=math.prod(shares.values()),
        )

    def _train(
        self, stand_in: OwnEntrant, configuration: Configuration, options: TrainOptions
    ) -> tuple[Outcome, Row]:
        curve: dict[int, float] = {}  # score by epoch
        seed, stop = options.seed, options.stop

        def report(epoch: int, score: float) -> None:
            check_integer("epoch reported", epoch := _plain(epoch), 1)
            curve[epoch] = score = _number("score reported", score)
            if not math.isfinite(score):
                raise optuna.TrialPruned
            if stop is not None and epoch < stand_in.epochs and stop(epoch, score):
                raise optuna.TrialPruned

        began, state = time.perf_counter(), "complete"
        budget = Budget(stand_in.epochs, stand_in.pictures)
        score: Any = math.nan
        try:
            with seeded(seed):
                build = partial(stand_in.build, seed)
                score = self._objective(build, dict(configuration), budget, report)
        except optuna.TrialPruned:
            state, score = "stopped", [math.nan, *curve.values()][-1]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            state = "failed"
        score = _number("objective returned", score)
        if state != "failed" and not math.isfinite(score):
            state, score = "diverged", math.nan
        seconds, epochs = time.perf_counter() - began, max(curve, default=stand_in.epochs)
        # a failed trial has no value in Optuna: zero may be the best score there is
        ended = "failed" if state == "diverged" else state
        scores = tuple(curve.values())
        outcome = Outcome(ended, epochs, score, math.nan, scores, seconds, 0.0, 0, "")
        return outcome, {"state": state, "score": score}


def qualified_name(objective: Objective | None) -> str:
    """Return the module and name of a user's own training code, or what trains without it."""
    if objective is None:
        return "proxyhpo's training loop"
    code: Any = objective
    while isinstance(code, partial):
        code = code.func
    code = code if hasattr(code, "__qualname__") else type(code)
    return f"{code.__module__}.{code.__qualname__}"


def _takes(call: object, *arguments: object) -> bool:
    """Return whether ``call`` can be called with these arguments, as far as its signature tells."""
    try:
        inspect.signature(call).bind(*arguments)  # type: ignore[arg-type]
    except ValueError:  # some of C have none
        return True
    except TypeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """Return what a NumPy scalar or a tensor of one element holds; anything else as it is."""
    try:
        return value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return value


def _number(name: str, score: object) -> float:
    """Return ``score`` as a float; raise :class:`InputError` where it's no number."""
    try:
        if not isinstance(number := _plain(score), str | bool):
            return float(number)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InputError(f"{name} {score!r}: a score to maximise, a number")


def builder(network: Callable[[], nn.Module]) -> Builder:
    """Return seed -> N_B with fresh weights.

    Raises:
        InputError: if it can't be called, builds no module, or the same weights twice: a trial
            would train on from where the one before it ended.
    """
    if isinstance(network, nn.Module) or not _takes(network):
        raise InputError(
            f"network {getattr(network, '__name__', type(network).__name__)}: a callable that "
            "builds one with fresh weights, without arguments, as lambda: MyNetwork(classes=10)"
        )

    def build(seed: int) -> nn.Module:
        with seeded(seed):
            built = network()
        if not isinstance(built, nn.Module):
            raise InputError(f"network built a {type(built).__name__}, not a torch.nn.Module")
        return built

    first, second = (
        {id(weight) for weight in built.parameters() if weight.requires_grad}
        for built in [build(0), build(0)]  # both alive, so that they can't share a place in memory
    )
    if first & second:
        raise InputError(
            "network gives the same weights at every call, and trials need fresh ones: build the "
            "network within the callable, as lambda: MyNetwork(classes=10)"
        )
    return build


def check_network(network: nn.Module, data: Dataset) -> None:
    """Raise :class:`InputError` unless ``network`` can learn to score the classes of ``data``."""
    if not any(weight.requires_grad for weight in network.parameters()):
        raise InputError("network has no weights to train: none of them requires a gradient")
    pictures, classes = torch.zeros(2, data.channels, data.side, data.side), len(data.classes)
    try:
        with torch.no_grad():
            shape = tuple(network.eval()(pictures).shape)
    except Exception as error:  # whatever a network raises
        raise InputError(
            f"network can't take pictures {tuple(pictures.shape)}: {brief(error)}"
        ) from error
    if shape != (2, classes):
        raise InputError(
            f"network gives {shape} for 2 pictures; the {classes} classes of the data need "
            f"{(2, classes)}"
        )
    try:
        with torch.no_grad():  # as it is trained: the layout in memory differs
            placed, pictures = place_both(network, pictures)
            placed(pictures)
    except RuntimeError as error:
        raise InputError(
            f"network can't take pictures in channels-last memory, which trainings use: in place "
            f"of .view take .flatten(1) or .reshape; {str(error).splitlines()[0]}"
        ) from error
