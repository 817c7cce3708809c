"""Whether a learning rate found on a pruned network suits the network itself: a look beforehand.

In the manner of the coordinate check of mup (Yang et al. 2022, Tensor Programs V,
arXiv:2203.03466; ``mup.coord_check``): networks of several widths take a few steps, and what
should not depend on the width is compared. Compared here is the change of the function that a step
makes, the size of the logits' change on held-out pictures. Where it grows with the width, a wider
network needs a smaller learning rate for the same change.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from proxyhpo.analysis.bootstrap import LEVEL
from proxyhpo.analysis.claims import outcome
from proxyhpo.config import InputError, check_integer, choose
from proxyhpo.data.feed import Feed
from proxyhpo.data.given import Given, as_dataset
from proxyhpo.hpo.stand_ins import make_stand_in, parse
from proxyhpo.models import logits, place, seeded
from proxyhpo.pruning.criteria import CRITERIA
from proxyhpo.training import HYPERPARAMETERS, this_device, threads_kept
from proxyhpo.tuning.bench import builder, check_network

RATES = (0.01, 0.03, 0.1)
MARGIN = 0.5
"""Octaves up to which learning rates count as alike; recorded tables have steps of 0.75."""
BATCH, HELD_BACK = 64, 256
"""Pictures of a step, and those that the function's change is measured on."""


@dataclass(frozen=True)
class Transfer:
    """What came of :func:`transfer_check`; ``print`` it for a summary.

    Attributes:
        share: of the network's multiply-accumulates that the stand-in keeps.
        shift: octaves by which the stand-in's learning rate has to lie above the network's for
            steps to change the function as much.
        low, high: its interval over weight seeds.
        table: one line a learning rate: ``lr``; ``base``, ``stand_in``, the change of the logits
            that a step makes, geometric means over steps and weight seeds; ``ratio`` of the two.
    """

    network: str
    stand_in: str
    share: float
    shift: float
    low: float
    high: float
    table: pd.DataFrame = field(repr=False, compare=False)
    seconds: float

    @property
    def verdict(self) -> str:
        """Whether it "transfers", "does not transfer" or is "undecided", by the whole interval."""
        above = outcome(self.low, self.high, MARGIN)
        below = outcome(self.low, self.high, -MARGIN, above=False)
        if "yes" in (above, below):
            return "does not transfer"
        return "transfers" if above == below == "no" else "undecided"

    @property
    def advice(self) -> str:
        """What to do about it."""
        if self.verdict == "transfers":
            return "a learning rate found on the stand-in is a candidate as it is; verify it"
        if self.verdict == "undecided":
            return "more seeds would narrow the interval; verify several rates until then"
        return (
            f"expect the network's best learning rate at about {2**-self.shift:.2g} times the "
            "stand-in's, and verify rates between the two"
        )

    def _lines(self) -> list[str]:
        return [
            f"learning rate from {self.stand_in} to {self.network}: {self.verdict}",
            f"equal changes of the function {self.shift:+.1f} octaves apart "
            f"[{self.low:+.1f}, {self.high:+.1f}], alike up to {MARGIN:g}",
            self.advice,
        ]

    def __str__(self) -> str:
        first, *rest = self._lines()
        shown = self.table.to_string(index=False, float_format="{:.3g}".format)
        return "\n".join([first, *(f"  {line}" for line in (*rest, *shown.split("\n")))])

    def _repr_markdown_(self) -> str:
        first, *rest = self._lines()
        cells = [[f"{value:.3g}" for value in line] for line in self.table.itertuples(index=False)]
        lines = [list(self.table), ["---"] * self.table.shape[1], *cells]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{first}**\n\n{'; '.join(rest)}.\n\n{table}"


@threads_kept()
def transfer_check(
    network: Callable[[], nn.Module],
    data: Given,
    *,
    stand_in: str = "uniform@0.25",
    rates: Sequence[float] = RATES,
    steps: int = 20,
    seeds: int = 6,
) -> Transfer:
    """Return whether learning rates of a pruned network suit the network itself, in a minute.

    Both take a few steps of our own training loop at the same learning rates, from the same seeds
    of weights and batches. After each step the change of their logits on held-out pictures is
    measured, less its mean over classes, which a softmax doesn't see; batch normalisation uses
    the batch. The sizes' logarithms have a common slope over the learning rates' logarithms, and
    the shift is how far apart the two lines lie along the learning rate.

    It can't see what later training does: learning rate decay, long training, and everything by
    which a larger learning rate generalises better or worse. Other hyperparameters may not
    transfer where this one does.

    NOTE: of four networks whose best learning rates were searched (``benchmarks/transfer.py``), it
    was right for both with batch normalisation (ResNet-20: +0.96 octaves predicted, +0.95 found)
    and wrong for one without (+0.97 predicted, +0.13 [-0.19, +0.38] found). A verdict is a reason
    to look; verification stays the judge.

    Args:
        network: builds N_B with fresh weights, as for :func:`proxyhpo.tune`.
        data: what to train on, see :func:`proxyhpo.data.given.as_dataset`.
        stand_in: a criterion of :data:`proxyhpo.pruning.criteria.CRITERIA` and the share of
            multiply-accumulates to keep; "uniform" is plain width.
        rates: learning rates, small enough for both networks to train.
        steps: of each training.
        seeds: of weights and batches, at least 2; the interval is over them.

    Raises:
        InputError: for anything that doesn't fit, or where a network diverges at the rates.
    """
    began = time.perf_counter()
    for kind in parse(stand_in, 0.25):
        choose("pruned stand-in", kind, CRITERIA)
    try:
        tried = sorted({float(rate) for rate in rates})
    except (TypeError, ValueError):
        tried = []
    if len(tried) < 2 or not all(0 < rate < math.inf for rate in tried):
        raise InputError(f"rates {rates!r}: at least two learning rates above 0, such as {RATES}")
    check_integer("steps", steps, 1)
    check_integer("seeds", seeds, 2)
    build, dataset = builder(network), as_dataset(data)
    check_network(build(0), dataset)
    made = make_stand_in(stand_in, build, dataset, 1, 0.25)
    name = getattr(network, "__name__", type(network).__name__)

    feed = partial(Feed, mean=dataset.mean, std=dataset.std, device=this_device().name)
    size, held_back = min(BATCH, len(dataset.train)), min(HELD_BACK, len(dataset.val))
    training = feed(dataset.train, batch_size=size, augmentation=dataset.augmentation)
    pictures, _ = next(feed(dataset.val, batch_size=held_back).epoch())
    cells = [(one, lr, s) for one in (build, made.build) for lr in tried for s in range(seeds)]
    changes = [_log_change(one(s), training, pictures, lr, steps, s) for one, lr, s in cells]
    sizes = np.reshape(changes, (2, len(tried), seeds))
    known = np.isfinite(sizes).all(axis=(0, 2))
    if known.sum() < 2:
        raise InputError(f"rates {tried}: training diverges at all but {known.sum()}; smaller ones")
    sizes, log_lr = sizes[:, known], np.log2(np.array(tried)[known])
    away = log_lr - log_lr.mean()
    slope = float(np.mean(np.tensordot(sizes, away, (1, 0))) / (away @ away))
    shifts = (sizes[0] - sizes[1]).mean(0) / slope
    half = stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * shifts.std(ddof=1) / math.sqrt(seeds)
    base, other = 2 ** sizes.mean(2)
    lines = {"lr": 2**log_lr, "base": base, "stand_in": other, "ratio": base / other}
    shift, seconds = float(shifts.mean()), time.perf_counter() - began
    return Transfer(
        name, stand_in, made.share, shift, shift - half, shift + half, pd.DataFrame(lines), seconds
    )


def _log_change(
    network: nn.Module, training: Feed, pictures: Tensor, lr: float, steps: int, seed: int
) -> float:
    """Return log2 of the change of the logits that a step makes, a mean; NaN, inf: it diverges."""
    place(network, pictures.device)
    momentum, weight_decay = HYPERPARAMETERS["momentum"], HYPERPARAMETERS["weight_decay"]
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum, 0, weight_decay, nesterov=True)
    generator = torch.Generator().manual_seed(seed)
    batches = chain.from_iterable(training.epoch(generator) for _ in count())
    before, total = _logits(network, pictures), 0.0
    with seeded(seed, pictures.device):
        for batch, labels in islice(batches, steps):
            network.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits(network, batch), labels).backward()
            optimizer.step()
            after = _logits(network, pictures)
            total += float((after - before).square().mean().sqrt().log2())
            before = after
    return total / steps


def _logits(model: nn.Module, pictures: Tensor) -> Tensor:
    """Return centred logits ``(N, classes)``; running statistics would lag behind the weights."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    with torch.no_grad():
        scores = model(pictures).float()
    return scores - scores.mean(1, keepdim=True)
