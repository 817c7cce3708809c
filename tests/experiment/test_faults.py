"""A real run under random faults ends with the tables of an undisturbed one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS = 15


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "seed"), [("tpe", 0), ("cmaes", 1), ("gp", 2)])
def test_faults_change_no_configuration_and_no_value(sampler, seed):
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--sampler", sampler]
    done = subprocess.run(
        [*command, "--faults", str(FAULTS), "--seed", str(seed)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(found["faults"].values()) == FAULTS
    assert found["tracebacks"] == []
    assert found["runs finished with the undisturbed run's tables"] >= 1
    assert found["rows compared"] > 2 * 9 + 3 * 4
