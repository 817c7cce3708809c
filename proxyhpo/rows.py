"""Recorded rows: their schema, their files, and where a row comes from.

One CSV file an experiment, UTF-8, one line a row, comma-separated, a line feed after each.
A missing text or number is an empty cell. Floats are written with as many digits as it takes to
read the same float back. Files change only by rename, so a reader always meets whole rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import subprocess
import tomllib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from filelock import FileLock

from proxyhpo.config import InputError, slug

ROLES = ("base", "proxy")
PURPOSES = ("data", "proxy", "study", "lost", "verify", "final", "ranking")
STATES = ("complete", "stopped", "diverged", "failed")
CHOICES = ("base", "proxy", "verified")
PARAMETER = "param_"


@dataclass(frozen=True)
class Column:
    """One column: its type, its meaning, and what a row that doesn't give it gets.

    ``missing=None``: every row must give it.
    """

    kind: type[str] | type[int] | type[float]
    doc: str
    missing: str | int | float | None = None


COLUMNS: dict[str, Column] = {
    "profile": Column(str, "scale of the run: smoke, laptop, trust, gpu, paper"),
    "dataset": Column(str, "key of data.DATASETS, or imagefolder:PATH"),
    "network": Column(str, "base network, key of models.MODELS"),
    "role": Column(str, "what was trained: base or proxy"),
    "proxy": Column(str, "key of proxies.PROXIES; empty for the base network", ""),
    "pruning_ratio": Column(float, "1 - target share of the base's cost; 0 for the base", 0.0),
    "sampler": Column(str, "key of search.SAMPLERS; empty in a ranking study", ""),
    "purpose": Column(str, "what the seconds were spent on: " + ", ".join(PURPOSES)),
    "seed": Column(int, "seed of the experiment; of the weights in ranking rows"),
    "choice": Column(str, "whose configuration a final row trains, joined by +", ""),
    "config_id": Column(str, "hash of the hyperparameters, 8 hex digits", ""),
    "trial": Column(int, "number of the trial in its study; -1: none", -1),
    "state": Column(str, "how it ended: " + ", ".join(STATES)),
    "epochs": Column(int, "epochs done", 0),
    "budget": Column(int, "epochs of a full trial", 0),
    "val_accuracy": Column(float, "fraction right of the validation split, last epoch", math.nan),
    "val_loss": Column(float, "mean cross-entropy on the validation split, nats", math.nan),
    "test_accuracy": Column(float, "fraction of the test split; final rows only", math.nan),
    "curve": Column(str, "validation accuracy after each epoch, 4 decimals, spaces between", ""),
    "wall_seconds": Column(float, "what the worker that did it spent on account of this row"),
    "cpu_seconds": Column(float, "CPU seconds of the process over the same span"),
    "elapsed_seconds": Column(
        float, "by which the wait grew: wall_seconds, less where several workers ran", math.nan
    ),
    "proxy_seconds": Column(float, "of wall_seconds: building the proxy", 0.0),
    "train_seconds": Column(float, "of wall_seconds: training steps", 0.0),
    "eval_seconds": Column(float, "of wall_seconds: evaluation", 0.0),
    "sampler_seconds": Column(float, "of wall_seconds: asking and telling the sampler", 0.0),
    "samples": Column(int, "pictures trained on, counted at each use", 0),
    "microbatches": Column(int, "parts that a batch was cut into for want of memory", 1),
    "macs": Column(int, "forward multiply-accumulates of the trained network, one picture", 0),
    "parameters": Column(int, "parameters of the trained network", 0),
    "load": Column(float, "1-minute load average of the machine at the end", math.nan),
    "device": Column(str, "what computed, in words"),
    "threads": Column(int, "CPU threads of the process"),
    "workers": Column(int, "processes that shared the study", 1),
    "precision": Column(
        str, "arithmetic of a training step, fp32 or bf16; empty: none was done", ""
    ),
    "torch": Column(str, "version", ""),
    "optuna": Column(str, "version", ""),
    "version": Column(str, "version of proxyhpo", ""),
    "commit": Column(str, "git commit of the checkout, -dirty if changed; empty outside git", ""),
    "recorded": Column(str, "when the row was made, at the end of its seconds; UTC, ISO 8601"),
}
_BEFORE = list(COLUMNS)[: list(COLUMNS).index("choice") + 1]
_AFTER = list(COLUMNS)[len(_BEFORE) :]
_LATER = ("elapsed_seconds", "microbatches", "workers")  # rows of version 0.1.0 don't have them
_WORDS = {"role": ROLES, "purpose": PURPOSES, "state": STATES}
_FRACTIONS = ("val_accuracy", "test_accuracy")

Rows: TypeAlias = pd.DataFrame | Iterable[Mapping[str, object]]


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read one file of rows: the columns of :data:`COLUMNS`, ``param_*`` after ``choice``.

    Hyperparameters come back as floats (NaN where a row has none), or as text where one of them
    isn't a number.

    Raises:
        InputError: the file isn't there, or isn't what :func:`write_rows` writes; the message
            names the file and the line, and the file is left as it is.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"results file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"results file {path}, line {line}: not UTF-8") from None
    return _parse(text, path)


def write_rows(path: str | Path, rows: Rows) -> None:
    """Write ``rows`` (a frame, or one mapping a row) as the whole file ``path``, by rename.

    Columns that a row doesn't give get :attr:`Column.missing`.

    Raises:
        InputError: a row has an unknown column, lacks one or has a value of the wrong kind; the
            file is left as it is.
    """
    path = Path(path)
    text = _format(rows, path)
    _parse(text, path)  # nothing is written that couldn't be read back
    write_whole(path, text.encode())


def append_rows(path: str | Path, rows: Rows) -> None:
    """Add ``rows`` at the end of ``path`` under a lock; the file is rewritten by rename.

    The lock is the hidden file ``.NAME.lock`` beside it; several processes may append at once.

    Raises:
        InputError: as :func:`read_rows` and :func:`write_rows`; the file is left as it is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        before = read_rows(path).to_dict("records") if path.exists() else []
        write_rows(path, before + _records(rows))


def as_frame(rows: Rows) -> pd.DataFrame:
    """Return ``rows`` as :func:`read_rows` would, had they been written.

    Raises:
        InputError: as :func:`write_rows`.
    """
    nowhere = Path("(in memory)")
    return _parse(_format(rows, nowhere), nowhere)


def load_results(folder: str | Path) -> pd.DataFrame:
    """Read every ``*.csv`` of a profile's folder into one frame, in the order of their names.

    The column ``file`` (no part of the schema) names the file of each row. A folder that is empty
    or not there gives an empty frame with the columns.

    Raises:
        InputError: as :func:`read_rows`.
    """
    parts = [read_rows(path).assign(file=path.name) for path in sorted(Path(folder).glob("*.csv"))]
    parts = [part for part in parts if len(part)]
    if not parts:
        return _parse(_format([], Path(folder)), Path(folder)).assign(file="")
    rows = pd.concat(parts, ignore_index=True)
    return rows[[*_BEFORE, *_parameters(rows), *_AFTER, "file"]]


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def config_id(params: Mapping[str, object]) -> str:
    """Return 8 hex digits that stand for a configuration, whatever the order of its keys.

    Numbers count by value: 128 and 128.0 are the same configuration.
    """
    plain = {k: float(v) if isinstance(v, Real) else str(v) for k, v in params.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def result_path(out: str | Path, profile: str, name: str) -> Path:
    """Return the file of the experiment (or ranking study) ``name`` in the results of ``out``."""
    return Path(out) / "results" / slug(profile) / f"{name}.csv"


def _parameters(columns: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(c for c in columns if c.startswith(PARAMETER)))


def _records(rows: Rows) -> list[dict[str, object]]:
    if isinstance(rows, pd.DataFrame):
        return rows.drop(columns="file", errors="ignore").to_dict("records")
    return [dict(row) for row in rows]


def _format(rows: Rows, path: Path) -> str:
    """Return the text of a file that holds ``rows``."""
    records = _records(rows)
    parameters = _parameters(key for record in records for key in record)
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow([*_BEFORE, *parameters, *_AFTER])
    for line, record in enumerate(records, 2):
        unknown = [k for k in record if k not in COLUMNS and k not in parameters]
        if unknown:
            raise _error(path, line, f"unknown column {unknown[0]!r}")
        cells = [_cell(record.get(name), name) for name in (*_BEFORE, *parameters, *_AFTER)]
        if any("\n" in cell or "\r" in cell for cell in cells):
            raise _error(path, line, "a value holds a line break")
        writer.writerow(cells)
    return output.getvalue()


def _cell(value: object, name: str) -> str:
    """Return the text of one value; a float's shortest text that reads back as the same float."""
    column = COLUMNS.get(name)
    if value is None or value != value:  # NaN is how a frame says that a row has no value
        value = column.missing if column else None
    if value is None or value != value:
        return ""
    if isinstance(value, Real):
        whole = column is not None and column.kind is int and float(value).is_integer()
        return str(round(value)) if whole else repr(float(value))
    return str(value)


def _parse(text: str, path: Path) -> pd.DataFrame:
    """Return the rows of a file's text, every cell checked."""
    if not text.endswith("\n"):
        raise _error(path, text.count("\n") + 1, "the line isn't whole")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines, cells = [], []
    try:
        header = next(reader)
        for row in reader:
            lines.append(reader.line_num)
            cells.append(row)
    except csv.Error as error:
        raise _error(path, reader.line_num, str(error)) from None
    header, cells = _with_later(header, cells)
    expected = [*_BEFORE, *_parameters(header), *_AFTER]
    if header != expected:
        lacking = [f"lacks {name!r}" for name in expected if name not in header]
        unknown = [f"has unknown {name!r}" for name in header if name not in expected]
        what = [*unknown, *lacking, "has its columns in another order"][0]
        raise _error(path, 1, f"the header {what}")
    sampler, purpose = header.index("sampler"), header.index("purpose")
    for line, row in zip(lines, cells, strict=True):
        if len(row) != len(header):
            raise _error(path, line, f"{len(row)} values for {len(header)} columns")
        # a ranking study has no sampler, and may record the stand-ins that were built for it
        if not row[sampler] and row[purpose] not in ("ranking", "proxy"):
            raise _error(path, line, f"a {row[purpose]} row needs a sampler")
    values = zip(*cells, strict=True) if cells else ([] for _ in header)
    return pd.DataFrame(
        {
            name: _column(name, list(column), lines, path)
            for name, column in zip(header, values, strict=True)
        }
    )


def _with_later(header: list[str], cells: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows with the columns that came after they were recorded."""
    if not set(_AFTER) - set(_LATER) <= set(header):
        return header, cells  # not a file of ours: the caller names what it lacks
    for name in (name for name in _LATER if name not in header):
        place = header.index(_AFTER[_AFTER.index(name) - 1]) + 1
        given = _cell(None, name)
        header = [*header[:place], name, *header[place:]]
        cells = [[*row[:place], given, *row[place:]] for row in cells]
    return header, cells


def _column(name: str, texts: list[str], lines: list[int], path: Path) -> pd.Series:
    """Return one column in its type."""
    column = COLUMNS.get(name)
    if column is None:
        try:
            return pd.Series([float(text or "nan") for text in texts], dtype=float)
        except ValueError:
            return pd.Series(texts, dtype=str)
    values = []
    for text, line in zip(texts, lines, strict=True):
        if not text and column.missing is None:
            raise _error(path, line, f"{name} is empty")
        if not text and column.kind is int:
            raise _error(path, line, f"{name} is empty")
        try:
            value: Any = column.kind(text or "nan") if column.kind is float else column.kind(text)
        except ValueError:
            kind = "a whole number" if column.kind is int else "a number"
            raise _error(path, line, f"{name} {text!r} is not {kind}") from None
        words = _WORDS.get(name, ())
        if words and value not in words:
            raise _error(path, line, f"{name} {text!r}: choose from {', '.join(words)}")
        if name == "choice" and text and not set(text.split("+")) <= set(CHOICES):
            raise _error(path, line, f"choice {text!r}: choose from {', '.join(CHOICES)}")
        if name in _FRACTIONS and (value < 0 or value > 1):
            raise _error(path, line, f"{name} {text!r} is not between 0 and 1")
        values.append(value)
    return pd.Series(values, dtype=column.kind)


def _error(path: Path, line: int, what: str) -> InputError:
    return InputError(f"results file {path}, line {line}: {what}")


HERE = Path(__file__).resolve().parent


def provenance() -> dict[str, str]:
    """Return the columns torch, optuna, version, commit and recorded (now).

    The device, its threads and its precision are the trainer's to say.
    """
    versions = {name: _version(name) for name in ("torch", "optuna")}
    recorded = datetime.now(UTC).isoformat(timespec="seconds")
    return {**versions, "version": _version("proxyhpo"), "commit": commit(), "recorded": recorded}


@cache
def commit(folder: Path = HERE) -> str:
    """Return the git commit of the checkout that ``folder`` belongs to; "" outside git.

    ``-dirty`` is added where a file of ``folder`` differs from the commit: results and figures,
    which lie outside it, change while a run goes on. Looked up once a process.
    """

    def git(*arguments: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        # an installed copy may lie inside somebody else's checkout: only a tracked one counts
        git("ls-files", "--error-unmatch", ".")
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        project = HERE.parent / "pyproject.toml"
        if package != "proxyhpo" or not project.is_file():
            return ""
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
