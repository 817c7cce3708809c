"""Pruning: from a base network N_B to a proxy N_P of a chosen cost, and the proxy as a value.

:func:`make_proxy` prunes any torch network. A :class:`Proxy` is a plan: it is kept as JSON, and
rebuilt from N_B's architecture without pruner, pictures or pickle.
"""

from __future__ import annotations

import copy
import json
import math
import time as clock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from proxyhpo.config import InputError, choose
from proxyhpo.models import count_parameters
from proxyhpo.pruning.coupling import Coupling, brief, count_macs, couple, joined, shrink
from proxyhpo.pruning.criteria import CRITERIA, Batch, Ranking
from proxyhpo.pruning.measure import TOLERANCE, describe, step_seconds

DEFAULT_SHARE = 0.25
SCOPES = {"global": "layers compete for channels", "local": "every layer keeps the same share"}


@dataclass(frozen=True)
class Proxy:
    """A proxy network N_P: how it was made, what it keeps of N_B, and what it costs.

    Attributes:
        recipe: the arguments of :func:`make_proxy`.
        plan: ``kept``: positions that stay, as "0-7,9", by tensor and dimension; ``widths``:
            layers' attributes before and after; ``draws``: mean and standard deviation of
            weights that no layer has a rule for, such as class tokens and layer scales.
        macs, base_macs: forward multiply-accumulates for one picture.
        parameters, base_parameters: trainable weights.
        share: what came out where a share of MACs, parameters or time was asked for.
        whole: layers whose outputs could not be cut, with the reason.
        seconds: wall-clock time of making it.
    """

    recipe: dict[str, Any]
    plan: dict[str, dict[str, Any]]
    macs: int
    base_macs: int
    parameters: int
    base_parameters: int
    share: float
    whole: dict[str, str]
    seconds: float
    _cut: nn.Module = field(repr=False, compare=False)

    def build(self, seed: int, *, inherit: bool = False) -> nn.Module:
        """Return N_P on the CPU, its fresh weights drawn from ``seed``.

        A network with ``reset_parameters`` of its own is drawn by that rule, which is N_B's; any
        other by its layers' rules. The caller's random state is left as it is.

        Args:
            seed: seed of the fresh weights; inherited ones don't depend on it.
            inherit: keep the weights that :func:`make_proxy`'s network, or the one given to
                :meth:`from_json`, has at the channels that stay. Trials start from fresh weights;
                ``notebooks/anatomy.ipynb`` compares both.
        """
        network = copy.deepcopy(self._cut)
        if not inherit:
            with seeded(seed):
                _draw(network, self.plan["draws"])
        return network

    def to_json(self) -> str:
        """Return all but weights and code."""
        names = (f.name for f in fields(self) if not f.name.startswith("_"))
        return json.dumps({name: getattr(self, name) for name in names})

    @classmethod
    def from_json(cls, text: str, network: nn.Module) -> Proxy:
        """Rebuild a proxy from :meth:`to_json` and N_B, whatever its weights.

        Raises:
            InputError: ``text`` is no proxy, or one of another network.
        """
        names = {f.name for f in fields(cls) if not f.name.startswith("_")}
        try:
            values = json.loads(text)
        except (TypeError, ValueError) as error:
            raise InputError(f"proxy: not JSON ({error})") from error
        if not isinstance(values, dict) or values.keys() != names:
            raise InputError(f"proxy: JSON with other keys than {', '.join(sorted(names))}")
        if count_parameters(network) == values["base_parameters"]:
            cut = _planned(network, values["plan"])
            if count_parameters(cut) == values["parameters"]:
                return cls(**values, _cut=cut)
        raise InputError(f"network {type(network).__name__}: this proxy was made of another one")

    def report(self) -> list[dict[str, object]]:
        """Return costs and channels by layer (:func:`~proxyhpo.pruning.measure.describe`)."""
        return describe(self)


def make_proxy(
    network: nn.Module,
    example: Tensor,
    *,
    criterion: str = "snip",
    scope: str = "global",
    macs: float | None = None,
    parameters: float | None = None,
    time: float | None = None,
    batch: Batch | None = None,
    min_channels: float = 0.15,
    round_to: int = 1,
    seed: int = 0,
) -> Proxy:
    """Prune ``network`` to a share of its cost. The network itself is never changed.

    Args:
        network: N_B, with fresh or trained weights, on any device.
        example: pictures as it takes them, float ``(N, ...)`` on its device; one is enough.
        criterion: a key of :data:`proxyhpo.pruning.criteria.CRITERIA`.
        scope: "global" (layers compete, each score divided by its layer's mean) or "local".
        macs: share of multiply-accumulates to keep, in (0, 1): 0.25 unless one is given here, as
        parameters: share of trainable weights to keep, or as
        time: share of a training step's time to keep, measured here on ``batch`` (else on
            ``example``).
        batch: normalised pictures and labels ``(N,)``, for criteria that look at data.
        min_channels: the least share of channels that each layer keeps, in (0, 1].
        round_to: keep multiples of so many channels; of groups, where a layer is grouped.
        seed: of random scores, and of the proxy.

    Raises:
        InputError: for a bad argument, a network that can't be pruned, or a share out of reach.
    """
    start = clock.perf_counter()
    chosen = choose("criterion", criterion, CRITERIA)
    choose("scope", scope, SCOPES)
    targets = {"macs": macs, "parameters": parameters, "time": time}
    asked = {kind: share for kind, share in targets.items() if share is not None}
    if len(asked) > 1:
        raise InputError("macs, parameters, time: give the share for one of them")
    [(kind, share)] = (asked or {"macs": DEFAULT_SHARE}).items()
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise InputError(f"{kind} {share!r}: a share of the network's own, between 0 and 1")
    if not 0 < min_channels <= 1:
        raise InputError(f"min_channels {min_channels!r}: a share above 0, at most 1")
    if not isinstance(round_to, int) or round_to < 1:
        raise InputError(f"round_to {round_to!r}: a whole number of channels, at least 1")
    if chosen.needs_batch and batch is None:
        raise InputError(f"criterion {criterion}: it needs batch=(pictures, labels)")

    with seeded(seed, network), torch.enable_grad():
        coupling = couple(copy.deepcopy(network), example)
        limits: dict[str, Any] = {
            "scope": scope,
            "min_channels": min_channels,
            "round_to": round_to,
        }

        def score(mask: Tensor) -> Tensor:
            scratch = _silenced(copy.deepcopy(network).requires_grad_(), coupling, mask)
            try:
                scores = chosen.score(scratch, coupling, batch, example)
            except (TypeError, ValueError, IndexError, RuntimeError) as error:
                raise InputError(f"batch: {criterion} can't use it ({brief(error)})") from error
            if not scores.isfinite().all():
                raise InputError(f"criterion {criterion}: its scores of this network overflow")
            return scores

        first = score(torch.ones(coupling.units, dtype=torch.bool))

        def prune(costs: dict[str, int], share: float) -> Tensor:
            scores = first
            for step in range(1, chosen.rounds + 1):
                ranking = Ranking(coupling, chosen, scores, **limits)
                mask = ranking.within(costs, share ** (step / chosen.rounds))
                if step < chosen.rounds:
                    scores = score(mask)
            return mask

        def build(mask: Tensor) -> nn.Module:
            return shrink(copy.deepcopy(network), *coupling.cut(mask))

        if kind == "time":
            pictures = example if batch is None else batch[0]
            mask, came = _within_time(prune, build, network, coupling, pictures, share)
        else:
            mask = prune(coupling.macs if kind == "macs" else coupling.numel, share)
            came = math.nan
    kept, widths = coupling.cut(mask)
    cut = build(mask).cpu()
    base_macs, base_parameters = sum(coupling.macs.values()), count_parameters(network)
    now_macs, now_parameters = count_macs(cut, example.cpu()), count_parameters(cut)
    shares = {"macs": now_macs / base_macs, "parameters": now_parameters / base_parameters}
    return Proxy(
        recipe={
            "criterion": criterion,
            "target": kind,
            "share": share,
            **limits,
            "seed": seed,
        },
        plan={
            "kept": {n: {str(d): _spans(p) for d, p in dims.items()} for n, dims in kept.items()},
            "widths": widths,
            "draws": _free_moments(cut),
        },
        macs=now_macs,
        base_macs=base_macs,
        parameters=now_parameters,
        base_parameters=base_parameters,
        share=shares.get(kind, came),
        whole=coupling.whole,
        seconds=clock.perf_counter() - start,
        _cut=cut,
    )


@contextmanager
def seeded(seed: int, network: nn.Module | None = None) -> Iterator[None]:
    """Draw from ``seed`` on the CPU and the network's device; then restore the random state."""
    tensors = [] if network is None else network.parameters()
    devices = {t.device for t in tensors if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _within_time(
    prune: Callable[[dict[str, int], float], Tensor],
    build: Callable[[Tensor], nn.Module],
    network: nn.Module,
    coupling: Coupling,
    pictures: Tensor,
    share: float,
) -> tuple[Tensor, float]:
    """Halve the range of MACs until a step takes ``share`` of N_B's time, or the nearest below."""
    low, high, guess, best = 0.0, 1.0, share, None
    for _ in range(8):
        try:
            mask = prune(coupling.macs, guess)
        except InputError:
            low = guess
        else:
            base, proxy = step_seconds([(network, pictures), (build(mask), pictures)])
            if proxy <= (share + TOLERANCE) * base:
                best = mask, proxy / base
                if proxy >= (share - TOLERANCE) * base:
                    break
                low = guess
            else:
                high = guess
        guess = (low + high) / 2
    if best is None:
        raise InputError(f"time {share}: out of reach, no proxy steps that fast on this device")
    return best


def _silenced(network: nn.Module, coupling: Coupling, mask: Tensor) -> nn.Module:
    """Set the weights of all units but those of ``mask`` to zero."""
    stays = torch.cat([mask, torch.ones(1, dtype=torch.bool)])
    with torch.no_grad():
        for path in coupling.weights:
            weight = network.get_parameter(path)
            for dim, units in coupling.tensors[path].items():
                gone = (~stays[units]).nonzero().flatten().to(weight.device)
                weight.index_fill_(dim, gone, 0.0)
    return network


def _planned(network: nn.Module, plan: dict[str, dict]) -> nn.Module:
    """Return a copy of N_B, on the CPU, cut to a plan."""
    kept = {
        name: {int(d): _positions(spans) for d, spans in dims.items()}
        for name, dims in plan["kept"].items()
    }
    return shrink(copy.deepcopy(network).cpu(), kept, plan["widths"])


def _spans(positions: Tensor) -> str:
    """Write sorted positions as "0-7,9"."""
    spans: list[list[int]] = []
    for position in positions.tolist():
        if spans and position == spans[-1][1] + 1:
            spans[-1][1] = position
        else:
            spans.append([position, position])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _positions(spans: str) -> Tensor:
    """Read what :func:`_spans` wrote."""
    ends = ([int(end) for end in span.split("-")] for span in spans.split(","))
    return torch.cat([torch.arange(end[0], end[-1] + 1) for end in ends])


def _own_rule(layer: nn.Module) -> Callable[[], None] | None:
    return getattr(layer, "reset_parameters", getattr(layer, "_reset_parameters", None))


def _free_moments(network: nn.Module) -> dict[str, list[float]]:
    """Return mean and standard deviation of each weight that no layer has a rule for."""
    if _own_rule(network):
        return {}
    moments = {}
    for name, layer in network.named_modules():
        if not _own_rule(layer):
            for key, weight in layer.named_parameters(recurse=False):
                values = weight.detach().double()
                constant = values.min() == values.max()  # as rounding would hide
                deviation = 0.0 if constant else values.std(correction=0).item()
                mean = values.min() if constant else values.mean()
                moments[joined(name, key)] = [mean.item(), deviation]
    return moments


def _draw(network: nn.Module, moments: dict[str, list[float]]) -> None:
    """Draw fresh weights: by the network's rule, else by each layer's, inner layers first."""
    layers = [network] if _own_rule(network) else reversed(list(network.modules()))
    for layer in layers:
        if rule := _own_rule(layer):
            rule()
    with torch.no_grad():
        for path, (mean, deviation) in moments.items():
            network.get_parameter(path).normal_(mean, deviation)
