"""Coupling and tracing: what leaves together, what stays, what it costs."""

import copy

import pytest
import torch
from made_networks import (
    OTHERS,
    Branching,
    Gated,
    Halves,
    expanded,
    snapshot,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from proxyhpo.models import build_network
from proxyhpo.pruning.coupling import count_macs, couple
from proxyhpo.pruning.proxy import make_proxy

FAMILIES = ("resnet56", "vgg16_bn", "mobilenetv2")


@pytest.mark.parametrize("name", [*FAMILIES, "resnet18", "regnet_y_400mf"])
def test_macs_agree_with_a_second_counter(name):
    network = OTHERS[name]() if name in OTHERS else build_network(name, classes=10)
    picture = torch.randn(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(network).eval()(picture)
    assert count_macs(network, picture) == counter.get_total_flops() // 2


def test_macs_of_known_layers():
    convolution = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    before = snapshot(convolution)
    assert count_macs(convolution, torch.zeros(3, 4, 5, 5)) == 25 * 6 * 2 * 9
    assert snapshot(convolution)[1:] == before[1:]
    assert not convolution._forward_hooks
    assert count_macs(nn.ConvTranspose2d(4, 6, 2, 2), torch.zeros(1, 4, 5, 5)) == 25 * 4 * 6 * 4
    assert count_macs(nn.Linear(7, 5), torch.zeros(2, 7)) == 35


def test_what_cannot_be_cut_is_left_alone_and_named():
    pictures = torch.randn(2, 3, 16, 16)
    proxy = make_proxy(Halves(), pictures, criterion="l1", macs=0.5)
    assert proxy.build(0)(pictures).shape == (2, 10)
    assert "fails" in proxy.whole["first"]
    notes = {row["item"]: row["note"] for row in proxy.report()}
    assert "fails" in notes["first"]
    assert "output" in notes["head"]


def test_channels_that_meet_again_leave_in_pairs():
    coupling = couple(Gated(), torch.randn(2, 3, 16, 16))
    units = coupling.tensors["first.weight"][0]
    assert torch.equal(units[:16], units[16:])
    assert torch.equal(units[:16], coupling.tensors["second.weight"][1])


def test_groups_of_a_grouped_convolution_leave_whole():
    proxy = make_proxy(Branching(), torch.randn(2, 3, 16, 16), criterion="random", macs=0.5)
    layer = proxy.build(0).grouped[0]
    assert 1 <= layer.groups < 8
    assert (layer.in_channels, layer.out_channels) == (4 * layer.groups, 8 * layer.groups)


@pytest.mark.parametrize(
    "make",
    [
        lambda: build_network("resnet20", classes=10),
        lambda: build_network("vgg11_bn_x0.25", classes=10),
        lambda: build_network("mobilenetv2_x0.35", classes=10),
        OTHERS["densenet121"],
        OTHERS["regnet_y_400mf"],
        OTHERS["efficientnet_b0"],
        Branching,
        Gated,
    ],
)
@torch.no_grad()
def test_inherited_weights_compute_what_the_masked_base_computes(make):
    network = make().double().eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                tensor.uniform_(0.5, 1.5)
    pictures = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    proxy = make_proxy(network, pictures, criterion="random", macs=0.5)
    masked = copy.deepcopy(network)
    tensors = dict(masked.named_parameters())
    for path, dims in proxy.plan["kept"].items():
        for dim, spans in dims.items():
            if path in tensors:
                size = tensors[path].shape[int(dim)]
                gone = sorted(set(range(size)) - expanded(spans))
                tensors[path].index_fill_(int(dim), torch.tensor(gone), 0.0)
    expected = masked(pictures)
    assert not torch.allclose(expected, network(pictures), rtol=1e-3)
    built = proxy.build(0, inherit=True).eval()
    torch.testing.assert_close(built(pictures), expected, rtol=1e-8, atol=1e-8)
