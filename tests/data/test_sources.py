import os
import socket
import threading
import warnings
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from made_pictures import make_folder, noise, publish, save, serving, tiny_imagenet_zip
from PIL import Image

from proxyhpo.config import InputError
from proxyhpo.data import pictures, sources
from proxyhpo.data.datasets import load_dataset, moments

OFFICIAL = ("cifar10", "cifar100", "tinyimagenet")


@pytest.fixture
def shelf(monkeypatch):
    with serving() as shelf:
        publish(shelf, monkeypatch)
        yield shelf


def load(folder: Path, **options: object):
    """Load a folder of images, its cache beside it."""
    return load_dataset(
        f"imagefolder:{folder}", data_dir=folder.parent / "data", **{"val": 0.2, **options}
    )


def told(call) -> str:
    """Return the message of the InputError that ``call()`` raises, which is one line."""
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


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
    message = told(lambda: load_dataset(name, data_dir=tmp_path))
    assert str(tmp_path) in message
    shelf.cut.clear()
    assert len(load_dataset(name, data_dir=tmp_path, val=0.25).test) >= 4


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_wrong_checksum_is_refused(name, shelf, tmp_path):
    for path, content in shelf.items():
        shelf[path] = content[:-1] + b"x"
    assert "corrupted" in told(lambda: load_dataset(name, data_dir=tmp_path))


@pytest.mark.parametrize("name", OFFICIAL)
def test_without_network_one_line_says_what_to_do(name, monkeypatch, tmp_path):
    with serving() as shelf:
        publish(shelf, monkeypatch)
    # the server is gone: nothing listens there any more
    message = told(lambda: load_dataset(name, data_dir=tmp_path))
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
        archive = sources.Archive(url, "tiny-imagenet-200.zip", "0" * 32)
        monkeypatch.setattr(sources, "TINY_IMAGENET", archive)
        assert "timed out" in told(lambda: load_dataset("tinyimagenet", data_dir=tmp_path))
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


@pytest.mark.parametrize("member", ["../outside.txt", "tiny-imagenet-200/../../outside.txt"])
def test_a_zip_that_leads_out_of_its_folder_is_refused(member, monkeypatch, tmp_path):
    root = tmp_path / "data"
    with serving() as shelf:
        publish(shelf, monkeypatch, tiny_imagenet_zip({member: b"out"}))
        message = told(lambda: load_dataset("tinyimagenet", data_dir=root))
    assert member in message
    assert not list(tmp_path.rglob("outside.txt"))
    assert not (root / "tiny-imagenet-200").exists()


def test_a_zip_of_something_else_is_refused(monkeypatch, tmp_path):
    zipped = tiny_imagenet_zip().replace(b"tiny-imagenet-200", b"tiny-imagenet-999")
    with serving() as shelf:
        publish(shelf, monkeypatch, zipped)
        message = told(lambda: load_dataset("tinyimagenet", data_dir=tmp_path))
    assert "holds no folder tiny-imagenet-200/" in message


def test_pictures_of_cifar_serve_where_the_binary_files_are_missing(shelf, tmp_path):
    make_folder(tmp_path / "cifar10", classes="abc")
    data = load_dataset("cifar10", data_dir=tmp_path)
    assert data.classes == ("a", "b", "c")
    assert "not the official binary files" in data.report()["source"]
    assert not shelf.asked
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(shelf["/cifar-10-python.tar.gz"])
    (tmp_path / "cifar10").rename(tmp_path / "elsewhere")
    assert "official binary files" in load_dataset("cifar10", data_dir=tmp_path).source.origin


def test_where_data_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("PROXYHPO_DATA", str(tmp_path / "variable"))
    assert sources.data_folder(tmp_path / "given") == tmp_path / "given"
    assert sources.data_folder() == tmp_path / "variable"
    monkeypatch.delenv("PROXYHPO_DATA")
    assert sources.data_folder() == platformdirs.user_cache_path("proxyhpo", False).resolve()


# ------------------------------------------------------------------------------ folders of images


def test_a_folder_is_read_as_it_lies(tmp_path):
    data = load(make_folder(tmp_path / "own"))
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 20)
    assert data.classes == ("a", "b")
    # test pictures in the order of their names, 0.png to 9.png, class after class
    expected = np.stack([noise(8, 8, 3, seed=1000 * k + n) for k in (2, 3) for n in range(10)])
    np.testing.assert_array_equal(data.test.images, expected)
    assert data.test.labels.tolist() == [0] * 10 + [1] * 10


def test_splits_of_the_folder_are_kept_and_missing_ones_cut(tmp_path):
    both = load(make_folder(tmp_path / "both", ("train", "val", "test"), each=20))
    assert (len(both.train), len(both.val), len(both.test)) == (40, 40, 40)
    none = load(make_folder(tmp_path / "none", ("train",), each=20))
    assert (len(none.train), len(none.val), len(none.test)) == (24 + 2, 6, 8)
    other = load(tmp_path / "none", seed=5)
    assert torch.equal(none.test.images, other.test.images)
    assert not torch.equal(none.val.images, other.val.images)


def test_odd_files_are_read(tmp_path):
    root = make_folder(tmp_path / "odd", each=5)
    odd = root / "train" / "a"
    save(odd / "grey.png", noise(8, 8))
    save(odd / "rgba.png", noise(8, 8, 4))
    save(odd / "cmyk.jpg", noise(8, 8, 3), "CMYK")
    save(odd / "palette.png", noise(8, 8, 3), "P")
    save(odd / "see-through.png", noise(8, 8, 3), "P", transparency=bytes(256))
    save(odd / "still.gif", noise(8, 8, 3), "P")
    save(odd / "one bit.png", noise(8, 8), "1")
    save(odd / "sixteen.png", noise(8, 8).astype(np.uint16) << 8)
    save(odd / "größe 漢字 🐈.PNG", noise(8, 8, 3, seed=7))
    save(odd / " .jpeg", noise(8, 8, 3))
    save(odd / "deep" / "er" / "x.webp", noise(8, 8, 3), lossless=True)
    (odd / "notes.txt").write_text("passed over")
    save(odd / ".hidden.png", noise(8, 8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(root, val=0)
    assert len(data.train) == 11 + 10
    assert data.channels == 3
    stored = dict(zip(sorted_names(odd), data.train.images[:16].numpy(), strict=True))
    np.testing.assert_array_equal(stored["grey.png"], noise(8, 8)[..., None].repeat(3, 2))
    np.testing.assert_array_equal(stored["rgba.png"], noise(8, 8, 4)[..., :3])
    np.testing.assert_array_equal(stored["sixteen.png"], stored["grey.png"])
    np.testing.assert_array_equal(stored["größe 漢字 🐈.PNG"], noise(8, 8, 3, seed=7))
    # a JPEG of noise is far from its original, but not from another reading of the same file
    with Image.open(odd / "cmyk.jpg") as image:
        np.testing.assert_array_equal(stored["cmyk.jpg"], np.array(image.convert("RGB")))


def sorted_names(folder: Path) -> list[str]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return [p.name for p in sorted(files, key=str) if p.suffix != ".txt"]


def test_pictures_that_are_all_grey_have_one_channel(tmp_path):
    for part in ("train", "test"):
        for name in "ab":
            for n in range(4):
                save(tmp_path / "grey" / part / name / f"{n}.png", noise(8, 8, seed=n + ord(name)))
    with pytest.warns(UserWarning, match="training pictures too"):
        data = load(tmp_path / "grey", val=0)
    assert data.channels == 1
    np.testing.assert_array_equal(data.train.images[0, ..., 0], noise(8, 8, seed=ord("a")))


def test_mixed_sizes_need_a_side(tmp_path):
    root = make_folder(tmp_path / "mixed")
    wide = save(root / "train" / "a" / "wide.png", noise(16, 32, 3))
    message = told(lambda: load(root))
    assert "32 x 16 pixels" in message
    assert "resolution=" in message
    data = load(root, resolution=8, val=0)
    assert data.train.images.shape == (21, 8, 8, 3)
    # the middle square of 16 x 16, each pixel the mean of 2 x 2
    middle = noise(16, 32, 3)[:, 8:24].reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert wide.name == "wide.png"
    assert np.abs(data.train.images[10].numpy() - middle).max() <= 0.5


def test_the_orientation_of_a_photo_is_followed(tmp_path):
    upright = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to view
    path = save(tmp_path / "photo.png", upright, exif=exif)
    pixels, grey = pictures.decode(path)
    np.testing.assert_array_equal(pixels, np.rot90(upright, -1))
    assert not grey


def test_large_photos_are_reduced_by_area(tmp_path):
    smooth = np.linspace(0, 255, 640, dtype=np.uint8)[None, :, None].repeat(480, 0).repeat(3, 2)
    pixels, _ = pictures.decode(save(tmp_path / "photo.jpg", smooth, quality=95), side=32)
    exact = smooth[:, 80:560].reshape(32, 15, 32, 15, 3).mean((1, 3))
    assert pixels.shape == (32, 32, 3)
    assert np.abs(pixels - exact).max() < 3


@pytest.mark.parametrize("spoil", ["truncated", "empty", "text", "directory"])
def test_unreadable_pictures_are_counted_and_named(spoil, tmp_path):
    root = make_folder(tmp_path / "own")
    bad = root / "train" / "a" / "3.png"
    whole = bad.read_bytes()
    bad.unlink()
    if spoil == "directory":
        (root / "train" / "a" / "3.png").symlink_to(root / "nowhere")
    else:
        bad.write_bytes({"truncated": whole[:60], "empty": b"", "text": b"not a picture"}[spoil])
    message = told(lambda: load(root))
    assert "1 of 40 files can't be read" in message
    assert str(bad) in message
    assert "unreadable=" in message
    with pytest.warns(UserWarning, match="1 of 40 files can't be read"):
        data = load(root, unreadable=0.05, val=0)
    assert len(data.train) == 19
    assert data.train.labels.tolist() == [0] * 9 + [1] * 10
    assert len(data.report()["unreadable"]) == 1


def test_links_are_followed_inside_the_folder_only(tmp_path):
    root = make_folder(tmp_path / "own", each=20)
    secret = save(tmp_path / "secret" / "x.png", noise(8, 8, 3, seed=99))
    (root / "train" / "a" / "inside.png").symlink_to(root / "test" / "a" / "0.png")
    (root / "train" / "b" / "outside.png").symlink_to(secret)
    (root / "train" / "b" / "loop").symlink_to(root / "train")
    with (
        pytest.warns(UserWarning, match="held-out pictures are training pictures"),
        pytest.warns(UserWarning, match="2 of 83 files"),
    ):
        data = load(root, unreadable=0.05, val=0)
    assert len(data.train) == 41
    named = " ".join(data.report()["unreadable"])
    assert "outside.png" in named
    assert "loop" in named
    assert not (data.train.images == torch.from_numpy(noise(8, 8, 3, seed=99))).all((1, 2, 3)).any()
    (root / "test" / "c").symlink_to(secret.parent)
    assert "'c'" in told(lambda: load(root))


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "link").symlink_to(make_folder(tmp_path / "own"))
    assert len(load(tmp_path / "link").test) == 20


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "train" / "c").mkdir(), "class 'c' has no picture in train"),
        (lambda root: remove(root / "test" / "b"), "class 'b' has no picture in test"),
        (lambda root: make_folder(root, ("test",), "d"), "class 'd' is in test but not in train"),
        (lambda root: [remove(root / p / "b") for p in ("train", "test")], "one class only"),
        (lambda root: remove(root / "train"), "holds no folder train/"),
    ],
)
def test_classes_that_are_empty_missing_or_alone_are_errors(spoil, words, tmp_path):
    root = make_folder(tmp_path / "own")
    spoil(root)
    assert words in told(lambda: load(root))


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_a_class_whose_pictures_are_all_broken_is_an_error(tmp_path):
    root = make_folder(tmp_path / "own", each=3)
    for path in (root / "test" / "b").iterdir():
        path.write_bytes(b"broken")
    with pytest.warns(UserWarning, match="3 of 12 files"):
        message = told(lambda: load(root, unreadable=1.0, val=0))
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


# ------------------------------------------------------------------------------------------ cache


def cache_of(root: Path) -> Path:
    (home,) = (path for path in (root.parent / "data" / "decoded").iterdir() if path.is_dir())
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


def test_loaded_pictures_outlive_their_cache(tmp_path):
    root = make_folder(tmp_path / "own")
    load(root)
    kept = load(root, val=0)  # not read yet
    save(root / "train" / "a" / "0.png", noise(8, 8, 3, seed=77))
    changed = load(root, val=0)
    assert torch.equal(kept.train.images[0], torch.from_numpy(noise(8, 8, 3)))
    assert torch.equal(changed.train.images[0], torch.from_numpy(noise(8, 8, 3, seed=77)))
    assert kept.mean != changed.mean


@pytest.mark.parametrize("change", ["picture", "added", "removed", "renamed"])
def test_a_changed_folder_is_decoded_anew(change, tmp_path):
    root = make_folder(tmp_path / "own")
    load(root)
    train = root / "train" / "a"
    if change == "removed":
        (train / "0.png").unlink()
    elif change == "renamed":
        (train / "0.png").rename(train / "z.png")
    else:
        save(train / ("0.png" if change == "picture" else "new.png"), noise(8, 8, 3, seed=77))
    data = load(root, val=0)
    assert len(data.train) == {"added": 21, "removed": 19}.get(change, 20)
    new = torch.from_numpy(noise(8, 8, 3, seed=77 if change in ("picture", "added") else 0))
    found = (data.train.images == new).all(3).all(2).all(1).nonzero().flatten().tolist()
    assert found == {"picture": [0], "added": [10], "removed": [], "renamed": [9]}[change]
    cache_of(root)  # still one: what is outdated doesn't pile up


@pytest.mark.parametrize("file", ["train.npy", "train.npz", "about.json"])
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
    assert path.read_bytes()[:middle] == content[:middle]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    root = make_folder(tmp_path / "own")
    first = load(root)
    (tmp_path / "plain").write_text("a file where a folder is wanted")
    with pytest.warns(UserWarning, match="can't be kept"):
        second = load_dataset(f"imagefolder:{root}", data_dir=tmp_path / "plain", val=0.2)
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.val.images, second.val.images)


def test_each_side_has_a_cache_of_its_own(tmp_path):
    root = make_folder(tmp_path / "own")
    assert [load(root, resolution=side).side for side in (4, 16, None, 4)] == [4, 16, 8, 4]


@pytest.mark.parametrize("options", [{}, {"val": 0}, {"subset": 4}, {"classes": ["b", "a"]}])
def test_kept_statistics_are_those_of_the_training_pictures(options, tmp_path):
    root = make_folder(tmp_path / "own")
    for data in (load(root, **options), load(root, **options)):
        assert (data.mean, data.std) == moments(data.train.images)


def test_fingerprints_tell_pictures_apart():
    for shape in ((500, 8, 8, 1), (500, 7, 7, 3)):
        images = noise(*shape)
        prints = pictures.fingerprints(images)
        assert len(np.unique(prints)) == 500
        images[123, 3, 3, 0] ^= 128
        assert np.flatnonzero(pictures.fingerprints(images) != prints).tolist() == [123]
