"""What is told of long work: lines in a log or a notebook, bars on a terminal."""

import os
import pty
import subprocess
import sys
import termios

import pytest

from proxyhpo.experiment import progress
from proxyhpo.experiment.progress import Progress, StudyProgress, duration


def row(state="complete", epochs=9, accuracy=0.5):
    return {"state": state, "epochs": epochs, "budget": 9, "val_accuracy": accuracy}


def test_lines_tell_what_is_done_what_was_stopped_the_best_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with StudyProgress("HPO on N_B", 4) as told:
        told.start_with(row(accuracy=0.4))
        told.tell(row("stopped", 1, 0.9))
        told.tell(row(accuracy=0.6))
        told.tell(row("diverged", 2, float("nan")))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"HPO on N_B: {n}/4" for n in (2, 3, 4)]
    assert "left" in lines[0]
    assert "best 0.400, 1 stopped, 1 running" in lines[0]
    assert "best 0.600" in lines[1]
    assert "took" in lines[2]
    assert "1 stopped, 1 diverged, 42% of the epochs saved" in lines[2]


def test_what_other_workers_have_under_way_counts_as_half_done(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with StudyProgress("HPO", 80, workers=8) as told:
        now = 1.0
        told.tell(row())
    assert capsys.readouterr().out == "HPO: 1/80, 17 s left  best 0.500, 8 running\n"


def test_scores_below_zero_are_told_and_none_is_until_one_is_trained_in_full(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with StudyProgress("tune", 4) as told:
        told.tell(row("stopped", 1, -0.1))
        for score in (-2.5, -1.25, -3.0):
            told.tell(row(accuracy=score))
    first, *lines = capsys.readouterr().out.splitlines()
    assert "none trained in full yet" in first
    assert [line.split("best ")[1].split(",")[0] for line in lines] == [
        "-2.500",
        "-1.250",
        "-1.250",
    ]


def test_lines_are_few_however_many_steps_and_the_last_always_comes(capsys):
    with Progress("steps", 1000) as told:
        for _ in range(1000):
            told.advance()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 3
    assert lines[-1].startswith("steps: 1000/1000, took")


def test_epochs_are_told_where_a_trial_takes_long_and_the_trial_all_the_same(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with StudyProgress("HPO", 3) as told:
        told.start_with(row())
        now = 29.0
        told.epoch(1, 9)
        now = 40.0
        told.epoch(2, 9)
        told.epoch(3, 9)
        now = 42.0
        told.tell(row())
        now = 84.0
        told.epoch(9, 9)
        told.tell(row())
    assert capsys.readouterr().out.splitlines() == [
        "HPO: trial 2 of 3, epoch 2 of 9, 5 min 20 s left",
        "HPO: 2/3, 42 s left  best 0.500, 1 running",
        "HPO: trial 3 of 3, epoch 9 of 9, 0 s left",
        "HPO: 3/3, took 1 min 24 s  best 0.500",
    ]


SCRIPT = """
from proxyhpo.experiment.progress import StudyProgress
with StudyProgress("HPO on N_B", 2) as told:
    told.epoch(3, 9)
    for accuracy in (0.25, 0.5):
        told.tell({"state": "complete", "epochs": 9, "budget": 9, "val_accuracy": accuracy})
"""


def test_a_terminal_gets_a_bar_for_the_study_and_one_for_the_epochs():
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 120))
    done = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=follower, stdout=follower)
    assert done.wait(60) == 0
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 4096):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    text = shown.decode()
    assert "HPO on N_B: 100%" in text
    assert "epochs:  33%" in text
    assert "best 0.500" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(8.4, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
