"""Where studies are kept: a journal file each by default, or any storage that Optuna can open.

A journal is mended when it is opened by the one who holds its folder: a killed process may have
left a torn line, a lock, and a trial that would count as running for ever.
"""

from __future__ import annotations

import contextlib
import re
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from proxyhpo.config import InputError

_MAKING = ("already exists", "UNIQUE constraint", "duplicate key", "database is locked")
"""What databases say where two make the same tables at once."""

LOCK_GRACE = 5
"""Seconds after which a journal's lock counts as left by a killed process; it is held for
milliseconds."""

DRIVERS = {
    "postgresql": "psycopg2-binary",
    "mysql": "PyMySQL (and mysql+pymysql:// in the URL)",
    "oracle": "oracledb",
    "redis": "redis",
}
"""Packages that open a kind of storage, by the scheme of its URL."""


def open_storage(where: str | Path | BaseStorage) -> BaseStorage:
    """Open the storage at ``where``: a URL such as ``postgresql://user@host/name``, or a file.

    An open storage is returned as it is. A file that doesn't end in ".db" is a journal; one that
    does is SQLite, as ``sqlite:///FILE``.

    Raises:
        InputError: a URL that says nothing to Optuna, a driver that isn't installed, or a
            database that can't be reached.
    """
    if isinstance(where, BaseStorage):
        return where
    text = str(where)
    if "://" not in text:
        path = Path(where).expanduser().resolve()  # Optuna's lock needs an absolute path
        if path.suffix != ".db":
            _make_folder(path.parent)
            lock = JournalFileOpenLock(str(path), grace_period=LOCK_GRACE)
            return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        text = f"sqlite:///{path}"
    shown, scheme = hide_password(text), re.split(r"[+:]", text)[0]
    try:
        if scheme == "redis":
            from optuna.storages.journal import JournalRedisBackend

            return JournalStorage(JournalRedisBackend(text))
        return _open_database(text)
    except ImportError as error:
        driver = DRIVERS.get(scheme, "the driver that SQLAlchemy names")
        raise InputError(
            f"--storage {shown}: a driver is missing ({str(error).splitlines()[0]}); "
            f"pip install {driver}"
        ) from None
    except Exception as error:  # every driver has errors of its own
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"--storage {shown} can't be opened: {type(error).__name__}: {reason}; "
            "give a file, or a URL such as sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None


def _open_database(url: str) -> BaseStorage:
    """Open a database; where somebody else is making its tables at this moment, wait for that."""
    for left in reversed(range(10)):
        try:
            return RDBStorage(url)
        except Exception as error:
            if not left or not any(words in str(error) for words in _MAKING):
                raise
            time.sleep(0.5)
    raise AssertionError("the last try returns or raises")


def claiming(where: str | Path | BaseStorage) -> AbstractContextManager:
    """Return what must be held to claim a trial: SQLite can't tell two who claim at once apart."""
    text = str(where)
    if not text.startswith("sqlite") and ("://" in text or not text.endswith(".db")):
        return nullcontext()
    file = Path(text.partition("///")[2] or text)
    return FileLock(file.with_name(f".{file.name}.lock"))


def hide_password(url: str) -> str:
    """Return ``url`` without its password, for messages and records."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def mend_journal(path: Path, name: str | None) -> None:
    """Make the journal at ``path`` whole again after its writer was killed.

    Args:
        path: absolute.
        name: the only study in it, if the caller is the only one to use the file. It is then
            written anew without what was under way: an unfinished trial waits again under its
            number, to get its parameters again, with what it is known to have lost.
    """
    lock = JournalFileOpenLock(str(path), grace_period=LOCK_GRACE)
    if name is not None:
        # a killed process leaves its lock behind, for which Optuna would wait half a minute
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    lock.acquire()
    try:
        _cut_torn_line(path)
    finally:
        lock.release()
    if name is None:
        return
    try:
        study = optuna.load_study(storage=open_storage(path), study_name=name)
    except KeyError:
        return  # killed while the study was made: nothing had begun
    trials = study.get_trials(deepcopy=False)
    if not any(trial.state == TrialState.RUNNING for trial in trials):
        return
    draft = path.with_name(f"{path.name}.draft")
    draft.unlink(missing_ok=True)
    copy = optuna.create_study(
        storage=open_storage(draft), study_name=name, directions=study.directions
    )
    for key, value in study.user_attrs.items():
        copy.set_user_attr(key, value)
    for trial in trials:
        running = trial.state == TrialState.RUNNING
        copy.add_trial(_waiting_again(trial, trials) if running else trial)
    draft.with_name(f"{draft.name}.lock").unlink(missing_ok=True)
    draft.replace(path)


def _waiting_again(trial: FrozenTrial, trials: list[FrozenTrial]) -> FrozenTrial:
    kept = {key: value for key, value in trial.user_attrs.items() if key not in ("owner", "alive")}
    if alive := trial.user_attrs.get("alive"):
        kept["lost"] = [*kept.get("lost", []), alive["after"]]
    # The seeded sampler suggests the same again where it sees the same trials; told of fixed
    # parameters, CMA-ES would not count the trial as one of its own.
    assert trial.datetime_start is not None  # it was running
    same = not any(
        other.state == TrialState.RUNNING
        if other.datetime_complete is None
        else other.datetime_complete > trial.datetime_start
        for other in trials
        if other.number != trial.number
    )
    return create_trial(
        state=TrialState.WAITING,
        user_attrs=kept,
        system_attrs={} if same else {"fixed_params": trial.params},  # as enqueue_trial does
    )


def _cut_torn_line(path: Path) -> None:
    """Cut what a killed process left after the last whole line of a journal."""
    with path.open("rb+") as journal:
        content = journal.read()
        journal.truncate(content.rfind(b"\n") + 1)


def _make_folder(folder: Path) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--storage: can't make the folder {folder}: {error.strerror}") from None
