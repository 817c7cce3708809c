"""The settings of a search, and its methods, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial

from proxyhpo.analysis.certificate import AGAIN, CONFIGURATIONS
from proxyhpo.config import InputError, check_integer, check_seed, check_share, choose
from proxyhpo.data.feed import Augmentation
from proxyhpo.hpo.ladder import LADDERS, Ladder, View, promote
from proxyhpo.hpo.search import SAMPLERS, TRIAL_PRUNERS, Configuration, Space
from proxyhpo.hpo.stand_ins import parse


@dataclass(frozen=True)
class Settings:
    """How :func:`proxyhpo.tune` searches; every value has a default.

    Attributes:
        stand_in: what method "study" tunes, a key of
            :data:`proxyhpo.hpo.stand_ins.STAND_INS` or two joined by "+"; "base" is the network.
        share: of the network's cost that a stand-in keeps where its name doesn't say, in (0, 1).
        ladder: the rungs of method "ladder".
        sampler: of the first rung, a key of :data:`proxyhpo.hpo.search.SAMPLERS`; by default
            "random" for methods "best_k" and "ladder", "hyperband" has its own, else "tpe".
        trial_pruner: of method "study", a key of :data:`proxyhpo.hpo.search.TRIAL_PRUNERS`.
        epochs: of a full training of the network; a rung that trains it for as many is left out.
        batch_size: pictures a step, unless the space has it.
        verify: how many of the best to train on the network itself; ``None`` leaves it to the
            certificate, without one to the ladder; 0 trusts the stand-in, unless the certificate
            says "don't".
        certify: configurations, drawn at random, that run on the network too before the search is
            spent on its stand-in, at most half the trials; 0 for no certificate. ``None`` is 4, or
            0 in a search too short to earn them back
            (:func:`proxyhpo.analysis.certificate.affordable`): of fewer than 9 by default.
        reseed: how many of them are trained on the network once more, for the noise ceiling.
        warm_start: a study of yours: its best configurations, which have to lie in the search
            space, come first, at most half the trials.
        study_name: in the storage; by default of network, sampler and seed.
        seed: of everything.
        val: share of the pictures to validate on, where they come in one piece.
        augmentation: of training pictures; by default what suits the data.
        callbacks: called with Optuna's study and each trial that ended, as by
            ``Study.optimize``; ``study.stop()`` ends the rung that is under way.
        catch: errors of a training after which the search goes on, as in ``Study.optimize``: its
            trial counts, has failed, and keeps the error as its attribute "error". Whatever this
            says, a trial that runs out of memory has failed, one whose score or loss isn't finite
            has diverged, and one that raises ``optuna.TrialPruned`` was stopped. Any other error
            ends the search, and the next call begins with that trial.
    """

    stand_in: str = "snip"
    share: float = 0.25
    ladder: Ladder = field(default_factory=lambda: LADDERS["ladder"])
    sampler: str | None = None
    trial_pruner: str = "hyperband"
    epochs: int = 9
    batch_size: int = 64
    verify: int | None = None
    certify: int | None = None
    reseed: int = AGAIN
    warm_start: optuna.Study | None = None
    study_name: str | None = None
    seed: int = 0
    val: float = 0.2
    augmentation: Augmentation | None = None
    callbacks: Sequence[Callable[[optuna.Study, FrozenTrial], object]] = ()
    catch: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.stand_in != "base":
            parse(self.stand_in, self.share)
        check_share("share", self.share, "the network's cost")
        check_share("val", self.val, "the pictures")
        if not isinstance(self.ladder, Ladder):
            raise InputError(f"ladder {self.ladder!r}: a Ladder, such as {LADDERS['ladder']}")
        for rung in self.ladder.rungs:
            if (view := View.of(rung)).stand_in != "base":
                parse(view.stand_in, self.share)
            elif view.epochs >= self.epochs > 1:
                raise InputError(f"rung {rung!r}: fewer epochs than the {self.epochs} of a trial")
        choose("sampler", self.sampler or "tpe", SAMPLERS)
        choose("trial pruner", self.trial_pruner, TRIAL_PRUNERS)
        for name, least in {"epochs": 1, "batch_size": 2, "reseed": 0}.items():
            check_integer(name, getattr(self, name), least)
        check_seed(self.seed)
        for name in ("verify", "certify"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 0, ", or None")
        certify = CONFIGURATIONS if self.certify is None else self.certify
        if self.reseed > certify > 0:  # without a certificate none is trained again
            raise InputError(f"reseed {self.reseed}: at most the {certify} certified ones")
        if self.warm_start is not None and not isinstance(self.warm_start, optuna.Study):
            raise InputError(f"warm_start {self.warm_start!r}: an optuna.Study")
        kinds = self.catch if isinstance(self.catch, tuple) else (self.catch, None)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise InputError(f"catch {self.catch!r}: a tuple of exceptions, such as (ValueError,)")
        if self.augmentation is not None and not isinstance(self.augmentation, Augmentation):
            raise InputError(f"augmentation {self.augmentation!r}: as {Augmentation()}")
        if self.study_name is not None and not isinstance(self.study_name, str):
            raise InputError(f"study_name {self.study_name!r}: a string, or None")
        if not isinstance(self.callbacks, Sequence) or not all(map(callable, self.callbacks)):
            raise InputError(f"callbacks {self.callbacks!r}: a list of functions (study, trial)")


def warm_configurations(study: optuna.Study, space: Space, count: int) -> list[Configuration]:
    """Return the ``count`` best configurations of a user's study, best first.

    Raises:
        InputError: it has several objectives, no trial with all that ``space`` asks for, or one
            of the best lies outside.
    """
    if len(study.directions) > 1:
        raise InputError(
            f"warm_start: study {study.study_name!r} has {len(study.directions)} objectives; "
            "give one with a single objective"
        )
    sign = -1 if study.direction == StudyDirection.MINIMIZE else 1
    known = [t for t in study.get_trials(deepcopy=False) if t.value is not None]
    fit = [trial for trial in known if {*space} <= {*trial.params}]
    order = promote([sign * float(trial.value or 0) for trial in fit], count)
    if not order:
        raise InputError(
            f"warm_start: none of the {len(known)} trials of study {study.study_name!r} that have "
            f"a value has the parameters of the search space, {', '.join(space)}"
        )
    for trial, (name, kind) in product([fit[place] for place in order], space.items()):
        try:  # Optuna's own check
            create_trial(params={name: trial.params[name]}, distributions={name: kind}, value=0)
        except (ValueError, TypeError):
            raise InputError(
                f"warm_start: {name} {trial.params[name]!r} of trial {trial.number} isn't in the "
                f"search space, {kind}"
            ) from None
    return [{name: fit[place].params[name] for name in space} for place in order]


@dataclass(frozen=True)
class Plan:
    """What a method comes to: a ladder, and how its first rung is searched."""

    ladder: Ladder
    sampler: str
    trial_pruner: str = "none"


METHODS: dict[str, Callable[[Settings], Plan]] = {
    # a study on a stand-in, and its best on the network; "base" for plain tuning
    "study": lambda own: Plan(
        Ladder(tuple(dict.fromkeys((own.stand_in, "base")))), own.sampler or "tpe", own.trial_pruner
    ),
    "halving": lambda own: Plan(Ladder(("base",)), own.sampler or "tpe", "halving"),
    "hyperband": lambda own: Plan(Ladder(("base",)), "hyperband", "hyperband"),
    "epochs": lambda own: Plan(Ladder(("epochs@0.3", "base")), own.sampler or "tpe"),
    "best_k": lambda own: Plan(LADDERS["best_k"], own.sampler or "random"),
    "ladder": lambda own: Plan(own.ladder, own.sampler or "random"),
}
AUTO = "epochs"
"""What method "auto" is: the first on CIFAR-10's recorded tables (docs/method.md)."""
