"""Tuning one's own network: what goes in, what comes out, and what is refused."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from proxyhpo import InputError, load_dataset, tune
from proxyhpo.data.given import as_dataset
from proxyhpo.experiment.trial import Workbench
from proxyhpo.rows import as_frame

SPACE = {"lr": FloatDistribution(1e-3, 1, log=True), "batch_size": IntDistribution(16, 64)}


class Small(nn.Module):
    """Branches, a concatenation, and a layer that remembers no rule of ours."""

    def __init__(self, classes=10, channels=1):
        super().__init__()
        self.stem = nn.Conv2d(channels, 12, 3, padding=1)
        self.left = nn.Conv2d(12, 8, 1)
        self.right = nn.Conv2d(12, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, classes)

    def forward(self, pictures):
        stem = self.stem(pictures).relu()
        both = torch.cat([self.left(stem), self.right(stem)], 1)
        return self.head(self.norm(both).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", subset=40)


def tuned(data, **options):
    settings = {"trials": 6, "epochs": 3, "batch_size": 32, "verify": 2, "seed": 3}
    return tune(Small, data, **(settings | options))


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
    assert result.ledger["seconds"].sum() == pytest.approx(result.rows["wall_seconds"].sum())


def test_the_summary_says_what_a_person_asks(result):
    told = str(result)
    assert "Small, tuned on snip at 2" in told
    assert "6 trials" in told
    assert "verified on Small: 2" in told
    assert f"validation accuracy {result.accuracy:.3f} on Small" in told


def test_the_same_seed_gives_the_same_answer(digits, result):
    again = tuned(digits)
    assert again.best == result.best
    assert again.accuracy == result.accuracy
    other = tuned(digits, seed=4)
    assert other.best != result.best


@pytest.mark.parametrize("proxy", ["base", "subset", "uniform+epochs"])
@pytest.mark.parametrize("sampler", ["cmaes", "best_k"])
def test_any_stand_in_and_any_method(digits, proxy, sampler):
    found = tuned(digits, proxy=proxy, sampler=sampler, space=SPACE)
    assert set(found.best) == set(SPACE)
    assert found.verified
    assert ("verify" in set(found.rows["purpose"])) == (proxy != "base")


def test_without_verification_the_stand_in_is_trusted_and_the_summary_says_so(digits):
    found = tuned(digits, verify=0)
    assert not found.verified
    assert "not verified" in str(found)


def test_callbacks_and_stop_are_as_optuna_has_them(digits):
    seen = []

    def callback(study, trial):
        seen.append((trial.number, trial.state))
        if len(seen) == 4:
            study.stop()

    found = tuned(digits, callbacks=[callback], verify=1)
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert all(state.is_finished() for _, state in seen)
    assert (found.rows["purpose"] == "study").sum() == 4


@pytest.mark.parametrize("suffix", ["journal", "db"])
def test_an_interrupted_call_goes_on_where_it_stopped(digits, result, tmp_path, suffix, capsys):
    def interrupt(study, trial):
        if trial.number == 2:
            raise KeyboardInterrupt

    storage = str(tmp_path / f"study.{suffix}")
    with pytest.raises(KeyboardInterrupt):
        tuned(digits, storage=storage, callbacks=[interrupt])
    assert "interrupted after 3 trials" in capsys.readouterr().out
    found = tuned(digits, storage=storage)
    assert (found.best, found.accuracy) == (result.best, result.accuracy)
    again = tuned(digits, storage=storage)  # nothing is left to train
    assert (again.rows["purpose"] == "data").sum() == 1
    old = ["study", "verify"]
    both = (one.rows[one.rows["purpose"].isin(old)]["recorded"].tolist() for one in (found, again))
    assert len({tuple(recorded) for recorded in both}) == 1


def test_other_settings_in_the_same_storage_are_named(digits, tmp_path):
    storage = str(tmp_path / "study.journal")
    tuned(digits, storage=storage)
    with pytest.raises(InputError, match=r"trials was 6, now 7.*macs was 0.25, now 0.5"):
        tuned(digits, storage=storage, trials=7, macs=0.5)


def test_a_proxy_fits_into_an_objective_of_ones_own(digits, result):
    def objective(trial):
        network = result.proxy.build(seed=trial.number)
        optimizer = torch.optim.SGD(network.parameters(), trial.suggest_float("lr", 1e-3, 1))
        pictures = digits.train.images[:64].permute(0, 3, 1, 2) / 255
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(pictures), digits.train.labels[:64])
            loss.backward()
            optimizer.step()
        return loss.item()

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=3)
    assert len({trial.value for trial in study.trials}) == 3


class Greedy(Small):
    """Asks for more memory than there is where it sees more than 20 pictures at once."""

    def forward(self, pictures):
        if len(pictures) > 20:
            torch.empty(2**60, dtype=torch.uint8)
        return super().forward(pictures)


class Insatiable(Small):
    """Asks for more memory than there is in training."""

    def forward(self, pictures):
        if self.training and len(pictures) > 2:
            torch.empty(2**60, dtype=torch.uint8)
        return super().forward(pictures)


def test_a_trial_that_runs_out_of_memory_is_run_again_in_parts(digits):
    small = digits.val.take(torch.arange(20))
    bench = Workbench(*bench_of(digits, small, Greedy))
    found = attempt(bench)
    assert (found["state"], found["microbatches"]) == ("complete", 2)
    bench = Workbench(*bench_of(digits, small, Insatiable))
    found = attempt(bench)
    assert (found["state"], found["microbatches"]) == ("failed", 2)


def bench_of(digits, val, network):
    import dataclasses

    from proxyhpo import PROFILES, Experiment

    profile = dataclasses.replace(PROFILES["smoke"], epochs=1)
    data = dataclasses.replace(digits, val=val)
    return Experiment("given", "network", "tpe", profile), data, lambda seed: network()


def attempt(bench):
    from proxyhpo.experiment.trial import Clock

    base = bench.stand_in("base", lambda _: None)
    _, row = bench.attempt(Clock(), base, {"lr": 0.1}, seed=("x", 0), purpose="study", trial=0)
    assert len(as_frame([row])) == 1
    return row


IMAGES, LABELS = torch.rand(60, 3, 8, 8), torch.arange(60) % 3


class Items:
    classes = ("a", "b", "c")

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return IMAGES[index], int(LABELS[index])


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, LABELS),
        ((IMAGES * 255).to(torch.uint8).permute(0, 2, 3, 1), LABELS),
        (IMAGES.numpy(), LABELS.tolist()),
        Items(),
    ],
)
def test_data_of_ones_own_come_as_pictures_and_labels(data):
    dataset = as_dataset(data, val=0.2)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (48, 12, 0)
    assert (dataset.side, dataset.channels, len(dataset.classes)) == (8, 3, 3)
    kept = torch.cat([dataset.train.images, dataset.val.images]).float().sum()
    assert kept == pytest.approx(float((IMAGES * 255).sum()), rel=0.02)


def test_torchvision_data_sets_and_folders_come_too(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / label / f"{number}.png")
    theirs = as_dataset(torchvision.datasets.ImageFolder(tmp_path / "train"))
    ours = as_dataset(tmp_path)
    assert theirs.classes == ours.classes == ("cat", "dog")
    assert (len(theirs.train), len(theirs.val)) == (16, 4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": Small()}, "a callable that builds one"),
        ({"network": lambda: 3}, "built a int"),
        ({"network": lambda: Small(7)}, r"gives \(2, 7\) .* 10 classes"),
        ({"network": lambda: Small(10, 3)}, "can't take pictures"),
        ({"data": 3}, "data int"),
        ({"data": (torch.rand(5, 4, 8), torch.zeros(5))}, "pictures of shape"),
        ({"data": (torch.randn(5, 3, 8, 8), torch.zeros(5))}, "leave normalisation"),
        ({"data": (torch.rand(5, 3, 8, 8), torch.zeros(4))}, "one for each picture"),
        ({"data": (torch.rand(6, 3, 8, 8), torch.zeros(6))}, "at least 2 classes"),
        ({"space": {"depth": FloatDistribution(1, 2)}}, "unknown hyperparameter 'depth'"),
        ({"space": {"lr": 0.1}}, "not a distribution"),
        ({"proxy": "snap"}, "snip"),
        ({"macs": 0}, "pruning ratio"),
        ({"macs": 1.5}, "pruning ratio"),
        ({"sampler": "bo"}, "tpe, cmaes, gp"),
        ({"trial_pruner": "asha"}, "halving"),
        ({"trials": 0}, "trials 0"),
        ({"verify": 9}, "verify 9"),
        ({"storage": "nonsense://x"}, "nonsense"),
    ],
)
def test_what_doesnt_fit_is_named_before_any_training(digits, change, named):
    options = {"network": Small, "data": digits, "trials": 6, "epochs": 2} | change
    began = time.monotonic()
    with pytest.raises(InputError, match=named):
        tune(options.pop("network"), options.pop("data"), **options)
    assert time.monotonic() - began < 20


def test_optuna_dashboard_reads_our_storage(digits, tmp_path):
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard isn't installed")
    journal = tmp_path / "study.journal"
    tuned(digits, storage=str(journal), trials=3, verify=0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("optuna-dashboard"), journal, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        studies = get(f"http://127.0.0.1:{port}/api/studies", server)
        (summary,) = studies.get("study_summaries") or studies["studies"]
        assert summary["study_name"].startswith("Small-tpe")
        detail = get(f"http://127.0.0.1:{port}/api/studies/{summary['study_id']}", server)
        assert len(detail["trials"]) == 3
    finally:
        server.kill()
        server.wait()


def get(url, server):
    """JSON at ``url``, asked for until the server is up."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.loads(answer.read())
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.3)
