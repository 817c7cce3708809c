"""What is run, and at which scale: frozen values, checked before any work.

:class:`Profile` is the only thing that sets scale; :class:`Experiment` names one cell of the grid.
This module needs the standard library alone, so that the command line rejects a wrong name at once.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import distributions
from numbers import Real
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType
from typing import Any, TypeGuard, TypeVar
from zlib import crc32

Value = TypeVar("Value")


class InputError(ValueError):
    """Bad input, found before any work: the message names the input and the valid choices."""


class BusyError(InputError):
    """What was asked for can't be done beside what another process does."""


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk."""


def choose(kind: str, name: str, registry: Mapping[str, Value]) -> Value:
    """Return ``registry[name]``; :class:`InputError` lists the keys, the nearest one first."""
    if name in registry:
        return registry[name]
    near = difflib.get_close_matches(str(name), list(registry), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"unknown {kind} {name!r}: {hint}choose from {', '.join(registry)}")


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether ``value`` is an int, but neither True nor False."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_integer(name: str, value: object, least: int, more: str = "") -> None:
    """Raise :class:`InputError` unless ``value`` is a whole number, at least ``least``."""
    if not is_integer(value) or value < least:
        raise InputError(f"{name} {value!r}: a whole number, at least {least}{more}")


def check_number(name: str, value: object, least: float) -> None:
    """Raise :class:`InputError` unless ``value`` is a number, at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Real) or not float(value) >= least:
        raise InputError(f"{name} {value!r}: a number, at least {least:g}")


def check_share(name: str, value: object, of: str) -> None:
    """Raise :class:`InputError` unless ``value``, a share of ``of``, is between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise InputError(f"{name} {value!r}: a share of {of}, between 0 and 1")


MOST_SEED = 2**32 - 1
"""What NumPy takes; torch takes more."""


def check_seed(seed: object) -> None:
    """Raise :class:`InputError` unless ``seed`` can seed every generator there is."""
    check_integer("seed", seed, 0)
    if is_integer(seed) and seed > MOST_SEED:
        raise InputError(f"seed {seed}: at most {MOST_SEED}")


def check_verify(verify: object, trials: int) -> None:
    """Raise :class:`InputError` unless so many of a study's ``trials`` can be verified."""
    check_integer("verify", verify, 0)
    if is_integer(verify) and verify > trials:
        raise InputError(f"verify {verify}: at most the {trials} trials of a study")


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Return which values of ``now`` differ from those ``before``, as "trials was 6, now 7"."""
    changed = {key: value for key, value in now.items() if before.get(key) != value}
    return ", ".join(f"{k} was {before.get(k)!r}, now {v!r}" for k, v in changed.items())


NETWORKS = (
    *(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)),
    *("vgg16_bn", "vgg11_bn", "vgg11_bn_x0.25", "mobilenetv2", "mobilenetv2_x0.35"),
)
DATASETS = ("digits", "cifar10", "cifar100", "tinyimagenet")
SAMPLERS = ("tpe", "cmaes", "gp", "random", "hyperband")
"""The keys of the registries, known before torch is loaded."""

SMALLEST_SIDE, LARGEST_SIDE = 8, 64
"""Sides of the pictures that these networks take, pixels."""


def cores() -> int:
    """Return how many cores this process may use: SLURM and taskset grant some of a machine's."""
    granted = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(granted(0)) if granted else os.cpu_count() or 1


MOST_PROCESSES = 4 * cores()
"""More would only wait for each other."""


def check_processes(name: str, number: object) -> None:
    """Raise :class:`InputError` unless this process can use so many others."""
    if not is_integer(number) or not 1 <= number <= MOST_PROCESSES:
        raise InputError(
            f"{name} {number}: a whole number from 1 to {MOST_PROCESSES}, four for each core that "
            "may be used here"
        )


@dataclass(frozen=True)
class Profile:
    """The scale of an experiment and the grid that a run covers unless it is narrowed.

    Attributes:
        name: what results, figures and rows are filed under.
        datasets, networks, samplers, seeds: the grid, the paper's by default.
        classes, subset, test_subset, val, resolution: see :func:`proxyhpo.load_dataset`.
        epochs: of a full trial (R of Hyperband).
        trials: of a study, the same on N_B and on N_P.
        batch_size: pictures a step, unless the search space has ``batch_size``.
        space, trial_pruner: keys of ``search.SPACES`` and ``search.TRIAL_PRUNERS``.
        first_rung: epochs before a trial can be stopped; before trainings are above chance, a rung
            compares chance with chance.
        proxy, pruning_ratio: what stands in for N_B, and the share of its multiply-accumulates
            that is removed.
        verify: how many of the proxy's best configurations are trained on N_B; 0 is the paper's
            way, which trusts the proxy's own best.
        final_seeds: how many times N_B is trained with each choice for the test accuracy.
        ranking: configurations of the ranking study, at least 3, or 0 for none. The experiments of
            the first seed share it; those of the other seeds have none.
        ranked: the stand-ins in it, beside N_B and N_B reseeded.
        jobs: experiments side by side: more than one where seconds are no evidence anyway.
        minutes: rough time of one experiment by itself, on ``machine``; shown before a run.
    """

    name: str
    datasets: tuple[str, ...] = ("cifar10", "cifar100", "tinyimagenet")
    networks: tuple[str, ...] = ("resnet56", "vgg16_bn", "mobilenetv2")
    samplers: tuple[str, ...] = ("tpe", "cmaes", "gp")
    seeds: tuple[int, ...] = (0,)
    classes: int | None = None
    subset: int | None = None
    test_subset: int | None = None
    val: float = 0.1
    resolution: int | None = None
    epochs: int = 9
    trials: int = 12
    batch_size: int = 128
    space: str = "default"
    trial_pruner: str = "hyperband"
    first_rung: int = 1
    proxy: str = "snip"
    pruning_ratio: float = 0.75
    verify: int = 3
    final_seeds: int = 1
    ranking: int = 0
    ranked: tuple[str, ...] = ("snip", "random", "uniform")
    jobs: int = 1
    minutes: float = 1.0
    machine: str = "1 CPU core"

    def __post_init__(self) -> None:
        for field in ("epochs", "trials", "final_seeds", "first_rung"):
            check_integer(field, getattr(self, field), 1)
        check_integer("batch_size", self.batch_size, 2)
        check_verify(self.verify, self.trials)
        if self.ranking != 0:
            check_integer("ranking", self.ranking, 3, " configurations, or 0")
        if self.classes is not None:
            check_integer("classes", self.classes, 2, ", or None")
        check_share("pruning_ratio", self.pruning_ratio, "multiply-accumulates to remove")

    @property
    def pictures(self) -> dict[str, Any]:
        """What :func:`proxyhpo.load_dataset` is asked for, by the names of its arguments."""
        names = ("classes", "subset", "test_subset", "val", "resolution")
        return {name: getattr(self, name) for name in names}

    @property
    def scale(self) -> dict[str, Any]:
        """All that decides the rows of an experiment, by name: what isn't grid or estimate."""
        others = {"name", "datasets", "networks", "samplers", "seeds", "jobs", "minutes", "machine"}
        return {key: value for key, value in asdict(self).items() if key not in others}


@dataclass(frozen=True)
class Experiment:
    """One cell of the grid: a data set, a base network, an HPO method, at a profile's scale.

    :func:`proxyhpo.experiment.protocol.check` checks its names, since no registry is loaded here.
    """

    dataset: str
    network: str
    sampler: str
    profile: Profile
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not isinstance(self.profile, Profile):
            raise InputError(f"profile {self.profile!r}: a Profile, such as PROFILES['smoke']")

    @property
    def ranks(self) -> bool:
        """Whether a ranking study belongs to it."""
        return self.profile.ranking > 0 and self.seed not in self.profile.seeds[1:]

    @property
    def pair(self) -> str:
        """Data set and network, fit for a file name; what the samplers' experiments share."""
        return f"{slug(self.dataset)}-{slug(self.network)}"

    @property
    def name(self) -> str:
        """The experiment's name, fit for a file name."""
        return f"{self.pair}-{self.sampler}-seed{self.seed}"


PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        name="smoke",
        datasets=("digits",),
        networks=("mobilenetv2_x0.35", "resnet8", "vgg11_bn_x0.25"),  # longest first
        samplers=("tpe",),
        subset=50,
        trials=10,
        batch_size=32,
        first_rung=3,
        ranking=8,
        ranked=("snip", "uniform"),
        jobs=2,
        minutes=1.1,
    ),
    # looked up in recorded tables: the recorded regime, by network
    "table": Profile(
        name="table",
        classes=10,
        resolution=16,
        trials=18,
        batch_size=64,
        trial_pruner="none",
        jobs=2,
        minutes=0.3,
    ),
    "gpu": Profile(
        name="gpu",
        seeds=(0, 1, 2),
        epochs=27,
        trials=30,
        final_seeds=3,
        ranking=24,
        ranked=("snip", "random", "uniform", "epochs", "subset"),
        minutes=120,
        machine="one data-centre GPU (an estimate, not a measurement)",
    ),
    "paper": Profile(
        name="paper",
        epochs=160,
        trials=100,
        batch_size=256,
        space="paper",
        verify=0,
        final_seeds=3,
        ranking=24,
        minutes=3000,
        machine="one data-centre GPU (an estimate, not a measurement)",
    ),
}


def scaled(profile: str, **changes: Any) -> Profile:
    """Return profile ``profile``, changed as asked; changes that are ``None`` keep its own value.

    A changed profile is filed as ``custom``, so that its rows never mix with those of the profile
    that it came from.

    Raises:
        InputError: for an unknown profile or field, or a value out of range.
    """
    base = choose("profile", profile, PROFILES)
    for field in changes:
        choose("field of a profile", field, vars(base))
    wanted = {k: v for k, v in changes.items() if v is not None and v != getattr(base, k)}
    return replace(base, name="custom", **wanted) if wanted else base


def grid(
    profile: Profile,
    datasets: Iterable[str] = (),
    networks: Iterable[str] = (),
    samplers: Iterable[str] = (),
) -> list[Experiment]:
    """Return the experiments of ``profile``, narrowed to (or replaced by) the names given.

    Networks vary fastest: experiments that run side by side then seldom share a ranking study,
    for which one would have to wait.
    """
    return [
        Experiment(dataset, network, sampler, profile, seed)
        for seed in profile.seeds
        for dataset in (tuple(datasets) or profile.datasets)
        for sampler in (tuple(samplers) or profile.samplers)
        for network in (tuple(networks) or profile.networks)
    ]


@cache
def installed(package: str) -> str:
    """Return the version of an installed package, "" where there is none."""
    return next((found.version for found in distributions(name=package)), "")


def load(module: str) -> ModuleType:
    """Import a module of ours that needs torch, and torchvision that fits it.

    Raises:
        InputError: torchvision can't load beside the torch that is installed.
    """
    try:
        return import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        if "torchvision" not in str(error):
            raise
        found = ", ".join(f"{name} {installed(name)}" for name in ("torch", "torchvision"))
        raise InputError(
            f"torchvision can't load beside this torch ({found}: {str(error).splitlines()[0]}); "
            "install two builds that belong together: pip install --upgrade torch torchvision"
        ) from error


def slug(name: str) -> str:
    """Return ``name`` fit for a file name; a name that has to change for that gets a checksum."""
    folded = re.sub(r"[^\w.]+", "_", name).strip("_")
    return folded if folded == name else f"{folded}_{crc32(name.encode()):08x}"


def home(start: Path | None = None) -> Path:
    """Return the checkout that encloses ``start``, by default the current folder; else ``start``.

    Results are filed there unless asked otherwise, so that a notebook finds them wherever it lies.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "run_all.sh").is_file() and (folder / "proxyhpo").is_dir():
            return folder
    return here


def whole_path(name: str, path: str | Path) -> Path:
    """Return ``path`` from the root, with links followed and the home folder for "~".

    Raises:
        InputError: there can be no such path; the message calls it ``name``.
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a user unknown
        raise InputError(f"{name} {str(path)!r}: no path can be made of it ({error})") from None


def make_folder(folder: Path) -> None:
    """Make a folder of results; :class:`InputError` where it can't be written.

    A full disk is no bad input: its :class:`OSError` is passed on.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise InputError(f"can't write to the output folder {folder}: {error.strerror}") from None


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


def write_changed(texts: Mapping[Path, str]) -> list[Path]:
    """Write those of ``texts`` that differ from their files; return the paths written."""
    changed = []
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text.encode())
            changed.append(path)
    return changed
