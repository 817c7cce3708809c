"""What is said of tables made by formula, whose truth is known."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_tables import ENTRANTS, made_rows, made_table, mean_accuracy
from scipy import stats

from proxyhpo.analysis.bootstrap import t_interval
from proxyhpo.analysis.claims import (
    HEADLINES,
    POOLED,
    baselines,
    by_network,
    claims,
    more_needed,
    outcome,
)
from proxyhpo.analysis.cost import break_even, epoch_costs, saving
from proxyhpo.analysis.evidence import Evidence, read_replays, write_replays
from proxyhpo.analysis.quality import (
    COLUMNS,
    behind,
    overall,
    race,
    race_summary,
    raced,
    regrets,
    sooner,
)
from proxyhpo.analysis.ranking import agreement, corrections, gate, plans, shift, sight, transfer
from proxyhpo.analysis.released import AS_RELEASED, SWITCHES, cells, interpolated, switches
from proxyhpo.analysis.ways import (
    DESIGNED_ON,
    LadderWay,
    StudyWay,
    _trained,
    study_way,
)
from proxyhpo.config import InputError
from proxyhpo.hpo.ladder import LADDERS, Ladder
from proxyhpo.hpo.tables import LR
from proxyhpo.rows import write_rows


@pytest.fixture(scope="module")
def table():
    return made_table()


@pytest.fixture(scope="module")
def races():  # four redrawn tables: enough to decide nothing, and to see how it is decided
    every = {study_way("base", 0): StudyWay("tpe")}
    every |= {
        study_way(n, 3, same_time=same): StudyWay("tpe", n, 3, same_time=same)
        for n in ENTRANTS if n != "base"
        for same in (False, True)
    }  # fmt: skip
    return race(made_table(), every, draws=4, seeds=1)


def recorded(names, ways, budgets):
    """Return races of tables ``names`` in which a way's points lost by each budget are given."""
    lines = [
        (way, draw, budget, regret, name)
        for name in names
        for way, lost in ways.items()
        for draw in range(4)
        for budget, regret in zip(budgets, lost, strict=True)
    ]
    return pd.DataFrame(lines, columns=COLUMNS)


def test_the_gate_finds_what_the_table_was_made_with(table):
    found = gate(table)
    assert found["above_chance"] == 1.0
    assert found["seed_sd"] == pytest.approx(0.012, rel=0.35)
    assert found["icc_mean"] > found["icc"] > 0.3
    assert found["best"] == pytest.approx(0.55, abs=0.012)


def test_without_noise_agreement_is_perfect_and_the_shift_is_found():
    clean = made_table(noise=1e-6)
    frame = agreement(clean, ["epochs@0.3"], draws=3).set_index("measure")
    assert frame.loc["rho", "ceiling"] > 0.995
    moved = shift(clean, draws=3).set_index("view")
    for name, (octaves, _, _) in ENTRANTS.items():
        assert moved.loc[name, "shift"] == pytest.approx(octaves, abs=0.25)


def narrower(table, *levels):
    """Return the table with stand-ins of width 2^(-0.75 k), best at k levels more: a = -1."""
    base = table.curves("base")
    made = {
        f"uniform@{2 ** (-1.5 * k):.2f}": replace(
            base,
            accuracy=np.roll(base.accuracy.reshape(3, 12, 2, -1), k, axis=1).reshape(36, 2, -1),
            macs=base.macs * 2 ** (-1.5 * k),
        )
        for k in levels
    }
    return replace(table, entrants={"base": base, **made})


@pytest.mark.parametrize("levels", [(1,), (1, 2), (1, 2, 3)])
def test_the_exponent_of_the_learning_rate_is_found(levels):
    (line,) = transfer(narrower(made_table(noise=1e-6), *levels), draws=3).to_dict("records")
    assert line["exponent"] == pytest.approx(-1, abs=0.01)
    assert line["high"] - line["low"] < 0.01
    assert line["widths"] == 1 + len(levels)


def test_the_exponents_interval_carries_the_weight_seeds(table):
    # the table's own stand-in: an octave more at half the width
    spans = []
    for seed in range(6):
        (line,) = transfer(made_table(seed=seed), draws=40).to_dict("records")
        assert line["low"] < line["exponent"] < line["high"]
        assert line["low"] <= -1 <= line["high"]
        spans.append(line["high"] - line["low"])
    assert 0.1 < np.mean(spans) < 2
    base = table.curves("base")
    once = base.map(lambda name: getattr(base, name)[:, :1])
    entrants = {**narrower(table, 1).entrants, "base": once}
    alone = replace(table, entrants=entrants, verification=None)
    assert transfer(alone, draws=3)[["low", "high"]].isna().all(axis=None)
    assert transfer(replace(table, entrants={"base": once})).empty


def test_agreement_stays_under_the_ceiling_and_inside_its_interval(table):
    frame = agreement(table, ["uniform@0.25", "base:1", "base:1 averaged"], draws=30)
    rho = frame[frame["measure"] == "rho"]
    assert rho["estimate"].between(rho["low"], rho["high"], inclusive="neither").all()
    assert (rho["estimate"] <= rho["ceiling"] + 0.02).all()
    costs = rho.set_index("view")["cost"]
    assert costs["base:1"] == pytest.approx(0.1)
    assert 0.3 < costs["uniform@0.25"] < 0.6
    # made alike: the averaged curve is the curve and a constant
    wide = frame.pivot_table(index="measure", columns="view", values="estimate")
    assert wide["base:1"].to_numpy() == pytest.approx(wide["base:1 averaged"].to_numpy())


def test_sight_tells_the_axes_apart(table):
    frame = sight(table, ["uniform@0.25"], draws=8).set_index("axis")
    assert frame.loc["lr", "estimate"] > frame.loc["weight_decay", "estimate"]
    assert frame["slices"].to_dict() == {"lr": 3, "weight_decay": 12}
    assert sight(made_table("cifar10-resnet56"), draws=4).empty


def test_truth_regret_is_of_the_best_known_and_has_no_optimism(table):
    lost = regrets(table)
    every = map(table.regime.configuration, table.regime.configurations)
    means = np.array([mean_accuracy("base", *one.values()) for one in every])
    true = 100 * (means.max() - means)
    several = np.isfinite(table.truth).sum(1) > 3
    assert lost[several] == pytest.approx(true[several], abs=1.3)
    assert abs(lost[several].min()) < 0.8


def test_a_repetition_has_its_own_truth(table):
    rng = np.random.default_rng(0)
    drawn = np.stack([table.redrawn(rng).truth for _ in range(40)])
    assert (np.isfinite(drawn) == np.isfinite(table.truth)).all()
    apart = drawn[:, :, 0].std(axis=0, ddof=1)  # of one seed, also where only one is recorded
    assert apart.mean() == pytest.approx(0.0126, rel=0.15)  # 1.2 points, and the test pictures'


def test_epoch_costs_are_ratios_of_time(table):
    frame = epoch_costs(table).set_index("entrant")
    assert frame.loc["base", "time"] == 1
    assert frame.loc["uniform@0.25", "time"] == pytest.approx(0.44, abs=0.03)
    assert frame.loc["uniform@0.25+epochs@0.3", "trial"] == pytest.approx(0.44 * 0.3, abs=0.01)
    assert frame["time"].between(frame["low"], frame["high"]).all()


def test_the_formula_of_the_saving():
    assert saving(16, 3, 0.5) == pytest.approx(1 - 0.5 - 3 / 16)
    assert saving(100, 3, 0.5, build=1.0) == pytest.approx(1 - 0.5 - 4 / 100)
    assert saving(break_even(3, 0.4, build=0.5), 3, 0.4, build=0.5) == pytest.approx(0)
    assert break_even(3, 1.2) == float("inf")


@pytest.mark.parametrize(
    ("low", "high", "above", "decided"),
    [
        (1, 2, True, "yes"),
        (-1, 0.2, True, "no"),
        (0, 1, True, "undecided"),
        (-2, 0.4, False, "yes"),
        (0.6, 2, False, "no"),
        (float("nan"), 1, True, "undecided"),
    ],
)
def test_one_rule_decides(low, high, above, decided):
    assert outcome(low, high, 0.5, above=above) == decided


def test_claims_are_decided_by_the_interval_that_is_shown(table, races):
    frame = claims([table], races)
    assert set(frame["claim"]) == {"epoch", "saving", "quality", "better"}
    for line in frame.itertuples():
        assert line.outcome == outcome(line.low, line.high, line.margin, above=line.above)
    assert (frame.loc[frame["claim"] == "epoch", "outcome"] == "yes").all()
    first = claims([table], races, HEADLINES)
    assert dict(zip(first["claim"], first["case"], strict=True)) == HEADLINES
    every = frame.merge(first, on=["claim", "case"])  # four share their level, not all
    assert (every["high_y"] - every["low_y"] < every["high_x"] - every["low_x"]).all()
    fewer = claims([table], pd.DataFrame())
    width = (fewer["high"] - fewer["low"]).iloc[0]
    assert width < (frame["high"] - frame["low"]).iloc[0]  # fewer claims, a lower level for each


def test_no_rival_is_judged_where_nearly_all_that_is_tried_is_verified(races):
    small = made_table("cifar10-resnet56")  # two thirds of 6 trainings less 3 verifications
    timed = small.steps["entrant"] == "snip@0.25"
    quick = small.steps.assign(step_seconds=small.steps["step_seconds"].mask(timed, 0.01))
    quick = replace(small, steps=quick)
    assert 4 < 1 / (quick.costs["snip@0.25"].step / quick.costs["base"].step) < 6
    known = races[~races["way"].str.contains("subset")].assign(table=small.name)
    frame = claims([quick], known)
    assert set(frame["claim"]) == {"epoch", "saving", "quality"}


def test_a_choice_is_held_against_each_other_search_on_the_network():
    ways = {study_way("uniform@0.25", 3): 1.0, study_way("base", 0): 1.5}
    ways[study_way("base", 0, "gp")] = 0.4
    lines = [
        (way, draw, budget, lost + 0.1 * number + draw, f"cifar10-{number}")
        for number in range(3)
        for way, lost in ways.items()
        for draw in (0, 1)
        for budget in (6.0, math.inf)
    ]
    frame = baselines(pd.DataFrame(lines, columns=COLUMNS), 0.95).set_index("baseline")
    assert frame["points"].to_dict() == pytest.approx({"tpe": -0.5, "gp": 0.6})
    assert frame["outcome"].to_dict() == {"tpe": "yes", "gp": "no"}
    assert (frame["tables"] == 3).all()
    assert baselines(pd.DataFrame(lines[:8], columns=COLUMNS), 0.95).empty  # of one table


def test_an_open_claim_says_how_much_more_would_decide_it():
    assert more_needed(0.1, -0.5, 0.7, 0.5) == pytest.approx((0.6 / 0.4) ** 2)
    assert more_needed(0.5, -0.5, 1.5, 0.5) == math.inf  # on the margin nothing decides
    assert math.isnan(more_needed(1.0, math.nan, math.nan, 0.5))


def test_networks_are_the_unit_of_a_check():
    names = [f"{data}-{network}" for network in ("a", "b", "c") for data in ("x", "y")]
    shared = {"claim": "epoch", "case": "snip", "margin": 5.0, "above": True, "unit": "% of time"}
    values = [9.0, 11.0, 19.0, 21.0, 28.0, 32.0]
    lines = [
        {**shared, "table": name, "estimate": value, "n": 9, "of": "rounds"}
        for name, value in zip((*names, POOLED), (*values, 0.0), strict=True)
    ]
    (line,) = by_network(pd.DataFrame(lines)).to_dict("records")
    assert (line["n"], line["of"], line["outcome"]) == (3, "networks", "undecided")
    left = np.log(1 - np.array(values) / 100).reshape(3, 2).mean(1)  # time is pooled as ratios are
    ends = [line[end] for end in ("estimate", "high", "low")]
    assert np.log(1 - np.array(ends) / 100) == pytest.approx(t_interval(left))
    points = pd.DataFrame(lines).assign(unit="points")
    (line,) = by_network(points).to_dict("records")
    assert [line[end] for end in ("estimate", "low", "high")] == pytest.approx(
        t_interval([10, 20, 30])
    )
    assert by_network(pd.DataFrame(lines[:4])).empty


def null_error(tables, draws, deviation, trials):
    """Return how often the rule errs where the truth lies exactly on the margin.

    Simulated: ``tables`` estimates with normal errors of ``deviation``, each with an interval from
    ``draws`` redraws, and their pooled t interval; shares of ``yes`` and ``no`` for one table
    (``one_...``) and pooled (``pooled_...``) at the level 95 %. Each tail should be 2.5 %.
    """
    rng, found = np.random.default_rng(0), Counter()
    for _ in range(trials):
        estimates = rng.normal(0, deviation, tables)
        spread = rng.normal(0, deviation, (tables, draws)).std(axis=1, ddof=1)
        half = stats.t.ppf(0.975, draws - 1) * spread[0]
        found["one_" + outcome(estimates[0] - half, estimates[0] + half, 0.0)] += 1
        found["pooled_" + outcome(*t_interval(estimates)[1:], 0.0)] += 1
    kinds = ("one_yes", "one_no", "pooled_yes", "pooled_no")
    return {kind: found[kind] / trials for kind in kinds}


def test_the_rule_errs_as_often_as_it_says():
    found = null_error(tables=4, draws=20, deviation=1.0, trials=4000)
    assert all(0.012 < share < 0.04 for share in found.values()), found


def test_a_promoted_configuration_is_looked_up_in_another_training(table):
    ladder = LadderWay(Ladder(("base:1", "base:2", "base")))
    curves = table.curves("base")
    seeds = curves.final.shape[1]
    assert seeds > 1
    whose = np.broadcast_to(np.arange(seeds)[None, :, None], curves.accuracy.shape) / 10
    marked = replace(table, entrants={**table.entrants, "base": replace(curves, accuracy=whose)})
    drawn = _trained(marked, ladder.ladder.rungs, np.random.default_rng(0))
    met = 10 * np.array(list(drawn.values()))
    assert (np.diff(met, axis=0).round() % seeds == 1).all()
    assert len(set(met[0])) > 1  # not the same for all configurations


def test_searches_of_different_tables_share_no_luck():
    def firsts(name):
        asked = []

        def way(table, seed):
            asked.append(seed)
            return iter([(1.0, 0)])

        race(made_table(name), {"way": way}, draws=1, seeds=2)
        return asked

    one, other = firsts("cifar10-resnet20"), firsts("cifar10-resnet56")
    assert len({*one, *other}) == len(one) + len(other) == 16


def test_more_time_loses_less_and_a_rival_is_judged_on_the_same_tables(table):
    every = {"study": StudyWay("random"), "ladder": LadderWay(LADDERS["best_k"])}
    frame = raced(race(table, every, draws=3, seeds=20))
    lost = frame.pivot_table(index="budget", columns="way", values="regret")
    for _, known in lost.items():
        first, *_, last = known.dropna()
        assert last < min(first, 1.5)
    early = lost.loc[2.0]
    assert early["ladder"] < early["study"]  # one epoch costs a tenth and sees enough here


def test_a_samplers_milliseconds_cost_no_training(table):
    way, trials = StudyWay("random"), len(table.regime.configurations) // 2
    costs = [cost for cost, _ in way(table, 0)]
    assert trials < costs[-1] < 1.01 * trials
    frame = race(table, {"random": way}, draws=1, seeds=5).set_index("budget")["regret"]
    assert frame[trials].tolist() == frame[math.inf].tolist()


def test_in_the_same_time_a_cheap_stand_in_has_more_trials(table):
    few = StudyWay("tpe", "uniform@0.25", 3)
    many = replace(few, same_time=True)
    every, share = len(table.regime.configurations), table.share("uniform@0.25")
    assert (few.trials(table), table.trials) == (every // 2, every // 2)
    assert many.trials(table) == min(every, int((table.trials - 3) / share)) > table.trials
    costs = [cost for cost, _ in many(table, 0)]
    assert len(costs) == many.trials(table)
    assert table.trials - share < costs[-1] < 1.02 * table.trials or len(costs) == every
    assert StudyWay("hyperband", same_time=True).trials(table) == every
    slow = replace(table, steps=table.steps.assign(step_seconds=1.0))
    assert many.trials(slow) == table.trials  # never fewer than a search on N_B


def test_ways_that_share_their_studies_find_what_each_finds_alone(table):
    ways = {
        "trusted": StudyWay("random", "uniform@0.25"),
        "tpe": StudyWay("tpe", "uniform@0.25"),
        "verified": StudyWay("random", "uniform@0.25", 3),
    }
    assert ways["trusted"].studied(table) == ways["verified"].studied(table)
    options = {"draws": 1, "seeds": 2}
    alone = [race(table, {name: way}, **options) for name, way in ways.items()]
    together = race(table, ways, **options)
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True))


def test_a_way_is_no_rival_of_its_own_method(table):
    every = {"tpe on uniform@0.25": StudyWay("tpe", "uniform@0.25")}
    every["tpe on uniform@0.25, same time"] = StudyWay("tpe", "uniform@0.25", same_time=True)
    races = race(table, every | {"random on N_B": StudyWay("random")}, draws=3, seeds=2)
    for compare in (sooner, behind):
        found = compare(races, "tpe on uniform@0.25, same time", {table.name: table.trials})
        assert set(found["rival"]) == {"random on N_B"}
        assert (
            compare(races, "random on N_B", {table.name: 18})["rival"].str.startswith("tpe").all()
        )


def test_rivals_from_outside_join_the_race(tmp_path):
    (tmp_path / "curves").mkdir()
    (tmp_path / "replays").mkdir()
    write_rows(tmp_path / "curves" / "cifar10-resnet56.csv", made_rows("cifar10-resnet56"))
    line = {"draw": 0, "budget": 6.0, "regret": 1.0, "table": "cifar10-resnet56"}
    for kind, way in {"race": "tpe on N_B", "rivals": "asha on N_B (syne-tune)"}.items():
        frame = pd.DataFrame([{"way": way, **line}])
        write_replays(tmp_path / "replays" / f"cifar10-resnet56-{kind}.csv", frame)
    known = Evidence(tmp_path / "curves")
    assert list(known.raced["way"]) == ["tpe on N_B", "asha on N_B (syne-tune)"]


def test_a_race_is_read_as_it_was_written(tmp_path, table):
    frame = race(table, {"late": StudyWay("random"), "early": StudyWay("tpe")}, draws=1, seeds=1)
    assert frame["regret"].isna().any()  # no answer by then
    assert frame["budget"].max() == math.inf
    write_replays(tmp_path / "race.csv", frame)
    pd.testing.assert_frame_equal(read_replays(tmp_path / "race.csv")[list(frame)], frame)


def test_recorded_replays_that_were_cut_are_refused(tmp_path):
    path = tmp_path / "one-race.csv"
    frame = pd.DataFrame({"way": ["a", "b", "c"], "regret": [0.5, 1.0, 2.0]})
    write_replays(path, frame)
    pd.testing.assert_frame_equal(read_replays(path), frame)
    lines = path.read_text().splitlines(keepends=True)
    for cut in ("", lines[0], "".join(lines[:3]), "".join(lines)[:-3], "way,regret\na,0.5\n"):
        path.write_text(cut)
        with pytest.raises(InputError, match=r"one-race.csv isn't whole; delete it and .* replay"):
            read_replays(path)


def test_the_race_in_short_says_when_a_way_is_good_enough(table):
    ways = {"soon": (2.0, 0.4, 0.1), "never": (2.0, 1.0, 0.9)}
    replays, searches = recorded([table.name], ways, (4.5, 9.0, 18.0)), {table.name: 18}
    frame = race_summary(replays, searches).set_index("way")
    assert frame["cost_to_half_point"].to_dict() == {"soon": 9.0, "never": math.inf}
    assert frame.loc["soon", "regret_quarter"] == 2.0
    assert frame.loc["never", "regret_full"] == 0.9
    assert frame["dataset"].unique() == ["cifar10"]
    line = sooner(replays, "soon", searches).iloc[0]
    assert line["rival"] == "never"
    assert line["ratio"] == pytest.approx(2)  # a whole search stands for never
    far = behind(replays, "never", searches).set_index("share")
    assert far["points"].round(4).to_dict() == {0.25: 0.0, 0.5: 0.6, 1.0: 0.8}
    assert set(far["rival"]) == {"soon"}


@pytest.mark.parametrize(("first", "pooled"), [("one", True), (f"{DESIGNED_ON}-resnet56", False)])
def test_three_tables_not_designed_on_have_a_mean_of_their_ratios(first, pooled):
    names = (first, "two", "three")
    replays = recorded(names, {"ours": (0.1, 0.1), "theirs": (2.0, 0.1)}, (4.0, 12.0))
    frame = sooner(replays, "ours", dict.fromkeys(names, 18))
    assert frame["ratio"].to_numpy() == pytest.approx(3)
    assert len(frame) == 3 + pooled


def test_ways_are_compared_over_the_tables_that_they_were_not_chosen_on():
    networks = ("resnet20", "resnet56", "vgg16_bn")
    lines = [("rare", "cifar100", "resnet20", 1.0, 0.0, 0.0, 0.0)]  # others lack it
    for network in networks:
        lines += [
            ("late", DESIGNED_ON, network, 1.0, 0.0, 0.0, 0.0),
            ("silent", "cifar100", network, math.inf, math.nan, 1.0, 0.0),
            ("late", "cifar100", network, math.inf, 9.0, 1.0, 0.1),
            ("steady", "cifar100", network, 3.0, 2.0, 0.4, 0.4),
        ]
    columns = ["way", "dataset", "network", "cost_to_half_point"]
    columns += [f"regret_{part}" for part in ("quarter", "half", "full")]
    searches = {f"{name}-{own}": 6 for name in (DESIGNED_ON, "cifar100") for own in networks}
    frame = overall(pd.DataFrame(lines, columns=columns), searches).set_index("way")
    assert frame.index.tolist() == ["steady", "late", "silent"]
    assert set(frame["tables"]) == {3}
    assert frame["time"].to_dict() == pytest.approx({"steady": 0.5, "late": 1.0, "silent": 1.0})
    assert frame.loc["late", "regret_quarter"] == 9.0
    assert math.isnan(frame.loc["silent", "regret_quarter"])


def test_the_papers_experiments_save_what_the_formula_says():
    small = made_table("cifar10-resnet56")
    frame = cells(small, samplers={"tpe": 2}, trials=20)
    assert frame["draw"].tolist() == [1, 0, 2, 0]
    share = epoch_costs(small).set_index("entrant").loc["snip@0.25", "time"]
    build = small.costs["snip@0.25"].build / small.whole
    expected = saving(20, 3, share, build=build)
    assert frame["saved_verified"].to_numpy() == pytest.approx(expected, abs=0.01)
    lost = regrets(small)
    assert interpolated(small, lost, {"lr": small.regime.lr[5]}) == pytest.approx(lost[5])


def test_each_switch_of_the_released_code_has_its_line(table):
    frame = switches(table, studies=3).set_index("switch")
    assert list(frame.index) == [*SWITCHES, AS_RELEASED]
    assert frame.loc["trial pruner never asked", "saved"] == pytest.approx(
        100 * saving(18, 3, 0.553, build=0.0), abs=3
    )
    assert frame.loc["not verified on N_B", "optimism"] < 0  # the stand-in's own accuracy is lower


def test_a_search_on_the_test_split_reports_the_test_split_verified_or_not(table):
    def easier(curves):
        return replace(curves, test=curves.test + 0.2)  # so that one sees which split is reported

    entrants = {name: easier(curves) for name, curves in table.entrants.items()}
    easy = replace(table, entrants=entrants, verification=easier(table.verification))
    reported = switches(easy, studies=3).set_index("switch")["reported"]
    assert reported["chosen on the test split"] > reported["corrected"] + 10
    assert reported[AS_RELEASED] > reported["not verified on N_B"] + 10


def test_what_is_true_of_a_choice_is_its_own_mean(table):
    level = replace(table, truth=np.full_like(table.truth, 0.5))
    assert switches(level, studies=2)["true"].to_numpy() == pytest.approx(50)


def test_what_is_true_of_a_choice_is_redrawn_with_the_table(table):
    truth = np.full_like(table.truth, 0.5)
    truth[:, ::2] += 0.2  # all configurations are alike, their seeds aren't
    frame = switches(replace(table, truth=truth), studies=8)
    assert frame["true_se"].min() > 0


def test_a_table_that_is_not_timed_ranks_without_costs():
    whole = made_table("cifar10-resnet56")
    untimed = replace(whole, steps=pd.DataFrame(columns=["entrant"]))
    frame = agreement(untimed, ["uniform@0.25"], draws=3)
    assert frame["cost"].isna().all()
    assert np.isfinite(frame["estimate"]).all()


def test_other_plans_are_set_beside_weight_seeds():
    rng = np.random.default_rng(0)
    cells = [(lr, seed, plan) for lr in (0, 3) for seed, plan in ((0, 0), (0, 1), (0, 2), (1, 0))]
    rows = pd.DataFrame(cells, columns=["level_lr", "seed", "plan"])
    rows = rows.assign(proxy="snip@0.25", purpose="curve", level_weight_decay=0)
    rows["val_accuracy"] = rng.normal(0.5, 0.01, len(rows))
    elsewhere = rows.iloc[:1].assign(level_lr=1, val_accuracy=0.1)  # has the first plan alone
    (line,) = plans(pd.concat([rows, elsewhere])).to_dict("records")
    points = 100 * rows["val_accuracy"].to_numpy().reshape(2, 4)
    by_plan, by_seed = points[:, :3].var(1, ddof=1).mean(), points[:, [0, 3]].var(1, ddof=1).mean()
    assert line["plan_sd"] == pytest.approx(by_plan**0.5)
    assert line["seed_sd"] == pytest.approx(by_seed**0.5)
    low, high = (line["ratio"] / line[end] for end in ("high", "low"))
    assert (low, high) == pytest.approx(stats.f(4, 2).interval(0.95))
    (alone,) = plans(rows[rows["seed"] == 0]).to_dict("records")
    assert alone["plan_sd"] == line["plan_sd"]
    assert np.isnan([alone[key] for key in ("seed_sd", "ratio", "low", "high")]).all()
    assert plans(rows[rows["plan"] == 0]).empty


def test_a_learning_rate_is_corrected_by_the_other_tables_of_its_network():
    tables = {name: made_table(name) for name in ("cifar10-resnet20", "cifar100-resnet20")}
    tables["cifar10-vgg16_bn"] = made_table("cifar10-vgg16_bn")  # has no other table
    known = {"view": "snip@0.25", "lost": 3.0, "best": np.log2(LR[8])}
    shifts = pd.DataFrame([known | {"table": name, "shift": 1.5} for name in tables])
    shifts.loc[1, "shift"] = 2.25  # three levels of the grid, by which the first is corrected
    first, second = corrections(tables, shifts, "snip@0.25").to_dict("records")
    base = 100 * tables["cifar10-resnet20"].trainings("base").final[: len(LR)].mean(1)
    assert (first["table"], first["expected"]) == ("cifar10-resnet20", 2.25)
    assert first["gain"] == pytest.approx(base[5] - base[8])
    assert first["lost_corrected"] == pytest.approx(3.0 - first["gain"])
    assert (second["table"], second["expected"]) == ("cifar100-resnet20", 1.5)
    assert corrections(tables, shifts[2:], "snip@0.25").empty


def test_a_damaged_table_is_named_and_not_left_out(tmp_path):
    folder = tmp_path / "curves"
    folder.mkdir()
    path = folder / "cifar10-resnet20.csv"
    write_rows(path, made_rows())
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:9], "<<<<<<< HEAD", *lines[9:]]) + "\n")
    with pytest.raises(InputError, match=r"cifar10-resnet20\.csv"):
        _ = Evidence(folder).tables
