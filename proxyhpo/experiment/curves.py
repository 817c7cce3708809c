"""Recording a learning-curve table (:mod:`proxyhpo.hpo.tables`): what it lacks is trained.

Kept beside the rows, and made before the first of them: the regime, the plans of pruned entrants,
and a manifest that names the pictures, in which any copy of the data set finds them. Rows are
appended as they come, so that an interruption loses the trainings under way and no others.
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import fmean

import pandas as pd
import torch
from filelock import FileLock, Timeout

from proxyhpo.config import (
    BusyError,
    InputError,
    check_integer,
    choose,
    differences,
    make_folder,
    whole_path,
    write_whole,
)
from proxyhpo.data.manifest import load_pictures, make_manifest
from proxyhpo.experiment.engine import Engine, Killed
from proxyhpo.experiment.progress import Progress
from proxyhpo.experiment.trial import (
    Clock,
    Row,
    Task,
    TrainOptions,
    Workbench,
    builder,
    machine_load,
)
from proxyhpo.hpo.stand_ins import StandIn, make_stand_in
from proxyhpo.hpo.tables import STAGES, TABLES, Job, Regime, missing, table_rows
from proxyhpo.rows import append_rows, identity, provenance
from proxyhpo.training import evaluate, train

STEPS, EVALUATED = 12, 1000
"""Training steps and evaluated pictures of an entrant in a round."""
GENTLE = {"lr": 1e-3}
"""What timed steps train with: a rate that ends a deep network leaves it denormal gradients, which
take a CPU ten times as long."""
ROUNDS = 15
CONTROL = 0.05
"""How far the time of N_B's very step may come out from N_B's, as a share, on an idle machine."""
CONTROL_TURN = "N_B's second turn"


def record(
    name: str,
    folder: Path,
    *,
    data_dir: str | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    until: str = STAGES[-1],
    entrant: str | None = None,
) -> int:
    """Record what is missing of table ``name``; return how many trainings were added.

    A training that ends every worker that tries it is recorded as failed; without its row, it is
    tried again.

    Args:
        name: a key of :data:`~proxyhpo.hpo.tables.TABLES`.
        folder: where tables lie.
        data_dir: folder of the data sets; workers of a scheduler look where their own
            ``PROXYHPO_DATA`` says.
        jobs: one-thread processes on this machine.
        scheduler: address of a dask scheduler, to use its workers instead.
        until: the last of :data:`~proxyhpo.hpo.tables.STAGES` to record.
        entrant: the only one to record, before its turn.

    Raises:
        InputError: an unknown name, a table that another process records or that was begun with
            another regime, or a worker without the pictures.
        ConnectionError: the scheduler is gone.
    """
    choose("stage", until, dict.fromkeys(STAGES))
    regime = choose("table", name, TABLES)
    if entrant is not None:
        choose("entrant", entrant, dict.fromkeys((*regime.entrants, *regime.extras)))
    table = Table(regime, folder)
    own_data = str(whole_path("data_dir", data_dir)) if data_dir else None
    with table.held():
        pictures, plans = table.prepare(own_data)
        rows = table_rows(table.path)
        before = len(rows)
        stage, todo, total = missing(regime, rows, until, entrant)
        if not todo:
            return 0
        with Engine(jobs, scheduler) as engine:
            while todo:
                for job in todo:
                    if job.plan_name not in plans:
                        made = table_stand_in(regime, pictures, own_data, job.entrant, job.plan, "")
                        plans[job.plan_name] = made.plan
                        table.keep(plans)
                tasks = [
                    (regime, pictures, job, plans[job.plan_name], None if scheduler else own_data)
                    for job in todo
                ]
                left = _Left(todo, rows)
                with Progress(f"{name}, {stage}", total, total - len(todo)) as progress:
                    for job, row in _trained(engine, tasks):
                        append_rows(table.path, [row])
                        left.count(job, row)
                        levels = "/".join(map(str, job.levels))
                        accuracy = row.get("val_accuracy", math.nan)
                        note = f"{job.entrant} {levels} seed {job.seed}: {row['state']}"
                        note += f", accuracy {accuracy:.3f}"
                        progress.advance(note, left.seconds / max(1, engine.workers))
                rows = table_rows(table.path)
                stage, todo, total = missing(regime, rows, until, entrant)
        return len(rows) - before


class Table:
    """The files of a table; its rows are in :attr:`path`."""

    def __init__(self, regime: Regime, folder: Path) -> None:
        self._regime, self._folder = regime, folder
        self.path = folder / f"{regime.name}.csv"
        self._about = folder / f"{regime.name}.json"
        self._pictures = folder / f"{regime.dataset}.pictures.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other recorders away; :class:`InputError` where another one is at work."""
        make_folder(self._folder)
        try:
            with FileLock(self._folder / f".{self._regime.name}.lock", timeout=0):
                yield
        except Timeout:
            raise BusyError(f"{self.path}: another process is recording this table") from None

    def prepare(self, data_dir: str | None) -> tuple[str, dict[str, str]]:
        """Return what :meth:`begun` does; make what isn't there, unless another regime began it.

        Raises:
            InputError: the table was begun with another regime, or the data isn't there.
        """
        regime = self._regime
        if not self._pictures.exists():
            counts = {name: getattr(regime, name) for name in ("classes", "train", "val", "test")}
            manifest = make_manifest(regime.dataset, **counts, data_dir=data_dir)
            write_whole(self._pictures, (json.dumps(manifest, indent=1) + "\n").encode())
        if not self._about.exists():
            self.keep({})
        begun = json.loads(self._about.read_text(encoding="utf-8"))["regime"]
        begun = {"scale": ""} | begun  # tables older than scales
        fixed = {k: v for k, v in asdict(regime).items() if k not in ("entrants", "extras")}
        if both := differences(begun, json.loads(json.dumps(fixed))):
            raise InputError(f"{self._about} was begun otherwise: {both}")
        pictures, plans = self.begun()
        self.keep(plans)  # with the entrants of now
        return pictures, plans

    def begun(self) -> tuple[str, dict[str, str]]:
        """Return the pictures' manifest, JSON, and the plans so far, if there are any.

        Raises:
            InputError: nothing of the table is recorded.
        """
        if not (self._about.exists() and self._pictures.exists()):
            what = f"table {self._regime.name} isn't begun in {self._folder}"
            raise InputError(f"{what}: record its gate first")
        plans = json.loads(self._about.read_text(encoding="utf-8"))["plans"]
        manifest = self._pictures.read_text(encoding="utf-8")
        return manifest, {key: json.dumps(plan) for key, plan in plans.items()}

    def keep(self, plans: dict[str, str]) -> None:
        """Write the regime, and the plans of pruned entrants."""
        kept = {key: json.loads(plan) for key, plan in plans.items() if plan}
        about = {"regime": asdict(self._regime), "plans": kept}
        write_whole(self._about, (json.dumps(about, indent=1) + "\n").encode())


def _trained(engine: Engine, tasks: Iterable[tuple]) -> Iterator[tuple[Job, Row]]:
    """Train by these arguments of :func:`train_job`, in order; yield jobs and rows as they end."""
    todo = deque(tasks)
    while todo or engine.busy:
        for _ in range(min(engine.free, len(todo))):
            engine.submit(train_job, *todo.popleft())
        for (regime, _, job, *_), result in engine.wait():
            yield job, _failed(regime, job, result) if isinstance(result, Killed) else result


def train_job(regime: Regime, pictures: str, job: Job, plan: str, data_dir: str | None) -> Row:
    """Train one cell of a table; return its row.

    ``pictures`` is the table's manifest, JSON, and ``plan`` that of the entrant where it is pruned,
    else "". :class:`InputError` names the machine that has no such pictures.
    """
    try:
        bench = table_bench(regime, pictures, data_dir)
        one = table_stand_in(regime, pictures, data_dir, job.entrant, job.plan, plan)
    except InputError as error:
        raise InputError(f"worker on {socket.gethostname()}: {error}") from None
    _, row = bench.attempt(
        Clock(),
        one,
        regime.configuration(job.levels),
        TrainOptions(regime.weight_seed(job), average=max(1, one.epochs // 2), test=True),
        purpose=job.purpose,
    )
    row |= _cell(regime, job)
    if one.proxy:  # what cutting came to, where other rows say what was asked for
        row["pruning_ratio"] = round(1 - one.proxy.macs / one.proxy.base_macs, 4)
    return {
        name: round(value, 3) if name.endswith("_seconds") else value
        for name, value in row.items()
        if name not in ("elapsed_seconds", "optuna")
    }


def _cell(regime: Regime, job: Job) -> Row:
    """Return the columns that say which training of a table a row is of."""
    return {
        **regime.labels(job.entrant),
        "pruning_ratio": 0.0,
        "plan": job.plan,
        "sampler": "",
        "purpose": job.purpose,
        "seed": job.seed,
        "level_lr": job.levels[0],
        "level_weight_decay": job.levels[1],
        **identity(regime.configuration(job.levels)),
    }


def _failed(regime: Regime, job: Job, killed: Killed) -> Row:
    """Return the row of a training that ended its workers; their seconds, at most."""
    spent = dict.fromkeys(("wall_seconds", "cpu_seconds"), round(killed.seconds, 3))
    known = {"device": killed.host, "threads": 1, "state": "failed", **provenance(), **spent}
    del known["optuna"]
    return known | _cell(regime, job)


@cache
def table_bench(regime: Regime, pictures: str, data_dir: str | None) -> Workbench:
    """Return the workbench of a table, its pictures loaded, once a process."""
    size = {"samples": regime.samples, "side": regime.side}
    dataset = load_pictures(json.loads(pictures), **size, data_dir=data_dir)
    names, scale = ("table", regime.dataset, regime.network, ""), (regime.epochs, regime.batch_size)
    return Workbench(Task(*names, 0, *scale, 0.5), dataset, builder(regime.network, dataset))


@cache
def table_stand_in(
    regime: Regime, pictures: str, data_dir: str | None, entrant: str, seed: int, plan: str
) -> StandIn:
    """Return an entrant of a table, by its plan where that is pruned, once a process."""
    bench = table_bench(regime, pictures, data_dir)
    whole = bench.base, bench.dataset, regime.epochs
    return make_stand_in(entrant, *whole, bench.task.share, seed, plan=plan)


class _Left:
    """Seconds of work left of a stage, by what each entrant's trainings, tenfold apart, took.

    Those of earlier calls, maybe on another machine, count until one of this call has ended.
    """

    def __init__(self, todo: Iterable[Job], rows: pd.DataFrame) -> None:
        self._todo = Counter(job.entrant for job in todo)
        earlier = rows["wall_seconds"].groupby(rows["proxy"].replace("", "base")).mean()
        self._earlier: dict[str, float] = earlier.to_dict()
        self._taken: dict[str, list[float]] = {}

    def count(self, job: Job, row: Row) -> None:
        """Count a training as done."""
        self._todo[job.entrant] -= 1
        self._taken.setdefault(job.entrant, []).append(float(row["wall_seconds"]))

    @property
    def seconds(self) -> float:
        """On one worker; an entrant that wasn't met yet counts as a mean one."""
        means = self._earlier | {name: fmean(taken) for name, taken in self._taken.items()}
        return sum(n * means.get(name, fmean(means.values())) for name, n in self._todo.items())


def measure_steps(
    name: str, folder: Path, *, data_dir: str | None = None, rounds: int = ROUNDS
) -> pd.DataFrame:
    """Time the entrants of a table; write ``<name>-steps.csv`` beside its rows, and return it.

    The table needn't be recorded. One line an entrant and round: ``step_seconds`` of a training
    step, ``picture_seconds`` of evaluating a picture, ``build_seconds`` of making the stand-in
    (pruning included, once). CPU seconds of one thread, which neighbours on the machine hardly
    change, or seconds with a GPU; entrants take turns, so that whatever slows the machine slows
    all of them. N_B takes two turns a round, the second as the control of :func:`check_control`.

    Where some entrants are timed already, the others alone are, in further rounds that N_B takes
    part in: a rival that joins leaves what was timed as it was. Where all are, all are timed anew.

    Raises:
        InputError: an unknown table, one begun with another regime, missing pictures, or fewer than
            two rounds, the first of which warms up.
        BusyError: the machine wasn't idle (:func:`check_control`); nothing is written.
    """
    regime = choose("table", name, TABLES)
    check_integer("rounds", rounds, 2)
    manifest, plans = Table(regime, folder).prepare(data_dir)
    bench = table_bench(regime, manifest, data_dir)
    torch.set_num_threads(1)
    clock = time.process_time if bench.device.name == "cpu" else time.perf_counter
    path = folder / f"{name}-steps.csv"
    earlier = pd.read_csv(path) if path.exists() else pd.DataFrame({"entrant": [], "repeat": []})
    everything = (*regime.entrants, *regime.extras)
    left = [one for one in everything if one not in set(earlier["entrant"])]
    if not left:
        earlier, left = earlier[:0], list(everything)
    timed = []
    for entrant in dict.fromkeys(("base", CONTROL_TURN, *left)):
        named = "base" if entrant == CONTROL_TURN else entrant
        plan = plans.get(f"{named} plan 0", "")
        made = table_stand_in(regime, manifest, data_dir, named, 0, plan)
        began = clock()
        bench.stand_in(named, lambda _: None)  # anew, pruning and scoring included
        build = 0.0 if named == "base" else clock() - began
        timed.append((entrant, _turns(bench, made, clock), build))
    found = provenance()
    known = {"device": bench.device.label, "recorded": found["recorded"], "torch": found["torch"]}
    lines, first = [], 1 + int(earlier["repeat"].max()) if len(earlier) else 0
    for repeat in range(rounds):
        for entrant, turns, build in timed:
            step, picture = next(turns)
            if repeat:  # the first round warms up
                spent = {"step_seconds": round(step, 6), "picture_seconds": round(picture, 8)}
                spent |= {"build_seconds": round(build, 3), "load": machine_load()}
                place = {"entrant": entrant, "repeat": first + repeat - 1}
                lines.append(place | spent | known)
        print(f"{name}: round {repeat + 1} of {rounds}", flush=True)
    frame = pd.DataFrame(lines)
    check_control(name, frame, [CONTROL_TURN])
    frame = pd.concat([earlier, frame[frame["entrant"] != CONTROL_TURN]], ignore_index=True)
    write_whole(path, frame.to_csv(index=False).encode())
    return frame


def check_control(name: str, steps: pd.DataFrame, same: Iterable[str]) -> None:
    """Raise :class:`BusyError` where a step that is N_B's took more or less time than N_B's.

    By the medians over rounds of ``steps``. N_B's second turn takes N_B's very step, and so do
    fewer epochs and fewer pictures: ``same`` names those to check.
    """
    seconds = steps.pivot_table(index="repeat", columns="entrant", values="step_seconds")
    for entrant in same:
        ratio = (seconds[entrant] / seconds["base"]).median()
        if abs(ratio - 1) > CONTROL:
            raise BusyError(
                f"{name}: a step of {entrant}, which is N_B's, took {ratio:.2f} of its time; pause "
                "what else runs on this machine and time them again (nothing was written)"
            )


def _turns(
    bench: Workbench, made: StandIn, clock: Callable[[], float]
) -> Iterator[tuple[float, float]]:
    """Yield the seconds of a training step and of evaluating a picture, turn after turn."""
    batch_size = bench.task.batch_size
    steps = min(STEPS, len(made.dataset.train) // batch_size)
    train_on = made.dataset.train.take(torch.arange(steps * batch_size))
    few = made.dataset.with_train(train_on)
    training = bench.feed(few, "train", batch_size)
    evaluated = min(EVALUATED, len(made.dataset.val))
    one = bench.feed(made.dataset.with_train(train_on.take(torch.arange(1))), "train")
    judged = made.dataset.with_train(made.dataset.val.take(torch.arange(evaluated)))
    evaluation = bench.feed(judged, "train")
    # untimed first: oneDNN keeps 1,024 kernels, and many networks in turns push each other's out
    warm = bench.feed(few.with_train(train_on.take(torch.arange(batch_size))), "train", batch_size)
    network = made.build(0)
    while True:
        train(network, warm, one, GENTLE, epochs=1, seed=0, device=bench.device)
        began = clock()
        train(network, training, one, GENTLE, epochs=1, seed=0, device=bench.device)
        step = (clock() - began) / len(training)
        evaluate(network, evaluation, bench.device)
        began = clock()
        evaluate(network, evaluation, bench.device)
        yield step, (clock() - began) / evaluated
