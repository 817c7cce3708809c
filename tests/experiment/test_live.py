"""A live study and its replay on a table that was recorded here give the same trials."""

from dataclasses import replace

import pytest

from proxyhpo.experiment.curves import record
from proxyhpo.experiment.live import live_study
from proxyhpo.hpo.curves import load_table
from proxyhpo.hpo.replay import replay_study
from proxyhpo.hpo.tables import LR, TABLES

NAME = "digits-resnet8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small table, its two search seeds recorded."""
    folder = tmp_path_factory.mktemp("curves")
    small = replace(TABLES[NAME], lr=LR[1::2], samples=200, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TABLES, NAME, small)
        record(NAME, folder, jobs=2, until="seed 1")
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "stand_in", "trial_pruner"),
    [("tpe", "base", "none"), ("cmaes", "uniform@0.25", "halving"), ("gp", "base", "none")],
)
def test_a_live_study_and_its_replay_have_the_same_trials(folder, sampler, stand_in, trial_pruner):
    same = {"sampler": sampler, "stand_in": stand_in, "trials": 3, "seed": 1}
    same |= {"trial_pruner": trial_pruner}
    live = live_study("digits", "resnet8", folder=folder, **same)
    looked_up = replay_study(load_table("digits", "resnet8", folder), **same).trials
    assert live["param_lr"].tolist() == [trial.configuration["lr"] for trial in looked_up]
    assert live["state"].tolist() == [trial.state for trial in looked_up]
    curves = [" ".join(f"{value:.4f}" for value in trial.curve) for trial in looked_up]
    assert live["curve"].tolist() == curves
    assert len(set(curves)) > 1
