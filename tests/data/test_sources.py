import socket
import threading
from pathlib import Path
from shutil import rmtree

import numpy as np
import platformdirs
import pytest
import torch
from made_pictures import (
    load,
    make_folder,
    noise,
    publish,
    refused,
    save,
    serving,
    tiny_imagenet_zip,
)
from PIL import Image

from proxyhpo.data import sources
from proxyhpo.data.datasets import load_dataset

OFFICIAL = ("cifar10", "cifar100", "tinyimagenet")


@pytest.fixture
def shelf(monkeypatch):
    with serving() as shelf:
        publish(shelf, monkeypatch)
        yield shelf


# ------------------------------------------------------------------------------ official archives


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_archive_is_downloaded_once(name, shelf, tmp_path):
    first = load_dataset(name, data_dir=tmp_path, val=0.25)
    asked = len(shelf.asked)
    assert asked
    second = load_dataset(name, data_dir=tmp_path, val=0.25)
    assert len(shelf.asked) == asked
    assert torch.equal(first.test.images, second.test.images)
    assert torch.equal(first.train.images, second.train.images)
    assert first.report() == second.report()
    assert "official" in first.report()["source"]


def test_cifar_pictures_are_those_of_the_binary_files(shelf, tmp_path):
    data = load_dataset("cifar10", data_dir=tmp_path, val=0)
    assert data.classes == tuple(f"kind {n}" for n in range(10))
    planes = np.concatenate([noise(40, 3072, seed=n) for n in range(5)])
    expected = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(data.train.images, expected)
    assert data.train.labels.tolist() == [*range(10)] * 20
    assert len(data.test) == 40


def test_tiny_imagenet_arranges_its_validation_pictures_by_the_annotations(shelf, tmp_path):
    data = load_dataset("tinyimagenet", data_dir=tmp_path, val=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 4)
    assert data.classes == ("n01", "n02")
    assert data.augmentation.crop == 8
    val = tmp_path / "tiny-imagenet-200" / "val"
    assert sorted(path.name for path in val.iterdir()) == ["images", "val_annotations.txt"]
    # n02's pictures come first by name (val_14, val_15), and still are the second class's
    with Image.open(val / "images" / "val_14.JPEG") as image:
        first = torch.from_numpy(np.array(image))
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(data.test.images[2], first)
    assert "a part of the official set" in data.report()["source"]


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_archive_put_there_by_hand_needs_no_network(name, shelf, tmp_path):
    for path, content in shelf.items():
        (tmp_path / path[1:]).write_bytes(content)
    assert len(load_dataset(name, data_dir=tmp_path, val=0.25).test) >= 4
    assert not shelf.asked


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_interrupted_download_is_taken_up_again(name, shelf, tmp_path):
    shelf.cut.update(shelf)
    assert str(tmp_path) in refused(lambda: load_dataset(name, data_dir=tmp_path))
    shelf.cut.clear()
    assert len(load_dataset(name, data_dir=tmp_path, val=0.25).test) >= 4


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_wrong_checksum_is_refused(name, shelf, tmp_path):
    for path, content in shelf.items():
        shelf[path] = content[:-1] + b"x"
    assert "corrupted" in refused(lambda: load_dataset(name, data_dir=tmp_path))


@pytest.mark.parametrize("name", OFFICIAL)
def test_without_network_one_line_says_what_to_do(name, monkeypatch, tmp_path):
    with serving() as shelf:
        publish(shelf, monkeypatch)
    # the server is gone: nothing listens there any more
    message = refused(lambda: load_dataset(name, data_dir=tmp_path))
    wanted = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
    for part in (name, str(tmp_path), wanted.get(name, "tiny-imagenet-200.zip"), "'digits'"):
        assert part in message


def test_a_server_that_never_answers_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # were it not given up, closing the server would end the wait, with another message
        rescue = threading.Timer(10, silent.close)
        rescue.start()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/tiny-imagenet-200.zip"
        monkeypatch.setitem(sources.TINY_IMAGENET, "url", url)
        assert "timed out" in refused(lambda: load_dataset("tinyimagenet", data_dir=tmp_path))
    rescue.cancel()
    assert socket.getdefaulttimeout() is None


def test_an_interrupted_unpacking_counts_for_nothing(shelf, tmp_path):
    left = tmp_path / ".unpacking-tiny-imagenet-200" / "tiny-imagenet-200" / "train" / "n01"
    left.mkdir(parents=True)
    (left / "half.JPEG").write_bytes(b"half")
    data = load_dataset("tinyimagenet", data_dir=tmp_path, val=0.25)
    assert len(data.train) == 6
    assert not list(tmp_path.glob(".unpacking*"))
    assert not list(tmp_path.rglob("half.JPEG"))


def test_half_unpacked_cifar_is_unpacked_again(shelf, tmp_path):
    whole = load_dataset("cifar10", data_dir=tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:100])
    again = load_dataset("cifar10", data_dir=tmp_path)
    assert torch.equal(whole.train.images, again.train.images)


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        ("'../outside.txt'", lambda: tiny_imagenet_zip("../outside.txt")),
        ("200/../../outside", lambda: tiny_imagenet_zip("tiny-imagenet-200/../../outside.txt")),
        ("holds no folder tiny-imagenet-200/", lambda: tiny_imagenet_zip().replace(b"200", b"999")),
    ],
)
def test_a_zip_that_leads_out_of_its_folder_or_lacks_it_is_refused(
    words, spoil, monkeypatch, tmp_path
):
    root = tmp_path / "data"
    root.mkdir()
    with serving() as shelf:
        publish(shelf, monkeypatch, spoil())
        assert words in refused(lambda: load_dataset("tinyimagenet", data_dir=root))
    assert not list(tmp_path.rglob("outside.txt"))
    assert not (root / "tiny-imagenet-200").exists()


def test_pictures_of_cifar_serve_where_the_binary_files_are_missing(shelf, tmp_path):
    make_folder(tmp_path / "cifar10", classes="abc")
    data = load_dataset("cifar10", data_dir=tmp_path)
    assert data.classes == ("a", "b", "c")
    origin = "folder of images cifar10/ (train, test), not the official binary files of cifar10"
    assert data.report()["source"] == origin
    assert not shelf.asked
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(shelf["/cifar-10-python.tar.gz"])
    (tmp_path / "cifar10").rename(tmp_path / "elsewhere")
    official = load_dataset("cifar10", data_dir=tmp_path).source.origin
    assert official.startswith("official binary files")


def test_where_data_are_kept(monkeypatch, tmp_path):
    for name in ("variable", "given"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PROXYHPO_DATA", str(tmp_path / "variable"))
    assert sources.data_folder(tmp_path / "given") == tmp_path / "given"
    assert sources.data_folder() == tmp_path / "variable"
    monkeypatch.delenv("PROXYHPO_DATA")
    assert sources.data_folder() == platformdirs.user_cache_path("proxyhpo", False).resolve()


def test_a_data_folder_that_was_asked_for_is_never_created(monkeypatch, shelf, tmp_path):
    missing = tmp_path / "mistyped"
    message = refused(lambda: load_dataset("cifar10", data_dir=missing))
    assert f"data_dir {missing}: no such folder" in message
    monkeypatch.setenv("PROXYHPO_DATA", str(missing))
    assert f"PROXYHPO_DATA {missing}" in refused(lambda: load_dataset("digits"))
    assert not missing.exists()
    assert not shelf.asked
    # the default may be created
    monkeypatch.delenv("PROXYHPO_DATA")
    monkeypatch.setattr(sources, "user_cache_path", lambda *_, **__: tmp_path / "new" / "cache")
    assert len(load_dataset("tinyimagenet", val=0.25).test) == 4


# ------------------------------------------------------------------------------ folders of images


def test_a_folder_is_read_as_it_lies(tmp_path):
    data = load(make_folder(tmp_path / "own"))
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 20)
    assert data.classes == ("a", "b")
    # test pictures in the order of their names, 0.png to 9.png, class after class
    expected = np.stack([noise(8, 8, 3, seed=1000 * k + n) for k in (2, 3) for n in range(10)])
    np.testing.assert_array_equal(data.test.images, expected)
    assert data.test.labels.tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize(
    ("parts", "sizes"), [(("train", "val", "test"), (40, 40, 40)), (("train",), (24 + 2, 6, 8))]
)
def test_splits_of_the_folder_are_kept_and_missing_ones_cut(parts, sizes, tmp_path):
    data = load(make_folder(tmp_path / "own", parts, each=20))
    assert (len(data.train), len(data.val), len(data.test)) == sizes


def test_links_are_followed_to_files_inside_the_folder_only(tmp_path):
    root = make_folder(tmp_path / "own", each=20)
    secret = save(tmp_path / "secret" / "x.png", noise(8, 8, 3, seed=99))
    (root / "train" / "a" / "inside.png").symlink_to(root / "test" / "a" / "0.png")
    (root / "train" / "b" / "outside.png").symlink_to(secret)
    (root / "train" / "b" / "up").symlink_to(root / "train")
    with (
        pytest.warns(UserWarning, match="held-out pictures are training pictures"),
        pytest.warns(UserWarning, match="2 of 83 files"),
    ):
        data = load(root, unreadable=0.05, val=0)
    assert len(data.train) == 41
    named = " ".join(data.report()["unreadable"])
    assert "outside.png" in named
    assert "up: a link to a folder" in named
    assert not (data.train.images == torch.from_numpy(noise(8, 8, 3, seed=99))).all((1, 2, 3)).any()


@pytest.mark.parametrize("target", ["../../secret", "../train", "../test/b"])
def test_a_class_that_is_a_link_to_a_folder_is_refused(target, tmp_path):
    root = make_folder(tmp_path / "own")
    save(tmp_path / "secret" / "x.png", noise(8, 8, 3, seed=99))
    (root / "train" / "c").symlink_to(target)
    assert "class 'c' has no picture in train" in refused(lambda: load(root))


def test_links_to_themselves_that_are_no_pictures_are_passed_over(tmp_path):
    root = make_folder(tmp_path / "own")
    for place in (root / "circle", root / "train" / "circle", root / "train" / "a" / "circle"):
        place.symlink_to(place)
    data = load(root, val=0)
    assert len(data.train) == 20
    assert data.classes == ("a", "b")
    assert not data.report()["unreadable"]


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "link").symlink_to(make_folder(tmp_path / "own"))
    assert len(load(tmp_path / "link").test) == 20


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "train" / "c").mkdir(), "class 'c' has no picture in train"),
        (lambda root: rmtree(root / "test" / "b"), "class 'b' has no picture in test"),
        (lambda root: make_folder(root, ("test",), "d"), "class 'd' is in test but not in train"),
        (lambda root: [rmtree(root / p / "b") for p in ("train", "test")], "one class only"),
        (lambda root: rmtree(root / "train"), "holds no folder train/"),
    ],
)
def test_classes_that_are_empty_missing_or_alone_are_errors(spoil, words, tmp_path):
    root = make_folder(tmp_path / "own")
    spoil(root)
    assert words in refused(lambda: load(root))


def test_a_class_whose_pictures_are_all_broken_is_an_error(tmp_path):
    root = make_folder(tmp_path / "own", each=3)
    for path in (root / "test" / "b").iterdir():
        path.write_bytes(b"broken")
    with pytest.warns(UserWarning, match="3 of 12 files"):
        message = refused(lambda: load(root, unreadable=1.0, val=0))
    assert "class 'b' has no picture in test" in message


def test_few_duplicates_are_reported_and_many_are_a_warning(tmp_path):
    root = make_folder(tmp_path / "own")
    twin = root / "test" / "b" / "twin.png"
    twin.write_bytes((root / "train" / "a" / "4.png").read_bytes())
    with pytest.warns(UserWarning, match="1 of 21 held-out pictures") as warned:
        data = load(root)
    pair = f"{Path('test/b/twin.png')} = {Path('train/a/4.png')}"
    assert pair in str(warned[0].message)
    assert data.report()["duplicates across splits"] == [pair]
    (root / "train" / "a" / "twin.png").write_bytes(twin.read_bytes())
    with pytest.warns(UserWarning, match="1 of 21"):  # one of the two is validated on, by the seed
        found = [load(root, val=0.5, seed=seed).report() for seed in range(4)]
    cut = {tuple(one["duplicates across splits"][1:]) for one in found}
    assert ("picture 10 = picture 4",) in cut
