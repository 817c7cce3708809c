"""Data sets by name, cut into training, validation and test pictures.

A new data set is one loader in ``sources.py`` and one line in :data:`DATASETS`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from proxyhpo.config import InputError, check_integer, choose, is_integer
from proxyhpo.data import sources
from proxyhpo.data.feed import Augmentation, Feed
from proxyhpo.data.pictures import Source, Split, twins

__all__ = ["DATASETS", "Augmentation", "Dataset", "Feed", "Split", "load_dataset", "stratified"]

TEST_SEED = 20220518  # the test split never depends on the seed of an experiment
TEST_SHARE = 0.2  # of the pictures, where a source brings no test split
MOST_DUPLICATES = 4e-4  # share of held-out pictures that may be training pictures, unwarned

DATASETS: dict[str, Callable[..., Source]] = {
    "digits": sources.digits,
    "cifar10": partial(sources.cifar, name="cifar10"),
    "cifar100": partial(sources.cifar, name="cifar100"),
    "tinyimagenet": sources.tiny_imagenet,
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, cut into training, validation and test pictures.

    Attributes:
        name: the name it was loaded by.
        train, val, test: the splits; labels index ``classes``.
        classes: the classes' names.
        augmentation: what suits these pictures.
        source: where the pixels come from, without the pixels themselves.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    augmentation: Augmentation
    source: Source

    @property
    def channels(self) -> int:
        """1 for grey pictures, 3 for RGB."""
        return self.train.shape[2]

    @property
    def side(self) -> int:
        """Width and height in pixels."""
        return self.train.shape[0]

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the training pictures' pixels, for each channel, in 0..1."""
        return self.train.moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the training pictures' pixels, for each channel, in 0..1."""
        return self.train.moments[1]

    def with_train(self, train: Split) -> Dataset:
        """Return this data set with other training pictures."""
        return replace(self, train=train)

    def resized(self, side: int) -> Dataset:
        """Return this data set at ``side`` x ``side`` pixels; crops shrink or grow alike."""
        crop = math.ceil(self.augmentation.crop * side / self.side)
        cutout = round(self.augmentation.cutout * side / self.side)
        splits = {part: getattr(self, part).resize(side) for part in ("train", "val", "test")}
        augmentation = replace(self.augmentation, crop=crop, cutout=cutout)
        return replace(self, **splits, augmentation=augmentation)

    def report(self) -> dict[str, object]:
        """Return what a reader of results should know of these pictures, as plain values."""
        return {
            "name": self.name,
            "source": self.source.origin,
            **{part: len(getattr(self, part)) for part in ("train", "val", "test")},
            "classes": len(self.classes),
            "side": self.side,
            "channels": self.channels,
            "mean": [round(value, 4) for value in self.mean],
            "std": [round(value, 4) for value in self.std],
            "augmentation": str(self.augmentation),
            "unreadable": list(self.source.skipped),
            "duplicates across splits": [" = ".join(pair) for pair in self.source.duplicates],
        }


def load_dataset(
    name: str,
    *,
    data_dir: str | Path | None = None,
    subset: int | float | None = None,
    resolution: int | None = None,
    classes: int | Sequence[str] | None = None,
    val: float = 0.1,
    seed: int = 0,
    test_subset: int | float | None = None,
    unreadable: float = 0.01,
) -> Dataset:
    """Load a data set by name and cut its splits, stratified by class.

    Args:
        name: a key of :data:`DATASETS`, or ``imagefolder:PATH`` for a folder that holds
            ``train/<class>/*`` and perhaps ``val/`` and ``test/`` alike. Where they are missing,
            ``test`` is a fifth of the pictures and ``val`` is cut from the training pictures.
        data_dir: folder of the archives, the unpacked sets and the cache of decoded pixels;
            else the environment variable ``PROXYHPO_DATA``, else the platform's cache folder.
        subset: training pictures (validation included) of each class: a count, or a share in
            (0, 1]. A smaller subset lies within a larger one of the same seed.
        resolution: side in pixels to resize to; ``None`` keeps the pictures' own.
        classes: how many classes (the first ones), or their names; ``None`` is all.
        val: share of the training pictures to validate on, in [0, 1).
        seed: seed of the subset and the validation split. The test split is the same for all.
        test_subset: as ``subset``, for the test split.
        unreadable: share of files that may fail to be read as pictures before it is an error.

    Raises:
        InputError: for a bad argument, missing data that can't be downloaded, fewer than two
            classes, or a split that lacks one.
    """
    for field, amount in (("subset", subset), ("test_subset", test_subset)):
        number = is_integer(amount) or _is_share(amount)
        if amount is not None and not (number and amount > 0):
            raise InputError(f"{field} {amount!r}: pictures of each class, or a share in (0, 1]")
    if resolution is not None:
        check_integer("resolution", resolution, 1, " pixel a side, or None")
    if not _is_share(val) or val == 1:
        raise InputError(f"val {val!r}: a share of the training pictures, at least 0 and below 1")
    if not _is_share(unreadable):
        raise InputError(f"unreadable {unreadable!r}: a share of the files, 0 to 1")
    check_integer("seed", seed, 0)
    source = loader(name)(sources.data_folder(data_dir), resolution)
    _check_source(name, source, unreadable)

    chosen = choose_classes(source.classes, classes)
    names = tuple(source.classes[label] for label in chosen)
    new = torch.full((len(source.classes),), -1)  # label in the source -> label here, or -1
    new[chosen] = torch.arange(len(chosen))
    parts = {}
    for part, split in source.parts.items():
        labels = new[split.labels]
        rows = (labels >= 0).nonzero().squeeze(1)
        whole = len(rows) == len(labels)
        parts[part] = Split(split.pixels, labels[rows], None if whole else rows)

    fixed, drawn = Generator().manual_seed(TEST_SEED), Generator().manual_seed(seed)
    if "test" not in parts:
        parts["train"], parts["test"] = divide(parts["train"], TEST_SHARE, fixed, names)
    for part, amount, generator in (("test", test_subset, fixed), ("train", subset, drawn)):
        if amount is not None:
            rows = stratified(parts[part].labels, amount, generator, names=names)
            parts[part] = parts[part].take(rows)
    if "val" not in parts and val:
        parts["train"], parts["val"] = divide(parts["train"], val, drawn, names)
    for part, split in parts.items():
        if missing := set(range(len(names))) - set(split.labels.tolist()):
            raise InputError(f"{name}: class {names[min(missing)]!r} has no picture in {part}")
    for part in [part for part in parts if part not in source.parts]:  # cut here
        found = twins(parts["train"].named(), parts[part].named())
        source = replace(source, duplicates=(*source.duplicates, *found))
    if resolution is not None:
        parts = {part: split.resize(resolution) for part, split in parts.items()}
    return dataset_of(name, names, source, **parts)


def dataset_of(name: str, classes: Sequence[str], source: Source, **splits: Split) -> Dataset:
    """Return a data set with the usual augmentation; ``val`` and ``test`` may be left out."""
    augmentation = Augmentation(crop=max(1, splits["train"].shape[0] // 8), flip=source.mirrors)
    source = replace(source, parts={})  # the splits hold its pixels
    none = splits["train"].take(torch.arange(0))
    splits = {"val": none, "test": none} | splits
    return Dataset(name, **splits, classes=tuple(classes), augmentation=augmentation, source=source)


def stratified(
    labels: Tensor,
    amount: int | float,
    generator: Generator,
    *,
    spare: int = 0,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Draw the same share, or the same number, of pictures from each class.

    Args:
        labels: int64 ``(N,)``.
        amount: pictures of each class, or a share in (0, 1]: then each class gives the whole
            number nearest to its share, and at least one picture.
        generator: a smaller amount, drawn in the same state, lies within a larger one.
        spare: how many pictures of each class must be left.
        names: what to call the classes in messages.

    Returns:
        Sorted indices into ``labels``, int64 ``(K,)``.

    Raises:
        InputError: a class has too few pictures.
    """
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    present, counts = labels.unique(return_counts=True)
    picked = []
    for label, own in zip(present.tolist(), order.split(counts.tolist()), strict=True):
        most = len(own) - spare
        wanted = amount if is_integer(amount) else max(1, math.floor(amount * len(own) + 0.5))
        if most < 1 or (is_integer(amount) and wanted > most):
            raise InputError(
                f"class {names[label] if names else label!r} has {len(own)} pictures: "
                f"too few to take {wanted}{f' and leave {spare}' if spare else ''}"
            )
        picked.append(own[: min(wanted, most)])
    return torch.cat(picked).sort().values


def divide(
    split: Split, share: float, generator: Generator, names: Sequence[str]
) -> tuple[Split, Split]:
    """Return ``split`` without a stratified share of its pictures, and that share.

    Raises:
        InputError: a class has fewer than two pictures.
    """
    taken = stratified(split.labels, share, generator, spare=1, names=names)
    left = torch.ones(len(split), dtype=torch.bool)
    left[taken] = False
    return split.take(left.nonzero().squeeze(1)), split.take(taken)


def loader(name: str) -> Callable[..., Source]:
    """Return the loader of data set ``name``, a key of :data:`DATASETS` or ``imagefolder:PATH``.

    Raises:
        InputError: an unknown name.
    """
    form, _, path = str(name).partition(":")
    if form == "imagefolder" and path:
        return partial(sources.image_folder, path=path)
    return choose("dataset", name, {**DATASETS, "imagefolder:PATH": sources.image_folder})


def choose_classes(known: Sequence[str], classes: int | Sequence[str] | None) -> list[int]:
    """Return the labels of the chosen classes: all, the first few, or those named.

    Raises:
        InputError: fewer than two classes, too many, or an unknown one.
    """
    if len(known) < 2:
        raise InputError(f"one class only, {', '.join(known)}: a classifier needs at least 2")
    if classes is None:
        return list(range(len(known)))
    if isinstance(classes, int):
        if not is_integer(classes) or not 2 <= classes <= len(known):
            raise InputError(f"classes {classes}: from 2 to the {len(known)} of this data set")
        return list(range(classes))
    if isinstance(classes, str) or len(set(classes)) < 2 or len(set(classes)) < len(classes):
        raise InputError(f"classes {classes!r}: a number, or at least 2 different names")
    labels = {label: place for place, label in enumerate(known)}
    return [choose("class", label, labels) for label in classes]


def _check_source(name: str, source: Source, unreadable: float) -> None:
    """Raise or warn about pictures that can't be read or lie on both sides of a split."""
    sizes, count = {part: len(split) for part, split in source.parts.items()}, len(source.skipped)
    files = sum(sizes.values()) + count
    some = f"{count} of {files} files can't be read: {'; '.join(source.skipped[:3])}"
    if count > unreadable * files:
        raise InputError(
            f"{name}: {some}; allowed is a share of {unreadable}, by load_dataset(..., unreadable=)"
        )
    if count:
        warnings.warn(f"{name}: {some}", stacklevel=3)
    held = sum(sizes.values()) - sizes["train"]
    if len(source.duplicates) > MOST_DUPLICATES * held:
        some = ", ".join(" = ".join(pair) for pair in source.duplicates[:3])
        warnings.warn(
            f"{name}: {len(source.duplicates)} of {held} held-out pictures are training pictures "
            f"too: {some}",
            stacklevel=3,
        )


def _is_share(value: Any) -> bool:
    return (is_integer(value) or isinstance(value, float)) and 0 <= value <= 1
