import dataclasses
import errno
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxyhpo import config
from proxyhpo.config import (
    PROFILES,
    Experiment,
    InputError,
    grid,
    home,
    make_folder,
    scaled,
    slug,
    whole_path,
)


@pytest.mark.parametrize(
    "change",
    [
        {"trials": 0},
        {"trials": -1},
        {"trials": 2.5},
        {"trials": True},
        {"epochs": 0},
        {"batch_size": 1},
        {"final_seeds": 0},
        {"ranking": 2},
        {"classes": 1},
        {"classes": "ten"},
        {"verify": -1},
        {"verify": 11, "trials": 10},
        {"pruning_ratio": 0},
        {"pruning_ratio": 1.0},
        {"pruning_ratio": -0.5},
        {"pruning_ratio": float("nan")},
        {"pruning_ratio": "0.5"},
    ],
)
def test_a_value_out_of_range_names_its_field(change):
    field = next(iter(change)).replace("_", " ")
    with pytest.raises(InputError) as error:
        dataclasses.replace(PROFILES["smoke"], **change)
    assert field in str(error.value).replace("_", " ")
    assert "\n" not in str(error.value)


def test_the_papers_grid_has_27_cells():
    for name in ("table", "gpu", "paper"):
        cells = {(e.dataset, e.network, e.sampler) for e in grid(PROFILES[name])}
        assert len(cells) == 27


OFFICIAL = {  # pictures a class: training, test
    "cifar10": (5000, 1000),
    "cifar100": (500, 100),
    "tinyimagenet": (500, 50),
}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_the_official_data_sets_have_the_pictures_that_a_profile_asks_for(profile):
    for dataset in set(profile.datasets) & set(OFFICIAL):
        training, test = OFFICIAL[dataset]
        assert (profile.subset or 1) <= training
        assert (profile.test_subset or 1) <= test, dataset


def test_smoke_covers_a_small_sister_of_each_network():
    assert [e.network.split("_")[0].rstrip("0123456789") for e in grid(PROFILES["smoke"])] == [
        "mobilenetv", "resnet", "vgg",
    ]  # fmt: skip


def test_the_grid_narrows():
    cells = grid(PROFILES["paper"], ["cifar10"], samplers=["gp"], networks=["resnet8"])
    assert [(e.network, e.sampler) for e in cells] == [("resnet8", "gp")]


def test_a_changed_profile_is_filed_apart():
    assert scaled("smoke") is PROFILES["smoke"]
    assert scaled("smoke", trials=PROFILES["smoke"].trials).name == "smoke"
    changed = scaled("smoke", trials=4, epochs=None)
    assert (changed.name, changed.trials, changed.epochs) == ("custom", 4, 9)


def test_a_misspelt_field_and_a_profiles_name_are_refused():
    with pytest.raises(InputError, match="'trails': did you mean 'trials'"):
        scaled("smoke", trails=3)
    with pytest.raises(InputError, match=r"profile 'smoke': a Profile, such as PROFILES"):
        Experiment("digits", "resnet8", "tpe", "smoke")


def test_scale_holds_what_decides_the_rows_and_nothing_else():
    profile = PROFILES["smoke"]
    assert {"trials", "epochs", "subset", "ranked"} <= set(profile.scale)
    renamed = dataclasses.replace(profile, name="x", networks=("resnet56",), minutes=5)
    assert renamed.scale == profile.scale


def test_names_fit_file_names_and_never_collide():
    experiment = Experiment("digits", "vgg11_bn_x0.25", "gp", PROFILES["smoke"], 3)
    assert experiment.name == "digits-vgg11_bn_x0.25-gp-seed3"
    folders = ["imagefolder:/a b/c", "imagefolder:/a-b/c", "imagefolder:/a/b/c", "x/.."]
    slugs = [slug(folder) for folder in folders]
    assert len(set(slugs)) == len(folders)
    assert all(re.fullmatch(r"[\w.]+", one) for one in slugs)


@pytest.mark.parametrize("seed", [-1, 1.0, True, 2**32])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(InputError, match="seed"):
        Experiment("digits", "resnet8", "tpe", PROFILES["smoke"], seed)


def test_home_is_the_enclosing_checkout_or_the_folder_itself(tmp_path):
    assert home(tmp_path) == tmp_path.resolve()
    (tmp_path / "run_all.sh").touch()
    (tmp_path / "proxyhpo").mkdir()
    inside = tmp_path / "notebooks" / "grid"
    inside.mkdir(parents=True)
    assert home(inside) == tmp_path.resolve()


def test_cores_are_those_that_were_granted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert config.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert config.cores() == 64


def test_a_full_disk_is_no_bad_input(monkeypatch, tmp_path):
    def full(dir):
        raise OSError(errno.ENOSPC, "No space left on device", str(dir))

    monkeypatch.setattr(config, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        make_folder(tmp_path)
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write to the output folder"):
        make_folder(tmp_path / "file" / "x")


def test_what_cant_be_a_path_gets_one_line(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    odd = ["a\0b", "~nobody-of-this-name/x"]
    if sys.version_info < (3, 13):  # later ones make a path of it, which is no folder
        odd.append(str(tmp_path / "circle"))
    for path in odd:
        with pytest.raises(InputError, match=r"^out .*: no path can be made of it") as told:
            whole_path("out", path)
        assert "\n" not in str(told.value)


def test_processes_may_make_one_folder_at_a_time(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make_folder, [tmp_path / "results"] * 400))
    assert list((tmp_path / "results").iterdir()) == []
