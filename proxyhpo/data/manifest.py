"""Which pictures a table was recorded on: a manifest names each by the hash of its pixels.

Whoever has the data set finds the same pictures in it, whatever the names and the order of its
files. A manifest lists pictures to train, to validate and to test on, class by class in random
order, so that the first of them are a sample of all. ``docs/data.md`` shows its use without this
package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from proxyhpo.config import InputError, check_integer
from proxyhpo.data.datasets import Dataset, choose_classes, dataset_of, loader
from proxyhpo.data.pictures import Source, Split, picture_hash
from proxyhpo.data.sources import data_folder

DIGITS = 12
"""Hexadecimal digits of a picture's hash: among 100,000 pictures two share one by 2e-5."""


def make_manifest(
    name: str,
    *,
    classes: int,
    train: int,
    val: int,
    test: int | None = None,
    data_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Draw pictures of a data set, and return their manifest.

    Args:
        name: a key of :data:`proxyhpo.data.datasets.DATASETS`.
        classes: the first so many.
        train: pictures of each class to train on.
        val: the same to validate on.
        test: the same to test on; ``None`` is all of the test split. Where the data set has none,
            they are drawn from its training pictures.
        data_dir: folder of the data sets.

    Returns:
        "dataset", "hash" (how pictures are named), "source", "classes", and for each of "train",
        "val" and "test" the pictures of each class, space between them.

    Raises:
        InputError: a class has too few pictures, or the data isn't there.
    """
    for field, amount in {"train": train, "val": val, "test": 1 if test is None else test}.items():
        check_integer(field, amount, 1, " picture of each class")
    source = loader(name)(data_folder(data_dir), None)
    generator = torch.Generator().manual_seed(0)
    chosen = choose_classes(source.classes, classes)
    parts: dict[str, dict[str, str]] = {"train": {}, "val": {}, "test": {}}

    def shuffled(part: str, label: int) -> list[str]:
        found = list(_places(source.parts[part], label))
        return [found[place] for place in torch.randperm(len(found), generator=generator).tolist()]

    for label in chosen:
        own = source.classes[label]
        drawn = shuffled("train", label)
        if "test" in source.parts:
            tested = shuffled("test", label)[:test]
        else:
            tested, drawn = drawn[: test or 0], drawn[test or 0 :]
        if len(drawn) < train + val or len(tested) < (test or 1):
            raise InputError(
                f"{name}: class {own!r} has {len(drawn)} pictures that differ to train and "
                f"validate on and {len(tested)} to test on: too few for {train} + {val} and {test}"
            )
        parts["val"][own] = " ".join(drawn[:val])
        parts["train"][own] = " ".join(drawn[val : val + train])
        parts["test"][own] = " ".join(tested)
    return {
        "dataset": name,
        "hash": f"first {DIGITS} hexadecimal digits of SHA-256 of the pixels: uint8, row by row, "
        "channels last, at the data set's own resolution",
        "source": source.origin,
        "classes": [source.classes[label] for label in chosen],
        **parts,
    }


def load_pictures(
    manifest: dict[str, Any], *, samples: int, side: int, data_dir: str | Path | None = None
) -> Dataset:
    """Return the data set of a manifest, at ``side`` pixels.

    Of each class the manifest's first training pictures are taken, ``samples`` in all.

    Raises:
        InputError: the data isn't there, isn't the manifest's, or has too few pictures.
    """
    name, classes = manifest["dataset"], manifest["classes"]
    source = loader(name)(data_folder(data_dir), None)
    choose_classes(source.classes, classes)
    each, rest = divmod(samples, len(classes))
    most = min(len(text.split()) for text in manifest["train"].values())
    if rest or not 0 < each <= most:
        raise InputError(
            f"samples {samples}: a multiple of the {len(classes)} classes, at most "
            f"{most * len(classes)}"
        )
    splits = {
        part: _find(manifest, part, source, most).resize(side)
        for part, most in (("train", each), ("val", None), ("test", None))
    }
    return dataset_of(name, classes, source, **splits)


def _find(manifest: dict[str, Any], part: str, source: Source, most: int | None) -> Split:
    """Return the pictures of one part of a manifest, the first ``most`` of each class."""
    split = source.parts["test" if part == "test" and "test" in source.parts else "train"]
    rows: list[int] = []
    labels: list[int] = []
    for label, own in enumerate(manifest["classes"]):
        places = _places(split, source.classes.index(own))
        wanted = manifest[part][own].split()[:most]
        if lacking := [digest for digest in wanted if digest not in places]:
            raise InputError(
                f"{manifest['dataset']}: {len(lacking)} of {len(wanted)} {part} pictures of class "
                f"{own!r} aren't in this copy of the data ({source.origin}), the first {lacking[0]}"
            )
        rows += [places[digest] for digest in wanted]
        labels += [label] * len(wanted)
    return Split(split.pixels, torch.tensor(labels), torch.tensor(rows))


def _places(split: Split, label: int) -> dict[str, int]:
    """Return the pictures of one class: hash -> place; of identical ones the first."""
    found: dict[str, int] = {}
    for place in (split.labels == label).nonzero().squeeze(1).tolist():
        found.setdefault(picture_hash(split.pixels[place].numpy())[:DIGITS], place)
    return found
