"""Making proxies of any network, and the proxy as a value."""

import hashlib
import math
import os
import subprocess
import sys

import pytest
import torch
from made_networks import BATCH, OTHERS, PICTURES, expanded, losses, snapshot, widths
from made_pictures import refused
from torch import nn

from proxyhpo.config import InputError
from proxyhpo.models import build_network
from proxyhpo.pruning.criteria import CRITERIA
from proxyhpo.pruning.measure import count_macs, count_parameters
from proxyhpo.pruning.proxy import TOLERANCE, Proxy, make_proxy

FAMILIES = ("resnet56", "vgg16_bn", "mobilenetv2")
SHARE = 0.3


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return build_network(request.param, classes=10)


def same(first, second):
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_every_family_to_the_target(family, criterion):
    before, state = snapshot(family), torch.random.get_rng_state()
    proxy = make_proxy(family, PICTURES[:1], criterion=criterion, macs=SHARE, batch=BATCH)
    after = snapshot(family)
    assert all(map(torch.equal, before[0].values(), after[0].values()))
    assert before[1:] == after[1:]
    assert torch.equal(state, torch.random.get_rng_state())

    network = proxy.build(1)
    assert proxy.macs == count_macs(network, PICTURES) <= SHARE * proxy.base_macs
    assert proxy.share == proxy.macs / proxy.base_macs >= SHARE - TOLERANCE
    assert proxy.parameters == count_parameters(network)
    assert network(PICTURES).shape == (16, 10)
    for _, before_width, width in widths(proxy):  # no layer collapses
        assert width >= math.floor(0.15 * before_width)
    values = losses(network, *BATCH)
    assert min(values[-2:]) < values[0] - 0.1


@pytest.mark.parametrize("name", OTHERS)
def test_any_network_is_pruned_rebuilt_and_trained(name):
    network = OTHERS[name]()
    pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    proxy = make_proxy(network, pictures, criterion="l1", macs=0.4)
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
        values = losses(built, pictures, torch.arange(4))
        assert min(values[-2:]) < values[0]


def test_a_proxy_is_rebuilt_in_another_process_without_pictures(tmp_path):
    base = build_network("resnet20", classes=10)
    proxy = make_proxy(base, PICTURES, criterion="snip", macs=0.25, batch=BATCH)
    (tmp_path / "proxy.json").write_text(proxy.to_json())
    code = """
import hashlib, pathlib, sys
from proxyhpo.models import build_network
from proxyhpo.pruning.proxy import Proxy
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


def test_the_same_seed_gives_the_same_proxy_and_weights():
    base = build_network("resnet20", classes=10)
    first, again, other = (
        make_proxy(base, PICTURES, criterion="random", macs=0.25, seed=seed) for seed in (1, 1, 2)
    )
    assert first.plan == again.plan != other.plan
    assert same(first.build(4), again.build(4))
    assert not same(first.build(4), first.build(5))


def test_fresh_weights_follow_the_base_networks_rule_at_the_proxys_width():
    base = build_network("vgg16_bn", classes=10)
    proxy = make_proxy(base, PICTURES, criterion="uniform", macs=0.25)
    inherited, fresh = proxy.build(0, inherit=True), proxy.build(7)
    kept = proxy.plan["kept"]["features.0.weight"]["0"]
    first = base.features[0].weight[sorted(expanded(kept))]
    assert torch.equal(inherited.features[0].weight, first)
    assert same(inherited, proxy.build(1, inherit=True))
    assert not same(inherited, fresh)
    for layer in fresh.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5000:
            expected = math.sqrt(2 / (layer.out_channels * 9))  # He-normal by fan-out
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
    torch.manual_seed(7)
    inherited.reset_parameters()
    state = torch.random.get_rng_state()
    assert same(proxy.build(7), inherited)
    assert torch.equal(state, torch.random.get_rng_state())


def test_weights_without_a_rule_keep_their_moments():
    network = OTHERS["convnext_tiny"]()
    proxy = make_proxy(network, torch.randn(1, 3, 32, 32), criterion="uniform", macs=0.5)
    scales = [p for n, p in proxy.build(1).named_parameters() if n.endswith("layer_scale")]
    assert len(scales) == 18
    assert all(torch.all(scale == scale.flatten()[0]) for scale in scales)
    assert scales[0].flatten()[0].item() == pytest.approx(1e-6)


@pytest.mark.parametrize("share", [0.1, 0.8])
@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_targets_are_hit(family, kind, share):
    proxy = make_proxy(family, PICTURES, criterion="l2", min_channels=0.05, **{kind: share})
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


def test_step_time_is_a_target():
    network = build_network("vgg11_bn_x0.25", classes=10)
    proxy = make_proxy(network, PICTURES[:1], criterion="uniform", time=0.6, batch=BATCH)
    assert 0 < proxy.share <= 0.6 + TOLERANCE
    assert proxy.macs < proxy.base_macs
    assert "step time" in [row["item"] for row in proxy.report()]


def test_step_time_is_measured_on_one_picture_too():
    layers = nn.Conv2d(3, 64, 16), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 1), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(64, 10))
    assert make_proxy(network, PICTURES[:1], criterion="l1", time=0.9).share <= 0.9 + TOLERANCE


def test_frozen_weights_and_their_statistics_stay():
    network = OTHERS["resnet18"]()
    network.layer1.requires_grad_(False)
    network.layer1[0].bn1.running_mean += 1
    proxy = make_proxy(network, PICTURES, criterion="uniform", macs=0.5)
    fresh, inherited = (proxy.build(1, inherit=inherit).state_dict() for inherit in (False, True))
    same = {name for name in fresh if torch.equal(fresh[name], inherited[name])}
    assert {name for name in fresh if name.startswith("layer1")} < same
    assert "conv1.weight" not in same


class Text(nn.Module):
    """A recurrent network on integers."""

    def __init__(self, recurrent):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.cells = recurrent(8, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, text):
        return self.head(self.cells(self.embed(text))[0][:, -1])


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_is_named_and_what_to_use_instead(recurrent):
    text = torch.randint(9, (2, 5))
    told = refused(lambda: make_proxy(Text(recurrent), text, criterion="l1"))
    assert f"cells: {recurrent.__name__} can't be followed" in told
    assert "'epochs' and 'subset'" in told


def test_a_proxy_is_shown_in_a_line():
    network = build_network("resnet8", classes=10)
    proxy = make_proxy(network, PICTURES, criterion="l1", macs=0.5)
    assert repr(proxy).startswith(f"Proxy by l1, at {proxy.share:.1%} of macs: {proxy.macs:,} of ")
    assert str(proxy).endswith(f" of {proxy.base_parameters:,} parameters")


BAD = {
    "parameters, time": {"macs": 0.5, "parameters": 0.5},
    "macs 0:": {"macs": 0},
    "macs 1:": {"macs": 1},
    "macs -0.5": {"macs": -0.5},
    "time 'half'": {"time": "half"},
    "did you mean 'snip'": {"criterion": "snipp"},
    "unknown scope": {"scope": "everywhere"},
    "min_channels 0": {"min_channels": 0},
    "round_to 0": {"round_to": 0},
    "needs batch": {"criterion": "snip"},
    "out of reach": {"macs": 0.01},
    "example of shape (1, 5, 16, 16)": {"example": torch.zeros(1, 5, 16, 16)},
    "example: pictures": {"example": [1, 2]},
    "batch: snip": {"criterion": "snip", "batch": (PICTURES, torch.arange(3))},
    "not what builds one: call it": {"network": nn.Flatten},
    "criterion synflow: it fails": {
        "criterion": "synflow",
        "network": nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 4)),
        "example": torch.ones(2, 5).long(),
    },
    "no layer of it": {"network": nn.Sequential(nn.Flatten(), nn.Linear(768, 10))},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_gives_one_clear_line(message):
    usual = {"network": build_network("resnet8", classes=10), "example": PICTURES}
    options = usual | {"criterion": "l1"} | BAD[message]
    assert message in refused(lambda: make_proxy(**options))


def test_a_plan_of_another_network_is_refused():
    network = build_network("resnet8", classes=10)
    text = make_proxy(network, PICTURES, criterion="l1", macs=0.5).to_json()
    for other, name in ((text, "resnet14"), (text, "vgg11_bn"), ("{}", "resnet8"), ("", "resnet8")):
        with pytest.raises(InputError):
            Proxy.from_json(other, build_network(name, classes=10))
