from contextlib import nullcontext

import pytest
import torch
from made_pictures import refused

from proxyhpo.models import MODELS, build_network, check_side, seeded
from proxyhpo.pruning.measure import count_parameters


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3), (64, 3)])
def test_every_network_takes_every_size_of_picture(name, side, channels):
    network = build_network(name, classes=7, channels=channels).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(2, channels, side, side))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # He et al. 2016, table 6; our 1x1 shortcuts add 0.003
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet44", 0.66),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
        # the usual CIFAR forms: 14.7 M with one linear layer, 2.2 M with torchvision's blocks
        ("vgg16_bn", 14.7),
        ("mobilenetv2", 2.24),
    ],
)
def test_parameter_counts_agree_with_the_literature(name, millions):
    count = count_parameters(build_network(name, classes=10)) / 1e6
    assert count == pytest.approx(millions, rel=0.025)


def test_the_seed_decides_the_weights_and_leaves_the_callers_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (build_network("resnet8", classes=3, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_the_state_of_every_gpu_in_use_is_kept(monkeypatch):
    forked = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.random, "fork_rng", lambda devices: forked.append(devices) or nullcontext()
    )
    with seeded(0):
        assert forked == [[torch.device("cuda", 0), torch.device("cuda", 1)]]


def test_reset_parameters_draws_what_the_constructor_draws():
    torch.manual_seed(0)
    network = build_network("vgg11_bn_x0.25", classes=3, seed=4)
    fresh = {k: v.std().item() for k, v in network.state_dict().items() if k.endswith("weight")}
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 9.0)
    network.reset_parameters()
    for name, std in fresh.items():
        drawn = network.state_dict()[name].std().item()
        assert drawn == pytest.approx(std, rel=0.35, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: build_network("resnet57", classes=10), "did you mean 'resnet56'"),
        (lambda: build_network("resnet8", classes=1), "classes 1"),
        (lambda: build_network("resnet8", classes=10, channels=2), "channels 2"),
        (lambda: check_side(7), "side 7"),
        (lambda: check_side(65), "side 65"),
    ],
)
def test_bad_input_is_one_line(call, named):
    assert named in refused(call)
