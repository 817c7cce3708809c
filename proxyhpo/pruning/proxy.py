"""Proxies: from a base network N_B to a proxy N_P of a chosen cost, and the proxy as a value.

:func:`make_proxy` prunes any torch network. A :class:`Proxy` is a plan: it is kept as JSON, and
rebuilt from N_B's architecture without pruner, pictures or pickle.
"""

from __future__ import annotations

import copy
import json
import math
import time as clock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from proxyhpo.config import InputError, check_integer, check_share, choose
from proxyhpo.models import seeded
from proxyhpo.pruning.criteria import CRITERIA, Batch, Ranking
from proxyhpo.pruning.cut import Coupling, brief, couple, padded, positions, shrink, spans
from proxyhpo.pruning.measure import count_macs, count_parameters, saved_bytes, step_seconds
from proxyhpo.pruning.trace import joined

Row = dict[str, Any]

SAMPLE, SCALE = 500, 1.25  # a scale is off by so much if another draw of so many weights isn't
TOLERANCE = 0.02  # of N_B's cost: so near a target counts as hit


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

    def __repr__(self) -> str:
        return (
            f"Proxy by {self.recipe['criterion']}, at {self.share:.1%} of {self.recipe['target']}: "
            f"{self.macs:,} of {self.base_macs:,} multiply-accumulates, "
            f"{self.parameters:,} of {self.base_parameters:,} parameters"
        )

    def build(self, seed: int, *, inherit: bool = False) -> nn.Module:
        """Return N_P on the CPU, its fresh weights drawn from ``seed``.

        A network with ``reset_parameters`` of its own is drawn by that rule, which is N_B's; any
        other by its layers' rules. So a rule of its own has to draw all of its weights: those that
        it leaves out stay inherited. Frozen weights, which require no gradient, stay inherited
        too, and so do the statistics beside them. The caller's random state is left as it is.

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
        return json.dumps({name: value for name, value in vars(self).items() if name != "_cut"})

    @classmethod
    def from_json(cls, text: str, network: nn.Module) -> Proxy:
        """Rebuild a proxy from :meth:`to_json` and its N_B, whatever the weights.

        Raises:
            InputError: ``text`` is no proxy, or one of another network.
        """
        names = cls.__dataclass_fields__.keys() - {"_cut"}
        try:
            values = json.loads(text)
        except (TypeError, ValueError) as error:
            raise InputError(f"proxy: not JSON ({error})") from error
        if not isinstance(values, dict) or values.keys() != names:
            raise InputError(f"proxy: JSON with other keys than {', '.join(sorted(names))}")
        if count_parameters(network) == values["base_parameters"]:
            try:
                plan = values["plan"]
                kept = {
                    name: {int(dim): positions(text) for dim, text in dims.items()}
                    for name, dims in plan["kept"].items()
                }
                cut = shrink(copy.deepcopy(network).cpu(), kept, plan["widths"])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise InputError(f"proxy: its plan can't be read ({brief(error)})") from error
            if count_parameters(cut) == values["parameters"]:
                return cls(**values, _cut=cut)
        raise InputError(f"network {type(network).__name__}: this proxy was made of another one")

    def report(self) -> list[Row]:
        """Return rows of ``item, base, proxy, share, note``: costs, then each layer's channels."""
        kind, asked = self.recipe["target"], self.recipe["share"]
        came = "hit" if abs(self.share - asked) <= TOLERANCE else "missed, the nearest below"
        note = {kind: f"asked for {asked}: {came}"}
        rows = [
            _row("multiply-accumulates", self.base_macs, self.macs, note.get("macs")),
            _row("parameters", self.base_parameters, self.parameters, note.get("parameters")),
        ]
        if kind == "time":
            rows.append(_row("step time", 1.0, self.share, note["time"]))
        for name, layer in self._cut.named_modules():
            if not isinstance(getattr(layer, "weight", None), Tensor):
                continue  # some containers repeat the width that their first layer had
            for attribute in ("out_channels", "out_features"):
                if now := getattr(layer, attribute, None):
                    before, _ = self.plan["widths"].get(joined(name, attribute), (now, now))
                    rows.append(_row(name, before, now, self.whole.get(name)))
        return rows


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
    if not isinstance(network, nn.Module):
        name = getattr(network, "__name__", type(network).__name__)
        raise InputError(f"network {name}: a torch.nn.Module, not what builds one: call it")
    chosen = choose("criterion", criterion, CRITERIA)
    choose("scope", scope, dict.fromkeys(("global", "local")))
    targets = {"macs": macs, "parameters": parameters, "time": time}
    asked = {kind: share for kind, share in targets.items() if share is not None}
    if len(asked) > 1:
        raise InputError("macs, parameters, time: give the share for one of them")
    [(kind, share)] = (asked or {"macs": 0.25}).items()
    check_share(kind, share, "the network's own")
    if not 0 < min_channels <= 1:
        raise InputError(f"min_channels {min_channels!r}: a share above 0, at most 1")
    check_integer("round_to", round_to, 1, " channel")
    if chosen.needs_batch and batch is None:
        raise InputError(f"criterion {criterion}: it needs batch=(pictures, labels)")
    limits: dict[str, Any] = {"scope": scope, "min_channels": min_channels, "round_to": round_to}

    device = next((weight.device for weight in network.parameters()), "cpu")
    with seeded(seed, device), torch.enable_grad():
        coupling = couple(copy.deepcopy(network), example)

        def score(mask: Tensor) -> Tensor:
            scratch = _silenced(copy.deepcopy(network).requires_grad_(), coupling, mask)
            try:
                scores = chosen.score(scratch, coupling, batch, example)
            except (TypeError, ValueError, IndexError, RuntimeError) as error:
                told = "batch: {} can't use it" if chosen.needs_batch else "criterion {}: it fails"
                raise InputError(f"{told.format(criterion)} ({brief(error)})") from error
            if not scores.isfinite().all():
                raise InputError(f"criterion {criterion}: its scores of this network overflow")
            return scores

        first = score(torch.ones(coupling.units, dtype=torch.bool))

        def prune(cost: str, share: float) -> Tensor:
            scores, costs = first, getattr(coupling, cost)
            for step in range(1, chosen.rounds + 1):
                ranking = Ranking(coupling, chosen, scores, **limits)
                if (least := ranking.least(costs)) > share:
                    raise InputError(_out_of_reach(kind, share, least, coupling, min_channels))
                mask = ranking.within(costs, share ** (step / chosen.rounds))
                if step < chosen.rounds:
                    scores = score(mask)
            return mask

        def build(mask: Tensor) -> nn.Module:
            return shrink(copy.deepcopy(network), *coupling.cut(mask))

        if kind == "time":
            pictures = example if batch is None else batch[0]
            if len(pictures) == 1:  # too few for batch norm
                pictures = torch.cat([pictures, pictures])
            mask, came = _within_time(prune, build, network, pictures, share)
        else:
            mask, came = prune("macs" if kind == "macs" else "numel", share), math.nan
    kept, widths = coupling.cut(mask)
    cut = build(mask).cpu()
    base = {"macs": sum(c.amount for c in coupling.macs), "parameters": count_parameters(network)}
    now = {"macs": count_macs(cut, example.cpu()), "parameters": count_parameters(cut)}
    return Proxy(
        recipe={"criterion": criterion, "target": kind, "share": share, **limits, "seed": seed},
        plan={
            "kept": {n: {str(d): spans(p) for d, p in dims.items()} for n, dims in kept.items()},
            "widths": widths,
            "draws": _free_moments(cut),
        },
        macs=now["macs"],
        base_macs=base["macs"],
        parameters=now["parameters"],
        base_parameters=base["parameters"],
        share=came if kind == "time" else now[kind] / base[kind],
        whole=coupling.whole,
        seconds=clock.perf_counter() - start,
        _cut=cut,
    )


def drawn_otherwise(network: nn.Module) -> dict[str, float]:
    """Return weights whose scale isn't that of the fresh ones that :meth:`Proxy.build` draws.

    So it is where a network with fresh weights was initialised from outside: by a parent's code, or
    with a rule of its own that isn't called ``reset_parameters``.

    Returns:
        The root of the mean square by that of a fresh draw, by the path of a weight; of weights
        with enough elements to tell.
    """
    fresh = copy.deepcopy(network).cpu()
    with seeded(0):
        _draw(fresh, _free_moments(fresh))
    found = {}
    for (path, own), other in zip(network.named_parameters(), fresh.parameters(), strict=True):
        if own.dim() > 1 and own.numel() >= SAMPLE:
            ratio = own.detach().norm().item() / max(other.detach().norm().item(), 1e-12)
            if not 1 / SCALE <= ratio <= SCALE:
                found[path] = ratio
    return found


def survey(
    network: nn.Module,
    batch: Batch,
    criteria: Sequence[str],
    shares: Sequence[float],
    *,
    repeats: int = 5,
) -> list[Row]:
    """Return :meth:`Proxy.report` for each criterion at each share of MACs, and what was measured.

    Each row also says ``criterion`` and ``asked``, the share asked for. Measured are ``step
    seconds``, the median of ``repeats`` training steps on ``batch`` (normalised pictures ``(N,
    ...)`` and labels ``(N,)``, which the criteria look at too), of N_B and all proxies in turns so
    that they can be set beside each other; and ``bytes for backward``, which a forward pass keeps.
    """
    pictures, _ = batch
    asked = [(criterion, share) for criterion in criteria for share in shares]
    proxies = [
        make_proxy(network, pictures[:1], criterion=criterion, macs=share, batch=batch)
        for criterion, share in asked
    ]
    networks = [network, *(proxy.build(0).to(pictures.device) for proxy in proxies)]
    seconds = step_seconds([(one, pictures) for one in networks], repeats=repeats)
    kept = [saved_bytes(one, pictures) for one in networks]
    rows = []
    for index, ((criterion, share), proxy) in enumerate(zip(asked, proxies, strict=True), 1):
        measured = [
            _row("step seconds", seconds[0], seconds[index]),
            _row("bytes for backward", kept[0], kept[index]),
        ]
        own = {"criterion": criterion, "asked": share}
        rows += [own | row for row in measured + proxy.report()]
    return rows


def _within_time(
    prune: Callable[[str, float], Tensor],
    build: Callable[[Tensor], nn.Module],
    network: nn.Module,
    pictures: Tensor,
    share: float,
) -> tuple[Tensor, float]:
    """Halve the range of MACs until a step takes ``share`` of N_B's time, or the nearest below."""
    low, high, guess, best = 0.0, 1.0, share, None
    for _ in range(8):
        try:
            mask = prune("macs", guess)
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


def _out_of_reach(
    kind: str, share: float, least: float, coupling: Coupling, min_channels: float
) -> str:
    whole = [f"{name} because {why}" for name, why in coupling.whole.items() if why.endswith(")")]
    more = f" and {len(whole) - 3} others" if len(whole) > 3 else ""
    stays = f"; whole stay {', '.join(whole[:3])}{more}" if whole else ""
    return (
        f"{kind} {share:.4g}: out of reach, the smallest share is {math.ceil(1e4 * least) / 1e4:g} "
        f"where each layer keeps {min_channels:.0%} of its channels{stays}"
    )


def _silenced(network: nn.Module, coupling: Coupling, mask: Tensor) -> nn.Module:
    """Set the weights of all units but those of ``mask`` to zero."""
    stays = padded(mask)
    with torch.no_grad():
        for path in coupling.weights:
            weight = network.get_parameter(path)
            for dim, units in coupling.tensors[path].items():
                gone = (~stays[units]).nonzero().flatten().to(weight.device)
                weight.index_fill_(dim, gone, 0.0)
    return network


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
    frozen = [(tensor, tensor.clone()) for tensor in _frozen(network)]
    layers = [network] if _own_rule(network) else reversed(list(network.modules()))
    for layer in layers:
        if rule := _own_rule(layer):
            rule()
    with torch.no_grad():
        for path, (mean, deviation) in moments.items():
            network.get_parameter(path).normal_(mean, deviation)
        for tensor, values in frozen:
            tensor.copy_(values)


def _frozen(network: nn.Module) -> Iterator[Tensor]:
    """Yield the frozen weights of layers, and the buffers of those that are frozen as a whole."""
    for layer in network.modules():
        own = list(layer.parameters(recurse=False))
        learn = any(weight.requires_grad for weight in own)
        yield from (weight for weight in own if not weight.requires_grad)
        yield from layer.buffers(recurse=False) if own and not learn else ()


def _row(item: str, base: float, proxy: float, note: str | None = None) -> Row:
    return {"item": item, "base": base, "proxy": proxy, "share": proxy / base, "note": note or ""}
