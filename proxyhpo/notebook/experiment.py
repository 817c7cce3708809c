"""What ``experiment.ipynb`` opens: one experiment, trained live or looked up in a table."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING

from IPython import get_ipython

from proxyhpo.config import Experiment, InputError, choose, home, load, scaled
from proxyhpo.experiment.replayed import ReplayedRun
from proxyhpo.hpo.curves import curves_under

if TYPE_CHECKING:
    from proxyhpo.experiment.protocol import Run

SOURCES = ("live", "table")
_opened: dict[Path, Run] = {}
"""The last live run of each folder, which it holds: its cell may be run again."""


def open_experiment(
    dataset: str,
    network: str,
    sampler: str,
    profile: str,
    source: str,
    *,
    seed: int = 0,
    trials: int | None = None,
    epochs: int | None = None,
    ranking: int | None = None,
    out: str | None = None,
    data_dir: str | None = None,
    workers: int = 1,
) -> Run | ReplayedRun:
    """Check an experiment's parameters; return it open, with a method for each step.

    They are those of the notebook, which says beside each what it may be; ``epochs``, ``ranking``
    and ``workers`` are a live one's. Prints its device, and each part that a table lacks.

    Raises:
        InputError: a parameter of the wrong type or out of range, or an unknown name; before any
            work.
    """
    for name in _injected():
        choose("parameter", name, inspect.signature(open_experiment).parameters)
    names = {"dataset": dataset, "network": network, "sampler": sampler}
    changes = {"trials": trials, "epochs": epochs, "ranking": ranking}
    _check("a text in quotes", str, **names, profile=profile, source=source)
    _check("a whole number", int, seed=seed, workers=workers)
    _check("a whole number, or None", int | None, **changes)
    _check("a folder's path in quotes, or None", str | None, out=out, data_dir=data_dir)
    choose("source", source, dict.fromkeys(SOURCES))
    if (source == "table") != (profile == "table"):
        raise InputError(f"source {source!r}, profile {profile!r}: set both to 'table', or neither")
    experiment = Experiment(dataset, network, sampler, scaled(profile, **changes), seed)
    if source == "live":
        run = load("proxyhpo.experiment.protocol").Run(
            experiment, out=out, data_dir=data_dir, workers=workers
        )
        print(f"device: {run.device}")
        if run.folder in _opened:
            _opened[run.folder].close()
        _opened[run.folder] = run
        return run.open()
    if epochs is not None or ranking is not None:
        raise InputError("epochs, ranking: None, since a table has its own")
    replayed = ReplayedRun(experiment, folder=curves_under(out or home()))
    for lack in replayed.missing:
        print(f"not recorded: {lack}")
    return replayed


def _injected() -> Iterator[str]:
    """Yield the names that papermill set in this notebook, in a cell of its own."""
    shell = get_ipython()
    for source in shell.user_ns.get("In", []) if shell else []:
        if source.startswith("# Parameters\n"):
            for line in ast.parse(source).body:
                if isinstance(line, ast.Assign):
                    yield from (name.id for name in line.targets if isinstance(name, ast.Name))


def _check(told: str, kind: type | UnionType, **values: object) -> None:
    """Raise :class:`InputError` where a value is of another kind; True is no number."""
    for name, value in values.items():
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{name} {value!r}: {told}")
