"""A study that survives: any number of workers, here or on other machines, and any interruption.

A study is made with all its trials waiting, so that its budget is exact however many workers share
it. A worker claims the first waiting trial, trains it and tells the study how it ended; meanwhile
it leaves signs of life. A trial whose worker died is requeued under its number, with its
parameters, and the seconds spent on it are recorded as lost.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from proxyhpo.config import InputError, differences
from proxyhpo.hpo import storage
from proxyhpo.hpo.search import Configuration, StudySettings, suggest, trial_value
from proxyhpo.hpo.storage import Where

GRACE = 60.0
"""Seconds without a sign of life after which a worker on another machine is given up."""


class Outcome(Protocol):
    """What a study is told of a training: how it ended, and the accuracy that it reached."""

    @property
    def state(self) -> str:
        """As in the rows."""

    @property
    def accuracy(self) -> float:
        """As a fraction."""


class OptunaStudy(optuna.Study):
    """Optuna's study, whose ``stop`` ends :func:`work` as well; Optuna's only ends ``optimize``."""

    stopped = False

    def stop(self) -> None:
        """End the search after the trials that run."""
        self.stopped = True
        with suppress(RuntimeError):  # not within optimize
            super().stop()


class Study:
    """A study in its storage; :attr:`optuna` is the same as Optuna has it."""

    def __init__(self, settings: StudySettings, where: Where, name: str) -> None:
        """Join a study that :meth:`open` made; raise :class:`InputError` if it isn't there."""
        self.settings, self.where, self.name = settings, where, name
        self._lock = storage.local_lock(where, name)
        self._signs: dict[int, tuple[object, float]] = {}
        opened, pruner = storage.open_storage(where), settings.build_trial_pruner()
        try:
            self.optuna = OptunaStudy(name, opened, pruner=pruner)
        except KeyError:
            raise InputError(f"no study {name!r} in {storage.shown_address(where)}") from None

    @classmethod
    def open(
        cls,
        settings: StudySettings,
        where: Where,
        name: str = "",
        *,
        plan: Callable[[], str] = str,
        exclusive: bool = False,
        otherwise: str = "use another storage, or another name",
    ) -> Study:
        """Open the study, or make it; requeue trials that an interruption left running.

        ``name`` is the settings' own by default. ``plan`` is called where the study is new; what
        it returns is kept as :attr:`plan`. ``exclusive`` says that nobody else uses the storage,
        so that whatever runs in it was interrupted. ``otherwise`` is what to do where the study was
        started with other settings; those that an earlier version didn't record aren't compared.

        Raises:
            InputError: the storage can't be opened, or the study was started with other settings.
        """
        name = name or settings.name
        kept = storage.open_storage(where)
        study = optuna.create_study(
            storage=kept, study_name=name, direction="maximize", load_if_exists=True
        )
        if "settings" not in study.user_attrs and not study.get_trials(deepcopy=False):
            # new, or its maker was killed before it was whole: the settings come last
            made = plan()
            if "settings" not in study.user_attrs:  # nobody else was quicker
                study.set_user_attr("plan", made)
                study.set_user_attr("settings", settings.recorded)
        _check_settings(study, settings, where, otherwise)
        for _ in range(settings.trials - len(study.get_trials(deepcopy=False))):
            # one more than the budget, where two machines do this at once, is never claimed
            study.add_trial(create_trial(state=TrialState.WAITING))
        opened = cls(settings, where, name)
        opened.mend(everything=exclusive)
        return opened

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
        """The trials that have ended, each with its rows in ``user_attrs["rows"]``."""
        return [trial for trial in self.trials if trial.state.is_finished()]

    @property
    def done(self) -> bool:
        """Whether every trial of the budget has ended."""
        return len(self.finished) == self.settings.trials

    def claim(self) -> Claim | None:
        """Take the first waiting trial, with its configuration; None where none waits."""
        began = time.monotonic()
        for frozen in self.trials:
            if frozen.state == TrialState.WAITING and self._take(frozen.number):
                try:
                    return Claim(self, frozen.number, began)
                except BaseException:  # Ctrl-C while the sampler works
                    self.give_back(frozen)
                    raise
        return None

    def _take(self, number: int) -> bool:
        trial = storage.open_trial(self.optuna, number)
        with self._lock:
            return storage.set_state(trial, TrialState.RUNNING)

    def mend(self, *, everything: bool = False) -> None:
        """Requeue running trials whose worker died, or ``everything`` that runs."""
        for seen in self.trials:
            if seen.state == TrialState.RUNNING and (everything or self._gone(seen)):
                with self._lock, suppress(UpdateFinishedTrialError):
                    now = self.trials[seen.number]
                    if (now.state, now.user_attrs) == (seen.state, seen.user_attrs):
                        self.give_back(now)  # nobody else has

    def _gone(self, trial: FrozenTrial) -> bool:
        """Return whether the worker of a running trial died, as far as can be seen from here."""
        owner = trial.user_attrs.get("owner")
        if owner and owner["host"] == this_host():
            return _born(owner["pid"]) != owner["born"]
        sign, now = (owner, trial.user_attrs.get("alive")), time.monotonic()
        last, since = self._signs.get(trial.number, (None, now))
        self._signs[trial.number] = sign, since if sign == last else now
        return now - self._signs[trial.number][1] > GRACE

    def give_back(self, frozen: FrozenTrial) -> None:
        """Requeue a running trial, and record what was spent on it as lost."""
        trial = storage.open_trial(self.optuna, frozen.number)
        trial.set_user_attr("lost", lost_seconds(frozen))
        for name in ("alive", "owner"):
            trial.set_user_attr(name, None)
        storage.set_state(trial, TrialState.WAITING)

    def fail(self, frozen: FrozenTrial, rows: list[dict]) -> None:
        """Record a running trial as failed: it ended its worker more than once."""
        trial = storage.open_trial(self.optuna, frozen.number)
        trial.set_user_attr("rows", [plain(row) for row in rows])
        self.optuna.tell(trial, state=TrialState.FAIL)


class Claim:
    """A trial in the hands of one worker; a context manager that gives signs of life.

    An exception (Ctrl-C too) requeues the trial.

    Attributes:
        number: of the trial.
        began: when it was claimed, by ``time.monotonic``.
        configuration: its hyperparameters.
        lost: seconds that earlier workers spent on it in vain, one item each.
        seconds: from the claim to the configuration, the sampler's own.
    """

    def __init__(self, study: Study, number: int, began: float) -> None:
        self._study, self.began = study, began
        self._owner = {"host": this_host(), "pid": os.getpid(), "born": _born(os.getpid())}
        self._trial = storage.open_trial(study.optuna, number)
        self._trial.set_user_attr("owner", self._owner)
        trials, asked = study.trials, study.settings.asked
        params = trials[number].params
        if params.keys() != asked.keys():  # it isn't one that was interrupted later
            params = suggest(study.settings, trials, number)
            storage.set_params(self._trial, params, asked)
        self._reported = max(trials[number].intermediate_values, default=0)
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self.number = number
        self.configuration: Configuration = study.settings.configuration(params)
        self.lost: list[float] = self._trial.user_attrs.get("lost", [])
        self.seconds = time.monotonic() - began

    def _beat(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            spent = time.monotonic() - self.began
            pause = min(max(0.25, spent / 20), GRACE / 4)
            with suppress(Exception):  # a storage that is away for a moment must not end a trial
                self._sign(spent + pause / 2)

    def _sign(self, spent: float) -> None:
        """Record what will be lost if this is the last sign of life, on average."""
        self._trial.set_user_attr("alive", {"after": round(spent, 3)})

    def __enter__(self) -> Claim:
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop_beating()
        if kind is not None and self._is_mine():
            self._sign(time.monotonic() - self.began)
            self._study.give_back(self._study.trials[self.number])

    def _stop_beating(self) -> None:
        self._over.set()
        self._heart.join()

    def _is_mine(self) -> bool:
        frozen = self._study.trials[self.number]
        if frozen.state == TrialState.WAITING:  # given up for lost, but not yet taken
            return self._study._take(self.number)
        running = frozen.state == TrialState.RUNNING
        return running and frozen.user_attrs.get("owner") == self._owner

    def stop(self, epochs: int, accuracy: float) -> bool:
        """Report to the trial pruner; return whether it stops the trial after these ``epochs``."""
        if epochs < self._reported:
            return False  # it went on here before it was interrupted
        if epochs > self._reported:
            self._trial.report(accuracy, epochs)
            self._reported = epochs
        return self._trial.should_prune()

    def note(self, error: Exception) -> None:
        """Keep the error that ended the training, as the trial's attribute "error"."""
        with suppress(UpdateFinishedTrialError):  # given up here, and finished elsewhere
            # MySQL takes 2048 characters
            self._trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:400])

    def tell(self, outcome: Outcome, rows: list[dict]) -> FrozenTrial | None:
        """Tell the study how the trial ended, and attach its rows; return the finished trial.

        The rows come first: a trial that is finished in the study always has them, wherever the
        process was interrupted. None if this worker was given up and another took the trial.
        """
        self._stop_beating()
        if not self._is_mine():
            return None
        self._trial.set_user_attr("rows", [plain(row) for row in rows])
        how = trial_value(self._study.settings, outcome.state, outcome.accuracy)
        return self._study.optuna.tell(self._trial, **how)


def lost_seconds(frozen: FrozenTrial) -> list[float]:
    """Return the seconds spent on a running trial in vain, one item a worker, its last included."""
    alive = frozen.user_attrs.get("alive")
    return [*frozen.user_attrs.get("lost", []), *([alive["after"]] if alive else [])]


def work(
    study: Study,
    attempt: Callable[[Claim], tuple[Outcome, list[dict]]],
    after: Callable[[FrozenTrial], object] = lambda _: None,
) -> None:
    """Train trial after trial until none waits or runs elsewhere, or ``study.optuna`` is stopped.

    ``attempt`` trains a claim; ``after`` is called with each trial that ended here.
    """
    while not (study.done or study.optuna.stopped):
        study.mend()
        claim = study.claim()
        if claim is None:  # others train the last ones; one of them may yet be lost
            time.sleep(0.2)
            continue
        with claim:
            finished = claim.tell(*attempt(claim))
        if finished is not None:
            after(finished)


def plain(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row without NaN, which JSON outside Python doesn't know."""
    return {k: v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))}


def _check_settings(
    study: optuna.Study, settings: StudySettings, where: Where, otherwise: str
) -> None:
    recorded, wanted = study.user_attrs.get("settings"), settings.recorded
    named = f"study {study.study_name!r} in {storage.shown_address(where)}"
    if recorded is None:
        raise InputError(f"{named} isn't proxyhpo's: use another storage, or another name")
    if both := differences(wanted | recorded, wanted):
        raise InputError(f"{named} was started with other settings: {both}; {otherwise}")


def this_host() -> str:
    """Return an identifier of this machine since it was started; containers have their own."""
    names = [socket.gethostname()]
    with suppress(OSError):  # no Linux
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        names.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(names)


def _born(pid: int) -> float | None:
    """Return when a process began, on Linux by a clock that nobody sets; None if it has ended."""
    try:
        if Path("/proc/self/stat").exists():  # see proc_pid_stat(5)
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            return None if state in "ZX" else int(fields[18])
        return psutil.Process(pid).create_time()
    except (OSError, psutil.NoSuchProcess):
        return None
