"""Time of making proxies, and of their training steps beside N_B's: interleaved medians.

    python benchmarks/proxies.py [--networks resnet56 vgg16_bn] [--shares 0.5 0.25] [--batch 128]

Prints one line for each network and criterion, then one for each network and share. The
machine's load is printed as well: on a busy machine only the ratios mean anything.

    python benchmarks/proxies.py --stand-ins [NAME ...] [--dataset cifar10 --data-dir DIR]

prints instead what each stand-in costs by N_B's: the share asked for (``--shares``), its share of
multiply-accumulates x samples, and its measured share of time; all entries of STAND_INS and two
combinations unless some are named.
"""

from __future__ import annotations

import argparse
import os
from functools import partial

import torch

from proxyhpo.data.datasets import load_dataset
from proxyhpo.hpo.stand_ins import STAND_INS, StandIn, cost_rows, make_stand_in
from proxyhpo.models import build_network, place
from proxyhpo.pruning.criteria import CRITERIA
from proxyhpo.pruning.measure import saved_bytes, step_seconds
from proxyhpo.pruning.proxy import make_proxy


def set_side_by_side(options: argparse.Namespace) -> None:
    """Print the shares of stand-ins, measured together for each network and share."""
    dataset = load_dataset(options.dataset, data_dir=options.data_dir)
    dataset = dataset.resized(max(dataset.side, 16))  # those of 8 can't be made smaller
    sizes = {"classes": len(dataset.classes), "channels": dataset.channels}
    for network in options.networks:
        build = partial(build_network, network, **sizes)
        for share in options.shares:
            names = options.stand_ins or [*STAND_INS, "snip+epochs", "resolution+subset"]

            def made(name: str, build=build, share=share) -> StandIn:
                return make_stand_in(name, lambda s: build(seed=s), dataset, options.epochs, share)

            rows = cost_rows(
                [made(name) for name in names],
                made("base"),
                batch_size=options.batch,
                repeats=options.repeats,
            )
            load = os.getloadavg()[0]
            print(
                f"{options.dataset} {network}, {torch.get_num_threads()} threads, load {load:.1f}"
            )
            print(f"{'stand-in':20} {'asked':>6} {'MACs x samples':>15} {'time':>6}")
            for row in rows:
                print(
                    f"{row['stand_in']:20} {row['asked']:6} {row['macs x samples']:15.3f} "
                    f"{row['time']:6.3f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=["resnet56", "vgg16_bn", "mobilenetv2"])
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA))
    parser.add_argument("--stepped", nargs="*", default=["snip"], help="criteria to time steps of")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stand-ins", nargs="*", metavar="NAME", help="set these side by side")
    parser.add_argument("--dataset", default="digits", help="what stand-ins are made for")
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=20, help="of N_B")
    options = parser.parse_args()
    if options.stand_ins is not None:
        set_side_by_side(options)
        return

    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(options.batch, 3, options.side, options.side, generator=generator)
    labels = torch.randint(10, (options.batch,), generator=generator)
    pictures = pictures.to(memory_format=torch.channels_last)
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"threads {threads}, load {load:.1f}, torch {torch.__version__}")

    def proxy_of(network: torch.nn.Module, criterion: str, share: float):
        return make_proxy(
            network, pictures[:1], criterion=criterion, macs=share, batch=(pictures, labels)
        )

    for name in options.networks:
        network = place(build_network(name, classes=10))
        for criterion in options.criteria:
            proxy = proxy_of(network, criterion, 0.25)
            print(
                f"make {name:12} {criterion:18} {proxy.seconds:6.2f} s  "
                f"MACs {proxy.share:.4f} of 0.25  JSON {len(proxy.to_json()) / 1024:.0f} KiB",
                flush=True,
            )
        for criterion in options.stepped:
            proxies = [proxy_of(network, criterion, share).build(0) for share in options.shares]
            networks = [network, *(place(p) for p in proxies)]
            base, *others = step_seconds(
                [(one, pictures) for one in networks], repeats=options.repeats
            )
            kept = [saved_bytes(one, pictures) for one in networks]
            for share, seconds, held in zip(options.shares, others, kept[1:], strict=True):
                print(
                    f"step {name:12} {criterion:18} MACs {share:<5} time {seconds / base:.2f} of "
                    f"{base:.2f} s  bytes for backward {held / kept[0]:.2f} of "
                    f"{kept[0] / 2**20:.0f} MiB  load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
