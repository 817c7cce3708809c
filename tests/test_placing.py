"""The guard against oneDNN's heap corruption; the crash itself needs a CPU without AVX-512."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from proxyhpo.models import _taps, place, place_both

NARROW_TRAINING = """
import torch
from torch import nn
from proxyhpo.models import place

for channels in range(1, 9):
    shortcut = place(nn.Conv2d(channels, 12, 1, stride=2, bias=False))
    for _ in range(5):
        pictures = torch.randn(64, channels, 32, 32).to(memory_format=torch.channels_last)
        shortcut(pictures.requires_grad_()).sum().backward()
# what measures and what scores steps is guarded as what trains is
from proxyhpo.pruning.measure import step_seconds
from proxyhpo.pruning.criteria import snip
narrow = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 1, stride=2), nn.Flatten(),
                       nn.LazyLinear(2))
pictures = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last)
narrow(pictures)
step_seconds([(narrow, pictures)] * 3)
class Units:
    weights = ["0.weight", "1.weight", "3.weight"]
    def sum(self, saliency): return saliency
for _ in range(5):
    snip(narrow.to(memory_format=torch.channels_last), Units(),
         (pictures, torch.zeros(64, dtype=torch.int64)), pictures)
print("done")
"""


def test_narrow_strided_shortcuts_train_without_corrupting_the_heap():
    # ONEDNN_MAX_CPU_ISA makes any x86 processor take the code path that crashed
    done = subprocess.run(
        [sys.executable, "-c", NARROW_TRAINING],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "done\n", done.stderr


def check_same_function(network, pictures):
    placed = place(copy.deepcopy(network))
    results = []
    for one in (network, placed):
        given = pictures.clone().requires_grad_()
        output = one(given)
        output.square().sum().backward()
        results.append([output, given.grad, *(weight.grad for weight in one.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert placed.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("stride", [1, 2, (2, 3)])
@pytest.mark.parametrize("channels", [4, 7, 8])
def test_placing_changes_no_output_and_no_gradient(channels, stride):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, 6, 1, stride=stride), nn.Conv2d(6, 3, 3, stride=2))
    check_same_function(network, torch.randn(2, channels, 12, 12))


@pytest.mark.parametrize("side", [(1, 1), (2, 2), (1, 3), (4, 1), (3, 2)])
@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 3, "padding": 1, "bias": False},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (5, 3), "padding": (2, 3), "stride": (1, 2), "dilation": (1, 2)},
        {"kernel_size": 1},
    ],
    ids=str,
)
def test_a_depthwise_convolution_of_few_pixels_is_the_same_function(how, side):
    torch.manual_seed(0)
    check_same_function(nn.Conv2d(6, 6, groups=6, **how), torch.randn(4, 6, *side))


def test_few_pixels_can_be_evaluated_before_they_are_trained_on():
    depthwise, picture = place(nn.Conv2d(6, 6, 3, padding=1, groups=6)), torch.zeros(1, 6, 1, 2)
    _taps.cache_clear()
    with torch.inference_mode():
        depthwise(picture)
    depthwise(picture).sum().backward()
    assert depthwise.weight.grad is not None


def test_few_pixels_are_not_left_to_the_library(monkeypatch):
    depthwise = place(nn.Conv2d(6, 6, 3, padding=1, groups=6))
    monkeypatch.setattr(nn.Conv2d, "forward", None)
    assert depthwise(torch.zeros(1, 6, 2, 2)).shape == (1, 6, 2, 2)
    with pytest.raises(TypeError):
        depthwise(torch.zeros(1, 6, 3, 3))


def test_inputs_without_that_layout_are_left_as_they_are():
    solid = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten())
    pictures = torch.randn(2, 1, 4, 4, 4)
    for network, given in ((solid, pictures), (nn.Linear(3, 2), torch.randn(2, 3))):
        placed, same = place_both(network, given)
        assert placed is network
        assert same is given
        placed(same).sum().backward()
