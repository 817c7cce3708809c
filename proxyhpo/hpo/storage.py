"""Where studies are kept: a journal file each by default, or any storage that Optuna can open.

Open storages you trust, as you would a pickle. Nothing that comes out of one is unpickled here,
but it decides what is trained, and other programs (Optuna's own CMA-ES sampler) do unpickle it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from binascii import crc32
from contextlib import suppress
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import (
    BaseJournalBackend,
    JournalFileBackend,
    JournalFileOpenLock,
    JournalRedisBackend,
)
from optuna.trial import TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from proxyhpo.config import DISK_FULL, InputError, make_folder, whole_path

Where = str | Path | BaseStorage

DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "mysqldb": "mysqlclient"}
"""Packages that aren't named as the driver that SQLAlchemy asks for."""

_VALID = "a file, or a URL such as sqlite:///FILE or postgresql://USER@HOST/NAME"

_MAKING = ("already exists", "UNIQUE constraint", "duplicate key", "database is locked")
"""What databases say where two make the same tables at once."""

_LONGEST = 1 << 20
"""Bytes of a journal's first line, which makes a study, at most."""

_DOUBTFUL = re.compile(r"(?<!sqlite)://(.*[@/?#].*@|[^?]*[#;])", re.DOTALL)
"""A URL in which part of a password could pass for a host, a path or a query."""

_TORN = re.compile(r"([a-z][\w+]+):(?!//)/?[^/].*@", re.IGNORECASE | re.DOTALL)
"""A URL that lacks a slash; it could be the name of a file, but of none that anybody wants."""


def open_storage(where: Where) -> BaseStorage:
    """Open the storage at ``where``: a URL such as ``postgresql://user@host/name``, or a file.

    An open storage is returned as it is. A file that doesn't end in ".db" is a journal; one that
    does is SQLite, as ``sqlite:///FILE``. :class:`InputError` says what can't be read or reached;
    a file that is neither is left as it is.
    """
    if isinstance(where, BaseStorage):
        return where
    if not isinstance(where, str | Path):
        raise InputError(f"storage {where!r}: {_VALID}, or an open storage of Optuna's")
    shown, address = hide_password(str(where)), _address(where)
    scheme, _, file = address.partition("://")
    if scheme == "journal" and not shown.endswith("://***"):
        return _open_journal(Path(file), shown)
    if shown.endswith("://***"):
        raise InputError(
            f"storage {shown} can't be read as a URL, SCHEME://USER:PASSWORD@HOST/NAME; in a "
            "user's name or password, write @ / ? # ; as %40 %2F %3F %23 %3B"
        )
    try:
        if scheme in ("redis", "rediss"):
            return _Journal(_RedisJournal(address), address)
        return _open_database(address)
    except ImportError as error:
        driver = "redis" if "redis" in scheme else make_url(address).get_dialect().driver
        raise InputError(
            f"storage {shown}: a driver is missing ({str(error).splitlines()[0]}); "
            f"pip install {DRIVERS.get(driver, driver)}"
        ) from None
    except Exception as error:  # every driver has errors of its own
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"storage {shown} can't be opened: {type(error).__name__}: {reason}; give {_VALID}"
        ) from None


def _address(where: Where) -> str:
    """Return ``where`` as a URL, for a journal journal://FILE; Optuna's locks need whole paths.

    A plain ``postgresql://`` means psycopg 3, as it does for SQLAlchemy from 2.1 on.
    """
    url = str(getattr(where, "url", where))  # an open storage's own
    if isinstance(where, BaseStorage) or "://" in url:
        return re.sub("^postgresql://", "postgresql+psycopg://", url)
    path = whole_path("storage", where)
    return f"sqlite:///{path}" if path.suffix == ".db" else f"journal://{path}"


def _open_journal(path: Path, shown: str) -> BaseStorage:
    """Open a journal, without what a killed process left after its last whole line."""
    if path.is_dir():
        raise InputError(f"storage {shown}: a folder; give {_VALID}")
    make_folder(path.parent)
    # it is held for milliseconds: a lock that is 5 seconds old was left by a killed process
    lock = JournalFileOpenLock(str(path), grace_period=5)
    lock.acquire()
    try:
        with path.open("ab+") as journal:
            journal.seek(0)
            if not _begins_journal(journal.readline(_LONGEST)):
                raise InputError(
                    f"storage {shown}: not a journal of studies, and left as it is; give {_VALID}"
                )
            journal.seek(0)
            journal.truncate(journal.read().rfind(b"\n") + 1)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise InputError(f"storage {shown} can't be written: {error.strerror}") from None
    finally:
        lock.release()
    return _Journal(JournalFileBackend(str(path), lock_obj=lock), f"journal://{path}")


def _begins_journal(line: bytes) -> bool:
    """Return whether a file with this first line is new, or a journal of Optuna's."""
    if not line.endswith(b"\n"):  # its first writer may have been killed meanwhile
        return not line or line.startswith(b'{"op_code":')
    try:
        record = json.loads(line)
    except ValueError:  # no JSON, or no text at all
        return False
    return isinstance(record, dict) and {"op_code", "worker_id"} <= record.keys()


class _Journal(JournalStorage):
    """Optuna's, which says where it lies, as a database does."""

    def __init__(self, backend: BaseJournalBackend, url: str) -> None:
        super().__init__(backend)
        self.url = url


class _RedisJournal(JournalRedisBackend):
    """Optuna's, without snapshots: pickles, by which whoever writes to a server could run code."""

    def save_snapshot(self, snapshot: bytes) -> None:
        pass

    def load_snapshot(self) -> None:
        pass


def _open_database(url: str) -> BaseStorage:
    """Open a database; wait while another process makes its tables."""
    for left in reversed(range(10)):
        try:
            return RDBStorage(url)
        except Exception as error:
            if not left or not any(words in str(error) for words in _MAKING):
                raise
            time.sleep(0.5)
    raise AssertionError("the last try returns or raises")


def local_lock(where: Where, name: str) -> FileLock:
    """Return what processes of this machine hold while they claim or requeue a study's trials.

    SQLite can't tell two simultaneous claims apart, and no storage two simultaneous requeues.
    """
    address = _address(where)
    if address.startswith("sqlite:///"):
        file = Path(address.removeprefix("sqlite:///").partition("?")[0])
        return FileLock(file.with_name(f".{file.name}.lock"))
    user = getattr(os, "getuid", int)()  # on Windows, users have temporary folders of their own
    key = crc32(f"{address} {name}".encode())
    return FileLock(Path(tempfile.gettempdir(), f"proxyhpo-{user}-{key:08x}.lock"))


def hide_password(url: str) -> str:
    """Return ``url`` without its secrets, for messages and records; a path stays as it is.

    All values of a query are hidden, whatever their names. Of a URL that can't be read, or whose
    password might end elsewhere, only the scheme is left.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        torn = _TORN.match(url)
        return f"{torn[1]}://***" if torn else url
    with suppress(ArgumentError, ValueError):
        if not _DOUBTFUL.search(url):
            parsed = make_url(url)
            hidden = parsed.set(query=dict.fromkeys(parsed.query, "hidden"))
            return hidden.render_as_string(hide_password=True)
    return f"{scheme}://***"


def shown_address(where: Where) -> str:
    """Return where a storage lies, open or not, without its secrets, for messages."""
    if isinstance(where, BaseStorage):
        url = getattr(where, "url", "")
        return hide_password(str(url)).removeprefix("journal://") or f"the {type(where).__name__}"
    return hide_password(str(where))


# Optuna hands out only trials that it makes itself, and has no public call that lets a running
# trial wait again. What isn't public is used below alone; it was checked with Optuna 5.0.0, by
# tests/hpo/test_study.py::test_what_is_private_in_optuna_is_as_it_was.


def open_trial(study: optuna.Study, number: int) -> optuna.Trial:
    """Return trial ``number`` of ``study``, to be written to."""
    key = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    return optuna.Trial(study, key)


def set_state(trial: optuna.Trial, state: TrialState) -> bool:
    """Start a waiting trial, or requeue a running one; return False if another was quicker."""
    with suppress(UpdateFinishedTrialError):
        return trial.storage.set_trial_state_values(trial._trial_id, state)
    return False


def set_params(trial: optuna.Trial, params: dict, distributions: dict) -> None:
    """Write what is missing of a running trial's parameters, by name as its distributions."""
    for name, distribution in distributions.items():
        if name not in trial.params:
            value = distribution.to_internal_repr(params[name])
            trial.storage.set_trial_param(trial._trial_id, name, value, distribution)
