from zlib import crc32

import numpy as np
import pytest

from proxyhpo.config import DATASETS, NETWORKS, InputError
from proxyhpo.data.datasets import DATASETS as LOADERS
from proxyhpo.hpo.curves import curves_folder, curves_under, load_table
from proxyhpo.hpo.stand_ins import parse
from proxyhpo.hpo.tables import (
    SEARCH_SEEDS,
    STAGES,
    STANDARD_ERROR,
    TABLES,
    Job,
    missing,
    stages,
    table_name,
    table_rows,
)
from proxyhpo.models import MODELS
from proxyhpo.rows import as_frame, write_rows

SMOKE = TABLES["digits-resnet8"]


def row(regime, job, accuracy=0.5):
    """Return a row as a recording leaves it, of what decides what is trained next."""
    return {
        **regime.labels(job.entrant),
        "plan": job.plan,
        "purpose": job.purpose,
        "seed": job.seed,
        "level_lr": job.levels[0],
        "level_weight_decay": job.levels[1],
        "state": "complete",
        "val_accuracy": accuracy,
        "test_accuracy": accuracy,
        "wall_seconds": 1.0,
        "cpu_seconds": 1.0,
        "device": "none",
        "threads": 1,
        "recorded": "2026-11-24T00:00:00+00:00",
    }


def recorded(regime, until, noise=0.0):
    """Return the rows of a table that is whole up to a stage, and the stages in their order."""
    rng, rows, order = np.random.default_rng(0), [], []
    frame = as_frame([]).assign(level_lr=0, level_weight_decay=0)
    while (found := missing(regime, frame, until))[0]:
        stage, jobs, _ = found
        order.append(stage)
        rows += [row(regime, job, 0.5 + noise * rng.standard_normal()) for job in jobs]
        frame = as_frame(rows)
    return frame, order


@pytest.mark.parametrize("regime", TABLES.values(), ids=TABLES)
def test_a_table_asks_for_what_the_registries_know(regime):
    assert regime.dataset in LOADERS
    assert regime.network in MODELS
    for entrant in (*regime.entrants[1:], *regime.extras):
        parse(entrant)
    assert regime.samples % regime.classes == 0
    assert regime.samples <= regime.train * regime.classes


def test_names_known_without_torch_are_those_of_the_registries():
    assert tuple(LOADERS) == DATASETS
    assert tuple(MODELS) == NETWORKS


@pytest.mark.parametrize("regime", TABLES.values(), ids=TABLES)
def test_no_two_trainings_of_a_table_share_a_cell_or_weights(regime):
    rows, order = recorded(regime, STAGES[-1])
    assert [stage for stage in STAGES if stage in order] == list(dict.fromkeys(order))
    jobs = [
        Job(name or "base", (lr, decay), seed, purpose, plan)
        for name, lr, decay, seed, purpose, plan in rows[
            ["proxy", "level_lr", "level_weight_decay", "seed", "purpose", "plan"]
        ].itertuples(index=False)
    ]
    assert len({job.key for job in jobs}) == len(jobs)
    assert len({regime.weight_seed(job) for job in jobs}) == len(jobs)
    curves = {(job.entrant, job.levels, job.seed) for job in jobs if job.purpose == "curve"}
    for entrant in (*regime.entrants, *regime.extras):
        for levels in regime.configurations:
            assert all((entrant, levels, seed) in curves for seed in SEARCH_SEEDS)


def test_without_tables_of_its_own_a_folder_gets_the_checkouts(tmp_path):
    assert curves_under(tmp_path) == curves_folder()
    own = tmp_path / "results" / "curves"
    own.mkdir(parents=True)
    (own / "x.csv").touch()
    assert curves_under(tmp_path) == own


def test_a_scale_ends_a_tables_name():
    assert table_name("cifar10", "resnet56") == "cifar10-resnet56"
    assert TABLES["cifar10-resnet56-gpu"].scale == "gpu"
    with pytest.raises(InputError, match="--model resnet20 --profile gpu"):
        load_table("cifar10", "resnet20", "nowhere", scale="gpu")


def test_weight_seeds_stay_those_that_tables_were_recorded_with():
    assert SMOKE.weight_seed(Job("base", (0, 0), 0)) == crc32(
        b"('digits-resnet8', 'base', 0, 0, 0, 0)"
    )


def test_the_gate_comes_first_and_is_a_slice_of_the_base_network():
    stage, jobs = next(stages(TABLES["cifar10-resnet20"], None))
    assert stage == "gate"
    assert {(job.entrant, job.levels[1]) for job in jobs} == {("base", 0)}
    assert {job.seed: job.purpose for job in jobs} == {0: "curve", 1: "curve", 2: "verify"}


@pytest.mark.parametrize(("noise", "seeds"), [(0.0, 4), (0.01, 12), (0.1, 24)])
def test_truth_is_trained_until_the_standard_error_is_small(noise, seeds):
    rows, _ = recorded(TABLES["cifar10-resnet20"], "precision", noise)
    levels = ["level_lr", "level_weight_decay"]
    truth = rows[rows["purpose"] == "truth"].groupby(levels)
    assert truth.size().value_counts().to_dict() == {seeds: 8, 1: 28}
    best = truth.filter(lambda group: len(group) > 1)
    deviation = best.groupby(levels)["test_accuracy"].var().mean() ** 0.5
    assert deviation / seeds**0.5 <= STANDARD_ERROR or seeds == 24


def test_what_is_missing_is_what_no_row_has():
    rows, _ = recorded(SMOKE, "gate")
    stage, left, total = missing(SMOKE, rows.drop(index=4))
    assert (stage, len(left), total) == ("gate", 1, 9)
    assert missing(SMOKE, rows, "gate") == ("", [], 0)
    assert missing(SMOKE, rows)[0] == "seed 0"


@pytest.mark.parametrize("until", ["gate", "truth", "seed 1"])
def test_one_entrant_can_be_recorded_before_its_turn(until):
    regime = TABLES["cifar100-resnet20"]
    rows, _ = recorded(regime, until)
    found = []
    while (lack := missing(regime, rows, entrant="frozen@0.5"))[0]:
        stage, jobs, total = lack
        assert len(jobs) == total == 12
        assert {job.entrant for job in jobs} == {"frozen@0.5"}
        found.append((stage, {job.seed for job in jobs}))
        rows = as_frame([*rows.to_dict("records"), *(row(regime, job) for job in jobs)])
        assert missing(regime, rows, stage, "frozen@0.5") == ("", [], 0)
    assert found == [("extras", {0}), ("extras, seed 1", {1})]


def test_a_cell_that_was_trained_twice_counts_once_with_a_warning(tmp_path):
    jobs = [Job("base", (0, 0), 0), Job("uniform@0.25", (0, 0), 0), Job("base", (0, 0), 0)]
    path = tmp_path / "digits-resnet8.csv"
    write_rows(path, [row(SMOKE, job, 0.1 * n) for n, job in enumerate(jobs)])
    with pytest.warns(UserWarning, match="1 trainings are in it twice") as caught:
        rows = table_rows(path)
    assert str(path) in str(caught[0].message)
    assert rows["val_accuracy"].tolist() == [0.0, 0.1]
