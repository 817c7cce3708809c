"""Batches without waiting: pictures stay bytes in memory until a batch is cropped and normalised.

Everything random is drawn from an explicit generator on the CPU: the same seed gives the same
batches at any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from proxyhpo.config import InputError, check_integer
from proxyhpo.data.pictures import Split


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training picture, each drawn anew in every epoch.

    Attributes:
        crop: pixels of black border; a window of the picture's size is cut at random out of the
            picture with its border (He et al. 2016, section 4.2).
        flip: mirror left and right, half of the time.
        cutout: side in pixels of a square set to the mean, its centre anywhere in the picture
            (DeVries and Taylor 2017); 0 for none.
    """

    crop: int = 4
    flip: bool = True
    cutout: int = 0

    def __post_init__(self) -> None:
        for field in ("crop", "cutout"):
            check_integer(field, getattr(self, field), 0, " pixels")


class Feed:
    """Batches of a split on a device: cropped, mirrored and normalised there, without workers.

    Batches are made on ``device``, where the pictures are moved once. Epochs that are given a
    generator are augmented; ``drop_last`` leaves out the last batch of an epoch where it is smaller
    than the others.

    Attributes:
        pictures_an_epoch: how many pictures an epoch yields.
        side: width and height of a picture in pixels.

    Raises:
        InputError: no batch could be made.
    """

    def __init__(
        self,
        split: Split,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        device: str | torch.device = "cpu",
        augmentation: Augmentation | None = None,
        drop_last: bool = True,
    ) -> None:
        check_integer("batch_size", batch_size, 1, " picture")
        if len(split) < (batch_size if drop_last else 1):
            raise InputError(f"batch_size {batch_size}: more than the {len(split)} pictures")
        self.side, width, channels = split.shape
        if width != self.side:
            raise InputError(f"pictures of {self.side} x {width} pixels: batches need squares")
        if not len(mean) == len(std) == channels:
            raise InputError(f"mean and std: {channels} numbers each, one for each channel")
        self._device = torch.device(device)
        self._split = split = split.to(self._device)
        self._batch = min(batch_size, len(split))
        self._augmentation = augmentation or Augmentation(crop=0, flip=False)
        self.pictures_an_epoch = len(split) - (len(split) % self._batch if drop_last else 0)

        # one multiplication and one addition, spelled out for a whole picture: broadcasting over
        # 3 channels only is five times slower
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self._scale = scale.float().repeat(self.side**2).to(device)
        self._shift = shift.float().repeat(self.side**2).to(device)

    def __len__(self) -> int:
        return math.ceil(self.pictures_an_epoch / self._batch)

    def epoch(self, generator: Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches: float32 ``(B, C, H, W)`` in channels-last memory, and int64 ``(B,)``.

        With a generator (on the CPU) pictures are shuffled and augmented; without, they come as
        they are, in order.
        """
        count, rules = self.pictures_an_epoch, self._augmentation
        if generator is None:
            for own in torch.arange(count, device=self._device).split(self._batch):
                batch = self._split.take(own)
                yield self._normalise(batch.images), batch.labels
            return
        order = torch.randperm(len(self._split), generator=generator)[:count]
        corners = torch.randint(2 * rules.crop + 1, (count, 2), generator=generator)
        mirrored = torch.randint(2 if rules.flip else 1, (count,), generator=generator)
        centres = torch.randint(self.side, (count, 2), generator=generator)
        # mirrored pictures come first in their batch: recorded trainings follow from this order
        steps = torch.arange(count) // self._batch
        sorted_ = (2 * steps - mirrored).argsort(stable=True)
        drawn = (order[sorted_], mirrored[sorted_].bool(), corners, centres)
        batches = (each.to(self._device).split(self._batch) for each in drawn)
        for own, flipped, corner, centre in zip(*batches, strict=True):
            batch = self._split.take(own)
            images = self._normalise(self._crop(batch.images, corner, flipped))
            if rules.cutout:
                images.mul_(self._around(centre))
            yield images, batch.labels

    def _crop(self, images: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
        """Cut windows at ``corners`` ``(B, 2)`` out of uint8 ``(B, H, W, C)``, bordered black."""
        border, padded = self._augmentation.crop, self.side + 2 * self._augmentation.crop
        inside = torch.arange(self.side, device=images.device)
        rows, columns = (corners[..., None] + inside).unbind(1)  # of a window's pixels: (B, side)
        columns = torch.where(mirrored[:, None], padded - 1 - columns, columns)
        rows += padded * torch.arange(len(images), device=images.device)[:, None]  # of all pictures
        places = padded * rows[:, :, None] + columns[:, None, :]
        pixels = pad(images, (0, 0, border, border, border, border)).flatten(0, 2)
        return pixels.index_select(0, places.flatten()).view_as(images)

    def _normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 ``(B, H, W, C)`` to float32 ``(B, C, H, W)`` of mean 0 and deviation 1."""
        values = images.flatten(1).float().mul_(self._scale).add_(self._shift)
        return values.view(images.shape).permute(0, 3, 1, 2)

    def _around(self, centres: Tensor) -> Tensor:
        """Return 0 in a square round each centre ``(B, 2)``, 1 elsewhere: ``(B, 1, H, W)``."""
        size = self._augmentation.cutout
        offset = torch.arange(self.side, device=centres.device) - centres[..., None] + size // 2
        inside = (offset >= 0) & (offset < size)
        return ~(inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
