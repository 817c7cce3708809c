"""Workers that are killed while they share a study on PostgreSQL: ``python benchmarks/storm.py``.

Eight workers share 200 trials that take half a second to two; every three seconds one of them is
killed and another started. Prints whether the budget was kept, whether a trial was finished twice,
and the seconds recorded as lost beside those that were (one to four minutes). Needs PostgreSQL,
psycopg 3, and what the tests need.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import postgresql_server  # noqa: E402
from made_trials import attempt, settings  # noqa: E402

from proxyhpo.hpo.study import Claim, Study, work  # noqa: E402

WORKERS, TRIALS, SECONDS_BETWEEN_KILLS = 8, 200, 3.0
SETTINGS = settings(trials=TRIALS, epochs=3)


def train(url: str, report: Connection) -> None:
    """Work on the study until it is done; report when trials are claimed and when they end."""

    def slowly(claim: Claim) -> tuple:
        report.send(("claimed", claim.number, claim.began))
        time.sleep(random.uniform(0.5, 2))
        return attempt(claim, 3)

    work(Study(SETTINGS, url, "storm"), slowly, lambda trial: report.send(("ended", trial.number)))


class Worker:
    """A process that trains trials, and what it reported."""

    def __init__(self, url: str) -> None:
        processes = multiprocessing.get_context("forkserver")  # ready to train at once
        self._reports, theirs = processes.Pipe(duplex=False)
        self.process = processes.Process(target=train, args=(url, theirs))
        self.process.start()
        theirs.close()

    def reports(self) -> list[tuple]:
        """Return its reports, once it has ended."""
        self.process.join()
        found = []
        while True:
            try:
                found.append(self._reports.recv())
            except (EOFError, OSError):
                return found


def main() -> None:
    """Run the storm and print what came of it."""
    multiprocessing.set_forkserver_preload(["conftest", "made_trials"])
    with postgresql_server() as url:
        study = Study.open(SETTINGS, url, "storm")
        began, ended, kills, truth = time.monotonic(), Counter[int](), 0, []
        workers = [Worker(url) for _ in range(WORKERS)]
        while not study.done:
            time.sleep(SECONDS_BETWEEN_KILLS)
            victim = workers.pop(random.randrange(WORKERS))
            victim.process.kill()
            killed, kills = time.monotonic(), kills + 1
            reports = victim.reports()
            ended.update(report[1] for report in reports if report[0] == "ended")
            if reports and reports[-1][0] == "claimed":
                truth.append(killed - reports[-1][2])
            workers.append(Worker(url))
        seconds = time.monotonic() - began
        for worker in workers:
            ended.update(report[1] for report in worker.reports() if report[0] == "ended")
        lost = [s for trial in study.trials for s in trial.user_attrs.get("lost", [])]
        twice = sum(count > 1 for count in ended.values())
        print(
            f"trials: {len(study.finished)} finished of {TRIALS}; in all {len(study.optuna.trials)}"
        )
        print(f"finished twice: {twice}")
        print(
            f"kills: {kills} in {seconds:.0f} s, {len(truth)} during a trial, {len(lost)} recorded"
        )
        print(f"seconds lost: {sum(lost):.1f} recorded, {sum(truth):.1f} true")


if __name__ == "__main__":
    main()
