"""Worker processes that share one study on this machine.

Each has its own share of the processor's threads, and ends as soon as the process that started it
does. A worker that is killed (out of memory, say) is replaced and its trial is run again; a trial
that ends two workers is recorded as failed.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from proxyhpo.config import Experiment
from proxyhpo.experiment.trial import Clock, Workbench
from proxyhpo.hpo.search import StudySettings
from proxyhpo.hpo.study import Study, work

POLL = 0.2  # seconds
DEATHS = 2  # workers that a trial may end before it is recorded as failed


def thread_environment(processes: int) -> dict[str, str]:
    """Return the variables that share the cores among ``processes`` that compute side by side.

    ``OMP_NUM_THREADS`` asks for another number of threads than an equal share. Threads that wait
    spin unless told to sleep ("passive"). Where there are more of them than cores, they take the
    time of those that compute: two trainings of two threads each on two cores took 2.0 to 2.8
    times as long as with sleeping ones. With a core for each, sleeping takes 1.6 to 1.9 times as
    long as spinning (ResNet-20, pictures of 16 pixels).
    """
    cores = os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // processes))
    shared = {"OMP_NUM_THREADS": str(threads)}
    if processes * threads > cores:
        shared["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")
    return shared


@dataclass(frozen=True)
class Task:
    """What a worker has to know.

    Attributes:
        experiment: what is run.
        role: "base" or "proxy".
        stand_in: what is trained, a name for :meth:`~proxyhpo.experiment.trial.Workbench.stand_in`.
        settings, where, name: of the study.
        data_dir: folder of the data sets.
        workers: how many share the study.
    """

    experiment: Experiment
    role: str
    stand_in: str
    settings: StudySettings
    where: str
    name: str
    data_dir: str | None
    workers: int = 1


def train_alone(
    task: Task,
    study: Study,
    bench: Workbench,
    after: Callable[[FrozenTrial], object],
    clock: Clock | None = None,
    epoch: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Train the study's trials in this process; the first one's lap of ``clock`` has begun."""
    stand_in = bench.stand_in(task.stand_in, lambda _: None, study.plan)
    work(study, bench.attempts(clock or Clock(), stand_in, task.role, epoch), after)


def train_together(
    task: Task,
    study: Study,
    bench: Workbench,
    after: Callable[[FrozenTrial], object],
    clock: Clock,
) -> None:
    """Train the study's trials in ``task.workers`` processes; return when all are told.

    Raises:
        RuntimeError: a worker failed; with its own words.
    """
    told = {trial.number for trial in study.finished}
    deaths: Counter[int] = Counter()
    workers = [_Worker(task) for _ in range(task.workers)]
    try:
        while not study.done:
            time.sleep(POLL)
            for trial in study.finished:
                if trial.number not in told:
                    told.add(trial.number)
                    after(trial)
            for place, worker in enumerate(workers):
                if worker.process.poll() and not study.done:
                    worker.check()
                    _take_over(worker, study, bench, task, deaths)
                    workers[place] = _Worker(task)
        for trial in study.finished:
            if trial.number not in told:
                after(trial)
    finally:
        for worker in workers:
            worker.end()


def _take_over(
    worker: _Worker, study: Study, bench: Workbench, task: Task, deaths: Counter[int]
) -> None:
    """See to the trial of a worker that was killed."""
    for trial in study.trials:
        owner = trial.user_attrs.get("owner")
        if trial.state != TrialState.RUNNING or not owner or owner["pid"] != worker.process.pid:
            continue
        deaths[trial.number] += 1
        if deaths[trial.number] < DEATHS:
            study.give_back(trial)
            continue
        stand_in = bench.stand_in(task.stand_in, lambda _: None, study.plan)
        seconds = (trial.user_attrs.get("alive") or {"after": 0.0})["after"]
        spent = [*trial.user_attrs.get("lost", []), seconds]
        row = bench.untrained_row(
            stand_in, dict(trial.params), sum(spent), purpose="study", trial=trial.number
        )
        study.fail(trial, [row])


class _Worker:
    """A process that runs this module; it ends when the pipe to it closes."""

    def __init__(self, task: Task) -> None:
        package = Path(__file__).resolve().parents[2]
        paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, lives as long as the worker
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "proxyhpo.experiment.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env=os.environ
            | thread_environment(task.workers)
            | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is the parent's to hear
        )
        assert self.process.stdin is not None  # a pipe, as asked for
        self.process.stdin.write(pickle.dumps(task))
        self.process.stdin.flush()

    def check(self) -> None:
        """Raise what ended the worker, unless it was killed."""
        if self.process.returncode > 0:
            self._errors.seek(0)
            words = self._errors.read().strip().splitlines() or ["no reason given"]
            raise RuntimeError(f"a worker failed: {words[-1]}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._errors.close()


def main() -> None:
    """Work on the task that comes through standard input, until its study is done."""
    task: Task = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    study = Study(task.settings, task.where, task.name)
    bench = Workbench.of(task.experiment, lambda _: None, task.data_dir, workers=task.workers)
    train_alone(task, study, bench, lambda _: None)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # returns when the parent's end of the pipe closes
    os._exit(1)


if __name__ == "__main__":
    main()
