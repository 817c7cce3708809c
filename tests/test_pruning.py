"""Pruning and its parts: tracing, coupling, criteria, the proxy as a value, anatomy."""

import copy
import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from proxyhpo.anatomy import TOLERANCE, compare
from proxyhpo.config import InputError
from proxyhpo.coupling import count_macs, couple
from proxyhpo.criteria import CRITERIA, released_order
from proxyhpo.models import Network, build_network, count_parameters
from proxyhpo.pruning import Proxy, make_proxy

FAMILIES = ("resnet56", "vgg16_bn", "mobilenetv2")
SHARE = 0.3


class Branching(nn.Module):
    """A user's own network: branches, concatenation, gates, groups, a flattened picture."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(32, 48, 5, padding=2), nn.BatchNorm2d(48), nn.ReLU())
        self.grouped = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1, groups=8), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.gate = nn.Linear(112, 112)
        self.mixed = nn.Sequential(nn.Conv2d(112, 24, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.hidden = nn.Linear(24 * 16, 40)
        self.head = nn.Linear(40, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.wide(x), self.grouped(x)], 1)
        x = x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]
        x = functional.adaptive_avg_pool2d(self.mixed(x), 4).flatten(1)
        return self.head(functional.relu(self.hidden(x)))


class Halves(nn.Module):
    """Its first layer is split in two by position: one half must stay as wide as the other."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.left, self.right = nn.Conv2d(8, 32, 3), nn.Conv2d(8, 32, 3)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        left, right = self.first(x).relu().chunk(2, 1)
        return self.head((self.left(left) + self.right(right)).relu().mean((2, 3)))


class Gated(nn.Module):
    """The halves of a split meet again: their channels can only leave in pairs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 20, 3)
        self.head = nn.Linear(20, 10)

    def forward(self, x):
        value, gate = self.first(x).chunk(2, 1)
        return self.head(self.second(value * gate.sigmoid()).relu().mean((2, 3)))


def torchvision_network(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.get_model(name, num_classes=10, **options)


OTHERS = {
    "resnet18": lambda: torchvision_network("resnet18"),
    "densenet121": lambda: torchvision_network("densenet121"),
    "efficientnet_b0": lambda: torchvision_network("efficientnet_b0"),
    "regnet_y_400mf": lambda: torchvision_network("regnet_y_400mf"),
    "convnext_tiny": lambda: torchvision_network("convnext_tiny"),
    "vit_b_16": lambda: torchvision_network("vit_b_16", image_size=32),
    "googlenet": lambda: torchvision_network("googlenet", init_weights=False),
    "branching": Branching,
}


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(16, 3, 16, 16, generator=generator)
    return pictures, torch.arange(16) % 10


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return build_network(request.param, classes=10)


def snapshot(network):
    """All of a network that must not change."""
    return (
        {name: value.clone() for name, value in network.state_dict().items()},
        [module.training for module in network.modules()],
        [(p.requires_grad, p.grad) for p in network.parameters()],
        list(map(str, network.modules())),
    )


def same(first, second):
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def losses(network, batch, steps=6):
    optimiser = torch.optim.SGD(network.train().parameters(), lr=0.02, momentum=0.9)
    values = []
    for _ in range(steps):
        loss = functional.cross_entropy(network(batch[0]), batch[1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    return values


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_every_family_to_the_target(family, criterion, batch):
    before, state = snapshot(family), torch.random.get_rng_state()
    proxy = make_proxy(family, batch[0][:1], criterion=criterion, macs=SHARE, batch=batch)
    after = snapshot(family)
    assert all(map(torch.equal, before[0].values(), after[0].values()))
    assert before[1:] == after[1:]
    assert torch.equal(state, torch.random.get_rng_state())

    network = proxy.build(1)
    assert proxy.macs == count_macs(network, batch[0]) <= SHARE * proxy.base_macs
    assert proxy.share == proxy.macs / proxy.base_macs >= SHARE - TOLERANCE
    assert proxy.parameters == count_parameters(network)
    assert network(batch[0]).shape == (16, 10)
    for _, before_width, width in widths(proxy):  # no layer collapses
        assert width >= math.floor(0.15 * before_width)
    values = losses(network, batch)
    assert min(values[-2:]) < values[0] - 0.1


def widths(proxy):
    for path, (before, after) in proxy.plan["widths"].items():
        if path.endswith(("out_channels", "out_features")):
            yield path, before, after


@pytest.mark.parametrize("name", OTHERS)
def test_any_network_is_pruned_rebuilt_and_trained(name):
    network = OTHERS[name]()
    pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = pictures, torch.arange(4)
    proxy = make_proxy(network, pictures, criterion="l1", macs=0.4, batch=batch)
    assert 0.38 <= proxy.share <= 0.4
    assert all("output" in reason for reason in proxy.whole.values())
    again = Proxy.from_json(proxy.to_json(), network)
    assert again == proxy
    built = again.build(3)
    assert same(built, proxy.build(3))
    output = built.eval()(pictures)
    assert output.shape == (4, 10)
    assert output.isfinite().all()
    if name != "vit_b_16":  # its first steps at this learning rate go up, N_B's as well
        values = losses(OneOutput(built), batch)
        assert min(values[-2:]) < values[0]


class OneOutput(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        output = self.network(x)
        return output if isinstance(output, torch.Tensor) else output[0]


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


def expanded(spans):
    ends = [list(map(int, span.split("-"))) for span in spans.split(",")]
    return {
        position for first, *last in ends for position in range(first, (last or [first])[0] + 1)
    }


def test_the_plan_gives_the_shapes_of_the_network_built_by_it(batch):
    base = build_network("mobilenetv2_x0.35", classes=10)
    proxy = make_proxy(base, batch[0], criterion="snip", macs=0.4, batch=batch)
    tensors = dict(base.state_dict())
    for name, tensor in proxy.build(0).state_dict().items():
        kept = proxy.plan["kept"].get(name, {})
        for dim, size in enumerate(tensor.shape):
            spans = kept.get(str(dim), f"0-{tensors[name].shape[dim] - 1}")
            assert len(expanded(spans)) == size


def test_a_proxy_is_rebuilt_elsewhere_without_pruner_or_pictures(batch, tmp_path):
    base = build_network("resnet20", classes=10)
    proxy = make_proxy(base, batch[0], criterion="snip", macs=0.25, batch=batch)
    (tmp_path / "proxy.json").write_text(proxy.to_json())
    code = """
import hashlib, pathlib, sys
sys.modules["torch_pruning"] = None  # any import of it fails
from proxyhpo.models import build_network
from proxyhpo.pruning import Proxy
text = pathlib.Path(sys.argv[1]).read_text()
network = Proxy.from_json(text, build_network("resnet20", classes=10, seed=9)).build(5)
weights = b"".join(t.numpy().tobytes() for t in network.state_dict().values())
print(hashlib.sha256(weights).hexdigest())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "proxy.json")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    weights = proxy.build(5).state_dict().values()
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in weights)).hexdigest()
    assert run.stdout.strip() == digest


def test_the_same_seed_gives_the_same_proxy_and_weights(batch):
    base = build_network("resnet20", classes=10)
    first, again, other = (
        make_proxy(base, batch[0], criterion="random", macs=0.25, seed=seed) for seed in (1, 1, 2)
    )
    assert first.plan == again.plan != other.plan
    assert same(first.build(4), again.build(4))
    assert not same(first.build(4), first.build(5))


def test_fresh_weights_follow_the_base_networks_rule_at_the_proxys_width(batch):
    base = build_network("vgg16_bn", classes=10)
    proxy = make_proxy(base, batch[0], criterion="uniform", macs=0.25)
    for layer in proxy.build(0).modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5000:
            expected = math.sqrt(2 / (layer.out_channels * 9))  # He-normal by fan-out
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
    inherited = proxy.build(0, inherit=True).state_dict()
    kept = proxy.plan["kept"]["features.0.weight"]["0"]
    first = base.features[0].weight[sorted(expanded(kept))]
    assert torch.equal(inherited["features.0.weight"], first)


def test_weights_without_a_rule_keep_their_moments():
    network = OTHERS["convnext_tiny"]()
    proxy = make_proxy(network, torch.randn(1, 3, 32, 32), criterion="uniform", macs=0.5)
    scales = [p for n, p in proxy.build(1).named_parameters() if n.endswith("layer_scale")]
    assert len(scales) == 18
    assert all(torch.all(scale == scale.flatten()[0]) for scale in scales)
    assert scales[0].flatten()[0].item() == pytest.approx(1e-6)


@pytest.mark.parametrize("name", [*FAMILIES, "resnet18", "regnet_y_400mf"])
def test_macs_agree_with_a_second_counter(name):
    network = OTHERS[name]() if name in OTHERS else build_network(name, classes=10)
    picture = torch.randn(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(network).eval()(picture)
    assert count_macs(network, picture) == counter.get_total_flops() // 2


def test_macs_of_known_layers():
    convolution = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    assert count_macs(convolution, torch.zeros(3, 4, 5, 5)) == 25 * 6 * 2 * 9
    assert count_macs(nn.ConvTranspose2d(4, 6, 2, 2), torch.zeros(1, 4, 5, 5)) == 25 * 4 * 6 * 4
    assert count_macs(nn.Linear(7, 5), torch.zeros(2, 7)) == 35


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_targets_are_hit(family, kind, share, batch):
    proxy = make_proxy(family, batch[0], criterion="l2", min_channels=0.05, **{kind: share})
    assert share - TOLERANCE <= proxy.share <= share
    whole, left = {
        "macs": (proxy.base_macs, proxy.macs),
        "parameters": (proxy.base_parameters, proxy.parameters),
    }[kind]
    assert proxy.share == left / whole
    assert any("hit" in row["note"] for row in proxy.report())


def test_a_target_between_two_widths_takes_the_narrower_one_and_says_so():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10)
    )
    proxy = make_proxy(network, torch.randn(1, 3, 8, 8), criterion="l1", macs=0.7)
    assert proxy.share == 0.5
    assert any("missed" in row["note"] for row in proxy.report())


def test_step_time_is_a_target(batch):
    network = build_network("vgg11_bn_x0.25", classes=10)
    proxy = make_proxy(network, batch[0][:1], criterion="uniform", time=0.6, batch=batch)
    assert 0 < proxy.share <= 0.6 + TOLERANCE
    assert proxy.macs < proxy.base_macs
    assert "step time" in [row["item"] for row in proxy.report()]


def test_local_keeps_the_same_share_everywhere(batch):
    network = build_network("vgg16_bn", classes=10)
    local = make_proxy(network, batch[0], scope="local", criterion="l1", macs=0.25)
    shares = [after / before for _, before, after in widths(local)]
    assert max(shares) - min(shares) <= 1 / 64 + 1e-9
    everywhere = make_proxy(network, batch[0], criterion="snip", macs=0.25, batch=batch)
    shares = [after / before for _, before, after in widths(everywhere)]
    assert max(shares) - min(shares) > 0.1


def test_channels_are_rounded_on_request(batch):
    network = build_network("mobilenetv2", classes=10)
    proxy = make_proxy(network, batch[0], criterion="l1", macs=0.3, round_to=8)
    assert proxy.share <= 0.3
    assert all(after % 8 == 0 for _, _, after in widths(proxy))


def test_synflow_scores_pass_relu6_and_deep_networks(batch):
    for name in ("mobilenetv2", "resnet110"):
        scratch = build_network(name, classes=10)
        coupling = couple(copy.deepcopy(scratch), batch[0])
        scores = CRITERIA["synflow"].score(scratch, coupling, None, batch[0])
        assert scores.isfinite().all()
        assert (scores > 0).all()
        assert scores.max() == 1


def test_snip_is_weight_times_gradient_of_the_cross_entropy(batch):
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10)
    )
    coupling = couple(copy.deepcopy(network), batch[0])
    scores = CRITERIA["snip"].score(network, coupling, batch, batch[0])
    functional.cross_entropy(network(batch[0]), batch[1]).backward()
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


def test_raw_scores_collapse_layers_and_normalised_ones_do_not(batch, monkeypatch):
    monkeypatch.setitem(CRITERIA, "raw", replace(CRITERIA["snip"], normalised=False))
    network = build_network("resnet56", classes=10)
    options = {"macs": 0.5, "batch": batch, "min_channels": 0.01}
    narrow = {
        name: [after for _, _, after in widths(make_proxy(network, batch[0], **kind, **options))]
        for name, kind in {"raw": {"criterion": "raw"}, "normalised": {"criterion": "snip"}}.items()
    }
    assert narrow["raw"].count(1) > 5
    assert narrow["normalised"].count(1) == 0


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


def test_the_report_compares_costs_time_memory_and_channels(batch):
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


BAD = {
    "exactly one": {},
    "parameters, time": {"macs": 0.5, "parameters": 0.5},
    "macs 0:": {"macs": 0},
    "macs 1:": {"macs": 1},
    "macs -0.5": {"macs": -0.5},
    "time 'half'": {"time": "half"},
    "did you mean 'snip'": {"macs": 0.5, "criterion": "snipp"},
    "unknown scope": {"macs": 0.5, "scope": "everywhere"},
    "min_channels 0": {"macs": 0.5, "min_channels": 0},
    "round_to 0": {"macs": 0.5, "round_to": 0},
    "needs batch": {"macs": 0.5, "criterion": "snip"},
    "out of reach": {"macs": 0.01},
    "example of shape (1, 5, 16, 16)": {"macs": 0.5, "example": torch.zeros(1, 5, 16, 16)},
    "example: pictures": {"macs": 0.5, "example": [1, 2]},
    "batch: snip": {
        "macs": 0.5,
        "criterion": "snip",
        "batch": (torch.zeros(4, 3, 16, 16), torch.arange(3)),
    },
    "no layer of it": {"macs": 0.5, "network": nn.Sequential(nn.Flatten(), nn.Linear(768, 10))},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_gives_one_clear_line(message):
    options = {
        "network": build_network("resnet8", classes=10),
        "example": torch.zeros(1, 3, 16, 16),
        "criterion": "l1",
    } | BAD[message]
    with pytest.raises(InputError) as caught:
        make_proxy(options.pop("network"), options.pop("example"), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_of_another_network_is_refused():
    proxy = make_proxy(
        build_network("resnet8", classes=10), torch.zeros(1, 3, 16, 16), criterion="l1", macs=0.5
    )
    for text, network in (
        (proxy.to_json(), build_network("resnet14", classes=10)),
        (proxy.to_json(), build_network("vgg11_bn", classes=10)),
        ("{}", build_network("resnet8", classes=10)),
        ("not json", build_network("resnet8", classes=10)),
    ):
        with pytest.raises(InputError):
            Proxy.from_json(text, network)


def test_a_root_rule_draws_the_whole_network():
    network = build_network("resnet8", classes=10)
    assert isinstance(network, Network)
    proxy = make_proxy(network, torch.zeros(1, 3, 16, 16), criterion="uniform", macs=0.5)
    expected = proxy.build(0, inherit=True)
    torch.manual_seed(7)
    expected.reset_parameters()
    state = torch.random.get_rng_state()
    assert same(proxy.build(7), expected)
    assert torch.equal(state, torch.random.get_rng_state())
