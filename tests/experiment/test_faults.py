"""A real run, killed at twenty random moments, ends with the tables of an undisturbed one."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from proxyhpo.config import PROFILES, Experiment
from proxyhpo.experiment.protocol import Run
from proxyhpo.rows import COLUMNS

KILLS = 20
TESTS = Path(__file__).parents[1]
PROFILE = dataclasses.replace(
    PROFILES["smoke"], name="faults", subset=24, test_subset=10, trials=9, epochs=3, ranking=3
)
UNCOMPARED = [name for name in COLUMNS if name.endswith("seconds")]
UNCOMPARED += ["load", "recorded", "commit"]

SCRIPT = """
import json, os, random, signal, sys, time
import torch
from test_faults import KILLS, experiment
from proxyhpo import Run

torch.set_num_threads(1)  # no threads yet, so that a copy of this process can be forked
sampler, whole, torn = sys.argv[1:]
dice = random.Random(sampler)

def start(out):
    ready, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        return child
    try:
        with Run(experiment(sampler), out=out) as run:
            os.write(told, b"!")  # from here on it is killed
            run.search("base"), run.search("proxy"), run.verify(), run.final()
            run.ranking(), run.finish()
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)

assert os.waitpid(start(whole), 0)[1] == 0
kills, status = 0, None
while status is None:
    child = start(torn)
    if kills < KILLS:
        time.sleep(dice.uniform(0.0, 0.8))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status == signal.SIGKILL:
        kills, status = kills + 1, None
print(json.dumps({"kills": kills, "status": status}))
"""


def experiment(sampler):
    return Experiment("digits", "resnet8", sampler, PROFILE)


def tables(out, sampler):
    """What the run recorded, without seconds, in one order; and what it lost."""
    rows = Run(experiment(sampler), out=out).rows
    lost = rows[rows["purpose"] == "lost"]
    kept = rows[~rows["purpose"].isin(["data", "proxy", "lost"])].drop(columns=UNCOMPARED)
    keys = ["purpose", "role", "proxy", "seed", "trial", "config_id", "choice"]
    return kept.sort_values(keys, ignore_index=True), lost


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp"])
def test_twenty_kills_change_no_configuration_and_no_value(tmp_path, sampler):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, sampler, str(tmp_path / "whole"), str(tmp_path / "torn")],
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"kills": KILLS, "status": 0}
    whole, none_lost = tables(tmp_path / "whole", sampler)
    torn, lost = tables(tmp_path / "torn", sampler)
    pd.testing.assert_frame_equal(torn, whole)
    trials = whole[whole["purpose"] == "study"].groupby("role").size()
    assert trials.to_dict() == {"base": PROFILE.trials, "proxy": PROFILE.trials}
    assert none_lost.empty
    assert 1 <= len(lost) <= KILLS
    assert (lost["wall_seconds"] < 1).all()
