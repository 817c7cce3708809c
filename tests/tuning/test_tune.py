"""Tuning one's own network: what goes in, what comes out, and what is refused."""

import json
import math
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import answer_of, free_port
from networks import Picky, Small, Viewed
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

from proxyhpo import InputError, Settings, load_dataset, tune
from proxyhpo.analysis.cost import GPU, seconds
from proxyhpo.data.feed import Augmentation
from proxyhpo.hpo.ladder import Ladder
from proxyhpo.tuning.rung import Rung
from proxyhpo.tuning.settings import AUTO, METHODS

ONE = Small()


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", subset=40)


def tuned(data, storage=None, *, method="study", trials=6, space=None, **changes):
    settings = Settings(
        **{"epochs": 3, "batch_size": 32, "verify": 2, "certify": 0, "reseed": 0, "seed": 3}
        | changes
    )
    return tune(
        Small, data, method=method, trials=trials, storage=storage, space=space, settings=settings
    )


@pytest.fixture(scope="module")
def result(digits):
    return tuned(digits)


def test_it_hands_back_hyperparameters_of_the_network_itself(result):
    assert set(result.best) == {"lr", "weight_decay", "momentum"}
    verified = result.rows[result.rows["purpose"] == "verify"]
    assert result.verified
    assert result.accuracy == verified["val_accuracy"].max()
    assert set(verified["role"]) == {"base"}
    trials = result.rows[result.rows["purpose"] == "study"]
    assert list(trials["trial"]) == list(range(6))
    assert (trials["macs"] < 0.3 * verified["macs"].iloc[0]).all()
    assert result.proxy.macs == trials["macs"].iloc[0]
    assert len(result.study.trials) == 6
    assert sum(result.cost.values()) == pytest.approx(seconds(result.rows).sum())
    epoch = seconds(verified).sum() / verified["epochs"].sum()
    assert result.alone == pytest.approx(6 * 3 * epoch)


def test_the_summary_says_what_a_person_asks(result):
    told = str(result)
    assert "Small, tuned on snip: 6 trials" in told
    assert "Small alone about" in told
    on_gpu = result.rows["device"].str.contains(GPU).any()
    assert f"cost, {'wall-clock' if on_gpu else 'CPU'} time: " in told
    assert f"validation accuracy {result.accuracy:.3f} on Small" in told


def test_the_same_seed_gives_the_same_answer(digits, result):
    again = tuned(digits)
    assert (again.best, again.accuracy) == (result.best, result.accuracy)
    assert tuned(digits, seed=4).best != result.best


def test_what_a_network_draws_itself_is_seeded_and_yours_goes_on(digits):
    def dropping():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(), nn.Linear(32, 10))

    losses = []
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for _ in range(2):
        settings = Settings(epochs=1, certify=0, verify=0, stand_in="base")
        found = tune(dropping, digits, method="study", trials=2, settings=settings)
        losses.append(found.rows["val_loss"].dropna().tolist())
        assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("options", [{"method": "halving"}, {"trial_pruner": "halving"}])
def test_random_search_stops_trials_where_it_is_asked_to(digits, options):
    found = tuned(digits, trials=9, sampler="random", stand_in="base", **options)
    assert (found.rows["state"] == "stopped").any()


def test_a_system_that_counts_no_load_is_tuned_on(digits, monkeypatch):
    monkeypatch.delattr("os.getloadavg")
    assert tuned(digits, trials=2, stand_in="base").rows["load"].isna().all()


@pytest.mark.parametrize(
    ("device", "counted"),
    [
        ("NVIDIA H200", 10), ("AMD Radeon RX 7900 XTX", 10), ("AMD Instinct MI300X", 10),
        ("AMD EPYC", 1), ("AMD Ryzen 7 5800H with Radeon Graphics", 1),
        ("AMD Ryzen 9 7940HS w/ Radeon 780M Graphics", 1),
        ("AMD A10-7850K Radeon R7, 12 Compute Cores 4C+8G", 1),
    ],
)  # fmt: skip
def test_wall_clock_counts_on_a_gpu_and_cpu_seconds_elsewhere(device, counted):
    rows = pd.DataFrame({"device": [device], "wall_seconds": 10.0, "cpu_seconds": 1.0})
    assert seconds(rows).tolist() == [counted]


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_every_method_keeps_its_budget(digits, method):
    space = {"lr": FloatDistribution(1e-3, 1, log=True), "batch_size": IntDistribution(16, 64)}
    found = tuned(digits, method=method, space=space)
    assert set(found.best) == set(space)
    assert found.verified
    trials = found.rows[found.rows["purpose"] == "study"]
    assert list(trials["trial"]) == list(range(6))
    climbs = method in ("study", "epochs", "best_k", "ladder", "auto")
    assert (found.rows["purpose"] == "verify").sum() == (2 if climbs else 0)
    assert AUTO in METHODS


def test_a_ladder_climbs_by_rank_over_any_number_of_rungs(digits):
    ladder = Ladder(("subset@0.5", "base:1 loss", "base"), keep=0.5)
    found = tuned(digits, method="ladder", ladder=ladder, verify=None)
    rows = found.rows
    first, second = rows[rows["samples"] == 3 * 160], rows[rows["budget"] == 1]
    last = rows[rows["purpose"] == "verify"]
    assert [len(first), len(second), len(last)] == [6, 3, 2]
    best = first.nlargest(3, "val_accuracy", keep="first")["config_id"]
    assert list(second["config_id"]) == list(best)
    assert list(last["config_id"]) == list(second.nsmallest(2, "val_loss")["config_id"])
    assert set(second["epochs"]) == {1}
    assert set(last["epochs"]) == {3}


def test_a_certificate_is_part_of_the_search_and_its_trainings_count(digits):
    found = tuned(digits, method="ladder", verify=None, certify=3, reseed=1)
    made = found.certificate
    assert made.n == 3
    assert len(made.again) == 1
    rows = found.rows
    both = rows[(rows["purpose"] == "verify")].head(4)
    assert list(both["config_id"])[:3] == list(rows[rows["budget"] == 1]["config_id"])[:3]
    assert list(both["val_accuracy"])[:3] == list(made.base)
    assert made.verdict in str(found)
    assert found.cost["certificate"] == pytest.approx(seconds(both).sum())
    once = rows[rows["budget"] == 1].head(3)
    assert made.share == pytest.approx(seconds(once).sum() / seconds(both.head(3)).sum())
    full = rows[(rows["role"] == "base") & (rows["budget"] == 3)]
    means = full.groupby("config_id")["val_accuracy"].mean()
    assert found.accuracy == pytest.approx(means.max())
    if made.verdict == "don't":  # the rest of the trials are the network's own
        assert len(full) == 4 + 3


@pytest.mark.parametrize(("method", "rung"), [("auto", "epochs@0.3"), ("best_k", "base:1")])
def test_what_would_train_the_network_itself_is_left_out(digits, method, rung, capsys):
    found = tuned(digits, method=method, epochs=1, trials=2)
    assert f"left out: {rung}, of as many epochs" in capsys.readouterr().out
    assert (found.rows["purpose"] != "verify").all()
    assert found.verified


class Headed(Small):
    """Has an auxiliary head in training mode."""

    def forward(self, pictures):
        scores = super().forward(pictures)
        return (scores, scores) if self.training else scores


def test_auxiliary_heads_are_left_out_of_the_loss(digits):
    settings = Settings(epochs=2, certify=0, verify=1)
    assert tune(Headed, digits, trials=2, method="study", settings=settings).verified


def test_who_opens_a_study_second_trains_what_the_first_made(digits, tmp_path, monkeypatch):
    other, ours = [], Rung.study.func

    def slower(rung):
        if not other:  # another machine makes the study while we make our stand-in
            other.append(1)
            rung.site.bench.stand_in(rung.name, lambda row: None)
            tuned(digits, str(tmp_path / "a.journal"), share=0.25, trials=2, verify=0)
        return ours(rung)

    monkeypatch.setattr(Rung.study, "func", slower)
    found = tuned(digits, str(tmp_path / "a.journal"), share=0.25, trials=2, verify=0)
    assert found.proxy.to_json() == found.study.user_attrs["plan"]


@pytest.mark.parametrize(("trials", "epochs", "asked"), [(7, 4, 0), (8, 4, 4), (9, 2, 0)])
def test_a_search_too_short_to_earn_a_certificate_back_has_none(digits, trials, epochs, asked):
    options = {"certify": None, "verify": None, "reseed": 1, "epochs": epochs}
    found = tuned(digits, method="auto", trials=trials, **options)
    assert (found.certificate.n if found.certificate else 0) == asked
    verified = found.rows[found.rows["purpose"] == "verify"]
    assert asked or len(verified) == round(trials / 3)
    assert found.verified


def test_without_verification_the_stand_in_is_trusted_and_the_summary_says_so(digits):
    found = tuned(digits, verify=0)
    assert not found.verified
    assert "not verified" in str(found)


@pytest.mark.parametrize("trials", [1, 20])
def test_a_rejected_stand_in_is_no_judge_even_without_verification(trials):
    def train(build, configuration, budget, report):
        good = abs(configuration["lr"] - 0.7)  # after a third of the epochs, the farther the better
        time.sleep(budget.epochs / 300)
        return 1 - good if budget.epochs == 9 else good

    found = tune(
        Small, objective=train, space={"lr": FloatDistribution(0, 1)}, trials=trials,
        settings=Settings(verify=0, certify=8, reseed=0),
    )  # fmt: skip
    assert found.certificate.verdict == "don't"
    assert found.verified
    full = found.rows[(found.rows["role"] == "base") & (found.rows["purpose"] != "data")]
    assert found.accuracy == full["score"].max() == 1 - abs(found.best["lr"] - 0.7)


def test_callbacks_and_stop_are_as_optuna_has_them(digits):
    seen = []

    def callback(study, trial):
        seen.append((trial.number, trial.state))
        if len(seen) == 4:
            study.stop()

    found = tuned(digits, callbacks=[callback], verify=1)
    assert [number for number, _ in seen] == [0, 1, 2, 3, 0]
    assert all(state.is_finished() for _, state in seen)
    assert (found.rows["purpose"] == "study").sum() == 4


@pytest.mark.parametrize("suffix", ["journal", pytest.param("db", marks=pytest.mark.slow)])
def test_an_interrupted_call_goes_on_where_it_stopped(digits, tmp_path, suffix, capsys):
    def interrupt(study, trial):
        calls.append(trial.number)
        if len(calls) == 8:  # in the verification
            raise KeyboardInterrupt

    calls, storage = [], str(tmp_path / f"study.{suffix}")
    options = {"method": "ladder", "verify": 3}
    with pytest.raises(KeyboardInterrupt) as stopped:
        tuned(digits, storage=storage, callbacks=[interrupt], **options)
    assert "interrupted after 8 trainings" in capsys.readouterr().out
    assert stopped.value.__suppress_context__
    frames = traceback.extract_tb(stopped.value.__traceback__)
    names = [frame.name for frame in frames[-3:]]
    assert names == ["tuned", "inner", "tune"]  # contextlib's between; none of ours within
    found, whole = tuned(digits, storage=storage, **options), tuned(digits, **options)
    assert (found.best, found.accuracy) == (whole.best, whole.accuracy)
    assert list(found.rows["purpose"]) == list(whole.rows["purpose"])
    again = tuned(digits, storage=storage, **options)  # nothing is left to train
    times = [one.rows[one.rows["purpose"] != "data"]["recorded"].tolist() for one in (found, again)]
    assert times[0] == times[1]


def test_a_certified_search_that_is_over_trains_nothing_again(digits, tmp_path):
    options = {"method": "ladder", "verify": None, "certify": 2, "reseed": 1, "epochs": 10}
    calls = [
        tuned(digits, str(tmp_path / "study.journal"), trials=10, seed=5, **options)
        for _ in range(2)
    ]
    assert calls[0].certificate == calls[1].certificate
    rows = [one.rows[one.rows["purpose"] != "data"] for one in calls]
    assert list(rows[0]["recorded"]) == list(rows[1]["recorded"])


def test_other_settings_in_the_same_storage_are_named(digits, tmp_path):
    storage = str(tmp_path / "study.journal")
    tuned(digits, storage=storage)
    with pytest.raises(InputError, match=r"trials was 6, now 7.*share was 0.25, now 0.5"):
        tuned(digits, storage=storage, trials=7, share=0.5)


def test_the_storage_and_the_remedy_are_those_of_the_call(digits, tmp_path):
    storage = str(tmp_path / "study.journal")
    found = tuned(digits, storage=storage, trials=2, verify=0)
    with pytest.raises(InputError) as told:
        tuned(digits, storage=storage, trials=4, verify=0)
    assert f"in {storage} was started with other settings: trials was 2, now 4" in str(told.value)
    assert "can't be extended to more trials: use another storage=, or S" in str(told.value)
    assert "--out" not in str(told.value)
    own = {"study_name": "more", "warm_start": found.study}
    more = tuned(digits, storage=storage, trials=4, verify=0, **own)
    assert more.study.trials[0].params == found.best


class Wide(Small):
    """Another network of this name."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 10))


Wide.__name__ = "Small"


def other(pictures, labels):
    """The same number of pictures of the same shape, one bit apart."""
    pictures = pictures.clone()
    pictures[-1, 0, 0] ^= 1
    return pictures, labels


@pytest.fixture(scope="module")
def pair(digits):
    return digits.train.images[:80], digits.train.labels[:80]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": lambda: Wide()}, "network was 'Small of [0-9,]+ parameters', now "),
        ({"network": lambda: nn.Sequential(Small())}, "network was 'Small of .*now 'Sequential"),
        ({"data": other}, "pictures was '63 [+] 17 of 10 classes .*, now '63"),
        ({"data": lambda x, y: (x, y.flip(0))}, "pictures was "),
        ({"val": 0.25}, "val was 0.2, now 0.25"),
        ({"augmentation": Augmentation(crop=1)}, "augmentation was "),
        ({"objective": lambda *_: 1.0}, "objective was \"proxyhpo's.*<lambda>'"),
    ],
)
def test_what_is_trained_is_held_to_what_was(pair, tmp_path, change, named):
    def call(network=lambda: Small(), data=lambda *pair: pair, objective=None, **changes):
        given = torch.zeros(2, 1, 8, 8) if objective else data(*pair)
        settings = Settings(
            epochs=1, batch_size=16, verify=0, certify=0, reseed=0, stand_in="base", **changes
        )
        return tune(
            network, given, objective=objective, space={"lr": FloatDistribution(0.01, 0.1)},
            trials=1, method="study", storage=str(tmp_path / "a.journal"), settings=settings,
        )  # fmt: skip

    first = call()
    with pytest.raises(InputError, match=named):
        call(**change)
    assert call().rows["recorded"].iloc[-1] == first.rows["recorded"].iloc[-1]


def test_the_networks_epochs_are_held_to_where_the_stand_ins_are_the_same(digits, tmp_path):
    options = {"method": "epochs", "verify": 0, "trials": 1, "storage": str(tmp_path / "a.journal")}
    tuned(digits, epochs=3, **options)
    with pytest.raises(InputError, match="epochs was 3, now 4"):
        tuned(digits, epochs=4, **options)


def test_a_storage_of_an_earlier_version_opens(digits, tmp_path):
    storage, options = str(tmp_path / "study.journal"), {"trials": 2, "verify": 0}
    found = tuned(digits, storage=storage, **options)
    kept = found.study.user_attrs["settings"]
    news = {
        "full epochs",
        "objective",
        "pictures",
        "augmentation",
        "built network",
        "multiply-accumulates",
    }
    assert news < set(kept)
    found.study.set_user_attr("settings", {k: v for k, v in kept.items() if k not in news})
    again = tuned(digits, storage=storage, **options)
    assert again.best == found.best
    assert again.rows["recorded"].iloc[-1] == found.rows["recorded"].iloc[-1]
    with pytest.raises(InputError, match=r"share was 0.25, now 0.5"):
        tuned(digits, storage=storage, share=0.5, **options)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": Small()}, "a callable that builds one"),
        ({"network": torch.nn.Linear}, "network Linear: a callable that builds one"),
        ({"network": lambda: 3}, "built a int"),
        ({"network": lambda: Small().requires_grad_(False)}, "no weights to train"),
        ({"network": lambda: Small(7)}, r"gives \(2, 7\) .* 10 classes"),
        ({"network": lambda: Small(10, 3)}, "can't take pictures"),
        ({"network": lambda: ONE}, "the same weights at every call"),
        ({"network": Picky}, r"can't take pictures \(2, 1, 8, 8\): AssertionError: "),
        ({"network": Viewed}, r"channels-last .* in place of \.view take \.flatten\(1\)"),
        ({"data": None}, "pictures to train on"),
        ({"space": {"depth": FloatDistribution(1, 2)}}, "unknown hyperparameter 'depth'"),
        ({"space": {"lr": 0.1}}, "not a distribution"),
        ({"space": {"lr": FloatDistribution(-1, 1)}}, "lr -1.0: a number, at least 0"),
        ({"space": {"momentum": FloatDistribution(-1, 0)}}, "momentum -1.0"),
        ({"space": {"weight_decay": FloatDistribution(-1, 0)}}, "weight_decay -1.0"),
        ({"space": {"lr": CategoricalDistribution(["a", "b"])}}, "lr 'a': a number"),
        ({"space": {"batch_size": IntDistribution(1, 32)}}, "batch_size 1: a number, at least 2"),
        ({"space": {"batch_size": IntDistribution(32, 361)}}, "batch_size 361: .* the 360"),
        ({"settings": Settings(batch_size=361)}, "batch_size 361: more than the 360 pictures"),
        (
            {"method": "study", "settings": Settings(stand_in="subset@0.1+epochs@0.5")},
            r"batch_size 64: .* 40 pictures of 'subset@0.1\+epochs@0.5'",
        ),
        (
            {"method": "halving", "settings": Settings(sampler="hyperband")},
            "sampler 'hyperband' ends trials by 'hyperband', and method 'halving' .* by 'halving'",
        ),
        ({"method": "asha"}, "unknown method 'asha'.*study, halving"),
        ({"trials": 0}, "trials 0"),
        ({"storage": "nonsense://x"}, "nonsense"),
        ({"settings": {"epochs": 3}}, "a proxyhpo.Settings"),
        ({"objective": lambda *_: 1.0}, "space"),
    ],
)
def test_what_doesnt_fit_is_named_before_any_training(digits, change, named):
    options = {"network": Small, "data": digits, "trials": 6} | change
    began = time.monotonic()
    with pytest.raises(InputError, match=named):
        tune(options.pop("network"), options.pop("data"), **options)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stand_in": "snap"}, "snip"),
        ({"share": 0}, "share 0"),
        ({"share": 1.5}, "1.5"),
        ({"sampler": "bo"}, "tpe, cmaes, gp"),
        ({"trial_pruner": "asha"}, "halving"),
        ({"verify": -1}, "verify -1"),
        ({"epochs": True}, "epochs True"),
        ({"certify": 1, "reseed": 2}, "reseed 2: at most the 1"),
        ({"reseed": 5}, "reseed 5: at most the 4"),
        ({"certify": -1}, "certify -1: .*, or None"),
        ({"warm_start": "study"}, "optuna.Study"),
        ({"catch": ValueError}, "catch .*a tuple of exceptions"),
        ({"catch": (3,)}, "catch .*a tuple of exceptions"),
        ({"catch": (KeyboardInterrupt,)}, "catch .*a tuple of exceptions"),
        ({"val": 1.5}, "val 1.5: a share of the pictures"),
        ({"augmentation": "flip"}, r"augmentation 'flip': as Augmentation\(crop"),
        ({"callbacks": 3}, "callbacks 3: a list of functions"),
        ({"callbacks": "stop"}, "callbacks 'stop'"),
        ({"study_name": 3}, "study_name 3: a string"),
        ({"epochs": 2, "ladder": Ladder(("base:2", "base"))}, "fewer epochs than the 2"),
    ],
)
def test_settings_are_checked_where_they_are_made(change, named):
    with pytest.raises(InputError, match=named):
        Settings(**change)


@pytest.mark.slow
def test_optuna_dashboard_reads_our_storage(digits, tmp_path):
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard isn't installed")
    journal = tmp_path / "study.journal"
    tuned(digits, storage=str(journal), trials=3, verify=0)
    port = str(free_port())
    url = f"http://127.0.0.1:{port}/api/studies"
    command = [Path(sys.executable).with_name("optuna-dashboard"), journal, "--port", port]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        studies = json.loads(answer_of(server, url))
        (summary,) = studies.get("study_summaries") or studies["studies"]
        assert summary["study_name"].startswith("Small-tpe")
        detail = json.loads(answer_of(server, f"{url}/{summary['study_id']}"))
        assert len(detail["trials"]) == 3
    finally:
        server.kill()
        server.wait()


def test_diverged_trials_are_recorded_and_never_promoted(digits):
    space = {"lr": FloatDistribution(1e-2, 1e9, log=True)}
    found = tuned(digits, method="best_k", space=space, trials=8)
    first = found.rows[found.rows["purpose"] == "study"]
    assert len(first) == 8
    assert (first["state"] == "diverged").any()
    verified = set(found.rows[found.rows["purpose"] == "verify"]["config_id"])
    assert verified <= set(first[first["state"] == "complete"]["config_id"])
    assert math.isfinite(found.accuracy)
    assert torch.isfinite(torch.tensor(found.best["lr"]))


def test_what_goes_on_on_the_network_itself_tries_other_configurations(digits):
    found = tuned(digits, trials=4, verify=None, certify=2, reseed=0)
    assert found.certificate.verdict == "don't"  # two trials left: nothing would be saved
    rows = found.rows
    certified = set(rows.loc[rows["purpose"] == "verify", "config_id"])
    rest = rows[(rows["purpose"] == "study") & (rows["role"] == "base")]
    assert len(certified) == len(rest) == 2
    assert not certified & set(rest["config_id"])
