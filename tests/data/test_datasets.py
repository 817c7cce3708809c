import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import publish, refused, seeded, serving
from PIL import Image

import proxyhpo
from proxyhpo.config import InputError
from proxyhpo.data.datasets import DATASETS, Augmentation, Feed, load_dataset, stratified
from proxyhpo.data.pictures import make_source


def numbered(sizes: dict[str, list[int]]):
    """Return a loader of pictures that hold their own number, with so many of each class."""

    def load(root, side=None):
        parts, start = {}, 0
        for part, counts in sizes.items():
            labels = np.random.default_rng(0).permutation(np.repeat(range(len(counts)), counts))
            numbers = np.arange(start, start + len(labels), dtype=np.uint32)
            pixels = numbers.view(np.uint8).reshape(-1, 2, 2, 1)
            parts[part] = (pixels, labels, [f"{part} {n}" for n in numbers])
            start += len(labels)
        return make_source(parts, [f"class {n}" for n in range(len(counts))], "numbered")

    return load


def numbers(split) -> list[int]:
    return split.images.numpy().reshape(-1, 4).view(np.uint32).ravel().tolist()


# ------------------------------------------------------------------------------ the whole registry


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A data folder into which small official archives were downloaded."""
    root = tmp_path_factory.mktemp("official")
    with pytest.MonkeyPatch.context() as patch, serving() as shelf:
        publish(shelf, patch)
        for name in DATASETS:
            load_dataset(name, data_dir=root, val=0.25)
        yield root


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_keeps_the_contract(name, official):
    data = proxyhpo.load_dataset(name, data_dir=official, val=0.25)
    assert data.name == name
    assert data.channels in (1, 3)
    assert len(data.mean) == len(data.std) == data.channels
    assert all(0 < value < 1 for value in (*data.mean, *data.std))
    assert all(isinstance(label, str) for label in data.classes)
    for split in (data.train, data.val, data.test):
        assert split.images.dtype == torch.uint8
        assert split.images.shape == (len(split), data.side, data.side, data.channels)
        assert split.labels.unique().tolist() == [*range(len(data.classes))]
    assert data.train.pixels is data.val.pixels  # one block, of which no copy is made
    assert data.augmentation == Augmentation(max(1, data.side // 8), flip=name != "digits")
    report = json.loads(json.dumps(data.report()))
    assert report["train"] == len(data.train)
    assert report["source"]
    feed = Feed(data.train, mean=data.mean, std=data.std, batch_size=len(data.train))
    images, _ = next(feed.epoch())
    assert images.mean((0, 2, 3)).abs().max() < 1e-3
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-2


# ------------------------------------------------------------------------------------------ digits


def test_digits_are_the_scans_of_scikit_learn():
    from sklearn.datasets import load_digits

    scans = load_digits()
    data = load_dataset("digits", val=0)
    assert (len(data.train), len(data.val), len(data.test)) == (1438, 0, 359)
    assert data.classes == tuple("0123456789")
    known = {scan.tobytes(): digit for scan, digit in zip(scans.images, scans.target, strict=True)}
    for split in (data.train, data.test):
        original = (split.images[..., 0].double() * 16 / 255).round().numpy()
        assert [known[scan.tobytes()] for scan in original] == split.labels.tolist()


def test_the_test_split_is_the_same_for_all_seeds_and_subsets():
    first = load_dataset("digits")
    for options in ({"seed": 1}, {"subset": 20}, {"subset": 0.5, "seed": 3}, {"val": 0.3}):
        other = load_dataset("digits", **options)
        assert torch.equal(first.test.images, other.test.images)
        assert torch.equal(first.test.labels, other.test.labels)
    assert not torch.equal(first.val.images, load_dataset("digits", seed=1).val.images)


def test_a_number_a_class_or_a_share_of_the_pictures():
    data = load_dataset("digits", subset=50, test_subset=5)
    assert len(data.train) == 450
    assert torch.bincount(data.train.labels).tolist() == [45] * 10
    assert torch.bincount(data.val.labels).tolist() == [5] * 10
    assert torch.bincount(data.test.labels).tolist() == [5] * 10
    half = load_dataset("digits", subset=0.5, val=0)
    assert len(half.train) == pytest.approx(1438 / 2, abs=5)


def test_chosen_classes_are_numbered_as_chosen():
    first = load_dataset("digits", classes=3)
    assert first.classes == ("0", "1", "2")
    assert first.test.labels.unique().tolist() == [0, 1, 2]
    named = load_dataset("digits", classes=["7", "1"])
    assert named.classes == ("7", "1")
    every = load_dataset("digits", val=0)
    ones = load_dataset("digits", classes=["7", "1"], val=0)
    total = sum((split.labels == 1).sum() for split in (every.train, every.test))
    assert sum((split.labels == 1).sum() for split in (ones.train, ones.test)) == total
    assert len(named.train) + len(named.val) == len(ones.train)


def test_other_resolutions():
    data, large = load_dataset("digits"), load_dataset("digits", resolution=16)
    for small in (load_dataset("digits", resolution=4), data.resized(4)):
        for part in ("train", "val", "test"):
            assert torch.equal(getattr(small, part).images, getattr(data, part).resize(4).images)
        assert small.mean == pytest.approx(data.mean, abs=2e-3)
        assert small.std < data.std
    assert large.augmentation == Augmentation(2, flip=False)
    assert large.resized(8).augmentation == Augmentation(1, flip=False)


def test_a_thinner_data_set():
    data = load_dataset("digits")
    few = data.with_train(data.train.take(torch.arange(100)))
    assert len(few.train) == 100
    assert few.mean != data.mean
    assert few.test is data.test


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digit", {}, "unknown dataset 'digit': did you mean 'digits'?"),
        ("mnist", {}, "imagefolder:PATH"),
        ("imagefolder:", {}, "imagefolder:PATH"),
        ("imagefolder:/nowhere/at/all", {}, "/nowhere/at/all holds no folder train/"),
        ("digits", {"subset": 0}, "subset 0"),
        ("digits", {"subset": 1.5}, "subset 1.5"),
        ("digits", {"subset": True}, "subset True"),
        ("digits", {"subset": "many"}, "subset 'many'"),
        ("digits", {"subset": float("nan")}, "subset nan"),
        ("digits", {"subset": 150}, "class '0' has 142 pictures: too few to take 150"),
        ("digits", {"test_subset": -1}, "test_subset -1"),
        ("digits", {"test_subset": 100}, "too few to take 100"),
        ("digits", {"subset": 1}, "too few to take 1 and leave 1"),
        ("digits", {"val": 1}, "val 1"),
        ("digits", {"val": -0.1}, "val -0.1"),
        ("digits", {"resolution": 0}, "resolution 0"),
        ("digits", {"resolution": 7.5}, "resolution 7.5"),
        ("digits", {"seed": -1}, "seed -1"),
        ("digits", {"unreadable": 2}, "unreadable 2"),
        ("digits", {"classes": 1}, "classes 1: from 2 to the 10"),
        ("digits", {"classes": 11}, "classes 11"),
        ("digits", {"classes": ["1", "eleven"]}, "unknown class 'eleven'"),
        ("digits", {"classes": ["1", "1"]}, "2 different names"),
        ("digits", {"classes": "12"}, "classes '12'"),
    ],
)
def test_bad_input_is_one_line(name, options, words):
    assert words in refused(lambda: load_dataset(name, **options))


# --------------------------------------------------------------------------------------- splitting

COUNTS = st.lists(st.integers(2, 30), min_size=2, max_size=5)


@settings(max_examples=80, deadline=None)
@given(COUNTS, st.floats(0.01, 0.99), st.integers(0, 3), st.booleans(), st.booleans())
def test_splits_are_disjoint_exhaustive_and_stratified(counts, val, seed, has_test, has_val):
    sizes = {"train": [count + 3 for count in counts]}
    sizes |= {"test": counts} if has_test else {}
    sizes |= {"val": counts} if has_val else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "numbered", numbered(sizes))
        data = load_dataset("numbered", val=val, seed=seed)
        again = load_dataset("numbered", val=val, seed=seed)
        other = load_dataset("numbered", val=val, seed=seed + 1)
    parts = [numbers(split) for split in (data.train, data.val, data.test)]
    everything = [number for part in parts for number in part]
    assert sorted(everything) == list(range(sum(map(sum, sizes.values()))))
    assert numbers(data.train) == numbers(again.train)
    assert numbers(data.val) == numbers(again.val)
    assert numbers(data.test) == numbers(other.test)

    def close(split, share, whole):
        for got, count in zip(torch.bincount(split.labels).tolist(), whole, strict=True):
            assert abs(got - share * count) < 1
            assert got >= 1

    rest = sizes["train"]
    if not has_test:
        close(data.test, 0.2, rest)
        taken = torch.bincount(data.test.labels).tolist()
        rest = [count - gone for count, gone in zip(rest, taken, strict=True)]
    if not has_val:
        close(data.val, val, rest)
    loaded = numbered(sizes)(None)
    labels = torch.cat([split.labels for split in loaded.parts.values()]).tolist()
    for split in (data.train, data.val, data.test):
        assert [labels[number] for number in numbers(split)] == split.labels.tolist()


@settings(max_examples=80, deadline=None)
@given(COUNTS, st.integers(0, 5), st.data())
def test_a_smaller_draw_lies_within_a_larger_one(counts, seed, data):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=seeded(seed))]
    share = st.floats(0.01, 1)
    fewer, more = sorted(data.draw(st.tuples(share, share)))
    small, large = (stratified(labels, s, seeded(seed)) for s in (fewer, more))
    assert set(small.tolist()) <= set(large.tolist())
    assert large.tolist() == sorted(set(large.tolist()))
    each = data.draw(st.integers(1, min(counts)))
    exact = stratified(labels, each, seeded(seed))
    assert torch.bincount(labels[exact]).tolist() == [each] * len(counts)
    with pytest.raises(InputError, match="too few"):
        stratified(labels, min(counts), seeded(seed), spare=1)


# ------------------------------------------------------------------- real pictures, where there are

ARCHIVES = Path(__file__).resolve().parents[3] / "shared" / "data"
PAIR = ("n03404251", "n03770439")  # the first's val_5819 is the second's n03770439_128


def unpack(archive: str, root: Path, wanted: Callable[[str, int], bool]) -> Counter[str]:
    """Unpack the files ``wanted`` by folder and number; return each folder's number of files."""
    path = Path(os.environ.get("PROXYHPO_TEST_ARCHIVES", ARCHIVES)) / archive
    if not path.is_file():
        pytest.skip(f"{path} is not there: set PROXYHPO_TEST_ARCHIVES to the archives' folder")
    seen: Counter[str] = Counter()
    with tarfile.open(path, "r|gz") as packed:
        for member in packed:
            folder = member.name.rpartition("/")[0]
            seen[folder] += member.isfile()
            if member.isfile() and wanted(folder, seen[folder]):
                packed.extract(member, root, filter="data")
    return seen


@pytest.mark.parametrize(
    ("name", "each", "classes", "mean"),
    [
        ("cifar10", [2500, 1000], (10, "airplane", "truck"), (0.491, 0.482, 0.447)),
        ("cifar100", [500, 100], (20, "apple", "cattle"), (0.507, 0.487, 0.441)),
    ],
)
def test_real_cifar(name, each, classes, mean, tmp_path):
    seen = unpack(f"{name}.tar.gz", tmp_path, lambda _, number: number <= 10)
    count, first, last = classes
    data = load_dataset(name, data_dir=tmp_path, classes=count, val=0.1)
    assert (data.classes[0], data.classes[-1]) == (first, last)
    assert [seen[f"{name}/{part}/{last}"] for part in ("train", "test")] == each
    assert (len(data.train), len(data.val), len(data.test)) == (9 * count, count, 10 * count)
    assert data.mean == pytest.approx(mean, abs=0.06)
    for row, file in enumerate(sorted((tmp_path / name / "test" / last).iterdir()), -10):
        with Image.open(file) as image:
            np.testing.assert_array_equal(data.test.images[row], np.array(image))
        assert data.test.labels[row] == count - 1


def test_real_tiny_imagenet(tmp_path):
    def wanted(folder: str, _: int) -> bool:
        return "/train/" not in folder or any(wnid in folder for wnid in PAIR)

    unpack("tiny-imagenet-200-subset.tar.gz", tmp_path, wanted)
    val = tmp_path / "tiny-imagenet-200" / "val"
    lines = [line.split("\t") for line in (val / "val_annotations.txt").read_text().splitlines()]
    lines = [line for line in lines if line[1] in PAIR]
    (val / "val_annotations.txt").write_text("\n".join(map("\t".join, lines)))
    with pytest.warns(UserWarning, match=r"1 of 60 held-out .*val_5819.* = .*n03770439_128"):
        data = load_dataset("tinyimagenet", data_dir=tmp_path, val=0)
    assert (data.classes, data.side, data.channels) == (PAIR, 64, 3)
    assert torch.bincount(data.train.labels).tolist() == [250] * 2
    assert torch.bincount(data.test.labels).tolist() == [30] * 2
    second = [line[0] for line in lines if line[1] == PAIR[1]]
    with Image.open(val / "images" / second[7]) as image:
        np.testing.assert_array_equal(data.test.images[37], np.array(image.convert("RGB")))
