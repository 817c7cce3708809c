"""Tracing: from a network to its units, the smallest sets of channels that leave together.

Torch-Pruning's dependency graph (Fang et al., DepGraph, arXiv:2301.12900) tells which channels of
which layers hang together. Here each channel of each layer is a node, what hangs together is
joined, and a unit is a connected component: plain arrays, without the pruner's own cutting.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch_pruning import DependencyGraph, ops
from torch_pruning.dependency import Dependency, Node
from torchvision.models import VisionTransformer

from proxyhpo.pruning.coupling import joined, owner

Axis = tuple[str, str]  # name of a layer or of a free parameter; "in" or "out"
Parts = tuple[dict[str, tuple[str, ...]], dict[str, str]]  # side by dimension; by attribute

LAYERS = (_ConvNd, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention, nn.Embedding)
OUTPUT = "it makes the network's output"
PER_CHANNEL: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("weight", "bias", "running_mean", "running_var"), ("out",)
)


@dataclass(frozen=True, eq=False)
class Trace:
    """What :func:`trace` finds; fields as in :class:`~proxyhpo.pruning.coupling.Coupling`."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    tensors: dict[str, dict[int, Tensor]]
    attributes: dict[str, tuple[int, Tensor]]
    whole: dict[str, str]


def trace(network: nn.Module, pair: Tensor) -> Trace:
    """Return the units of ``network``, run in training mode on two pictures.

    Layers that the trace can't follow, and those that make the output, have no units.
    """
    graph = _Graph()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph.build_dependency(
            network, pair, forward_fn=lambda module, x: module.train()(x), verbose=False
        )
    layers = dict(network.named_modules())
    parts = {name: _parts(layer) for name, layer in layers.items()}
    names: dict[object, str] = {layer: name for name, layer in layers.items()}
    for name, parameter in network.named_parameters():
        names[parameter] = name
        if parameter in graph.module2node:  # used by itself, not by a layer
            sides = [""] * parameter.dim()
            sides[graph.module2node[parameter].pruning_dim] = "out"
            parts[name] = {"": tuple(sides)}, {}

    channels = _Channels()
    _follow(graph, names, channels)
    tied = _tied(network)
    for name, layer in layers.items():
        enters, leaves = channels.of(name, "in"), channels.of(name, "out")
        for first, second in _bundles(layer, enters, leaves):
            channels.join(first, second)
        if layer in graph.module2node and not graph.module2node[layer].outputs:
            channels.keep(leaves, OUTPUT)
        if parts[name] is None or name in tied:
            reason = "it shares its weights" if name in tied else f"{type(layer).__name__} is left"
            channels.keep(np.concatenate([enters, leaves]), reason)

    units, group_names, sizes, reasons = channels.units()
    tensors, attributes = _placed(network, parts, units)
    whole = {
        name: reasons.get((name, "out"), "nothing is coupled to it")
        for name, layer in layers.items()
        if isinstance(layer, _ConvNd | nn.Linear)
        and layer in graph.module2node
        and ((name, "out") not in units or (units[name, "out"] < 0).all())
    }
    return Trace(group_names, sizes, tensors, attributes, whole)


def _follow(graph: DependencyGraph, names: dict[object, str], channels: _Channels) -> None:
    """Join the channels that the dependency graph couples to each layer's outputs."""
    reached: dict[nn.Module, set[int]] = defaultdict(set)

    def nodes(dep: Dependency, positions: list[int]) -> np.ndarray:
        side = "in" if dep.handler.__name__ == "prune_in_channels" else "out"
        size = graph.get_in_channels if side == "in" else graph.get_out_channels
        return channels.add((names[dep.target.module], side), size(dep.target) or 0)[positions]

    for layer in [m for m in graph.module2node if isinstance(m, _ConvNd | nn.Linear)]:
        pending = list(range(graph.get_out_channels(layer)))
        if len(reached[layer]) == len(pending):  # they leave with those of an earlier layer
            continue
        root = channels.add((names[layer], "out"), len(pending))
        cutter = graph.get_pruner_of_module(layer).prune_out_channels
        try:
            while pending:
                followed: set[int] = set()
                for item in graph.get_pruning_group(layer, cutter, pending):
                    target = item.dep.target.module
                    if isinstance(target, ops._OutputOp):
                        channels.keep(root[item.root_idxs], OUTPUT)
                    elif target in names:
                        channels.join(root[item.root_idxs], nodes(*item))
                        if graph.is_out_channel_pruning_fn(item.dep.handler):
                            reached[target].update(item.idxs)
                        if target is not layer:
                            followed.update(item.root_idxs)
                # where two halves of a split meet again, the graph forgets the second: ask again
                left = [channel for channel in pending if channel not in followed]
                pending = left if followed else []
        except Exception:  # the graph gets lost, or names a channel that isn't there
            channels.keep(root, "its coupling isn't understood")


def _placed(
    network: nn.Module, parts: dict[str, Parts | None], units: dict[Axis, Tensor]
) -> tuple[dict[str, dict[int, Tensor]], dict[str, tuple[int, Tensor]]]:
    """Return the units along the dimensions of tensors, and behind the widths in attributes."""
    tensors: dict[str, dict[int, Tensor]] = {}
    attributes: dict[str, tuple[int, Tensor]] = {}
    for name, (of_tensors, of_attributes) in ((n, p) for n, p in parts.items() if p):
        for key, sides in of_tensors.items():
            path = joined(name, key) if key else name
            tensor = getattr(*owner(network, path), None)
            dims = {d: units[name, side] for d, side in enumerate(sides) if (name, side) in units}
            if tensor is not None and any((u >= 0).any() for u in dims.values()):
                # several blocks of channels side by side, as query, key and value in attention
                tensors[path] = {d: u.repeat(tensor.shape[d] // len(u)) for d, u in dims.items()}
        for key, side in of_attributes.items():
            if (name, side) in units and (units[name, side] >= 0).any():
                path = joined(name, key)
                value = getattr(*owner(network, path))
                value = value[0] if isinstance(value, tuple) else value
                attributes[path] = value, units[name, side]
    for name, layer in network.named_modules():  # it keeps a width outside its layers
        axis = joined(name, "conv_proj"), "out"
        if isinstance(layer, VisionTransformer) and axis in units:
            attributes[joined(name, "hidden_dim")] = layer.hidden_dim, units[axis]
    return tensors, attributes


class _Graph(DependencyGraph):
    """The dependency graph, told which views flatten pictures to features.

    It takes any view for one where channel counts differ, and gets lost in shuffled channels and
    windows of attention. Views of other kinds leave channels where they are, or the cut fails.
    """

    def _build_dependency(self, module2node: dict) -> None:
        super()._build_dependency(module2node)
        for node in module2node.values():
            if node.type == ops.OPTYPE.RESHAPE and not _flattens(node):
                node.type = ops.OPTYPE.ELEMENTWISE


def _flattens(node: Node) -> bool:
    """Tell whether all that a view leads to are linear layers that take ``(N, features)``."""
    ahead, seen = [*node.outputs], set()
    while ahead:
        reached = ahead.pop()
        if reached not in seen:
            seen.add(reached)
            if isinstance(reached.module, nn.Linear):
                if "mm" not in reached.grad_fn.name().lower():  # of more dimensions: a view
                    return False
            elif isinstance(reached.module, LAYERS):
                return False
            else:
                ahead += reached.outputs
    return bool(seen)


class _Channels:
    """Channels of all layers as nodes of a graph; what is joined can only leave together."""

    def __init__(self) -> None:
        self._nodes: dict[Axis, np.ndarray] = {}
        self._joins: list[np.ndarray] = []
        self._kept: dict[int, str] = {}
        self._count = 0

    def add(self, axis: Axis, size: int) -> np.ndarray:
        """Return the nodes of an axis, made at its first use."""
        if axis not in self._nodes:
            self._nodes[axis] = np.arange(self._count, self._count + size)
            self._count += size
        return self._nodes[axis]

    def of(self, name: str, side: str) -> np.ndarray:
        """Return the nodes of an axis, none if nothing touches it."""
        return self._nodes.get((name, side), np.arange(0))

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        self._joins.append(np.stack([first, second]))

    def keep(self, nodes: np.ndarray, reason: str) -> None:
        self._kept |= dict.fromkeys(nodes.tolist(), reason)

    def units(self) -> tuple[dict[Axis, Tensor], tuple[str, ...], tuple[int, ...], dict[Axis, str]]:
        """Return units by axis, groups' names and sizes, and why the axes that stay do so."""
        if not self._joins:
            return {}, (), (), {}
        one, other = np.concatenate(self._joins, axis=1)
        shape = (self._count, self._count)
        links = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=shape)
        count, labels = connected_components(links, directed=False)
        first = np.unique(labels, return_index=True)[1]
        reasons = {int(labels[node]): reason for node, reason in self._kept.items()}

        axes = [axis for axis, nodes in self._nodes.items() for _ in nodes]
        number = {axis: i for i, axis in enumerate(self._nodes)}
        touched = np.zeros((count, len(number)), dtype=bool)
        touched[labels, [number[axis] for axis in axes]] = True
        kind = np.unique(np.packbits(touched, axis=1), axis=0, return_inverse=True)[1].ravel()
        start = np.full(count, self._count)  # a group comes where its first channel comes
        np.minimum.at(start, kind, first)

        free = np.setdiff1d(np.arange(count), list(reasons))
        free = free[np.lexsort((first[free], start[kind[free]]))]
        unit = np.full(count, -1)
        unit[free] = np.arange(len(free))
        starts, sizes = np.unique(start[kind[free]], return_counts=True)
        return (
            {axis: torch.from_numpy(unit[labels[nodes]]) for axis, nodes in self._nodes.items()},
            tuple(axes[node][0] for node in starts),
            tuple(sizes.tolist()),
            {a: reasons.get(int(labels[n[0]]), "") for a, n in self._nodes.items() if len(n)},
        )


def _parts(layer: nn.Module) -> Parts | None:
    """Return which tensors and attributes of a layer count its channels; ``None`` if unknown."""
    parts: Parts | None = {}, {}
    match layer:
        case _ConvNd(groups=1):
            sides = ("in", "out") if layer.transposed else ("out", "in")
            widths = {"in_channels": "in", "out_channels": "out"}
            parts = {"weight": sides, "bias": ("out",)}, widths
        case _ConvNd(transposed=False) if not _odd_depthwise(layer):  # whole groups go
            widths = dict.fromkeys(("in_channels", "out_channels", "groups"), "out")
            parts = {"weight": ("out",), "bias": ("out",)}, widths
        case nn.Linear():
            widths = {"in_features": "in", "out_features": "out"}
            parts = {"weight": ("out", "in"), "bias": ("out",)}, widths
        case _NormBase():
            parts = PER_CHANNEL, {"num_features": "out"}
        case nn.GroupNorm():
            # groups of channels go as a whole, but for the one group of all channels
            groups = ["num_groups"] if layer.num_groups > 1 else []
            parts = PER_CHANNEL, dict.fromkeys(["num_channels", *groups], "out")
        case nn.LayerNorm() if len(layer.normalized_shape) == 1:
            parts = PER_CHANNEL, {"normalized_shape": "out"}
        case nn.PReLU():
            if layer.num_parameters > 1:
                parts = {"weight": ("out",)}, {"num_parameters": "out"}
        case nn.Embedding():
            parts = {"weight": ("", "out")}, {"embedding_dim": "out"}
        case nn.MultiheadAttention() if layer.in_proj_weight is not None and layer.bias_k is None:
            outer = ("embed_dim", "kdim", "vdim", "head_dim")
            inner = ("out_proj.in_features", "out_proj.out_features")
            square = dict.fromkeys(("in_proj_weight", "out_proj.weight"), ("out", "out"))
            flat = dict.fromkeys(("in_proj_bias", "out_proj.bias"), ("out",))
            parts = {**square, **flat}, dict.fromkeys(outer + inner, "out")
        case ops.TORCH_LSTM() | nn.LayerNorm() | _ConvNd() | nn.MultiheadAttention():
            parts = None
    return parts if parts is None or _plain(layer, parts) else None


def _plain(layer: nn.Module, parts: Parts) -> bool:
    """Tell whether the tensors are the layer's own, neither parametrised nor computed."""
    own = layer._parameters.keys() | layer._buffers.keys()
    return all("." in name or name in own for name in parts[0] if hasattr(layer, name))


def _odd_depthwise(layer: _ConvNd) -> bool:
    """Tell apart the grouped layers that the dependency graph takes for depthwise ones."""
    return layer.groups == layer.out_channels != layer.in_channels


def _bundles(
    layer: nn.Module, enters: np.ndarray, leaves: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of channels that the layer's own arithmetic ties together."""
    place = np.arange(len(leaves))
    match layer:
        case _ConvNd() if layer.groups > 1 and len(leaves):
            size = layer.out_channels // layer.groups
            yield leaves, leaves[place // size * size]
            group = np.arange(len(enters)) // (layer.in_channels // layer.groups)
            yield enters, leaves[group * size]
        case nn.GroupNorm() if layer.num_groups > 1:
            size = layer.num_channels // layer.num_groups
            yield leaves, leaves[place // size * size]
        case nn.MultiheadAttention():  # every head has the same width
            yield leaves, leaves[place % layer.head_dim] if len(leaves) else leaves


def _tied(network: nn.Module) -> set[str]:
    """Return the names of layers that share a weight with another layer."""
    owners: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, layer in network.named_modules():
        for parameter in layer.parameters(recurse=False):
            owners[parameter].append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}
