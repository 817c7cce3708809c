"""One configuration in, one outcome out: the training loop of every trial.

The loop is the released schedule (SGD with Nesterov momentum, learning rate x 0.1 after 50 % and
75 % of the steps), at any number of epochs. Pictures lie on the device; within an epoch nothing is
read back from it. The objective is the validation accuracy after the *last* epoch: a maximum over
epochs would favour noisy runs.
"""

from __future__ import annotations

import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from proxyhpo.config import check_number, choose
from proxyhpo.data.datasets import Feed
from proxyhpo.models import logits, place

Batch = tuple[Tensor, Tensor]

HYPERPARAMETERS = {"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9}
"""What a configuration may set, with the released values for what it leaves out."""
LEAST = {"batch_size": 2, "lr": 0, "momentum": 0, "weight_decay": 0}
"""The least that SGD takes of each; batch normalisation needs two pictures."""


@dataclass(frozen=True)
class Device:
    """Where training runs: "cpu" or "cuda", the processor's or the GPU's own name, CPU threads."""

    name: str
    label: str
    threads: int

    def __str__(self) -> str:
        return f"{self.label} ({self.name}, {self.threads} CPU thread{'s' * (self.threads > 1)})"

    def synchronise(self) -> None:
        """Wait until the device has finished, so that the time measured is the time spent."""
        if self.name == "cuda":
            torch.cuda.synchronize()

    def precision(self, network: nn.Module, side: int) -> str:
        """Return "bf16" where autocast gains on this device for this network, else "fp32".

        Measured on a CPU with bf16 matrix units (AMX): 1.7 to 1.9 times faster for ResNet-56 and
        VGG-16 at 32 pixels, slower for depthwise convolutions and for pictures of 8 pixels; and on
        an H200 that trained 15 ResNet-56 side by side, 1.9 times faster at 32 pixels. A rule
        instead of a probe, so that the same seed gives the same weights.
        """
        if side < 32:
            return "fp32"
        if self.name == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        # the public torch.cpu.get_capabilities is younger than the oldest torch supported here
        if not torch.cpu._is_amx_tile_supported():
            return "fp32"
        depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
        return "fp32" if depthwise else "bf16"


@contextmanager
def threads_kept() -> Iterator[None]:
    """Let what happens within the block change the number of threads for the block alone."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def this_device() -> Device:
    """Return the GPU if torch sees one, else the CPU, with one thread.

    ``OMP_NUM_THREADS`` asks for more. They don't pay: a pruned ResNet-56 takes longer on two
    threads than on one as soon as anything else runs on the machine (324 ms a step against 204),
    and two experiments side by side get more done than one on two threads.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # the rest is for nested regions
    torch.set_num_threads(int(asked or 1))
    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        return Device("cuda", torch.cuda.get_device_name(), threads)
    return Device("cpu", _processor(), threads)


@dataclass(frozen=True)
class Outcome:
    """What came of one training.

    Attributes:
        state: "complete", "stopped" (by the trial pruner), "diverged" (NaN or inf) or "failed"
            (out of memory).
        epochs: epochs done.
        accuracy, loss: on the evaluation pictures after the last epoch done, accuracy as a
            fraction; NaN where there was none.
        curve, losses: accuracy and loss after each evaluated epoch.
        averaged, averaged_losses: the same of the weights' mean over the second half of each of
            the first ``average`` epochs.
        train_seconds, eval_seconds: wall-clock, synchronised with the device.
        samples: pictures trained on.
        precision: "fp32" or "bf16".
        microbatches: parts that each batch was cut into for want of memory.
    """

    state: str
    epochs: int
    accuracy: float
    loss: float
    curve: tuple[float, ...]
    train_seconds: float
    eval_seconds: float
    samples: int
    precision: str
    microbatches: int = 1
    losses: tuple[float, ...] = ()
    averaged: tuple[float, ...] = ()
    averaged_losses: tuple[float, ...] = ()


def out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out, of which torch tells on a CPU by the message alone."""
    kinds = torch.OutOfMemoryError, MemoryError
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def check_configuration(configuration: Mapping[str, object]) -> None:
    """Raise :class:`InputError` for a hyperparameter or a value that the loop doesn't take."""
    for name, value in configuration.items():
        check_number(name, value, choose("hyperparameter", name, LEAST))


def train(
    network: nn.Module,
    training: Feed,
    evaluation: Feed,
    configuration: Mapping[str, float],
    *,
    epochs: int,
    seed: int,
    device: Device,
    stop: Callable[[int, float], bool] | None = None,
    every_epoch: bool = True,
    average: int = 0,
    microbatches: int = 1,
) -> Outcome:
    """Train ``network`` in place and evaluate it.

    Args:
        network: fresh weights; moved to the device.
        training: pictures to train on, on the device.
        evaluation: the same to evaluate on.
        configuration: see :data:`HYPERPARAMETERS`.
        epochs: of a full training, which also sets the schedule.
        seed: of shuffling and augmentation.
        device: where ``training`` lies.
        stop: asked after each epoch but the last with (epochs done, accuracy); True ends the
            training as "stopped".
        every_epoch: evaluate after each epoch, or once after the last.
        average: first epochs whose averaged weights are evaluated too; training goes on from the
            weights that aren't averaged.
        microbatches: parts that a batch is cut into; their gradients add up to the batch's, while
            batch normalisation sees a part at a time.

    Raises:
        InputError: see :func:`check_configuration`.
    """
    check_configuration(configuration)
    chosen = {**HYPERPARAMETERS, **configuration}
    precision = device.precision(network, training.side)
    how = device, precision, microbatches
    train_seconds = eval_seconds = 0.0
    curve: list[tuple[float, float]] = []
    averaged: list[tuple[float, float]] = []
    accuracy = loss = math.nan
    state, done = "complete", 0
    try:
        place(network, device.name)
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=chosen["lr"],
            weight_decay=chosen["weight_decay"],
            momentum=chosen["momentum"],
            nesterov=chosen["momentum"] > 0,
            fused=True,
        )
        steps = epochs * len(training)
        falls = [max(1, steps // 2), max(1, 3 * steps // 4)]  # a single step is taken at lr
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls)
        generator = torch.Generator().manual_seed(seed)
        for done in range(1, epochs + 1):
            started = time.perf_counter()
            mean = _Mean(network, len(training) // 2) if done <= average else None
            for step in _steps(network, training, optimizer, generator, *how):
                schedule.step()
                if mean:
                    mean.add(step)
            device.synchronise()
            train_seconds += time.perf_counter() - started
            if not every_epoch and done < epochs:
                continue
            started = time.perf_counter()
            accuracy, loss = evaluate(network, evaluation, *how)
            curve.append((accuracy, loss))
            if mean:
                with mean.in_place():
                    averaged.append(evaluate(network, evaluation, *how))
            eval_seconds += time.perf_counter() - started
            if not math.isfinite(loss):
                state = "diverged"
                break
            if stop is not None and done < epochs and stop(done, accuracy):
                state = "stopped"
                break
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        state, accuracy, loss = "failed", math.nan, math.nan
        torch.cuda.empty_cache()
    return Outcome(
        state=state,
        epochs=done,
        accuracy=accuracy,
        loss=loss,
        curve=tuple(accuracy for accuracy, _ in curve),
        losses=tuple(loss for _, loss in curve),
        averaged=tuple(accuracy for accuracy, _ in averaged),
        averaged_losses=tuple(loss for _, loss in averaged),
        train_seconds=train_seconds,
        eval_seconds=eval_seconds,
        samples=done * training.pictures_an_epoch,
        precision=precision,
        microbatches=microbatches,
    )


def evaluate(
    network: nn.Module, feed: Feed, device: Device, precision: str = "fp32", microbatches: int = 1
) -> tuple[float, float]:
    """Return the accuracy (a fraction) and the mean cross entropy of ``network`` on ``feed``.

    The loss of a network that has diverged is NaN or infinite. Read back once, at the end.
    """
    network.eval()
    right = torch.zeros((), device=device.name)
    loss = torch.zeros((), device=device.name)
    count = 0
    with torch.inference_mode(), _autocast(device, precision):
        for pictures, labels in _parts(feed.epoch(None), microbatches):
            scores = network(pictures).float()
            right += (scores.argmax(1) == labels).sum()
            loss += nn.functional.cross_entropy(scores, labels, reduction="sum")
            count += len(labels)
    return right.item() / count, loss.item() / count


def _steps(
    network: nn.Module,
    feed: Feed,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    device: Device,
    precision: str,
    microbatches: int,
) -> Iterator[int]:
    """Take the steps of an epoch; yield each one's number once it is taken."""
    network.train()
    for step, batch in enumerate(feed.epoch(generator)):
        optimizer.zero_grad(set_to_none=True)
        whole = len(batch[1])
        for pictures, labels in _parts([batch], microbatches):
            with _autocast(device, precision):
                loss = nn.functional.cross_entropy(logits(network, pictures), labels)
            # the parts' mean losses, weighted, add up to the mean over the batch
            (loss if len(labels) == whole else loss * (len(labels) / whole)).backward()
        optimizer.step()
        yield step


class _Mean:
    """The mean of a network's weights, batch statistics included, from step ``first`` on."""

    def __init__(self, network: nn.Module, first: int) -> None:
        floats = [t for t in network.state_dict().values() if t.is_floating_point()]
        self._current, self._first, self._count = floats, first, 0
        self._mean = [torch.zeros_like(t) for t in floats]

    def add(self, step: int) -> None:
        """Take the weights after ``step`` into the mean."""
        if step >= self._first:
            self._count += 1
            torch._foreach_lerp_(self._mean, self._current, 1 / self._count)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network have its mean weights within the block."""
        kept = [t.clone() for t in self._current]
        torch._foreach_copy_(self._current, self._mean)
        try:
            yield
        finally:
            torch._foreach_copy_(self._current, kept)


def _parts(batches: Iterable[Batch], microbatches: int) -> Iterator[Batch]:
    """Yield the batches, each cut into ``microbatches`` parts."""
    for batch in batches:
        yield from zip(*(tensor.chunk(microbatches) for tensor in batch), strict=True)


def _autocast(device: Device, precision: str) -> torch.autocast:
    return torch.autocast(device.name, torch.bfloat16, enabled=precision == "bf16")


def _processor() -> str:
    """Return the processor's own name; ``platform.processor`` is empty on most Linux systems."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
