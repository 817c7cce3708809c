import os
from pathlib import Path

import pytest
import torch
from made_pictures import load, make_folder, noise, save

from proxyhpo.data.datasets import load_dataset

OLD = torch.from_numpy(noise(8, 8, 3))  # the first picture of a folder
NEW = torch.from_numpy(noise(8, 8, 3, seed=77))


def cache_of(root: Path) -> Path:
    (home,) = (path for path in (root.parent / "data" / "cache").iterdir() if path.is_dir())
    return home


def test_decoded_pictures_are_kept(tmp_path):
    root = make_folder(tmp_path / "own")
    first = load(root)
    for path in root.rglob("*.png"):  # the same size and time, so taken to be unchanged
        state = path.stat()
        path.write_bytes(bytes(state.st_size))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    second = load(root)
    assert torch.equal(first.train.images, second.train.images)
    assert first.report() == second.report()


def test_loaded_pictures_and_their_cache_leave_each_other_alone(tmp_path):
    root = make_folder(tmp_path / "own")
    for _ in range(2):
        data = load(root, val=0)
        assert torch.equal(data.train.images[0], OLD)
        data.train.images.zero_()
    kept = load(root, val=0)  # mapped from the cache, and not read yet
    save(root / "train" / "a" / "0.png", NEW.numpy())
    changed = load(root, val=0)
    assert torch.equal(kept.train.images[0], OLD)
    assert torch.equal(changed.train.images[0], NEW)
    assert kept.mean != changed.mean


@pytest.mark.parametrize(
    ("change", "count", "places"),
    [
        (lambda train: save(train / "0.png", NEW.numpy()), 20, ([], [0])),
        (lambda train: save(train / "new.png", NEW.numpy()), 21, ([0], [10])),
        (lambda train: (train / "0.png").unlink(), 19, ([], [])),
        (lambda train: (train / "0.png").rename(train / "z.png"), 20, ([9], [])),
    ],
)
def test_a_changed_folder_is_decoded_anew(change, count, places, tmp_path):
    root = make_folder(tmp_path / "own")
    load(root)
    change(root / "train" / "a")
    data = load(root, val=0)
    assert len(data.train) == count
    for picture, found in zip((OLD, NEW), places, strict=True):
        same = (data.train.images == picture).flatten(1).all(1)
        assert same.nonzero().flatten().tolist() == found
    cache_of(root)  # still one: what is outdated doesn't pile up


@pytest.mark.parametrize("file", ["train.npy", "about.json"])
@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "zeros", "missing"])
def test_a_damaged_cache_is_built_anew(file, damage, tmp_path):
    root = make_folder(tmp_path / "own")
    first = load(root)
    path = cache_of(root) / file
    content = path.read_bytes()
    middle = len(content) // 2
    spoilt = {
        "byte": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "cut": content[:middle],
        "empty": b"",
        "zeros": bytes(len(content)),
    }
    path.unlink()
    if damage != "missing":
        path.write_bytes(spoilt[damage])
    second = load(root)
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.train.labels, second.train.labels)
    assert first.report() == second.report()
    if file == "train.npy":
        assert path.read_bytes() == content


def test_the_cache_of_another_source_is_built_anew(tmp_path):
    one, other = (make_folder(tmp_path / name, classes=name) for name in ("ab", "cd"))
    load(one)
    foreign = cache_of(one).rename(tmp_path / "foreign")
    load(other)
    for path in foreign.iterdir():
        path.replace(cache_of(other) / path.name)
    assert load(other).classes == ("c", "d")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    root = make_folder(tmp_path / "own")
    first = load(root)
    full = tmp_path / "full"
    full.mkdir()
    (full / "cache").write_text("a file where a folder is wanted")
    with pytest.warns(UserWarning, match="can't be kept"):
        second = load_dataset(f"imagefolder:{root}", data_dir=full, val=0.2)
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.val.images, second.val.images)


def test_each_side_has_a_cache_of_its_own(tmp_path):
    root = make_folder(tmp_path / "own")
    assert [load(root, resolution=side).side for side in (4, 16, None, 4)] == [4, 16, 8, 4]
