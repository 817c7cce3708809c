"""A study that survives: any number of workers, here or on other machines, and any interruption.

A study is made with all its trials waiting, so that its budget is exact however many workers take
from it. A worker claims the first waiting trial, trains it and tells the study; while it trains, it
leaves a sign of life. A trial whose worker is gone waits again under its number, with its
parameters, and what its worker spent on it is noted as lost.
"""

from __future__ import annotations

import math
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeGuard

import optuna
import psutil
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from proxyhpo.config import InputError
from proxyhpo.hpo.search import SAMPLERS, Configuration, StudySettings, without_inert
from proxyhpo.hpo.storage import claiming, hide_password, mend_journal, open_storage
from proxyhpo.training import Outcome

BEAT = 5.0
"""Seconds between two signs of life."""
GRACE = 60.0
"""Seconds without one after which a worker on another machine counts as gone."""


class Study:
    """A study in its storage.

    Attributes:
        settings: what it suggests and stops.
        name: its name in the storage.
        where: URL or file of the storage.
    """

    def __init__(self, settings: StudySettings, where: str | Path | BaseStorage, name: str) -> None:
        """Join the study; :meth:`open` makes it first.

        Raises:
            InputError: the storage can't be opened, or has no such study.
        """
        self.settings, self.where, self.name = settings, where, name
        self._storage, self._claiming = open_storage(where), claiming(where)
        self.optuna = self._load()

    @classmethod
    def open(
        cls,
        settings: StudySettings,
        where: str | Path | BaseStorage,
        name: str = "",
        *,
        plan: Callable[[], str] = str,
        exclusive: bool = False,
    ) -> Study:
        """Open the study, or make it; what an interruption left is taken up.

        Args:
            settings: of the study.
            where: URL of a storage, the path of a journal, or a storage of Optuna's.
            name: in the storage; the settings' own by default.
            plan: called where the study is new; what it returns is kept as :attr:`plan`.
            exclusive: nobody else uses the journal, which holds this study alone. An interrupted
                study is then taken up as if the interruption had never been.

        Raises:
            InputError: the storage can't be opened, or the study was started with other settings.
        """
        name = name or settings.name
        if is_journal(where) and Path(where).exists():
            mend_journal(Path(where).resolve(), name if exclusive else None)
        storage = open_storage(where)
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
        if "settings" not in study.user_attrs and not study.get_trials(deepcopy=False):
            # new, or its maker was killed before it was whole: the settings come last
            kept = plan()
            if "settings" not in study.user_attrs:  # nobody else was quicker
                study.set_user_attr("plan", kept)
                study.set_user_attr("settings", settings.recorded)
        _check_settings(study, settings, where)
        for _ in range(settings.trials - len(study.get_trials(deepcopy=False))):
            # one more than the budget, where two machines do this at once, is never claimed
            study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))
        opened = cls(settings, where, name)
        opened.mend(mine=True)
        return opened

    def _load(self, number: int = 0) -> optuna.Study:
        """Return Optuna's view of the study, as of now, with the sampler of trial ``number``."""
        try:
            with _quiet():
                return optuna.load_study(
                    storage=self._storage,
                    study_name=self.name,
                    sampler=self.settings.build_sampler(number),
                    pruner=self.settings.build_trial_pruner(),
                )
        except KeyError:
            raise InputError(
                f"no study {self.name!r} in {hide_password(str(self.where))}"
            ) from None

    @property
    def plan(self) -> str:
        """What the study was made with; see :meth:`open`."""
        return self.optuna.user_attrs["plan"]

    @property
    def trials(self) -> list[FrozenTrial]:
        """The trials within the budget, as of now."""
        return self.optuna.get_trials(deepcopy=False)[: self.settings.trials]

    @property
    def finished(self) -> list[FrozenTrial]:
        """The trials that are told, each with its rows in ``user_attrs["rows"]``."""
        return [trial for trial in self.trials if trial.state.is_finished()]

    @property
    def done(self) -> bool:
        """Whether every trial of the budget is told."""
        return len(self.finished) == self.settings.trials

    def claim(self) -> Claim | None:
        """Take the first waiting trial, with its configuration; None where none waits."""
        began = time.perf_counter()
        for frozen in self.trials:
            if frozen.state == TrialState.WAITING and self._take(frozen):
                claim = self._suggest(frozen)
                claim.seconds = time.perf_counter() - began
                return claim
        return None

    def _take(self, frozen: FrozenTrial) -> bool:
        with self._claiming, suppress(UpdateFinishedTrialError):
            return self._storage.set_trial_state_values(self._id(frozen), TrialState.RUNNING)
        return False

    def _suggest(self, frozen: FrozenTrial) -> Claim:
        owner, threads = _myself(), torch.get_num_threads()
        torch.set_num_threads(1)  # the GP's small matrices stall on threads that others hold
        try:
            with _quiet():
                study = self._load(frozen.number)
                study.get_trials(deepcopy=False)  # a database's cache knows what it has read
                trial = Trial(study, self._id(frozen))
                trial.set_user_attr("owner", owner)
                for name, distribution in self.settings.asked.items():
                    trial._suggest(name, distribution)
        finally:
            torch.set_num_threads(threads)
        return Claim(self, trial, owner, frozen.intermediate_values)

    def _id(self, frozen: FrozenTrial) -> int:
        study = self._storage.get_study_id_from_name(self.name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, frozen.number)

    def mend(self, *, mine: bool = False) -> None:
        """Let trials wait again whose worker is gone, and with ``mine`` this process's own."""
        for frozen in self.trials:
            if frozen.state == TrialState.RUNNING and _gone(frozen, mine):
                with suppress(UpdateFinishedTrialError):  # somebody else was quicker
                    self.give_back(frozen)

    def give_back(self, frozen: FrozenTrial) -> None:
        """Let a running trial wait again, and note what was spent on it as lost."""
        number = self._id(frozen)
        attributes = self._storage.get_trial(number).user_attrs
        if alive := attributes.get("alive"):
            lost = [*attributes.get("lost", []), alive["after"]]
            self._storage.set_trial_user_attr(number, "lost", lost)
            self._storage.set_trial_user_attr(number, "alive", None)
        self._storage.set_trial_user_attr(number, "owner", None)
        self._storage.set_trial_state_values(number, TrialState.WAITING)

    def fail(self, frozen: FrozenTrial, rows: list[dict]) -> None:
        """Record a running trial as failed: it ended its worker more than once."""
        self._storage.set_trial_user_attr(self._id(frozen), "rows", [plain(row) for row in rows])
        self._storage.set_trial_state_values(self._id(frozen), TrialState.FAIL)


class Claim:
    """A trial in the hands of one worker; a context manager that gives signs of life.

    Left by an exception (Ctrl-C too), the trial waits again.

    Attributes:
        number: of the trial.
        configuration: what it is to be trained with.
        lost: seconds that earlier workers spent on it in vain, one item each.
        seconds: that the sampler took to suggest it.
    """

    def __init__(
        self, study: Study, trial: Trial, owner: dict[str, object], reported: dict[int, float]
    ) -> None:
        self._study, self._trial, self._owner = study, trial, owner
        self._reported = max(reported, default=0)
        self._began = time.monotonic()
        self.seconds = 0.0
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._told = False
        self.number: int = trial.number
        self.configuration: Configuration = without_inert(trial.params)
        self.lost: list[float] = trial.user_attrs.get("lost", [])

    def _beat(self) -> None:
        while not self._over.is_set():
            with suppress(Exception):  # a storage that is away for a moment must not end a trial
                self._sign()
            self._over.wait(BEAT)

    def _sign(self) -> None:
        after = round(time.monotonic() - self._began, 2)
        self._trial.set_user_attr("alive", {"at": time.time(), "after": after})

    def __enter__(self) -> Claim:
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop_beating()
        if kind is not None and not self._told and self._is_mine():
            self._sign()
            frozen = self._study.optuna.get_trials(deepcopy=False)[self.number]
            self._study.give_back(frozen)

    def _stop_beating(self) -> None:
        self._over.set()
        self._heart.join()

    def _is_mine(self) -> bool:
        frozen = self._study.trials[self.number]
        if frozen.state == TrialState.WAITING:  # given up for lost, but not yet taken
            return self._study._take(frozen)
        running = frozen.state == TrialState.RUNNING
        return running and frozen.user_attrs.get("owner") == self._owner

    def stop(self, epochs: int, accuracy: float) -> bool:
        """Report to the trial pruner; say whether it ends the trial after these ``epochs``."""
        if epochs < self._reported:
            return False  # it went on here before it was interrupted
        if epochs > self._reported:
            self._trial.report(accuracy, epochs)
            self._reported = epochs
        return self._trial.should_prune()

    def tell(self, outcome: Outcome, rows: list[dict]) -> FrozenTrial | None:
        """Tell the study what came of the trial, with its rows attached; return the told trial.

        The rows come first: a trial that is finished in the study always has them, wherever the
        process was interrupted. None if this worker counted as gone and another took the trial.
        """
        self._stop_beating()
        if not self._is_mine():
            self._told = True
            return None
        self._trial.set_user_attr("rows", [plain(row) for row in rows])
        value, state = None, None
        if outcome.state == "complete":
            value = outcome.accuracy
        elif outcome.state == "stopped":
            # a pruned trial's value is its last report; a complete one's must be given
            state = SAMPLERS[self._study.settings.sampler].stopped_as
            value = outcome.accuracy if state == TrialState.COMPLETE else None
        elif outcome.state == "diverged":
            value = 0.0  # the worst accuracy there is, so that every sampler learns to keep away
        else:
            state = TrialState.FAIL
        with _quiet():
            told = self._study.optuna.tell(self.number, value, state=state)
        self._told = True
        return told


Attempt = Callable[[Claim], tuple[Outcome, list[dict]]]


def work(
    study: Study, attempt: Attempt, after: Callable[[FrozenTrial], object] = lambda _: None
) -> None:
    """Train trial after trial until none waits or runs elsewhere, or ``after`` returns True.

    Args:
        study: where trials are claimed.
        attempt: trains a claim; gives its outcome and rows.
        after: called with each trial that was told here.
    """
    while not study.done:
        claim = study.claim()
        if claim is None:  # others train the last ones; one of them may yet be lost
            time.sleep(0.2)
            study.mend()
            continue
        with claim:
            told = claim.tell(*attempt(claim))
        if told is not None and after(told) is True:
            return


def plain(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row without NaN, which JSON outside Python doesn't know."""
    return {k: v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))}


def is_journal(where: str | Path | BaseStorage) -> TypeGuard[str | Path]:
    """Say whether ``where`` is a journal file, and no URL or database."""
    if isinstance(where, BaseStorage):
        return False
    return "://" not in str(where) and Path(where).suffix != ".db"


def _check_settings(study: optuna.Study, settings: StudySettings, where: object) -> None:
    recorded, wanted = study.user_attrs.get("settings"), settings.recorded
    if recorded is None:
        raise InputError(
            f"{hide_password(str(where))} has a study {study.study_name!r} that isn't proxyhpo's; "
            "use another storage, or another name"
        )
    differing = [key for key in wanted if recorded.get(key) != wanted[key]]
    if differing:
        told = ", ".join(f"{k} was {recorded.get(k)!r}, now {wanted[k]!r}" for k in differing)
        raise InputError(
            f"study {study.study_name!r} in {hide_password(str(where))} was started with other "
            f"settings: {told}; use another --out or --storage"
        )


def _myself() -> dict[str, object]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "born": process.create_time()}


def _gone(frozen: FrozenTrial, mine: bool) -> bool:
    """Say whether the worker of a running trial is gone, as far as can be told from here."""
    owner, alive = frozen.user_attrs.get("owner"), frozen.user_attrs.get("alive")
    if mine and owner == _myself():
        return True
    if owner and owner["host"] == socket.gethostname():
        try:
            return psutil.Process(owner["pid"]).create_time() != owner["born"]
        except psutil.NoSuchProcess:
            return True
    if alive:
        return time.time() - alive["at"] > GRACE
    assert frozen.datetime_start is not None  # it is running
    return time.time() - frozen.datetime_start.timestamp() > GRACE


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
