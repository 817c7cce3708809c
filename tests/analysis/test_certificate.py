"""What a certificate says of scores whose agreement is known."""

import math

import numpy as np
import pytest
from made_tables import made_table

from proxyhpo import InputError
from proxyhpo.analysis.certificate import AGAIN, CONFIGURATIONS, affordable, certificate
from proxyhpo.analysis.certified import NOT_ASKED, certified, certified_summary
from proxyhpo.analysis.ways import WINS_ON
from proxyhpo.report.certificate import certificate_figure

BASE = tuple(np.linspace(0.2, 0.8, 12))
CALM = ((0.8, 0.801),)


def made(base, other, again=CALM, share=0.1, trials=40, **options):
    return certificate(
        "uniform", list(zip(base, other, strict=True)), again, share, trials, **options
    )


def test_many_that_agree_are_enough_and_few_are_not():
    assert made(BASE, BASE).verdict == "use it"
    few = made(BASE[::3], BASE[::3])
    assert few.verdict == "verify k = 10"  # the best quarter is what four can tell apart
    assert few.rho[1] < 0
    assert "not bounded" in str(few)
    assert few.enough > few.n
    assert str(few.enough) in few.change


def test_an_order_contradicted_beyond_the_noise_is_not_followed():
    assert made(BASE, BASE[::-1]).verdict == "don't"
    noisy = made(BASE, BASE[::-1], again=((0.3, 0.8),))
    assert noisy.verdict != "use it"
    assert noisy.ceiling < 0.1
    assert noisy.regret[1] == 0
    unknown = made(BASE, BASE[::-1], again=())
    assert "beyond its noise" not in unknown.change
    assert unknown.regret[1:] == (0, math.inf)


def test_noise_that_one_pair_tells_of_hardly_ever_contradicts_equal_configurations():
    scores = np.random.default_rng(0).normal(0.5, 0.02, (2000, 6))
    beyond = [made(own[:4], range(4), again=[own[4:]]).regret[1] > 0 for own in scores]
    assert np.mean(beyond) < 0.1


def test_what_saves_no_time_is_not_followed():
    slow = made(BASE[::3], BASE[::3], share=0.9)
    assert slow.verdict == "don't"
    assert "less than 90%" in slow.change
    # 4 on both, 1 again, 10 verified: 15 trainings of N_B of 40, beside a tenth of the time
    assert made(BASE[::3], BASE[::3]).saved == pytest.approx(1 - 0.1 - 15 / 40)


def test_what_did_not_end_well_counts_for_nothing():
    found = made((*BASE, math.nan, 0.5), (*BASE, 0.5, math.nan), again=((0.5, math.nan),))
    assert found.n == 12
    assert math.isnan(found.noise)
    alike = made((0.5, 0.5), (0.5, 0.5))
    assert alike.agreement == "rho unknown, scores are alike"
    empty = made((math.nan,), (0.5,))
    assert empty.verdict == "don't"
    assert "configurations that train to the end" in str(empty)
    with pytest.raises(InputError, match="nothing to draw"):
        certificate_figure(empty)
    with pytest.raises(InputError, match=r"no certificate: .*certify=4"):
        certificate_figure(None)


def test_the_interval_holds_what_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        x = rng.normal(size=8)
        y = 0.5 * x + math.sqrt(0.75) * rng.normal(size=8)
        _, low, high = made(x, y, accuracy=False).rho
        held += low <= 6 / math.pi * math.asin(0.25) <= high
    assert held / 400 > 0.93


def test_the_figure_says_the_verdict_and_shows_every_configuration():
    figure = certificate_figure(made(BASE, BASE))
    (axes,) = figure.axes
    assert figure.get_suptitle().startswith("use it: a trial takes 10 % of N_B's time,\nrho 1.00 (")
    assert len(axes.lines[0].get_xdata()) == 12
    assert "uniform width" in axes.get_xlabel()
    few = certificate_figure(made(BASE[::3], BASE[::3])).get_suptitle()
    assert few.endswith("\n4 configurations can't bound the rank correlation")


@pytest.mark.parametrize(
    ("trials", "share", "earned"),
    [(8, 0.3, 0), (9, 0.3, 1), (9, 1 / 3, 1), (8, 1 / 3, 0), (8, 1 / 4, 1), (99, 1, 0)],
)
def test_a_certificate_is_asked_for_where_a_search_can_earn_it_back(trials, share, earned):
    assert affordable(trials, share) == bool(earned)
    spent = CONFIGURATIONS + AGAIN + 1 + share * trials  # one verification at the least
    assert (spent < trials + 1e-9) == bool(earned)


@pytest.mark.parametrize(
    ("name", "few", "short"), [("cifar10-resnet20", CONFIGURATIONS, 0), ("cifar10-resnet56", 3, 1)]
)
def test_certified_searches_pay_for_what_they_ask_and_lose_little_where_ranks_agree(
    name, few, short
):
    stand_in = WINS_ON
    table = made_table(name, noise=0.002)  # `tune` asks for half of the trials at most
    whole = certified(table, [stand_in, "snip@0.25"], studies=12)
    assert (whole.loc[whole["verdict"] == NOT_ASKED, "stand_in"] == stand_in).all()
    whole = whole[whole["stand_in"] == stand_in]
    trials = len(table.regime.configurations) // 2
    share = table.seconds(stand_in, table.curves(stand_in).epochs) / table.whole
    build = table.costs[stand_in].build / table.whole
    plain = whole[whole["verdict"] == NOT_ASKED]
    assert len(plain) == 12 * short
    assert (plain["verify"] == trials // 3).all()
    assert plain["cost"].to_numpy() == pytest.approx(trials * (share + 1 / 3) + build, abs=1e-3)
    frame = whole.drop(plain.index)
    assert set(frame["verdict"]) <= {"use it", "verify", "don't"}
    followed = frame[frame["verdict"] != "don't"]
    least = few + AGAIN + trials * share
    assert (followed["cost"] >= least).all()
    assert (followed["cost"] <= least + followed["verify"] + 0.1).all()
    refused = frame[frame["verdict"] == "don't"]
    assert refused["cost"].to_numpy() == pytest.approx(
        trials + AGAIN + few * share + build, abs=1e-3
    )
    summary = certified_summary(whole)
    assert summary["studies"].sum() == len(whole)
    assert summary["share"].sum() == pytest.approx(1 + short)
    assert whole["lost"].mean() < 2
