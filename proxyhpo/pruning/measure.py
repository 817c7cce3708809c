"""Anatomy: what pruning did to a network, as rows: costs, channels by layer, time, memory.

Time and memory are measured, base beside proxy in turns, because neither falls as
multiply-accumulates do.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from proxyhpo.models import place_both
from proxyhpo.pruning.coupling import joined
from proxyhpo.pruning.criteria import logits

if TYPE_CHECKING:
    from proxyhpo.pruning.proxy import Proxy

Row = dict[str, Any]

TOLERANCE = 0.02  # of N_B's cost: so near a target counts as hit


def describe(proxy: Proxy) -> list[Row]:
    """Return rows of ``item, base, proxy, share, note``: costs, then each layer's channels."""
    kind, asked = proxy.recipe["target"], proxy.recipe["share"]
    came = "hit" if abs(proxy.share - asked) <= TOLERANCE else "missed, the nearest below"
    note = {kind: f"asked for {asked}: {came}"}
    rows = [
        _row("multiply-accumulates", proxy.base_macs, proxy.macs, note.get("macs")),
        _row("parameters", proxy.base_parameters, proxy.parameters, note.get("parameters")),
    ]
    if kind == "time":
        rows.append(_row("step time", 1.0, proxy.share, note["time"]))
    for name, layer in proxy.build(0, inherit=True).named_modules():
        if not isinstance(getattr(layer, "weight", None), Tensor):
            continue  # some containers repeat the width that their first layer had
        for attribute in ("out_channels", "out_features"):
            if now := getattr(layer, attribute, None):
                before, _ = proxy.plan["widths"].get(joined(name, attribute), (now, now))
                rows.append(_row(name, before, now, proxy.whole.get(name)))
    return rows


def compare(proxy: Proxy, network: nn.Module, pictures: Tensor, *, repeats: int = 5) -> list[Row]:
    """Return :func:`describe`'s rows and what was measured on ``network`` (N_B) and ``pictures``.

    These are ``step seconds``, the median of a training step, and ``bytes for backward``, the
    activations and weights that a forward pass keeps; ``pictures`` is ``(N, ...)``.
    """
    pair = [network, proxy.build(0).to(pictures.device)]
    base, cut = step_seconds([(one, pictures) for one in pair], repeats=repeats)
    base_kept, cut_kept = (saved_bytes(one, pictures) for one in pair)
    measured = [_row("step seconds", base, cut), _row("bytes for backward", base_kept, cut_kept)]
    return measured + describe(proxy)


def survey(
    network: nn.Module,
    batch: tuple[Tensor, Tensor],
    criteria: Sequence[str],
    shares: Sequence[float],
    *,
    repeats: int = 5,
) -> list[Row]:
    """Return rows of :func:`describe` for each criterion at each share of MACs, measured together.

    Each row also says ``criterion`` and ``asked``, the share asked for. All proxies and N_B take
    turns in one measurement of ``step seconds``, so that they can be set beside each other.

    Args:
        network: N_B.
        batch: normalised pictures ``(N, ...)`` and labels ``(N,)``: what the criteria look at, and
            a training step is timed on.
        criteria: keys of :data:`proxyhpo.pruning.criteria.CRITERIA`.
        shares: of multiply-accumulates to keep, each in (0, 1).
        repeats: timed steps of each network.
    """
    from proxyhpo.pruning.proxy import make_proxy  # which imports this module

    pictures, _ = batch
    asked = [(criterion, share) for criterion in criteria for share in shares]
    proxies = [
        make_proxy(network, pictures[:1], criterion=criterion, macs=share, batch=batch)
        for criterion, share in asked
    ]
    networks = [network, *(proxy.build(0) for proxy in proxies)]
    base, *others = step_seconds([(one, pictures) for one in networks], repeats=repeats)
    rows = []
    for (criterion, share), proxy, seconds in zip(asked, proxies, others, strict=True):
        found = [_row("step seconds", base, seconds), *describe(proxy)]
        rows += [{"criterion": criterion, "asked": share, **row} for row in found]
    return rows


def step_seconds(pairs: Sequence[tuple[nn.Module, Tensor]], *, repeats: int = 5) -> list[float]:
    """Return the median seconds of a training step for each pair of network and pictures.

    A step is forward, backward and an SGD update, of a copy of the network, in the layout that
    trials train in (:mod:`proxyhpo.models`). The pairs take turns, so that whatever else the
    machine does falls on all of them alike.
    """
    runs: list[tuple[nn.Module, Tensor, torch.optim.Optimizer, list[float]]] = []
    for network, pictures in pairs:
        scratch, pictures = place_both(copy.deepcopy(network).train(), pictures)
        runs.append((scratch, pictures, torch.optim.SGD(scratch.parameters(), 1e-4, 0.9), []))
    for repeat in range(repeats + 1):
        for network, pictures, optimiser, seconds in runs:
            _wait(pictures)
            start = time.perf_counter()
            optimiser.zero_grad()
            logits(network, pictures).square().mean().backward()
            optimiser.step()
            _wait(pictures)
            if repeat:  # the first is for memory and kernels to settle
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for *_, seconds in runs]


def saved_bytes(network: nn.Module, pictures: Tensor) -> int:
    """Return the bytes that one forward pass in training mode keeps for its backward pass.

    That is what bounds the batch size: the same on any device, and free of the allocator's noise.
    """
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


def _row(item: str, base: float, proxy: float, note: str | None = None) -> Row:
    return {"item": item, "base": base, "proxy": proxy, "share": proxy / base, "note": note or ""}
