"""Processes that train, here or on other machines: one engine, on dask.distributed.

Here they are one-thread workers that listen on the loopback alone and end with the process that
started them, however it ends. Elsewhere they belong to a running scheduler
(``docs/cluster.md``). A task whose worker dies runs again on another one; a task that has ended
several workers is given up, and the others go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Self

from optuna.trial import TrialState

from proxyhpo.config import Experiment, InputError, cores
from proxyhpo.experiment.trial import Clock, Workbench
from proxyhpo.hpo.search import StudySettings
from proxyhpo.hpo.storage import Where
from proxyhpo.hpo.study import Study, lost_seconds, this_host, work

POLL = 0.1  # seconds
PATIENCE = 30.0
"""Seconds to wait for a scheduler, at the start and where it is gone."""
DEATHS = 4
"""Workers that a task may end before it is given up; dask's own default."""
TRIAL_DEATHS = 2
"""Workers that a trial of a shared study may end likewise."""


@dataclass(frozen=True)
class Killed:
    """A task that was given up: the last worker that it ended, seconds since it was submitted."""

    host: str
    worker: str
    seconds: float


class Engine:
    """Workers that take tasks; a context manager."""

    def __init__(
        self,
        workers: int = 1,
        scheduler: str | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        deaths: int = DEATHS,
    ) -> None:
        """Say which workers to use.

        Args:
            workers: processes to start on this machine.
            scheduler: address of a dask scheduler whose workers to use instead.
            environment: variables of the processes here; one thread each by default.
            deaths: of workers here that a task may cause before it is given up.
        """
        self._count, self._scheduler, self._deaths = workers, scheduler, deaths
        self._environment = environment or {"OMP_NUM_THREADS": "1"}
        self._tasks: dict[Any, tuple[Callable, tuple, float]] = {}  # by dask's future
        self._lonely = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        from distributed import Client

        with ExitStack() as stack:
            address = self._scheduler or stack.enter_context(self._cluster())
            try:
                client = Client(address, timeout=PATIENCE, set_as_default=False)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"--scheduler {address}: no scheduler answers there ({reason}); "
                    "start one: dask scheduler"
                ) from None
            self._client = stack.enter_context(client)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def _cluster(self) -> Iterator[str]:
        """Start workers on this machine; yield the address of their scheduler."""
        import dask
        from distributed import LocalCluster

        settings = {
            # Dask would set MALLOC_TRIM_THRESHOLD_, whereupon glibc gives every large tensor's
            # memory back when it is freed: a training step then spends 37 % of its time in page
            # faults, and takes 91 ms instead of 50 (ResNet-20).
            "distributed.nanny.pre-spawn-environ": {},
            "distributed.worker.profile.enabled": False,
            "distributed.scheduler.allowed-failures": self._deaths - 1,
        }
        with dask.config.set(settings), _deaf_to_interrupts():
            cluster = LocalCluster(
                n_workers=self._count,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL + 1,
                memory_limit=0,
                env=self._environment,
            )
        try:
            yield cluster.scheduler_address
        finally:
            cluster.sync(_end_workers, cluster)
            cluster.close()

    @property
    def busy(self) -> bool:
        """Whether a task is under way, or has raised what :meth:`wait` is to raise yet."""
        return bool(self._tasks or self._error)

    @property
    def workers(self) -> int:
        """How many there are now; :class:`InputError` for one with threads that slow each other."""
        try:
            threads = self._client.nthreads() if self._client.status == "running" else {}
        except OSError:  # the scheduler is away
            return 0
        for address, number in threads.items():
            if number > 1:
                raise InputError(
                    f"worker {address} has {number} threads: start it with dask worker "
                    "--nthreads 1, and several of them with --nworkers"
                )
        if not threads and not self._lonely:
            print(f"waiting for workers of {self._scheduler or 'this machine'}", flush=True)
        self._lonely = not threads
        return len(threads)

    @property
    def free(self) -> int:
        """Workers without a task."""
        return max(0, self.workers - len(self._tasks))

    def submit(self, function: Callable, *arguments: object) -> None:
        """Hand over a task, ``function(*arguments)``."""
        future = self._client.submit(function, *arguments, pure=False)
        self._tasks[future] = function, arguments, time.monotonic()

    def wait(self) -> list[tuple[tuple, Any]]:
        """Wait for a moment; return arguments and result of each task that has ended.

        Raises:
            ConnectionError: the scheduler is gone, and not back after :data:`PATIENCE`.
            Exception: what a task raised, once the results that came with it are returned.
        """
        from distributed import KilledWorker

        time.sleep(POLL)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._client.status == "closed":
            raise ConnectionError(
                f"the scheduler {self._scheduler} is gone; the same command goes on where this "
                "one stopped"
            )
        ended: list[tuple[tuple, Any]] = []
        for future in [future for future in self._tasks if future.done()]:
            if future.cancelled() and self._client.status != "running":
                continue  # until the scheduler is back
            function, arguments, began = self._tasks.pop(future)
            if future.cancelled():  # a new scheduler knows nothing of it
                self.submit(function, *arguments)
            elif isinstance(error := future.exception(), KilledWorker):
                last, seconds = error.last_worker, time.monotonic() - began
                ended.append((arguments, Killed(last.host, last.server_id, seconds)))
            elif error is not None:
                self._error = self._error or error
            else:
                ended.append((arguments, future.result()))
        return ended


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Keep a terminal's Ctrl-C from threads and processes that are started within the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows has none
        yield
        return
    resource_tracker.ensure_running()  # its start unblocks the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _end_workers(cluster: Any) -> None:
    """End workers without waiting for what they train."""
    ending = (nanny.close(timeout=1) for nanny in cluster.workers.values())
    await asyncio.gather(*ending, return_exceptions=True)


def thread_environment(processes: int) -> dict[str, str]:
    """Return the variables that share the cores among ``processes`` that compute side by side.

    ``OMP_NUM_THREADS`` asks for another number of threads than an equal share. Threads that wait
    spin unless set to sleep ("passive"). Where there are more of them than cores, they take the
    time of those that compute: two trainings of two threads each on two cores took 2.0 to 2.8
    times as long as with sleeping ones. With a core for each, sleeping takes 1.6 to 1.9 times as
    long as spinning (ResNet-20, pictures of 16 pixels).
    """
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores() // processes))
    shared = {"OMP_NUM_THREADS": str(threads)}
    if processes * threads > cores():
        shared["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")
    return shared


def share(
    study: Study,
    experiment: Experiment,
    bench: Workbench,
    role: str,
    stand_in: str,
    *,
    workers: int,
    scheduler: str | None,
    data_dir: str | None,
    after: Callable[[], object],
) -> None:
    """Have workers train a study's trials, in a storage that they reach.

    A trial whose worker was killed runs again, and is recorded as failed where that has happened
    :data:`TRIAL_DEATHS` times. ``after`` is called again and again, to record what has ended.
    """
    opening = study.settings, study.where, study.name
    # workers elsewhere look where their own PROXYHPO_DATA says
    task = opening, experiment, role, stand_in, None if scheduler else data_dir, workers
    deaths: Counter[int] = Counter()
    threads = thread_environment(workers)
    with Engine(workers, scheduler, environment=threads, deaths=1) as engine:
        for _ in range(workers):
            engine.submit(work_on, *task)
        while not study.done:
            for _, result in engine.wait():
                if isinstance(result, Killed):
                    _take_over(result, study, bench, stand_in, deaths)
                    engine.submit(work_on, *task)
            after()


def work_on(
    opening: tuple[StudySettings, Where, str],
    experiment: Experiment,
    role: str,
    stand_in: str,
    data_dir: str | None,
    workers: int,
) -> None:
    """Work on a study until it is done, in a dask worker."""
    from distributed import get_worker

    study = Study(*opening)
    study.optuna.set_user_attr(get_worker().id, [this_host(), os.getpid()])
    bench = Workbench.of(experiment, lambda _: None, data_dir, workers=workers)
    made = bench.stand_in(stand_in, lambda _: None, study.plan)
    work(study, bench.attempts(Clock(), made, role))


def _take_over(
    killed: Killed, study: Study, bench: Workbench, stand_in: str, deaths: Counter[int]
) -> None:
    """Requeue the trial of a worker that was killed, or give it up."""
    process = study.optuna.user_attrs.get(killed.worker)  # pids are alike in containers
    for trial in study.trials:
        owner = trial.user_attrs.get("owner")
        if trial.state != TrialState.RUNNING or not owner:
            continue
        if [owner["host"], owner["pid"]] != process:
            continue
        deaths[trial.number] += 1
        if deaths[trial.number] < TRIAL_DEATHS:
            study.give_back(trial)
            continue
        made, seconds = bench.stand_in(stand_in, lambda _: None), sum(lost_seconds(trial))
        configuration = study.settings.configuration(trial.params)
        row = bench.untrained_row(made, configuration, seconds, purpose="study", trial=trial.number)
        study.fail(trial, [row])
