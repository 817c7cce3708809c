"""Stand-ins for N_B at a given share of its cost: pruned proxies, and equally cheap controls.

A stand-in is what trials train in N_B's place: a network, a data set and a number of epochs. Its
cost is multiply-accumulates of a training step, forward and backward, x pictures x epochs. What a
share comes to is stated, since epochs, sides, blocks and layers come whole.

A stand-in's name is a key of :data:`STAND_INS`, or two of them joined by "+"; "@0.1" behind a kind
is the share that it alone comes to. Without it, one kind comes to the caller's share, and two to
its root each. A new stand-in is one function and one line in :data:`STAND_INS`.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from proxyhpo.config import SMALLEST_SIDE, InputError, check_share, choose
from proxyhpo.data.datasets import Dataset, stratified
from proxyhpo.pruning.criteria import CRITERIA
from proxyhpo.pruning.measure import (
    count_macs,
    count_parameters,
    logits,
    macs_before,
    plain_attention,
    step_seconds,
)
from proxyhpo.pruning.proxy import Proxy, drawn_otherwise, make_proxy
from proxyhpo.pruning.trace import joined

Builder = Callable[[int], nn.Module]

COST = "the base network's cost"
SCORED = 64  # pictures that a criterion looks at; 128 move widths no more than another draw does


@dataclass(frozen=True, eq=False, kw_only=True)
class Entrant:
    """What trials train, N_B or a stand-in, by whatever code.

    Attributes:
        name: a key of :data:`STAND_INS`, two of them joined by "+", or "base".
        build: seed to network with fresh weights, on the CPU.
        epochs: of a full trial.
        macs: forward multiply-accumulates for one picture; 0: unknown.
        parameters: trainable weights.
        seconds: wall-clock time of making it.
        proxy: the pruned network, if it is one.
        target: the share of N_B's cost that it was made for.
    """

    name: str
    build: Builder
    epochs: int
    macs: int = 0
    parameters: int = 0
    seconds: float = 0.0
    proxy: Proxy | None = None
    target: float = 1.0

    @property
    def plan(self) -> str:
        """What :func:`make_stand_in` makes the pruned part from again; "" where none is pruned."""
        return self.proxy.to_json() if self.proxy else ""

    @property
    def identity(self) -> tuple[str, float]:
        """What rows know it by: its name and its pruning ratio, ``("", 0.0)`` for N_B."""
        return ("", 0.0) if self.name == "base" else (self.name, round(1 - self.target, 6))


@dataclass(frozen=True, eq=False, kw_only=True)
class StandIn(Entrant):
    """What our own training loop trains.

    Attributes:
        dataset: what it is trained and evaluated on.
        step_macs: multiply-accumulates of forward and backward pass, as far as that is computed.
        share: its cost by N_B's.
    """

    dataset: Dataset
    step_macs: int = 0
    share: float = 1.0

    @property
    def cost(self) -> int:
        """Multiply-accumulates of a full trial's training."""
        return self.step_macs * len(self.dataset.train) * self.epochs


def parse(name: str, share: float = 0.5) -> dict[str, float]:
    """Return the kinds of stand-in ``name``, each with the share that it alone comes to.

    Where no kind names its own, together they come to ``share``.

    Raises:
        InputError: an unknown kind, kinds that don't combine, or an invalid share.
    """
    parts = str(name).split("+")
    kinds = [part.partition("@")[0] for part in parts]
    for kind in kinds:
        choose("stand-in", kind, STAND_INS)
    if len(kinds) > 2 or len({"pruned" if k in CRITERIA else k for k in kinds}) < len(kinds):
        names = "+".join(kinds)
        raise InputError(f"stand-in {names!r}: one kind, or two different kinds joined by '+'")
    if "@" not in name:
        check_share("share", share, COST)
        return dict.fromkeys(kinds, share ** (1 / len(kinds)))
    shares = {}
    for kind, part in zip(kinds, parts, strict=True):
        text = part.partition("@")[2]
        try:
            shares[kind] = float(text)
        except ValueError:
            shares[kind] = math.nan
        check_share(f"stand-in {name!r}: share {text!r} of {kind}:", shares[kind], COST)
    return shares


def epochs_of(name: str, epochs: int, share: float) -> int:
    """Return the epochs of a full trial of stand-in ``name``, before it is made."""
    shares = {} if name == "base" else parse(name, share)
    return max(1, math.floor(epochs * shares.get("epochs", 1) + 0.5))


def pictures_of(name: str, dataset: Dataset, share: float) -> int:
    """Return how many pictures stand-in ``name`` is trained on, before it is made."""
    shares = {} if name == "base" else parse(name, share)
    if "subset" not in shares:
        return len(dataset.train)
    return len(stratified(dataset.train.labels, shares["subset"], torch.Generator()))


def make_stand_in(
    name: str,
    build: Builder,
    dataset: Dataset,
    epochs: int,
    share: float,
    seed: int = 0,
    *,
    plan: str = "",
) -> StandIn:
    """Return stand-in ``name`` (see this module), or N_B itself by the name "base".

    ``build``, ``dataset`` and ``epochs`` are N_B's; ``share`` of its cost, in (0, 1), holds where
    the name doesn't say. ``seed`` is that of pruning and of drawing pictures, ``plan`` the pruned
    part as it was made earlier, by :meth:`Proxy.to_json`.

    Raises:
        InputError: an unknown name, or a share that is none or out of reach.
    """
    shares = {} if name == "base" else parse(name, share)
    whole = made = _counted(StandIn(name="base", build=build, dataset=dataset, epochs=epochs), seed)
    if not shares:
        return whole
    start = time.perf_counter()
    # a criterion needs the gradients that frozen layers lack
    for kind, own in sorted(shares.items(), key=lambda each: each[0] == "frozen"):
        make = partial(STAND_INS[kind], plan=plan) if kind in CRITERIA else STAND_INS[kind]
        made = make(made, own, seed)
    made = _counted(made, seed)
    return replace(
        made,
        name="+".join(shares),
        seconds=time.perf_counter() - start,
        share=made.cost / whole.cost,
        target=math.prod(shares.values()),
    )


def cost_rows(
    stand_ins: Sequence[StandIn], base: StandIn, *, batch_size: int = 128, repeats: int = 5
) -> list[dict[str, Any]]:
    """Return what each stand-in costs, as shares of N_B's cost: how equal "equal cost" is.

    N_B is ``base``. All take turns in one measurement of training steps, on noise of their data
    sets' shapes, on the CPU.

    Returns:
        Rows of ``stand_in``, its name; ``asked``, the share asked for; ``macs x samples``, the
        share of :attr:`StandIn.cost`; ``time``, the share of training time by median steps;
        ``step seconds``.
    """
    generator = torch.Generator().manual_seed(0)
    blanks = [_blank(one).expand(batch_size, -1, -1, -1) for one in (base, *stand_ins)]
    noise = [torch.randn(blank.shape, generator=generator) for blank in blanks]
    networks = [one.build(0) for one in (base, *stand_ins)]
    base_step, *steps = step_seconds(list(zip(networks, noise, strict=True)), repeats=repeats)
    whole = base_step * len(base.dataset.train) * base.epochs
    return [
        {
            "stand_in": one.name,
            "asked": one.target,
            "macs x samples": one.cost / base.cost,
            "time": step * len(one.dataset.train) * one.epochs / whole,
            "step seconds": step,
        }
        for one, step in zip(stand_ins, steps, strict=True)
    ]


def pruned(one: StandIn, share: float, seed: int, *, criterion: str, plan: str = "") -> StandIn:
    """N_B pruned to a share of its multiply-accumulates."""
    proxy = prune(one.build, criterion, share, scored_batch(one.dataset, seed), seed, plan)
    return replace(one, build=proxy.build, proxy=proxy)


def prune(
    build: Builder, criterion: str, share: float, batch: Sequence[Any], seed: int, plan: str = ""
) -> Proxy:
    """Return the proxy of that share of N_B's multiply-accumulates, or the one that ``plan`` holds.

    ``batch`` is inputs, by which N_B is traced, and the targets of criteria that need them.
    """
    network, (inputs, *targets) = build(seed), batch
    if plan:
        return Proxy.from_json(plan, network)
    scored = (inputs, *targets) if targets else None
    if others := drawn_otherwise(network):
        path, ratio = max(others.items(), key=lambda each: abs(math.log(each[1] or 1e-12)))
        warnings.warn(
            f"{type(network).__name__}: {len(others)} of its weights are drawn otherwise than a "
            f"pruned network's fresh ones ({path} is {ratio:.2g} times as large): learning rates "
            "may not carry over; give it a reset_parameters() that draws all of its weights",
            stacklevel=2,
        )
    return make_proxy(network, inputs[:1], criterion=criterion, macs=share, batch=scored, seed=seed)


def fewer_epochs(one: StandIn, share: float, seed: int) -> StandIn:
    """N_B for the whole number of epochs nearest to the share, at least one."""
    return replace(one, epochs=epochs_of("epochs", one.epochs, share))


def subset(one: StandIn, share: float, seed: int) -> StandIn:
    """N_B on a stratified subset of the training pictures."""
    train, generator = one.dataset.train, torch.Generator().manual_seed(seed)
    rows = stratified(train.labels, share, generator)
    return replace(one, dataset=one.dataset.with_train(train.take(rows)))


def lower_resolution(one: StandIn, share: float, seed: int) -> StandIn:
    """N_B on smaller pictures: the largest side within the share, at least 8 pixels."""
    side, network, blank = one.dataset.side, one.build(seed), _blank(one)
    if side <= SMALLEST_SIDE:
        raise InputError(f"resolution: pictures of {side} pixels can't be made smaller")
    most = share * count_macs(network, blank)
    while side > SMALLEST_SIDE and count_macs(network, blank[..., :side, :side]) > most:
        side -= 1
    return replace(one, dataset=one.dataset.resized(side))


def less_depth(one: StandIn, share: float, seed: int) -> StandIn:
    """N_B without some of the layers and blocks whose output is as large as their input."""
    example, network = _blank(one), one.build(seed)
    most = share * count_macs(network, example)
    stages = _removable(network, example)
    gone: list[str] = []
    while any(stages.values()) and count_macs(_without(network, gone), example) > most:
        gone.append(max(stages.values(), key=len).pop())
    if not gone:
        raise InputError(f"depth: no block of {type(network).__name__} can be left out")
    return replace(one, build=lambda seed: _without(one.build(seed), gone))


def frozen_layers(one: StandIn, share: float, seed: int) -> StandIn:
    """N_B whose first layers keep their random weights, as few as the share needs."""
    blank, network = _blank(one), one.build(seed)
    names, whole = list(macs_before(network, blank)[0]), _step_macs(network, blank)

    def still(first: int, seed: int) -> nn.Module:
        network = one.build(seed)
        for name in names[:first]:
            for weight in network.get_submodule(name).parameters(recurse=False):
                weight.requires_grad_(False)
        return network

    first = bisect_left(
        range(len(names)), True, key=lambda k: _step_macs(still(k, seed), blank) <= share * whole
    )
    if first == len(names):
        raise InputError(f"frozen: share {share:.3g} is out of reach, a forward pass is a third")
    return replace(one, build=partial(still, first))


STAND_INS: dict[str, Callable[..., StandIn]] = {
    **{name: partial(pruned, criterion=name) for name in CRITERIA},
    "epochs": fewer_epochs,
    "subset": subset,
    "resolution": lower_resolution,
    "depth": less_depth,
    "frozen": frozen_layers,
}


def scored_batch(dataset: Dataset, seed: int) -> tuple[Tensor, Tensor]:
    """Return training pictures ``(N, C, H, W)``, normalised, and labels for a criterion."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(dataset.train), generator=generator)[:SCORED]
    split = dataset.train.take(rows)
    pictures = (split.images / 255 - torch.tensor(dataset.mean)) / torch.tensor(dataset.std)
    return pictures.permute(0, 3, 1, 2), split.labels


def _counted(one: StandIn, seed: int) -> StandIn:
    """Return ``one`` with its costs."""
    network, blank = one.build(seed), _blank(one)
    macs, step = count_macs(network, blank), _step_macs(network, blank)
    return replace(one, macs=macs, step_macs=step, parameters=count_parameters(network))


def _step_macs(network: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of a training step; frozen first layers save theirs."""
    with plain_attention(), FlopCounterMode(display=False) as counter:
        logits(network.eval(), example).sum().backward()
    return counter.get_total_flops() // 2


def _blank(one: StandIn) -> Tensor:
    return torch.zeros(1, one.dataset.channels, one.dataset.side, one.dataset.side)


def _removable(network: nn.Module, example: Tensor) -> dict[torch.Size, list[str]]:
    """Return the steps of sequences that leave a picture's shape as it is, by that shape."""
    steps = dict(_steps(network, ""))
    stages: dict[torch.Size, list[str]] = {}

    def look(name: str, step: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].shape == output.shape:
            stages.setdefault(output.shape, []).append(name)

    scratch = copy.deepcopy(network).eval()
    for name in steps:
        scratch.get_submodule(name).register_forward_hook(partial(look, name))
    with torch.no_grad():
        scratch(example)
    return stages


def _steps(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the steps of sequences, sequences within opened and blocks not, that compute much."""
    for name, child in module.named_children():
        here = joined(path, name)
        if not isinstance(module, nn.Sequential) or isinstance(child, nn.Sequential):
            yield from _steps(child, here)
        elif any(weight.dim() > 1 for weight in child.parameters()):
            yield here, child


def _without(network: nn.Module, gone: Sequence[str]) -> nn.Module:
    """Replace steps of sequences by the identity, in place."""
    for name in gone:
        network.set_submodule(name, nn.Identity())
    return network
