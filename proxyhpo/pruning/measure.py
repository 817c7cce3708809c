"""What a network costs: multiply-accumulates, the time of a training step, memory.

Multiply-accumulates are half the operations that torch's FlopCounterMode counts, one rule
everywhere: convolutions and matrix products, those within attention among them; neither biases nor
normalisations nor activations. Time and memory are measured, because neither falls as
multiply-accumulates do.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from proxyhpo.models import logits, place_both


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable weights."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def count_macs(network: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of one forward pass for one picture of ``example``.

    Counted in evaluation mode, so without auxiliary heads, and before a network is placed for
    training (:func:`proxyhpo.models.place`), which turns small depthwise convolutions into sums.
    """
    return macs_before(network, example)[1]


def macs_before(network: nn.Module, example: Tensor) -> tuple[dict[str, int], int]:
    """Return what is counted before each layer with weights of its own runs, and in all."""
    before: dict[str, int] = {}
    counter = FlopCounterMode(display=False)
    modes = [(module, module.training) for module in network.modules()]

    def note(name: str, *_: object) -> None:
        before.setdefault(name, counter.get_total_flops() // 2)

    hooks = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        # its tracker of modules looks for gradients of all views of weights
        with torch.enable_grad(), plain_attention(), counter:
            network.eval()(example[:1])
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return before, counter.get_total_flops() // 2


@contextmanager
def plain_attention() -> Iterator[None]:
    """Have attention computed as the matrix products that it is, not in one operation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def step_seconds(pairs: Sequence[tuple[nn.Module, Tensor]], *, repeats: int = 5) -> list[float]:
    """Return the median seconds of a training step for each pair of network and pictures.

    A step is forward, backward and an SGD update, of a copy of the network, in the layout that
    trials train in (:mod:`proxyhpo.models`). Its seconds are CPU seconds of this process, which
    neighbours on the machine hardly change, or wall-clock on a GPU, as in
    :func:`proxyhpo.analysis.cost.seconds`; with one thread, an idle machine takes as long. The
    pairs take turns, so that whatever else the machine does falls on all of them alike. Of the two
    steps of a turn the second is timed: oneDNN keeps 1,024 kernels, and sixteen proxies have more.
    """
    runs: list[tuple[nn.Module, Tensor, torch.optim.Optimizer, list[float]]] = []
    for network, pictures in pairs:
        scratch, pictures = place_both(copy.deepcopy(network).train(), pictures)
        runs.append((scratch, pictures, torch.optim.SGD(scratch.parameters(), 1e-4, 0.9), []))
    for _ in range(repeats):
        for network, pictures, optimiser, seconds in runs:
            clock = time.perf_counter if pictures.is_cuda else time.process_time
            for _ in range(2):
                _wait(pictures)
                start = clock()
                optimiser.zero_grad()
                logits(network, pictures).square().mean().backward()
                optimiser.step()
                _wait(pictures)
                spent = clock() - start
            seconds.append(spent)
    return [statistics.median(seconds) for *_, seconds in runs]


def saved_bytes(network: nn.Module, pictures: Tensor) -> int:
    """Return the bytes that a forward pass in training mode keeps for its backward pass."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    scratch = copy.deepcopy(network).train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = logits(scratch, pictures)  # held, so that no storage is used twice
    del output
    return sum(storages.values())


def _wait(pictures: Tensor) -> None:
    if pictures.is_cuda:
        torch.cuda.synchronize(pictures.device)
