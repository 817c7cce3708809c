"""Cutting: what a cut network computes, and what it costs by a counter of another's."""

import copy
from functools import partial

import numpy as np
import pytest
import timm
import torch
from made_networks import (
    OTHERS,
    Branching,
    Functional,
    Gated,
    Halves,
    expanded,
    losses,
    torchvision_network,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)

from proxyhpo.config import InputError
from proxyhpo.models import build_network
from proxyhpo.pruning.proxy import make_proxy


def small_swin(**options):
    shape = {"embed_dim": 24, "depths": [2, 2], "num_heads": [3, 6], "window_size": [3, 3]}
    return SwinTransformer([4, 4], **shape, num_classes=10, **options)


small_swin_v2 = partial(small_swin, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)
small_deit = partial(
    timm.create_model, "deit_tiny_patch16_224", num_classes=10, img_size=32, depth=2
)
small_convnext = partial(timm.create_model, "convnextv2_atto", num_classes=10)


def ours(name):
    return partial(build_network, name, classes=10)


def large(name, side):
    made = partial(torchvision_network, name)
    return pytest.param(made, side, id=f"{name}-{side}", marks=pytest.mark.slow)


COUNTED = [
    pytest.param(Functional, 32, id="functional"),
    pytest.param(ours("resnet20"), 16, id="resnet20"),
    pytest.param(small_swin, 32, id="swin"),
    pytest.param(small_swin_v2, 32, id="swin_v2"),
    pytest.param(small_deit, 32, id="deit_tiny_patch16"),
    pytest.param(partial(torchvision_network, "shufflenet_v2_x1_0"), 32, id="shufflenet_v2"),
    large("swin_t", 64),
    large("swin_t", 224),
    large("vit_b_16", 224),
    large("convnext_tiny", 64),
    large("shufflenet_v2_x1_0", 224),
    large("efficientnet_b0", 64),
    large("densenet121", 64),
    large("regnet_y_400mf", 64),
    large("mobilenet_v3_small", 64),
    pytest.param(small_convnext, 64, id="convnextv2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("build", "side"), COUNTED)
def test_the_share_is_what_torch_counts_and_the_proxy_trains(build, side):
    network, pictures = build(), torch.randn(2, 3, side, side)
    before = copy.deepcopy(network.state_dict())
    proxy = make_proxy(network, pictures[:1], criterion="uniform", macs=0.5)
    made = proxy.build(0)
    counted = []
    for one in (network, made):
        # torch counts attention's products on a GPU, on a CPU only where they run one by one;
        # without gradients nn.MultiheadAttention runs in one operation that isn't counted at all
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            copy.deepcopy(one).eval()(pictures[:1])
        counted.append(counter.get_total_flops())
    assert proxy.share == pytest.approx(counted[1] / counted[0], rel=0.02)
    assert all(map(torch.equal, network.state_dict().values(), before.values()))
    assert np.isfinite(losses(made, pictures, torch.arange(2), lr=0.01, steps=5)).all()


def test_a_share_out_of_reach_is_an_error_that_names_what_stays_whole():
    with pytest.raises(InputError, match=r"out of reach.*whole stay first because .* \(1\d% of"):
        make_proxy(Halves(), torch.randn(1, 3, 16, 16), criterion="uniform", macs=0.2)


class Blurred(nn.Module):
    """A buffer convolves its channels."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
        self.register_buffer("blur", torch.full((8, 1, 3, 3), 1 / 9))

    def forward(self, x):
        x = nn.functional.conv2d(self.first(x), self.blur, groups=len(self.blur))
        return self.head(x.relu().mean((2, 3)))


class Pooled(nn.Module):
    """It pools to as many pixels a side as it happens to have channels."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.feature_size = nn.Conv2d(3, 8, 3), nn.Linear(8, 10), 8

    def forward(self, x):
        x = nn.functional.adaptive_max_pool2d(self.first(x), self.feature_size)
        return self.head(x.mean((2, 3)).view(len(x), -1))


class Rolled(nn.Module):
    """Rolls its first channels, and rows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.second(self.first(x).roll(1, 1)).roll(1, 2).relu().mean((2, 3)))


def transposed():
    up = nn.ConvTranspose2d(16, 16, 2, 2, groups=4)
    layers = nn.Conv2d(3, 16, 3), up, nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 10))


@pytest.mark.parametrize(
    "make",
    [
        ours("resnet20"),
        ours("vgg11_bn_x0.25"),
        ours("mobilenetv2_x0.35"),
        OTHERS["densenet121"],
        OTHERS["regnet_y_400mf"],
        OTHERS["efficientnet_b0"],
        Branching,
        Gated,
        Blurred,
        Pooled,
        Rolled,
        transposed,
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
