"""Where the time of experiments goes, and what is best so far."""

import math

import pandas as pd
import pytest

from proxyhpo.analysis.cost import incumbent, ledger, reduction

ROWS = [  # purpose, role, trial, state, accuracy
    ("study", "base", 0, "complete", 0.5),
    ("study", "base", 1, "stopped", 0.7),
    ("study", "base", 2, "complete", 0.6),
    ("proxy", "proxy", -1, "complete", math.nan),
    ("study", "proxy", 0, "failed", math.nan),
    ("study", "proxy", 1, "complete", 0.4),
    ("verify", "base", 1, "complete", 0.55),
    ("final", "base", 1, "complete", 0.9),
]
SAME = {"profile": "p", "dataset": "d", "network": "n", "sampler": "tpe", "seed": 0}


def rows(*more):
    columns = ["purpose", "role", "trial", "state", "val_accuracy"]
    frame = pd.DataFrame([*ROWS, *more], columns=columns)
    return frame.assign(**SAME, choice="", wall_seconds=2.0, cpu_seconds=1.0, device="AMD EPYC")


def test_what_a_user_waits_for_is_counted_on_its_side():
    spent = ledger(rows()).set_index(["way", "purpose"])["seconds"].to_dict()
    assert spent == {
        ("base", "study"): 3, ("proxy", "proxy"): 1, ("proxy", "study"): 2, ("proxy", "verify"): 1
    }  # fmt: skip
    saved = reduction(rows()).iloc[0]
    assert (saved["alone"], saved["verified"]) == pytest.approx((0, -1 / 3))


@pytest.mark.parametrize(("trial", "choice", "proxy"), [(1, "verified", 5), (-1, "", 4)])
def test_a_lost_verification_is_the_stand_ins_and_a_lost_measurement_nobodys(trial, choice, proxy):
    lost = rows(("lost", "base", trial, "failed", math.nan))
    lost.loc[lost["purpose"] == "lost", "choice"] = choice
    found = reduction(lost).iloc[0]
    assert (found["base"], found["proxy"]) == (3, proxy)


def test_the_best_so_far_stays_where_a_trial_was_stopped():
    found = incumbent(rows()).set_index("way")
    assert found.loc["base", "best"].tolist() == [0.5, 0.5, 0.6]
    assert found.loc["base", "seconds"].tolist() == [1, 2, 3]
    assert found.loc["proxy", "best"].isna().tolist() == [True, True, False]
    assert found.loc["verify", ["best", "seconds"]].tolist() == [0.55, 4]
    assert incumbent(rows()[:0]).empty
