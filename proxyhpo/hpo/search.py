"""Search: spaces, HPO methods and trial pruners, each a line in its dict.

What a study does with them is in :mod:`proxyhpo.hpo.study`. Each trial gets a fresh sampler seeded
by (study seed, trial number), so that a study which was interrupted and resumed suggests what an
uninterrupted one would have.
"""

from __future__ import annotations

import json
import math
from binascii import crc32
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, TrialState

from proxyhpo.config import InputError, choose

optuna.logging.set_verbosity(optuna.logging.WARNING)

Configuration = dict[str, float]
Space = Mapping[str, BaseDistribution]

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

_INERT = "inert"
"""A second dimension without effect: Optuna's CMA-ES needs two, and with one it would sample at
random without a word."""


@dataclass(frozen=True)
class StudySettings:
    """All that decides what a study suggests and stops, whatever it trains.

    Attributes:
        name: of the experiment. It also deals trials to Hyperband's brackets, so the studies on
            N_B and on N_P share it: the same trial number has the same budget rule in both.
        space: the search space, distributions by name.
        sampler, trial_pruner: keys of :data:`SAMPLERS` and :data:`TRIAL_PRUNERS`.
        trials: its budget.
        epochs: of a full trial.
        seed: of the sampler.
        trains: what it trains, by name, held against what an earlier call said.
    """

    name: str
    space: Space
    sampler: str
    trial_pruner: str
    trials: int
    epochs: int
    seed: int
    trains: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_space(self.space)
        choose("sampler", self.sampler, SAMPLERS)
        choose("trial pruner", self.trial_pruner, TRIAL_PRUNERS)

    @property
    def recorded(self) -> dict[str, object]:
        """The settings as plain values, for a storage and for comparison."""
        space = {name: json.loads(distribution_to_json(d)) for name, d in self.space.items()}
        own = {key: value for key, value in vars(self).items() if key != "trains"}
        return json.loads(json.dumps({**own, "space": space, **self.trains}))

    @property
    def asked(self) -> dict[str, BaseDistribution]:
        """What the sampler is asked for: the space, with a second dimension for CMA-ES."""
        space = dict(self.space)
        if self.sampler == "cmaes" and len(space) == 1:
            space[_INERT] = FloatDistribution(0.0, 1.0)
        return space

    def build_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return the sampler of trial ``number``."""
        seed = crc32(f"{self.seed}:{number}".encode())
        return SAMPLERS[self.sampler].build(seed, self.trials, len(self.asked))

    def build_trial_pruner(self) -> optuna.pruners.BasePruner:
        """Return the study's trial pruner: the HPO method's own, where it has one."""
        name = SAMPLERS[self.sampler].trial_pruner or self.trial_pruner
        return TRIAL_PRUNERS[name](self)


def check_space(space: Space) -> None:
    """Raise :class:`InputError` unless ``space`` maps names to distributions of Optuna."""
    if not isinstance(space, Mapping) or not space:
        raise InputError(f"search space {space!r}: a dict of name and Optuna distribution")
    for name, distribution in space.items():
        if not isinstance(distribution, BaseDistribution):
            raise InputError(
                f"search space: {name!r} is {distribution!r}, not a distribution such as "
                "optuna.distributions.FloatDistribution(1e-4, 1, log=True)"
            )


def without_inert(params: Mapping[str, float]) -> Configuration:
    """Return what a trial is to be trained with."""
    return {name: value for name, value in params.items() if name != _INERT}


@dataclass(frozen=True)
class Sampler:
    """An HPO method.

    Attributes:
        build: (seed, trials of the study, dimensions) -> Optuna sampler.
        stopped_as: the state in which it is told of a stopped trial. Optuna's GP leaves pruned
            trials out of its model and then asks for near-duplicates of them, so it is told of
            them as complete, with their last value.
        trial_pruner: the trial pruner that is part of the method; "" leaves the choice open.
    """

    build: Callable[[int, int, int], optuna.samplers.BaseSampler]
    stopped_as: TrialState = TrialState.PRUNED
    trial_pruner: str = ""


def best_k(trials: int) -> int:
    """Return how many of a best-k study's trials are trained in full."""
    return max(1, trials // 5)


class BestAfterOneEpoch(optuna.samplers.RandomSampler):
    """Random configurations for one epoch each; the last k trials are the k best of them again.

    The rival that needs no proxy: "train all for one epoch, then the k best in full"
    (Egele et al., arXiv:2307.15422).
    """

    def __init__(self, seed: int, trials: int) -> None:
        super().__init__(seed)
        self._first = trials - best_k(trials)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> float:
        """Return the value of one parameter; called by Optuna."""
        place = trial.number - self._first
        if place >= 0:
            tried = [
                t
                for t in study.get_trials(deepcopy=False)
                if t.number < self._first and 1 in t.intermediate_values
            ]
            tried.sort(key=lambda t: (-t.intermediate_values[1], t.number))
            if place < len(tried):
                return tried[place].params[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)


class _AfterOneEpoch(optuna.pruners.BasePruner):
    """Stops all trials but the last k after their first epoch."""

    def __init__(self, trials: int) -> None:
        self._first = trials - best_k(trials)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return trial.number < self._first


class _Hyperband(optuna.pruners.HyperbandPruner):
    """Optuna's Hyperband; brackets are dealt by a name of ours instead of the study's.

    In a database two studies can't share a name, but N_B's and N_P's have to share brackets.
    """

    def __init__(self, name: str, epochs: int) -> None:
        super().__init__(1, epochs, 3)
        self._name = name

    def _get_bracket_id(self, study: optuna.Study, trial: FrozenTrial) -> int:
        named: Any = SimpleNamespace(study_name=self._name)  # all that is read of a study
        return super()._get_bracket_id(named, trial)


def _startup(trials: int) -> int:
    """Random trials before a model is fitted: Optuna's 10, fewer for a short study."""
    return min(10, max(2, trials // 4))


def _tpe(seed: int, trials: int, dimensions: int) -> optuna.samplers.BaseSampler:
    # constant liar: what other workers are training counts as poor, so that nobody repeats it
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=_startup(trials), constant_liar=True
    )


def _gp(seed: int, trials: int, dimensions: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=_startup(trials))


def _cmaes(seed: int, trials: int, dimensions: int) -> optuna.samplers.BaseSampler:
    # Hansen's default population, smaller for a short study so that it sees some generations
    population = min(4 + int(3 * math.log(dimensions)), max(4, trials // 6))
    return optuna.samplers.CmaEsSampler(
        seed=seed, n_startup_trials=1, popsize=population, consider_pruned_trials=True
    )


def _random(seed: int, trials: int, dimensions: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _best_k(seed: int, trials: int, dimensions: int) -> optuna.samplers.BaseSampler:
    return BestAfterOneEpoch(seed, trials)


SAMPLERS: dict[str, Sampler] = {
    "tpe": Sampler(_tpe),
    "cmaes": Sampler(_cmaes),
    "gp": Sampler(_gp, stopped_as=TrialState.COMPLETE),
    # the rivals that every claim is set against
    "random": Sampler(_random, trial_pruner="none"),
    "hyperband": Sampler(_random, trial_pruner="hyperband"),
    "best_k": Sampler(_best_k, trial_pruner="best_k"),
}

TRIAL_PRUNERS: dict[str, Callable[[StudySettings], optuna.pruners.BasePruner]] = {
    # rungs at 1, 3, 9, ... epochs; 1 + log3(epochs) brackets (Li et al. 2018)
    "hyperband": lambda settings: _Hyperband(settings.name, settings.epochs),
    "halving": lambda _: optuna.pruners.SuccessiveHalvingPruner(1, 3),
    "median": lambda _: optuna.pruners.MedianPruner(n_startup_trials=4),
    "none": lambda _: optuna.pruners.NopPruner(),
    "best_k": lambda settings: _AfterOneEpoch(settings.trials),
}


def sample(space: Space, count: int, *, seed: int) -> list[Configuration]:
    """Return ``count`` configurations drawn at random from ``space``, the same for a seed."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [dict(study.ask(fixed_distributions=dict(space)).params) for _ in range(count)]
