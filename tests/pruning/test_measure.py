"""Anatomy: what pruning did, as rows."""

import json
import os
import subprocess
import sys

from made_networks import (
    made_batch,
)

from proxyhpo.models import build_network
from proxyhpo.pruning.measure import compare
from proxyhpo.pruning.proxy import make_proxy


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


NARROW_STEPS = """
from proxyhpo.pruning.measure import step_seconds
from proxyhpo.models import build_network
from proxyhpo.pruning.proxy import make_proxy
import torch

pictures = torch.randn(64, 1, 8, 8).to(memory_format=torch.channels_last)
network = build_network("resnet8", classes=10, channels=1)
proxy = make_proxy(network, pictures[:1], criterion="uniform", macs=0.1)
for _ in range(3):
    step_seconds([(network, pictures), (proxy.build(0), pictures)], repeats=2)
print("done")
"""


def test_timing_steps_of_a_narrow_proxy_leaves_the_heap_whole():
    # ONEDNN_MAX_CPU_ISA makes any x86 processor take the code path that corrupts it
    done = subprocess.run(
        [sys.executable, "-c", NARROW_STEPS],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "done\n", done.stderr
