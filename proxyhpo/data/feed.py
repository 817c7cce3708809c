"""Batches that never wait: splits in memory, and feeds that augment them on the device.

Everything random is drawn from an explicit generator on the CPU: the same seed gives the same
batches at any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor

from proxyhpo.config import InputError
from proxyhpo.data.pictures import CHUNK, Stored, chunks, resize

FEW = 64  # pictures at once: their floats stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures and their labels, on the CPU.

    Attributes:
        pixels: uint8 ``(M, H, W, C)``, in memory or in a file that is read when it is needed.
        labels: int64 ``(N,)``.
        rows: int64 ``(N,)``, which pixels are meant, in order; ``None`` for all.
    """

    pixels: Tensor | Stored
    labels: Tensor
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        pixels, count = self.pixels, len(self.rows if self.rows is not None else self.pixels)
        if isinstance(pixels, Tensor) and (pixels.dtype != torch.uint8 or pixels.dim() != 4):
            raise InputError("images of a split: a uint8 tensor (N, H, W, C)")
        if self.labels.dtype != torch.int64 or self.labels.shape != (count,):
            raise InputError("labels of a split: an int64 tensor (N,), one for each picture")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels of a picture."""
        return tuple(self.pixels.shape[1:])

    @cached_property
    def images(self) -> Tensor:
        """The pictures: uint8 ``(N, H, W, C)``; a copy where they aren't all of the pixels."""
        if self.rows is None:
            return self._block()
        # numpy's memory: where there is much of it, it asks for large pages, which come sooner
        images = torch.from_numpy(np.empty((len(self), *self.shape), np.uint8))
        for target, chunk in zip(images.split(CHUNK), self.chunks(), strict=False):
            target.copy_(chunk)
        return images

    def chunks(self) -> Iterator[Tensor]:
        """Yield all pictures, at most :data:`pictures.CHUNK` at once."""
        for part in chunks(len(self)):  # of a file, a new map each: see Pictures.is_whole
            pixels = self._block()
            yield pixels[part] if self.rows is None else pixels.index_select(0, self.rows[part])

    def indexed(self) -> tuple[Tensor, Tensor | None]:
        """Return pixels, uint8 ``(M, H, W, C)``, and rows among them, without a copy."""
        copied = self.rows is None or "images" in vars(self)
        return (self.images, None) if copied else (self._block(), self.rows)

    def take(self, indices: Tensor) -> Split:
        """Return the pictures at ``indices``, int64 ``(K,)``, in that order; not a copy."""
        rows = indices if self.rows is None else self.rows[indices]
        return Split(self.pixels, self.labels[indices], rows)

    def join(self, other: Split) -> Split:
        """Return the pictures of both; of two splits of the same pixels without a copy."""
        labels = torch.cat([self.labels, other.labels])
        if self.pixels is not other.pixels:
            return Split(torch.cat([self.images, other.images]), labels)
        every = torch.arange(len(self.pixels))
        rows = [every if split.rows is None else split.rows for split in (self, other)]
        return Split(self.pixels, labels, torch.cat(rows))

    def resize(self, side: int) -> Split:
        """Return the pictures at ``side`` x ``side`` pixels, see :func:`pictures.resize`."""
        if self.shape[:2] == (side, side):
            return self
        small = torch.empty((len(self), side, side, self.shape[2]), dtype=torch.uint8)
        for target, chunk in zip(small.split(CHUNK), self.chunks(), strict=False):
            target.copy_(resize(chunk, side))
        return Split(small, self.labels)

    def _block(self) -> Tensor:
        pixels = self.pixels
        return torch.from_numpy(pixels.open()) if isinstance(pixels, Stored) else pixels


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
            value = getattr(self, field)
            if not _is_integer(value) or value < 0:
                raise InputError(f"{field} {value!r}: pixels, a whole number, at least 0")


class Feed:
    """Batches of a split on a device: cropped, flipped, normalised, without workers or waiting.

    Pictures stay bytes until they are in a batch, and are moved to the device once.

    Args:
        split: at least ``batch_size`` pictures if ``drop_last``.
        mean, std: for each channel, in 0..1.
        batch_size: pictures a step.
        device: where batches are made.
        augmentation: applied in epochs that are given a generator.
        drop_last: leave out the last batch of an epoch where it is smaller than the others.

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
        if not _is_integer(batch_size) or batch_size < 1:
            raise InputError(f"batch_size {batch_size!r}: pictures, a whole number above 0")
        if len(split) < (batch_size if drop_last else 1):
            raise InputError(f"batch_size {batch_size}: more than the {len(split)} pictures")
        count, (self.side, width, channels) = len(split), split.shape
        if width != self.side:
            raise InputError(f"pictures of {self.side} x {width} pixels: batches need squares")
        if not len(mean) == len(std) == channels:
            raise InputError(f"mean and std: {channels} numbers each, one for each channel")
        self._labels = split.labels.to(device)
        if self._labels.is_cpu:
            self._images, self._rows = split.indexed()
        else:
            self._images = torch.empty((count, *split.shape), dtype=torch.uint8, device=device)
            self._rows = None
            for target, chunk in zip(self._images.split(CHUNK), split.chunks(), strict=False):
                target.copy_(chunk)
        self._batch = min(batch_size, count)
        self._augmentation = augmentation or Augmentation(crop=0, flip=False)
        self.pictures_an_epoch = count - count % self._batch if drop_last else count

        # normalisation as one multiplication and one addition, spelled out for a whole picture:
        # broadcasting over 3 channels only is five times slower
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self._scale = scale.float().repeat(self.side**2).to(device)
        self._shift = shift.float().repeat(self.side**2).to(device)

        # a border round one batch, not round the data set: that would cost half as much again
        border, padded = self._augmentation.crop, self.side + 2 * self._augmentation.crop
        self._canvas = self._images.new_zeros(self._batch, padded, padded, channels)
        self._inner = self._canvas[:, border : border + self.side, border : border + self.side]
        # every run of `side` pixels in the canvas, overlapping: a crop is `side` of these runs
        runs = self._canvas.numel() // channels - self.side + 1
        self._runs = self._canvas.as_strided((runs, self.side * channels), (channels, 1))
        first = torch.arange(self._batch)[:, None] * padded**2 + torch.arange(self.side) * padded
        self._first = first.to(device)
        pixels = torch.arange(self._batch * self.side**2).view(-1, self.side)
        self._mirrored = pixels.flip(1).flatten().to(device)

    def __len__(self) -> int:
        return math.ceil(self.pictures_an_epoch / self._batch)

    def epoch(self, generator: Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches: float32 ``(B, C, H, W)`` in channels-last memory, and int64 ``(B,)``.

        With a generator (on the CPU) pictures are shuffled and augmented; without, they come as
        they are, in order.
        """
        count, batch, device = self.pictures_an_epoch, self._batch, self._images.device
        if generator is None:
            for start in range(0, count, batch):
                here = slice(start, start + batch)
                images = self._images[here if self._rows is None else self._rows[here]]
                yield self._normalise(images), self._labels[here]
            return
        rules, padded = self._augmentation, self._canvas.shape[1]
        order = torch.randperm(len(self._labels), generator=generator)[:count]
        corners = torch.randint(2 * rules.crop + 1, (count, 2), generator=generator)
        mirrored = torch.randint(2 if rules.flip else 1, (count,), generator=generator)
        centres = torch.randint(self.side, (count, 2), generator=generator).to(device)
        shifts = (corners @ torch.tensor([[padded], [1]])).to(device)
        # mirrored pictures come first in their batch: one slice, and no list of places on a GPU
        steps = torch.arange(count) // batch
        turns = torch.bincount(steps, mirrored.double(), minlength=len(self)).int().tolist()
        order = order[(2 * steps + 1 - mirrored).argsort(stable=True)].to(device)
        for step, rows in enumerate(order.split(batch)):
            here = slice(step * batch, step * batch + len(rows))
            images = self._images.index_select(0, rows if self._rows is None else self._rows[rows])
            turn = turns[step]
            self._inner[turn : len(rows)] = images[turn:]
            if turn:
                self._inner[:turn] = self._mirror(images[:turn])
            runs = (self._first[: len(rows)] + shifts[here]).flatten()
            images = self._normalise(self._runs.index_select(0, runs).view_as(images))
            if rules.cutout:
                images.mul_(self._around(centres[here]))
            yield images, self._labels.index_select(0, rows)

    def _mirror(self, images: Tensor) -> Tensor:
        # several times faster than Tensor.flip for pixels of one or three bytes
        pixels = images.view(-1, images.shape[3])
        return pixels.index_select(0, self._mirrored[: len(pixels)]).view_as(images)

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


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in 0..1; images uint8 (N, H, W, C)."""
    count, height, width, channels = images.shape
    rows = images.numpy().reshape(count, -1)
    sums = np.zeros((2, rows.shape[1]))
    for start in range(0, count, FEW):
        # whole numbers below 2^24 are exact in float32, so the order of adding can't matter;
        # numpy, for torch would wake all threads for every few pictures
        values = rows[start : start + FEW].astype(np.float32)
        sums += values.sum(0), np.einsum("ij,ij->j", values, values)
    return moments_of(sums.reshape(2, -1, channels).sum(1), count * height * width)


def moments_of(sums: np.ndarray, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in 0..1.

    Args:
        sums: sum and sum of squares of each channel's bytes, ``(2, C)``.
        pixels: how many pixels were added up.
    """
    mean = sums[0] / (255 * pixels)
    variance = sums[1] / (255**2 * pixels) - mean**2
    # a channel without contrast stays finite when it is divided by its deviation
    std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
