import numpy as np
import pytest
from made_rows import TRUST, experiment, frame, ranking, rival, row

from proxyhpo.config import PROFILES, Experiment
from proxyhpo.report import tables as report

FAILS, OPEN, HOLDS = "claim does not hold", "can't tell", "Where it holds"


def parts(rows):
    """The verdict by its three parts."""
    text = report.verdict(frame(rows))
    assert text.index(FAILS) < text.index(OPEN) < text.index(HOLDS)
    before, rest = text.split(OPEN)
    return dict(zip((FAILS, OPEN, HOLDS), [before, *rest.split(HOLDS)], strict=True))


def test_a_cell_without_rows_says_not_run():
    grid = [Experiment("digits", "resnet8", s, PROFILES["laptop"]) for s in ("tpe", "gp")]
    table = report.summary(frame([*experiment(), *ranking()]), grid)
    assert table["status"].tolist() == ["not run", "run"]
    assert table["sampler"].tolist() == ["gp", "tpe"]
    lines = report.summary_markdown(table).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].count("not run") == lines[2].count("|") - 4
    assert "not run" not in lines[3]


def test_the_table_says_what_the_statistics_say():
    rows = frame([*experiment(share=0.1, trials=30), *ranking()])
    (one,) = report.summary(rows).to_dict("records")
    text = report.summary_markdown(report.summary(rows))
    assert one["reduction"] > 50
    assert f"| {one['reduction']:.0f} % [" in text
    assert f"| {one['rho']:.2f} [{one['rho_low']:.2f}, {one['rho_high']:.2f}] |" in text
    assert f"| {one['test_verified']:.1%} |" in text
    assert "30 x 1" in text


def test_an_unfinished_experiment_says_so_in_place_of_a_reduction():
    rows = [r for r in experiment() if r["role"] == "base" and r["purpose"] == "study"]
    assert "unfinished: 12 trials on N_B, 0 on N_P" in report.summary_markdown(
        report.summary(frame(rows))
    )


def test_a_reduction_under_that_of_the_paper_comes_first():
    few = parts(experiment(share=0.8, trials=30))
    assert "saves under 37 % of the wall-clock time (paper: up to 37 %) in 1 of 1" in few[FAILS]
    assert "verified on N_B, saves at least" not in few[HOLDS]
    much = parts(experiment(share=0.1, trials=60))
    assert "saves at least 37 % of the wall-clock time (paper: up to 37 %) in 1 of 1" in much[HOLDS]
    assert "saves under" not in much[FAILS]
    assert "unverified as in the paper, saves at least 37 %" in much[HOLDS]
    longer = parts(experiment(share=2.0, trials=30))
    assert "saves at least" not in longer[HOLDS]
    assert "It takes longer than HPO on N_B in 1 of 1" in longer[FAILS]


@pytest.mark.parametrize(("snip", "uniform", "ahead"), [(0.01, 0.5, True), (0.03, 0.03, False)])
def test_a_proxy_that_is_not_ahead_of_uniform_width_is_named(snip, uniform, ahead):
    rows = ranking({("snip", 0.5): (snip, 0.5), ("uniform", 0.5): (uniform, 0.5)}, n=30)
    told = parts(rows)
    assert ("isn't shown to be ahead of uniform" in told[FAILS]) != ahead
    assert ("is ahead of uniform at equal target cost" in told[HOLDS]) == ahead


def test_a_proxy_that_ranks_by_chance_is_worse_than_noise():
    told = parts(ranking({("snip", 0.5): (3.0, 0.5)}, n=40))
    by = "(difference of rho; p after Holm's correction)"
    assert f"Worse than N_B reseeded, above noise {by}, in 1 of 1" in told[FAILS]
    assert "], p 0.0" in told[FAILS]
    assert "isn't shown to rank at all in 1 of 1" in told[FAILS]
    good = parts(ranking({("snip", 0.5): (0.01, 0.5)}, n=40))
    assert "ranks better than chance in 1 of 1" in good[HOLDS]
    assert "Worse than" not in good[FAILS]


def test_claims_are_counted_as_the_sentences_count_them():
    rows = [*experiment(share=2.0, trials=30), *ranking(n=30)]
    told, judged = parts(rows), report.judge(frame(rows))
    for counts in judged.claims.values():
        whole = sum(counts)
        for title, count in zip((FAILS, OPEN, HOLDS), counts, strict=True):
            assert not count or f"in {count} of {whole}: " in told[title]
    (unverified, verified, *_) = judged.claims.items()
    assert "unverified as in the paper, saves at least 37 %" in unverified[0]
    assert unverified[1] == verified[1] == (1, 0, 0)
    table = report.claims_markdown(judged.claims).splitlines()
    assert len(table) == 2 + len(judged.claims)
    assert table[2].endswith("| 1 of 1 | - | - |")


def test_few_configurations_and_few_seeds_are_said():
    told = parts([*experiment(), *ranking(n=8)])[OPEN]
    assert "Under 24 configurations are ranked" in told
    assert "n = 8" in told
    assert "Under 3 seeds" in told
    assert "n = 1" in told


def test_seconds_of_a_machine_that_was_busier_on_one_side_are_doubted():
    rows = experiment()
    assert "busier" not in parts(rows)[OPEN]
    busy = [r | {"load": 4.0} if r["role"] == "proxy" else r for r in rows]
    assert "(load averages) in 1 of 1: digits / resnet8 / tpe 1.0 and 4.0" in parts(busy)[OPEN]


def final_rows(loss, seeds):
    rng = np.random.default_rng(0)
    return [
        row("final", choice=choice, seed=seed, test_accuracy=0.9 - lost + rng.normal(0, 0.001))
        for seed in range(seeds)
        for choice, lost in (("base", 0.0), ("proxy", loss))
    ]


@pytest.mark.parametrize(
    ("loss", "seeds", "part", "words"),
    [
        (0.03, 5, FAILS, "loses test accuracy in 1 of 1"),
        (0.0, 5, HOLDS, "loses under one point in 1 of 1"),
        (0.03, 1, OPEN, "can't be told from noise in 1 of 1"),
    ],
)
def test_accuracy_that_is_lost_above_noise_is_said(loss, seeds, part, words):
    told = parts(final_rows(loss, seeds))
    assert [name for name in told if words in told[name]] == [part]


def test_a_smoke_run_is_no_evidence_and_no_rows_are_no_knowledge():
    assert report.verdict(frame(experiment(profile="smoke"))).startswith(
        "**smoke run: not evidence"
    )
    assert "smoke" not in report.verdict(frame(experiment()))
    told = parts([row("data")])
    assert told[OPEN].count("nothing is known") == 3
    assert "nothing recorded" in told[FAILS]


def seeds(make, count=3, **more):
    return [r for seed in range(count) for r in make(seed=seed, rng=seed, **more)]


@pytest.mark.parametrize(
    ("gain", "count", "part", "words"),
    [
        (-0.3, 3, FAILS, "At equal time N_B's own HPO had found better"),
        (0.3, 3, HOLDS, "At equal time HPO on N_P, verified, had found better"),
        (0.3, 2, OPEN, "At equal time neither is shown to be ahead"),
    ],
)
def test_what_was_found_at_equal_time_is_said(gain, count, part, words):
    rows = seeds(experiment, count, share=0.8)
    for r in rows:
        if r["purpose"] == "verify":
            r["val_accuracy"] = 0.65 + gain
    told = parts(rows)
    assert [name for name in told if words in told[name]] == [part]
    assert f"n = {count}; at equal trials" in told[part]


def test_a_rival_that_is_as_cheap_and_as_good_comes_first():
    rows = seeds(experiment, share=0.8)
    assert "No way without a proxy is recorded beside it" in parts(rows)[OPEN]
    lean = [r | {"wall_seconds": r["wall_seconds"] / 4} for r in seeds(rival, sampler="best_k")]
    beaten = parts([*rows, *(r | {"test_accuracy": 0.95} for r in lean)])
    assert (
        "A way without a proxy takes no longer than HPO on N_P and ends no worse" in beaten[FAILS]
    )
    assert "against best k after one epoch" in beaten[FAILS]
    assert "isn't finished" not in beaten[OPEN]
    dear = [r | {"wall_seconds": r["wall_seconds"] * 4} for r in seeds(rival, sampler="random")]
    ahead = parts([*rows, *(r | {"test_accuracy": 0.5} for r in dear)])
    assert "HPO on N_P takes less time than a way without a proxy" in ahead[HOLDS]
    trade = parts([*rows, *(r | {"test_accuracy": 0.95} for r in dear)])
    assert "trade time for accuracy" in trade[OPEN]


def test_the_verdict_says_what_these_n_could_have_shown():
    told = parts([*seeds(experiment), *ranking()])[OPEN]
    (line,) = [line for line in told.splitlines() if "80 % power" in line]
    for quantity in ("rho less that of uniform", "rho less that of N_B reseeded", "reduction of"):
        assert quantity in line
    assert "With n = 3 to 24" in line


def test_trust_for_a_second_follows_the_table():
    rows = frame(ranking(TRUST, network="resnet20"))
    words, table = report.trust_words(rows), report.trust_markdown(rows)
    assert "of 6 pruned proxies, none ahead of uniform" in words
    assert "epochs 25 % (18 % of the time, rho" in words  # the cheapest leads the way
    assert table.count("\n") == 2 + 16
    assert table.splitlines()[2].startswith("| digits, resnet20 | N_B reseeded | 24 | 100 | 100 |")
    bold = [line.split("|")[2].strip(" *") for line in table.splitlines() if "**" in line]
    for name in bold:
        assert f"{name} (" in words
    worse = [r | {"val_accuracy": 0.5 - r["val_accuracy"] / 2} if r["proxy"] == "snip" else r
             for r in ranking(TRUST)]  # fmt: skip
    assert "behind it" in report.trust_words(frame(worse))
    assert "3 (snip 50 %, snip 25 %, snip 10 %) behind it" in report.trust_words(frame(worse))


def test_tables_of_nothing_say_so():
    none = frame([row("data")])
    assert "No ranking study" in report.trust_words(none) + report.trust_markdown(none)
    assert "No final training" in report.rivals_markdown(none)
    assert "No experiment with verification" in report.equal_time_markdown(none)
    assert report.power_markdown(none).count("\n") == 2


def test_rivals_and_equal_time_as_tables():
    rows = frame([*seeds(experiment), *seeds(rival, sampler="best_k")])
    table = report.rivals_markdown(rows)
    assert "best k after one epoch on N_B | 3 |" in table
    assert "tpe on snip 50 %, verified | 3 |" in table
    assert "| digits / resnet8 / tpe | snip 50 % | 3 |" in report.equal_time_markdown(rows)


def test_names():
    assert report.label("imagefolder:/somewhere/my pictures/") == "my pictures"
    assert report.label("cifar10") == "cifar10"
    assert report.stand_in_label("snip", 0.75) == "snip 25 %"
