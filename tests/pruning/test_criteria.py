"""Criteria: scores, and the order that they give."""

import copy
from dataclasses import replace

import pytest
import torch
from made_networks import BATCH, PICTURES, widths
from torch import nn
from torch.nn import functional

from proxyhpo.models import build_network
from proxyhpo.pruning.criteria import CRITERIA, released_order
from proxyhpo.pruning.cut import couple
from proxyhpo.pruning.proxy import make_proxy


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet110"])
def test_synflow_scores_pass_relu6_and_deep_networks(name):
    scratch = build_network(name, classes=10)
    coupling = couple(copy.deepcopy(scratch), PICTURES)
    scores = CRITERIA["synflow"].score(scratch, coupling, None, PICTURES)
    assert scores.isfinite().all()
    assert (scores > 0).all()
    assert scores.max() == 1


def test_snip_is_weight_times_gradient_of_the_cross_entropy():
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10)
    )
    coupling = couple(copy.deepcopy(network), PICTURES)
    scores = CRITERIA["snip"].score(network, coupling, BATCH, PICTURES)
    functional.cross_entropy(network(PICTURES), BATCH[1]).backward()
    first, last = network[0].weight, network[4].weight
    expected = (first * first.grad).abs().sum((1, 2, 3)) + (last * last.grad).abs().sum(0)
    torch.testing.assert_close(scores.float(), expected)


def test_released_selects_other_channels_than_the_best():
    scores = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.5])
    for k in range(1, 6):
        kept = released_order(scores) < k
        assert torch.equal(kept, scores.argsort() >= 5 - k)  # its own rule
        assert kept.sum() == k
    assert not torch.equal(released_order(scores) < 2, scores >= 0.7)


def test_raw_scores_collapse_layers_and_normalised_ones_do_not(monkeypatch):
    monkeypatch.setitem(CRITERIA, "raw", replace(CRITERIA["snip"], normalised=False))
    network = build_network("resnet56", classes=10)
    options = {"macs": 0.5, "batch": BATCH, "min_channels": 0.01}
    raw, normalised = (
        make_proxy(network, PICTURES, criterion=name, **options) for name in ("raw", "snip")
    )
    assert [after for _, _, after in widths(raw)].count(1) > 5
    assert [after for _, _, after in widths(normalised)].count(1) == 0


def test_local_keeps_the_same_share_everywhere():
    network = build_network("vgg16_bn", classes=10)
    local = make_proxy(network, PICTURES, scope="local", criterion="l1", macs=0.25)
    shares = [after / before for _, before, after in widths(local)]
    assert max(shares) - min(shares) <= 1 / 64 + 1e-9
    everywhere = make_proxy(network, PICTURES, criterion="snip", macs=0.25, batch=BATCH)
    shares = [after / before for _, before, after in widths(everywhere)]
    assert max(shares) - min(shares) > 0.1


def test_channels_are_rounded_on_request():
    network = build_network("mobilenetv2", classes=10)
    proxy = make_proxy(network, PICTURES, criterion="l1", macs=0.3, round_to=8)
    assert proxy.share <= 0.3
    assert all(after % 8 == 0 for _, _, after in widths(proxy))
