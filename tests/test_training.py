import math

import pytest
import torch

from proxyhpo.config import InputError
from proxyhpo.data.datasets import Feed, load_dataset
from proxyhpo.models import build_network
from proxyhpo.training import Device, evaluate, this_device, train

CPU = Device("cpu", "test", 1)
GOOD = {"lr": 0.05, "weight_decay": 1e-4, "momentum": 0.9}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", subset=60)


def feeds(dataset):
    shared = {"mean": dataset.mean, "std": dataset.std}
    training = Feed(dataset.train, **shared, batch_size=32, augmentation=dataset.augmentation)
    return training, Feed(dataset.val, **shared, batch_size=64, drop_last=False)


def outcome(dataset, configuration=GOOD, *, weights=0, **arguments):
    network = build_network("resnet8", classes=10, channels=1, seed=weights)
    arguments = {"epochs": 3, "seed": 0, "device": CPU} | arguments
    return train(network, *feeds(dataset), configuration, **arguments), network


def test_a_network_learns_real_digits(digits):
    result, network = outcome(digits, epochs=6)
    assert result.state == "complete"
    assert result.epochs == len(result.curve) == 6
    assert result.accuracy == result.curve[-1] > 0.8
    training, evaluation = feeds(digits)
    assert result.samples == 6 * len(training) * 32
    accuracy, loss = evaluate(network, evaluation, CPU)
    assert (accuracy, loss) == (result.accuracy, pytest.approx(result.loss))
    assert result.train_seconds > result.eval_seconds > 0


def test_accuracy_and_loss_are_those_of_the_whole_split(digits):
    network = build_network("resnet8", classes=10, channels=1)
    _, evaluation = feeds(digits)
    accuracy, loss = evaluate(network, evaluation, CPU)
    network.eval()
    with torch.inference_mode():
        pairs = [(network(x), y) for x, y in evaluation.epoch(None)]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert len(labels) == len(digits.val)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())


def test_the_same_seeds_give_the_same_outcome(digits):
    first, again = outcome(digits)[0], outcome(digits)[0]
    assert (first.curve, first.loss) == (again.curve, again.loss)
    assert outcome(digits, weights=1)[0].loss != first.loss
    assert outcome(digits, seed=1)[0].loss != first.loss


def test_a_diverged_training_is_an_outcome(digits):
    result, _ = outcome(digits, {"lr": 1e6, "momentum": 0.99})
    assert result.state == "diverged"
    assert not math.isfinite(result.loss)
    assert result.epochs == len(result.curve) < 3


def test_stop_is_asked_after_each_epoch_but_the_last(digits):
    asked = []
    result, _ = outcome(digits, stop=lambda epoch, accuracy: bool(asked.append(epoch)))
    assert (result.state, asked) == ("complete", [1, 2])
    result, _ = outcome(digits, stop=lambda epoch, accuracy: epoch == 2)
    assert (result.state, result.epochs) == ("stopped", 2)


def test_evaluation_once_at_the_end(digits):
    result, _ = outcome(digits, every_epoch=False)
    assert result.epochs == 3
    assert result.curve == (result.accuracy,)


def test_the_learning_rate_falls_at_half_and_at_three_quarters(digits, monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def noting(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    outcome(digits, {"lr": 1.0}, epochs=8)
    steps = len(rates) // 8
    assert rates[::steps] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    rates.clear()
    outcome(digits.with_train(digits.train.take(torch.arange(32))), {"lr": 1.0}, epochs=1)
    assert rates == [1]  # a single step


def test_unknown_hyperparameters_are_refused(digits):
    with pytest.raises(InputError, match=r"'learning_rate': choose from batch_size, lr"):
        outcome(digits, {"learning_rate": 0.1})


def test_precision_is_a_rule():
    depthwise = build_network("mobilenetv2_x0.35", classes=2)
    plain = build_network("resnet8", classes=2)
    assert CPU.precision(plain, 8) == CPU.precision(depthwise, 32) == "fp32"
    matrix_units = torch.cpu._is_amx_tile_supported()
    assert Device("cuda", "a GPU", 1).precision(plain, 16) == "fp32"
    assert CPU.precision(plain, 32) == ("bf16" if matrix_units else "fp32")


def test_this_device_names_itself():
    device = this_device()
    assert device.name == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.label
    assert device.threads >= 1
