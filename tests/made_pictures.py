"""Small folders and archives of pictures in the layouts that users have, and a server for them."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from proxyhpo.config import InputError
from proxyhpo.data import sources
from proxyhpo.data.datasets import Dataset, Split, load_dataset


def refused(call: Callable[[], object]) -> str:
    """Return the message of the InputError that ``call()`` raises, which is one line."""
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, side: int = 6, channels: int = 3) -> Split:
    """Return pictures of noise whose label is their number."""
    shape = (count, side, side, channels)
    pixels = torch.randint(1, 256, shape, dtype=torch.uint8, generator=seeded(1))
    return Split(pixels, torch.arange(count))


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def make_folder(
    root: Path, parts: Sequence[str] = ("train", "test"), classes: Sequence[str] = "ab", each=10
) -> Path:
    """Write ``root/<part>/<class>/<n>.png``, 8 x 8 pixels, RGB, no two alike."""
    for number, (part, name) in enumerate((p, c) for p in parts for c in classes):
        for n in range(each):
            save(root / part / name / f"{n}.png", noise(8, 8, 3, seed=1000 * number + n))
    return root


def load(folder: Path, **options: object) -> Dataset:
    """Load a folder of images, its cache beside it."""
    data_dir = folder.parent / "data"
    data_dir.mkdir(exist_ok=True)
    return load_dataset(f"imagefolder:{folder}", data_dir=data_dir, **{"val": 0.2, **options})


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def tiny_imagenet_zip(*extra: str) -> bytes:
    """Return a zip file in the official layout: 2 classes of 4 pictures, 64 x 64 pixels."""
    lines, files = [], {}
    for number, wnid in enumerate(("n01", "n02")):
        for n in range(6):
            picture = io.BytesIO()
            Image.fromarray(noise(64, 64, 3, seed=10 * number + n)).save(picture, "JPEG")
            if n < 4:
                files[f"train/{wnid}/images/{wnid}_{n}.JPEG"] = picture.getvalue()
            else:
                # named against the order of the classes: only the annotations tell them
                name = f"val_{10 * (2 - number) + n}.JPEG"
                files[f"val/images/{name}"] = picture.getvalue()
                lines.append(f"{name}\t{wnid}\t0\t0\t9\t9\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = b"unlabelled, never read"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", data)
        for name in extra:
            archive.writestr(name, b"extra")
    return out.getvalue()


def cifar_archive(kind: type[CIFAR10], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return a small archive of CIFAR's official binary files, and make torchvision expect it."""
    fine = kind is CIFAR100
    names = [f"kind {n}" for n in range(100 if fine else 10)]
    files = {}
    for number, (file, _) in enumerate([*kind.train_list, *kind.test_list]):
        labels = {"fine_labels" if fine else "labels": [*range(len(names))] * 4}
        files[file] = pickle.dumps({"data": noise(4 * len(names), 3072, seed=number), **labels})
    files[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: names})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for field in ("train_list", "test_list"):
        sums = [[file, md5(files[file])] for file, _ in getattr(kind, field)]
        monkeypatch.setattr(kind, field, sums)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(files[kind.meta["filename"]])})
    monkeypatch.setattr(kind, "tgz_md5", md5(out.getvalue()))
    return out.getvalue()


class Shelf(dict):
    """Files that the server gives out: path -> bytes; ``asked`` holds the paths asked for.

    A file in ``cut`` breaks off half-way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.cut: set[str] = set()
        self.url = ""


@contextlib.contextmanager
def serving() -> Iterator[Shelf]:
    """Serve a :class:`Shelf` on a free port of this machine."""
    shelf = Shelf()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shelf.asked.append(self.path)
            data = shelf.get(self.path)
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if self.path in shelf.cut else data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    shelf.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield shelf
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def publish(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, zipped: bytes | None = None) -> None:
    """Put all official archives on the shelf, in small, and point the loaders there."""
    for kind in (CIFAR10, CIFAR100):
        shelf[f"/{kind.filename}"] = cifar_archive(kind, monkeypatch)
        monkeypatch.setattr(kind, "url", f"{shelf.url}/{kind.filename}")
    shelf["/tiny-imagenet-200.zip"] = zipped = zipped or tiny_imagenet_zip()
    there = {"url": f"{shelf.url}/tiny-imagenet-200.zip", "md5": md5(zipped)}
    monkeypatch.setattr(sources, "TINY_IMAGENET", {**sources.TINY_IMAGENET, **there})
