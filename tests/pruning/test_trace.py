"""Tracing: what leaves together and what stays."""

import pytest
import torch
from made_networks import (
    PICTURES,
    Branching,
    EfficientChannelAttention,
    Functional,
    Gated,
    Halves,
    torchvision_network,
)
from timm.models.metaformer import Scale
from torch import nn

from proxyhpo.pruning.cut import couple
from proxyhpo.pruning.proxy import make_proxy


def test_what_cannot_be_cut_is_left_alone_and_named():
    proxy = make_proxy(Halves(), PICTURES, criterion="l1", macs=0.5)
    assert proxy.build(0)(PICTURES).shape == (16, 10)
    notes = {row["item"]: row["note"] for row in proxy.report()}
    assert "fails" in notes["first"]
    assert "of the multiply-accumulates)" in notes["first"]
    assert "output" in notes["head"]


def test_channels_that_meet_again_leave_in_pairs():
    coupling = couple(Gated(), PICTURES)
    units = coupling.tensors["first.weight"][0]
    assert torch.equal(units[:16], units[16:])
    assert torch.equal(units[:16], coupling.tensors["second.weight"][1])


def test_groups_of_a_grouped_convolution_leave_whole():
    proxy = make_proxy(Branching(), PICTURES, criterion="random", macs=0.5)
    layer = proxy.build(0).grouped[0]
    assert 1 <= layer.groups < 8
    assert (layer.in_channels, layer.out_channels) == (4 * layer.groups, 8 * layer.groups)


def test_weights_are_followed_wherever_they_multiply():
    coupling = couple(Functional(), PICTURES)
    layers = ["first", "second", "hidden", "head"]
    assert coupling.weights == [f"{layer}.weight" for layer in layers]
    assert [0 in coupling.tensors[weight] for weight in coupling.weights] == [True] * 3 + [False]
    assert coupling.whole == {"head": "it makes the network's output"}


def test_a_convolution_along_channels_has_none_of_its_own():
    network = EfficientChannelAttention()
    coupling = couple(network, PICTURES)
    assert len(coupling.sizes) == 1
    assert 0 in coupling.tensors["first.weight"]
    assert make_proxy(network, PICTURES, criterion="l1", macs=0.5).share > 0.45


def test_heads_of_attention_grow_narrower_together():
    network = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True)
    head = nn.Sequential(nn.Linear(8, 24), network, nn.Linear(24, 10))
    units = couple(head, torch.randn(2, 5, 8)).tensors["1.self_attn.in_proj_weight"][0]
    heads = units.view(3, 4, 6)  # query, key and value; heads; channels
    assert (heads == heads[:, :1]).all()
    assert len(heads[0, 0].unique()) == 6


def test_words_are_looked_up_by_their_numbers():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.Sequential(nn.Embedding(16, 8), layer, nn.Linear(8, 4))
    assert list(couple(network, torch.arange(3)[None]).tensors["0.weight"]) == [1]


def test_what_a_shuffle_mixes_stays_and_what_stands_between_does_not():
    coupling = couple(torchvision_network("shufflenet_v2_x0_5"), torch.randn(2, 3, 32, 32))
    assert 0 in coupling.tensors["stage3.1.branch2.3.weight"]
    assert "hang together" in coupling.whole["stage3.1.branch2.5"]


def test_the_one_group_of_a_normalisation_joins_no_channels():
    layers = nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), Scale(16), nn.Conv2d(16, 8, 3)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    assert couple(network, PICTURES).sizes == (8, 16)


@pytest.mark.parametrize("example", [torch.zeros(0, 3, 8, 8), torch.tensor(1.0), None])
def test_an_example_is_pictures(example):
    with pytest.raises(ValueError, match="example: pictures as a tensor"):
        couple(Gated(), example)
