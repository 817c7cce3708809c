import numpy as np
import pandas as pd
import pytest
from made_rows import IDENTITY, PROXY, experiment, frame, ranking, rival, row
from scipy import stats

from proxyhpo.analysis import bootstrap, power
from proxyhpo.analysis.bootstrap import MEASURES
from proxyhpo.analysis.cost import clock, incumbent, ledger, speedup, ways
from proxyhpo.analysis.power import detectable
from proxyhpo.analysis.quality import at_equal_time, final_quality, rival_differences, rivals
from proxyhpo.analysis.ranking import (
    CEILING,
    frontier,
    learning_rate_shift,
    proxy_differences,
    rank_correlation,
)

ONE = np.ones((1, 4))


# -- arrays -------------------------------------------------------------------------------------


def test_resamples_are_seeded_and_draw_n_of_n():
    counts = bootstrap.resamples(7)
    assert counts.shape == (2000, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.1)
    assert not np.array_equal(counts, bootstrap.resamples(7, seed=1))
    bootstrap.resamples.cache_clear()
    assert np.array_equal(counts, bootstrap.resamples(7))


def test_an_interval_leaves_out_resamples_without_a_value():
    values = np.arange(101.0)
    assert bootstrap.interval(values).tolist() == [2.5, 97.5]
    assert bootstrap.interval(np.append(values, np.nan)).tolist() == [2.5, 97.5]
    several = bootstrap.interval(np.column_stack([values, np.full(101, np.nan)]))
    assert several[:, 0].tolist() == [2.5, 97.5]
    assert np.isnan(several[:, 1]).all()


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(5, 1, 100)
    mean, low, high = bootstrap.mean_interval(values)
    assert mean == values.mean()
    assert [low, high] == pytest.approx([mean - 0.196, mean + 0.196], abs=0.04)
    assert np.isnan(bootstrap.mean_interval([3.0])[1:]).all()
    assert np.isnan(bootstrap.mean_interval([])).all()


def test_the_standard_error_of_a_mean_is_that_of_the_textbook():
    for n in (5, 100):
        values = np.random.default_rng(n).normal(size=n)
        drawn = bootstrap.resamples(n) @ values / n
        expected = values.std(ddof=1) / np.sqrt(n)
        assert bootstrap.standard_error(drawn, n) == pytest.approx(expected, rel=0.05)
    assert np.isnan(bootstrap.standard_error(np.ones(5), 1))
    assert np.isnan(bootstrap.standard_error(np.array([1.0, np.nan, np.nan]), 9))


@pytest.mark.parametrize("ties", [False, True])
def test_measures_of_resamples_are_those_of_the_drawn_items(ties):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 12))
    if ties:
        x, y = x.round(), y.round()
    counts = bootstrap.resamples(12)[:50]
    for name, library in {"rho": stats.spearmanr, "tau": stats.kendalltau}.items():
        drawn = [np.repeat(np.arange(12), c.astype(int)) for c in counts]
        expected = [library(x[items], y[items]).statistic for items in drawn]
        assert MEASURES[name](x, y, counts) == pytest.approx(expected)


def test_rank_measures_of_a_constant_have_no_value():
    for name in ("rho", "tau"):
        assert np.isnan(MEASURES[name](np.arange(4.0), np.ones(4), ONE)).all()


def test_overlap_and_regret_by_hand():
    base, proxy = np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.5, 0.2, 0.6, 0.1])
    assert bootstrap.overlap(base, proxy, ONE, k=2) == pytest.approx([0.5])
    assert bootstrap.overlap(base, proxy, ONE, k=9) == pytest.approx([1.0])
    assert bootstrap.regret(base, proxy, ONE, k=1) == pytest.approx([20.0])
    assert bootstrap.regret(base, proxy, ONE, k=2) == pytest.approx([0.0])
    # a resample without the first: the proxy's best is still the third, N_B's the second
    counts = np.array([[0.0, 1, 3, 0]])
    assert bootstrap.regret(base, proxy, counts, k=1) == pytest.approx([10.0])
    # k counts configurations, however often each was drawn
    assert bootstrap.regret(base, proxy, counts, k=2) == pytest.approx([0.0])
    assert bootstrap.overlap(base, proxy, counts, k=1) == pytest.approx([0.0])


def test_better_half():
    assert bootstrap.better_half(np.array([0.1, 0.9, 0.5])).tolist() == [False, True, True]


def test_holm_by_hand():
    assert bootstrap.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert bootstrap.holm([0.6, np.nan, 0.7]) == pytest.approx([1.0, np.nan, 1.0], nan_ok=True)
    assert bootstrap.holm([]).tolist() == []


# -- cost ---------------------------------------------------------------------------------------


def hand_made(**identity):
    """One experiment whose sums are 60 seconds of trials on N_B and 30 on N_P."""
    cell = IDENTITY | identity
    proxy = cell | PROXY
    full = {"epochs": 9, "budget": 9, "samples": 10}
    base = full | {"macs": 100} | cell
    half = full | {"macs": 50} | proxy
    return [
        row("data", 1.0, **cell),
        row("study", 10.0, trial=0, val_accuracy=0.5, **base),
        row("study", 20.0, trial=1, val_accuracy=0.9, **base | {"state": "stopped", "epochs": 3}),
        row("study", 30.0, trial=2, val_accuracy=0.7, **base),
        row("proxy", 2.0, proxy_seconds=1.5, **proxy),
        row("study", 5.0, trial=0, val_accuracy=0.6, **half),
        row("study", 10.0, trial=1, **half | {"state": "diverged", "epochs": 1}),
        row("study", 15.0, trial=2, **half | {"state": "failed", "epochs": 0}),
        row("verify", 6.0, trial=0, val_accuracy=0.65, **base),
        row("final", 12.0, trial=0, choice="base", test_accuracy=0.6, **base),
        row("final", 12.0, trial=1, choice="base", test_accuracy=0.8, **base),
        row("final", 9.0, trial=0, choice="proxy+verified", test_accuracy=0.5, **base),
        row("final", 8.0, trial=1, choice="proxy+verified", test_accuracy=0.6, **base),
        *ranking(n=3, **{k: v for k, v in identity.items() if k != "seed"}),
    ]


def test_ways_by_hand():
    parts = ways(frame(hand_made()))
    seconds = parts.groupby(["way", "purpose"])["wall_seconds"].sum().to_dict()
    assert seconds == {
        ("base", "data"): 1.0,
        ("base", "study"): 60.0,
        ("base", "final"): 12.0,
        ("proxy", "data"): 1.0,
        ("proxy", "proxy"): 2.0,
        ("proxy", "study"): 30.0,
        ("proxy", "verify"): 6.0,
        ("proxy", "final"): 9.0,
    }
    assert set(parts["proxy"]) == {"snip"}


def test_without_verification_the_proxys_own_choice_is_trained():
    rows = [r for r in hand_made() if r["purpose"] != "verify"]
    rows = [r | {"choice": r["choice"].replace("+verified", "")} for r in rows]
    parts = ways(frame(rows))
    final = parts[(parts["way"] == "proxy") & (parts["purpose"] == "final")]
    assert final["wall_seconds"].tolist() == [9.0]


def test_speedup_by_hand():
    (one,) = speedup(frame(hand_made())).to_dict("records")
    assert one["note"] == ""
    assert one["interval"] == "trials"
    assert one["reduction_search_wall"] == pytest.approx(100 * (1 - 32 / 60))
    assert one["reduction_hpo_wall"] == pytest.approx(100 * (1 - 38 / 60))
    assert one["reduction_total_wall"] == pytest.approx(100 * (1 - (1 + 38 + 9) / (1 + 60 + 12)))
    assert one["reduction_hpo_cpu"] == one["reduction_hpo_wall"]
    # a training step is three forward passes: 3 trials of 3 * 100 * 10 against 3 * 50 * 10
    assert one["hpo_base_macs"] == 9000
    assert one["search_proxy_macs"] == 4500
    assert one["reduction_search_macs"] == pytest.approx(50)
    assert one["reduction_hpo_macs"] == pytest.approx(100 * (1 - 7500 / 9000))
    states = [one[f"base_{s}"] for s in ("trials", "stopped", "diverged", "failed")]
    assert states == [3, 1, 0, 0]
    assert [one[f"proxy_{s}"] for s in ("stopped", "diverged", "failed")] == [0, 1, 1]
    assert one["base_epochs_saved"] == pytest.approx(100 * 6 / 27)
    # every trial costs the same MACs, so resampling trials changes nothing
    assert one["reduction_search_macs_low"] == one["reduction_search_macs_high"] == 50
    assert (
        one["reduction_hpo_wall_low"] < one["reduction_hpo_wall"] < one["reduction_hpo_wall_high"]
    )


def test_the_interval_over_trials_is_that_of_a_plain_bootstrap():
    (one,) = speedup(frame(experiment())).to_dict("records")
    rows = frame(experiment())
    base, proxy = (
        rows.loc[(rows["purpose"] == "study") & (rows["role"] == role), "wall_seconds"].to_numpy()
        for role in ("base", "proxy")
    )
    rng = np.random.default_rng(5)
    drawn = [
        1 - (2 + rng.choice(proxy, len(proxy)).sum()) / rng.choice(base, len(base)).sum()
        for _ in range(4000)
    ]
    expected = 100 * np.percentile(drawn, [2.5, 97.5])
    found = [one["reduction_search_wall_low"], one["reduction_search_wall_high"]]
    assert found == pytest.approx(expected, abs=0.1 * np.ptp(expected))


def test_seeds_are_pooled_by_their_sums():
    rows = frame(hand_made())
    slower = rows.assign(seed=1)
    slower.loc[(slower["role"] == "proxy"), "wall_seconds"] *= 2
    both = pd.concat([rows, slower])
    assert len(speedup(both)) == 2
    (one,) = speedup(both, pool_seeds=True).to_dict("records")
    assert (one["interval"], one["seeds"], one["base_trials"]) == ("seeds", 2, 6)
    assert one["search_base_wall"] == 60
    assert one["search_proxy_wall"] == 48
    assert one["reduction_search_wall"] == pytest.approx(20)
    low, high = one["reduction_search_wall_low"], one["reduction_search_wall_high"]
    assert [low, high] == pytest.approx([100 * (1 - 64 / 60), 100 * (1 - 32 / 60)])


@pytest.mark.parametrize(
    ("left_out", "note", "known"),
    [
        (lambda r: r["role"] == "proxy" and r["trial"] == 2, "3 trials on N_B, 2 on N_P", []),
        (lambda r: r["role"] == "proxy", "3 trials on N_B, 0 on N_P", []),
        (lambda r: r["purpose"] == "final", "no final training", ["search", "hpo"]),
    ],
)
def test_an_unfinished_experiment_is_not_compared(left_out, note, known):
    rows = frame(r for r in hand_made() if r["purpose"] == "ranking" or not left_out(r))
    (one,) = speedup(rows).to_dict("records")
    assert one["note"] == f"unfinished: {note}"
    for scope in ("search", "hpo", "total"):
        assert np.isfinite(one[f"reduction_{scope}_wall"]) == (scope in known)


def test_the_ledger_sums_to_all_seconds_of_every_experiment():
    rows = frame([*hand_made(), *experiment(sampler="gp"), *ranking(network="other")])
    table = ledger(rows)
    by = ["network", "sampler", "purpose"]
    sums = table.groupby(by)["seconds"].sum()
    pd.testing.assert_series_equal(sums, rows.groupby(by)["wall_seconds"].sum(), check_names=False)
    kinds = table[(table["purpose"] == "proxy") & (table["sampler"] == "tpe")]
    assert kinds.set_index("kind")["seconds"].to_dict() == {
        "proxy": 1.5, "train": 0, "eval": 0, "sampler": 0, "other": 0.5
    }  # fmt: skip


def test_incumbent_by_hand():
    curves = incumbent(frame(hand_made()))
    columns = ["way", "measured_on", "wall", "best"]
    assert curves[columns].to_numpy().tolist() == [
        ["base", "base", 10.0, 0.5],
        ["base", "base", 30.0, 0.5],  # stopped with a better accuracy: no incumbent
        ["base", "base", 60.0, 0.7],
        ["proxy", "proxy", 7.0, 0.6],
        ["proxy", "proxy", 17.0, 0.6],
        ["proxy", "proxy", 32.0, 0.6],
        ["proxy", "base", 38.0, 0.65],
    ]
    assert curves["macs"].tolist()[:3] == [3000, 6000, 9000]


def test_final_quality_by_hand():
    other = [r | {"test_accuracy": r["test_accuracy"] + 0.1} for r in hand_made(seed=1)]
    rows = frame([*hand_made(), *other])
    table = final_quality(rows).set_index("choice")
    assert table["n"].tolist() == [4, 4, 4]
    assert table["test_accuracy"].tolist() == pytest.approx([0.75, 0.6, 0.6])
    # pairs of trainings lose 10, 20, 10 and 20 points
    assert table["regret"].tolist() == pytest.approx([0, 15, 15])
    assert (
        9.9 < table.loc["verified", "regret_low"] < 15 < table.loc["verified", "regret_high"] < 20.1
    )
    assert table.loc["base", "regret_high"] == 0


def test_a_final_training_that_diverged_counts_as_nothing_right():
    rows = frame(hand_made())
    last = rows["choice"] == "proxy+verified"
    rows.loc[last, ["state", "test_accuracy"]] = ["diverged", np.nan]
    table = final_quality(rows).set_index("choice")
    assert table.loc["verified", "test_accuracy"] == 0
    assert table.loc["verified", "regret"] == pytest.approx(70)


# -- trust --------------------------------------------------------------------------------------


def ranked_by_hand():
    accuracies = {
        ("base", "", 0.0, 3): [0.9, 0.8, 0.6, 0.5, 0.3],
        ("base", "", 0.0, 4): [0.8, 0.9, 0.6, 0.5, 0.4],
        ("proxy", "snip", 0.5, 4): [0.6, 0.7, 0.8, 0.2, 0.5],
        ("proxy", "snip", 0.5, 5): [0.9, 0.8, 0.7, 0.6, 0.5],  # not its first seed: not used
    }
    cell = IDENTITY | {"sampler": "", "macs": 10, "samples": 10}
    rows = []
    for (role, proxy, ratio, seed), values in accuracies.items():
        who = cell | {"role": role, "proxy": proxy, "pruning_ratio": ratio, "seed": seed}
        for index, value in enumerate(values):
            seconds = 4.0 if role == "proxy" else 10.0
            named = {"config_id": f"c{index}", "val_accuracy": value}
            rows.append(row("ranking", seconds, **who | named))
    return rows


def lines_of(rows):
    table = rank_correlation(frame(rows))
    return {(one["proxy"], one["pruning_ratio"]): one for one in table.to_dict("records")}


def test_rank_correlation_by_hand():
    lines = lines_of(ranked_by_hand())
    snip, ceiling = lines["snip", 0.5], lines[CEILING, 0.0]
    # ranks 5 4 3 2 1 against 3 4 5 1 2: sum of squared differences 4 + 0 + 4 + 1 + 1
    assert snip["rho"] == pytest.approx(1 - 6 * 10 / (5 * 24))
    assert snip["tau"] == pytest.approx((6 - 4) / 10)
    # better half 0.9 0.8 0.6 against 0.6 0.7 0.8: turned round
    assert (snip["n"], snip["n_half"]) == (5, 3)
    assert snip["rho_half"] == pytest.approx(-1)
    assert snip["tau_half"] == pytest.approx(-1)
    assert snip["regret1"] == pytest.approx(30)
    assert snip["regret3"] == pytest.approx(0)
    assert snip["overlap"] == 1
    assert snip["share_wall"] == pytest.approx(0.4)
    assert snip["share_macs"] == pytest.approx(1)
    assert ceiling["rho"] == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert ceiling["regret1"] == pytest.approx(10)
    for one in lines.values():
        for name in ("rho", "tau", "rho_half", "overlap", "regret1", "regret3"):
            assert one[f"{name}_low"] <= one[name] <= one[f"{name}_high"]


def test_a_diverged_run_comes_last_and_a_failed_one_leaves_its_configuration_out():
    rows = ranked_by_hand()
    diverged = [r | {"state": "diverged", "val_accuracy": 0.99} if i == 12 else r
                for i, r in enumerate(rows)]  # fmt: skip
    snip = lines_of(diverged)["snip", 0.5]
    assert snip["n_diverged"] == 1
    # the proxy's 0.8 has become its worst: 5 4 3 2 1 against 4 5 1 2 3
    assert snip["rho"] == pytest.approx(1 - 6 * (1 + 1 + 4 + 0 + 4) / (5 * 24))
    failed = [r | {"state": "failed"} if i == 12 else r for i, r in enumerate(rows)]
    # its second seed takes its place for that configuration
    assert lines_of(failed)["snip", 0.5]["n"] == 5
    failed = [r | {"state": "failed"} if r["config_id"] == "c2" and r["role"] == "proxy" else r
              for r in rows]  # fmt: skip
    assert lines_of(failed)["snip", 0.5]["n"] == 4
    assert lines_of(failed)[CEILING, 0.0]["n"] == 5


def test_the_noise_ceiling_never_compares_a_run_with_itself():
    rows = [r for r in ranked_by_hand() if r["role"] == "base"]
    assert set(lines_of(rows)) == {(CEILING, 0.0)}
    assert lines_of([r for r in rows if r["seed"] == 3]) == {}


def test_tables_do_not_depend_on_the_order_of_rows():
    rows = frame([*experiment(), *ranking()])
    mixed = rows.sample(frac=1, random_state=0)
    for table in (speedup, rank_correlation, incumbent):
        pd.testing.assert_frame_equal(table(rows), table(mixed))
    for table in (ledger, final_quality):
        pd.testing.assert_frame_equal(table(rows), table(mixed), rtol=1e-12)


def test_proxy_differences_are_paired_and_corrected():
    stand_ins = {("snip", 0.5): (0.01, 0.5), ("uniform", 0.5): (0.5, 0.5), ("random", 0.9): (1, 1)}
    table = proxy_differences(frame(ranking(stand_ins, n=30)))
    pairs = set(zip(table["proxy"], table["against"], strict=True))
    ceiling = CEILING
    # random was made for another cost, and is a control itself
    assert pairs == {("snip", "uniform")} | {(p, ceiling) for p in ("snip", "uniform", "random")}
    snip = table[table["against"] == "uniform"].to_dict("records")[0]
    lines = rank_correlation(frame(ranking(stand_ins, n=30))).set_index("proxy")["rho"]
    assert snip["difference"] == pytest.approx(lines["snip"] - lines["uniform"])
    assert 0 < snip["difference_low"] < snip["difference"] < snip["difference_high"]
    assert snip["p"] < 0.0005  # which 2,000 resamples couldn't tell
    assert table["p_holm"].tolist() == pytest.approx(bootstrap.holm(table["p"]))
    assert (table["p_holm"] >= table["p"]).all()


def test_a_stand_in_that_equals_its_rival_does_not_differ():
    rows = ranking({("snip", 0.5): (0.05, 0.5)})
    rows += [r | {"proxy": "uniform"} for r in rows if r["role"] == "proxy"]
    table = proxy_differences(frame(rows), "regret1")
    one = table[table["against"] == "uniform"].to_dict("records")[0]
    assert [one[k] for k in ("difference", "difference_low", "difference_high", "p")] == [
        0,
        0,
        0,
        1,
    ]


def test_the_shift_of_the_learning_rate_by_hand():
    rows = ranked_by_hand()
    for r in rows:
        r["param_lr"] = 2.0 ** -int(r["config_id"][1])
    table = learning_rate_shift(frame(rows)).set_index("proxy")
    # N_B's best are c0 c1 c2, snip's c2 c1 c0, N_B reseeded's c1 c0 c2: of the single best, c2
    assert table["shift"].to_dict() == {CEILING: 0, "snip": 0}
    assert table["shift_top"].to_dict() == {CEILING: -1, "snip": -2}
    assert table.loc["snip", "shift_top_low"] <= -2 < table.loc["snip", "shift_top_high"]
    assert table.loc["snip", ["n", "share_macs"]].tolist() == [5, 1]
    assert learning_rate_shift(frame(ranked_by_hand())).empty  # none was searched for
    for r in rows:  # the proxy's worst two become its best: c3 and c4 in place of c1 and c0
        r["val_accuracy"] += 0.55 * (r["role"] == "proxy" and r["config_id"] in ("c3", "c4"))
    table = learning_rate_shift(frame(rows)).set_index("proxy")
    assert table.loc["snip", "shift"] == pytest.approx((-4 - 3 - 2) / 3 + 1)


def test_the_better_half_is_compared_within_it():
    rows = frame(ranking({("snip", 0.5): (0.01, 0.5), ("uniform", 0.5): (0.5, 0.5)}, n=30))
    table = proxy_differences(rows, "rho_half").set_index(["proxy", "against"])
    lines = rank_correlation(rows).set_index("proxy")["rho_half"]
    one = table.loc["snip", "uniform"]
    assert one["n"] == 15
    assert one["difference"] == pytest.approx(lines["snip"] - lines["uniform"])


def test_the_frontier_leaves_out_what_a_cheaper_one_equals():
    table = pd.DataFrame(
        {
            "proxy": ["a", "b", "c", "d", CEILING, "e"],
            "share_cpu": [0.1, 0.2, 0.3, 0.1, 0.05, 0.4],
            "rho": [0.5, 0.5, 0.7, 0.4, 0.99, np.nan],
        }
    )
    assert frontier(table, "rho", "cpu")["proxy"].tolist() == ["a", "c"]


# -- found, by when, and against what -----------------------------------------------------------


def test_time_is_cpu_time_where_others_kept_the_machine_busy():
    rows = frame(experiment())
    assert clock(rows) == "wall"
    assert clock(rows.assign(load=2.0)) == "cpu"
    assert clock(rows.assign(load=2.0, threads=2)) == "wall"
    assert clock(rows.assign(load=np.nan)) == "wall"


def test_at_equal_time_by_hand():
    # N_P and verification take 38 seconds; by then N_B's own HPO has 0.5, at the end 0.7
    (one,) = at_equal_time(frame(hand_made())).to_dict("records")
    names = ("unit", "spent", "base_then", "base_end", "verified", "settled", "n", "empty_handed")
    assert [one[k] for k in names] == ["wall", 38, 0.5, 0.7, 0.65, 0, 1, 0]
    assert [one["equal_time"], one["equal_trials"]] == pytest.approx([15, -5])
    assert np.isnan(one["equal_time_low"])
    # in MACs 7500 are spent, N_B's third trial ends at 9000
    (one,) = at_equal_time(frame(hand_made()), "macs").to_dict("records")
    assert [one["spent"], one["base_then"]] == [7500, 0.5]


def test_at_equal_time_over_seeds():
    slow = [r | {"wall_seconds": 100.0} if r["purpose"] == "verify" else r
            for r in hand_made(seed=1)]  # fmt: skip
    none = [r | {"wall_seconds": 99.0} if r["role"] == "base" and r["purpose"] == "study" else r
            for r in hand_made(seed=2)]  # fmt: skip
    (one,) = at_equal_time(frame([*hand_made(), *slow, *none])).to_dict("records")
    assert (one["n"], one["empty_handed"], one["settled"]) == (2, 1, 1)
    assert one["equal_time"] == pytest.approx((15 - 5) / 2)
    assert [one["equal_time_low"], one["equal_time_high"]] == pytest.approx([-5, 15])


def test_rivals_by_hand():
    lean = [r for r in hand_made(sampler="best_k") if r["role"] == "base"]
    lean = [r for r in lean if r["purpose"] in ("data", "study") or r["choice"] == "base"]
    for r in lean:
        r["wall_seconds"] /= 2
    more = [r | {"test_accuracy": r["test_accuracy"] + 0.1} for r in hand_made(seed=1)]
    rows = frame([*hand_made(), *more, *lean])
    table = rivals(rows).set_index(["sampler", "way"])
    names = ["n", "wall", "macs", "test_accuracy"]
    assert table.loc[("tpe", "base"), names].tolist() == pytest.approx([2, 60, 9000, 0.75])
    assert table.loc[("tpe", "proxy"), names].tolist() == pytest.approx([2, 38, 7500, 0.6])
    assert table.loc[("best_k", "base"), names].tolist() == pytest.approx([1, 30, 9000, 0.7])
    assert ("best_k", "proxy") not in table.index
    bounds = table.loc[("tpe", "proxy"), ["test_accuracy_low", "test_accuracy_high"]].tolist()
    assert bounds == pytest.approx([0.55, 0.65])
    against = rival_differences(rows).set_index("against")
    # paired by seed: best k has only the first
    assert against["n"].to_dict() == {"best_k": 1, "tpe": 2}
    assert against["share"].to_dict() == pytest.approx({"best_k": 38 / 30, "tpe": 38 / 60})
    assert against["difference"].to_dict() == pytest.approx({"best_k": -15, "tpe": -15})


def test_an_experiment_on_the_base_network_alone_is_neither_compared_nor_unfinished():
    rows = frame([*experiment(), *rival("hyperband", rng=1)])
    assert speedup(rows)["sampler"].tolist() == ["tpe"]
    assert set(incumbent(rows)["sampler"]) == {"tpe", "hyperband"}
    unfinished = rows[(rows["sampler"] == "tpe") | (rows["purpose"] != "final")]
    notes = speedup(unfinished).set_index("sampler")["note"].to_dict()
    assert notes == {"hyperband": "unfinished: 12 trials on N_B, 0 on N_P", "tpe": ""}


# -- power --------------------------------------------------------------------------------------


def test_the_smallest_difference_is_found_in_four_of_five_repetitions():
    rng = np.random.default_rng(0)
    for n in (3, 10, 40):
        wanted = power.smallest_difference(1 / np.sqrt(n), n)
        drawn = rng.normal(wanted, 1, (4000, n))
        found = stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05
        assert found.mean() == pytest.approx(0.8, abs=0.06)
    assert power.smallest_difference(1.0, 10**6) == pytest.approx(2.80, abs=0.01)
    assert power.smallest_difference(1.0, 3) == pytest.approx(5.36, abs=0.01)
    assert np.isnan(power.smallest_difference(1.0, 1))
    assert np.isnan(power.smallest_difference(0.0, 9))


def test_what_was_compared_has_its_n_and_what_it_could_have_shown():
    rows = frame([*(r for seed in range(3) for r in experiment(seed=seed, rng=seed)), *ranking()])
    table = detectable(rows).set_index("quantity")
    saved = table.loc["reduction of wall-clock time, verified"]
    (speed,) = speedup(rows, pool_seeds=True).to_dict("records")
    assert (saved["n"], saved["items"], saved["seen"]) == (3, "seeds", speed["reduction_hpo_wall"])
    assert saved["detectable"] == pytest.approx(5.36 * speed["reduction_hpo_wall_se"], rel=0.01)
    rho = table.loc["rho less that of uniform"]
    assert (rho["n"], rho["items"], rho["proxy"]) == (24, "configurations", "snip")
    assert rho["detectable"] > 2.8 * rho["se"] > 0
    assert table.loc["rho over the better half less that of uniform", "n"] == 12
    assert table.loc["test accuracy lost with the proxy's choice", "n"] == 3


def test_no_rows_give_empty_tables():
    none = frame([row("data")]).head(0)
    for table in (
        ways,
        speedup,
        ledger,
        incumbent,
        rank_correlation,
        proxy_differences,
        final_quality,
        at_equal_time,
        rivals,
        rival_differences,
        learning_rate_shift,
        detectable,
    ):
        assert table(none).empty
