"""What the self-check of transfer says beside where the best learning rate really lies.

    PYTHONPATH=. python benchmarks/transfer.py

Small networks on digits: :func:`proxyhpo.transfer_check`, then real trainings of the network and
its uniformly narrower stand-in at 11 learning rates and eight weight seeds each. 5 minutes of one
core. With the pictures of CIFAR-10 in ``--data-dir``, the recorded table's ResNet-20 too, checked
against the table's own shift.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from proxyhpo import transfer_check
from proxyhpo.analysis.bootstrap import interval
from proxyhpo.analysis.ranking import best_rate, shift
from proxyhpo.data.datasets import Dataset, load_dataset
from proxyhpo.data.feed import Feed
from proxyhpo.data.given import as_dataset
from proxyhpo.experiment.curves import table_bench
from proxyhpo.hpo.curves import curves_folder, load_table
from proxyhpo.hpo.stand_ins import Builder, make_stand_in
from proxyhpo.models import build_network
from proxyhpo.training import this_device, train

STEP = 0.75  # octaves, as in the recorded tables
SEEDS, EPOCHS, STAND_IN = 8, 3, "uniform@0.25"


class Scaled(nn.Conv2d):
    """Weights of size one, scaled in the forward pass (Jacot et al. 2018): theory's zero shift."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def forward(self, pictures: Tensor) -> Tensor:
        scale = (2 / self.weight[0].numel()) ** 0.5
        return self._conv_forward(pictures, scale * self.weight, None)


def plain(conv: type[nn.Conv2d]) -> nn.Module:
    """Three convolutions without normalisation."""
    half = {"stride": 2, "padding": 1, "bias": False}
    body = [conv(1, 64, 3, **half), nn.ReLU(), conv(64, 64, 3, **half), nn.ReLU()]
    return nn.Sequential(*body, conv(64, 10, 2, bias=False), nn.Flatten())


def named(name: str, channels: int = 1) -> Callable[[], nn.Module]:
    """Return what builds a network of ours with weights by torch's own seed."""
    return lambda: build_network(
        name, classes=10, channels=channels, seed=int(torch.randint(2**31, ()))
    )


# options of the check; the first of the learning rates trained with
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[float, ...]], float]] = {
    "resnet8": (named("resnet8"), {}, 0.008),
    "plain": (lambda: plain(nn.Conv2d), {}, 0.008),
    "plain, scaled": (lambda: plain(Scaled), {"rates": (0.03, 0.1, 0.3)}, 0.06),
}


def seeded(network: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network with the weights of this seed."""
    torch.manual_seed(seed)
    return network()


def measured(
    build: Builder, other: Builder, data: Dataset, first: float
) -> tuple[float, np.ndarray]:
    """Return by how many octaves the best rate of ``other`` lies above, and its interval."""
    rates = first * 2 ** (STEP * np.arange(11))
    options = {"mean": data.mean, "std": data.std}
    training = Feed(data.train, batch_size=64, augmentation=data.augmentation, **options)
    held = Feed(data.val, batch_size=500, drop_last=False, **options)
    accuracy = np.array(
        [
            [
                [
                    train(
                        make(seed), training, held, {"lr": lr}, epochs=EPOCHS, seed=seed,
                        device=this_device(), every_epoch=False,
                    ).accuracy
                    for lr in rates
                ]
                for seed in range(SEEDS)
            ]
            for make in (build, other)
        ]
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def apart(drawn: np.ndarray) -> float:
        means = np.array([one[own].mean(0) for one, own in zip(accuracy, drawn, strict=True)])
        base, narrow = best_rate(means, np.log2(rates))
        return float(narrow - base)

    draws = np.array([apart(rng.integers(SEEDS, size=(2, SEEDS))) for _ in range(500)])
    return apart(np.tile(np.arange(SEEDS), (2, 1))), interval(draws)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="folder of the recorded tables")
    parser.add_argument("--data-dir", help="folder of the data sets, for CIFAR-10")
    options = parser.parse_args()
    data = as_dataset(load_dataset("digits", val=0.25))
    for name, (network, own, first) in NETWORKS.items():
        checked = transfer_check(network, data, stand_in=STAND_IN, seeds=SEEDS, **own)
        build = partial(seeded, network)
        made = make_stand_in(STAND_IN, build, data, EPOCHS, 0.25)
        report(name, checked, *measured(build, made.build, data, first))
    if options.data_dir:
        table = load_table("cifar10", "resnet20", options.folder)
        manifest = curves_folder(options.folder) / "cifar10.pictures.json"
        bench = table_bench(table.regime, manifest.read_text(), options.data_dir)
        known = shift(table, [STAND_IN, "snip@0.25"]).set_index("view")
        for stand_in in (STAND_IN, "snip@0.25"):
            checked = transfer_check(named("resnet20", 3), bench.dataset, stand_in=stand_in)
            own = known.loc[stand_in]
            report(f"resnet20, {stand_in}", checked, own["shift"], own[["low", "high"]])


def report(name: str, checked: object, estimate: float, ends: np.ndarray) -> None:
    """Print a line: what was predicted, and what is so."""
    low, high = ends
    print(
        f"{name}: predicted {checked.shift:+.2f} [{checked.low:+.2f}, {checked.high:+.2f}] octaves "
        f"({checked.verdict}, {checked.seconds:.0f} s), measured {estimate:+.2f} "
        f"[{low:+.2f}, {high:+.2f}]",
        flush=True,
    )


if __name__ == "__main__":
    main()
