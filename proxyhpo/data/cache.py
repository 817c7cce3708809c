"""Decoded pictures on disk, mapped into memory: a data set is decoded once and loads at once.

A cache is a folder of one ``.npy`` file of pixels for each part and of ``about.json``, which holds
the rest: labels, the state of the source's files, and the state of the pixels' files. Where one of
these states has changed the cache is built anew. Its files are replaced, never written to, so that
pixels in use stay what they are whatever other processes do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from proxyhpo.config import slug
from proxyhpo.data.pictures import Source, Split

FOLDER = "cache"
VERSION = 3  # raised whenever decoding or this format changes

State = tuple[str, int, int]  # of a file: path, bytes, time of the last change in ns


def file_state(path: str) -> State:
    """Return the state of a file; one that is missing has neither bytes nor time."""
    try:
        found = os.stat(path)  # noqa: PTH116, a Path for each of 100,000 files takes longer
    except OSError:
        return path, 0, 0
    return path, found.st_size, found.st_mtime_ns


def cached(
    root: Path, folder: Path, side: int | None, states: object, build: Callable[[], Source]
) -> Source:
    """Return what ``build()``, which resizes to ``side``, returned when it was last called.

    It is called anew if the ``repr`` of ``states``, of the source's files, differs. The cache lies
    in ``root``, the folder of the data, and knows a source by its ``folder``.
    """
    home = root / FOLDER / f"{slug(folder.name)[-40:]}-{_digest(f'{folder} {side}')}"
    stamp = _digest(repr((VERSION, states)))
    built = None
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{home}.lock"):
            kept = _load(home, stamp)
            if kept is None:
                built = build()
                _store(home, stamp, built)
                kept = _load(home, stamp)
    except OSError as error:
        warnings.warn(f"decoded pictures can't be kept in {home.parent}: {error}", stacklevel=2)
        kept = None
    return kept or built or build()


def _store(home: Path, stamp: str, source: Source) -> None:
    """Write ``source``, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".") as scratch:
        whole = Path(scratch, home.name)
        whole.mkdir()
        parts = {}
        for part, split in source.parts.items():
            path = whole / f"{part}.npy"
            with path.open("wb") as file:
                np.save(file, split.pixels.numpy())
                file.flush()
                os.fsync(file.fileno())
            parts[part] = file_state(str(path))[1:], split.labels.tolist()
        about = json.dumps({**asdict(replace(source, parts={})), "parts": parts, "stamp": stamp})
        (whole / "about.json").write_text(f"{_digest(about)}\n{about}", encoding="utf-8")
        if home.exists():
            shutil.rmtree(home)
        whole.replace(home)


def _load(home: Path, stamp: str) -> Source | None:
    """Return the source kept in ``home``, or None if there is none, another, or a damaged one."""
    try:
        digest, _, text = (home / "about.json").read_text(encoding="utf-8").partition("\n")
        if digest != _digest(text):
            return None
        about: dict[str, Any] = json.loads(text)
        if about.pop("stamp") != stamp:
            return None
        parts = {}
        for part, (kept, labels) in about.pop("parts").items():
            path = home / f"{part}.npy"
            if list(file_state(str(path))[1:]) != kept:
                return None
            # copy on write: torch warns of arrays that can't be written to
            pixels = torch.from_numpy(np.load(path, mmap_mode="c"))
            parts[part] = Split(pixels, torch.tensor(labels))
    except (OSError, ValueError):
        return None
    about["duplicates"] = tuple(map(tuple, about["duplicates"]))
    about |= {field: tuple(about[field]) for field in ("classes", "skipped")}
    return Source(parts, **about)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
