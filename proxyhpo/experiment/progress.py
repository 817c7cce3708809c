"""Progress of long work: a bar on a terminal, plain lines in a log or a notebook.

A widget bar is saved in a notebook as it stood when it was last drawn, mostly at 0 %; lines are
right wherever they are read.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_EPOCHS = 30.0


class Progress:
    """Counts what is done of ``total``, and shows the time left; a context manager.

    ``done`` is how much an earlier call did, which doesn't count towards the pace.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._began, self._first = time.perf_counter(), done
        self._printed = self._began - SECONDS_BETWEEN_LINES
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # the command line answers bad input before anything is installed

            self._bar = tqdm(total=total, initial=done, desc=label)
        if self._bar is None and done:
            print(f"{label}: {done} of {total} done earlier", flush=True)

    def advance(self, note: str = "", left: float | None = None) -> None:
        """Count one more as done, which went as ``note`` says.

        ``left`` are the seconds that the rest will take; by default they follow from the pace.
        """
        self.done += 1
        if self._bar is not None:
            if left is not None:
                form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
                self._bar.bar_format = form
                note = f"{duration(left)} left, {note}"
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()
            return
        now = time.perf_counter()
        if self.done < self.total and now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        spent = now - self._began
        left = self._left() if left is None else left
        times = f"{duration(left)} left" if self.done < self.total else f"took {duration(spent)}"
        print(f"{self.label}: {self.done}/{self.total}, {times}", note, sep="  ", flush=True)

    def _left(self, part: float = 0.0) -> float:
        """Return the seconds that the rest will take, where ``part`` more is done already."""
        done, spent = self.done + part, time.perf_counter() - self._began
        return spent / (done - self._first) * max(0.0, self.total - done)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class StudyProgress(Progress):
    """Progress of a study: trials done and stopped, the best so far, the running one's epochs."""

    def __init__(self, label: str, trials: int, workers: int = 1) -> None:
        super().__init__(label, trials)
        self._states: Counter[str] = Counter()
        self._best: float | None = None  # scores of one's own may be negative
        self._epochs, self._budget = 0, 0
        self._workers, self._told = workers, self._began
        self._inner = None
        if self._bar is not None and workers == 1:
            from tqdm import tqdm

            self._inner = tqdm(desc="  epochs", leave=False)

    def start_with(self, row: Mapping[str, Any]) -> None:
        """Count a trial of an earlier call."""
        self._count(row)
        self.done += 1
        self._first += 1
        if self._bar is not None:
            self._bar.update()

    def epoch(self, done: int, total: int) -> None:
        """Show how far the running trial is."""
        if self._inner is not None:
            self._inner.total, self._inner.n = total, done
            self._inner.refresh()
            return
        now = time.perf_counter()  # a clock of its own: the trial's line is to come all the same
        if self._bar is None and now - max(self._printed, self._told) > SECONDS_BETWEEN_EPOCHS:
            self._told = now
            trial = f"trial {self.done + 1} of {self.total}, epoch {done} of {total}"
            print(f"{self.label}: {trial}, {duration(self._left(done / total))} left", flush=True)

    def tell(self, row: Mapping[str, Any]) -> None:
        """Count a trial by its row."""
        self._count(row)
        none = self._best is None
        notes = ["none trained in full yet" if none else f"best {self._best:.3f}"]
        notes += [f"{n} {state}" for state, n in self._states.items() if state != "complete"]
        waiting = self.total - self.done - 1
        if running := min(self._workers, waiting):
            notes.append(f"{running} running")
        elif self._epochs < self._budget:
            notes.append(f"{1 - self._epochs / self._budget:.0%} of the epochs saved")
        others = min(self._workers - 1, waiting)  # half done, on average
        self.advance(", ".join(notes), self._left(1 + others / 2) if others else None)

    def _count(self, row: Mapping[str, Any]) -> None:
        self._states[str(row["state"])] += 1
        self._epochs += int(row.get("epochs", 0))  # a trial that ended its worker has none
        self._budget += int(row["budget"])
        if row["state"] == "complete":
            score = float(row["val_accuracy"])
            self._best = score if self._best is None else max(self._best, score)

    def __exit__(self, *_: object) -> None:
        if self._inner is not None:
            self._inner.close()
        super().__exit__()


def duration(seconds: float) -> str:
    """Return ``seconds`` as "8 s", "3 min 20 s" or "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
