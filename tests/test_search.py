import math

import optuna
import pytest
from optuna.trial import TrialState

from proxyhpo import search
from proxyhpo.config import InputError
from proxyhpo.search import SAMPLERS, SPACES, TRIAL_PRUNERS, StudySettings, ask, open_study, tell
from proxyhpo.training import Outcome

SETTINGS = StudySettings("a study", "default", "tpe", "hyperband", trials=12, epochs=9, seed=1)


def settings(**changes):
    return StudySettings(**{**SETTINGS.__dict__, **changes})


def accuracy(configuration, epoch):
    """A smooth stand-in for a training: best at lr = 0.03, better with every epoch."""
    return math.exp(-((math.log10(configuration["lr"]) + 1.5) ** 2)) * (1 - 0.5**epoch)


def run(study, chosen, count):
    for _ in range(count):
        trial, configuration = ask(study, chosen)
        stop, curve, state = search.stopper(trial), [], "complete"
        for epoch in range(1, chosen.epochs + 1):
            curve.append(accuracy(configuration, epoch))
            if epoch < chosen.epochs and stop(epoch, curve[-1]):
                state = "stopped"
                break
        outcome = Outcome(state, len(curve), curve[-1], 1.0, tuple(curve), 0, 0, 0, "fp32")
        tell(study, chosen, trial, outcome, {"trial": trial.number, "state": state})


def configurations(study):
    return [trial.params for trial in study.get_trials()]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("space", SPACES)
def test_every_sampler_stays_within_every_space(tmp_path, sampler, space):
    chosen = settings(sampler=sampler, space=space, trials=6, epochs=3)
    study = open_study(chosen, tmp_path / "study.journal")
    run(study, chosen, 6)
    for params in configurations(study):
        for name, distribution in SPACES[space].items():
            assert distribution.low <= params[name] <= distribution.high
    assert len({params["lr"] for params in configurations(study)}) == 6


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("interrupted_at", [1, 5, 8])
def test_a_study_taken_up_again_suggests_what_an_uninterrupted_one_does(
    tmp_path, sampler, interrupted_at
):
    chosen = settings(sampler=sampler, trials=10)
    whole = open_study(chosen, tmp_path / "whole.journal")
    run(whole, chosen, 10)

    path = tmp_path / "torn.journal"
    run(open_study(chosen, path), chosen, interrupted_at)
    ask(open_study(chosen, path), chosen)  # killed while this trial was training ...
    with path.open("ab") as journal:
        journal.write(b'{"op_code": 8, "tri')  # ... and while a line was being written
    resumed = open_study(chosen, path)
    assert len(resumed.get_trials()) == interrupted_at
    run(resumed, chosen, 10 - interrupted_at)

    assert configurations(resumed) == configurations(whole)
    assert [t.value for t in resumed.get_trials()] == [t.value for t in whole.get_trials()]
    assert [t.user_attrs["row"]["trial"] for t in resumed.get_trials()] == list(range(10))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_hyperband_stops_trials_of_every_sampler(tmp_path, sampler):
    chosen = settings(sampler=sampler, trials=24)
    study = open_study(chosen, tmp_path / "study.journal")
    run(study, chosen, 24)
    states = [trial.user_attrs["row"]["state"] for trial in study.get_trials()]
    epochs = [len(trial.intermediate_values) for trial in study.get_trials()]
    assert states.count("stopped") >= 3
    assert states.count("complete") >= 3
    assert sum(epochs) < 24 * 9
    assert all(e < 9 for e, state in zip(epochs, states, strict=True) if state == "stopped")
    told = SAMPLERS[sampler].stopped_as
    stopped = [t for t in study.get_trials() if t.user_attrs["row"]["state"] == "stopped"]
    assert all(trial.state == told for trial in stopped)


@pytest.mark.parametrize("name", TRIAL_PRUNERS)
def test_every_trial_pruner_runs(tmp_path, name):
    chosen = settings(trial_pruner=name, trials=8)
    study = open_study(chosen, tmp_path / "study.journal")
    run(study, chosen, 8)
    stopped = sum(t.state == TrialState.PRUNED for t in study.get_trials())
    assert (stopped == 0) == (name == "none")


def test_hyperband_has_three_brackets_at_nine_epochs(tmp_path):
    study = open_study(SETTINGS, tmp_path / "study.journal")
    run(study, SETTINGS, 1)
    assert study.pruner._n_brackets == 3


def test_cmaes_is_cmaes_in_one_dimension_too(tmp_path):
    chosen = settings(sampler="cmaes", space="paper", trials=40, epochs=1, trial_pruner="none")
    study = open_study(chosen, tmp_path / "study.journal")
    run(study, chosen, 40)
    # Optuna notes the generation of each trial that CMA-ES suggested; the first one is random
    generations = [
        value
        for trial in study.get_trials()[1:]
        for key, value in trial.system_attrs.items()
        if key.endswith("generation")
    ]
    assert len(generations) == 39
    assert max(generations) >= 3
    trial, configuration = ask(study, chosen)
    assert set(configuration) == {"lr"}
    assert trial.number == 40


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp"])
def test_samplers_search_better_than_they_start(tmp_path, sampler):
    chosen = settings(sampler=sampler, trials=30, epochs=1, trial_pruner="none")
    study = open_study(chosen, tmp_path / "study.journal")
    run(study, chosen, 30)
    values = [trial.value for trial in study.get_trials()]
    assert sum(values[-8:]) > sum(values[:8])


def test_a_diverged_trial_is_told_as_the_worst_and_a_failed_one_as_failed(tmp_path):
    study = open_study(SETTINGS, tmp_path / "study.journal")
    for state in ("diverged", "failed"):
        trial, _ = ask(study, SETTINGS)
        outcome = Outcome(state, 1, math.nan, math.nan, (math.nan,), 0, 0, 0, "fp32")
        tell(study, SETTINGS, trial, outcome, {"state": state})
    diverged, failed = study.get_trials()
    assert (diverged.state, diverged.value) == (TrialState.COMPLETE, 0.0)
    assert failed.state == TrialState.FAIL


def test_other_settings_are_named_and_the_study_is_left_alone(tmp_path):
    path = tmp_path / "study.journal"
    open_study(SETTINGS, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"sampler was 'tpe', now 'gp'.*trials was 12, now 5"):
        open_study(settings(sampler="gp", trials=5), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("field", ["sampler", "space", "trial_pruner"])
def test_unknown_names_are_refused(field):
    with pytest.raises(InputError, match="choose from"):
        settings(**{field: "nonsense"})


def test_samples_are_the_same_for_a_seed():
    space = SPACES["default"]
    assert search.sample(space, 5, seed=3) == search.sample(space, 5, seed=3)
    assert search.sample(space, 5, seed=3) != search.sample(space, 5, seed=4)
    assert search.sample(space, 3, seed=3) == search.sample(space, 5, seed=3)[:3]


def test_the_papers_space_is_the_released_one():
    assert SPACES["paper"] == {"lr": optuna.distributions.FloatDistribution(1e-5, 0.2)}
