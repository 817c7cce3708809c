"""Criteria: how much each channel of a network matters, before or after training.

A criterion looks at a scratch copy of the network and returns one score for each *unit*: the
smallest set of channels that can only be removed together. Which weights belong to a unit is
known by its :class:`~proxyhpo.pruning.cut.Coupling`, which also adds their saliencies up.

A new criterion is one function and one line in :data:`CRITERIA`.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxyhpo.models import place_both
from proxyhpo.pruning.cut import Coupling
from proxyhpo.pruning.measure import logits
from proxyhpo.pruning.trace import Cost

Batch = tuple[Tensor, Tensor]
Weights = dict[str, Tensor]

CLOSE = 0.002  # of N_B's cost: a target is hit so nearly that nothing is filled up
FILLERS = 64  # units tried for filling up

# SynFlow needs a path of positive slope through the whole network. Clipped or curved activations
# break it (ReLU6 is flat as soon as its input passes 6), and normalisation cancels the flow.
OPENED = (
    *(nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.GELU, nn.ELU, nn.Mish, nn.Dropout),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm),
)


def best_first(scores: Tensor) -> Tensor:
    """Return the rank of each score ``(n,)``, 0 for the highest; ties in order of position."""
    return scores.argsort(descending=True, stable=True).argsort()


def released_order(scores: Tensor) -> Tensor:
    """Return the ranks that ``argsort(scores) >= n - k`` amounts to, as in the released code.

    It compares *indices* of channels with n - k, so the k channels kept are not the k best.
    """
    return len(scores) - 1 - scores.argsort(stable=True)


@dataclass(frozen=True)
class Criterion:
    """A scoring function and what the selection has to know about it.

    Attributes:
        score: ``(network, coupling, batch, example) -> (units,)`` on a copy that it may spoil.
        needs_batch: whether it needs pictures and labels.
        normalised: whether scores are divided by their layer's mean before layers are compared;
            raw scores leave whole layers with one channel.
        rank: scores of one layer to ranks, 0 = kept first.
        rounds: in how many steps, with fresh scores each, the target is approached.
    """

    score: Callable[[nn.Module, Coupling, Any, Tensor], Tensor]  # the batch, or None
    needs_batch: bool = False
    normalised: bool = True
    rank: Callable[[Tensor], Tensor] = best_first
    rounds: int = 1


class Ranking:
    """The order in which units are kept, and the largest set of units within a cost.

    ``scores`` has one for each unit, float64 ``(units,)``. With scope "global" layers compete, with
    "local" each keeps the same share; none keeps less than ``min_channels``, and each a multiple
    of ``round_to`` units, or all of them.
    """

    def __init__(
        self,
        coupling: Coupling,
        criterion: Criterion,
        scores: Tensor,
        *,
        scope: str,
        min_channels: float,
        round_to: int,
    ) -> None:
        self._coupling, self._step = coupling, round_to
        self._sizes, self._group = torch.tensor(coupling.sizes), coupling.group
        floor = (min_channels * self._sizes - 1e-9).ceil().long()
        self._least = torch.minimum((floor + round_to - 1) // round_to * round_to, self._sizes)

        groups = scores.split(coupling.sizes)
        self._rank = torch.cat([criterion.rank(s) for s in groups])
        best = torch.cat([best_first(s) for s in groups])
        if scope == "local":
            value = -(best + 0.5) / self._sizes[self._group]
        elif criterion.normalised:
            value = torch.cat([s / s.mean().clamp_min(1e-300) for s in groups])
        else:
            value = scores
        free = best >= self._least[self._group]
        order = value[free].argsort(descending=True, stable=True)
        self._next = self._group[free][order]  # the group that gets one unit more, in turn

    def least(self, costs: tuple[Cost, ...]) -> float:
        """Return the share of ``costs`` that is left where every layer keeps the least it may."""
        return self._coupling.share(self._mask(self._next[:0]), costs)

    def within(self, costs: tuple[Cost, ...], share: float) -> Tensor:
        """Return which units to keep, bool ``(units,)``, for at most ``share`` of ``costs``."""

        def came(more: Tensor) -> float:
            return self._coupling.share(self._mask(more), costs)

        lengths = range(len(self._next) + 1)
        key = bisect.bisect_right(lengths, share, key=lambda n: came(self._next[:n]))
        taken = self._next[: key - 1]
        # the next unit may be a costly one: those after it fill what it would have overrun
        for group in self._next[key : key + FILLERS]:
            fuller = torch.cat([taken, group[None]])
            if (left := came(fuller)) <= share:
                taken = fuller
                if share - left < CLOSE:
                    break
        return self._mask(taken)

    def _mask(self, more: Tensor) -> Tensor:
        """Return the units kept when these groups get one unit more each."""
        counts = more.bincount(minlength=len(self._sizes)) + self._least
        rounded = torch.maximum(counts // self._step * self._step, self._least)
        counts = torch.where(counts == self._sizes, counts, rounded)
        return self._rank < counts[self._group]


def random(network: nn.Module, coupling: Coupling, batch: Batch | None, example: Tensor) -> Tensor:
    """Independent draws from [0, 1), by the seed of the proxy."""
    return torch.rand(coupling.units, dtype=torch.float64)


def uniform(network: nn.Module, coupling: Coupling, batch: Batch | None, example: Tensor) -> Tensor:
    """Keep the first channels of each layer, the same share everywhere: a narrower network."""
    return torch.cat([1 - torch.arange(n, dtype=torch.float64) / n for n in coupling.sizes])


def l1(network: nn.Module, coupling: Coupling, batch: Batch | None, example: Tensor) -> Tensor:
    """Sum of |w|."""
    return coupling.sum({n: w.abs() for n, w in _weights(network, coupling).items()})


def l2(network: nn.Module, coupling: Coupling, batch: Batch | None, example: Tensor) -> Tensor:
    """Root of the sum of w squared."""
    return coupling.sum({n: w.square() for n, w in _weights(network, coupling).items()}).sqrt()


def snip(network: nn.Module, coupling: Coupling, batch: Batch, example: Tensor) -> Tensor:
    """Sum of |w x gradient of the cross entropy|, by one batch in training mode."""
    pictures, labels = batch
    loss = nn.functional.cross_entropy(logits(*place_both(network.train(), pictures)), labels)
    return coupling.sum({n: t.abs() for n, t in _weight_gradient(network, coupling, loss).items()})


def released(network: nn.Module, coupling: Coupling, batch: Batch, example: Tensor) -> Tensor:
    """Signed sum over a filter of w x gradient of the mean output: terms cancel, labels unused."""
    loss = logits(*place_both(network.train(), batch[0])).mean()
    return coupling.sum(_weight_gradient(network, coupling, loss), filters_only=True)


def synflow(network: nn.Module, coupling: Coupling, batch: Batch | None, example: Tensor) -> Tensor:
    """Sum of |w| x gradient of the summed output of the linearised |network| for an input of ones.

    In double precision, because the flow is a product over all layers; scaled by its maximum.
    """
    _open(network)
    network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    flow = logits(network, torch.ones_like(example[:1], dtype=torch.float64)).sum()
    scores = coupling.sum(_weight_gradient(network, coupling, flow))
    return scores / scores.max()


def _weights(network: nn.Module, coupling: Coupling) -> Weights:
    return {n: network.get_parameter(n) for n in coupling.weights}


def _weight_gradient(network: nn.Module, coupling: Coupling, loss: Tensor) -> Weights:
    weights = _weights(network, coupling)
    # zeros for weights that the loss doesn't reach
    gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return {n: w * g for (n, w), g in zip(weights.items(), gradients, strict=True)}


def _open(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, OPENED):
                setattr(module, name, nn.Identity())


CRITERIA: dict[str, Criterion] = {
    "random": Criterion(random),  # control: Su et al., arXiv:2009.11094
    "uniform": Criterion(uniform),  # control: width multiplier, Howard et al., arXiv:1704.04861
    "l1": Criterion(l1),  # Li et al., Pruning Filters for Efficient ConvNets, arXiv:1608.08710
    "l2": Criterion(l2),  # He et al., Soft Filter Pruning, arXiv:1808.06866
    "snip": Criterion(snip, needs_batch=True),  # Lee et al., SNIP, arXiv:1810.02340
    "synflow": Criterion(synflow),  # Tanaka et al., SynFlow, arXiv:2006.05467, in one shot
    "synflow_iterative": Criterion(synflow, rounds=10),  # the same, as published
    # public code of arXiv:2205.08695's first author (2023), with its defects
    "released": Criterion(released, needs_batch=True, normalised=False, rank=released_order),
}
