import os
import threading
import warnings

import numpy as np
import pytest
import torch
from made_pictures import load, make_folder, noise, numbered, refused, save
from PIL import Image

from proxyhpo.data.pictures import Split, decode, make_source


def test_splits_are_taken_joined_and_resized():
    split = numbered(10)
    some = split.take(torch.tensor([7, 2]))
    assert some.labels.tolist() == [7, 2]
    assert torch.equal(some.images, split.images[[7, 2]])
    assert torch.equal(some.take(torch.tensor([1])).images, split.images[[2]])
    joined = some.join(split)
    assert joined.labels.tolist() == [7, 2, *range(10)]
    assert torch.equal(joined.images, split.images[joined.labels])
    assert joined.pixels is split.pixels  # not a copy
    other = numbered(3, side=6)
    assert torch.equal(some.join(other).images[2:], other.images)
    small = split.resize(3)
    means = split.images.float().view(10, 3, 2, 3, 2, 3).mean((2, 4))
    assert torch.equal(small.images, means.round().byte())
    assert torch.equal(small.labels, split.labels)
    assert split.take(torch.arange(0)).resize(3).images.shape == (0, 3, 3, 3)


def test_moments_are_those_of_all_pixels():
    split = numbered(75, side=7)
    pixels = split.images.numpy().reshape(-1, 3) / 255
    mean, std = split.moments
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Split(torch.zeros(2, 4, 4, 3), torch.arange(2)), "uint8"),
        (lambda: Split(numbered(2).images, torch.arange(3)), "one for each picture"),
        (lambda: Split(numbered(2).images, torch.zeros(2)), "int64"),
    ],
)
def test_splits_of_something_else_are_refused(make, words):
    assert words in refused(make)


def test_duplicates_across_splits_are_found_with_the_first_of_their_twins():
    train, test = noise(500, 8, 8, 1), noise(20, 8, 8, 1, seed=1)
    train[300], test[3], test[5] = train[20], train[20], train[123]
    test[4], test[4, 0, 0, 0] = train[7], train[7, 0, 0, 0] ^ 128  # one pixel apart
    parts = {
        part: (pixels, [0] * len(pixels), [f"{part} {n}" for n in range(len(pixels))])
        for part, pixels in (("train", train), ("test", test))
    }
    found = make_source(parts, ("a",), "").duplicates
    assert found == (("test 3", "train 20"), ("test 5", "train 123"))


# --------------------------------------------------------------------------------------- decoding


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
    files = [p for p in odd.rglob("*") if p.is_file() and not p.name.startswith(".")]
    names = [p.name for p in sorted(files, key=str) if p.suffix != ".txt"]
    stored = dict(zip(names, data.train.images[:16].numpy(), strict=True))
    np.testing.assert_array_equal(stored["grey.png"], noise(8, 8)[..., None].repeat(3, 2))
    np.testing.assert_array_equal(stored["rgba.png"], noise(8, 8, 4)[..., :3])
    np.testing.assert_array_equal(stored["sixteen.png"], stored["grey.png"])
    np.testing.assert_array_equal(stored["größe 漢字 🐈.PNG"], noise(8, 8, 3, seed=7))
    # a JPEG of noise is far from its original, but not from another reading of the same file
    with Image.open(odd / "cmyk.jpg") as image:
        np.testing.assert_array_equal(stored["cmyk.jpg"], np.array(image.convert("RGB")))


def test_pictures_that_are_all_grey_have_one_channel(tmp_path):
    for part in ("train", "test"):
        for name in "ab":
            for n in range(4):
                save(tmp_path / "grey" / part / name / f"{n}.png", noise(8, 8, seed=n + ord(name)))
    with pytest.warns(UserWarning, match="training pictures too"):
        data = load(tmp_path / "grey", val=0)
    assert data.channels == 1
    np.testing.assert_array_equal(data.train.images[0, ..., 0], noise(8, 8, seed=ord("a")))


@pytest.mark.parametrize(
    ("odd", "shape", "words"),
    [
        (["train/a/zz.png"], (16, 32), "zz.png is 32 x 16 pixels, most others 8 x 8: where"),
        # the first that is read, and still not its neighbour's fault
        (["train/a/0.png"], (1, 1), "0.png is 1 x 1 pixels, most others 8 x 8: where"),
        ([f"test/{c}/{n}.png" for c in "ab" for n in range(5)], (9, 9), "is 9 x 9 pixels, most"),
        ([f"{p}/{c}/{n}.png" for p in ("train", "test") for c in "ab" for n in range(5)], (6, 8),
         "0.png is 8 x 6 pixels: where"),
    ],
)  # fmt: skip
def test_sizes_that_differ_need_a_side(odd, shape, words, tmp_path):
    root = make_folder(tmp_path / "own", each=5)
    for seed, path in enumerate(odd):
        save(root / path, noise(*shape, 3, seed=seed))
    message = refused(lambda: load(root))
    assert words in message
    assert "load_dataset(..., resolution=32)" in message  # tune doesn't take it


SMOOTH = np.linspace(0, 255, 640, dtype=np.uint8)[None, :, None].repeat(480, 0).repeat(3, 2)


@pytest.mark.parametrize(
    ("name", "pixels", "tolerance"),
    [("wide.png", noise(16, 32, 3), 0.5), ("wide.jpg", SMOOTH, 3)],  # large: at a reduced scale
)
def test_the_centred_square_is_reduced_by_area(name, pixels, tolerance, tmp_path):
    root = make_folder(tmp_path / "mixed")
    save(root / "train" / "a" / name, pixels, quality=95)
    data = load(root, resolution=8, val=0)
    assert data.train.images.shape == (21, 8, 8, 3)
    height, width, _ = pixels.shape
    middle = pixels[:, (width - height) // 2 : (width + height) // 2]
    areas = middle.reshape(8, height // 8, 8, height // 8, 3).mean((1, 3))
    assert np.abs(data.train.images[10].numpy() - areas).max() <= tolerance


def test_the_orientation_of_a_photo_is_followed(tmp_path):
    upright = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to view
    pixels, grey = decode(save(tmp_path / "photo.png", upright, exif=exif))
    np.testing.assert_array_equal(pixels, np.rot90(upright, -1))
    assert not grey


@pytest.mark.parametrize("spoil", ["truncated", "empty", "text", "link", "circle", "pipe"])
def test_unreadable_pictures_are_counted_and_named(spoil, tmp_path):
    root = make_folder(tmp_path / "own")
    bad = root / "train" / "a" / "3.png"
    whole = bad.read_bytes()
    bad.unlink()
    if spoil in ("link", "circle"):
        bad.symlink_to(bad if spoil == "circle" else root / "nowhere")
    elif spoil == "pipe":
        os.mkfifo(bad)
        # a reader would wait for ever: end its wait after a while, and let the test fail
        rescue = threading.Timer(10, lambda: os.close(os.open(bad, os.O_WRONLY | os.O_NONBLOCK)))
        rescue.daemon = True
        rescue.start()
    else:
        bad.write_bytes({"truncated": whole[:60], "empty": b"", "text": b"not a picture"}[spoil])
    message = refused(lambda: load(root))
    if spoil == "pipe":
        assert rescue.is_alive()
        rescue.cancel()
    assert "1 of 40 files can't be read" in message
    assert str(bad) in message
    assert "unreadable=" in message
    with pytest.warns(UserWarning, match="1 of 40 files can't be read"):
        data = load(root, unreadable=0.05, val=0)
    assert len(data.train) == 19
    assert data.train.labels.tolist() == [0] * 9 + [1] * 10
    assert len(data.report()["unreadable"]) == 1


def test_a_digest_is_of_the_pictures_and_labels_wherever_they_lie():
    pixels, rows = torch.arange(6 * 48, dtype=torch.int64).to(torch.uint8), torch.tensor([1, 3, 4])
    pixels, labels = pixels.reshape(6, 4, 4, 3), torch.tensor([0, 1, 0])
    digest = Split(pixels, labels, rows).digest
    assert Split(pixels[rows].clone(), labels).digest == digest
    assert Split(pixels[rows], labels.flip(0).roll(1)).digest != digest
    assert Split(pixels[rows].flip(1), labels).digest != digest
