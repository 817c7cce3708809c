"""Pictures in memory: splits and sources, and how files are decoded and resized."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from proxyhpo.config import InputError

CHUNK = 1024  # pictures handled at once, so that memory stays bounded
FEW = 64  # pictures at once whose floats stay in the processor's cache
Named = tuple[np.ndarray, str]  # a picture, uint8 (H, W, C), and its name
GREY_MODES = ("1", "L", "LA", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures and their labels.

    Attributes:
        pixels: uint8 ``(M, H, W, C)``, in memory or mapped from a file.
        labels: int64 ``(N,)``.
        rows: int64 ``(N,)``, the pictures' places in ``pixels``, in order; ``None`` for all.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.dim() != 4:
            raise InputError("images of a split: a uint8 tensor (N, H, W, C)")
        count = len(self.pixels if self.rows is None else self.rows)
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
        """The pictures: uint8 ``(N, H, W, C)``; a copy unless they are all of the pixels."""
        return self.pixels if self.rows is None else self.pixels.index_select(0, self.rows)

    def chunks(self, size: int = CHUNK) -> Iterator[Tensor]:
        """Yield copies of all pictures in order, at most ``size`` at once."""
        return (self.take(indices).images for indices in torch.arange(len(self)).split(size))

    def named(self) -> Iterator[Named]:
        """Yield all pictures in order, each named by its place in the pixels."""
        rows = range(len(self)) if self.rows is None else self.rows.tolist()
        pictures = chain.from_iterable(chunk.numpy() for chunk in self.chunks())
        return zip(pictures, (f"picture {row}" for row in rows), strict=True)

    def to(self, device: str | torch.device) -> Split:
        """Return the pictures on ``device``; not a copy where they lie there."""
        if self.labels.device.type == torch.device(device).type:
            return self
        images = torch.cat([chunk.to(device) for chunk in self.chunks()])
        return Split(images, self.labels.to(device))

    @cached_property
    def digest(self) -> str:
        """A hash of all pictures and labels; it takes a quarter of the time of the moments."""
        found = hashlib.sha256(repr((len(self), self.shape)).encode())
        for chunk in self.chunks():
            found.update(chunk.numpy().data)
        found.update(self.labels.contiguous().numpy().data)
        return found.hexdigest()[:16]

    @cached_property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the pixels, in 0..1."""
        height, width, channels = self.shape
        sums = np.zeros((2, height * width * channels))
        for chunk in self.chunks(FEW):
            # sums of so few bytes and their squares are exact in float32: their order can't
            # matter; by numpy, since torch would wake all its threads for every few pictures
            values = chunk.flatten(1).numpy().astype(np.float32)
            sums += values.sum(0), np.einsum("ij,ij->j", values, values)
        total = len(self) * height * width
        first, second = sums.reshape(2, -1, channels).sum(1)
        mean = first / (255 * total)
        variance = second / (255**2 * total) - mean**2
        # a channel without contrast stays finite when it is divided by its deviation
        std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1 / 255)
        return tuple(mean.tolist()), tuple(std.tolist())

    def take(self, indices: Tensor) -> Split:
        """Return the pictures at ``indices``, int64 ``(K,)``, in that order; not a copy."""
        rows = indices if self.rows is None else self.rows[indices]
        return Split(self.pixels, self.labels[indices], rows)

    def join(self, other: Split) -> Split:
        """Return the pictures of both; a copy unless the two share their pixels."""
        labels = torch.cat([self.labels, other.labels])
        if self.pixels is not other.pixels:
            return Split(torch.cat([self.images, other.images]), labels)
        every = torch.arange(len(self.pixels))
        rows = [every if split.rows is None else split.rows for split in (self, other)]
        return Split(self.pixels, labels, torch.cat(rows))

    def resize(self, side: int) -> Split:
        """Return the pictures at ``side`` x ``side`` pixels, see :func:`resize`."""
        if self.shape[:2] == (side, side):
            return self
        return Split(torch.cat([resize(chunk, side) for chunk in self.chunks()]), self.labels)


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader found.

    Attributes:
        parts: "train", and "val" and "test" where the source has them.
        classes: the classes' names; labels index them.
        origin: one sentence on where the pixels come from.
        mirrors: whether a mirrored picture keeps its meaning.
        skipped: name and reason of each file that could not be read as a picture.
        duplicates: pairs (held-out picture, training picture) with the same pixels.
    """

    parts: Mapping[str, Split]
    classes: tuple[str, ...]
    origin: str
    mirrors: bool = True
    skipped: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()


def make_source(
    parts: Mapping[str, tuple[np.ndarray, Sequence[int], Sequence[str]]],
    classes: Sequence[str],
    origin: str,
    **fields: Any,
) -> Source:
    """Return a :class:`Source` of pictures in memory, its duplicates found.

    ``parts`` maps a part, "train" first, to its pixels, uint8 ``(N, H, W, C)``, labels and
    pictures' names.
    """
    splits = {
        part: Split(torch.from_numpy(pixels), torch.as_tensor(labels, dtype=torch.int64))
        for part, (pixels, labels, _) in parts.items()
    }
    train, *held = (zip(pixels, names, strict=True) for pixels, _, names in parts.values())
    found = twins(train, chain.from_iterable(held))
    return Source(splits, tuple(classes), origin, duplicates=found, **fields)


def twins(train: Iterable[Named], held: Iterable[Named]) -> tuple[tuple[str, str], ...]:
    """Return the names of each held-out picture and the training picture with the same pixels."""
    seen: dict[str, str] = {}
    for picture, name in train:
        seen.setdefault(picture_hash(picture), name)
    hashed = ((name, picture_hash(picture)) for picture, name in held)
    return tuple((name, seen[digest]) for name, digest in hashed if digest in seen)


def picture_hash(pixels: np.ndarray) -> str:
    """Return SHA-256 of one picture's bytes, uint8 ``(H, W, C)`` row by row, in hexadecimal."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def resize(images: Tensor, side: int) -> Tensor:
    """Resize uint8 ``(N, H, W, C)``, cut to the centred square: area average down, bilinear up."""
    height, width = images.shape[1:3]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    images = images[:, top : top + square, left : left + square]
    if side == square:
        return images
    planes = images.permute(0, 3, 1, 2).float()
    mode = "area" if side < square else "bilinear"
    planes = torch.nn.functional.interpolate(planes, (side, side), mode=mode)
    return planes.round_().permute(0, 2, 3, 1).byte().contiguous()


def decode(path: str | Path, side: int | None = None) -> tuple[np.ndarray, bool]:
    """Return the picture in a file as RGB, uint8 ``(H, W, 3)``, and whether it is grey.

    A photo's stated orientation is followed, transparency dropped, 16 bits cut to 8, and of a
    moving picture the first frame taken. With ``side``, see :func:`resize`.
    """
    with _opened(path) as file:
        image: Image.Image = file
        if side is not None:
            file.draft(None, (2 * side, 2 * side))  # large JPEG files decode at a reduced scale
        grey = image.mode in GREY_MODES
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("P", "PA"):
            image = image.convert("RGBA")  # else transparency given as bytes draws a warning
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if side is not None:
        pixels = resize(torch.from_numpy(pixels)[None], side)[0].numpy()
    return pixels, grey


def decode_all(
    paths: Sequence[str], side: int | None, threads: int = 1
) -> tuple[np.ndarray, list[int], bool, list[str]]:
    """Decode files into one array, with ``threads`` where they are large photos.

    Returns:
        The pixels, uint8 ``(K, side, side, 3)``; the places in ``paths`` of the K pictures that
        could be read; whether all of them are grey; name and reason of each that couldn't be read.

    Raises:
        InputError: ``side`` is ``None``, and the pictures have several sizes or aren't square.
    """
    own = side or _common_side(paths)

    def attempt(path: str) -> tuple[np.ndarray, bool] | str:
        try:
            return decode(path, side)
        except Exception as error:  # Pillow's plugins raise whatever a broken file leads them to
            reason = str(error) or type(error).__name__
            return reason if path in reason else f"{path}: {reason}"

    pixels = np.empty((len(paths), own, own, 3), np.uint8)
    places: list[int] = []
    skipped: list[str] = []
    grey = True
    with ThreadPoolExecutor(threads) as pool:
        mapped = pool.map if threads > 1 else map
        for start in tqdm(range(0, len(paths), CHUNK), "decoding", unit="k", disable=None):
            results = mapped(attempt, paths[start : start + CHUNK])
            for place, result in enumerate(results, start):
                if isinstance(result, str):
                    skipped.append(result)
                else:
                    pixels[len(places)] = result[0]
                    grey &= result[1]
                    places.append(place)
    return pixels[: len(places)], places, grey, skipped


def _common_side(paths: Sequence[str]) -> int:
    """Return the side of all pictures, from their files' headers; 0 if none can be read."""
    sizes: dict[str, tuple[int, int]] = {}
    for path in paths:
        with suppress(Exception), _opened(path) as image:  # what can't be read is named later
            sizes[path] = image.size
    if not sizes:
        return 0
    (usual, _), *others = Counter(sizes.values()).most_common()
    if others or usual[0] != usual[1]:
        odd = next(path for path, size in sizes.items() if not others or size != usual)
        width, height = sizes[odd]
        most = f", most others {usual[0]} x {usual[1]}" if others else ""
        raise InputError(
            f"{odd} is {width} x {height} pixels{most}: where pictures aren't square and of one "
            "size, say which to resize to: load_dataset(..., resolution=32)"
        )
    return usual[0]


def _opened(path: str | Path) -> Image.Image:
    if not Path(path).is_file():  # opening a named pipe would wait for ever
        raise OSError("not a file, or a link to none")
    return Image.open(path)
