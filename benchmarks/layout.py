"""Seconds of a training step as the networks are built, and as ``models.place`` places them.

    PYTHONPATH=. python benchmarks/layout.py --networks mobilenetv2 --side 16 --batch 64

Both take turns in one process on one thread; medians of CPU milliseconds, and their ratio.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import Tensor, nn

from proxyhpo.models import MODELS, build_network, place


def step(network: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """Return the CPU milliseconds of one forward and backward pass."""
    begun = time.process_time()
    nn.functional.cross_entropy(network(pictures), labels).backward()
    return 1000 * (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=MODELS, default=["mobilenetv2_x0.35"])
    parser.add_argument("--side", type=int, default=8, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="pictures")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("network, side, batch: as built, channels last, placed (CPU ms); as built / placed")
    for name in options.networks:
        shape = (options.batch, 3, options.side, options.side)
        pictures, labels = torch.randn(shape), torch.randint(0, 10, (options.batch,))
        laid = pictures.to(memory_format=torch.channels_last)
        as_built, last, placed = (build_network(name, classes=10) for _ in range(3))
        ways = {
            "as built": (as_built, pictures),
            "channels last": (last.to(memory_format=torch.channels_last), laid),
            "placed": (place(placed), laid),
        }
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, (network, given) in ways.items():
                spent[way].append(step(network, given, labels))
        told = {way: median(times[1:]) for way, times in spent.items()}
        shown = ", ".join(f"{told[way]:.1f}" for way in ways)
        ratio = told["as built"] / told["placed"]
        print(f"{name}, {options.side}, {options.batch}: {shown}; {ratio:.2f}")


if __name__ == "__main__":
    main()
