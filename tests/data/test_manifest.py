import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_pictures import make_folder, publish, refused, save, serving
from PIL import Image

from proxyhpo.data.datasets import DATASETS, Dataset
from proxyhpo.data.manifest import load_pictures, make_manifest


@pytest.fixture
def cifar(tmp_path):
    """A data folder of 3 classes of CIFAR-10 in small: 12 training and 12 test pictures each."""
    make_folder(tmp_path / "one" / "cifar10", classes=("cat", "dog", "frog"), each=12)
    return tmp_path / "one"


def drawn(root: Path, **options: object) -> dict:
    wanted = {"classes": 3, "train": 6, "val": 2, "data_dir": root, **options}
    return json.loads(json.dumps(make_manifest("cifar10", **wanted)))


def pictures_of(manifest: dict, root: Path, samples: int = 18, side: int = 8) -> Dataset:
    return load_pictures(manifest, samples=samples, side=side, data_dir=root)


def test_a_manifest_names_disjoint_pictures_of_each_class(cifar):
    manifest = drawn(cifar, classes=2, test=3)
    assert manifest["classes"] == ["cat", "dog"]
    assert manifest == drawn(cifar, classes=2, test=3)
    data = pictures_of(manifest, cifar, samples=12)
    assert (len(data.train), len(data.val), len(data.test)) == (12, 4, 6)
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6
    shown = torch.cat([split.images for split in (data.train, data.val, data.test)])
    assert len({picture.tobytes() for picture in shown.numpy()}) == 22
    cats = [np.array(Image.open(path)) for path in (cifar / "cifar10/test/cat").iterdir()]
    assert all((data.test.images[n].numpy() == cats).all((1, 2, 3)).any() for n in range(3))


def test_fewer_samples_are_the_first_of_more_and_pictures_are_resized(cifar):
    manifest = drawn(cifar)
    more, fewer = (pictures_of(manifest, cifar, samples, side=4) for samples in (18, 6))
    assert (more.side, more.augmentation.crop) == (4, 1)
    assert torch.equal(fewer.train.images, more.train.images[[0, 1, 6, 7, 12, 13]])
    assert torch.equal(fewer.val.images, more.val.images)
    assert fewer.mean != more.mean


def test_the_same_pictures_are_found_whatever_their_files_are_called(cifar, tmp_path):
    manifest = drawn(cifar)
    for path in cifar.rglob("*.png"):  # other names, in another order, of another format
        copy = tmp_path / "other" / path.relative_to(cifar)
        copy = copy.with_name(f"{99 - int(path.stem)}.bmp")
        save(copy, np.array(Image.open(path)))
    one, other = (pictures_of(manifest, root) for root in (cifar, tmp_path / "other"))
    for ours, theirs in ((one.train, other.train), (one.val, other.val), (one.test, other.test)):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def test_a_copy_with_a_changed_pixel_is_refused(cifar, tmp_path):
    manifest = drawn(cifar)
    shutil.copytree(cifar, tmp_path / "other")
    path = tmp_path / "other/cifar10/test/dog/0.png"
    pixels = np.array(Image.open(path))
    pixels[3, 3, 0] ^= 1
    save(path, pixels)
    message = refused(lambda: pictures_of(manifest, tmp_path / "other"))
    assert "1 of 12 test pictures of class 'dog' aren't in this copy of the data" in message


def test_digits_have_no_test_split_of_their_own():
    manifest = make_manifest("digits", classes=10, train=60, val=20, test=20)
    data = load_pictures(manifest, samples=600, side=8)
    assert (len(data.train), len(data.val), len(data.test)) == (600, 200, 200)
    shown = torch.cat([split.images for split in (data.train, data.val, data.test)])
    assert len({picture.tobytes() for picture in shown.numpy()}) == 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": 11}, "class 'cat' has 12 pictures that differ to train and validate on"),
        ({"test": 13}, "and 12 to test on"),
        ({"val": 0}, "val 0"),
        ({"train": 2.0}, "train 2.0"),
        ({"classes": 4}, "classes 4: from 2 to the 3"),
    ],
)
def test_what_can_not_be_drawn_is_refused(options, words, cifar):
    assert words in refused(lambda: drawn(cifar, **options))


def test_what_a_manifest_does_not_hold_is_refused(cifar):
    manifest = drawn(cifar)
    for samples in (0, 7, 21):
        message = refused(partial(pictures_of, manifest, cifar, samples))
        assert f"samples {samples}: a multiple of the 3 classes, at most 18" in message
    shutil.rmtree(cifar / "cifar10/train/frog")
    shutil.rmtree(cifar / "cifar10/test/frog")
    assert "unknown class 'frog'" in refused(lambda: pictures_of(manifest, cifar))


def test_the_documented_way_selects_the_same_pictures_from_the_official_files(
    tmp_path, monkeypatch
):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (tmp_path / "results/curves").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with serving() as shelf:
        publish(shelf, monkeypatch)
        manifest = make_manifest("cifar10", classes=10, train=6, val=3, data_dir="data")
        Path("results/curves/cifar10.pictures.json").write_text(json.dumps(manifest))
        names: dict[str, Any] = {}
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(block, names)
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(names[part], getattr(names["data"], part).images)


def test_recorded_manifests_are_whole():
    recorded = Path(__file__).parents[2].glob("results/curves/*.pictures.json")
    for manifest in (json.loads(path.read_text(encoding="utf-8")) for path in recorded):
        assert manifest["dataset"] in DATASETS
        for own in manifest["classes"]:
            parts = [manifest[part][own].split() for part in ("train", "val", "test")]
            assert {len(digest) for part in parts for digest in part} == {12}
            train, val, test = map(set, parts)
            assert [len(train), len(val), len(test)] == [len(part) for part in parts]
            assert not train & val
            # CIFAR-100, as published, has a few test pictures among those of training
            assert len(test & (train | val)) <= (4 if manifest["dataset"] == "cifar100" else 0)
