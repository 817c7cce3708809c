import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import numbered, refused, seeded

from proxyhpo.config import InputError
from proxyhpo.data.feed import Augmentation, Feed
from proxyhpo.data.pictures import Split

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def feed(split: Split, batch_size: int = 8, **options: object) -> Feed:
    return Feed(split, mean=MEAN, std=STD, batch_size=batch_size, **options)


def as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Undo normalisation: float (B, C, H, W) to uint8 (B, H, W, C)."""
    values = images.permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
    return (values * 255).round().clamp(0, 255).byte()


def test_evaluation_gives_the_pictures_in_order_normalised():
    split = numbered(19)
    batches = list(feed(split, drop_last=False, augmentation=Augmentation()).epoch())
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = (split.images / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.equal(labels, split.labels)
    torch.testing.assert_close(images.permute(0, 2, 3, 1), expected)
    assert images.dtype == torch.float32
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part, _ in batches)


def test_every_training_picture_is_a_window_of_its_original_or_of_its_mirror_image():
    split, border = numbered(200), 2
    padded = torch.nn.functional.pad(split.images, (0, 0, border, border, border, border))
    # (pictures, mirrored or not, top, left, channels, rows, columns)
    windows = torch.stack([padded, padded.flip(2)], 1).unfold(2, 6, 1).unfold(3, 6, 1)
    seen = set()
    for images, labels in feed(split, augmentation=Augmentation(border)).epoch(seeded()):
        assert images.is_contiguous(memory_format=torch.channels_last)
        shown = as_bytes(images).permute(0, 3, 1, 2)[:, None, None, None]
        found = (windows[labels] == shown).all((4, 5, 6)).nonzero()
        assert found[:, 0].tolist() == list(range(len(labels)))  # one window each
        seen |= set(map(tuple, found[:, 1:].tolist()))
    assert len(seen) == 50  # 5 x 5 windows, mirrored or not: all of them are drawn


def test_mirrored_and_shifted_pictures_are_drawn_evenly():
    split = Split(torch.zeros(4000, 3, 3, 1, dtype=torch.uint8), torch.arange(4000))
    split.images[:, 1, 0] = 255  # off the centre, to the left
    training = Feed(split, mean=(0,), std=(1,), batch_size=100, augmentation=Augmentation(crop=1))
    total = sum(images.sum(0)[0] for images, _ in training.epoch(seeded()))
    # 3 shifts down, 3 across and 2 sides, all as likely; a third of the spots leave the picture
    share = torch.tensor([1, 1, 1])[:, None] / 3 * torch.tensor([1, 2, 1]) / 6
    deviation = (4000 * share * (1 - share)).sqrt()
    assert ((total - 4000 * share).abs() < 4 * deviation).all()


def test_an_epoch_shows_every_picture_once_in_an_order_of_its_own():
    split, generator = numbered(64), seeded()
    training = feed(split)
    (images, first), (again, second) = (
        map(torch.cat, zip(*training.epoch(generator), strict=True)) for _ in range(2)
    )
    for shown, labels in ((images, first), (again, second)):  # as they are without augmentation
        assert torch.equal(as_bytes(shown), split.images[labels])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(64))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(64))


def test_recorded_trainings_can_be_repeated():
    # what seed 7 drew when the first learning-curve tables were recorded
    training = feed(numbered(12, side=2), 5, augmentation=Augmentation(1))
    batches = list(training.epoch(seeded(7)))
    drawn = torch.cat([labels for _, labels in batches]).tolist()
    assert drawn == [0, 5, 3, 4, 7, 11, 6, 1, 9, 8]
    red = as_bytes(batches[0][0])[:4, ..., 0].flatten(1).tolist()
    assert red == [[71, 0, 42, 0], [0, 0, 167, 0], [0, 114, 0, 96], [0, 72, 0, 22]]


@pytest.mark.parametrize("cutout", [0, 3])
def test_the_same_seed_gives_the_same_batches_at_any_number_of_threads(cutout):
    split = numbered(512, side=16)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            training = feed(split, 64, augmentation=Augmentation(2, cutout=cutout))
            runs.append(list(training.epoch(seeded(7))))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        for (x, y), (v, w) in zip(runs[0], other, strict=True):
            assert torch.equal(x, v)
            assert torch.equal(y, w)


def test_cutout_sets_a_square_to_the_mean_and_changes_nothing_else():
    split, size = numbered(400), 3
    plain = feed(split, augmentation=Augmentation(1)).epoch(seeded())
    holed = feed(split, augmentation=Augmentation(1, cutout=size)).epoch(seeded())
    areas = set()
    for (x, _), (y, _) in zip(plain, holed, strict=True):
        gone = (y == 0).all(1)
        assert torch.equal(torch.where(gone[:, None], 0, x), y)
        for hole in gone:
            rows, columns = hole.any(1).sum().item(), hole.any(0).sum().item()
            assert hole.sum() == rows * columns  # a rectangle: a square, cut at the border
            areas.add((rows, columns))
    assert areas == {(r, c) for r in (2, 3) for c in (2, 3)}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.booleans(), st.integers(0, 3))
def test_an_epoch_has_as_many_batches_as_announced(count, batch_size, drop_last, flip, crop):
    if drop_last and count < batch_size:
        with pytest.raises(InputError, match=f"batch_size {batch_size}: more than the {count}"):
            feed(numbered(count), batch_size, drop_last=True)
        return
    training = feed(
        numbered(count), batch_size, drop_last=drop_last, augmentation=Augmentation(crop, flip)
    )
    for generator in (None, seeded()):
        sizes = [len(labels) for _, labels in training.epoch(generator)]
        assert len(sizes) == len(training)
        assert sum(sizes) == training.pictures_an_epoch
        assert sum(sizes) == (count - count % batch_size if drop_last else count)
        assert all(size == batch_size for size in sizes[:-1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: feed(numbered(8), 0), "batch_size 0"),
        (lambda: feed(numbered(8), 2.0), "batch_size 2.0"),
        (lambda: feed(numbered(8), True), "batch_size True"),
        (lambda: feed(numbered(8), 9), "more than the 8 pictures"),
        (lambda: feed(numbered(0), 1, drop_last=False), "more than the 0 pictures"),
        (lambda: feed(numbered(8, channels=1)), "1 numbers each"),
        (lambda: feed(Split(numbered(8).images[:, :5], torch.arange(8))), "5 x 6 pixels"),
        (lambda: Augmentation(crop=-1), "crop -1"),
        (lambda: Augmentation(cutout=1.5), "cutout 1.5"),
    ],
)
def test_bad_input_is_one_line(make, words):
    assert words in refused(make)


def test_pictures_without_contrast_stay_finite():
    split = Split(torch.full((8, 4, 4, 1), 7, dtype=torch.uint8), torch.arange(8))
    mean, std = split.moments
    images, _ = next(Feed(split, mean=mean, std=std, batch_size=8).epoch())
    assert images.isfinite().all()
