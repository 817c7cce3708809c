"""Coupling: what leaves a network together, what it is worth, what it costs, and the cut itself.

A *unit* is the smallest set of channels that can be removed, through all the layers that they
touch. The number of the unit at each position of each tensor is all that is kept of a trace:
scores, costs and cuts are sums and selections over these arrays.

What can't be cut is found by trying: where a network fails, or its output changes shape, after a
random cut, the layers to blame are left whole.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from proxyhpo.config import InputError

Counted = _ConvNd | nn.Linear | nn.MultiheadAttention  # layers that multiply and accumulate
Kept = dict[str, dict[int, Tensor]]  # positions kept, int64, by tensor and dimension
Widths = dict[str, list[int]]  # value of an attribute before and after, by its path


@dataclass(frozen=True, eq=False)
class Coupling:
    """The units of one network, numbered so that the units of a group are neighbours.

    A group is all units that touch the same sides of the same layers. Its units are alike but for
    their weights, so any number of them may go.

    Attributes:
        names: name of each group: a layer whose outputs it holds.
        sizes: number of units in each group.
        tensors: unit at each position, by tensor and dimension; -1 where a position stays.
        attributes: value of an attribute, and the unit at each channel that it counts.
        macs: multiply-accumulates for one picture, by weight of a convolution or linear layer.
        numel: number of elements of each trainable weight.
        whole: convolutions and linear layers whose outputs all stay, with the reason.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    tensors: dict[str, dict[int, Tensor]]
    attributes: dict[str, tuple[int, Tensor]]
    macs: dict[str, int]
    numel: dict[str, int]
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
        """Names of the weights of convolutions and linear layers that can be cut."""
        return [name for name in self.macs if name in self.tensors]

    def sum(self, saliency: Mapping[str, Tensor], *, filters_only: bool = False) -> Tensor:
        """Add up the saliencies of the weights that leave with each unit.

        Args:
            saliency: a value for each element of a weight ``(out, in, ...)``, by its name.
            filters_only: leave out the weights that read a unit; count those that make it.

        Returns:
            float64 ``(units,)`` on the CPU.
        """
        total = torch.zeros(self.units + 1, dtype=torch.float64)  # the last takes what stays
        for name, values in saliency.items():
            values = values.double().flatten(2).sum(2) if values.dim() > 2 else values.double()
            for dim, units in self.tensors.get(name, {}).items():
                if not (filters_only and dim):
                    total.index_add_(0, units % len(total), values.sum(1 - dim).cpu())
        return total[:-1]

    def cost(self, mask: Tensor, whole: Mapping[str, int]) -> float:
        """Return what is left of ``whole``, a cost by tensor, if the units of ``mask`` are kept.

        A weight's cost is in proportion to its number of elements. That holds for its
        multiply-accumulates too, since cutting channels leaves the pictures' sizes as they are.
        """
        stays = _padded(mask).double()
        return sum(
            cost * math.prod(stays[units].mean().item() for units in self.tensors[name].values())
            if name in self.tensors
            else cost
            for name, cost in whole.items()
        )

    def cut(self, mask: Tensor) -> tuple[Kept, Widths]:
        """Return positions and widths of the network of which only ``mask`` is kept."""
        stays = _padded(mask)
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
        left = [g for g in range(len(self.sizes)) if g not in gone]
        return replace(
            self,
            names=tuple(self.names[g] for g in left),
            sizes=tuple(self.sizes[g] for g in left),
            tensors={n: {d: new[u] for d, u in t.items()} for n, t in self.tensors.items()},
            attributes={path: (value, new[u]) for path, (value, u) in self.attributes.items()},
            whole=self.whole | {self.names[g]: reason for g in sorted(gone)},
        )


def couple(network: nn.Module, example: Tensor) -> Coupling:
    """Find the units of ``network``.

    Args:
        network: a scratch copy: its mode and its statistics change.
        example: pictures as the network takes them, ``(N, ...)``.

    Raises:
        InputError: the network doesn't take the example, or nothing in it can be pruned.
    """
    kind = type(network).__name__
    if not isinstance(example, Tensor) or not len(example):
        raise InputError(f"example: pictures as a tensor (N, ...), not {type(example).__name__}")
    numel = {n: p.numel() for n, p in network.named_parameters() if p.requires_grad}
    # auxiliary heads run in training mode only; batch norm of a single value needs two pictures
    pair = example[:2] if len(example) > 1 else torch.cat([example, example])
    try:
        macs = weight_macs(network, example[:1])
        shapes = _output_shapes(network, pair)
    except Exception as error:
        raise InputError(
            f"example of shape {tuple(example.shape)}: network {kind} can't take it "
            f"({brief(error)})"
        ) from error
    from proxyhpo.pruning.trace import trace  # rebuilding a proxy needs no pruner

    try:
        found = trace(network.requires_grad_(), pair)
    except Exception as error:
        raise InputError(f"network {kind}: it can't be traced ({brief(error)})") from error
    coupling = Coupling(**vars(found), macs=macs, numel=numel)
    coupling = coupling.without([g for g, n in enumerate(coupling.sizes) if n == 1], "one unit")
    while faulty := _faulty(network, coupling, pair, shapes):
        coupling = coupling.without(faulty, "the network fails when it is cut")
    if not coupling.units:
        raise InputError(f"network {kind}: no layer of it can be pruned")
    return coupling


def shrink(network: nn.Module, kept: Kept, widths: Widths) -> nn.Module:
    """Cut ``network`` in place to these positions and widths, and return it.

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
            setattr(layer, name, (value,) if isinstance(getattr(layer, name), tuple) else value)
    except (AttributeError, IndexError, RuntimeError) as error:
        kind = type(network).__name__
        raise InputError(f"plan: network {kind} doesn't fit it ({brief(error)})") from error
    return network


def count_macs(network: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of one forward pass for one picture of ``example``.

    Counted are convolutions and linear layers, the projections of attention among them; not
    biases, normalisations, activations, nor the products within attention.
    """
    return sum(weight_macs(network, example[:1]).values())


def weight_macs(network: nn.Module, picture: Tensor) -> dict[str, int]:
    """Return the counts that :func:`count_macs` adds up, by weight."""
    macs: dict[str, int] = defaultdict(int)

    def count(prefix: str, layer: Counted, inputs: tuple, named: dict, output: Tensor) -> None:
        if isinstance(layer, nn.MultiheadAttention):
            given = (*inputs, *(named[k] for k in ("query", "key", "value") if k in named))
            tokens = [t.numel() // t.shape[-1] for t in given[:3]]
            if layer.in_proj_weight is not None:
                macs[prefix + "in_proj_weight"] += sum(tokens) * layer.embed_dim**2
            macs[prefix + "out_proj.weight"] += tokens[0] * layer.embed_dim**2
        elif getattr(layer, "transposed", False):
            macs[prefix + "weight"] += inputs[0].numel() * layer.weight[0].numel()
        else:
            macs[prefix + "weight"] += output.numel() * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(partial(count, joined(name, "")), with_kwargs=True)
        for name, layer in network.named_modules()
        if isinstance(layer, Counted)
    ]
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            network.eval()(picture)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return dict(macs)


def owner(network: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Split the path of a tensor or an attribute: the layer that has it, and its name there."""
    layer, _, name = path.rpartition(".")
    return network.get_submodule(layer), name


def joined(name: str, key: str) -> str:
    """Return the path of ``key`` in layer ``name``; the network itself has no name."""
    return f"{name}.{key}" if name else key


def brief(error: Exception) -> str:
    """Return the kind of an error and its first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _padded(mask: Tensor) -> Tensor:
    """Return ``mask`` with one more place, that unit -1 finds: what is in no unit stays."""
    return torch.cat([mask, torch.ones(1, dtype=torch.bool)])


def _output_shapes(network: nn.Module, pair: Tensor) -> list[torch.Size]:
    with torch.no_grad():
        return [leaf.shape for leaf in tree_leaves(network.train()(pair))]


def _faulty(
    network: nn.Module, coupling: Coupling, pair: Tensor, shapes: list[torch.Size]
) -> list[int]:
    """Return groups with which a random cut fails, none if both of two cuts work."""
    starts = np.cumsum([0, *coupling.sizes])

    def blame(groups: list[int], kept: list[int]) -> list[int]:
        mask = torch.ones(coupling.units, dtype=torch.bool)
        for group in groups:
            mask[starts[group] + kept[group] : starts[group + 1]] = False
        try:
            cut = shrink(copy.deepcopy(network), *coupling.cut(mask))
            if _output_shapes(cut, pair) == shapes:
                return []
        except Exception:  # whatever a network of the user's may raise
            pass
        half = len(groups) // 2
        parts = (groups[:half], groups[half:]) if half else ()
        return [group for part in parts for group in blame(part, kept)] or groups

    for _ in range(2):
        kept = [int(torch.randint(1, size, ())) for size in coupling.sizes]
        if faulty := blame(list(range(len(kept))), kept):
            return faulty
    return []
