"""Speed of the input path: ``python benchmarks/data.py [--load NAME --data-dir DIR]``.

Pictures a second of a Feed against torchvision v2 transforms behind a DataLoader with 0 and with 2
workers (pictures decoded and in memory for both, the same augmentation), interleaved, medians; and
the share of a ResNet-20 training step that is spent on data. ``--load`` measures instead how long
a data set takes to load (decoded at first where it is new, from the cache afterwards), to normalise
and to be shown once, and its memory after that: its own, and with the pages of mapped files, which
all processes share and the system takes back when it needs them. On a busy machine the seconds of a
processor tell more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from proxyhpo.data.datasets import Augmentation, Feed, Split
from proxyhpo.models import build_network, place

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)

LOAD = """
import json, sys, time, torch, torchvision
from pathlib import Path
from proxyhpo.data.datasets import Feed, load_dataset

def megabytes():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(lines[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile"))
    return own, mapped

def timed(function):
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    used = time.perf_counter() - wall, time.process_time() - processor
    return result, " s, of a processor ".join(f"{seconds:.3f}" for seconds in used) + " s"

before = megabytes()
data, loaded = timed(lambda: load_dataset(sys.argv[1], data_dir=sys.argv[2] or None))
(mean, std), normalised = timed(lambda: (data.mean, data.std))
feed = Feed(data.train, mean=mean, std=std, batch_size=128, augmentation=data.augmentation)
_, shown = timed(lambda: [None for _ in feed.epoch(torch.Generator())])
memory = [round(after - was) for after, was in zip(megabytes(), before)]
print(json.dumps({"pictures": len(data.train) + len(data.val), "load": loaded,
                  "mean and deviation": normalised, "an epoch": shown,
                  "MB of its own, of mapped files": memory}))
"""


class Plain(torch.utils.data.Dataset):
    """The usual loop's data set: a picture at a time, changed by torchvision's transforms."""

    def __init__(self, split: Split, augmentation: Augmentation) -> None:
        self.images = split.images.permute(0, 3, 1, 2).contiguous()
        self.labels = split.labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(split.images.shape[1], padding=augmentation.crop),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def seconds_of(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, int]:
    """Return the seconds that the batches take, and how many pictures they hold."""
    began, count = time.perf_counter(), 0
    for images, _ in batches:
        count += len(images)
    return time.perf_counter() - began, count


def compare(side: int, batch_size: int, rounds: int, pictures: int) -> dict[str, float]:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (pictures, side, side, 3), dtype=torch.uint8, generator=draws)
    split = Split(images, torch.randint(10, (pictures,), generator=draws))
    augmentation = Augmentation(crop=side // 8)
    feed = Feed(split, mean=MEAN, std=STD, batch_size=batch_size, augmentation=augmentation)
    plain = Plain(split, augmentation)
    options = {"batch_size": batch_size, "shuffle": True, "drop_last": True}
    ways = {
        "feed": lambda: feed.epoch(draws),
        "DataLoader, 0 workers": DataLoader(plain, **options).__iter__,
        "DataLoader, 2 workers": DataLoader(
            plain, num_workers=2, persistent_workers=True, **options
        ).__iter__,
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(rounds + 1):  # the first round warms up and starts the workers
        for name, way in ways.items():
            seconds, count = seconds_of(way())
            if repeat:
                speeds[name].append(count / seconds)
    result = {f"{name}, pictures/s": round(statistics.median(s)) for name, s in speeds.items()}
    for name in list(ways)[1:]:
        ratios = [ours / other for ours, other in zip(speeds["feed"], speeds[name], strict=True)]
        result[f"feed against {name}"] = round(statistics.median(ratios), 1)
    result["share of a ResNet-20 step"] = round(share_of_step(feed, rounds), 4)
    return result


def share_of_step(feed: Feed, rounds: int) -> float:
    """Return the share of a training step (batch made, forward, backward, update) spent on data."""
    network = place(build_network("resnet20", classes=10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    data, all_ = [], []
    batches = feed.epoch(torch.Generator().manual_seed(0))
    for _ in range(rounds + 2):
        began = time.perf_counter()
        images, labels = next(batches)
        ready = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        data.append(ready - began)
        all_.append(time.perf_counter() - began)
    return statistics.median(data[2:]) / statistics.median(all_[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=5120)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--load", metavar="NAME", help="a data set, as load_dataset takes it")
    parser.add_argument("--data-dir", default="")
    chosen = parser.parse_args()
    if chosen.load:
        for attempt in ("first", *["again"] * chosen.rounds):
            command = [sys.executable, "-c", LOAD, chosen.load, chosen.data_dir]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(f"{chosen.load}, loaded {attempt}: {done.stdout.strip()}")
    else:
        torch.set_num_threads(chosen.threads)
        result = compare(chosen.side, chosen.batch_size, chosen.rounds, chosen.pictures)
        print(json.dumps({"threads": chosen.threads, **result}, indent=2))
    print("load average", " ".join(f"{load:.2f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
