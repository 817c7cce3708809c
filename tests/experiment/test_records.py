"""The folder of an experiment: what is lost, damaged or cut there."""

import os
import signal
import time

import pytest
from made_rows import row

from proxyhpo.config import BusyError, InputError
from proxyhpo.experiment.records import Records


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path / "results", tmp_path / "runs", "an experiment")


@pytest.mark.parametrize("purpose", ["verify", "final", "ranking"])
def test_what_a_killed_training_took_is_recorded_whatever_the_clock_says(
    records, purpose, monkeypatch
):
    records.check_settings({"trials": 3})
    began, child = time.monotonic(), os.fork()
    if not child:
        with records.under_way(row("lost", choice="verified")):
            now = time.time
            monkeypatch.setattr(time, "time", lambda: now() + 3600)
            time.sleep(60)
    time.sleep(1.5)
    os.kill(child, signal.SIGKILL)
    truth = time.monotonic() - began
    os.waitpid(child, 0)
    records.count_lost()
    records.count_lost()  # once
    [seconds] = records.read()["wall_seconds"]
    assert truth - 1 < seconds <= truth
    with records.under_way(row(purpose)):
        pass
    records.count_lost()
    assert len(records.read()) == 1


def test_a_recorded_training_isnt_lost_too_where_the_process_ends_just_then(records):
    records.check_settings({"trials": 3})
    note = records.folder / "training.json"
    with records.under_way(row("lost", choice="verified")):
        records.add(row("verify"))
        left = note.read_bytes()
    note.write_bytes(left)
    records.count_lost()
    assert records.read()["purpose"].tolist() == ["verify"]


def test_damaged_notes_are_answered_or_done_without(records):
    records.check_settings({"trials": 3})
    records.check_settings({"trials": 3})
    with pytest.raises(InputError, match="trials was 3, now 4; remove that folder"):
        records.check_settings({"trials": 4})
    (records.folder / "training.json").write_text('{"beg')
    records.count_lost()
    assert records.read().empty
    (records.folder / "settings.json").write_text('{"tri')
    with pytest.raises(InputError, match=r"settings\.json is damaged: remove that folder, or use"):
        records.check_settings({"trials": 3})


@pytest.mark.parametrize("kept", [1, 2, -1])
def test_a_finished_file_that_was_cut_is_refused_with_what_to_do(records, kept):
    for trial in range(3):
        records.add(row("study", trial=trial))
    records.finish()
    assert len(records.read()) == 3
    whole = records.path.read_text().splitlines(keepends=True)
    records.path.write_text("".join(whole[:kept]))
    with pytest.raises(InputError, match=r"isn't whole; delete .*experiment\.csv and run the same"):
        records.read()


def test_a_folder_is_held_by_one(records, tmp_path):
    other = Records(tmp_path / "results", tmp_path / "runs", "an experiment")
    records.hold()
    with pytest.raises(BusyError, match="in use"):
        other.hold()
    records.lock.release()
    other.hold()
