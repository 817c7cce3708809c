"""Search: spaces, samplers, trial pruners, and studies that outlive an interruption.

A study asks Optuna for configurations and tells it what came of them. Each trial gets a fresh
sampler seeded by (study seed, trial number), so that a study which was interrupted and resumed
suggests what an uninterrupted one would have.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

import optuna
import torch
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from proxyhpo.config import InputError, choose
from proxyhpo.training import Outcome

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
class Sampler:
    """An HPO method.

    Attributes:
        build: (seed, trials of the study, dimensions) -> Optuna sampler.
        stopped_as: the state in which it is told of a stopped trial. Optuna's GP leaves pruned
            trials out of its model and then asks for near-duplicates of them, so it is told of
            them as complete, with their last value.
    """

    build: Callable[[int, int, int], optuna.samplers.BaseSampler]
    stopped_as: TrialState = TrialState.PRUNED


def _startup(trials: int) -> int:
    """Random trials before a model is fitted: Optuna's 10, fewer for a short study."""
    return min(10, max(2, trials // 4))


def _tpe(seed: int, trials: int, dimensions: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_startup(trials))


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


SAMPLERS: dict[str, Sampler] = {
    "tpe": Sampler(_tpe),
    "cmaes": Sampler(_cmaes),
    "gp": Sampler(_gp, stopped_as=TrialState.COMPLETE),
    "random": Sampler(_random),
}

TRIAL_PRUNERS: dict[str, Callable[[int], optuna.pruners.BasePruner]] = {
    # rungs at 1, 3, 9, ... epochs; 1 + log3(epochs) brackets (Li et al. 2018)
    "hyperband": lambda epochs: optuna.pruners.HyperbandPruner(1, epochs, 3),
    "halving": lambda epochs: optuna.pruners.SuccessiveHalvingPruner(1, 3),
    "median": lambda epochs: optuna.pruners.MedianPruner(n_startup_trials=4),
    "none": lambda epochs: optuna.pruners.NopPruner(),
}


@dataclass(frozen=True)
class StudySettings:
    """All that decides what a study suggests and stops, whatever it trains.

    ``name`` also deals trials to Hyperband's brackets, so the studies on N_B and on N_P share it:
    the same trial number has the same budget rule in both.
    """

    name: str
    space: str
    sampler: str
    trial_pruner: str
    trials: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        choose("search space", self.space, SPACES)
        choose("sampler", self.sampler, SAMPLERS)
        choose("trial pruner", self.trial_pruner, TRIAL_PRUNERS)


def ask(study: optuna.Study, settings: StudySettings) -> tuple[optuna.Trial, Configuration]:
    """Return the next trial and its configuration."""
    space = dict(SPACES[settings.space])
    if settings.sampler == "cmaes" and len(space) == 1:
        space[_INERT] = FloatDistribution(0.0, 1.0)
    number = len(study.get_trials(deepcopy=False))
    seed = crc32(f"{settings.seed}:{number}".encode())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the GP's small matrices stall on threads that others hold
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = SAMPLERS[settings.sampler].build(seed, settings.trials, len(space))
            trial = study.ask(fixed_distributions=space)
    finally:
        torch.set_num_threads(threads)
    return trial, {name: value for name, value in trial.params.items() if name != _INERT}


def stopper(trial: optuna.Trial) -> Callable[[int, float], bool]:
    """Return what reports (epochs done, accuracy) to the trial pruner and says whether to stop."""

    def stop(epochs: int, accuracy: float) -> bool:
        trial.report(accuracy, epochs)
        return trial.should_prune()

    return stop


def tell(
    study: optuna.Study, settings: StudySettings, trial: optuna.Trial, outcome: Outcome, row: dict
) -> None:
    """Tell the study what came of ``trial``, with its row attached.

    The row comes first: a trial that is finished in the study always has its row, wherever the
    process was interrupted.
    """
    trial.set_user_attr("row", row)
    if outcome.state == "complete":
        study.tell(trial, outcome.accuracy)
    elif outcome.state == "stopped":
        # a pruned trial's value is its last report; a complete one's must be given
        told_as = SAMPLERS[settings.sampler].stopped_as
        value = outcome.accuracy if told_as == TrialState.COMPLETE else None
        study.tell(trial, value, state=told_as)
    elif outcome.state == "diverged":
        # the worst accuracy there is, so that every sampler learns to keep away
        study.tell(trial, 0.0)
    else:
        study.tell(trial, state=TrialState.FAIL)


def sample(space: Space, count: int, *, seed: int) -> list[Configuration]:
    """Return ``count`` configurations drawn at random from ``space``, the same for a seed."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [dict(study.ask(fixed_distributions=dict(space)).params) for _ in range(count)]


def open_study(settings: StudySettings, path: Path) -> optuna.Study:
    """Open or make the study at ``path``, mended after an interruption.

    The caller holds the only lock on the study's folder. Each finished trial carries the row that
    :func:`tell` was given, in ``user_attrs["row"]``.

    Raises:
        InputError: the study was started with other settings; names what differs.
    """
    path = path.resolve()  # Optuna's lock needs an absolute path
    if path.exists():
        _cut_torn_line(path)
        # a killed process leaves its lock behind, for which Optuna would wait half a minute
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        study = _load(path, settings)
        _check_settings(study, settings, path)
        finished = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
        if len(finished) == len(study.get_trials(deepcopy=False)):
            return study
        # Optuna would keep the interrupted trial as running for ever, and number the next one
        # after it: the same study without that trial takes it up again, parameters and all.
        return _create(path, settings, finished)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _create(path, settings, [])


def _create(path: Path, settings: StudySettings, trials: list[FrozenTrial]) -> optuna.Study:
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    study = optuna.create_study(
        storage=_storage(draft), study_name=settings.name, direction="maximize"
    )
    study.set_user_attr("settings", asdict(settings))
    study.add_trials(trials)
    draft.replace(path)
    return _load(path, settings)


def _load(path: Path, settings: StudySettings) -> optuna.Study:
    return optuna.load_study(
        storage=_storage(path),
        study_name=settings.name,
        pruner=TRIAL_PRUNERS[settings.trial_pruner](settings.epochs),
    )


def _storage(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def _check_settings(study: optuna.Study, settings: StudySettings, path: Path) -> None:
    recorded, wanted = study.user_attrs["settings"], json.loads(json.dumps(asdict(settings)))
    differing = [k for k in wanted if recorded.get(k) != wanted[k]]
    if differing:
        told = ", ".join(f"{k} was {recorded.get(k)!r}, now {wanted[k]!r}" for k in differing)
        raise InputError(f"{path} was started with other settings: {told}; use another --out")


def _cut_torn_line(path: Path) -> None:
    """Cut what a killed process left after the last whole line of a journal."""
    with path.open("rb+") as journal:
        content = journal.read()
        journal.truncate(content.rfind(b"\n") + 1)
