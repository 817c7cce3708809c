"""Faults thrown at a whole run, and what is left of its tables: ``python benchmarks/faults.py``.

    python benchmarks/faults.py --faults 100 --seed 0

A tiny experiment is run by one process after another. At random moments the process is killed, is
asked to end (SIGTERM), finds its disk full, finds a file cut at a random byte, or meets a second
process that runs the same. Where an answer names a file or a folder that has to go, it is removed,
as a reader would. Whenever the experiment is finished its tables have to equal those of a run that
nothing happened to, and it begins anew. Prints one line of JSON. A fault takes one to five seconds;
full disks need root, which mounts one of 16 MB in memory, and are left out without it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from proxyhpo import PROFILES, Experiment, InputError, Run
from proxyhpo.rows import COLUMNS

PROFILE = replace(
    PROFILES["smoke"], name="faults", subset=24, test_subset=10, trials=9, epochs=3, ranking=3
)
FAULTS = ("kill", "terminate", "full disk", "cut file", "second run")
ANSWERED, CRASHED, TERMINATED = 2, 3, 143
UNCOMPARED = [name for name in COLUMNS if name.endswith("seconds")]
UNCOMPARED += ["load", "recorded", "commit"]


class Storm:
    """An experiment that goes on from fault to fault."""

    def __init__(self, sampler: str, seed: int, disk: Path) -> None:
        self.experiment = Experiment("digits", "resnet8", sampler, PROFILE)
        self.dice = random.Random(seed)
        self.out = disk / "out"
        self.thrown, self.answers, self.crashes = Counter[str](), Counter[str](), list[str]()
        self.finished = 0

    def log(self, process: int) -> Path:
        """Return the file of what a process says."""
        return self.out.parent.with_name(f"{process}.txt")

    def start(self) -> int:
        """Start a process that runs the experiment; return its id once the run is open."""
        ready, told = os.pipe()
        child = os.fork()
        if child:
            os.close(told)
            os.read(ready, 1)
            os.close(ready)
            return child
        status = CRASHED
        try:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
            with self.log(os.getpid()).open("w") as log, contextlib.redirect_stdout(log):
                try:
                    with Run(self.experiment, out=self.out) as run:
                        os.write(told, b"!")
                        run.search("base"), run.search("proxy"), run.verify()
                        run.final(), run.ranking(), run.finish()
                    status = 0
                except KeyboardInterrupt:
                    status = TERMINATED
                except (InputError, OSError) as error:
                    status = ANSWERED
                    print(f"\nanswer: {error}")
                except BaseException:
                    traceback.print_exc(file=log)
        finally:
            os._exit(status)

    def end(self, child: int) -> int:
        """Wait for a process; note what it answered; return its status."""
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == CRASHED:
            self.crashes.append(self.log(child).read_text())
        if status == ANSWERED:
            answer = self.log(child).read_text().partition("\nanswer: ")[2].strip()
            where = re.sub(r"/\S*/", "", answer)
            self.answers[re.sub(r"\d+", "N", where)[:100]] += 1
            if "\n" in answer:
                self.crashes.append(answer)
            self.follow(answer)
        return status

    def follow(self, answer: str) -> None:
        """Remove what an answer says has to go."""
        if "No space left" in answer or "in use" in answer:
            return
        for name in re.findall(rf"{self.out}[^\s,:;]*", answer):
            path = Path(name)
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)

    def throw(self, fault: str, child: int) -> int | None:
        """Throw a fault at a process; return its status if it has ended."""
        self.thrown[fault] += 1
        if fault == "second run":
            second = self.start()
            if self.end(second) == 0 and not Run(self.experiment, out=self.out).finished:
                self.crashes.append("two processes ran the same experiment")
            return None
        if fault == "full disk":
            filler = self.out.with_name("filler")
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            status = self.end(child)
            if status != 0:
                self.end(self.start())  # while it is still full
            filler.unlink()
            return status
        os.kill(child, signal.SIGTERM if fault == "terminate" else signal.SIGKILL)
        status = self.end(child)
        if fault == "cut file":
            files = [p for p in sorted(self.out.rglob("*")) if p.is_file() and "lock" not in p.name]
            chosen = self.dice.choice(files)
            os.truncate(chosen, self.dice.randrange(chosen.stat().st_size + 1))
        return status

    def run(self, faults: int, kinds: tuple[str, ...], whole: pd.DataFrame, span: float) -> None:
        """Throw so many faults, each within ``span`` seconds of a start."""
        child, limit = self.start(), 40 * faults
        while True:
            limit -= 1
            assert limit, "it doesn't end"
            done = self.thrown.total() >= faults
            status = None
            if not done:
                time.sleep(self.dice.uniform(0, span))
                status = self.throw(self.dice.choice(kinds), child)
                if status is None:
                    continue
            else:
                status = self.end(child)
            if status == 0:
                pd.testing.assert_frame_equal(outcomes(self.experiment, self.out), whole)
                self.finished += 1
                if done:
                    return
                shutil.rmtree(self.out)
            child = self.start()


def outcomes(experiment: Experiment, out: Path) -> pd.DataFrame:
    """Return what a run recorded, without seconds, in one order."""
    rows = Run(experiment, out=out).rows
    rows = rows[~rows["purpose"].isin(["data", "proxy", "lost"])].drop(columns=UNCOMPARED)
    keys = ["purpose", "role", "proxy", "seed", "trial", "config_id", "choice"]
    return rows.sort_values(keys, ignore_index=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of 16 MB in memory at ``folder``; say whether that could be done."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "faults", str(folder)]
    mounted = os.getuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", default="tpe")
    options = parser.parse_args()
    torch.set_num_threads(1)  # without threads of its own, this process can be forked
    with tempfile.TemporaryDirectory() as scratch, small_disk(Path(scratch, "disk")) as mounted:
        storm = Storm(options.sampler, options.seed, Path(scratch, "disk"))
        began = time.monotonic()
        with contextlib.redirect_stdout(None):
            child = storm.start()
        assert storm.end(child) == 0, storm.log(child).read_text()
        alone = time.monotonic() - began
        whole = outcomes(storm.experiment, storm.out)
        shutil.rmtree(storm.out)
        kinds = FAULTS if mounted else tuple(one for one in FAULTS if one != "full disk")
        storm.run(options.faults, kinds, whole, alone / 6)
        lost = Run(storm.experiment, out=storm.out).select(purpose="lost")
        print(
            json.dumps(
                {
                    "faults": storm.thrown,
                    "answers": storm.answers,
                    "tracebacks": storm.crashes,
                    "runs finished with the undisturbed run's tables": storm.finished,
                    "rows compared": len(whole),
                    "seconds lost in the last run": round(lost["wall_seconds"].sum(), 1),
                    "seconds undisturbed, in all": [
                        round(alone, 1),
                        round(time.monotonic() - began, 1),
                    ],
                }
            )
        )


if __name__ == "__main__":
    main()
