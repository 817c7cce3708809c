"""A user's own training code: her loss, optimiser, space and network, our ladder."""

import math
from functools import partial

import numpy as np
import optuna
import pytest
import torch
from networks import Small
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn
from torch.nn import functional

from proxyhpo import InputError, Settings, load_dataset, tune
from proxyhpo.hpo.ladder import Ladder
from proxyhpo.training import this_device

LR = FloatDistribution(1e-4, 0.3, log=True)
CERTIFIED = {"epochs": 3, "certify": 2, "reseed": 1, "verify": 1}


def tuned(objective, data=None, *, network=Small, space=None, trials=4, **changes):
    call = {name: changes.pop(name) for name in ("method", "storage") if name in changes}
    settings = Settings(**{"epochs": 2, "certify": 0, "reseed": 0} | changes)
    return tune(
        network, data, space=space or {"lr": LR}, trials=trials, objective=objective,
        settings=settings, **{"method": "study"} | call,
    )  # fmt: skip


def pictures(count=128):
    split = load_dataset("digits", subset=40).train
    return split.images[:count].permute(0, 3, 1, 2) / 255, split.labels[:count]


class Words(nn.Module):
    """A small transformer that tells which of four words is in a text."""

    def __init__(self, words=16, width=32):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        block = partial(nn.TransformerEncoderLayer, width, 2, 2 * width, batch_first=True)
        self.layers = nn.Sequential(block(), block())
        self.head = nn.Linear(width, 4)

    def forward(self, text):
        return self.head(self.layers(self.embed(text)).amax(1))


def text(count=96):
    words = torch.randint(4, 16, (count, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 4
    words[torch.arange(count), torch.arange(count) % 6] = labels
    return words, labels


def trained(inputs, labels, seen=None):
    """Return training code with AdamW and label smoothing."""

    def train(build, configuration, budget, report):
        network = build()
        optimizer = torch.optim.AdamW(network.parameters(), configuration["lr"])
        kept = round(budget.share * len(labels) * 3 / 4)
        for epoch in range(1, budget.epochs + 1):
            for part in torch.randperm(kept).split(32):
                optimizer.zero_grad()
                smoothing = configuration.get("smoothing", 0.0)
                output = network.train()(inputs[part])
                functional.cross_entropy(output, labels[part], label_smoothing=smoothing).backward()
                optimizer.step()
            with torch.no_grad():
                held = network.eval()(inputs[-len(labels) // 4 :])
            score = -functional.cross_entropy(held, labels[-len(labels) // 4 :]).item()
            if seen is not None:
                size = sum(w.numel() for w in network.parameters())
                seen.append((epoch, budget, size, dict(configuration)))
            report(epoch, score)
        return score

    return train


def test_adamw_and_label_smoothing_on_a_timm_network():
    timm = pytest.importorskip("timm", reason="timm isn't installed")

    def network():
        return timm.create_model(
            "resnet10t", num_classes=10, in_chans=1, stem_width=8, channels=(8, 8, 16, 16)
        )

    x, y = pictures(64)
    space = {"lr": LR, "smoothing": CategoricalDistribution([0.0, 0.1])}
    batch = x[:4], y[:4]
    found = tuned(
        trained(x, y), batch, network=network, space=space, stand_in="uniform", **CERTIFIED
    )
    assert found.best["smoothing"] in (0.0, 0.1)
    assert found.proxy.macs < 0.35 * found.proxy.base_macs
    full = found.rows[(found.rows["role"] == "base") & (found.rows["state"] == "complete")]
    assert found.accuracy == pytest.approx(full.groupby("config_id")["score"].mean().max())
    assert found.accuracy < 0  # a score of hers, no accuracy


def test_a_transformer_on_text_with_integers_and_categories():
    words, labels = text()
    seen = []
    train = trained(words, labels, seen)
    space = {
        "lr": LR,
        "width": IntDistribution(8, 32),
        "schedule": CategoricalDistribution(["cosine", None]),
    }
    both = "uniform@0.5+epochs@0.7"
    found = tuned(
        train, words[:2], network=Words, space=space, trials=5, stand_in=both, **CERTIFIED
    )
    assert set(found.best) == set(space)
    assert isinstance(found.best["width"], int)
    assert found.best["schedule"] in ("cosine", None)
    sizes = {size for _, budget, size, _ in seen if budget.epochs == 2}
    assert max(sizes) < 0.8 * max(size for *_, size, _ in seen)


def test_a_lightning_module_brings_its_own_trainer():
    lightning = pytest.importorskip("lightning", reason="lightning isn't installed")

    x, y = pictures(64)
    data = torch.utils.data.TensorDataset(x, y)

    class Module(lightning.LightningModule):
        def __init__(self, network, lr, report):
            super().__init__()
            self.network, self.lr, self.report = network, lr, report

        def training_step(self, batch, _):
            return functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), self.lr)

        def on_train_epoch_end(self):
            with torch.no_grad():
                right = self.network.eval()(x).argmax(1) == y
            self.score = right.float().mean().item()
            self.report(self.current_epoch + 1, self.score)

    def train(build, configuration, budget, report):
        module = Module(build(), configuration["lr"], report)
        lightning.Trainer(
            max_epochs=budget.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, torch.utils.data.DataLoader(data, 32, shuffle=True))  # fmt: skip
        return module.score

    found = tuned(train, method="auto", **CERTIFIED)
    first = found.rows[found.rows["purpose"] == "study"]
    assert set(first["epochs"]) <= {1, 3}
    assert 0 < found.accuracy <= 1


def test_budget_and_report_are_what_a_rung_says():
    x, y = pictures(64)
    seen = []
    found = tuned(trained(x, y, seen), epochs=3, verify=1, stand_in="subset@0.5")
    assert {(budget.epochs, budget.share) for _, budget, *_ in seen} == {(3, 0.5), (3, 1.0)}
    assert found.certificate is None
    assert found.proxy is None


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_hers(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        tuned(lambda *_: seen.append(torch.get_num_threads()) or 0.5, trials=1, stand_in="base")
        assert seen == [threads] == [torch.get_num_threads()]
        assert this_device().threads == 2
    finally:
        torch.set_num_threads(before)


def test_she_may_report_every_fifth_epoch():
    def train(build, configuration, budget, report):
        for epoch in range(5, budget.epochs + 1, 5):
            report(epoch, configuration["lr"])
        return configuration["lr"]

    ladder = Ladder(("base:5", "base"))
    found = tuned(train, method="ladder", ladder=ladder, epochs=10, verify=1)
    first = found.rows[found.rows["purpose"] == "study"]
    assert set(first["state"]) == {"complete"}
    assert set(first["epochs"]) == {5}


@pytest.mark.parametrize("data", [{"text": 1}, torch.zeros(2, 7, 8, 8)])
def test_a_batch_that_the_network_doesnt_take_is_named(data):
    with pytest.raises(InputError, match=r"data: network Small can't take it \(\w+Error: "):
        tuned(lambda *_: 1.0, data)


def test_a_study_that_she_has_comes_first():
    hers = optuna.create_study(direction="minimize")
    for lr, loss in ((0.1, 3.0), (0.02, 1.0), (0.005, 2.0)):
        hers.add_trial(
            optuna.trial.create_trial(params={"lr": lr}, distributions={"lr": LR}, value=loss)
        )
    found = tuned(trained(*pictures(64)), method="auto", warm_start=hers)
    trials = found.rows[found.rows["purpose"] == "study"]
    assert list(trials["param_lr"])[:2] == [0.02, 0.005]


WIDE = FloatDistribution(1e-4, 9)


def hers(params, distributions=None, directions=("minimize",)):
    study = optuna.create_study(directions=list(directions), study_name="hers")
    for value, one in enumerate(params):
        study.add_trial(
            optuna.trial.create_trial(
                params=one, distributions=distributions or {"lr": WIDE},
                values=[float(value)] * len(directions),
            )
        )  # fmt: skip
    return study


@pytest.mark.parametrize(
    ("study", "named"),
    [
        (hers([{"lr": 5.0}, {"lr": 0.1}]), "lr 5.0 of trial 0 isn't in the search space, Float"),
        (
            hers([{"lr": "high"}], {"lr": CategoricalDistribution(["high", "low"])}),
            "lr 'high' of trial 0 isn't in the search space, Float",
        ),
        (hers([{"lr": 0.1}], directions=("minimize", "maximize")), "'hers' has 2 objectives"),
        (hers([{"x": 0.1}], {"x": WIDE}), "none of the 1 trials .* search space, lr"),
        (hers([]), "none of the 0 trials"),
    ],
)
def test_a_study_of_hers_that_doesnt_fit_is_named_before_any_training(study, named, tmp_path):
    ran = []
    with pytest.raises(InputError, match=f"warm_start: .*{named}"):
        tuned(lambda *_: ran.append(1) or 1.0, warm_start=study, storage=str(tmp_path / "a.db"))
    assert not ran
    assert not list(tmp_path.iterdir())


def test_only_what_comes_first_of_her_study_has_to_fit():
    study = hers([{"lr": 0.1}, {"lr": 0.2}, {"lr": 5.0}])
    found = tuned(fragile, warm_start=study, stand_in="base")
    assert list(found.rows.loc[found.rows["purpose"] == "study", "param_lr"])[:2] == [0.1, 0.2]


def test_what_trains_badly_is_recorded_and_no_winner():
    def train(build, configuration, budget, report):
        if configuration["lr"] > 0.01:
            report(1, math.nan)
        if configuration["lr"] < 0.0004:
            raise MemoryError
        if configuration["lr"] < 0.001:
            torch.empty(10**16)  # more than there is
        report(1, -1.0)
        return -1.0

    found = tuned(train, trials=9, stand_in="base")
    states = found.rows[found.rows["purpose"] == "study"].set_index("param_lr")["state"]
    assert set(states[states.index > 0.01]) == {"diverged"}
    assert set(states[states.index < 0.001]) == {"failed"}
    assert 0.001 <= found.best["lr"] <= 0.01


def fragile(build, configuration, budget, report):
    """Fail where the learning rate is high."""
    if configuration["lr"] > 0.6:
        raise RuntimeError("an illegal memory access\nof the device")
    report(budget.epochs, configuration["lr"])
    return configuration["lr"]


@pytest.mark.parametrize("catch", [(RuntimeError,), (KeyError, Exception)])
def test_what_is_caught_fails_its_trial_and_the_search_goes_on(tmp_path, catch):
    own = {"space": {"lr": FloatDistribution(0, 1)}, "trials": 9, "stand_in": "base"}
    found = tuned(fragile, catch=catch, storage=str(tmp_path / "a.journal"), **own)
    trials = found.rows[found.rows["purpose"] == "study"]
    failed = trials["state"] == "failed"
    assert len(trials) == 9
    assert 0 < failed.sum() < 9
    assert (trials["param_lr"] > 0.6).equals(failed)
    assert found.best["lr"] == trials["param_lr"][~failed].max()
    kept = [trial.user_attrs.get("error") for trial in found.study.trials]
    text = "RuntimeError: an illegal memory access\nof the device"
    assert kept == [text if bad else None for bad in failed]
    assert [trial.state.name == "FAIL" for trial in found.study.trials] == list(failed)
    again = tuned(fragile, storage=str(tmp_path / "a.journal"), **own)  # nothing is left
    assert again.best == found.best


def test_what_isnt_caught_names_the_trial_and_the_way_on(tmp_path):
    own = {"space": {"lr": FloatDistribution(0.61, 1)}, "storage": str(tmp_path / "a.journal")}
    for catch in ((), (ValueError,)):
        with pytest.raises(RuntimeError, match="illegal") as caught:
            tuned(fragile, catch=catch, stand_in="base", **own)
        (note,) = caught.value.__notes__
        assert "trial 0 on base, with {'lr': 0." in note
        assert "Settings(catch=(RuntimeError,))" in note
    with pytest.raises(InputError, match=r"none of .*; the first error: RuntimeError: an illegal"):
        tuned(fragile, catch=(RuntimeError,), stand_in="base", **own)


def test_where_no_verification_ends_well_the_stand_ins_answer_stands_unverified(capsys):
    def train(build, configuration, budget, report):
        return configuration["lr"] if budget.epochs < 9 else math.nan

    found = tuned(train, method="epochs", epochs=9, trials=6, verify=2)
    assert not found.verified
    assert found.accuracy == found.best["lr"] == found.rows["param_lr"].max()
    assert (found.rows["state"] == "diverged").sum() == 2
    assert "no training of the network ended well" in capsys.readouterr().out


def test_her_ladder_has_a_score_alone_to_look_at():
    def train(build, configuration, budget, report):
        for epoch in range(1, budget.epochs + 1):
            report(epoch, configuration["lr"])
        return configuration["lr"]

    found = tuned(train, method="ladder")
    assert str(found).startswith("Small, tuned on base:1: 4 trials")
    for signal in ("loss", "averaged"):
        rungs = Ladder((f"base:1 {signal}", "base"))
        with pytest.raises(InputError, match=f"rung 'base:1 {signal}': .*, no {signal}; 'base:1'"):
            tuned(train, method="ladder", ladder=rungs)


def test_where_nothing_ended_well_trainings_are_counted_and_her_code_is_named():
    with pytest.raises(InputError, match=r"none of the 4 trainings .* your training code"):
        tuned(lambda *_: math.nan, trials=4, stand_in="base")


@pytest.mark.parametrize(
    ("stand_in", "returned", "named"),
    [
        ("uniform", 1.0, "give a batch of the network's inputs"),
        ("resolution", 1.0, "stand-in of your own training code 'resolution'.*subset"),
        ("epochs", "good", "objective returned 'good'"),
        ("epochs", True, "objective returned True"),
        ("epochs", torch.ones(2), r"objective returned tensor\(\[1., 1.\]\)"),
    ],
)
def test_what_doesnt_fit_is_named(stand_in, returned, named):
    with pytest.raises(InputError, match=named):
        tuned(lambda *_: returned, trials=2, stand_in=stand_in)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "kind", [np.float32, np.array, torch.tensor, lambda x: torch.tensor([x], requires_grad=True)]
)
def test_a_score_is_whatever_a_number_can_be_made_of(kind):
    def train(build, configuration, budget, report):
        report(np.int64(1), kind(0.5))
        return kind(0.5)

    assert tuned(train, trials=2, stand_in="base").accuracy == 0.5


@pytest.mark.parametrize(
    ("reported", "named"),
    [
        ((1, None), "score reported None: a score to maximise"),
        ((1, "good"), "score reported 'good'"),
        (("1", 0.5), "epoch reported '1': a whole number, at least 1"),
        ((0, 0.5), "epoch reported 0"),
    ],
)
def test_what_is_reported_is_an_epoch_and_a_score(reported, named):
    with pytest.raises(InputError, match=named):
        tuned(lambda *given: given[3](*reported), trials=2, stand_in="base")


@pytest.mark.parametrize("objective", [3, lambda build, configuration: 0.5])
def test_an_objective_takes_what_it_is_called_with(objective):
    with pytest.raises(InputError, match=r"objective .*: called with build, configuration"):
        tuned(objective)
