"""Search: spaces, HPO methods and trial pruners, each a line in its dict.

Each trial has a sampler of its own, seeded by (study seed, trial number), which learns from the
other trials alone: an interrupted study suggests what an uninterrupted one would have. Neither
torch nor a storage is needed here.
"""

from __future__ import annotations

import json
import logging
import math
from binascii import crc32
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import cmaes
import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from threadpoolctl import threadpool_limits

from proxyhpo.config import InputError, check_integer, choose

optuna.logging.set_verbosity(optuna.logging.WARNING)
# of every fit that fails GP tells, in three lines, that it goes on with its defaults
logging.getLogger("optuna._gp").setLevel(logging.ERROR)

Configuration = dict[str, float]
Space = Mapping[str, BaseDistribution]
Numeric = FloatDistribution | IntDistribution

SPACES: dict[str, Space] = {
    # the released code: learning rate alone, on a linear scale
    "paper": {"lr": FloatDistribution(1e-5, 0.2)},
    "default": {
        "lr": FloatDistribution(1e-4, 1.0, log=True),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        "momentum": FloatDistribution(0.5, 0.99),
    },
}
SPACES["default+batch"] = {**SPACES["default"], "batch_size": IntDistribution(32, 256, log=True)}

ETA = 3
"""One in so many trials goes on from a rung of successive halving."""


@dataclass(frozen=True)
class Grid:
    """A search space of levels, the ascending values of each hyperparameter.

    Samplers are asked for a level's index, so they see its order.
    """

    levels: Mapping[str, tuple[float, ...]]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What a sampler is asked for: an index for each hyperparameter."""
        return {name: IntDistribution(0, len(values) - 1) for name, values in self.levels.items()}

    def values(self, levels: Mapping[str, int]) -> Configuration:
        """Return the configuration at these indices."""
        return {name: self.levels[name][level] for name, level in levels.items()}


@dataclass(frozen=True)
class StudySettings:
    """All that decides what a study suggests and stops, whatever it trains.

    Attributes:
        name: of the experiment; a study's default name in a storage.
        space: the search space, Optuna's distributions by name or a :class:`Grid`.
        sampler, trial_pruner: keys of :data:`SAMPLERS` and :data:`TRIAL_PRUNERS`.
        trials: the budget.
        epochs: of a full trial.
        seed: of the sampler.
        first_rung: epochs before a trial can be stopped.
        trains: what it trains, by name, compared with what an earlier call said.
    """

    name: str
    space: Space | Grid
    sampler: str
    trial_pruner: str
    trials: int
    epochs: int
    seed: int
    first_rung: int = 1
    trains: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_space(self.space)
        choose("sampler", self.sampler, SAMPLERS)
        choose("trial pruner", self.trial_pruner, TRIAL_PRUNERS)
        check_integer("first_rung", self.first_rung, 1, " epoch")

    @property
    def recorded(self) -> dict[str, object]:
        """The settings as plain values, for a storage and for comparison."""
        space = self.space.levels if isinstance(self.space, Grid) else self.space
        own = {key: value for key, value in vars(self).items() if key != "trains"}
        text = json.dumps(
            {**own, "space": dict(space), **self.trains},
            default=lambda d: json.loads(optuna.distributions.distribution_to_json(d)),
        )
        return json.loads(text)

    @property
    def asked(self) -> dict[str, BaseDistribution]:
        """What the sampler is asked for."""
        return self.space.distributions if isinstance(self.space, Grid) else dict(self.space)

    def configuration(self, params: Mapping[str, Any]) -> Configuration:
        """Return what a trial with these parameters of Optuna's is trained with."""
        return self.space.values(params) if isinstance(self.space, Grid) else dict(params)

    def build_sampler(self, number: int) -> BaseSampler:
        """Return the sampler of trial ``number``."""
        return SAMPLERS[self.sampler].build(self, crc32(f"{self.seed}:{number}".encode()))

    def build_trial_pruner(self) -> BasePruner:
        """Return the study's trial pruner: the HPO method's own, where it has one."""
        return TRIAL_PRUNERS[SAMPLERS[self.sampler].trial_pruner or self.trial_pruner](self)


def check_space(space: Space | Grid) -> None:
    """Raise :class:`InputError` unless ``space`` is a dict of distributions, or of levels.

    Choices are what comes back from a storage as it went in, in memory too.
    """
    entries, kind = (space.levels, tuple) if isinstance(space, Grid) else (space, BaseDistribution)
    if not isinstance(entries, Mapping) or not entries:
        raise InputError(f"search space {space!r}: a dict of name and Optuna distribution")
    for name, entry in entries.items():
        if not isinstance(entry, kind) or entry == ():
            raise InputError(
                f"search space: {name!r} is {entry!r}, not a distribution such as optuna."
                "distributions.FloatDistribution(1e-4, 1, log=True), in a Grid a tuple of values"
            )
        for choice in getattr(entry, "choices", ()):
            if not isinstance(choice, None | bool | int | float | str):
                raise InputError(
                    f"search space: {name!r} has the choice {choice!r}, which no storage keeps; "
                    "choose among names or numbers, and look up there what they stand for"
                )


def ends(space: Space) -> Iterator[Configuration]:
    """Yield each end of each range, and each choice, as the configuration of it alone."""
    for name, entry in space.items():
        bounds = (entry.low, entry.high) if isinstance(entry, Numeric) else ()
        for value in getattr(entry, "choices", bounds):
            yield {name: value}


def sample(space: Space, count: int, *, seed: int) -> list[Configuration]:
    """Return ``count`` configurations drawn at random from ``space``, the same for a seed."""
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    return [dict(study.ask(fixed_distributions=dict(space)).params) for _ in range(count)]


def suggest(settings: StudySettings, trials: Sequence[FrozenTrial], number: int) -> dict[str, Any]:
    """Return what the sampler suggests for trial ``number`` of a study with these ``trials``."""
    study = optuna.create_study(direction="maximize", sampler=settings.build_sampler(number))
    waiting, vacant = create_trial(state=TrialState.WAITING), create_trial(state=TrialState.FAIL)
    for trial in trials:  # others that wait keep their numbers, but aren't to be asked for
        other = vacant if trial.state == TrialState.WAITING else trial
        study.add_trial(waiting if trial.number == number else other)
    # a GP's small matrices: 20 trials take .7 s of CPU time on one thread of BLAS, 8 s on two
    with threadpool_limits(1):
        return study.ask(fixed_distributions=settings.asked).params


def trial_value(settings: StudySettings, state: str, accuracy: float) -> dict[str, Any]:
    """Return what ``optuna.Study.tell`` is told of a trial that ended in ``state``."""
    if state == "diverged":
        return {"values": 0.0}  # the worst accuracy there is, so that samplers keep away
    if state == "stopped" and not SAMPLERS[settings.sampler].stopped_as_complete:
        return {"state": TrialState.PRUNED}  # Optuna takes the last report for its value
    return {"state": TrialState.FAIL} if state == "failed" else {"values": accuracy}


@dataclass(frozen=True)
class Sampler:
    """An HPO method.

    Attributes:
        build: (settings, seed) -> Optuna sampler.
        stopped_as_complete: whether it learns of stopped trials as complete ones, with their last
            value. Optuna's GP leaves pruned trials out and then suggests near-duplicates of them.
        trial_pruner: the trial pruner that is part of the method; "" leaves the choice open.
    """

    build: Callable[[StudySettings, int], BaseSampler]
    stopped_as_complete: bool = False
    trial_pruner: str = ""


class _CmaEs(RandomSampler):
    """Samples numeric parameters by CMA-ES (Hansen, arXiv:1604.00772), and the rest at random.

    It is rebuilt from the trials: Optuna's own unpickles its state from a trial attribute, so that
    whoever can write to a storage could run code here. Each finished trial is learned from once, a
    population at a time in the order of their numbers; where workers share a study, some were drawn
    before the last update.
    """

    def __init__(self, settings: StudySettings, seed: int) -> None:
        super().__init__(seed)
        self._settings, self._seed = settings, seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._settings.asked

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Space
    ) -> dict[str, Any]:
        asked = self._settings.asked.items()
        axes = {n: _axis(d) for n, d in asked if isinstance(d, Numeric) and not d.single()}
        if not axes:
            return {}
        # Hansen's default, smaller for a short study so that it sees some generations
        size = min(4 + int(3 * math.log(len(axes))), max(4, self._settings.trials // 6))
        optimizer = cmaes.CMA(
            mean=np.full(len(axes), 0.5),
            sigma=1 / 6,
            bounds=np.tile([0.0, 1.0], (len(axes), 1)),
            seed=self._seed,
            population_size=size,
        )
        done = [
            (np.array([to(trial.params[name]) for name, (to, _) in axes.items()]), -trial.value)
            for trial in study.get_trials(deepcopy=False)
            if trial.value is not None
        ]
        for end in range(size, len(done) + 1, size):
            optimizer.tell(done[end - size : end])
        drawn = zip(axes.items(), optimizer.ask(), strict=True)
        return {name: back(float(x)) for (name, (_, back)), x in drawn}


def _axis(d: Numeric) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Return the ways from a value of ``d`` to [0, 1] and back, on the scale that it has."""
    log, exp = (math.log, math.exp) if d.log else (float, float)
    room = (d.step or 0) / 2  # the first and the last step are as wide as the others
    low, high = log(d.low - room), log(d.high + room)

    def back(x: float) -> float:
        value = exp(low + x * (high - low))
        if d.step:
            value = d.low + d.step * round((value - d.low) / d.step)
        return type(d.low)(min(max(value, d.low), d.high))

    return lambda value: (log(value) - low) / (high - low), back


class Halving(BasePruner):
    """Asynchronous successive halving (ASHA, Li et al., arXiv:1810.05934) that stops for good.

    Rungs are at ``first_rung`` x 1, 3, 9, ... epochs. A trial goes on from one if it is among the
    best third of those that have reached it so far; published ASHA pauses the others, which a
    training here can't. A tie goes to whoever came first: equal values, chance say, promote one.

    With ``brackets``, trials are dealt to Hyperband's brackets (Li et al., JMLR 2018), each of
    which leaves out one more rung: 9, 5 and 3 of every 17 trials at 9 epochs, 27, 12, 6 and 4 of
    every 49 at 27. Where trials are too few to fill them all, they share the first.
    """

    def __init__(self, settings: StudySettings, brackets: bool) -> None:
        rungs = (settings.first_rung * ETA**k for k in range(settings.epochs))
        self.rungs = [rung for rung in rungs if rung < settings.epochs]
        most = len(self.rungs)
        sizes = [math.ceil((most + 1) / (s + 1) * ETA**s) for s in range(most, -1, -1)]
        self._ends = list(accumulate(sizes))
        self._dealt = brackets and settings.trials >= self._ends[-1]

    def bracket(self, number: int) -> int:
        """Return the bracket of trial ``number``: how many rungs it leaves out."""
        return bisect(self._ends, number % self._ends[-1]) if self._dealt else 0

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Say whether ``trial`` is to be stopped; called by Optuna."""
        bracket, epochs = self.bracket(trial.number), max(trial.intermediate_values, default=0)
        if epochs not in self.rungs[bracket:]:
            return False
        reached = {
            other.number: other.intermediate_values[epochs]
            for other in (*study.get_trials(deepcopy=False), trial)
            if epochs in other.intermediate_values and self.bracket(other.number) == bracket
        }
        value = reached.pop(trial.number)
        ahead = sum(rival >= value for rival in reached.values())
        return math.isnan(value) or ahead >= max(1, (len(reached) + 1) // ETA)


def _startup(settings: StudySettings) -> int:
    """Random trials before a model is fitted: Optuna's 10, fewer for a short study."""
    return min(10, max(2, settings.trials // 4))


SAMPLERS: dict[str, Sampler] = {
    "tpe": Sampler(lambda own, seed: TPESampler(seed=seed, n_startup_trials=_startup(own))),
    "cmaes": Sampler(_CmaEs),
    "gp": Sampler(
        lambda own, seed: GPSampler(seed=seed, n_startup_trials=_startup(own)),
        stopped_as_complete=True,
    ),
    # the rivals that every claim is set against
    "random": Sampler(lambda _, seed: RandomSampler(seed)),
    "hyperband": Sampler(lambda _, seed: RandomSampler(seed), trial_pruner="hyperband"),
}

TRIAL_PRUNERS: dict[str, Callable[[StudySettings], BasePruner]] = {
    "hyperband": partial(Halving, brackets=True),
    "halving": partial(Halving, brackets=False),
    "median": lambda own: MedianPruner(n_startup_trials=4, n_warmup_steps=own.first_rung),
    "none": lambda _: NopPruner(),
}
