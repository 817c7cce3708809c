"""Which pictures a table was recorded on: a manifest names each by the hash of its pixels.

Whoever has the official files finds the same pictures in them, whatever their order. A manifest
lists pictures to train, to validate and to test on, class by class, in an order drawn at random, so
that its first pictures are a sample of all.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proxyhpo.config import InputError
from proxyhpo.data import sources
from proxyhpo.data.datasets import Dataset, dataset_of, loader
from proxyhpo.data.feed import Split
from proxyhpo.data.pictures import Pictures
from proxyhpo.rows import write_whole

DIGITS = 12
"""Hexadecimal digits of a picture's hash: among 100,000 pictures two share one by 2e-5."""


def picture_hash(pixels: np.ndarray) -> str:
    """Return the hash of one picture: SHA-256 of its bytes, uint8 ``(H, W, C)``, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:DIGITS]


def make_manifest(
    name: str,
    path: Path,
    *,
    classes: int,
    train: int,
    val: int,
    test: int | None = None,
    data_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Draw pictures of data set ``name`` and write their manifest to ``path``; return it.

    Args:
        name: a key of :data:`proxyhpo.data.datasets.DATASETS`.
        path: of the manifest, JSON.
        classes: the first so many.
        train: pictures of each class to train on.
        val: the same to validate on.
        test: the same to test on; ``None`` is all of the test split.
        data_dir: folder of the data sets.

    Raises:
        InputError: a class has too few pictures, or the data isn't there.
    """
    source = loader(name)(sources.data_folder(data_dir), None)
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, dict[str, str]] = {"train": {}, "val": {}, "test": {}}
    for label, own in enumerate(source.classes[:classes]):
        drawn = _drawn(source.parts["train"], label, generator)
        if "test" in source.parts:
            tested = _drawn(source.parts["test"], label, generator)[:test]
        else:
            tested, drawn = drawn[: test or 0], drawn[test or 0 :]
        if len(drawn) < train + val or len(tested) < (test or 1):
            raise InputError(
                f"{name}: class {own!r} has {len(drawn)} pictures that differ to train and "
                f"validate on and {len(tested)} to test on: too few for {train} + {val} + {test}"
            )
        parts["val"][own] = " ".join(drawn[:val])
        parts["train"][own] = " ".join(drawn[val : val + train])
        parts["test"][own] = " ".join(tested)
    manifest = {
        "dataset": name,
        "hash": f"first {DIGITS} hexadecimal digits of SHA-256 of the pixels: uint8, row by row, "
        "channels last, at the data set's own resolution",
        "source": source.origin,
        "classes": list(source.classes[:classes]),
        **parts,
    }
    write_whole(path, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def load_pictures(
    manifest: dict[str, Any], *, samples: int, side: int, data_dir: str | Path | None = None
) -> Dataset:
    """Return the data set of a manifest, at ``side`` pixels.

    Args:
        manifest: as :func:`make_manifest` writes it.
        samples: training pictures, the same number of each class: the manifest's first.
        side: pixels to reduce the pictures to.
        data_dir: folder of the data sets.

    Raises:
        InputError: the data isn't there, isn't the manifest's, or has too few pictures.
    """
    name, classes = manifest["dataset"], manifest["classes"]
    source = loader(name)(sources.data_folder(data_dir), None)
    if missing := set(classes) - set(source.classes):
        raise InputError(f"{name}: the manifest's class {min(missing)!r} isn't in the data")
    each, rest = divmod(samples, len(classes))
    fewest = min(len(text.split()) for text in manifest["train"].values())
    if rest or not 0 < each <= fewest:
        raise InputError(
            f"samples {samples}: a multiple of the {len(classes)} classes, at most "
            f"{fewest * len(classes)}"
        )

    def split(part: str, most: int | None = None) -> Split:
        pictures = source.parts[part if part in source.parts and part != "val" else "train"]
        rows: list[int] = []
        labels: list[int] = []
        for label, own in enumerate(classes):
            here = _by_hash(pictures, source.classes.index(own))
            wanted = manifest[part][own].split()[:most]
            if lacking := [digest for digest in wanted if digest not in here]:
                raise InputError(
                    f"{name}: {len(lacking)} of {len(wanted)} {part} pictures of class {own!r} "
                    f"aren't in this copy of the data ({source.origin}), the first {lacking[0]}"
                )
            rows += [here[digest] for digest in wanted]
            labels += [label] * len(wanted)
        pixels = torch.from_numpy(pictures.open()[rows])
        return Split(pixels, torch.tensor(labels)).resize(side)

    return dataset_of(
        name,
        train=split("train", each),
        val=split("val"),
        test=split("test"),
        classes=tuple(classes),
        source=source,
    )


def _drawn(pictures: Pictures, label: int, generator: torch.Generator) -> list[str]:
    """Return the hashes of one class in random order."""
    hashes = list(_by_hash(pictures, label))
    return [hashes[place] for place in torch.randperm(len(hashes), generator=generator).tolist()]


def _by_hash(pictures: Pictures, label: int) -> dict[str, int]:
    """Return the pictures of one class: hash -> row; of identical ones the first."""
    found: dict[str, int] = {}
    pixels = pictures.open()
    for row in np.flatnonzero(pictures.labels == label):
        found.setdefault(picture_hash(pixels[row]), int(row))
    return found
