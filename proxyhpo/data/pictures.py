"""Pixels: decoding, resizing, hashing, and a cache on disk that loads by memory map."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from proxyhpo.config import InputError, slug

CACHE_VERSION = 2  # raised whenever decoding changes: older caches are then built anew
INDEX = ("labels", "checks", "sums")  # what is kept beside the pixels
CHUNK = 1024  # pictures handled at once, so that memory stays bounded
GREY_MODES = ("1", "L", "LA", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")


class Stored:
    """Pixels in a ``.npy`` file that is kept open: they stay what they are if it is replaced.

    Attributes:
        shape: ``(N, H, W, C)``.

    Raises:
        OSError, ValueError: the file isn't there, or doesn't hold pixels.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        with self._opened() as file:
            file.seek(0)
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError(f"{path}: not written here")
            self.shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            self._start = file.tell()
        if fortran or dtype != np.uint8 or len(self.shape) != 4:
            raise ValueError(f"{path}: not pixels")

    def __len__(self) -> int:
        return self.shape[0]

    def open(self) -> np.ndarray:
        """Return the pixels by a memory map of their own, whose pages go with it."""
        with self._opened() as file:
            # "c", copy on write: torch warns of arrays that can't be written to
            return np.asarray(np.memmap(file, np.uint8, "c", self._start, self.shape))

    def _opened(self) -> BinaryIO:
        return open(self._file, "rb", closefd=False)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one part of a source.

    Attributes:
        pixels: uint8 ``(N, H, W, C)``.
        labels: int64 ``(N,)``.
        checks: uint64 ``(N,)``, see :func:`checksums`.
        sums: int64 ``(N, 2, C)``, see :func:`channel_sums`.
    """

    pixels: np.ndarray | Stored
    labels: np.ndarray
    checks: np.ndarray
    sums: np.ndarray

    def open(self) -> np.ndarray:
        """Return the pixels as an array, see :meth:`Stored.open`."""
        return self.pixels.open() if isinstance(self.pixels, Stored) else self.pixels

    def is_whole(self) -> bool:
        """Tell whether the pixels are those that were stored."""
        count = self.pixels.shape[0]
        # a new map for each chunk, or the pages that were read pile up in this process's memory
        return all(len(each) == count for each in (self.labels, self.checks, self.sums)) and all(
            np.array_equal(checksums(self.open()[rows]), self.checks[rows])
            for rows in chunks(count)
        )


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader found.

    Attributes:
        parts: "train", and "val" and "test" where the source has them.
        classes: the classes' names; labels index them.
        origin: one sentence on where the pixels come from.
        mirrors: whether a mirrored picture keeps its meaning.
        files: how many files were read as pictures, or should have been.
        skipped: file and reason of each that could not be.
        duplicates: pairs (held-out picture, training picture) with the same pixels.
    """

    parts: Mapping[str, Pictures]
    classes: tuple[str, ...]
    origin: str
    mirrors: bool = True
    files: int = 0
    skipped: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()

    @property
    def labels(self) -> Tensor:
        """Labels of all pictures, part after part: int64 ``(N,)``; a row is a place in it."""
        return torch.from_numpy(np.concatenate([p.labels for p in self.parts.values()]))

    @property
    def rows(self) -> dict[str, Tensor]:
        """The rows of each part."""
        sizes = [len(pictures.labels) for pictures in self.parts.values()]
        return dict(zip(self.parts, torch.arange(sum(sizes)).split(sizes), strict=True))

    def local(self, rows: Tensor) -> tuple[str, Tensor]:
        """Return the part in which all ``rows``, int64 ``(K,)``, lie, and their places there."""
        starts = {part: own[0].item() for part, own in self.rows.items() if len(own)}
        first = rows[0].item() if len(rows) else 0
        part = max((part for part in starts if starts[part] <= first), key=lambda p: starts[p])
        return part, rows - starts[part]


def make_source(
    parts: Mapping[str, tuple[np.ndarray, Sequence[int], Sequence[str]]],
    classes: Sequence[str],
    origin: str,
    **fields: Any,
) -> Source:
    """Return a source of pictures in memory: part -> (pixels, labels, names of the pictures)."""
    pictures = {
        part: Pictures(
            pixels, np.asarray(labels, np.int64), checksums(pixels), channel_sums(pixels)
        )
        for part, (pixels, labels, _) in parts.items()
    }
    seen, _, names = parts["train"]
    prints = fingerprints(seen)
    order = np.argsort(prints, kind="stable")
    duplicates = []
    for held, _, held_names in (parts[part] for part in parts if part != "train"):
        held_prints = fingerprints(held)
        places = np.searchsorted(prints, held_prints, sorter=order)
        twins = order[np.minimum(places, len(order) - 1)]
        for row in np.flatnonzero(prints[twins] == held_prints):
            twin = int(twins[row])
            if np.array_equal(held[row], seen[twin]):
                duplicates.append((held_names[int(row)], names[twin]))
    return Source(pictures, tuple(classes), origin, duplicates=tuple(duplicates), **fields)


def fingerprints(pixels: np.ndarray) -> np.ndarray:
    """Return a 64-bit multilinear hash of each picture: uint8 ``(N, ...)`` to uint64 ``(N,)``."""
    words = _words(pixels)
    weights = np.random.PCG64(0).random_raw(words.shape[1]) | np.uint64(1)
    return words.astype(np.uint64, copy=False) @ weights


def checksums(pixels: np.ndarray) -> np.ndarray:
    """Return the sum modulo 2^64 of each picture's 64-bit words: uint8 ``(N, ...)`` to ``(N,)``.

    It tells damage, not pictures, apart; as fast as memory is read.
    """
    return _words(pixels).sum(1, dtype=np.uint64)


def channel_sums(pixels: np.ndarray) -> np.ndarray:
    """Return sum and sum of squares of each channel: uint8 ``(N, H, W, C)`` to ``(N, 2, C)``."""
    sums = np.empty((len(pixels), 2, pixels.shape[3]), np.int64)
    for place, picture in enumerate(pixels):
        values = picture.reshape(-1, pixels.shape[3]).astype(np.int64)
        sums[place] = values.sum(0), np.einsum("ij,ij->j", values, values)
    return sums


def chunks(count: int) -> Iterator[slice]:
    """Yield slices of at most :data:`CHUNK` pictures that cover ``count`` of them."""
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))


def _words(pixels: np.ndarray) -> np.ndarray:
    """Return the 64-bit words of each picture, or its bytes where they don't fill words."""
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), math.prod(pixels.shape[1:]))
    return rows.view(np.uint64) if rows.shape[1] % 8 == 0 else rows


def resize(images: Tensor, side: int) -> Tensor:
    """Resize uint8 ``(N, H, W, C)`` to ``side`` pixels: area average down, bilinear up.

    What sticks out of the centred square is cut off first.
    """
    height, width = images.shape[1:3]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    images = images[:, top : top + square, left : left + square]
    if side == square:
        return images
    out = images.new_empty(len(images), side, side, images.shape[3])
    mode = "area" if side < square else "bilinear"
    for chunk, target in zip(images.split(CHUNK), out.split(CHUNK), strict=True):
        planes = chunk.permute(0, 3, 1, 2).float()
        planes = torch.nn.functional.interpolate(planes, (side, side), mode=mode)
        target.copy_(planes.round_().permute(0, 2, 3, 1))
    return out


def decode(path: str | Path, side: int | None = None) -> tuple[np.ndarray, bool]:
    """Return the picture in a file as RGB, uint8 ``(H, W, 3)``, and whether it is grey.

    A photo's stated orientation is followed, transparency dropped, 16 bits cut to 8, and of a
    moving picture the first frame taken. With ``side``, see :func:`resize`.
    """
    with Image.open(path) as file:
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
    paths: Sequence[str], side: int | None, skipped: list[str], threads: int = 1
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Decode files into one array.

    Args:
        paths: the files.
        side: side in pixels; ``None`` where all have one size.
        skipped: files that can't be read are added here with the reason.
        threads: worth having for large photos; small pictures take twice as long with two.

    Returns:
        The pixels, uint8 ``(K, side, side, 3)``; the places in ``paths`` of the K pictures that
        could be read; whether all of them are grey.

    Raises:
        InputError: the pictures have several sizes, or aren't square, and ``side`` is ``None``.
    """

    def attempt(path: str) -> tuple[np.ndarray, bool] | str:
        try:
            return decode(path, side)
        except Exception as error:  # Pillow's plugins raise whatever a broken file leads them to
            reason = str(error) or type(error).__name__
            return reason if path in reason else f"{path}: {reason}"

    places: list[int] = []
    pixels, grey = np.empty((0, side or 0, side or 0, 3), np.uint8), True
    with ThreadPoolExecutor(threads) as pool:
        mapped = pool.map if threads > 1 else map
        for start in tqdm(range(0, len(paths), CHUNK), "decoding", unit="k", disable=None):
            results = mapped(attempt, paths[start : start + CHUNK])
            for place, result in enumerate(results, start):
                if isinstance(result, str):
                    skipped.append(result)
                    continue
                if not places:
                    pixels = np.empty((len(paths), *result[0].shape), np.uint8)
                height, width = result[0].shape[:2]
                if (height, width) != pixels.shape[1:3] or height != width:
                    raise InputError(
                        f"{paths[place]} is {width} x {height} pixels: where pictures aren't "
                        "square and of one size, give the side to resize to (resolution=32, say)"
                    )
                pixels[len(places)] = result[0]
                places.append(place)
                grey &= result[1]
    return pixels[: len(places)], np.asarray(places, np.int64), grey


def cached(folder: Path, key: str, stamp: str, build: Callable[[], Source]) -> Source:
    """Return what ``build()`` returned when it was last called for this source.

    Args:
        folder: where caches are kept.
        key: the source and the way it is decoded; names the cache.
        stamp: the state of the source's files; a cache with another stamp is built anew, as is a
            damaged one.
        build: returns the source, in memory.
    """
    home = folder / f"{slug(Path(key).name)[-40:]}-{_digest(key)}"
    stamp = f"{CACHE_VERSION} {stamp}"
    built = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{home}.lock"):
            kept = _load(home, stamp)
            if kept is None:
                built = build()
                _store(home, stamp, built)
                kept = _load(home, stamp) or built
            return kept
    except OSError as error:
        warnings.warn(f"decoded pictures can't be kept in {folder}: {error}", stacklevel=2)
        return built or build()


def _store(home: Path, stamp: str, source: Source) -> None:
    """Write ``source`` so that it is there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".") as scratch:
        whole = Path(scratch, home.name)
        whole.mkdir()
        about = {**asdict(replace(source, parts={})), "parts": list(source.parts), "stamp": stamp}
        about["digest"] = _digest(json.dumps(about))
        (whole / "about.json").write_text(json.dumps(about), encoding="utf-8")
        for part, pictures in source.parts.items():
            np.save(whole / f"{part}.npy", pictures.open())
            index = {name: getattr(pictures, name) for name in INDEX}
            np.savez(whole / f"{part}.npz", **index)
        if home.exists():
            shutil.rmtree(home)
        whole.replace(home)


def _load(home: Path, stamp: str) -> Source | None:
    """Return the source kept in ``home``, or None if there is none, another, or a damaged one."""
    try:
        about = json.loads((home / "about.json").read_text(encoding="utf-8"))
        if about.pop("digest") != _digest(json.dumps(about)) or about.pop("stamp") != stamp:
            return None
        parts = {}
        for part in about.pop("parts"):
            with np.load(home / f"{part}.npz") as index:
                kept = {name: index[name] for name in INDEX}
            parts[part] = Pictures(Stored(home / f"{part}.npy"), **kept)
            if not parts[part].is_whole():
                return None
        about["duplicates"] = tuple(map(tuple, about["duplicates"]))
        about |= {field: tuple(about[field]) for field in ("classes", "skipped")}
        return Source(parts, **about)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
