"""Pictures that a user brings."""

import pytest
import torch
from made_pictures import make_folder, refused
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder

from proxyhpo.data.datasets import load_dataset
from proxyhpo.data.given import as_dataset

IMAGES, LABELS = torch.rand(60, 3, 8, 8), torch.arange(60) % 3


class Items:
    classes = ("a", "b", "c")

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return IMAGES[index], int(LABELS[index])


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, LABELS),
        ((IMAGES * 255).to(torch.uint8).permute(0, 2, 3, 1), LABELS),
        (IMAGES.numpy(), LABELS.tolist()),
        (IMAGES, LABELS.double()),
        TensorDataset(IMAGES, LABELS),
        TensorDataset(IMAGES, LABELS[:, None]),
        Items(),
    ],
)
def test_data_of_ones_own_come_as_pictures_and_labels(data):
    dataset = as_dataset(data, val=0.2)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (48, 12, 0)
    assert (dataset.side, dataset.channels, len(dataset.classes)) == (8, 3, 3)
    kept = torch.cat([dataset.train.images, dataset.val.images]).float().sum()
    assert kept == pytest.approx(float((IMAGES * 255).sum()), rel=0.02)


def test_torchvision_data_sets_folders_and_names_come_too(tmp_path):
    make_folder(tmp_path, ("train",), ("cat", "dog"))
    theirs = as_dataset(ImageFolder(tmp_path / "train"))
    ours, named = as_dataset(tmp_path), as_dataset(f"imagefolder:{tmp_path}")
    assert theirs.classes == ours.classes == named.classes == ("cat", "dog")
    assert (len(theirs.train), len(theirs.val)) == (16, 4)
    assert torch.equal(ours.train.images, named.train.images)
    assert as_dataset("digits").name == "digits"


def test_pictures_with_a_palette_have_its_colours():
    red, green = (Image.new("RGB", (4, 4), colour) for colour in ("red", "lime"))
    pairs = [(one.convert("P"), label) for label, one in enumerate((red, green)) for _ in range(4)]
    images = as_dataset(pairs).train.images
    assert images[0, 0, 0].tolist() == [255, 0, 0]
    assert images[-1, 0, 0].tolist() == [0, 255, 0]


def test_twins_that_the_cut_separates_are_named():
    images = torch.cat([IMAGES, IMAGES])
    (first, *_) = found = as_dataset((images, LABELS.repeat(2))).report()[
        "duplicates across splits"
    ]
    assert len(found) > 10
    one, other = (int(name.split()[1]) for name in first.split(" = "))
    assert abs(one - other) == 60


def test_a_data_set_has_pictures_to_validate_on():
    data = load_dataset("digits", subset=2, val=0)
    assert "no pictures to validate on" in refused(lambda: as_dataset(data))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (3, "data int"),
        ([(torch.zeros(3, side, side), side % 2) for side in (4, 4, 5, 5)], "not all of one size"),
        ((torch.rand(5, 4, 8), torch.zeros(5)), "pictures of shape"),
        ((torch.randn(5, 3, 8, 8), torch.zeros(5)), "leave normalisation"),
        ((torch.rand(5, 3, 8, 8), torch.zeros(4)), "one for each picture"),
        ((torch.rand(6, 3, 8, 8), torch.zeros(6)), "at least 2 classes"),
        ((IMAGES, LABELS / 2), "label 0.5: a whole number"),
        ((IMAGES, LABELS + float("nan")), "label nan"),
        ([(IMAGES[0], label / 2) for label in range(4)], "label 0.5"),
        ([(IMAGES[0], name) for name in ("cat", "dog")], "no tensor of pictures or labels"),
        ("imagefolder:/nowhere", "nowhere"),
    ],
)
def test_what_doesnt_fit_is_named(data, named):
    assert named in refused(lambda: as_dataset(data))
