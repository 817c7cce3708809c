"""Learning-curve tables: what is in one, and its rows as far as they are recorded.

A table belongs to one (data set, network, scale). It crosses learning rates and weight decays with
entrants (N_B and its stand-ins) and weight seeds; every cell is one training from fresh weights,
and one row with its whole curve. What a table holds is decided here, before its first row is
recorded by :mod:`proxyhpo.experiment.curves`. Weight seeds have one role each: search,
verification, or truth, with which nothing is ever chosen.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    import pandas as pd

LR = tuple(0.002 * 2 ** (0.75 * k) for k in range(12))
"""The learning rates of every table, .002 to .61, 0.75 octaves apart."""
WEIGHT_DECAY = (5e-4, 3e-3, 2e-2)

SEARCH_SEEDS = (0, 1)
VERIFY_SEED = 2
FIRST_TRUTH_SEED = 3
MOST_TRUTH_SEEDS = 24
BEST = 8
"""Configurations whose truth is trained until their means' standard error is small."""
STANDARD_ERROR = 0.003
OTHER_PLANS = (1, 2)
"""Seeds of pruning, beside 0, that show how far a result depends on one pruned network."""

CELL = ["proxy", "level_lr", "level_weight_decay", "seed", "plan"]
"""The columns that tell a training from all others of its table."""

ENTRANTS = (
    "base",
    "uniform@0.25",
    "snip@0.25",
    "epochs@0.3",
    "uniform@0.25+epochs@0.3",
    "subset@0.25",
)

SCALES = ("", "gpu")
"""That of a CPU, which has no name, and longer trainings of larger pictures."""


def table_name(dataset: str, network: str, scale: str = "") -> str:
    """Return the name of a table, a key of :data:`TABLES`; one of :data:`SCALES` ends it."""
    return "-".join(filter(None, (dataset, network, scale)))


@dataclass(frozen=True)
class Job:
    """One training of a table.

    Attributes:
        entrant: what is trained, "base" or the name of a stand-in.
        levels: of learning rate and weight decay.
        seed: of the weights.
        purpose: of its row: "curve", "verify" or "truth".
        plan: seed of pruning.
    """

    entrant: str
    levels: tuple[int, int]
    seed: int
    purpose: str = "curve"
    plan: int = 0

    @property
    def key(self) -> tuple[str, int, int, int, int]:
        """What tells it from all other trainings of its table."""
        return self.entrant, *self.levels, self.seed, self.plan

    @property
    def plan_name(self) -> str:
        """The name of its entrant's plan in the table's files."""
        return f"{self.entrant} plan {self.plan}"


@dataclass(frozen=True)
class Regime:
    """What the trainings of a table have in common.

    Attributes:
        dataset, network: names of their registries.
        samples: training pictures.
        epochs: of N_B.
        classes: the first so many of the data set.
        train, val, test: pictures of each class in the manifest; ``None`` is the whole test split.
        side: of the pictures, pixels.
        batch_size: pictures a step.
        lr, weight_decay: levels of the grid.
        entrants: what is trained; N_B, "base", first.
        extras: entrants that are recorded last.
        scale: one of :data:`SCALES`.
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
    scale: str = ""

    @property
    def name(self) -> str:
        """The table's, which its files have too."""
        return table_name(self.dataset, self.network, self.scale)

    @property
    def training(self) -> str:
        """What a training of N_B takes, in words."""
        return f"{self.samples:,} pictures of {self.side} pixels, {self.epochs} epochs"

    @property
    def configurations(self) -> list[tuple[int, int]]:
        """Levels of learning rate and weight decay, every pair."""
        return [(i, j) for j in range(len(self.weight_decay)) for i in range(len(self.lr))]

    def configuration(self, levels: tuple[int, int]) -> dict[str, float]:
        """Return the hyperparameters at these levels."""
        return {"lr": self.lr[levels[0]], "weight_decay": self.weight_decay[levels[1]]}

    def labels(self, entrant: str) -> dict[str, object]:
        """Return the columns by which the rows of ``entrant`` are known."""
        return {
            "profile": "table",
            "dataset": self.dataset,
            "network": self.network,
            "role": "base" if entrant == "base" else "proxy",
            "proxy": "" if entrant == "base" else entrant,
        }

    def weight_seed(self, job: Job) -> int:
        """Return the seed of weights, batches and augmentation; no two trainings share it."""
        return crc32(repr((self.name, *job.key)).encode())


_FIVE = tuple(name for name in ENTRANTS if not name.startswith("subset"))
_RIVALS = ("resolution@0.3", "frozen@0.5")
_LATER = ("subset@0.25", *_RIVALS)
_WIDTHS = ("uniform@0.5", "uniform@0.1")
_RESNET20 = Regime("cifar10", "resnet20", 8000, 10, extras=(*_WIDTHS, *_RIVALS))
_OTHERS = (
    Regime("cifar10", "resnet56", 8000, 6, entrants=_FIVE, extras=_LATER),
    Regime("cifar10", "mobilenetv2", 4000, 8, entrants=_FIVE, extras=_LATER),
    Regime("cifar10", "vgg16_bn", 8000, 4, entrants=_FIVE, extras=_LATER),
)
_EXTRAS = (*_RESNET20.extras, "synflow@0.25", "random@0.25")
# the paper's resolution, batch and arithmetic, for a sixth of its pictures and epochs
_GPU = Regime("cifar10", "resnet20", 8000, 24, side=32, batch_size=256, entrants=_FIVE, scale="gpu")
# of no scientific worth: recorded in a minute, for tests and for trying out a cluster
_DIGITS = Regime("digits", "resnet8", 400, 3, train=60, val=60, test=50, side=8, batch_size=32)
TABLES: dict[str, Regime] = {
    regime.name: regime
    for regime in (
        replace(_DIGITS, lr=LR[1::4], entrants=("base", "uniform@0.25")),
        replace(_RESNET20, weight_decay=WEIGHT_DECAY, extras=_EXTRAS),
        *_OTHERS,
        *(replace(_GPU, network=own.network) for own in (_RESNET20, *_OTHERS)),
        *(
            replace(own, dataset=dataset, classes=20, train=250, val=245, samples=5000)
            for own in (_RESNET20, *_OTHERS)
            for dataset in ("cifar100", "tinyimagenet")
        ),
    )
}

STAGES = (
    "gate", "seed 0", "N_B", "truth", "seed 1", "precision", "plans", "extras", "extras, seed 1",
)  # fmt: skip


def stages(regime: Regime, rows: pd.DataFrame) -> Iterator[tuple[str, list[Job]]]:
    """Yield the trainings of a table stage by stage; what truth holds follows from ``rows``.

    The gate, a slice of N_B on all seeds, says whether the regime is worth recording. Then come
    seed 0 of everything, configuration by configuration, N_B's other seeds (verification, and the
    noise ceiling) and its first truth, so that a partial table is a whole smaller one; then seed 1
    of the stand-ins, and last what only refines.
    """
    everything = regime.configurations
    first, *others = SEARCH_SEEDS

    def whole(seed: int, entrants: tuple[str, ...]) -> list[Job]:
        return [Job(entrant, levels, seed) for levels in everything for entrant in entrants]

    def base(seed: int, grid: list[tuple[int, int]] = everything) -> list[Job]:
        purpose = {VERIFY_SEED: "verify", FIRST_TRUTH_SEED: "truth"}.get(seed, "curve")
        return [Job("base", levels, seed, purpose) for levels in grid]

    sliced = [(level, 0) for level in range(len(regime.lr))]
    yield "gate", [job for seed in (*SEARCH_SEEDS, VERIFY_SEED) for job in base(seed, sliced)]
    yield f"seed {first}", whole(first, regime.entrants)
    yield "N_B", [job for seed in (*others, VERIFY_SEED) for job in base(seed)]
    yield "truth", base(FIRST_TRUTH_SEED)
    truth = _truth(regime, rows)
    yield "truth", next(truth)
    for seed in others:
        yield f"seed {seed}", whole(seed, regime.entrants)
    for jobs in truth:
        yield "precision", jobs
    snip = [name for name in regime.entrants if name.startswith("snip")]
    spread = everything[:: max(1, len(everything) // 6)][:6]
    plans = [(levels, name, plan) for levels in spread for name in snip for plan in OTHER_PLANS]
    yield "plans", [Job(name, levels, 0, plan=plan) for levels, name, plan in plans]
    yield "extras", whole(first, regime.extras)
    for seed in others:
        yield f"extras, seed {seed}", whole(seed, regime.extras)


def _truth(regime: Regime, rows: pd.DataFrame) -> Iterator[list[Job]]:
    """Yield truth trainings of the best configurations, four seeds at a time.

    The best by N_B's mean validation accuracy over the seeds of search and verification; until the
    standard error of each one's mean, by the deviation that all of them share, is small.
    """
    base = rows[(rows["proxy"] == "") & (rows["plan"] == 0)]
    levels = ["level_lr", "level_weight_decay"]
    known = base[base["purpose"] != "truth"].groupby(levels)["val_accuracy"].mean()
    best = known.nlargest(BEST).index.tolist()
    truth = base[base["purpose"] == "truth"].set_index(levels)
    for last in range(FIRST_TRUTH_SEED + 4, FIRST_TRUTH_SEED + MOST_TRUTH_SEEDS + 1, 4):
        seeds = range(FIRST_TRUTH_SEED, last)
        yield [Job("base", one, seed, "truth") for seed in seeds for one in best]
        tested = truth["test_accuracy"][truth["seed"].isin(seeds) & truth.index.isin(best)]
        deviation = math.sqrt(tested.groupby(level=[0, 1]).var().mean())
        if deviation / math.sqrt(len(seeds)) <= STANDARD_ERROR:
            return


def missing(
    regime: Regime, rows: pd.DataFrame, until: str = STAGES[-1], entrant: str | None = None
) -> tuple[str, list[Job], int]:
    """Return the first stage that isn't whole ("" if none), what it lacks, and how much it has.

    Of one ``entrant``, if it is named.
    """
    done = {(row[0] or "base", *row[1:]) for row in rows[CELL].itertuples(index=False, name=None)}
    for stage, jobs in stages(regime, rows):
        if STAGES.index(stage) > STAGES.index(until):
            break
        wanted = [job for job in jobs if entrant in (None, job.entrant)]
        if left := [job for job in wanted if job.key not in done]:
            return stage, left, len(wanted)
    return "", [], 0


def table_rows(path: Path) -> pd.DataFrame:
    """Return the rows of a table's file, none where there is no file yet.

    Of a cell that was trained on two machines the first row is kept, with a warning.

    Raises:
        InputError: the file holds something else, see :func:`proxyhpo.rows.read_rows`.
    """
    from proxyhpo.rows import as_frame, read_rows  # names are answered before pandas has loaded

    if not path.exists():
        return as_frame([]).assign(level_lr=0, level_weight_decay=0)
    rows = read_rows(path)
    twice = rows.duplicated(CELL)
    if twice.any():
        cell = ", ".join(f"{name} {rows.loc[twice.idxmax(), name]}" for name in CELL)
        warnings.warn(
            f"{path}: {twice.sum()} trainings are in it twice, the first one {cell}; "
            "of each pair the first row counts",
            stacklevel=2,
        )
        rows = rows[~twice].reset_index(drop=True)
    return rows
