import math

import optuna
import pytest
from made_trials import SETTINGS, configurations, opened, run, settings
from optuna.trial import TrialState

from proxyhpo.config import InputError
from proxyhpo.hpo import search
from proxyhpo.hpo.search import SAMPLERS, SPACES, TRIAL_PRUNERS, best_k
from proxyhpo.training import Outcome


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("space", SPACES)
def test_every_sampler_stays_within_every_space(tmp_path, sampler, space):
    chosen = settings(sampler=sampler, space=SPACES[space], trials=6, epochs=3)
    study = run(opened(chosen, tmp_path / "study.journal"))
    for params in configurations(study):
        for name, distribution in SPACES[space].items():
            assert distribution.low <= params[name] <= distribution.high
    distinct = 6 - (best_k(6) if sampler == "best_k" else 0)
    assert len({params["lr"] for params in configurations(study)}) == distinct


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp", "hyperband"])
def test_hyperband_stops_trials_of_every_sampler(tmp_path, sampler):
    study = run(opened(settings(sampler=sampler, trials=24), tmp_path / "study.journal"))
    states = [trial.user_attrs["rows"][-1]["state"] for trial in study.finished]
    epochs = [len(trial.intermediate_values) for trial in study.finished]
    assert states.count("stopped") >= 3
    assert states.count("complete") >= 3
    assert sum(epochs) < 24 * 9
    assert all(e < 9 for e, state in zip(epochs, states, strict=True) if state == "stopped")
    told = SAMPLERS[sampler].stopped_as
    stopped = [t for t in study.finished if t.user_attrs["rows"][-1]["state"] == "stopped"]
    assert all(trial.state == told for trial in stopped)


@pytest.mark.parametrize("name", TRIAL_PRUNERS)
def test_every_trial_pruner_runs(tmp_path, name):
    study = run(opened(settings(trial_pruner=name, trials=8), tmp_path / "study.journal"))
    stopped = sum(t.state == TrialState.PRUNED for t in study.finished)
    assert (stopped == 0) == (name == "none")


def test_random_search_trains_every_trial_in_full(tmp_path):
    study = run(opened(settings(sampler="random"), tmp_path / "study.journal"))
    assert all(trial.state == TrialState.COMPLETE for trial in study.finished)


def test_best_k_trains_all_for_one_epoch_and_the_k_best_again_in_full(tmp_path):
    study = run(opened(settings(sampler="best_k", trials=15), tmp_path / "study.journal"))
    first, again = study.finished[:12], study.finished[12:]
    assert {len(trial.intermediate_values) for trial in first} == {1}
    assert all(trial.state == TrialState.COMPLETE for trial in again)
    best = sorted(first, key=lambda trial: -trial.intermediate_values[1])[: best_k(15)]
    assert [trial.params for trial in again] == [trial.params for trial in best]


def test_hyperband_has_three_brackets_at_nine_epochs(tmp_path):
    study = run(opened(SETTINGS, tmp_path / "study.journal"), 1)
    pruner = SETTINGS.build_trial_pruner()
    pruner._try_initialization(study.optuna)
    assert pruner._n_brackets == 3


def test_brackets_follow_the_settings_name_and_not_the_storages(tmp_path):
    one = run(opened(SETTINGS, tmp_path / "one.journal", "one"))
    other = run(opened(SETTINGS, tmp_path / "other.journal", "other"))
    named = run(opened(settings(name="another"), tmp_path / "another.journal", "one"))
    epochs = [[len(t.intermediate_values) for t in s.finished] for s in (one, other, named)]
    assert epochs[0] == epochs[1] != epochs[2]


def test_cmaes_is_cmaes_in_one_dimension_too(tmp_path):
    chosen = settings(
        sampler="cmaes", space=SPACES["paper"], trials=41, epochs=1, trial_pruner="none"
    )
    study = run(opened(chosen, tmp_path / "study.journal"), 40)
    # Optuna notes the generation of each trial that CMA-ES suggested; the first one is random
    generations = [
        value
        for trial in study.finished[1:]
        for key, value in trial.system_attrs.items()
        if key.endswith("generation")
    ]
    assert len(generations) == 39
    assert max(generations) >= 3
    claim = study.claim()
    assert set(claim.configuration) == {"lr"}
    assert claim.number == 40


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp"])
def test_samplers_search_better_than_they_start(tmp_path, sampler):
    chosen = settings(sampler=sampler, trials=30, epochs=1, trial_pruner="none")
    values = [trial.value for trial in run(opened(chosen, tmp_path / "study.journal")).finished]
    assert sum(values[-8:]) > sum(values[:8])


def test_a_diverged_trial_is_told_as_the_worst_and_a_failed_one_as_failed(tmp_path):
    study = opened(SETTINGS, tmp_path / "study.journal")
    for state in ("diverged", "failed"):
        outcome = Outcome(state, 1, math.nan, math.nan, (math.nan,), 0, 0, 0, "fp32")
        with study.claim() as claim:
            claim.tell(outcome, [{"state": state}])
    diverged, failed = study.finished
    assert (diverged.state, diverged.value) == (TrialState.COMPLETE, 0.0)
    assert failed.state == TrialState.FAIL


@pytest.mark.parametrize("field", ["sampler", "trial_pruner"])
def test_unknown_names_are_refused(field):
    with pytest.raises(InputError, match="choose from"):
        settings(**{field: "nonsense"})


@pytest.mark.parametrize("space", [{}, None, {"lr": (0.1, 1)}])
def test_a_space_that_is_none_is_refused(space):
    with pytest.raises(InputError, match="search space"):
        settings(space=space)


def test_samples_are_the_same_for_a_seed():
    space = SPACES["default"]
    assert search.sample(space, 5, seed=3) == search.sample(space, 5, seed=3)
    assert search.sample(space, 5, seed=3) != search.sample(space, 5, seed=4)
    assert search.sample(space, 3, seed=3) == search.sample(space, 5, seed=3)[:3]


def test_the_papers_space_is_the_released_one():
    assert SPACES["paper"] == {"lr": optuna.distributions.FloatDistribution(1e-5, 0.2)}
