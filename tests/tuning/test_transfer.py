"""The self-check of transfer, on small networks and real steps."""

from functools import partial

import pytest
import torch
from torch import nn

from proxyhpo import load_dataset, transfer_check
from proxyhpo.config import InputError
from proxyhpo.models import build_network
from proxyhpo.tuning.transfer import MARGIN, Transfer


class Scaled(nn.Conv2d):
    """Weights of size one, scaled in the forward pass: in theory no width needs another rate."""

    def reset_parameters(self):
        nn.init.normal_(self.weight)

    def forward(self, pictures):
        return self._conv_forward(
            pictures, (2 / self.weight[0].numel()) ** 0.5 * self.weight, self.bias
        )


def plain(conv=nn.Conv2d):
    """Two convolutions without normalisation; the cost goes with the width, not its square."""
    first = conv(1, 128, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(first, nn.ReLU(), conv(128, 10, 4, bias=False), nn.Flatten())


def resnet8():
    return build_network("resnet8", classes=10, channels=1, seed=int(torch.randint(2**31, ())))


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def checked(digits):
    return transfer_check(resnet8, digits, rates=(0.02, 0.08), steps=8, seeds=4)


def test_a_resnets_learning_rate_does_not_transfer_from_half_its_width(checked):
    assert checked.verdict == "does not transfer"
    assert MARGIN < checked.low < checked.shift < checked.high < 1.6  # theory: about an octave
    assert checked.share == pytest.approx(0.25, abs=0.02)
    assert (checked.table["base"] > checked.table["stand_in"]).all()


@pytest.mark.parametrize(
    ("conv", "verdict", "octaves"), [(nn.Conv2d, "does not transfer", 1), (Scaled, "transfers", 0)]
)
def test_it_tells_a_network_that_is_scaled_for_its_width(digits, conv, verdict, octaves):
    found = transfer_check(
        partial(plain, conv), digits, stand_in="uniform@0.5", rates=(0.003, 0.01), steps=3, seeds=24
    )
    assert found.verdict == verdict
    assert found.shift == pytest.approx(octaves, abs=0.2)
    assert ("candidate as it is" in str(found)) == (verdict == "transfers")


def test_a_larger_share_lies_nearer_and_the_same_call_gives_the_same(digits):
    own = {"rates": (0.003, 0.01), "steps": 3, "seeds": 4}
    before = torch.get_rng_state()
    half, again, most = (
        transfer_check(plain, digits, stand_in=f"uniform@{share}", **own)
        for share in (0.5, 0.5, 0.8)
    )
    assert most.shift < half.shift
    assert again.table.equals(half.table)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.4, 0.4, "transfers"),
        (0.6, 1.4, "does not transfer"),
        (-1.4, -0.6, "does not transfer"),
        (0.2, 0.8, "undecided"),
        (-0.8, 0.8, "undecided"),
    ],
)
def test_the_whole_interval_decides(checked, low, high, verdict):
    own = Transfer("a", "b", 0.25, (low + high) / 2, low, high, checked.table, 1.0)
    assert own.verdict == verdict
    assert str(own).startswith(f"learning rate from b to a: {verdict}\n")
    assert own._repr_markdown_().startswith(f"**learning rate from b to a: {verdict}**")


def test_it_is_shown_as_text_and_as_markdown(checked):
    assert "times the stand-in's" in str(checked)
    lines = checked._repr_markdown_().split("\n")
    assert lines[-4:-2] == ["| lr | base | stand_in | ratio |", "| --- | --- | --- | --- |"]
    assert lines[-1].startswith("| 0.08 | ")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"stand_in": "epochs@0.3"}, "pruned stand-in 'epochs': choose from"),
        ({"stand_in": "uniform@2"}, "share"),
        ({"rates": (0.1,)}, "at least two learning rates above 0"),
        ({"rates": (0.1, -0.1)}, "at least two learning rates above 0"),
        ({"rates": 0.1}, "at least two learning rates above 0"),
        ({"rates": (1e18, 1e19)}, "diverges at all but 0"),
        ({"steps": 0}, "steps 0: a whole number, at least 1"),
        ({"seeds": 1}, "seeds 1: a whole number, at least 2"),
        ({"data": 7}, "a folder, a pair"),
        ({"network": plain()}, "a callable that builds one"),
        ({"network": lambda: nn.Flatten()}, "no weights to train"),
        ({"network": lambda: plain().requires_grad_(False)}, "no weights to train"),
        ({"network": lambda: nn.Sequential(plain(), nn.Linear(10, 9))}, "network gives"),
    ],
)
def test_bad_input_gives_one_line(digits, options, told):
    given = {"network": plain, "data": digits, "steps": 4, "seeds": 2, **options}
    with pytest.raises(InputError, match=told) as caught:
        transfer_check(given.pop("network"), given.pop("data"), **given)
    assert "\n" not in str(caught.value)
