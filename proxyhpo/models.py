"""Base networks N_B: the three families of the paper, with CIFAR strides.

Every network is ``features -> global average pool -> linear classifier`` and owns one rule of
initialisation, :meth:`Network.reset_parameters`, which holds at any width. That is what lets a
proxy network draw fresh weights exactly as its base network does.

A new network is one function that returns a :class:`Network` and one line in :data:`MODELS`.

:func:`place` gives a network the memory layout that it is trained in: channels last, 1.1 to 1.3
times faster on a CPU.

oneDNN, which computes torch's convolutions on a CPU, has two faults that matter to small networks
on small pictures (torch 2.15, processors without AVX-512):

- It writes past its buffer in the backward pass of a 1x1 convolution with stride 2 and under 8
  input channels in this layout ("double free or corruption"). Narrow proxies of ResNets have such
  shortcuts.
- Depthwise convolutions of up to four pixels take up to ten times as long as products and a sum (2
  times for few channels): most of the time of MobileNetV2 on pictures of 8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops.misc import Conv2dNormActivation

from proxyhpo.config import LARGEST_SIDE, SMALLEST_SIDE, InputError, choose

NARROW = 8
"""Input channels from which on oneDNN's backward pass is right."""
FEW = 4
"""Pixels up to which a depthwise convolution is faster as products and a sum."""


class Network(nn.Module):
    """Convolutional features, global average pooling, one linear layer.

    Takes float pictures ``(N, C, H, W)`` and returns logits ``(N, classes)``.
    """

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(width, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights: He-normal by fan-out (He et al. 2015) for convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits ``(N, classes)`` of pictures ``(N, C, H, W)``."""
        pooled = nn.functional.adaptive_avg_pool2d(self.features(pictures), 1)
        return self.classifier(pooled.flatten(1))


def resnet(classes: int, channels: int, depth: int) -> Network:
    """ResNet of ``depth`` = 6n+2 layers, widths 16, 32, 64 (He et al. 2016, section 4.2).

    Shortcuts that change the width are 1x1 convolutions (He's option B): with zero-padded ones
    (option A) the padded channels could never leave, since their number stands in the code.
    """
    blocks, remainder = divmod(depth - 2, 6)
    if blocks < 1 or remainder:
        raise InputError(f"depth {depth}: a CIFAR ResNet has 6n+2 layers (8, 14, 20, 32, ...)")
    layers: list[nn.Module] = [Conv2dNormActivation(channels, 16, 3)]
    width = 16
    for out in (16, 32, 64):
        for index in range(blocks):
            stride = 2 if index == 0 and out != 16 else 1
            shortcut = None
            if width != out:
                shortcut = Conv2dNormActivation(width, out, 1, stride, activation_layer=None)
            layers.append(BasicBlock(width, out, stride, shortcut))
            width = out
    return Network(nn.Sequential(*layers), width, classes)


def vgg(classes: int, channels: int, layout: str, width: float = 1.0) -> Network:
    """VGG with batch norm (Simonyan and Zisserman 2015; one linear layer, as usual on CIFAR).

    ``layout`` is torchvision's letter: "A" has 11 layers, "D" has 16. Pools round up, so that
    pictures of 8 pixels pass all five of them.
    """
    plan = [x if x == "M" else max(8, round(x * width)) for x in cfgs[layout]]
    features = make_layers(plan, batch_norm=True)
    for module in features:
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
    stem = features[0]
    features[0] = nn.Conv2d(channels, stem.out_channels, 3, padding=1)
    return Network(features, plan[-2], classes)


def mobilenetv2(classes: int, channels: int, width: float = 1.0) -> Network:
    """MobileNetV2 (Sandler et al. 2018) with CIFAR strides: a stride-1 stem and first stages."""
    # expansion, channels, repeats, stride; torchvision's table halves the side four more times
    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2]]
    stages += [[6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    features = MobileNetV2(classes, width, inverted_residual_setting=stages).features
    stem = features[0][0]
    features[0][0] = nn.Conv2d(channels, stem.out_channels, 3, padding=1, bias=False)
    return Network(features, features[-1][0].out_channels, classes)


MODELS: dict[str, Callable[[int, int], Network]] = {
    **{f"resnet{depth}": partial(resnet, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "vgg16_bn": partial(vgg, layout="D"),
    "vgg11_bn": partial(vgg, layout="A"),
    "vgg11_bn_x0.25": partial(vgg, layout="A", width=0.25),
    "mobilenetv2": mobilenetv2,
    "mobilenetv2_x0.35": partial(mobilenetv2, width=0.35),
}


def logits(network: nn.Module, pictures: Tensor) -> Tensor:
    """Return the network's first output: with auxiliary heads it returns several, logits first."""
    return tree_leaves(network(pictures))[0]


@contextmanager
def seeded(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Draw from ``seed`` on the CPU, on ``device``, and on all GPUs in use; then restore them."""
    device = torch.device(device)
    gpus = [device] if device.type == "cuda" else []
    if torch.cuda.is_initialized():  # manual_seed seeds them all
        gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield


def build_network(name: str, *, classes: int, channels: int = 3, seed: int = 0) -> Network:
    """Return base network ``name``, a key of :data:`MODELS`, with fresh weights from ``seed``.

    Pictures have 1 or 3 ``channels``. The caller's random state is left as it is.

    Raises:
        InputError: for an unknown name, fewer than two classes, or other channels.
    """
    builder = choose("network", name, MODELS)
    if classes < 2:
        raise InputError(f"classes {classes}: a classifier needs at least 2")
    if channels not in (1, 3):
        raise InputError(f"channels {channels}: pictures have 1 (grey) or 3 (RGB)")
    with seeded(seed):
        return builder(classes, channels)


def check_side(side: int) -> None:
    """Raise :class:`InputError` if pictures of ``side`` pixels don't fit these networks."""
    if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise InputError(f"side {side} pixels: networks take {SMALLEST_SIDE} to {LARGEST_SIDE}")


def place(network: nn.Module, device: str | torch.device = "cpu") -> nn.Module:
    """Move ``network`` to ``device``, in place, in channels-last layout; return it.

    Narrow 1x1 convolutions with a stride pick their pixels before they compute instead of while,
    and on a CPU depthwise convolutions of few pixels are products and a sum: the same functions.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _corrupts(module):
            module.register_forward_pre_hook(partial(_pick, module.stride))
            module.stride = (1, 1)
        if type(module) is nn.Conv2d and _depthwise(module) and torch.device(device).type == "cpu":
            module.__class__ = _Depthwise
    volumes = any(tensor.dim() > 4 for tensor in (*network.parameters(), *network.buffers()))
    layout = torch.preserve_format if volumes else torch.channels_last  # volumes have no such one
    return network.to(device).to(memory_format=layout)


def place_both(network: nn.Module, pictures: Tensor) -> tuple[nn.Module, Tensor]:
    """Return ``network``, placed in place, and ``pictures`` as it takes them fastest.

    Pictures ``(N, C, H, W)`` stay on their device, to which the network moves. For inputs of other
    dimensions there is no such layout: both are returned as they are.
    """
    if pictures.dim() != 4:
        return network, pictures
    pictures = pictures.to(memory_format=torch.channels_last)
    return place(network, pictures.device), pictures


def _corrupts(module: nn.Conv2d) -> bool:
    return (
        module.in_channels < NARROW
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.padding in ((0, 0), "valid")
    )


def _pick(stride: tuple[int, ...], _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook: the pixels that a 1x1 convolution with this stride would look at."""
    return (inputs[0][..., :: stride[0], :: stride[1]], *inputs[1:])


def _depthwise(module: nn.Conv2d) -> bool:
    return (
        module.groups == module.in_channels == module.out_channels > 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


class _Depthwise(nn.Conv2d):
    """A depthwise convolution that multiplies and adds where there are few pixels."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or input.shape[2] * input.shape[3] > FEW:
            return super().forward(input)
        how = (self.kernel_size, self.stride, self.padding, self.dilation)
        taps, rows, columns = _taps(tuple(input.shape[2:]), *how)
        # (outputs, inputs, channels): the weight that each pixel has in each output, 0 where none
        weights = functional.pad(self.weight.flatten(1), (0, 1)).t()[taps]
        pixels = input.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1)  # (N, 1, inputs, channels)
        output = (pixels * weights).sum(2)
        if self.bias is not None:
            output = output + self.bias
        return output.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


@cache
@torch.inference_mode(mode=False)  # made while evaluating, they have to serve a training as well
def _taps(*how: tuple[int, int]) -> tuple[Tensor, int, int]:
    """Return for each (output, input) pixel the tap between them, and the output's sides.

    ``how``: sides of the input, then kernel size, stride, padding and dilation.
    """
    sides, kernel, stride, padding, dilation = map(torch.tensor, how)
    rows, columns = ((sides + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1).tolist()
    outputs = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    inputs = torch.cartesian_prod(*map(torch.arange, how[0]))
    apart = inputs - outputs[:, None] * stride + padding
    tap = apart // dilation
    meets = ((apart % dilation == 0) & (tap >= 0) & (tap < kernel)).all(-1)
    none = int(kernel.prod())  # the zero beside the weights
    return torch.where(meets, tap[..., 0] * kernel[1] + tap[..., 1], none), rows, columns
