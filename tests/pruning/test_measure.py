"""What a network costs: multiply-accumulates, steps, memory; criteria set side by side."""

import json

from made_networks import BATCH, PICTURES, snapshot
from torch import nn, zeros

from proxyhpo.models import build_network
from proxyhpo.pruning.measure import count_macs
from proxyhpo.pruning.proxy import make_proxy, survey


def test_macs_of_known_layers():
    convolution = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    before = snapshot(convolution)
    assert count_macs(convolution, zeros(3, 4, 5, 5)) == 25 * 6 * 2 * 9
    assert snapshot(convolution)[1:] == before[1:]
    assert not convolution._forward_hooks
    assert count_macs(nn.ConvTranspose2d(4, 6, 2, 2), zeros(1, 4, 5, 5)) == 25 * 4 * 6 * 4
    assert count_macs(nn.Linear(7, 5), zeros(2, 7)) == 35
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)  # five tokens of 8 channels
    projections, products, mlp = 5 * 8 * (3 * 8 + 8), 2 * 5 * 5 * 8, 2 * 5 * 8 * 16
    assert count_macs(attention, zeros(1, 5, 8)) == projections + products + mlp


def test_a_view_of_a_weight_may_enter_a_layer():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.layer = nn.Parameter(zeros(1, 1, 4)), nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(self.token.expand(len(x), -1, -1))

    assert count_macs(Token(), zeros(3, 1)) == 8


def test_a_survey_compares_costs_time_memory_and_channels():
    network = build_network("vgg11_bn_x0.25", classes=10)
    proxy = make_proxy(network, PICTURES[:1], criterion="uniform", macs=0.25)
    found = survey(network, BATCH, ["uniform"], [0.25, 0.5], repeats=2)
    json.dumps(found)
    assert {row["criterion"] for row in found} == {"uniform"}
    rows = {row["item"]: row for row in found if row["asked"] == 0.25}
    assert rows["multiply-accumulates"]["proxy"] == proxy.macs
    assert rows["multiply-accumulates"]["share"] == proxy.share
    assert rows["step seconds"]["base"] > 0
    assert 0.2 < rows["bytes for backward"]["share"] < 0.8
    assert rows["features.0"]["base"] == network.features[0].out_channels
    assert rows["features.0"]["proxy"] == proxy.build(0).features[0].out_channels
    assert rows["classifier"]["share"] == 1
