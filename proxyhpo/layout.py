"""The memory layout that networks are trained in: channels last, 1.1 to 1.3 times faster on a CPU.

oneDNN, which computes torch's convolutions on a CPU, has two faults that matter to small networks
on small pictures (torch 2.15, processors without AVX-512):

- It writes past its buffer in the backward pass of a 1x1 convolution with stride 2 and under 8
  input channels in this layout ("double free or corruption"). Narrow proxies of ResNets have such
  shortcuts.
- Depthwise convolutions of up to four pixels take up to ten times as long as products and a sum (2
  times for few channels): most of the time of MobileNetV2 on pictures of 8 pixels.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

NARROW = 8
"""Input channels from which on oneDNN's backward pass is right."""
FEW = 4
"""Pixels up to which a depthwise convolution is faster as products and a sum."""


def place(network: nn.Module, device: str | torch.device = "cpu") -> nn.Module:
    """Move ``network`` to ``device``, in place, in channels-last layout; return it.

    Narrow 1x1 convolutions with a stride pick their pixels before they compute instead of while,
    and on a CPU depthwise convolutions of few pixels are products and a sum: the same functions.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _corrupts(module):
            module.register_forward_pre_hook(_Pick(*module.stride))
            module.stride = (1, 1)
        if type(module) is nn.Conv2d and _depthwise(module) and torch.device(device).type == "cpu":
            module.__class__ = _Depthwise
    volumes = any(weight.dim() > 4 for weight in network.parameters())  # have no such layout
    layout = torch.preserve_format if volumes else torch.channels_last
    return network.to(device).to(memory_format=layout)


def place_both(network: nn.Module, pictures: Tensor) -> tuple[nn.Module, Tensor]:
    """Return ``network``, placed in place, and ``pictures`` as it takes them fastest.

    Pictures ``(N, C, H, W)`` stay on their device, to which the network moves. For inputs and
    weights of other dimensions there is no such layout: they are returned as they are.
    """
    tensors = network.state_dict().values()
    if pictures.dim() != 4 or any(tensor.dim() == 5 for tensor in tensors):
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


class _Pick:
    """Forward pre-hook: the pixels that a 1x1 convolution with this stride would look at."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][..., :: self.rows, :: self.columns], *inputs[1:])


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
