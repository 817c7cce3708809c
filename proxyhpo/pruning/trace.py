"""Tracing: which channels of a network depend on each other, found by following them through a run.

Every position along every dimension of a weight is a *channel* with a number of its own. The
network runs once in each mode, watched operation by operation, while the numbers travel with the
tensors: a view or a concatenation moves them, a sum or a normalisation joins those that meet, a
convolution or a matrix product joins the channels that enter with those of its weight and sends on
the ones that leave. What is joined can only leave the network together. An operation without a
rule keeps whole what enters it.

A view that splits channels, into heads of attention or groups to shuffle, needs as many in each
part: there, the same place in all parts leaves together. Heads grow narrower; none of them goes.

Dependency graphs over layers (Fang et al., DepGraph, arXiv:2301.12900) lose channels in windows,
shuffles and packed query, key and value; these are followed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from proxyhpo.pruning.measure import plain_attention

Axis = tuple[str, int]  # path of a weight, and one of its dimensions
Channels = dict[int, Tensor]  # channel at each position, by dimension of a tensor; 0 for none

WIDTH = re.compile("dim|chan|chs|width|plane|feature|hidden|embed|head_size|shape")
"""Names of attributes that may hold a number of channels."""

# what operations do to channels, by their names in torch's dispatcher
MOVES = re.compile(
    "(_unsafe_)?view|_reshape_alias|permute|t|transpose|expand|slice|select|(un)?squeeze|split"
    "|split_with_sizes|unbind|roll|flip|index|index_select|gather|repeat|embedding|unfold|im2col"
    r"|pixel_(un)?shuffle|(native_)?channel_shuffle|constant_pad_nd|(reflection|replication)_pad\dd"
)
ALIKE = re.compile(  # elementwise or along a dimension, without torch's tag for it
    "native_dropout|bernoulli|copy|_to_copy|detach|alias|lift_fresh|(empty|zeros|ones|full)_like"
    "|zero|fill"
    "|randn?_like|_(safe_|log_)?softmax|cumsum|hardswish|hardsigmoid|rsub|_prelu_kernel|prelu"
    "|rrelu_with_noise|logit|[cs]elu|log_sigmoid_forward"
)
REDUCTIONS = re.compile(
    "mean|(nan)?sum|prod|a?max|a?min|(var|std)(_mean)?|(linalg_vector_)?norm|logsumexp|any|all"
    "|arg(max|min)"
)
PRODUCTS = re.compile("(add)?mm|(badd)?bmm")
NOTHING = re.compile("new_(zeros|ones|empty|full)|_local_scalar_dense|equal")


class Cost(NamedTuple):
    """A cost in proportion to the share of channels that stays of each of some rows.

    Attributes:
        weight: path of the weight that costs it, "" where none does: both factors of a product are
            computed, as within attention, or one is a buffer.
        amount: what the whole costs.
        rows: of a product, one for each side that channels leave (the first) or enter by: the
            channels in a trace, their units in a coupling, -1 where one stays.
    """

    weight: str
    amount: int
    rows: tuple[Tensor, ...]

    def numbered(self, number: Callable[[Tensor], Tensor]) -> Cost:
        """Return the same cost by other numbers of its channels."""
        return self._replace(rows=tuple(map(number, self.rows)))


class Trace(TorchDispatchMode):
    """What is found by running a network in both modes.

    The network is a scratch copy on any device: its mode and its statistics change. ``pair`` is two
    pictures, ``(2, ...)``: batch norm in training needs two values.

    Attributes:
        axes: the channels along each dimension of a weight, int64; together 1, 2, 3, ...
        made: the axis whose channels leave a product, by the path of its weight. The order is
            from the network's output backwards.
        joins: pairs of channels that can only leave together, each int64 ``(2, n)``.
        ties: more pairs, if a view that splits channels takes their number from what enters its
            module, as attention does that reads its width off its input.
        kept: channels that stay, with the reason.
        products: multiply-accumulates for one picture of each convolution and matrix product, in
            order of execution, in evaluation mode.
        attributes: value and channels of attributes that hold a width, by module and name.
        noted: paths of those that only look like it: their value and their name fit.
        shapes: of the outputs in training mode, auxiliary heads among them.
    """

    def __init__(self, network: nn.Module, pair: Tensor) -> None:
        super().__init__()
        self.axes: dict[Axis, Tensor] = {}
        self.made: dict[str, Axis] = {}
        self.joins: list[Tensor] = []
        self.ties: list[Tensor] = []
        self.kept: list[tuple[Tensor, str]] = []
        self.products: list[Cost] = []
        self.attributes: dict[str, dict[str, tuple[int, Tensor]]] = {}
        self.noted: set[str] = set()
        self._owners: list[Axis] = [("", 0)]  # the axis of each channel; there is no channel 0
        self._training = False
        self._running: list[tuple[str, nn.Module, list[Tensor]]] = []
        weights = [
            (joined(name, key), tensor)
            for name, layer in network.named_modules()
            for key, tensor in (layer._parameters | layer._buffers).items()
            if tensor is not None and tensor.is_floating_point()
        ]
        self._learnt = {path for path, tensor in weights if isinstance(tensor, nn.Parameter)}
        for path, tensor in weights:
            if hasattr(tensor, "_fixed"):
                self._keep([tensor], "it shares its weights")
                continue
            sizes = enumerate(tensor.shape)
            tensor._channels = {d: self._add((path, d), n) for d, n in sizes if n > 1}
            tensor._fixed = True  # of weights alone, as opposed to what pictures give
        for name, layer in network.named_modules():
            self.attributes[name] = {
                key: (getattr(layer, key), self.axes[joined(name, weight), dim])
                for key, (weight, dim) in _widths(layer).items()
                if (joined(name, weight), dim) in self.axes
            }
        try:
            with torch.no_grad():
                self._run(network.eval(), pair[:1])
            self._training = True
            outputs = self._run(network.requires_grad_().train(), pair)
        finally:
            for _, tensor in weights:
                tensor.__dict__.pop("_channels", None)
                tensor.__dict__.pop("_fixed", None)
        self.shapes = [output.shape for output in outputs]
        paths = {weight: path for path, weight in reversed(weights)}
        order = [paths.get(weight, "") for weight in _backwards(outputs)]
        self.made = {path: self.made[path] for path in [*order, *self.made] if path in self.made}

    def _add(self, axis: Axis, size: int) -> Tensor:
        self.axes[axis] = torch.arange(size) + len(self._owners)
        self._owners += [axis] * size
        return self.axes[axis]

    def _run(self, network: nn.Module, pictures: Tensor) -> list[Tensor]:
        def enter(name: str, module: nn.Module, *inputs: Any) -> None:
            self._running.append((name, module, tree_leaves(inputs)))

        def leave(*_: Any) -> None:
            self._running.pop()

        with ExitStack() as stack:
            for name, module in network.named_modules():
                hook = partial(enter, name)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            stack.enter_context(plain_attention())
            stack.enter_context(self)
            outputs = [t for t in tree_leaves(network(pictures)) if isinstance(t, Tensor)]
        self._keep(outputs, "it makes the network's output")
        return outputs

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run one operation, and follow the channels through it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__.rstrip("_")
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if (MOVES.fullmatch(name) and hasattr(given[0], "_fixed")) or all(
            hasattr(t, "_fixed") for t in given
        ):
            for result in tree_leaves(out):
                if result is not None:  # as one of an LSTM's is
                    result._fixed = True
        if name == "convolution":
            self._convolve(func, args, out)
        elif PRODUCTS.fullmatch(name):
            self._multiply(func, args, out)
        elif not any(map(_channels, given)) or NOTHING.fullmatch(name):
            pass
        elif MOVES.fullmatch(name):
            self._move(func, name, args, kwargs, out)
        elif name in ("cat", "stack"):
            self._concatenate(args[0], (args[1] if len(args) > 1 else 0) % out.dim(), out, name)
        elif "batch_norm" in name or "group_norm" in name:
            self._normalise(args, out[0])
            if "group_norm" in name and args[6] > 1:
                self._bundle(_channels(args[0]).get(1), args[6])
        elif "layer_norm" in name or "rms_norm" in name:
            channels = self._meet(given, out[0])
            self._note(channels.get(out[0].dim() - 1))
        elif "pool" in name or "upsample" in name:
            self._resize(args[0], out if isinstance(out, Tensor) else out[0])
        elif REDUCTIONS.fullmatch(name):
            self._reduce(func, args, kwargs, out)
        elif name == "glu":
            dim = (args[1] if len(args) > 1 else -1) % out.dim()
            channels = _channels(args[0])
            half = {dim: self._equal(channels[dim].view(2, -1))} if dim in channels else {}
            _set(out, channels | half)
        elif (
            ALIKE.fullmatch(name)
            or torch.Tag.pointwise in func.tags
            or (name == "as_strided" and given[0].shape == out.shape)  # pooling of a single pixel
        ):
            self._meet(given, out if isinstance(out, Tensor) else out[0])
        else:
            self._keep(given, f"it enters {name}, which can't be followed")
        return out

    def _keep(self, tensors: Iterable[Tensor], reason: str) -> None:
        for tensor in tensors:
            self.kept += [(channels, reason) for channels in _channels(tensor).values()]

    def _join(self, first: Tensor | None, second: Tensor | None) -> Tensor | None:
        """Join channels that meet, position by position; return those of either."""
        if first is None or second is None or first is second:
            return second if first is None else first
        first, second = torch.broadcast_tensors(first, second)
        both = (first > 0) & (second > 0)
        self.joins.append(torch.stack([first[both], second[both]]))
        return torch.where(first > 0, first, second)

    def _equal(self, parts: Tensor) -> Tensor:
        """Join the same place in all of ``parts`` ``(n, width)``; return those of one part."""
        one = parts.max(0).values
        self._join(parts, one)
        for tensor in self._running[-1][2]:
            for entering in _channels(tensor).values():
                if len(entering) % len(one) == 0 and parts.numel() % len(entering) == 0:
                    entering = entering.view(-1, len(one))
                    self.ties.append(torch.stack([entering, one.expand_as(entering)]).flatten(1))
        return one

    def _bundle(self, channels: Tensor | None, count: int) -> Tensor | None:
        """Join the channels of each of ``count`` groups; return the first of each."""
        if channels is None:
            return None
        groups = channels.view(count, -1)
        self._join(groups, groups[:, :1])
        return groups[:, 0]

    def _note(self, channels: Tensor | None) -> None:
        """Note the attributes of the running module that may hold the number of these channels."""
        if channels is None:
            return
        name, module, _ = self._running[-1]
        here, count = self.attributes[name], len(channels)
        forms = count, (count,), (count, 1, 1)
        for key, value in vars(module).items():
            if WIDTH.search(key) and isinstance(value, int | tuple) and value in forms:
                if key in here:
                    self._join(here[key][1], channels)
                else:
                    here[key] = count, channels
                    self.noted.add(joined(name, key))

    def _meet(self, tensors: Iterable[Tensor], out: Tensor) -> Channels:
        """Join what meets where tensors are broadcast to ``out``."""
        merged: dict[int, Tensor | None] = {}
        for tensor in tensors:
            for dim, channels in _channels(tensor).items():
                place = dim + out.dim() - tensor.dim()
                merged[place] = self._join(merged.get(place), channels)
        return _set(out, merged)

    def _normalise(self, args: tuple, out: Tensor) -> None:
        channels = _channels(args[0]).get(1)
        for weight in args[1:5]:
            if isinstance(weight, Tensor):
                channels = self._join(channels, _channels(weight).get(0))
        _set(out, _channels(args[0]) | {1: channels})

    def _concatenate(self, tensors: list[Tensor], dim: int, out: Tensor, name: str) -> None:
        merged: dict[int, Tensor | None] = {}
        for tensor in tensors:
            for at, channels in _channels(tensor).items():
                place = at + (name == "stack" and at >= dim)
                if name == "stack" or place != dim:
                    merged[place] = self._join(merged.get(place), channels)
        if name == "cat" and any(dim in _channels(tensor) for tensor in tensors):
            none = {t: torch.zeros(t.shape[dim], dtype=torch.int64) for t in tensors}
            merged[dim] = torch.cat([_channels(t).get(dim, none[t]) for t in tensors])
        _set(out, merged)

    def _resize(self, tensor: Tensor, out: Tensor) -> None:
        passed = {d: c for d, c in _channels(tensor).items() if tensor.shape[d] == out.shape[d]}
        for dim in _channels(tensor).keys() - passed.keys():
            self.kept.append((_channels(tensor)[dim], "its positions are resized"))
        _set(out, passed)

    def _reduce(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        tensor = args[0]
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        dims = given.get("dim")
        dims = [dims] if isinstance(dims, int) else dims or range(tensor.dim())
        gone = {dim % tensor.dim() for dim in dims}
        shift = 0 if given.get("keepdim") else 1
        left = {
            d - shift * sum(g < d for g in gone): c
            for d, c in _channels(tensor).items()
            if d not in gone
        }
        for result in tree_leaves(out):
            _set(result, left)

    def _move(self, func: Any, name: str, args: tuple, kwargs: dict, out: Any) -> None:
        tensor, results = args[0], tree_leaves(out)
        found: list[Channels] = [{} for _ in results]
        rest = tree_map_only(Tensor, lambda t: t.cpu(), args[1:])
        if name == "constant_pad_nd":
            rest = rest[:1]  # with 0, which is no channel
        # where several merge, those that products make come last and are kept: heads, and positions
        # of a table of biases, are only added to them
        made = {d: self._axis(c)[0] in self.made for d, c in _channels(tensor).items()}
        for dim in sorted(made, key=lambda d: (made[d], d)):
            channels = _channels(tensor)[dim]
            full = channels.double().view(-1, *[1] * (tensor.dim() - dim - 1)).expand(tensor.shape)
            moved = full.reshape(out.shape) if "view" in name else func(full, *rest, **kwargs)
            for there, one in zip(found, tree_leaves(moved), strict=True):
                place, here = self._read(one.detach(), first=name == "pixel_shuffle")
                looked_up = name == "embedding" and dim == 0
                if looked_up or (name == "roll" and not torch.equal(here, channels)):
                    self.kept.append((channels, "its place counts"))  # another where fewer are
                if place in there:
                    self.kept.append((there[place], "it is merged with other channels"))
                if place is not None:
                    there[place] = here
        for result, there in zip(results, found, strict=True):
            for channels in there.values():
                self._note(channels)
            _set(result, there)
        if "split" in name:
            for dim in _channels(tensor):
                pieces = [there[dim] for there in found if dim in there]
                if len(pieces) == len(found) and len({len(piece) for piece in pieces}) == 1:
                    self._equal(torch.stack(pieces))

    def _read(self, full: Tensor, *, first: bool) -> tuple[int | None, Tensor]:
        """Return the dimension along which channels vary, and the channels.

        Where it is several, channels were split. All but the last (or the first) are parts that
        have to stay equally wide.
        """
        for dim, (size, stride) in enumerate(zip(full.shape, full.stride(), strict=True)):
            if size > 1 and stride == 0:
                full = full.narrow(dim, 0, 1)
        for dim, size in enumerate(full.shape):
            if size > 1 and (full == full.narrow(dim, 0, 1)).all():
                full = full.narrow(dim, 0, 1)
        full = full.long()
        varying = [dim for dim, size in enumerate(full.shape) if size > 1]
        if len(varying) < 2:
            return varying[0] if varying else None, full.flatten()
        place = varying[0 if first else -1]
        return place, self._equal(full.movedim(place, -1).reshape(-1, full.shape[place]))

    def _convolve(self, func: Any, args: tuple, out: Tensor) -> None:
        tensor, weight, bias, transposed, groups = *args[:3], args[6], args[8]
        entering, own = _channels(tensor), _channels(weight)
        enters, leaves = entering.get(1), own.get(int(transposed))
        if transposed and groups > 1:  # has those of one group
            leaves = None
        reads = own.get(int(not transposed))
        self._product(func, args, out, (leaves, reads if groups == 1 else None), leaves)
        if groups == 1:
            self._join(enters, reads)
        elif transposed:
            self._keep([tensor, weight], "it is a transposed convolution in groups")
        else:
            self._join(self._bundle(enters, groups), self._bundle(leaves, groups))
        if bias is not None:
            self._join(leaves, _channels(bias).get(0))
        same = {d for d in entering if d > 1 and tensor.shape[d] == out.shape[d]}
        for dim in entering.keys() - same - {1}:
            self.kept.append((entering[dim], "its positions are resized"))
        _set(out, {1: leaves} | {dim: entering[dim] for dim in same})

    def _multiply(self, func: Any, args: tuple, out: Tensor) -> None:
        row, column = out.dim() - 2, out.dim() - 1
        left, right = map(_channels, args[-2:])
        made = None
        for operand, leaves in zip(args[-2:], (left.get(row), right.get(column)), strict=True):
            made = leaves if hasattr(operand, "_fixed") else made
        enters = self._join(left.get(column), right.get(row))
        channels = {row: left.get(row), column: right.get(column)}
        if row:
            channels[0] = self._join(left.get(0), right.get(0))
        self._product(func, args, out, (channels[column], enters, channels[row]), made)
        _set(out, channels)
        if len(args) > 2:
            self._meet([out, args[0]], out)

    def _product(
        self,
        func: Any,
        args: tuple,
        out: Tensor,
        channels: tuple[Tensor | None, ...],
        made: Tensor | None,
    ) -> None:
        axis = ("", 0) if made is None else self._axis(made)
        if made is not None:
            self.made.setdefault(axis[0], axis)
        if not self._training:
            macs = flop_registry[func.overloadpacket](*args, out_val=out) // 2
            rows = tuple(row for row in channels if row is not None)
            self.products.append(Cost(axis[0] if axis[0] in self._learnt else "", macs, rows))

    def _axis(self, channels: Tensor) -> Axis:
        return self._owners[int(channels.max())]


def joined(name: str, key: str) -> str:
    """Return the path of ``key`` in layer ``name``; the network itself has no name."""
    return f"{name}.{key}" if name else key


def _channels(tensor: object) -> Channels:
    return getattr(tensor, "_channels", {})


def _set(tensor: Any, channels: Mapping[int, Tensor | None]) -> Channels:
    tensor._channels = {dim: c for dim, c in channels.items() if c is not None}
    return tensor._channels


def _widths(layer: nn.Module) -> dict[str, Axis]:
    """Return the attributes of a layer that count channels: which weight's, which dimension's."""
    match layer:
        case _ConvNd(groups=1):
            return {
                "in_channels": ("weight", int(not layer.transposed)),
                "out_channels": ("weight", int(layer.transposed)),
            }
        case _ConvNd():  # whole groups go
            return dict.fromkeys(("in_channels", "out_channels", "groups"), ("weight", 0))
        case nn.Linear():
            return {"in_features": ("weight", 1), "out_features": ("weight", 0)}
        case _NormBase():
            return {"num_features": ("weight", 0)}
        case nn.GroupNorm():  # groups of channels go as a whole, but for the one group of all
            groups = ["num_groups"] if layer.num_groups > 1 else []
            return dict.fromkeys(["num_channels", *groups], ("weight", 0))
        case nn.PReLU():
            return {"num_parameters": ("weight", 0)}
        case nn.Embedding():
            return {"embedding_dim": ("weight", 1)}
    return {}


def _backwards(outputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield parameters as they are met on the way back through the graph of gradients."""
    seen = set()
    for output in outputs:
        ahead = [output.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is not None and node not in seen:
                seen.add(node)
                if hasattr(node, "variable"):
                    yield node.variable
                ahead += [following for following, _ in node.next_functions]
