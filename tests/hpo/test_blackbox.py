"""Tables as Syne Tune's blackboxes: read back here, and by Syne Tune where that is installed."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_tables import made_table

from proxyhpo.config import InputError
from proxyhpo.hpo.blackbox import OBJECTIVES, export_table


@pytest.fixture(scope="module")
def table():
    return made_table()


def test_an_export_holds_the_trainings_that_studies_may_see(table, tmp_path):
    pytest.importorskip("pyarrow")
    folder = export_table(table, tmp_path / "new" / "folder")
    tried = pd.read_parquet(folder / "hyperparameters.parquet")
    regime, base = table.regime, table.curves("base")
    assert tried.to_dict("records") == [*map(regime.configuration, regime.configurations)]
    (values,) = np.load(folder / "objectives_evaluations.npy")
    error, loss, seconds = np.moveaxis(values, -1, 0)
    assert error == pytest.approx(1 - base.accuracy, abs=1e-6)
    assert loss == pytest.approx(base.loss, rel=1e-6)
    assert seconds[..., -1] == pytest.approx(table.whole)
    assert seconds[..., 0] == pytest.approx(table.whole / base.epochs)
    assert np.load(folder / "fidelities_values.npy").tolist() == [*range(1, 11)]
    spaces = json.loads((folder / "configspace.json").read_text())
    assert spaces["lr"]["domain_kwargs"]["categories"] == list(regime.lr)
    said = json.loads((folder / "metadata.json").read_text())
    assert said == {"objectives_names": [*OBJECTIVES], "task_names": ["cifar10-resnet20"]}


def test_an_export_is_of_one_entrant(table, tmp_path):
    pytest.importorskip("pyarrow")
    export_table(table, tmp_path, "epochs@0.3")
    assert np.load(tmp_path / "objectives_evaluations.npy").shape == (1, 36, 2, 3, 3)
    with pytest.raises(InputError, match="stand-in of this table 'depth': choose from base"):
        export_table(table, tmp_path, "depth")


def test_costs_have_to_be_measured(table, tmp_path):
    with pytest.raises(InputError, match="measured steps"):
        export_table(replace(table, steps=table.steps[:0]), tmp_path)


def test_without_a_writer_of_parquet_one_line_says_what_to_install(table, tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", missing)
    with pytest.raises(InputError, match="pip install pyarrow"):
        export_table(table, tmp_path)


def test_syne_tune_opens_an_export_with_its_own_loader(table, tmp_path):
    pytest.importorskip("syne_tune")
    loader = importlib.import_module("syne_tune.blackbox_repository.blackbox_tabular")
    (name, opened), *_ = loader.deserialize(export_table(table, tmp_path)).items()
    assert name == table.name
    assert opened.num_seeds == 2
    for c, levels in enumerate(table.regime.configurations):
        known = opened(table.regime.configuration(levels), {"epochs": 7}, seed=1)
        assert known["valid_error"] == pytest.approx(1 - table.curves("base").accuracy[c, 1, 6])
        assert known["elapsed_time"] == pytest.approx(0.7 * table.whole)
    drawn = [opened.configuration_space["lr"].sample() for _ in range(200)]
    assert set(drawn) == set(table.regime.lr)
