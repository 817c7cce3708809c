"""Replays on a table made by formula: what they look up, pay for, and refuse."""

import subprocess
import sys
from dataclasses import astuple, replace

import numpy as np
import pandas as pd
import pytest
from made_tables import made_rows, made_steps, made_table, write_table

from proxyhpo.analysis.cost import epoch_costs
from proxyhpo.config import InputError
from proxyhpo.hpo.curves import load_table, table_of
from proxyhpo.hpo.replay import ORACLES, replay, replay_settings, replay_study
from proxyhpo.hpo.search import SAMPLERS
from proxyhpo.hpo.tables import TABLES
from proxyhpo.rows import COLUMNS, write_rows


@pytest.fixture(scope="module")
def table():
    return made_table()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_a_replay_is_the_same_again_and_looks_its_trials_up(table, sampler):
    rows = replay(table, sampler=sampler, stand_in="uniform@0.25", seed=3)
    again = replay(table, sampler=sampler, stand_in="uniform@0.25", seed=3)
    timed = ["wall_seconds", "cpu_seconds", "elapsed_seconds", "sampler_seconds", "recorded"]
    pd.testing.assert_frame_equal(rows.drop(columns=timed), again.drop(columns=timed))
    assert set(COLUMNS) <= set(rows.columns)
    known = made_rows()
    known = known[known["proxy"] == "uniform@0.25"]
    seen = {(row["config_id"], row["curve"]) for row in known.to_dict("records")}
    for trial in rows[rows["purpose"] == "study"].to_dict("records"):
        if trial["state"] == "complete":
            assert (trial["config_id"], trial["curve"]) in seen


def test_a_repeated_configuration_meets_another_weight_seed_and_pays_again(table):
    for seed in range(10):
        made = replay_study(table, sampler="tpe", seed=seed)
        by = {}
        for trial in made.trials:
            by.setdefault(tuple(trial.configuration.items()), []).append(trial)
        repeated = [own for own in by.values() if len(own) > 1]
        assert made.repeats == sum(len(own) - 1 for own in by.values())
        for own in repeated:
            assert own[0].accuracy != own[1].accuracy
        assert made.epochs == 18 * 10
        if repeated:
            return
    pytest.fail("no study repeated a configuration")


def test_the_first_trials_may_be_drawn_at_random_whatever_the_sampler(table):
    def tried(**options):
        return [trial.configuration for trial in replay_study(table, seed=1, **options).trials]

    plain, at_random = tried(sampler="cmaes"), tried(sampler="random")
    assert tried(sampler="cmaes", drawn=5)[:5] == at_random[:5] != plain[:5]
    assert tried(sampler="cmaes", drawn=5)[5:] != at_random[5:]


def test_what_verification_looks_at_is_in_no_study(table):
    found = replay_study(table, stand_in="snip@0.25", verify=3, seed=1)
    assert len(found.verified) == 3
    oracle = ORACLES["grid"](table, "base", 1)
    for configuration, accuracy in found.verified:
        place = oracle.place(configuration)
        assert accuracy == table.verification.final[place, 0]
        assert accuracy not in table.curves("base").final[place]
    assert found.choice(3) == max(found.verified, key=lambda pair: pair[1])[0]
    assert found.choice(0) == found.best[0]


def test_costs_are_steps_times_measured_seconds(table):
    base, narrow = table.costs["base"], table.costs["uniform@0.25"]
    assert table.whole == pytest.approx(10 * (125 * base.step + 800 * base.picture))
    expected = 3 * (125 * narrow.step + 800 * narrow.picture)
    assert table.seconds("uniform@0.25", 3) == pytest.approx(expected)
    rows = replay(table, stand_in="uniform@0.25", trials=4, verify=2)
    assert rows.groupby("purpose").size().to_dict() == {"proxy": 1, "study": 4, "verify": 2}
    one = rows[rows["purpose"] == "verify"].iloc[0]
    assert one["train_seconds"] + one["eval_seconds"] == pytest.approx(table.whole)


def test_an_entrant_timed_later_on_a_machine_half_as_fast_costs_as_much(table):
    first = table.steps[table.steps["entrant"] != "snip@0.25"]
    later = table.steps[table.steps["entrant"].isin(["base", "snip@0.25"])]
    seconds = ["step_seconds", "picture_seconds", "build_seconds"]
    later = later.assign(recorded="2026-11-25", repeat=later["repeat"] + 9, **(2 * later[seconds]))
    joined = replace(table, steps=pd.concat([first, later]))
    for name, cost in table.costs.items():
        assert astuple(joined.costs[name]) == pytest.approx(astuple(cost))
    ratios, before = (epoch_costs(one).set_index("entrant") for one in (joined, table))
    assert ratios.loc["snip@0.25"].to_numpy() == pytest.approx(before.loc["snip@0.25"].to_numpy())


def test_a_step_that_is_n_bs_costs_what_n_bs_does(table):
    off = table.steps.assign(step_seconds=table.steps["step_seconds"].where(
        table.steps["entrant"] != "epochs@0.3", 1.0
    ))  # fmt: skip
    timed = replace(table, steps=off)
    assert timed.costs["epochs@0.3"].step == timed.costs["base"].step == table.costs["base"].step
    assert timed.share("epochs@0.3") == pytest.approx(0.3)
    both = timed.costs["uniform@0.25+epochs@0.3"]
    assert both.step == timed.costs["uniform@0.25"].step
    assert epoch_costs(timed).set_index("entrant").loc["epochs@0.3", ["time", "high"]].eq(1).all()


def test_a_trial_pruner_stops_trials_and_saves_epochs(table):
    whole = replay_study(table, trial_pruner="none")
    halved = replay_study(table, trial_pruner="halving")
    assert {trial.state for trial in whole.trials} == {"complete"}
    assert {trial.state for trial in halved.trials} == {"complete", "stopped"}
    assert halved.epochs < 0.7 * whole.epochs
    assert all(len(trial.curve) == trial.epochs for trial in halved.trials)


def test_no_rung_compares_chance_with_chance(table):
    base = table.curves("base")
    late = base.accuracy.copy()
    late[:, :, :2] = 0.1
    slow = replace(table, entrants={"base": replace(base, accuracy=late)})
    same = {"sampler": "tpe", "trials": 3, "trial_pruner": "halving", "seed": 0}
    assert replay_settings(table, "base", **same).first_rung == 1
    assert replay_settings(slow, "base", **same).first_rung == 3


def test_a_diverged_training_is_an_outcome():
    rows = made_rows()
    worst = (rows["level_lr"] == 11) & (rows["proxy"] == "")
    rows.loc[worst, ["state", "epochs"]] = "diverged", 2
    rows.loc[worst, "curve"] = "0.2000 nan"
    table = table_of(TABLES["cifar10-resnet20"], rows, made_steps())
    curves = table.curves("base")
    assert curves.diverged.sum() == 3 * 2
    np.testing.assert_allclose(curves.accuracy[11, 0], [0.2, *[0.1] * 9])
    states = {trial.state: trial for s in range(5) for trial in replay_study(table, seed=s).trials}
    assert states["diverged"].configuration["lr"] == pytest.approx(table.regime.lr[11])


def test_redrawn_tables_keep_means_and_spread(table):
    rng = np.random.default_rng(0)
    drawn = np.array([table.redrawn(rng).curves("base").final for _ in range(200)])
    pool = table.trainings("base").final
    np.testing.assert_allclose(drawn.mean((0, 2)), pool.mean(1), atol=0.004)
    spread = drawn.std(axis=(0, 2)).mean()
    assert spread == pytest.approx(0.012, rel=0.3)  # what the table was made with


def test_an_entrant_that_joins_leaves_the_others_draws(table):
    fewer = replace(table, entrants={name: table.entrants[name] for name in ("base", "snip@0.25")})
    streams = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(2):
        whole, part = (one.redrawn(rng) for one, rng in zip((table, fewer), streams, strict=True))
        for name in fewer.entrants:
            np.testing.assert_array_equal(whole.curves(name).loss, part.curves(name).loss)
        np.testing.assert_array_equal(whole.verification.final, part.verification.final)
        np.testing.assert_array_equal(whole.truth, part.truth)


def test_the_papers_space_is_interpolated_between_recorded_rates(table):
    small = made_table("cifar10-resnet56", noise=0.0)
    oracle = ORACLES["paper"](small, "base", 0)
    low, high = (oracle.train({"lr": small.regime.lr[k]}, 0)["accuracy"][-1] for k in (4, 5))
    middle = oracle.train({"lr": (small.regime.lr[4] * small.regime.lr[5]) ** 0.5}, 0)
    assert middle["accuracy"][-1] == pytest.approx((low + high) / 2, abs=1e-3)
    study = replay_study(small, space="paper", trials=30, verify=2)
    rates = [trial.configuration["lr"] for trial in study.trials]
    assert len(set(rates)) == 30
    assert max(rates) <= 0.2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"trials": 37}, "from 1 to 36"),
        ({"trials": 18.0}, "trials 18.0: a whole number"),
        ({"verify": -1}, "verify -1: a whole number"),
        ({"verify": 19}, "verify 19: at most the 18 trials"),
        ({"seed": -1}, "seed -1"),
        ({"stand_in": "uniform"}, "did you mean 'uniform@0.25'"),
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"trial_pruner": "hyper"}, "hyperband"),
        ({"space": "papers"}, "paper"),
    ],
)
def test_what_a_table_has_not_is_named(table, options, named):
    with pytest.raises(InputError, match=named):
        replay(table, **options)


def test_a_table_is_shown_by_what_is_recorded(table):
    shown = str(table)
    assert shown.startswith("Table cifar10-resnet20: 36 configurations; weight seeds")
    assert "base 2, uniform@0.25 2, " in shown
    assert len(shown) < 250


def test_a_name_is_no_table():
    with pytest.raises(InputError, match="table 'cifar10': what load_table"):
        replay("cifar10")


def test_parts_that_are_not_recorded_are_named(table, tmp_path):
    with pytest.raises(InputError, match="verification isn't recorded"):
        replay(replace(table, verification=None))
    with pytest.raises(InputError, match="record --dataset cifar10 --model vgg16_bn"):
        load_table("cifar10", "vgg16_bn", tmp_path)
    half = made_rows()
    half = half[half["seed"] == 0].iloc[:-3]
    write_rows(tmp_path / "cifar10-resnet20.csv", half[half["proxy"] != ""])
    with pytest.raises(InputError, match="no weight seed of N_B"):
        load_table("cifar10", "resnet20", tmp_path)


def test_a_partial_table_is_a_whole_smaller_one(tmp_path):
    rows = made_rows()
    late = (rows["proxy"] == "subset@0.25") & (rows["level_lr"] == 5)
    write_table(tmp_path, rows=rows[~(late & (rows["seed"] == 1))])
    table = load_table("cifar10", "resnet20", tmp_path)
    assert table.curves("subset@0.25").final.shape == (36, 1)
    assert table.curves("snip@0.25").final.shape == (36, 2)
    assert len(replay(table, stand_in="subset@0.25", verify=1)) == 20


@pytest.mark.parametrize(
    "code",
    [
        "import proxyhpo.hpo.study",
        "from made_tables import made_table; from proxyhpo import replay; replay(made_table())",
    ],
)
def test_studies_and_replays_need_no_torch(code):
    code = f"import sys; sys.path.insert(0, 'tests'); {code}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
