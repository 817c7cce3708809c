"""Where pictures come from: official archives, folders of images, scikit-learn's digits.

A loader takes the folder of the data and a side in pixels (or None) and returns a
:class:`~proxyhpo.data.pictures.Source`. What is already there is never downloaded or
changed.
"""

from __future__ import annotations

import os
import shutil
import socket
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from platformdirs import user_cache_path

from proxyhpo.config import InputError, cores, whole_path
from proxyhpo.data.cache import State, cached, file_state
from proxyhpo.data.pictures import Source, decode_all, make_source

DATA_VARIABLE = "PROXYHPO_DATA"
LARGE = 2**16  # mean bytes of a picture file from which on decoding gains by threads
PATIENCE = 30.0  # seconds without an answer after which a server counts as out of reach
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

TINY_IMAGENET = {
    "url": "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "filename": "tiny-imagenet-200.zip",
    "md5": "90528d7ca1a48142e341f4ef8d21d0de",
}
TINY_IMAGENET_SIZES = {"train": 100_000, "test": 10_000}


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Return ``data_dir``, else ``$PROXYHPO_DATA``, else the platform's cache folder.

    Raises:
        InputError: the folder that was asked for doesn't exist.
    """
    chosen = data_dir or os.environ.get(DATA_VARIABLE)
    if not chosen:
        return user_cache_path("proxyhpo", appauthor=False).resolve()
    asked = "data_dir" if data_dir else DATA_VARIABLE
    folder = whole_path(asked, chosen)
    if not folder.is_dir():
        raise InputError(f"{asked} {folder}: no such folder; create it, or name the data's")
    return folder


def digits(root: Path, side: int | None = None) -> Source:
    """Scikit-learn's 1,797 scans of handwritten digits, 8 x 8 pixels, grey; no download."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = np.rint(scans.images[..., None] * (255 / 16)).astype(np.uint8)
    names = [f"digit {number}" for number in range(len(pixels))]
    return make_source(
        {"train": (pixels, scans.target, names)},
        [str(digit) for digit in scans.target_names],
        "scikit-learn's copy of the UCI optical recognition of handwritten digits",
        mirrors=False,
    )


def cifar(root: Path, side: int | None = None, *, name: str) -> Source:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009).

    The official binary files under ``root``; else a folder of images ``root/<name>`` in the layout
    of :func:`image_folder`; else the official archive, downloaded.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    official, folder = root / kind.base_folder, root / name
    files = [official / file for file, _ in (*kind.train_list, *kind.test_list)]
    present = all(path.is_file() for path in files)
    if not present and folder.is_dir():
        source = image_folder(root, path=folder)
        return replace(source, origin=f"{source.origin}, not the official binary files of {name}")

    def read() -> dict[str, Any]:
        """Return both splits; what is missing or damaged is downloaded."""
        archive = f"{kind.filename} (from {kind.url})"
        images = f"or its pictures as {name}/train/<class>/* and {name}/test/<class>/*"
        with _fetching(name, root, f"{archive} there, {images}"):
            return {"train": kind(root, train=True, download=True), "test": kind(root, train=False)}

    def build() -> Source:
        splits = read()
        parts = {
            part: (split.data, split.targets, [f"{part} {n}" for n in range(len(split))])
            for part, split in splits.items()
        }
        origin = f"official binary files {kind.base_folder}, by torchvision"
        return make_source(parts, splits["train"].classes, origin)

    if not present:
        read()
    return cached(root, official, None, [file_state(str(path)) for path in files], build)


def tiny_imagenet(root: Path, side: int | None = None) -> Source:
    """Tiny ImageNet (Stanford CS231n), 64 x 64 pixels; its official val split serves as test.

    The folder ``root/tiny-imagenet-200`` in its official layout; else the archive beside it; else
    the archive, downloaded.
    """
    from torchvision.datasets.utils import download_url

    folder, archive = root / "tiny-imagenet-200", TINY_IMAGENET
    if not folder.is_dir():
        wanted = f"{archive['filename']} (from {archive['url']}) there, or the unpacked folder"
        with _fetching("tinyimagenet", root, f"{wanted} {folder.name}"):
            if not folder.is_dir():  # no other process has unpacked it in the meantime
                download_url(root=root, **archive)
                unpack(root / archive["filename"], folder)
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise InputError(f"{annotations} is missing: it names the class of each picture in val/")
    held: Listing = {}
    images = f"{folder / 'val' / 'images'}{os.sep}"
    for line in annotations.read_text(encoding="utf-8").splitlines():
        picture, wnid, *_ = f"{line}\t".split("\t")
        held.setdefault(wnid, []).append(file_state(images + picture.rpartition("/")[2]))
    skipped: list[str] = []
    parts = {"train": _list_classes(folder / "train", folder, skipped), "test": held}
    sizes = {part: sum(map(len, listing.values())) for part, listing in parts.items()}
    extent = "complete" if sizes == TINY_IMAGENET_SIZES else "a part of the official set"
    origin = f"official layout {folder.name}, {extent}: {sizes['train']:,} training pictures, "
    origin += f"{sizes['test']:,} validation pictures as test split"
    return _from_files(root, folder, parts, None, origin, skipped)


def image_folder(root: Path, side: int | None = None, *, path: str | Path) -> Source:
    """Any folder of images: ``path/train/<class>/*``, and perhaps ``val/`` and ``test/`` alike.

    Pictures lie at any depth; hidden files and other endings than :data:`SUFFIXES` are passed over.
    Links to files inside the folder are followed; others are named as unreadable.
    """
    folder = whole_path("imagefolder", path)
    if not (folder / "train").is_dir():
        raise InputError(f"{folder} holds no folder train/ with one folder of images a class")
    skipped: list[str] = []
    parts = {
        part: _list_classes(folder / part, folder, skipped)
        for part in ("train", "val", "test")
        if (folder / part).is_dir()
    }
    origin = f"folder of images {folder.name}/ ({', '.join(parts)})"
    return _from_files(root, folder, parts, side, origin, skipped)


Listing = dict[str, list[State]]  # class -> its files


def _list_classes(folder: Path, inside: Path, skipped: list[str]) -> Listing:
    """Return the picture files of each class, that is of each folder in ``folder``."""
    if not folder.is_dir():
        raise InputError(f"{folder} is missing")
    return {
        path.name: sorted(_list_files(path, inside.resolve(), skipped))
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }


def _list_files(folder: Path | str, inside: Path, skipped: list[str]) -> list[State]:
    """Return the picture files at any depth; a plain loop, for there may be 100,000 of them."""
    if Path(folder).is_symlink():
        skipped.append(f"{folder}: a link to a folder")
        return []
    files = []
    for entry in os.scandir(folder):
        path, link = entry.path, entry.is_symlink()
        is_folder = Path(path).is_dir() if link else entry.is_dir()
        if entry.name.startswith(".") or not (is_folder or entry.name.lower().endswith(SUFFIXES)):
            continue
        if is_folder:
            files += _list_files(path, inside, skipped)
        # unlike Path.resolve, realpath raises nothing where links form a circle
        elif link and not Path(os.path.realpath(path)).is_relative_to(inside):
            skipped.append(f"{path}: a link out of the folder")
        else:
            files.append(file_state(path))
    return files


def _from_files(
    root: Path,
    folder: Path,
    parts: Mapping[str, Listing],
    side: int | None,
    origin: str,
    skipped: list[str],
) -> Source:
    """Return the decoded pictures of ``parts``, cached under ``root``."""
    classes = list(parts["train"])
    for part, listing in parts.items():
        for name in sorted({*classes, *listing}):
            if name not in classes:
                raise InputError(f"{folder}: class {name!r} is in {part} but not in train")
            if not listing.get(name):
                raise InputError(f"{folder}: class {name!r} has no picture in {part}")

    def build() -> Source:
        found = [
            (part, label, path, size)
            for part, listing in parts.items()
            for label, name in enumerate(classes)
            for path, size, _ in listing[name]
        ]
        large = sum(size for *_, size in found) > LARGE * len(found)
        threads = cores() if large else 1
        pixels, places, grey, broken = decode_all([path for *_, path, _ in found], side, threads)
        pixels = pixels[..., :1] if grey else pixels
        decoded = {}
        for part in parts:
            kept = [found[place] for place in places if found[place][0] == part]
            labels = [label for _, label, *_ in kept]
            names = [os.path.relpath(path, folder) for *_, path, _ in kept]
            own, pixels = np.split(pixels, [len(kept)])
            decoded[part] = own, labels, names
        return make_source(decoded, classes, origin, skipped=(*skipped, *broken))

    return cached(root, folder, side, [parts, skipped], build)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack ``folder`` out of a zip file that holds it, whole or not at all.

    Raises:
        InputError: a path in the archive leads out of it, or it lacks the folder.
    """
    from torchvision.datasets.utils import extract_archive

    with zipfile.ZipFile(archive) as content:
        members = [Path(name) for name in content.namelist()]
    if outside := [str(path) for path in members if path.is_absolute() or ".." in path.parts]:
        raise InputError(f"{archive} holds the path {outside[0]!r}, which leads out of it")
    if not any(path.parts[:1] == (folder.name,) for path in members):
        raise InputError(f"{archive} holds no folder {folder.name}/")
    scratch = folder.parent / f".unpacking-{folder.name}"
    shutil.rmtree(scratch, ignore_errors=True)  # what an interrupted unpacking left
    try:
        extract_archive(archive, scratch)
        (scratch / folder.name).replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _fetching(name: str, root: Path, wanted: str) -> Iterator[None]:
    """Let one process at a time download data set ``name`` to ``root``.

    A server that doesn't answer is given up, since torchvision's downloads would wait for ever.
    Whatever prevents the download is an :class:`InputError` that says what to do by hand.
    """
    before = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            socket.setdefaulttimeout(PATIENCE)
            yield
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{name} is not in {root} and can't be downloaded ({' '.join(str(error).split())}): "
            f"put {wanted}; dataset 'digits' needs no download"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
