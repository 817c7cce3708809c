"""A panel that runs a small experiment on digits, live: settings, progress, stop, result.

The experiment is a process of its own, so the notebook stays usable, loads no torch, and can stop
it at any moment. Started again, it resumes where it was.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import ipywidgets
import pandas as pd

from proxyhpo.config import PROFILES, Experiment, InputError, scaled
from proxyhpo.notebook import controls as ui
from proxyhpo.report.experiment import experiment_figure
from proxyhpo.rows import load_results, read_rows

DATASET, PROFILE = "digits", "smoke"
OFFERED = ("uniform", "snip", "synflow", "random", "epochs", "subset")
DEFAULT = {
    # resnet8 on pictures of 8 pixels gains nothing by pruning; this one gains as larger ones do
    "network": "vgg11_bn_x0.25", "sampler": "tpe", "proxy": "uniform", "kept": 0.25,
    "trials": 10, "epochs": 3, "verify": 1,
}  # fmt: skip
SECONDS_BETWEEN_LOOKS = 0.5
PROCESS = (  # reports before the imports, which take seconds
    "import pickle, sys; print('loading PyTorch and the pictures', flush=True); "
    "from proxyhpo.experiment.protocol import run_experiment; "
    "run_experiment(pickle.loads(bytes.fromhex(sys.argv[1])), out=sys.argv[2])"
)


class StudyPanel(ipywidgets.VBox):
    """Controls, progress, and the figure of the experiment that they run.

    Attributes:
        controls: by name, as in :data:`DEFAULT`.
        start, stop: the buttons.
        bar, status: its progress.
        picture: where the time went, and what was found.
        process: the one that runs, or ran last.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Make the panel; its experiments are kept in ``folder``, a temporary one by default."""
        self._folder = Path(folder or tempfile.mkdtemp(prefix="proxyhpo-"))
        self.process: subprocess.Popen[bytes] | None = None
        if not folder:
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        atexit.register(self._kill)  # what is registered last goes first
        profile = PROFILES[PROFILE]
        kept = "of N_B's multiply-accumulates, epochs or pictures"
        shares = [(f"{100 * share:g} %", share) for share in (0.5, 0.25, 0.1)]
        self.controls: dict[str, ipywidgets.Widget] = {
            "network": ui.dropdown("network", "the base network N_B", profile.networks),
            "sampler": ui.dropdown("sampler", "of both studies", (*profile.samplers, "random")),
            "proxy": ui.dropdown("stand-in", "what is tuned in N_B's place", OFFERED),
            "kept": ui.dropdown("share kept", kept, shares),
            "trials": ui.slider("trials", "that each of the two studies makes", 2, 20),
            "epochs": ui.slider("epochs", "of a full training of N_B", 1, profile.epochs),
            "verify": ui.slider("verified", "of the stand-in's best, trained on N_B", 0, 3),
        }
        for name, control in self.controls.items():
            control.value = DEFAULT[name]
        self.start = ipywidgets.Button(description="Run", icon="play")
        self.stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.start.on_click(lambda _: self.begin())
        self.stop.on_click(lambda _: self.end())
        self.bar = ipywidgets.IntProgress(min=0, max=1)
        self.status = ipywidgets.HTML(ui.status_line("study", "not started"))
        self.picture = ui.blank_picture()
        buttons = ui.row(self.start, self.stop, self.bar)
        super().__init__([ui.row(*self.controls.values()), buttons, self.status, self.picture])

    @property
    def running(self) -> bool:
        """Whether the experiment's process is alive."""
        return self.process is not None and self.process.poll() is None

    @property
    def experiment(self) -> Experiment:
        """The experiment as set: profile ``smoke``, smaller, without a ranking study."""
        value = {name: control.value for name, control in self.controls.items()}
        profile = scaled(
            PROFILE, ranking=0, trials=value["trials"], epochs=value["epochs"],
            verify=min(value["verify"], value["trials"]), proxy=value["proxy"],
            pruning_ratio=1 - value["kept"],
        )  # fmt: skip
        return Experiment(DATASET, value["network"], value["sampler"], profile)

    def begin(self) -> None:
        """Start the experiment, and follow it if an event loop runs, as in a notebook."""
        if self.running:
            return
        self._stopped, self._began, self._seen = False, time.monotonic(), 0
        ui.show(self.picture, b"")
        self._experiment = self.experiment
        values = (str(control.value) for control in self.controls.values())
        self._own = self._folder / "-".join(values)
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            with (self._own / "log.txt").open("wb") as log:
                settings = [pickle.dumps(self._experiment).hex(), str(self._own)]
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", PROCESS, *settings],
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        except OSError as error:
            self.status.value = ui.error_line(f"can't start in {self._folder}: {error}")
            return
        self._look()
        with suppress(RuntimeError):  # no event loop: a script calls follow() itself
            self._task = asyncio.get_running_loop().create_task(self.follow())

    def end(self) -> None:
        """Kill the process; do nothing if it has ended."""
        if self._kill():
            self._stopped = True
            self._look()

    async def follow(self) -> None:
        """Show the experiment's progress until it ends."""
        while self.running:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            self._look()
        self._look()  # the process may have ended while the last one was under way

    def _kill(self) -> bool:
        """Kill the process; return whether it ran."""
        if self.process is None or self.process.poll() is not None:
            return False
        self.process.kill()
        self.process.wait()
        return True

    @property
    def rows(self) -> pd.DataFrame:
        """The rows recorded so far; none at first."""
        profile, name = self._experiment.profile.name, self._experiment.name
        pending = self._own / "runs" / profile / name / "rows.csv"
        recorded = load_results(self._own / "results" / profile)
        return read_rows(pending) if recorded.empty and pending.exists() else recorded

    def _look(self) -> None:
        running = self.running
        for control in (*self.controls.values(), self.start):
            control.disabled = running
        self.stop.disabled = not running
        try:
            self._tell(running, self.rows)
        except (InputError, ValueError, OSError) as error:  # nobody reads a task's traceback
            self.status.value = ui.error_line(f"The experiment can't be shown: {error}")

    def _tell(self, running: bool, rows: pd.DataFrame) -> None:
        assert self.process is not None
        log = (self._own / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
        last = log.rpartition("\n")[2].removeprefix("proxyhpo.config.InputError: ")
        self.bar.value, self.bar.max, step = self._progress(rows)
        if running or self._stopped:
            told = f"{time.monotonic() - self._began:.0f} s: "
            told = "stopped; Run goes on from here. " if self._stopped else told
            told += (step or last or "starting a process") + _best(rows)
        elif self.process.returncode:
            self.status.value = ui.error_line(f"It failed: {last or 'without a message'}", log)
            return
        else:
            self.bar.value = self.bar.max
            told = f"finished{_best(rows)}; a small experiment: too little to be evidence"
        self.status.value = ui.status_line("study", told)
        if len(rows) > self._seen and (rows["purpose"] == "study").any():
            self._seen = len(rows)
            ui.show(self.picture, ui.png(experiment_figure(rows)))

    def _progress(self, rows: pd.DataFrame) -> tuple[int, int, str]:
        """Return how many trainings are done, of how many at most, and the step under way."""
        profile = self._experiment.profile
        steps = {
            ("study", "base"): ("HPO on N_B", profile.trials),
            ("study", "proxy"): ("HPO on the stand-in", profile.trials),
            ("verify", "base"): ("verification on N_B", profile.verify),
            ("final", "base"): ("final training of N_B", 3 * profile.final_seeds),
        }
        done = rows.groupby(["purpose", "role"]).size()
        begun = [(text, done[key], most) for key, (text, most) in steps.items() if key in done]
        step = "{}: {} of {} done".format(*begun[-1]) if begun else ""
        most = sum(most for _, most in steps.values())
        return int(sum(count for _, count, _ in begun)), most, step


def _best(rows: pd.DataFrame) -> str:
    """Return the best validation accuracy of N_B so far with either choice, after a semicolon.

    That of the stand-in itself stands in until the first of its choices is verified.
    """
    complete = rows[rows["purpose"].isin(("study", "verify")) & (rows["state"] == "complete")]
    best = complete.groupby(["purpose", "role"])["val_accuracy"].max().dropna()
    names = {
        ("study", "base"): "on N_B",
        ("study", "proxy"): "on the stand-in itself",
        ("verify", "base"): "on N_B with the stand-in's choice",
    }
    if ("verify", "base") in best:
        del names["study", "proxy"]
    shown = [f"{best[key]:.0%} {name}" for key, name in names.items() if key in best]
    return f"; best validation accuracy so far: {', '.join(shown)}" if shown else ""
