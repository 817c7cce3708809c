"""Recording a learning-curve table: a grid of configurations, each trained once, with its curve.

A table belongs to one (data set, network). It crosses learning rates and weight decays with
entrants (N_B and its stand-ins) and weight seeds; every cell is one training from fresh weights,
and one row. What is in it is decided here before its first row is recorded, and kept beside the
rows: regime, levels, seeds, the plans of pruned entrants, and a manifest of the pictures.

Trainings run on a cluster of dask's, by default one-thread processes of this machine. Rows are
appended as they come; a call goes on where the last one stopped.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import pandas as pd
from filelock import FileLock

from proxyhpo.config import Experiment, InputError, Profile, choose
from proxyhpo.rows import PARAMETER, config_id, write_whole

LR = tuple(0.002 * 2 ** (0.75 * k) for k in range(12))
"""The learning rates of every table, .002 to .61, 0.75 octaves apart."""
WEIGHT_DECAY = (5e-4, 3e-3, 2e-2)

ENTRANTS = (
    "base",
    "uniform@0.25",
    "snip@0.25",
    "epochs@0.3",
    "uniform@0.25+epochs@0.3",
    "subset@0.25",
)
SEARCH_SEEDS = (0, 1)
VERIFY_SEED = 2
FIRST_TRUTH_SEED = 3
MOST_TRUTH_SEEDS = 24
BEST = 8
"""Configurations whose truth is trained until their means' standard error is small."""
STANDARD_ERROR = 0.003
OTHER_PLANS = (1, 2)

WORKER = {"OMP_NUM_THREADS": 1}
"""Environment of a worker. Dask's own sets MALLOC_TRIM_THRESHOLD_ too, whereupon glibc gives every
large tensor's memory back when it is freed: a training step then spends 37 % of its time in page
faults, and takes 91 ms instead of 50 (ResNet-20)."""


@dataclass(frozen=True)
class Regime:
    """What a training of a table is.

    Attributes:
        dataset, network: names of their registries.
        samples: training pictures.
        epochs: of N_B.
        classes: the first so many of the data set.
        train, val, test: pictures of each class in the manifest; all there are to test on where
            ``None``.
        side: of the pictures, pixels.
        batch_size: pictures a step.
        lr, weight_decay: levels of the grid.
        entrants: what is trained; N_B, "base", first.
        extras: entrants that are recorded last.
    """

    dataset: str
    network: str
    samples: int
    epochs: int
    classes: int = 10
    train: int = 800
    val: int = 500
    test: int | None = None
    side: int = 16
    batch_size: int = 64
    lr: tuple[float, ...] = LR
    weight_decay: tuple[float, ...] = WEIGHT_DECAY[:1]
    entrants: tuple[str, ...] = ENTRANTS
    extras: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the table's files."""
        return f"{self.dataset}-{self.network}"

    @property
    def configurations(self) -> list[tuple[int, int]]:
        """Levels of learning rate and weight decay, every pair."""
        return [(i, j) for j in range(len(self.weight_decay)) for i in range(len(self.lr))]

    def configuration(self, levels: tuple[int, int]) -> dict[str, float]:
        """Return the hyperparameters at these levels."""
        return {"lr": self.lr[levels[0]], "weight_decay": self.weight_decay[levels[1]]}


_FIVE = tuple(name for name in ENTRANTS if not name.startswith("subset"))
_NETWORKS = {
    "resnet20": Regime("cifar10", "resnet20", samples=8000, epochs=10),
    "resnet56": Regime("cifar10", "resnet56", samples=8000, epochs=6, entrants=_FIVE),
    "mobilenetv2": Regime("cifar10", "mobilenetv2", samples=4000, epochs=8, entrants=_FIVE),
    "vgg16_bn": Regime("cifar10", "vgg16_bn", samples=8000, epochs=4, entrants=_FIVE),
}
_EXTRAS = ("uniform@0.5", "uniform@0.1", "resolution@0.3", "synflow@0.25", "random@0.25")
_DIGITS = Regime("digits", "resnet8", 400, 3, train=60, val=60, test=50, side=8, batch_size=32)
TABLES: dict[str, Regime] = {
    _DIGITS.name: replace(_DIGITS, lr=LR[1::4], entrants=("base", "uniform@0.25")),
} | {
    regime.name: regime
    for regime in (
        replace(_NETWORKS["resnet20"], weight_decay=WEIGHT_DECAY, extras=_EXTRAS),
        *(_NETWORKS[name] for name in ("resnet56", "mobilenetv2", "vgg16_bn")),
        *(
            replace(regime, dataset=dataset, classes=20, train=250, val=245, samples=5000)
            for regime in _NETWORKS.values()
            for dataset in ("cifar100", "tinyimagenet")
        ),
    )
}


@dataclass(frozen=True)
class Job:
    """One training of a table: an entrant, levels, a weight seed, what it is for, its plan."""

    entrant: str
    levels: tuple[int, int]
    seed: int
    purpose: str = "curve"
    plan: int = 0

    @property
    def key(self) -> tuple[str, int, int, int, int]:
        """What tells it from all other trainings of its table."""
        return self.entrant, *self.levels, self.seed, self.plan


STAGES = ("gate", "seed 0", "seed 1", "verification", "truth", "plans", "extras")


def stages(regime: Regime, rows: pd.DataFrame) -> Iterator[tuple[str, list[Job]]]:
    """Yield the table's trainings, stage by stage; what a stage holds may follow from ``rows``.

    The gate first; then seed 0 of everything, configuration by configuration, then seed 1, so that
    a partial table is a whole smaller one; then verification and truth of N_B.
    """
    everything = regime.configurations
    gate = [
        Job("base", (i, 0), seed, "verify" if seed == VERIFY_SEED else "curve")
        for seed in (*SEARCH_SEEDS, VERIFY_SEED)
        for i in range(len(regime.lr))
    ]
    yield "gate", gate
    for seed in SEARCH_SEEDS:
        jobs = [Job(entrant, levels, seed) for levels in everything for entrant in regime.entrants]
        yield f"seed {seed}", jobs
    yield "verification", [Job("base", levels, VERIFY_SEED, "verify") for levels in everything]
    yield "truth", [Job("base", levels, FIRST_TRUTH_SEED, "truth") for levels in everything]
    for jobs in _truth(regime, rows):
        yield "truth", jobs
    snip = [name for name in regime.entrants if name.startswith("snip")]
    spread = everything[:: max(1, len(everything) // 6)][:6]
    cells = [(levels, name, plan) for levels in spread for name in snip for plan in OTHER_PLANS]
    yield "plans", [Job(name, levels, 0, "curve", plan) for levels, name, plan in cells]
    for seed in SEARCH_SEEDS:
        yield "extras", [Job(name, levels, seed) for levels in everything for name in regime.extras]


def _truth(regime: Regime, rows: pd.DataFrame) -> Iterator[list[Job]]:
    """Yield truth trainings of the best configurations, four seeds at a time.

    The best by N_B's mean validation accuracy over the seeds of search and verification; until the
    standard error of each one's mean, by the deviation that all of them share, is small.
    """
    base = rows[(rows["proxy"] == "") & (rows["plan"] == 0)]
    chosen = base[base["purpose"] != "truth"].groupby(["level_lr", "level_weight_decay"])
    best = chosen["val_accuracy"].mean().nlargest(BEST).index.tolist()
    truth = base[base["purpose"] == "truth"].set_index(["level_lr", "level_weight_decay"])
    for last in range(FIRST_TRUTH_SEED + 4, FIRST_TRUTH_SEED + MOST_TRUTH_SEEDS + 1, 4):
        seeds = range(FIRST_TRUTH_SEED, last)
        yield [Job("base", levels, seed, "truth") for seed in seeds for levels in best]
        known = truth[truth["seed"].isin(seeds)].loc[best, "test_accuracy"].groupby(level=[0, 1])
        deviation = math.sqrt(known.var().mean())
        if deviation / math.sqrt(len(seeds)) <= STANDARD_ERROR:
            return


class Table:
    """The files of a table under record.

    Attributes:
        regime: what its trainings are.
        folder: where they lie.
    """

    def __init__(self, regime: Regime, folder: Path) -> None:
        self.regime, self.folder = regime, folder
        self.path = folder / f"{regime.name}.csv"
        self.about = folder / f"{regime.name}.json"
        self.pictures = folder / f"{regime.dataset}.pictures.json"

    def rows(self) -> pd.DataFrame:
        """Return the rows so far; a line that a kill left torn is cut off."""
        if not self.path.exists():
            return pd.DataFrame(columns=FIELDS)
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            write_whole(self.path, whole)
        text = dict.fromkeys(TEXTS, str)
        return pd.read_csv(
            self.path,
            dtype=text,
            keep_default_na=False,
            na_values={name: [""] for name in FIELDS if name not in text},
            float_precision="round_trip",
        )

    def append(self, row: dict[str, object]) -> None:
        """Add one row at the end; it is on the disk when this returns."""
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({k: "" if v != v else v for k, v in row.items()})
            file.flush()
            os.fsync(file.fileno())

    def open(self, data_dir: str | None) -> dict[str, Any]:
        """Return what is kept beside the rows, made where it isn't there yet."""
        from proxyhpo.data.manifest import make_manifest

        regime = self.regime
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.pictures.exists():
            pictures = make_manifest(
                regime.dataset,
                classes=regime.classes,
                train=regime.train,
                val=regime.val,
                test=regime.test,
                data_dir=data_dir,
            )
            write_whole(self.pictures, (json.dumps(pictures, indent=1) + "\n").encode())
        wanted = json.loads(json.dumps(asdict(regime)))
        if not self.about.exists():
            write_whole(self.about, json.dumps({"regime": wanted, "plans": {}}, indent=1).encode())
        about = json.loads(self.about.read_text(encoding="utf-8"))
        grown = {"entrants", "extras"}
        changed = [k for k, v in wanted.items() if k not in grown and about["regime"].get(k) != v]
        if changed:
            raise InputError(
                f"{self.about}: recorded with {changed[0]} {about['regime'].get(changed[0])!r}, "
                f"now {wanted[changed[0]]!r}"
            )
        about["pictures"] = json.loads(self.pictures.read_text(encoding="utf-8"))
        return about

    def keep_plan(self, key: str, plan: str) -> None:
        """Keep the plan of a pruned entrant."""
        about = json.loads(self.about.read_text(encoding="utf-8"))
        about["plans"][key] = json.loads(plan)
        about["regime"] = json.loads(json.dumps(asdict(self.regime)))
        write_whole(self.about, (json.dumps(about, indent=1) + "\n").encode())


TEXTS = (
    "profile", "dataset", "network", "role", "proxy", "purpose", "config_id", "state", "curve",
    "curve_loss", "curve_averaged", "curve_averaged_loss", "device", "precision", "torch",
    "version", "commit", "recorded",
)  # fmt: skip
FIELDS = (
    "profile", "dataset", "network", "role", "proxy", "pruning_ratio", "plan", "purpose", "seed",
    "config_id", "level_lr", "level_weight_decay", "param_lr", "param_weight_decay", "state",
    "epochs", "budget", "val_accuracy", "val_loss", "test_accuracy", "test_loss", "curve",
    "curve_loss", "curve_averaged", "curve_averaged_loss", "samples", "side", "batch_size", "macs",
    "parameters", "train_seconds", "eval_seconds", "wall_seconds", "cpu_seconds", "device",
    "threads", "load", "precision", "torch", "version", "commit", "recorded",
)  # fmt: skip


@cache
def _bench(regime: Regime, pictures: str, data_dir: str | None) -> Any:
    """Return the pictures of a table and its N_B, once a process."""
    from proxyhpo.data.manifest import load_pictures
    from proxyhpo.experiment.trial import Workbench
    from proxyhpo.models import build_network

    manifest = json.loads(pictures)
    dataset = load_pictures(manifest, samples=regime.samples, side=regime.side, data_dir=data_dir)
    profile = Profile("table", (), (), epochs=regime.epochs, batch_size=regime.batch_size, trials=3)
    experiment = Experiment(regime.dataset, regime.network, "random", profile)

    def base(seed: int) -> Any:
        return build_network(
            regime.network, classes=len(dataset.classes), channels=dataset.channels, seed=seed
        )

    return Workbench(experiment, dataset, base)


@cache
def _stand_in(
    regime: Regime, pictures: str, data_dir: str | None, entrant: str, seed: int, plan: str
) -> Any:
    from proxyhpo.hpo.stand_ins import make_stand_in

    bench = _bench(regime, pictures, data_dir)
    return make_stand_in(entrant, bench.base, bench.dataset, regime.epochs, 0.5, seed, plan=plan)


def make_plan(
    regime: Regime, pictures: str, entrant: str, seed: int, data_dir: str | None = None
) -> str:
    """Return the plan of a pruned entrant, "" of any other."""
    return _stand_in(regime, pictures, data_dir, entrant, seed, "").plan


def train_job(
    regime: Regime, pictures: str, job: Job, plan: str, data_dir: str | None = None
) -> dict[str, object]:
    """Train one cell of a table; return its row.

    Weights, batches and augmentation follow from what the cell is: no two cells share them.
    """
    from proxyhpo.experiment.trial import Clock
    from proxyhpo.rows import provenance
    from proxyhpo.training import evaluate, train

    bench = _bench(regime, pictures, data_dir)
    one = _stand_in(regime, pictures, data_dir, job.entrant, job.plan, plan)
    clock = Clock()
    seed = crc32(repr((regime.name, *job.key)).encode())
    configuration = regime.configuration(job.levels)
    training = bench.feed(one.dataset, "train", regime.batch_size)
    validation = bench.feed(one.dataset, "val")
    network = one.build(seed)
    outcome = train(
        network, training, validation, configuration,
        epochs=one.epochs, seed=seed, device=bench.device, average=max(1, one.epochs // 2),
    )  # fmt: skip
    test_accuracy = test_loss = math.nan
    if outcome.state == "complete":
        test = bench.feed(one.dataset, "test")
        test_accuracy, test_loss = evaluate(network, test, bench.device, outcome.precision)
    name = "" if job.entrant == "base" else job.entrant
    spent = clock.lap()

    def text(values: Iterable[float]) -> str:
        return " ".join(f"{value:.4f}" for value in values)

    known = provenance()
    return {
        "profile": "table",
        "dataset": regime.dataset,
        "network": regime.network,
        "role": "proxy" if name else "base",
        "proxy": name,
        "pruning_ratio": round(1 - one.proxy.macs / one.proxy.base_macs, 4) if one.proxy else 0.0,
        "plan": job.plan,
        "purpose": job.purpose,
        "seed": job.seed,
        "config_id": config_id(configuration),
        "level_lr": job.levels[0],
        "level_weight_decay": job.levels[1],
        **{f"{PARAMETER}{key}": value for key, value in configuration.items()},
        "state": outcome.state,
        "epochs": outcome.epochs,
        "budget": one.epochs,
        "val_accuracy": outcome.accuracy,
        "val_loss": outcome.loss,
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "curve": text(outcome.curve),
        "curve_loss": text(outcome.losses),
        "curve_averaged": text(outcome.averaged),
        "curve_averaged_loss": text(outcome.averaged_losses),
        "samples": outcome.samples,
        "side": one.dataset.side,
        "batch_size": regime.batch_size,
        "macs": one.macs,
        "parameters": one.parameters,
        "train_seconds": round(outcome.train_seconds, 3),
        "eval_seconds": round(outcome.eval_seconds, 3),
        "wall_seconds": round(spent["wall_seconds"], 3),
        "cpu_seconds": round(spent["cpu_seconds"], 3),
        "device": bench.device.label,
        "threads": bench.device.threads,
        "load": round(os.getloadavg()[0], 2),
        "precision": outcome.precision,
        **{key: known[key] for key in ("torch", "version", "commit", "recorded")},
    }


def waiting(regime: Regime, rows: pd.DataFrame, until: str = STAGES[-1]) -> tuple[str, list[Job]]:
    """Return the first stage that isn't whole, up to stage ``until``, and what it lacks."""
    names = ["proxy", "level_lr", "level_weight_decay", "seed", "plan"]
    done = {(row[0] or "base", *row[1:]) for row in rows[names].itertuples(index=False, name=None)}
    for stage, jobs in stages(regime, rows):
        if STAGES.index(stage) > STAGES.index(until):
            break
        if left := [job for job in jobs if job.key not in done]:
            return stage, left
    return "", []


def record(
    name: str,
    out: Path,
    *,
    data_dir: str | None = None,
    jobs: int = 2,
    scheduler: str | None = None,
    minutes: float = math.inf,
    until: str = STAGES[-1],
) -> int:
    """Record what is missing of table ``name``; return how many trainings were added.

    Args:
        name: a key of :data:`TABLES`.
        out: the table lies in ``results/curves`` there.
        data_dir: folder of the data sets.
        jobs: one-thread processes on this machine.
        scheduler: address of a dask scheduler, to use its workers instead.
        minutes: to stop after; what is under way then is lost.
        until: the last of :data:`STAGES` to record.
    """
    import time

    import dask
    from distributed import Client, LocalCluster, as_completed

    from proxyhpo.progress import Progress

    regime = choose("table", name, TABLES)
    table = Table(regime, out / "results" / "curves")
    about = table.open(data_dir)
    pictures = json.dumps(about["pictures"])
    plans = {key: json.dumps(plan) for key, plan in about["plans"].items()}
    folder = str(Path(data_dir).expanduser().resolve()) if data_dir else None
    began, added = time.monotonic(), 0
    stage, todo = waiting(regime, table.rows(), until)
    if not todo:
        return 0
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": WORKER}))
        stack.enter_context(FileLock(table.folder / f".{name}.lock", timeout=0))
        cluster = scheduler or stack.enter_context(
            LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
        )
        client = stack.enter_context(Client(cluster))
        shared = client.scatter(pictures, broadcast=True)
        while todo:
            with Progress(f"{name}, {stage}", len(todo)) as progress:
                for job in todo:
                    key = f"{job.entrant} plan {job.plan}"
                    if key not in plans:
                        plans[key] = make_plan(regime, pictures, job.entrant, job.plan, folder)
                        if plans[key]:
                            table.keep_plan(key, plans[key])
                futures = [
                    client.submit(
                        train_job,
                        regime,
                        shared,
                        job,
                        plans[f"{job.entrant} plan {job.plan}"],
                        folder,
                        pure=False,
                        priority=-place,
                    )
                    for place, job in enumerate(todo)
                ]
                for _, row in as_completed(futures, with_results=True):
                    table.append(row)
                    added += 1
                    levels = f"{row['level_lr']}/{row['level_weight_decay']}"
                    progress.advance(
                        f"{row['proxy'] or 'N_B'} {levels} seed {row['seed']}: {row['state']}, "
                        f"accuracy {row['val_accuracy']:.3f}"
                    )
                    if time.monotonic() - began > 60 * minutes:
                        return added
            stage, todo = waiting(regime, table.rows(), until)
    return added
