"""Pictures that a user brings: tensors, a folder, a data set of torch or torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from proxyhpo.config import InputError, check_share
from proxyhpo.data.datasets import DATASETS, Dataset, dataset_of, divide, load_dataset
from proxyhpo.data.pictures import Source, Split, twins


class Items(Protocol):
    """A data set of torch or torchvision: pictures by number, each with its label."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def __getitem__(self, index: int) -> tuple[object, int]:
        """Return a picture (PIL, array or tensor) and its label."""


Given = Dataset | str | Path | tuple[object, object] | Items


def as_dataset(data: Given, *, val: float = 0.2, seed: int = 0) -> Dataset:
    """Return ``data`` as a data set whose training and validation splits are cut by ``seed``.

    Args:
        data: one of ours, which comes back as it is; a name that :func:`proxyhpo.load_dataset`
            takes, "digits" or "imagefolder:PATH"; a folder of pictures
            (``<folder>/train/<class>/*``); a pair of pictures and labels; or a data set of
            torchvision, whose items are read once. Pictures are square, grey or RGB: uint8 or
            0..1 floats, ``(N, H, W, C)``, ``(N, C, H, W)`` or ``(N, H, W)``.
        val: share of the pictures to validate on. Of pictures given in memory no test split is
            cut, they are for choosing hyperparameters; a folder without ``test/`` loses a fifth.
        seed: of the validation split.

    Raises:
        InputError: something else, pictures of another shape, or labels that don't fit them.
    """
    check_share("val", val, "the pictures")
    if isinstance(data, Dataset):
        if not len(data.val):
            raise InputError("data: no pictures to validate on, as load_dataset(..., val=0.1) has")
        return data
    if isinstance(data, str | Path):
        named = str(data) in DATASETS or str(data).startswith("imagefolder:")
        name = str(data) if named else f"imagefolder:{Path(data).expanduser()}"
        return load_dataset(name, val=val, seed=seed)
    classes: Sequence[str] | None = None
    if isinstance(data, tuple | list) and len(data) == 2:
        images, labels = (_tensor(part) for part in data)
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        classes = getattr(data, "classes", None)
        pairs = [data[index] for index in range(len(data))]
        pictures = [_tensor(picture) for picture, _ in pairs]
        if len({picture.shape for picture in pictures}) != 1:
            raise InputError(f"data: {len(pictures)} pictures, not all of one size")
        images = torch.stack(pictures)
        labels = _tensor([label for _, label in pairs]).flatten()
    else:
        raise InputError(
            f"data {type(data).__name__}: a Dataset of load_dataset, a folder, a pair (pictures, "
            "labels), or a torchvision data set"
        )
    if not images.numel() or labels.shape != images.shape[:1]:
        some = f"labels of shape {tuple(labels.shape)} for pictures of shape {tuple(images.shape)}"
        raise InputError(f"data: {some}, where one for each picture is needed")
    images = _bytes(images)
    if len(odd := labels[labels != labels.long()]):
        raise InputError(f"label {odd[0]:g}: a whole number, the place of a class, from 0")
    labels = labels.long()
    first, last = int(labels.min()), int(labels.max())
    names = tuple(classes or map(str, range(last + 1)))
    if first < 0 or last >= len(names) or len(names) < 2:
        raise InputError(
            f"labels {first} to {last}: whole numbers from 0, of at least 2 classes"
            f"{f' and below {len(names)}' if classes else ''}"
        )
    train, held = divide(Split(images, labels), val, Generator().manual_seed(seed), names)
    # grey pictures are often signs, which mean something else in a mirror
    mirrors, same = images.shape[3] == 3, twins(train.named(), held.named())
    source = Source({}, names, "given in memory", mirrors=mirrors, duplicates=same)
    return dataset_of("given", names, source, train=train, val=held)


def _tensor(part: object) -> Tensor:
    if isinstance(part, Image.Image) and part.mode == "P":  # else places in a palette
        part = part.convert("RGBA").convert("RGB")
    try:
        return torch.as_tensor(part if isinstance(part, Tensor) else np.array(part))
    except (TypeError, ValueError, RuntimeError):
        kind = type(part).__name__
        raise InputError(f"data: {kind} is no tensor of pictures or labels") from None


def _bytes(images: Tensor) -> Tensor:
    """Return pictures as uint8 ``(N, H, W, C)``."""
    if images.dim() == 3:
        images = images[..., None]
    if images.dim() == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.permute(0, 2, 3, 1)
    if images.dim() != 4 or images.shape[3] not in (1, 3) or images.shape[1] != images.shape[2]:
        raise InputError(
            f"pictures of shape {tuple(images.shape)}: square, grey or RGB, (N, H, W, C) or "
            "(N, C, H, W)"
        )
    if images.is_floating_point():
        least, most = float(images.min()), float(images.max())
        if not 0 <= least <= most <= 1:
            raise InputError(
                f"pictures from {least:.3g} to {most:.3g}: floats from 0 to 1, or bytes; leave "
                "normalisation to proxyhpo"
            )
        images = (images * 255).round()
    elif images.dtype != torch.uint8:
        raise InputError(f"pictures of {images.dtype}: bytes (uint8), or floats from 0 to 1")
    return images.to(torch.uint8).contiguous()
