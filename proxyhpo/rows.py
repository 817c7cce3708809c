"""Recorded rows: their schema, their files, and where a row comes from.

A file is a plain CSV: UTF-8, one line a row, floats with the digits it takes to read the same float
back, an empty cell for no value. Columns in which every row has its default are left out. A file
under way grows by whole lines; a finished one has a last column, ``rows``, that says how many rows
it holds, so that one that was cut is refused.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from itertools import combinations
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from filelock import FileLock

from proxyhpo.config import InputError, installed, write_whole

ROLES = ("base", "proxy")
PURPOSES = ("data", "proxy", "study", "curve", "lost", "verify", "final", "truth", "ranking")
STATES = ("complete", "stopped", "diverged", "failed")
CHOICES = ("base", "proxy", "verified")
PARAMETER, LEVEL = "param_", "level_"


@dataclass(frozen=True)
class Column:
    """One column: its type, its meaning, and its value in rows without it (None: all give it)."""

    kind: type[str] | type[int] | type[float]
    doc: str
    missing: str | int | float | None = None


COLUMNS: dict[str, Column] = {
    "profile": Column(str, "scale of the run: a key of config.PROFILES, or custom"),
    "dataset": Column(str, "key of data.DATASETS, or imagefolder:PATH"),
    "network": Column(str, "base network, key of models.MODELS"),
    "role": Column(str, "what was trained: " + ", ".join(ROLES)),
    "proxy": Column(str, "name of the stand-in; empty for the base network", ""),
    "pruning_ratio": Column(float, "1 - target share of the base's cost; 0 for the base", 0.0),
    "plan": Column(int, "which plan of a pruned stand-in", 0),
    "sampler": Column(str, "key of search.SAMPLERS; empty in tables and ranking studies", ""),
    "purpose": Column(str, "what the seconds were spent on: " + ", ".join(PURPOSES)),
    "seed": Column(int, "of the experiment; of the weights in tables and ranking studies"),
    "choice": Column(str, "whose configuration a final row trains, joined by +", ""),
    "config_id": Column(str, "hash of the hyperparameters, 8 hex digits", ""),
    "trial": Column(int, "number of the trial in its study; -1: none", -1),
    "state": Column(str, "how it ended: " + ", ".join(STATES)),
    "epochs": Column(int, "epochs done", 0),
    "budget": Column(int, "epochs of a full trial", 0),
    "val_accuracy": Column(float, "right ones of the validation split, last epoch", math.nan),
    "val_loss": Column(float, "mean cross-entropy on the validation split, nats", math.nan),
    "test_accuracy": Column(float, "right ones of the test split, last epoch", math.nan),
    "test_loss": Column(float, "mean cross-entropy on the test split, nats", math.nan),
    "score": Column(float, "what a user's own training code returned, to maximise", math.nan),
    "curve": Column(str, "val_accuracy after each epoch, 4 decimals, spaces between", ""),
    "curve_loss": Column(str, "val_loss likewise", ""),
    "curve_averaged": Column(str, "curve, weights averaged over an epoch's second half", ""),
    "curve_averaged_loss": Column(str, "curve_loss of the averaged weights", ""),
    "samples": Column(int, "pictures trained on, counted at each use", 0),
    "side": Column(int, "of the pictures, pixels; 0: unknown", 0),
    "batch_size": Column(int, "pictures a step; 0: unknown", 0),
    "microbatches": Column(int, "parts that a batch was cut into for want of memory", 1),
    "macs": Column(int, "forward multiply-accumulates of the trained network, one picture", 0),
    "parameters": Column(int, "parameters of the trained network", 0),
    "proxy_seconds": Column(float, "of wall_seconds: building the proxy", 0.0),
    "train_seconds": Column(float, "of wall_seconds: training steps", 0.0),
    "eval_seconds": Column(float, "of wall_seconds: evaluation", 0.0),
    "sampler_seconds": Column(float, "of wall_seconds: the sampler's own", 0.0),
    "wall_seconds": Column(float, "what the worker that did it spent on account of this row"),
    "cpu_seconds": Column(float, "CPU seconds of the process over the same span"),
    "elapsed_seconds": Column(float, "wall_seconds, less where several workers ran", math.nan),
    "device": Column(str, "what computed"),
    "threads": Column(int, "CPU threads of the process"),
    "workers": Column(int, "processes that shared the study", 1),
    "load": Column(float, "1-minute load average of the machine at the end", math.nan),
    "precision": Column(str, "arithmetic of a training step, fp32 or bf16; empty: none", ""),
    "torch": Column(str, "version", ""),
    "optuna": Column(str, "version", ""),
    "version": Column(str, "version of proxyhpo", ""),
    "commit": Column(str, "git commit of the checkout, -dirty if changed; empty outside git", ""),
    "recorded": Column(str, "when the row was made, at the end of its seconds; UTC, ISO 8601"),
}
_FREE = {  # prefixes of columns that hyperparameters name; they stand after config_id
    LEVEL: Column(int, "level on a grid; -1: none", -1),
    PARAMETER: Column(float, "value; a column in which one isn't a number is text", math.nan),
}
_ALWAYS = {name for name, column in COLUMNS.items() if column.missing is None}
_ALWAYS |= {"proxy", "pruning_ratio", "plan", "sampler"}  # what a row is about
_WORDS = {"role": ROLES, "purpose": PURPOSES, "state": STATES}
_WORDS["choice"] = tuple("+".join(some) for n in range(4) for some in combinations(CHOICES, n))
_COUNT = "rows"

Rows: TypeAlias = pd.DataFrame | Iterable[Mapping[str, object]]


def read_rows(path: str | Path, *, finished: bool = False) -> pd.DataFrame:
    """Return the rows of a file: every column of :data:`COLUMNS`, ``level_*`` and ``param_*``.

    The last line of a file under way is ignored until it is whole. A finished file says how many
    rows it holds, and has to hold them; ``finished`` refuses any other.

    Raises:
        InputError: no such file, one that was cut, or rows that aren't ours; names file and line.
    """
    path = Path(path)
    try:
        content, end, torn = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise InputError(f"results file {path}: {error.strerror}") from None
    cells = _cells(content + end, path)
    counts = set(cells.pop(_COUNT)) if _COUNT in cells else None
    whole = not torn and counts == {str(len(cells))}
    if not end or (not whole and (finished or counts is not None)):
        what = f"the file isn't whole; delete {path} and run the same command again"
        raise _error(path, len(cells) + 1 + len(end), what)
    return as_frame(cells, path)


def write_rows(path: str | Path, rows: Rows) -> None:
    """Write ``rows`` (a frame, or one mapping a row) as the finished file ``path``, by rename.

    Raises:
        InputError: an unknown column, or a value that lacks or is wrong; the file stays as it is.
    """
    frame = as_frame(rows, path)
    names = [*_telling(frame, also=_ALWAYS), *([_COUNT] if len(frame) else [])]
    write_whole(path, _text(frame.assign(**{_COUNT: len(frame)})[names]))


def append_rows(path: str | Path, rows: Rows) -> None:
    """Add ``rows`` to a file under way; they are on the disk when this returns.

    The file is written whole if it is new, finished, or lacks a column. Several processes may
    append at once: the lock is ``.NAME.lock`` beside it.

    Raises:
        InputError: as :func:`write_rows`.
    """
    path = Path(path)
    frame = as_frame(rows, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            with path.open("rb+") as file:
                header = next(csv.reader([file.readline().decode(errors="replace").rstrip("\n")]))
                if _COUNT not in header and set(_telling(frame)) <= set(header):
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":  # a kill left the last line torn
                        file.seek(0)
                        file.seek(file.truncate(file.read().rfind(b"\n") + 1))
                    file.write(_text(frame.reindex(columns=header), header=False))
                    file.flush()
                    os.fsync(file.fileno())
                    return
            frame = as_frame(pd.concat([read_rows(path), frame]))
        write_whole(path, _text(frame[_telling(frame, also=_ALWAYS)]))


def as_frame(rows: Rows, path: str | Path = "(in memory)") -> pd.DataFrame:
    """Return ``rows`` with every column, all values checked and typed: the one schema check.

    Columns stand in the order of a file. Hyperparameters are floats, NaN where a row has none, or
    text where one of them isn't a number.

    Raises:
        InputError: an unknown column, or a value that is missing or wrong; the message names it,
            and the line that it has in file ``path``.
    """
    cells = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), dtype=object)
    names = list(cells.columns.drop("file", errors="ignore"))
    schema = _schema(names)
    for name in {**dict.fromkeys(names), **schema}:
        if name not in schema:
            raise _error(path, 1, f"unknown column {name!r}")
        if names.count(name) > 1:
            raise _error(path, 1, f"two columns {name!r}")
        if name not in names and schema[name].missing is None and len(cells):
            raise _error(path, 1, f"no column {name!r}")
    cells = cells.reindex(columns=list(schema))
    frame = pd.DataFrame({n: _typed(n, cells[n].tolist(), c, path) for n, c in schema.items()})
    exempt = frame["purpose"].isin(("ranking", "proxy")) | frame["profile"].eq("table")
    what = "is for tables, ranking studies and proxies alone"
    rules = {"sampler": (frame["sampler"].ne("") | exempt, what)}
    for name in ("val_accuracy", "test_accuracy"):
        rules[name] = frame[name].isna() | frame[name].between(0, 1), "is not between 0 and 1"
    for name, words in _WORDS.items():
        rules[name] = frame[name].isin(words), f"is not one of {', '.join(words)}"
    for name, (right, what) in rules.items():
        for row in frame.index[~right]:
            raise _error(path, row + 2, f"{name} {str(frame[name][row])!r} {what}")
    return frame


def load_results(folder: str | Path) -> pd.DataFrame:
    """Return the rows of every ``*.csv`` of a folder, in the order of names; see :func:`read_rows`.

    The column ``file`` (no part of the schema) names each row's file. A folder that is empty or
    not there gives an empty frame with the columns. ``*-steps.csv`` are left out: measured costs.
    """
    paths = [path for path in sorted(Path(folder).glob("*.csv")) if path.stem[-6:] != "-steps"]
    parts = {path.name: read_rows(path) for path in paths}
    rows = as_frame(pd.concat([as_frame([]), *parts.values()]))
    return rows.assign(file=[name for name, part in parts.items() for _ in range(len(part))])


def config_id(params: Mapping[str, object]) -> str:
    """Return 8 hex digits for a configuration, whatever the order of its keys; 128 is 128.0."""
    plain = {k: float(v) if isinstance(v, Real) else str(v) for k, v in params.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def identity(configuration: Mapping[str, object]) -> dict[str, Any]:
    """Return the columns that say which configuration a row is about."""
    values = {f"{PARAMETER}{name}": value for name, value in configuration.items()}
    return {"config_id": config_id(configuration), **values}


def select(rows: pd.DataFrame, **values: str) -> pd.DataFrame:
    """Return the rows that have these values in these columns."""
    for column, value in values.items():
        rows = rows[rows[column] == value]
    return rows.reset_index(drop=True)


def ranked(trials: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the configurations of ``trials`` that were trained in full, best first, each once.

    Accuracies after different numbers of epochs don't compare, so stopped trials are left out.
    """
    complete = trials[trials["state"] == "complete"]
    best = complete.sort_values("val_accuracy", ascending=False, kind="stable")
    best = best.drop_duplicates("config_id")
    names = [column for column in best if column.startswith(PARAMETER)]
    return [
        {name.removeprefix(PARAMETER): row[name] for name in names if pd.notna(row[name])}
        for row in best.to_dict("records")
    ]


def choices(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return what each of :data:`CHOICES` chose of an experiment's ``rows``, if it chose any."""
    trials = {
        "base": select(rows, purpose="study", role="base"),
        "proxy": select(rows, purpose="study", role="proxy"),
        "verified": select(rows, purpose="verify"),
    }
    return {name: best[0] for name, own in trials.items() if (best := ranked(own))}


def spent(seconds: float) -> dict[str, float]:
    """Return the columns of all seconds of a row, each by the wall clock."""
    return dict.fromkeys(("wall_seconds", "cpu_seconds", "elapsed_seconds"), seconds)


def _error(path: str | Path, line: int, what: str) -> InputError:
    return InputError(f"results file {path}, line {line}: {what}")


def _cells(content: bytes, path: Path) -> pd.DataFrame:
    """Return the cells of a file as text, its first line as names."""
    if not content:
        return pd.DataFrame()
    how = {"header": None, "dtype": str, "keep_default_na": False, "skip_blank_lines": False}
    try:  # by the engine that doesn't fill up a line that is too short
        table = pd.read_csv(BytesIO(content), engine="python", **how)
    except ValueError as error:
        raise InputError(f"results file {path}: {error}") from None
    for row in table.index[table.isna().any(axis=1)]:
        raise _error(path, row + 1, f"fewer values than {table.shape[1]} columns")
    return table[1:].set_axis(table.iloc[0].tolist(), axis=1).reset_index(drop=True)


def _text(frame: pd.DataFrame, *, header: bool = True) -> bytes:
    return frame.to_csv(index=False, header=header, lineterminator="\n").encode()


def _schema(names: Collection[str]) -> dict[str, Column]:
    """Return the columns of rows that have ``names``, in the order of a file."""
    free = [(n, column) for prefix, column in _FREE.items() for n in names if n.startswith(prefix)]
    fixed = list(COLUMNS.items())
    place = list(COLUMNS).index("config_id") + 1
    return dict([*fixed[:place], *free, *fixed[place:]])


def _telling(frame: pd.DataFrame, also: Collection[str] = ()) -> list[str]:
    """Return the columns in which some row has no default, and those of ``also``."""
    return [
        name
        for name, column in _schema(frame).items()
        if name in also or any(v == v and v != column.missing for v in frame[name].tolist())
    ]


def _typed(name: str, values: list[Any], column: Column, path: str | Path) -> pd.Series:
    typed: list[Any] = []
    for line, value in enumerate(values, 2):
        if value is None or value == "" or value != value:  # a frame says "none" by NaN
            value = column.missing
        if value is None:
            raise _error(path, line, f"{name} is empty")
        text = str(value)
        if "\n" in text or "\r" in text:
            raise _error(path, line, f"{name} {text!r} holds a line break")
        try:
            typed.append(int(text.removesuffix(".0")) if column.kind is int else column.kind(value))
        except (TypeError, ValueError, OverflowError):
            if name.startswith(PARAMETER):
                return _typed(name, values, Column(str, column.doc, ""), path)
            what = "a whole number" if column.kind is int else "a number"
            raise _error(path, line, f"{name} {text!r} is not {what}") from None
    return pd.Series(typed, dtype=column.kind)


def provenance() -> dict[str, str]:
    """Return the columns torch, optuna, version, commit and recorded (now)."""
    packages = {"torch": "torch", "optuna": "optuna", "version": "proxyhpo"}
    versions = {column: installed(package) for column, package in packages.items()}
    recorded = datetime.now(UTC).isoformat(timespec="seconds")
    return {**versions, "commit": commit(), "recorded": recorded}


FOLDER = Path(__file__).resolve().parent


@cache
def commit(folder: Path = FOLDER) -> str:
    """Return the git commit of the checkout that ``folder`` belongs to; "" outside git.

    ``-dirty`` is added where a file of ``folder`` differs from the commit: results and figures,
    which lie outside it, change while a run goes on. Looked up once a process.
    """

    def git(*arguments: str) -> str:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, env=clean, capture_output=True, check=True, timeout=30)
        return done.stdout.decode().strip()

    try:
        # an installed copy may lie inside somebody else's checkout: only a tracked one counts
        git("ls-files", "--error-unmatch", ".")
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
