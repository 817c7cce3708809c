"""Anatomy: what pruning did, as rows."""

import json

from made_networks import (
    made_batch,
)

from proxyhpo.anatomy import compare
from proxyhpo.models import build_network
from proxyhpo.pruning import make_proxy


def test_the_report_compares_costs_time_memory_and_channels():
    batch = made_batch()
    network = build_network("vgg11_bn_x0.25", classes=10)
    proxy = make_proxy(network, batch[0], criterion="uniform", macs=0.25)
    rows = {row["item"]: row for row in compare(proxy, network, batch[0], repeats=2)}
    assert rows["multiply-accumulates"]["proxy"] == proxy.macs
    assert rows["multiply-accumulates"]["share"] == proxy.share
    assert rows["step seconds"]["base"] > 0
    assert 0.2 < rows["bytes for backward"]["share"] < 0.8
    assert rows["features.0"]["base"] == network.features[0].out_channels
    assert rows["features.0"]["proxy"] == proxy.build(0).features[0].out_channels
    assert rows["classifier"]["share"] == 1
    json.dumps(list(rows.values()))
