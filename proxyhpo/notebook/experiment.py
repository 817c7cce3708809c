"""What ``experiment.ipynb`` opens: one experiment, trained live or looked up in a table."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from IPython import get_ipython

from proxyhpo.config import Experiment, InputError, choose, is_integer, load, scaled
from proxyhpo.experiment.replayed import ReplayedRun

if TYPE_CHECKING:
    from proxyhpo.experiment.protocol import Run

SOURCES = ("live", "table")
TEXT, NUMBER, FOLDER = "a text in quotes", "a whole number", "a folder's path in quotes"


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
    report: Callable[[str], object] = print,
) -> Run | ReplayedRun:
    """Check an experiment's parameters; return it open, with a method for each step.

    Args:
        dataset: name of a data set, or "imagefolder:PATH".
        network: name of a base network.
        sampler: name of an HPO method.
        profile: a key of :data:`~proxyhpo.config.PROFILES`, "table" where ``source`` is.
        source: "live" trains, "table" looks each training up in a recorded table.
        seed: of the study.
        trials: of each study, instead of the profile's.
        epochs: of a full trial, instead of the profile's; live alone.
        ranking: configurations of the ranking study, instead of the profile's; live alone.
        out: folder of results; by default this checkout's.
        data_dir: folder of the data sets.
        workers: processes that share a live study.
        report: gets a line on the device, and one for each part that isn't recorded.

    Raises:
        InputError: a parameter of the wrong type or out of range, or an unknown name; before any
            work.
    """
    known = [name for name in inspect.signature(open_experiment).parameters if name != "report"]
    for name in _injected():
        choose("parameter", name, dict.fromkeys(known))
    texts = {"dataset": dataset, "network": network, "sampler": sampler}
    for name, value in {**texts, "profile": profile, "source": source}.items():
        _check(name, value, isinstance(value, str), TEXT)
    for name, number in {"seed": seed, "workers": workers}.items():
        _check(name, number, is_integer(number), NUMBER)
    for name, change in {"trials": trials, "epochs": epochs, "ranking": ranking}.items():
        _check(name, change, change is None or is_integer(change), f"{NUMBER}, or None")
    for name, path in {"out": out, "data_dir": data_dir}.items():
        _check(name, path, path is None or isinstance(path, str), f"{FOLDER}, or None")
    choose("source", source, dict.fromkeys(SOURCES))
    if (source == "table") != (profile == "table"):
        raise InputError(f"source {source!r}, profile {profile!r}: set both to 'table', or neither")
    experiment = Experiment(
        dataset, network, sampler, scaled(profile, trials=trials, epochs=epochs, ranking=ranking),
        seed,
    )  # fmt: skip
    if source == "live":
        run = load("proxyhpo.experiment.protocol").Run(
            experiment, out=out, data_dir=data_dir, workers=workers
        )
        report(f"device: {run.device}")
        return run.open()
    if epochs is not None or ranking is not None:
        raise InputError("epochs, ranking: None, since a table has its own")
    own = Path(out or "", "results", "curves")
    replayed = ReplayedRun(experiment, folder=own if out and any(own.glob("*.csv")) else None)
    for lack in replayed.missing:
        report(f"not recorded: {lack}")
    return replayed


def _injected() -> Iterator[str]:
    """Yield the names that papermill set in this notebook, in a cell of its own."""
    shell = get_ipython()
    for source in shell.user_ns.get("In", []) if shell else []:
        if source.startswith("# Parameters\n"):
            for line in ast.parse(source).body:
                if isinstance(line, ast.Assign):
                    yield from (name.id for name in line.targets if isinstance(name, ast.Name))


def _check(name: str, value: object, fits: bool, kind: str) -> None:
    if not fits:
        raise InputError(f"{name} {value!r}: {kind}")
