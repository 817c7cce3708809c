import math
from types import SimpleNamespace

import optuna
import pytest
from made_trials import SETTINGS, accuracy, rows, run, settings
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from proxyhpo.config import InputError
from proxyhpo.hpo import search
from proxyhpo.hpo.search import SAMPLERS, SPACES, TRIAL_PRUNERS, Grid, Halving, suggest
from proxyhpo.hpo.study import Study

GRID = Grid({"lr": (0.001, 0.01, 0.1), "momentum": (0.5, 0.9), "weight_decay": (0.0,)})
MIXED = {
    "lr": FloatDistribution(1e-3, 1, log=True),
    "momentum": FloatDistribution(0.5, 0.9, step=0.1),
    "weight_decay": CategoricalDistribution([0.0, 1e-3]),
    "batch_size": IntDistribution(32, 32),
}


@pytest.fixture
def ended(tmp_path):
    """Run a study of changed settings to its end."""
    return lambda **changes: run(Study.open(settings(**changes), tmp_path / "study.journal"))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("space", [*SPACES, "mixed", "grid"])
def test_every_sampler_stays_within_every_space(tmp_path, sampler, space):
    found = {"mixed": MIXED, "grid": GRID, **SPACES}[space]
    chosen = settings(sampler=sampler, space=found, trials=8, epochs=3)
    study, tried = Study.open(chosen, tmp_path / "study.journal"), []
    for _ in range(8):
        with study.claim() as claim:
            tried.append(claim.configuration)
            reached = accuracy(claim.configuration, 1)
            claim.stop(1, reached)
            claim.tell(SimpleNamespace(state="complete", accuracy=reached), [])
    if space == "grid":
        assert all(value in GRID.levels[n] for c in tried for n, value in c.items())
    else:
        trials = study.finished
        assert all(d._contains(d.to_internal_repr(c[n])) for c in tried for n, d in found.items())
        assert [trial.params for trial in trials] == tried
        assert len({c["lr"] for c in tried}) == 8


def test_a_grid_is_asked_for_by_index_and_recorded_by_value():
    chosen = settings(space=GRID)
    assert chosen.asked["lr"] == IntDistribution(0, 2)
    indices = {"lr": 2, "momentum": 0, "weight_decay": 0}
    assert chosen.configuration(indices) == {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.0}
    assert chosen.recorded["space"]["lr"] == [0.001, 0.01, 0.1]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp", "hyperband"])
def test_hyperband_stops_trials_of_every_sampler_and_each_learns_of_them(ended, sampler):
    study = ended(sampler=sampler, trials=24)
    states, epochs = zip(*((row["state"], row["epochs"]) for row in rows(study)), strict=True)
    assert states.count("stopped") >= 3
    assert states.count("complete") >= 3
    assert {e for e, state in zip(epochs, states, strict=True) if state == "stopped"} <= {1, 3}
    stopped = [t for t, state in zip(study.finished, states, strict=True) if state == "stopped"]
    learned = TrialState.COMPLETE if sampler == "gp" else TrialState.PRUNED
    assert {trial.state for trial in stopped} == {learned}


@pytest.mark.parametrize("name", TRIAL_PRUNERS)
def test_every_trial_pruner_stops_trials_from_the_first_rung_on(ended, name):
    trials = rows(ended(trial_pruner=name, trials=8, first_rung=2))
    stopped = {row["epochs"] for row in trials if row["state"] == "stopped"}
    assert (not stopped) == (name == "none")
    assert not stopped or 2 <= min(stopped) <= max(stopped) < 9


@pytest.mark.parametrize("name", TRIAL_PRUNERS)
def test_random_search_ends_trials_by_the_trial_pruner_that_it_is_given(ended, name):
    study = ended(sampler="random", trial_pruner=name, trials=16)
    assert any(row["state"] == "stopped" for row in rows(study)) == (name != "none")


@pytest.mark.parametrize(
    ("change", "rungs", "brackets"),
    [
        ({"trials": 17}, [1, 3], [9, 5, 3]),
        ({"trials": 34}, [1, 3], [18, 10, 6]),
        ({"trials": 16}, [1, 3], [16]),  # too few to fill three
        ({"trials": 49, "epochs": 27}, [1, 3, 9], [27, 12, 6, 4]),
        ({"trials": 16, "first_rung": 2}, [2, 6], [16]),
        ({"trials": 16, "epochs": 1}, [], [16]),
    ],
)
def test_trials_are_dealt_to_brackets_where_they_fill_them(change, rungs, brackets):
    chosen = settings(**change)
    hyperband, halving = chosen.build_trial_pruner(), Halving(chosen, brackets=False)
    dealt = [hyperband.bracket(number) for number in range(chosen.trials)]
    assert hyperband.rungs == halving.rungs == rungs
    assert [dealt.count(bracket) for bracket in range(len(brackets))] == brackets
    assert not any(halving.bracket(number) for number in range(chosen.trials))


def promoted(values, **change):
    """Which of the trials that report these values at one epoch, one by one, go on."""
    chosen = settings(trial_pruner="halving", trials=len(values), **change)
    study = optuna.create_study(direction="maximize", pruner=chosen.build_trial_pruner())
    going = []
    for value in values:
        trial = study.ask()
        trial.report(value, 1)
        going.append(not trial.should_prune())
        study.tell(trial, 0.0)
    return going


def test_a_trial_goes_on_if_it_is_among_the_best_third_so_far():
    assert promoted([0.5, 0.4, 0.6, 0.5, 0.7, 0.65, math.nan, 0.1]) == [
        *(True, False, True, False, True, True, False, False)
    ]
    assert all(promoted([0.1, 0.2, 0.3]))


def test_ties_promote_no_more_than_a_third():
    assert promoted([0.1] * 30) == [True] + [False] * 29  # chance against chance
    assert promoted([0.5, 0.1, 0.1, 0.5, 0.5, 0.5]) == [True] + [False] * 5
    assert sum(promoted([0.1, 0.5] * 15)) <= 10
    assert all(promoted([0.1] * 30, first_rung=2))  # not a rung


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_sees_the_trials_of_all_brackets(ended, sampler):
    study = ended(sampler=sampler, trials=17)
    at_random = [suggest(settings(sampler="random"), [], number) for number in range(17)]
    same = [trial.params == drawn for trial, drawn in zip(study.trials, at_random, strict=True)]
    assert same == [True] * 4 + [False] * 13


def test_cma_es_learns_in_one_dimension_too_and_from_finished_trials_alone():
    chosen = settings(sampler="cmaes", space=SPACES["paper"], trials=40)
    study = optuna.create_study(direction="maximize")
    for number in range(40):
        study.sampler = chosen.build_sampler(number)
        trial = study.ask(chosen.asked)
        study.tell(trial, -((trial.params["lr"] - 0.15) ** 2))
    tried = [trial.params["lr"] for trial in study.trials]
    assert max(abs(lr - 0.15) for lr in tried[-8:]) < 0.03
    assert len(set(tried)) == 40
    failed = [create_trial(state=TrialState.FAIL)] * 3
    assert suggest(chosen, [*failed, *study.trials[:20]], 20) == {"lr": tried[20]}


def test_cma_es_reaches_every_integer():
    chosen = settings(sampler="cmaes", space={"lr": IntDistribution(0, 3)})
    assert {suggest(chosen, [], number)["lr"] for number in range(100)} == {0, 1, 2, 3}


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp"])
def test_samplers_search_better_than_they_start(ended, sampler):
    study = ended(sampler=sampler, trials=30, epochs=1, trial_pruner="none")
    values = [trial.value for trial in study.finished]
    assert sum(values[-8:]) > sum(values[:8])


def test_a_diverged_trial_is_told_as_the_worst_and_a_failed_one_as_failed(tmp_path):
    study = Study.open(SETTINGS, tmp_path / "study.journal")
    for state in ("diverged", "failed"):
        with study.claim() as claim:
            claim.tell(SimpleNamespace(state=state, accuracy=math.nan), [{"state": state}])
    diverged, failed = study.finished
    assert (diverged.state, diverged.value) == (TrialState.COMPLETE, 0.0)
    assert failed.state == TrialState.FAIL


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sampler": "nonsense"}, "choose from"),
        ({"trial_pruner": "nonsense"}, "choose from"),
        ({"space": {}}, "search space"),
        ({"space": None}, "search space"),
        ({"space": {"lr": (0.1, 1)}}, "search space: 'lr'"),
        ({"space": Grid({})}, "search space"),
        ({"space": Grid({"lr": ()})}, "search space: 'lr'"),
        ({"first_rung": 0}, "first_rung 0"),
        ({"first_rung": 1.5}, r"first_rung 1\.5"),
    ],
)
def test_what_doesnt_fit_is_refused(change, named):
    with pytest.raises(InputError, match=named):
        settings(**change)


@pytest.mark.parametrize("choice", [dict, (3, 3)])
@pytest.mark.filterwarnings("ignore:Choices")
def test_choices_are_what_a_storage_keeps(choice):
    with pytest.raises(InputError, match="search space: 'size' has the choice"):
        settings(space={"size": CategoricalDistribution(["small", choice])})


def test_samples_are_the_same_for_a_seed():
    space = SPACES["default"]
    assert search.sample(space, 5, seed=3) == search.sample(space, 5, seed=3)
    assert search.sample(space, 5, seed=3) != search.sample(space, 5, seed=4)
    assert search.sample(space, 3, seed=3) == search.sample(space, 5, seed=3)[:3]


def test_the_papers_space_is_the_released_one():
    assert SPACES["paper"] == {"lr": FloatDistribution(1e-5, 0.2)}
