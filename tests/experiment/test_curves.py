"""Recordings that lose workers, machines and half a line, and are recorded once all the same."""

import json
import re
import socket
import threading
from dataclasses import replace

import pandas as pd
import psutil
import pytest

from proxyhpo.config import BusyError, InputError
from proxyhpo.data.manifest import make_manifest
from proxyhpo.experiment import curves
from proxyhpo.experiment.curves import record, train_job
from proxyhpo.experiment.engine import Killed
from proxyhpo.hpo.curves import curves_folder
from proxyhpo.hpo.tables import CELL, TABLES, Job, missing, table_rows
from proxyhpo.rows import as_frame

NAME = "digits-resnet8"
UNCOMPARED = ["load", "recorded", "commit"]


@pytest.fixture(scope="module")
def small():
    """A table whose gate takes nine short trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TABLES, NAME, replace(TABLES[NAME], samples=200, epochs=2))
        yield TABLES[NAME]


def outcomes(folder):
    rows = table_rows(folder / f"{NAME}.csv").sort_values(CELL, ignore_index=True)
    return rows.drop(columns=[*UNCOMPARED, *(n for n in rows if n.endswith("seconds"))])


@pytest.mark.slow
def test_killed_workers_cost_no_training_and_none_is_recorded_twice(small, tmp_path):
    whole = tmp_path / "undisturbed"
    assert record(NAME, whole, jobs=2, until="gate") == 9
    killed, over = [], threading.Event()

    def kill() -> None:
        while not over.wait(0.1) and len(killed) < 2:
            file = tmp_path / f"{NAME}.csv"
            if file.exists() and len(file.read_text().splitlines()) > 1 + 2 * len(killed):
                for worker in psutil.Process().children(recursive=True):
                    if "spawn_main" in " ".join(worker.cmdline()):
                        worker.kill()
                        killed.append(worker.pid)
                        break

    killer = threading.Thread(target=kill)
    killer.start()
    assert record(NAME, tmp_path, jobs=2, until="gate") == 9
    over.set()
    killer.join()
    assert len(killed) == 2
    assert len((tmp_path / f"{NAME}.csv").read_text().splitlines()) == 1 + 9
    pd.testing.assert_frame_equal(outcomes(tmp_path), outcomes(whole))


@pytest.mark.slow
def test_a_torn_line_is_cut_and_its_training_made_again(small, tmp_path):
    assert record(NAME, tmp_path, until="gate") == 9
    whole, path = outcomes(tmp_path), tmp_path / f"{NAME}.csv"
    path.write_bytes(path.read_bytes()[:-40])
    assert record(NAME, tmp_path, until="gate") == 1
    pd.testing.assert_frame_equal(outcomes(tmp_path), whole)


def test_a_table_that_was_begun_otherwise_or_is_being_recorded_is_refused(tmp_path, monkeypatch):
    table = curves.Table(TABLES[NAME], tmp_path)
    with table.held():
        table.prepare(None)
        with pytest.raises(InputError, match="another process is recording"):
            record(NAME, tmp_path)
    begun = TABLES[NAME].epochs
    monkeypatch.setitem(TABLES, NAME, replace(TABLES[NAME], epochs=7))
    with pytest.raises(InputError, match=rf"epochs was {begun}, now 7"):
        record(NAME, tmp_path)


def test_a_table_that_is_older_than_scales_goes_on(tmp_path):
    curves.Table(TABLES[NAME], tmp_path).prepare(None)
    about = tmp_path / f"{NAME}.json"
    kept = json.loads(about.read_text())
    del kept["regime"]["scale"]
    about.write_text(json.dumps(kept))
    assert record(NAME, tmp_path, until="gate") == 9


def test_one_entrant_is_recorded_alone(small, tmp_path):
    with pytest.raises(InputError, match=r"unknown entrant 'snip@0\.25'.*uniform@0\.25"):
        record(NAME, tmp_path, entrant="snip@0.25")
    assert record(NAME, tmp_path, until="seed 0", entrant="uniform@0.25") == 3
    assert set(table_rows(tmp_path / f"{NAME}.csv")["proxy"]) == {"uniform@0.25"}


@pytest.fixture
def uncontrolled(monkeypatch):
    """Steps of a millisecond, timed wherever tests run, come out some per cent off."""
    monkeypatch.setattr(curves, "CONTROL", 100)


def test_steps_are_timed_before_anything_is_recorded(tmp_path, uncontrolled):
    timed = curves.measure_steps(NAME, tmp_path, rounds=2)
    assert timed["entrant"].tolist() == list(TABLES[NAME].entrants)
    assert (timed[["step_seconds", "picture_seconds"]] > 0).all(axis=None)
    assert (tmp_path / f"{NAME}-steps.csv").exists()
    with pytest.raises(InputError, match="rounds 1"):
        curves.measure_steps(NAME, tmp_path, rounds=1)


def test_an_entrant_that_joins_is_timed_beside_n_b_and_leaves_the_others_as_they_were(
    tmp_path, uncontrolled
):
    path, columns = tmp_path / f"{NAME}-steps.csv", ["entrant", "repeat"]
    whole = curves.measure_steps(NAME, tmp_path, rounds=3)
    before = whole[whole["entrant"] == "base"]
    before.to_csv(path, index=False)
    added = curves.measure_steps(NAME, tmp_path, rounds=2)
    assert added[columns].to_numpy().tolist() == [
        ["base", 0], ["base", 1], ["base", 2], ["uniform@0.25", 2]
    ]  # fmt: skip
    before = before.reset_index(drop=True)
    pd.testing.assert_frame_equal(added[:2], before, check_dtype=False)
    assert len(curves.measure_steps(NAME, tmp_path, rounds=2)) == 2  # none is left: all anew


def test_steps_are_refused_where_n_bs_very_step_takes_another_time_than_n_bs():
    rounds = {"base": [1.0, 2.0, 1.0], "epochs@0.3": [1.0, 2.2, 1.1], "snip@0.25": [0.5, 1, 0.5]}
    steps = pd.DataFrame(
        {"entrant": name, "repeat": i, "step_seconds": s}
        for name, seconds in rounds.items()
        for i, s in enumerate(seconds)
    )
    curves.check_control(NAME, steps, ["base"])
    with pytest.raises(BusyError, match=r"epochs@0\.3, which is N_B's, took 1\.10 of its time"):
        curves.check_control(NAME, steps, ["base", "epochs@0.3"])


@pytest.mark.parametrize("path", sorted(curves_folder().glob("*-steps.csv")), ids=lambda p: p.stem)
def test_recorded_steps_pass_their_control(path):
    steps = pd.read_csv(path)
    same = [name for name in steps["entrant"].unique() if re.match(r"(epochs|subset)@[^+]*$", name)]
    assert same
    curves.check_control(path.stem, steps, same)


def test_a_worker_without_the_pictures_is_named():
    regime = TABLES[NAME]
    manifest = make_manifest("digits", classes=10, train=60, val=60, test=50)
    manifest["val"]["3"] = "0123456789ab"
    with pytest.raises(InputError, match=rf"worker on {socket.gethostname()}: .*0123456789ab"):
        train_job(regime, json.dumps(manifest), Job("base", (0, 0), 0), "", None)


def test_a_training_that_ends_every_worker_is_a_failed_row_and_isnt_tried_again():
    regime = TABLES[NAME]
    job = Job("base", (1, 0), 0)
    row = curves._failed(regime, job, Killed("host", 7, 3.5))
    rows = as_frame([row])
    assert (rows["state"][0], rows["wall_seconds"][0], rows["device"][0]) == ("failed", 3.5, "host")
    _, left, _ = missing(regime, rows, "gate")
    assert job not in left
    assert len(left) == 8
