"""Pictures in memory: data sets, their splits, and batches that never wait.

:func:`load_dataset` returns a :class:`Dataset` of three :class:`Split` objects; a :class:`Feed`
makes shuffled, augmented, normalised batches of a split on the device. Everything is drawn from
explicit generators on the CPU: the same seed gives the same pictures on any number of threads.

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

import numpy as np
import torch
from torch import Generator, Tensor

from proxyhpo.config import InputError, choose
from proxyhpo.data import sources
from proxyhpo.data.feed import Augmentation, Feed, Split, moments, moments_of
from proxyhpo.data.pictures import Source, Stored

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "Feed",
    "Split",
    "load_dataset",
    "moments",
    "stratified",
]

TEST_SEED = 20220518  # the test split never depends on the seed of an experiment
TEST_SHARE = 0.2  # of the pictures, where a source brings no test split
MOST_DUPLICATES = 4e-4  # share of held-out pictures that may be training pictures, unwarned

DATASETS: dict[str, Callable[[Path, int | None], Source]] = {
    "digits": sources.digits,
    "cifar10": partial(sources.cifar, name="cifar10"),
    "cifar100": partial(sources.cifar, name="cifar100"),
    "tinyimagenet": sources.tiny_imagenet,
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, cut into training, validation and test pictures, all in memory.

    Attributes:
        name: the name it was loaded by.
        train, val, test: the splits; labels index ``classes``.
        classes: the classes' names.
        mean, std: of the training split's pixels, for each channel, in 0..1.
        augmentation: what suits these pictures.
        source: where the pixels come from, what could not be read, which pictures are doubled;
            without the pixels.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
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

    def with_train(self, train: Split) -> Dataset:
        """Return this data set with other training pictures, ``mean`` and ``std`` being theirs."""
        mean, std = moments(train.images)
        return replace(self, train=train, mean=mean, std=std)

    def resized(self, side: int) -> Dataset:
        """Return this data set at ``side`` x ``side`` pixels; crops shrink or grow alike."""
        crop = math.ceil(self.augmentation.crop * side / self.side)
        cutout = round(self.augmentation.cutout * side / self.side)
        return replace(
            self,
            val=self.val.resize(side),
            test=self.test.resize(side),
            augmentation=replace(self.augmentation, crop=crop, cutout=cutout),
        ).with_train(self.train.resize(side))

    def report(self) -> dict[str, object]:
        """Return what a reader of results should know of these pictures, as plain values."""
        return {
            "name": self.name,
            "source": self.source.origin,
            "train": len(self.train),
            "val": len(self.val),
            "test": len(self.test),
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
        classes: the first so many classes, or these; ``None`` is all.
        val: share of the training pictures to validate on, in [0, 1).
        seed: seed of the subset and the validation split. The test split is the same for all.
        test_subset: as ``subset``, for the test split.
        unreadable: share of files that may fail to be read as pictures before it is an error.

    Raises:
        InputError: for an unknown name or class, a value out of range, data that are neither
            there nor to be had, fewer than two classes, or a split that lacks a class.
    """
    _check_amount("subset", subset)
    _check_amount("test_subset", test_subset)
    if resolution is not None and (not _is_integer(resolution) or resolution < 1):
        raise InputError(f"resolution {resolution!r}: a side in pixels, a whole number above 0")
    if not _is_number(val) or not 0 <= val < 1:
        raise InputError(f"val {val!r}: a share of the training pictures, at least 0 and below 1")
    if not _is_number(unreadable) or not 0 <= unreadable <= 1:
        raise InputError(f"unreadable {unreadable!r}: a share of the files, 0 to 1")
    if not _is_integer(seed) or seed < 0:
        raise InputError(f"seed {seed!r}: a whole number, at least 0")
    source = loader(name)(sources.data_folder(data_dir), resolution)
    _check_source(name, source, unreadable)

    chosen = _choose_classes(source.classes, classes)
    names = tuple(source.classes[label] for label in chosen)
    new = torch.full((len(source.classes),), -1)  # label in the source -> label here, or -1
    new[chosen] = torch.arange(len(chosen))
    labels, rows = new[source.labels], source.rows
    rows = {part: own[labels[own] >= 0] for part, own in rows.items()}
    fixed, drawn = Generator().manual_seed(TEST_SEED), Generator().manual_seed(seed)

    def draw(part: str, amount: int | float, generator: Generator, spare: int = 0) -> Tensor:
        own = rows[part]
        return own[stratified(labels[own], amount, generator, spare=spare, names=names)]

    if "test" not in rows:
        rows["test"] = draw("train", TEST_SHARE, fixed, spare=1)
        rows["train"] = _without(rows["train"], rows["test"])
    if test_subset is not None:
        rows["test"] = draw("test", test_subset, fixed)
    if subset is not None:
        rows["train"] = draw("train", subset, drawn)
    if "val" not in rows:
        rows["val"] = draw("train", val, drawn, spare=1) if val else rows["train"][:0]
        rows["train"] = _without(rows["train"], rows["val"])
    for part, own in rows.items():
        missing = set(range(len(names))) - set(labels[own].tolist())
        if missing and (len(own) or part in source.parts):
            raise InputError(f"{name}: class {names[min(missing)]!r} has no picture in {part}")

    blocks = {part: _block(pictures.pixels) for part, pictures in source.parts.items()}

    def split(part: str) -> Split:
        home, own = source.local(rows[part])
        whole = torch.equal(own, torch.arange(len(blocks[home])))
        return Split(blocks[home], labels[rows[part]], None if whole else own)

    splits = {part: split(part) for part in ("train", "val", "test")}
    known = None
    if resolution is None or splits["train"].shape[:2] == (resolution, resolution):
        home, own = source.local(rows["train"])
        sums = source.parts[home].sums[own.numpy()].sum(0)
        known = moments_of(sums, len(own) * math.prod(splits["train"].shape[:2]))
    else:
        splits = {part: split.resize(resolution) for part, split in splits.items()}
    return dataset_of(name, **splits, classes=names, source=source, known=known)


def dataset_of(
    name: str,
    *,
    train: Split,
    val: Split,
    test: Split,
    classes: tuple[str, ...],
    source: Source,
    known: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Dataset:
    """Return a data set of these splits; mean and deviation are ``known``, or the training's."""
    mean, std = known or moments(train.images)
    crop = max(1, train.shape[0] // 8)
    return Dataset(
        name=name,
        train=train,
        val=val,
        test=test,
        classes=classes,
        mean=mean,
        std=std,
        augmentation=Augmentation(crop=crop, flip=source.mirrors),
        source=replace(source, parts={}),  # the splits hold its pixels
    )


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
        wanted = amount if _is_integer(amount) else max(1, math.floor(amount * len(own) + 0.5))
        if most < 1 or (_is_integer(amount) and wanted > most):
            raise InputError(
                f"class {names[label] if names else label!r} has {len(own)} pictures: "
                f"too few to take {wanted}{f' and leave {spare}' if spare else ''}"
            )
        picked.append(own[: min(wanted, most)])
    return torch.cat(picked).sort().values


def loader(name: str) -> Callable[[Path, int | None], Source]:
    """Return the loader of data set ``name``, a key of :data:`DATASETS` or ``imagefolder:PATH``.

    Raises:
        InputError: an unknown name.
    """
    form, _, path = str(name).partition(":")
    if form == "imagefolder" and path:
        return partial(sources.image_folder, path=path)
    loaders: dict[str, Callable[..., Source]] = {
        **DATASETS,
        "imagefolder:PATH": sources.image_folder,
    }
    return choose("dataset", name, loaders)


def _check_source(name: str, source: Source, unreadable: float) -> None:
    """Raise or warn about pictures that can't be read or lie on both sides of a split."""
    count = len(source.skipped)
    some = f"{count} of {source.files} files can't be read: {'; '.join(source.skipped[:3])}"
    if count > unreadable * source.files:
        raise InputError(f"{name}: {some}; allowed is a share of {unreadable} (unreadable=)")
    if count:
        warnings.warn(f"{name}: {some}", stacklevel=3)
    held = sum(len(part.labels) for part in source.parts.values())
    held -= len(source.parts["train"].labels)
    if len(source.duplicates) > MOST_DUPLICATES * held:
        some = ", ".join(" = ".join(pair) for pair in source.duplicates[:3])
        warnings.warn(
            f"{name}: {len(source.duplicates)} of {held} held-out pictures are training pictures "
            f"too: {some}",
            stacklevel=3,
        )


def _choose_classes(known: Sequence[str], classes: int | Sequence[str] | None) -> list[int]:
    """Return the labels of the chosen classes: all, the first so many, or those named."""
    if len(known) < 2:
        raise InputError(f"one class only, {', '.join(known)}: a classifier needs at least 2")
    if classes is None:
        return list(range(len(known)))
    if isinstance(classes, int):
        if isinstance(classes, bool) or not 2 <= classes <= len(known):
            raise InputError(f"classes {classes}: from 2 to the {len(known)} of this data set")
        return list(range(classes))
    if isinstance(classes, str) or len(set(classes)) < 2 or len(set(classes)) < len(classes):
        raise InputError(f"classes {classes!r}: a number, or at least 2 different names")
    labels = {label: place for place, label in enumerate(known)}
    return [choose("class", label, labels) for label in classes]


def _block(pixels: np.ndarray | Stored) -> Tensor | Stored:
    return pixels if isinstance(pixels, Stored) else torch.from_numpy(pixels)


def _without(rows: Tensor, gone: Tensor) -> Tensor:
    return rows[~torch.isin(rows, gone)]


def _check_amount(field: str, value: Any) -> None:
    if value is None or (_is_integer(value) and value > 0):
        return
    if isinstance(value, int) or not _is_number(value) or not 0 < value <= 1:
        raise InputError(f"{field} {value!r}: pictures of each class, or a share in (0, 1]")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
