"""A small experiment on digits in a process of its own, which can be watched and stopped.

A process, because it can be ended at any moment without harm: an experiment goes on where it was
interrupted. ``python -m proxyhpo.small_study SETTINGS FOLDER`` is that process; SETTINGS is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from proxyhpo.config import PROFILES, Experiment, InputError, scaled
from proxyhpo.rows import load_results, read_rows, write_whole

if TYPE_CHECKING:
    from torch import nn

DATASET, PROFILE = "digits", "smoke"
STAND_INS = ("snip", "synflow", "random", "uniform")
"""Of the proxies, those made by pruning: what is left of them can be drawn."""


@dataclass(frozen=True)
class Settings:
    """What a small experiment runs: names of the registries, and its scale.

    Raises:
        InputError: a number out of range; names are checked when it is run.
    """

    network: str = "resnet8"  # the quickest of the profile
    sampler: str = PROFILES[PROFILE].samplers[0]
    proxy: str = "uniform"
    pruning_ratio: float = 0.75
    trials: int = 6
    epochs: int = 3

    def __post_init__(self) -> None:
        _ = self.experiment

    @property
    def experiment(self) -> Experiment:
        """The experiment: profile ``smoke``, cut down, without a ranking study."""
        scale = {"pruning_ratio": self.pruning_ratio, "epochs": self.epochs, "proxy": self.proxy}
        verify = min(PROFILES[PROFILE].verify, self.trials)
        profile = scaled(PROFILE, ranking=0, verify=verify, trials=self.trials, **scale)
        return Experiment(DATASET, self.network, self.sampler, profile)

    @property
    def name(self) -> str:
        """A name that no other settings have, fit for a folder."""
        return "-".join(map(str, asdict(self).values()))


class SmallStudy:
    """A small experiment under way; what it has recorded stays in its folder.

    Started again in the same folder, it goes on where it stopped.

    Attributes:
        settings: what is run.
        folder: where rows, channels and what it printed are kept.
    """

    def __init__(self, settings: Settings, folder: str | Path) -> None:
        """Start the process.

        Raises:
            InputError: the folder can't be written, or no process can be started.
        """
        self.settings, self.folder = settings, Path(folder)
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-P", "-m", "proxyhpo.notebook.small_study"]
        command += [json.dumps(asdict(settings)), str(self.folder)]
        self._stopped = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "log.txt").open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        except OSError as error:
            raise InputError(f"can't start a study in {self.folder}: {error}") from None

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process.poll() is None

    @property
    def state(self) -> str:
        """One of "running", "stopped", "failed" and "finished"."""
        if self.running:
            return "running"
        if self._stopped:
            return "stopped"
        return "failed" if self._process.returncode else "finished"

    def stop(self) -> None:
        """End the process now; does nothing if it has ended."""
        if self.running:
            self._stopped = True
            self._process.kill()
        self._process.wait()

    @property
    def log(self) -> str:
        """What the process has printed, errors included."""
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    @property
    def rows(self) -> pd.DataFrame:
        """The rows recorded so far; none at first."""
        experiment = self.settings.experiment
        profile = experiment.profile.name
        pending = self.folder / "runs" / profile / experiment.name / "rows.csv"
        recorded = load_results(self.folder / "results" / profile)
        return read_rows(pending) if recorded.empty and pending.exists() else recorded

    @property
    def channels(self) -> list[dict[str, object]]:
        """Rows of :func:`channels`; none until the process has made the proxy."""
        path = self.folder / "channels.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def progress(self, rows: pd.DataFrame) -> tuple[int, int, str]:
        """Return how many trainings are done, of how many at most, and what comes next."""
        profile = self.settings.experiment.profile
        steps = {
            ("study", "base"): ("HPO on N_B", profile.trials),
            ("study", "proxy"): ("HPO on N_P", profile.trials),
            ("verify", "base"): ("verification on N_B", profile.verify),
            ("final", "base"): ("final training of N_B", 3 * profile.final_seeds),
        }
        total, told = sum(count for _, count in steps.values()), "starting"
        if self.state == "finished":
            return total, total, "finished"
        done = 0
        for (purpose, role), (words, count) in steps.items():
            here = int(((rows["purpose"] == purpose) & (rows["role"] == role)).sum())
            done += here
            if len(rows) and (here or purpose == "study") and here < count:
                told = f"{words}: {here} of {count} done"
                break
        return done, total, told


def channels(settings: Settings) -> list[dict[str, object]]:
    """Return the channels of each layer of N_B and of the proxy that ``settings`` name.

    Rows of ``item`` (the layer), ``base`` and ``proxy``. Needs torch, and a second.

    Raises:
        InputError: an unknown name, or a share that can't be reached.
    """
    from proxyhpo.data.datasets import load_dataset
    from proxyhpo.hpo.stand_ins import make_stand_in
    from proxyhpo.models import build_network

    experiment = settings.experiment
    profile, seed = experiment.profile, experiment.seed
    data = load_dataset(DATASET, seed=seed, **profile.pictures)

    def build(seed: int) -> nn.Module:
        classes = len(data.classes)
        return build_network(settings.network, classes=classes, channels=data.channels, seed=seed)

    share = 1 - settings.pruning_ratio
    made = make_stand_in(settings.proxy, build, data, profile.epochs, share, seed)
    assert made.proxy is not None  # STAND_INS are all made by pruning
    layers = [row for row in made.proxy.report() if isinstance(row["base"], int)]
    costs = ("multiply-accumulates", "parameters")
    return [
        {key: row[key] for key in ("item", "base", "proxy")}
        for row in layers
        if row["item"] not in costs
    ]


def main(arguments: list[str]) -> int:
    """Run the settings (JSON) in a folder; return the exit status."""
    from proxyhpo.experiment.protocol import check, run_experiment

    settings, folder = Settings(**json.loads(arguments[0])), Path(arguments[1])
    try:
        check(settings.experiment)
        kept = channels(settings)
        write_whole(folder / "channels.json", json.dumps(kept).encode())
        run_experiment(settings.experiment, out=folder)
    except InputError as error:
        print(error, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
