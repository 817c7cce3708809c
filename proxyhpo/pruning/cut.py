"""Cutting: the units of a network, what they cost, and the network without some of them.

A *unit* is the smallest set of channels that can be removed, through all the layers that they
touch. The number of the unit at each position of each tensor is all that is kept of a trace:
scores, costs and cuts are sums and selections over these arrays. A pruner that zeroes or slices
layer by layer would do for none of this: the target is a cost to be hit exactly.

What can't be cut is found by trying: where a network fails, or its output changes shape, after a
random cut, the layers to blame are left whole.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from proxyhpo.config import InputError
from proxyhpo.pruning.trace import Cost, Trace, joined

Kept = dict[str, dict[int, Tensor]]  # positions kept, int64, by tensor and dimension
Widths = dict[str, list[int]]  # value of an attribute before and after, by its path

NOTABLE = 0.01
"""Share of the multiply-accumulates from which on a layer that stays whole is said to have it."""


@dataclass(frozen=True, eq=False)
class Coupling:
    """The units of one network, numbered so that the units of a group are neighbours.

    A group is all units that touch the same dimensions of the same weights. Its units are alike
    but for their values, so any number of them may go.

    Attributes:
        sizes: number of units in each group.
        tensors: unit at each position, by tensor and dimension; -1 where a position stays.
        attributes: value of an attribute, and the unit at each channel that it counts.
        macs: multiply-accumulates for one picture, in order of execution.
        numel: elements of trainable weights.
        whole: layers whose outputs all stay, with the reason.
    """

    sizes: tuple[int, ...]
    tensors: dict[str, dict[int, Tensor]]
    attributes: dict[str, tuple[int, Tensor]]
    macs: tuple[Cost, ...]
    numel: tuple[Cost, ...]
    whole: dict[str, str]

    @property
    def units(self) -> int:
        """Number of units in all groups."""
        return sum(self.sizes)

    @property
    def group(self) -> Tensor:
        """Number of each unit's group, int64 ``(units,)``."""
        sizes = torch.tensor(self.sizes, dtype=torch.int64)
        return torch.arange(len(sizes)).repeat_interleave(sizes)

    @property
    def weights(self) -> list[str]:
        """Names of the weights that multiply and can be cut, in order of execution."""
        return [n for n in dict.fromkeys(cost.weight for cost in self.macs) if n in self.tensors]

    @torch.no_grad()
    def sum(self, saliency: Mapping[str, Tensor], *, filters_only: bool = False) -> Tensor:
        """Return the summed saliencies of the weights that leave with each unit, ``(units,)``.

        ``saliency`` has a value for each element of a weight ``(out, in, ...)``, by its name;
        ``filters_only`` leaves out the weights that read a unit, and counts those that make it.
        """
        total = torch.zeros(self.units + 1, dtype=torch.float64)  # the last takes what stays
        for name, values in saliency.items():
            for dim, units in self.tensors.get(name, {}).items():
                if not (filters_only and dim):
                    sums = values.double().movedim(dim, 0).flatten(1).sum(1)
                    total.index_add_(0, units % len(total), sums.cpu())
        return total[:-1]

    def share(self, mask: Tensor, costs: Sequence[Cost]) -> float:
        """Return the share of ``costs`` that is left if the units of ``mask`` are kept."""
        stays = padded(mask).double()
        left = sum(
            cost.amount * math.prod(stays[units].mean().item() for units in cost.rows)
            for cost in costs
        )
        return left / sum(cost.amount for cost in costs)

    def cut(self, mask: Tensor) -> tuple[Kept, Widths]:
        """Return positions and widths of the network of which only ``mask`` is kept."""
        stays = padded(mask)
        kept: Kept = defaultdict(dict)
        for name, dims in self.tensors.items():
            for dim, units in dims.items():
                if not stays[units].all():
                    kept[name][dim] = stays[units].nonzero().flatten()
        widths = {
            path: [value, value * int(stays[units].sum()) // len(units)]
            for path, (value, units) in self.attributes.items()
            if not stays[units].all()
        }
        return dict(kept), widths

    def without(self, groups: Iterable[int], reason: str) -> Coupling:
        """Return the coupling with these groups left whole."""
        gone = set(groups)
        stays = torch.tensor([g not in gone for g in self.group.tolist()] + [False])
        new = torch.where(stays, stays.cumsum(0) - 1, -1)
        macs = tuple(cost.numbered(new.__getitem__) for cost in self.macs)
        whole = dict(self.whole)
        for cost in macs:
            if _stays(cost):
                whole.setdefault(_layer(cost.weight), reason)
        return replace(
            self,
            sizes=tuple(size for g, size in enumerate(self.sizes) if g not in gone),
            tensors={n: {d: new[u] for d, u in t.items()} for n, t in self.tensors.items()},
            attributes={path: (value, new[u]) for path, (value, u) in self.attributes.items()},
            macs=macs,
            numel=tuple(cost.numbered(new.__getitem__) for cost in self.numel),
            whole=whole,
        )


def couple(network: nn.Module, example: Tensor) -> Coupling:
    """Find the units of ``network``, a scratch copy: its mode and its statistics change.

    Raises:
        InputError: it doesn't take the ``example``, pictures ``(N, ...)``, or can't be pruned.
    """
    kind = type(network).__name__
    if not isinstance(example, Tensor) or not example.dim() or not len(example):
        raise InputError(f"example: pictures as a tensor (N, ...), not {type(example).__name__}")
    numel = {n: p.numel() for n, p in network.named_parameters() if p.requires_grad}
    # auxiliary heads run in training mode only; batch norm of a single value needs two pictures
    pair = example[:2] if len(example) > 1 else torch.cat([example, example])
    try:
        trace = Trace(network, pair)
    except Exception as error:
        try:
            network(pair)
        except Exception as cause:
            raise InputError(
                f"example of shape {tuple(example.shape)}: network {kind} can't take it "
                f"({brief(cause)})"
            ) from cause
        raise InputError(f"network {kind}: it can't be traced ({brief(error)})") from error
    trial = partial(_faulty, network, pair, trace.shapes)
    candidates = [
        _units(trace, numel, tied=tied, noted=noted)
        for tied in sorted({False, bool(trace.ties)})
        for noted in sorted({False, bool(trace.noted)})
    ]
    while len(candidates) > 1 and trial(candidates[0], blame=False):
        candidates.pop(0)
    coupling = candidates[0]
    while faulty := trial(coupling):
        coupling = coupling.without(faulty, "the network fails when it is cut")
    if not coupling.units:
        layers = network.named_modules()
        recurrent = {name: type(layer) for name, layer in layers if isinstance(layer, nn.RNNBase)}
        told = [f"{name}: {rnn.__name__} can't be followed" for name, rnn in recurrent.items()]
        told += [f"{name}: {reason}" for name, reason in coupling.whole.items()]
        raise InputError(
            f"network {kind}: no layer of it can be pruned ({'; '.join(told) or 'it has none'}); "
            "the stand-ins 'epochs' and 'subset' leave it whole"
        )
    macs: dict[str, int] = defaultdict(int)
    for cost in coupling.macs:
        macs[_layer(cost.weight)] += cost.amount
    whole, total = dict(coupling.whole), sum(macs.values())
    for name in whole:
        if macs[name] >= NOTABLE * total:
            whole[name] += f" ({macs[name] / total:.0%} of the multiply-accumulates)"
    return replace(coupling, whole=whole)


def shrink(network: nn.Module, kept: Kept, widths: Widths) -> nn.Module:
    """Cut ``network`` in place to these positions and widths, if it has them, and return it.

    Raises:
        InputError: the network has no such layers or channels.
    """
    try:
        for path, dims in kept.items():
            layer, name = owner(network, path)
            old = getattr(layer, name)
            values = old.detach()
            for dim, positions in dims.items():
                values = values.index_select(dim, positions.to(values.device))
            if isinstance(old, nn.Parameter):
                values = nn.Parameter(values, requires_grad=old.requires_grad)
            setattr(layer, name, values)
        for path, (_, value) in widths.items():
            layer, name = owner(network, path)
            old = getattr(layer, name)
            setattr(layer, name, (value, *old[1:]) if isinstance(old, tuple) else value)
    except (AttributeError, IndexError, RuntimeError) as error:
        kind = type(network).__name__
        raise InputError(f"plan: network {kind} doesn't fit it ({brief(error)})") from error
    return network


def spans(positions: Tensor) -> str:
    """Write sorted positions as "0-7,9"."""
    runs = np.split(positions.numpy(), np.flatnonzero(np.diff(positions) > 1) + 1)
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def positions(text: str) -> Tensor:
    """Read what :func:`spans` wrote."""
    ends = ([int(end) for end in span.split("-")] for span in text.split(","))
    return torch.cat([torch.arange(end[0], end[-1] + 1) for end in ends])


def owner(network: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Split the path of a tensor or an attribute: the layer that has it, and its name there."""
    layer, _, name = path.rpartition(".")
    return network.get_submodule(layer), name


def brief(error: Exception) -> str:
    """Return the kind of an error and its first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _units(trace: Trace, numel: Mapping[str, int], *, tied: bool, noted: bool) -> Coupling:
    """Return the units of a traced network: the channels that are joined, directly or not.

    ``numel`` are the elements of its trainable weights; ``tied`` joins the trace's ties too, and
    ``noted`` has the attributes that only look like widths follow.
    """
    axes = list(dict.fromkeys([*trace.made.values(), *trace.axes]))
    channels = torch.cat([trace.axes[axis] for axis in axes]).numpy()
    axis_of = np.repeat(np.arange(len(axes)), [len(trace.axes[axis]) for axis in axes])
    one, other = torch.cat(trace.joins + (trace.ties if tied else []), 1).numpy()
    links = coo_array((np.ones(len(one), bool), (one, other)), shape=[len(channels) + 1] * 2)
    count, component = connected_components(links, directed=False)
    first = np.full(count, len(channels))
    np.minimum.at(first, component[channels], np.arange(len(channels)))
    reasons: dict[int, str] = {}
    for stays, reason in trace.kept:
        for each in np.unique(component[stays[stays > 0]]).tolist():
            reasons.setdefault(each, reason)

    made = sum(len(trace.axes[axis]) for axis in trace.made.values())
    free = np.setdiff1d(np.flatnonzero(first < made), list(reasons))
    row = np.full(count, len(free))
    row[free] = np.arange(len(free))
    touched = np.zeros((len(free) + 1, len(axes)), bool)
    touched[row[component[channels]], axis_of] = True
    kind = np.unique(np.packbits(touched[:-1], 1), axis=0, return_inverse=True)[1].ravel()
    start = np.full(len(free), len(channels))  # a group comes where its first channel comes
    np.minimum.at(start, kind, first[free])
    order = np.lexsort((first[free], start[kind]))
    starts = np.flatnonzero(np.diff(kind[order], prepend=-1))
    unit = np.full(count, -1)
    unit[free[order]] = np.arange(len(free))

    def units(channels: Tensor) -> Tensor:
        return torch.from_numpy(unit[component[channels]])

    tensors: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for (path, dim), numbers in trace.axes.items():
        if (units(numbers) >= 0).any():
            tensors[path][dim] = units(numbers)
    macs = tuple(product.numbered(units) for product in trace.products)
    whole = {}
    for product, cost in zip(trace.products, macs, strict=True):
        if _stays(cost):
            leaving = int(component[product.rows[0][0]])
            whole[_layer(cost.weight)] = reasons.get(leaving, "nothing is coupled to it")
    coupling = Coupling(
        sizes=tuple(np.diff([*starts, len(free)]).tolist()),
        tensors=dict(tensors),
        attributes={
            joined(name, key): (value, units(numbers))
            for name, attributes in trace.attributes.items()
            for key, (value, numbers) in attributes.items()
            if (units(numbers) >= 0).any() and (noted or joined(name, key) not in trace.noted)
        },
        macs=macs,
        numel=tuple(Cost(n, k, tuple(tensors.get(n, {}).values())) for n, k in numel.items()),
        whole=whole,
    )
    single = [group for group, size in enumerate(coupling.sizes) if size == 1]
    return coupling.without(single, "all its channels hang together")


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


def _stays(cost: Cost) -> bool:
    """Return whether all outputs of a layer stay, by the cost of its product."""
    return bool(cost.weight) and bool((cost.rows[0] < 0).all())


def padded(mask: Tensor) -> Tensor:
    """Return ``mask`` with one more place, that unit -1 finds: what is in no unit stays."""
    return torch.cat([mask, torch.ones(1, dtype=torch.bool)])


def _faulty(
    network: nn.Module,
    pair: Tensor,
    shapes: list[torch.Size],
    coupling: Coupling,
    *,
    blame: bool = True,
) -> list[int]:
    """Return groups with which a random cut fails, none if both of two cuts work.

    A cut must make no difference to the ``shapes`` of the outputs. To ``blame`` is to look for the
    groups that fail by themselves; else all of them are returned, and the narrowest cut, too, has
    to work: a fixed size may divide the widths of the others.
    """
    starts = np.cumsum([0, *coupling.sizes])

    def search(groups: list[int], kept: list[int]) -> list[int]:
        mask = torch.ones(coupling.units, dtype=torch.bool)
        for group in groups:
            mask[starts[group] + kept[group] : starts[group + 1]] = False
        try:
            cut = shrink(copy.deepcopy(network), *coupling.cut(mask)).train()
            with torch.no_grad():
                if [leaf.shape for leaf in tree_leaves(cut(pair))] == shapes:
                    return []
        except Exception:  # whatever a network raises that doesn't fit together
            pass
        half = len(groups) // 2
        parts = (groups[:half], groups[half:]) if half and blame else ()
        return [group for part in parts for group in search(part, kept)] or groups

    for least in (False, False, True)[: 2 if blame else 3]:
        kept = [1 if least else int(torch.randint(1, size, ())) for size in coupling.sizes]
        if faulty := search(list(range(len(kept))), kept):
            return faulty
    return []
