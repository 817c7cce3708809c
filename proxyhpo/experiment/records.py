"""Rows of an experiment under way, in a folder that one process at a time holds.

Each row is on the disk as soon as it is made. What an interruption cost is a row too: a training
keeps its row beside the others while it lasts, in a file whose time of change says how long.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from proxyhpo.config import BusyError, InputError, differences, make_folder, write_whole
from proxyhpo.experiment.trial import Row
from proxyhpo.hpo.study import plain
from proxyhpo.rows import append_rows, as_frame, provenance, read_rows, spent, write_rows

BEAT = 0.2
"""Seconds between two notes of how long a training has taken: what a kill leaves uncounted."""


class Records:
    """Rows that grow in a folder of their own until they are finished, and then lie in ``path``.

    Attributes:
        path: the finished file.
        folder: what is under way; the studies lie there too.
        lock: keeps other processes away while it is held.
    """

    def __init__(self, results: Path, work: Path, name: str, **fixed: object) -> None:
        """Name the files; ``fixed`` are columns with one value in every row."""
        self.path, self.folder = results / f"{name}.csv", work / name
        self.lock = FileLock(self.folder / "lock")
        self._pending, self._trained = self.folder / "rows.csv", self.folder / "training.json"
        self._fixed = fixed

    @property
    def finished(self) -> bool:
        """Whether :meth:`finish` was called."""
        return self.path.exists()

    def read(self) -> pd.DataFrame:
        """Return the rows so far; raise :class:`InputError` where they can't be read."""
        if self.finished:
            return read_rows(self.path, finished=True)
        return read_rows(self._pending) if self._pending.exists() else as_frame([])

    def add(self, *rows: Row) -> None:
        """Add rows; those of a finished file stay as they are."""
        if not self.finished:
            append_rows(self._pending, [row | self._fixed for row in rows])

    def finish(self) -> None:
        """Write all rows to :attr:`path`."""
        if not self.finished:
            write_rows(self.path, self.read())

    def hold(self) -> None:
        """Hold the folder until the lock is released; raise :class:`InputError` if it is held."""
        make_folder(self.folder)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            what = "is in use: another process runs this experiment"
            raise BusyError(f"{self.folder} {what}") from None

    def check_settings(self, settings: Mapping[str, object]) -> None:
        """Hold what is resumed, or is recorded, to the settings that it was started with."""
        make_folder(self.path.parent)
        make_folder(self.folder)
        path = self.folder / "settings.json"
        file = f" and {self.path}" if self.finished else ""
        advice = f"remove that folder{file}, or use another one for results"
        wanted = json.loads(json.dumps(settings))
        started = _load(path) if path.exists() else wanted
        if started is None:
            raise InputError(f"{path} is damaged: {advice}")
        if both := differences(started, wanted):
            raise InputError(f"{self.folder} was started with other settings: {both}; {advice}")
        write_whole(path, json.dumps(wanted, indent=1).encode())

    @contextmanager
    def under_way(self, row: Row) -> Iterator[None]:
        """Keep ``row`` while the block trains; an interruption leaves it to :meth:`count_lost`."""
        began, start = time.time(), time.monotonic()
        path, over = self._trained, threading.Event()
        left = {"began": began, "row": plain(row), "lines": self._lines()}
        write_whole(path, json.dumps(left).encode())

        def note() -> None:  # of seconds that no setting of the clock changes
            os.utime(path, (began + time.monotonic() - start,) * 2)

        def beat() -> None:
            while not over.wait(BEAT):
                note()

        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join()
            note()
        path.unlink()

    def count_lost(self) -> None:
        """Record what the last interruption cost: nothing where the training's row is there."""
        if self._trained.exists():
            left, lines = _load(self._trained), self._lines()
            if left is not None and lines <= left.get("lines", lines):
                seconds = max(0.0, self._trained.stat().st_mtime - left["began"])
                now = {"recorded": provenance()["recorded"]}
                append_rows(self._pending, [left["row"] | spent(seconds) | now])
            self._trained.unlink()

    def _lines(self) -> int:
        """Return how many whole lines the rows under way have."""
        return self._pending.read_bytes().count(b"\n") if self._pending.exists() else 0


def _load(path: Path) -> dict[str, Any] | None:
    """Return what a JSON file holds, None if it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None
