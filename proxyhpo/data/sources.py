"""Where pictures come from: official archives, folders of images, scikit-learn's digits.

A loader takes the folder that holds the data and a side in pixels (or None) and returns a
:class:`~proxyhpo.data.pictures.Source`. What is there already is
never downloaded, and never changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock
from platformdirs import user_cache_path

from proxyhpo.config import InputError
from proxyhpo.data.pictures import Source, cached, decode_all, make_source

DATA_VARIABLE = "PROXYHPO_DATA"
CACHE = "decoded"
LARGE = 2**16  # bytes of a picture file from which on decoding gains by threads
PATIENCE = 30.0  # seconds without an answer after which a server counts as out of reach
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Archive:
    """A file to be had from the net: where, under which name, and its MD5 checksum."""

    url: str
    filename: str
    md5: str


TINY_IMAGENET = Archive(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "tiny-imagenet-200.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
)
TINY_IMAGENET_SIZES = {"train": 100_000, "test": 10_000}


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Return ``data_dir``, else ``$PROXYHPO_DATA``, else the platform's cache folder."""
    chosen = data_dir or os.environ.get(DATA_VARIABLE)
    folder = Path(chosen).expanduser() if chosen else user_cache_path("proxyhpo", appauthor=False)
    return folder.resolve()


# ---------------------------------------------------------------------------------- data sets


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
        files=len(pixels),
    )


def cifar(root: Path, side: int | None = None, *, name: str) -> Source:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009).

    The official binary files under ``root``; else a folder of images ``root/<name>`` in the layout
    of :func:`image_folder`; else the official archive, downloaded.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    official, folder = root / kind.base_folder, root / name
    files = [official / entry[0] for entry in (*kind.train_list, *kind.test_list)]
    present = all(path.is_file() for path in files)
    if not present and folder.is_dir():
        source = image_folder(root, path=folder)
        note = f"not the official binary files of {name}, so the pixels may differ"
        return replace(source, origin=f"{source.origin}: {note}")
    missing = f"{kind.filename} (from {kind.url})"
    alternative = f"or its pictures as {name}/train/<class>/* and {name}/test/<class>/*"
    with _obtaining(name, root, missing, alternative):
        if not present:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{name}.lock"), _patience():
                kind(root, download=True)

        def build() -> Source:
            with _patience():  # a damaged file is downloaded again
                splits = {"train": kind(root, True, download=True), "test": kind(root, False)}
            return make_source(
                {
                    part: (split.data, split.targets, [f"{part} {n}" for n in range(len(split))])
                    for part, split in splits.items()
                },
                splits["train"].classes,
                f"official binary files {kind.base_folder}, by torchvision",
                files=sum(map(len, splits.values())),
            )

        return cached(
            root / CACHE, str(official), _stamp([_file(str(path)) for path in files]), build
        )


def tiny_imagenet(root: Path, side: int | None = None) -> Source:
    """Tiny ImageNet (Stanford CS231n), 64 x 64 pixels; its official val split serves as test.

    The folder ``root/tiny-imagenet-200`` in its official layout; else the archive beside it; else
    the archive, downloaded.
    """
    folder = root / "tiny-imagenet-200"
    if not folder.is_dir():
        archive = TINY_IMAGENET
        missing = f"{archive.filename} (from {archive.url})"
        with _obtaining("tinyimagenet", root, missing, "or the unpacked folder tiny-imagenet-200"):
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".tinyimagenet.lock"):
                if not folder.is_dir():
                    unpack(download(archive, root), root, folder.name)
    skipped: list[str] = []
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise InputError(f"{annotations} is missing: it names the class of each picture in val/")
    held: Listing = {}
    images = f"{folder / 'val' / 'images'}{os.sep}"
    for line in annotations.read_text(encoding="utf-8").splitlines():
        picture, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        held.setdefault(wnid, []).append(_file(images + picture.rpartition("/")[2]))
    parts = {"train": _list_classes(folder / "train", folder, skipped), "test": held}
    sizes = {part: sum(map(len, listing.values())) for part, listing in parts.items()}
    extent = "complete" if sizes == TINY_IMAGENET_SIZES else "a part of the official set"
    origin = (
        f"official layout {folder.name}, {extent}: {sizes['train']:,} training pictures, "
        f"{sizes['test']:,} validation pictures as test split"
    )
    return _from_files(root, folder, parts, None, origin, skipped)


def image_folder(root: Path, side: int | None = None, *, path: str | Path) -> Source:
    """Any folder of images: ``path/train/<class>/*``, and perhaps ``val/`` and ``test/`` alike.

    Pictures lie at any depth; hidden files and other endings than :data:`SUFFIXES` are passed over.
    A link that leads out of the folder is named as unreadable, not followed.
    """
    folder = Path(path).expanduser().resolve()
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


# ------------------------------------------------------------------------------------ folders

File = tuple[str, int, int]  # path, bytes, time of the last change in ns
Listing = dict[str, list[File]]  # class -> its files


def _list_classes(folder: Path, inside: Path, skipped: list[str]) -> Listing:
    """Return the picture files of each class, that is of each folder in ``folder``."""
    if not folder.is_dir():
        raise InputError(f"{folder} is missing")
    roots = (inside.resolve(), folder.resolve())
    classes = sorted(folder.iterdir())
    return {
        path.name: sorted(_list_files(path, roots, skipped))
        for path in classes
        if path.is_dir() and not path.name.startswith(".")
    }


def _list_files(folder: Path | str, roots: tuple[Path, ...], skipped: list[str]) -> list[File]:
    """Return the picture files at any depth; a plain loop, for there may be 100,000 of them."""
    if _leads_out(folder, roots):
        skipped.append(f"{os.fspath(folder)}: a link out of the folder")
        return []
    files = []
    for entry in os.scandir(folder):
        name, path = entry.name, entry.path
        picture = name.lower().endswith(SUFFIXES)
        if name.startswith(".") or not (picture or entry.is_dir()):
            continue
        if entry.is_symlink() and (entry.is_dir() or _leads_out(path, roots)):
            skipped.append(f"{path}: a link to a folder or out of the folder")
        elif picture:
            files.append(_file(path))
        else:
            files += _list_files(path, roots, skipped)
    return files


def _leads_out(path: Path | str, roots: tuple[Path, ...]) -> bool:
    return not any(Path(path).resolve().is_relative_to(root) for root in roots)


def _file(path: str) -> File:
    """Return a file's path and state; what is missing shows when it is read."""
    try:
        state = os.stat(path)  # noqa: PTH116, a Path for each of 100,000 files takes longer
    except OSError:
        return path, 0, 0
    return path, state.st_size, state.st_mtime_ns


def _stamp(*state: object) -> str:
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


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
    files = {
        part: [f for name in classes for f in listing[name]] for part, listing in parts.items()
    }
    labels = {
        part: np.repeat(np.arange(len(classes)), [len(listing[name]) for name in classes])
        for part, listing in parts.items()
    }

    def build() -> Source:
        broken: list[str] = []
        decoded, grey = {}, True
        for part, listed in files.items():
            paths = [path for path, *_ in listed]
            large = sum(size for _, size, _ in listed) > LARGE * len(listed)
            threads = (os.cpu_count() or 1) if large else 1
            pixels, places, part_grey = decode_all(paths, side, broken, threads)
            names = [os.path.relpath(paths[place], folder) for place in places]
            decoded[part] = (pixels, labels[part][places], names)
            grey &= part_grey
        if grey:
            decoded = {part: (pixels[..., :1], *rest) for part, (pixels, *rest) in decoded.items()}
        return make_source(
            decoded,
            classes,
            origin,
            files=sum(map(len, files.values())) + len(skipped),
            skipped=(*skipped, *broken),
        )

    source = cached(root / CACHE, f"{folder} {side}", _stamp(parts, skipped), build)
    return replace(source, origin=origin)


# ----------------------------------------------------------------------------------- archives


def download(archive: Archive, root: Path) -> Path:
    """Return ``archive`` in ``root``, downloaded unless it is there with the right checksum.

    An interrupted download leaves a file of another name, which the next one overwrites.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    path = root / archive.filename
    if not check_integrity(path, archive.md5):
        part = f"{archive.filename}.part"
        with _patience():
            download_url(archive.url, root, part, archive.md5)
        (root / part).replace(path)
    return path


def unpack(archive: Path, root: Path, name: str) -> None:
    """Unpack folder ``name`` of a zip file into ``root``, whole or not at all.

    Raises:
        InputError: a path in the archive leads out of it, or it lacks the folder.
    """
    from torchvision.datasets.utils import extract_archive

    scratch = root / f".unpacking-{name}"
    shutil.rmtree(scratch, ignore_errors=True)  # what an interrupted unpacking left
    with zipfile.ZipFile(archive) as content:
        for member in content.namelist():
            if not (scratch / member.replace("\\", "/")).resolve().is_relative_to(scratch):
                raise InputError(f"{archive} holds the path {member!r}, which leads out of it")
        if not any(member.startswith(f"{name}/") for member in content.namelist()):
            raise InputError(f"{archive} holds no folder {name}/")
    try:
        extract_archive(archive, scratch)
        (scratch / name).replace(root / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _patience() -> Iterator[None]:
    """Give up on servers that don't answer: torchvision's downloads would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _obtaining(dataset: str, root: Path, missing: str, alternative: str) -> Iterator[None]:
    """Turn whatever prevents a download into one line that says what to do by hand."""
    try:
        yield
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{dataset} is not in {root} and can't be downloaded ({reason}): put {missing} there, "
            f"{alternative}; dataset 'digits' needs no download"
        ) from error
