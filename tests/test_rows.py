import csv
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_rows import PROXY, row

from proxyhpo.config import InputError
from proxyhpo.rows import (
    COLUMNS,
    append_rows,
    config_id,
    load_results,
    read_rows,
    result_path,
    write_rows,
)

TESTS = str(Path(__file__).parent)
ROOT = Path(__file__).resolve().parent.parent


def study_row(**fields):
    return row("study", trial=0) | {"param_lr": 0.1} | fields


def written(folder, rows):
    path = folder / "some.csv"
    write_rows(path, rows)
    return path


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ImportError(name)

sys.meta_path.insert(0, NoTorch())
sys.path.insert(0, {tests!r})
import proxyhpo.config, proxyhpo.results, proxyhpo.statistics, proxyhpo.report, proxyhpo.figures
from made_rows import experiment, frame, ranking
for draw in proxyhpo.figures.FIGURES.values():
    draw(frame([*experiment(trials=3), *ranking(n=4)]))
assert "torch" not in sys.modules
"""


def test_figures_are_drawn_where_torch_cannot_be_loaded():
    code = WITHOUT_TORCH.format(tests=TESTS)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5))
def test_floats_come_back_exactly(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "floats.csv"
    write_rows(path, [study_row(val_loss=v, param_lr=v) for v in values])
    rows = read_rows(path)
    assert rows["val_loss"].tolist() == values
    assert rows["param_lr"].tolist() == values


def test_a_file_comes_back_as_it_was(tmp_path):
    rows = [
        study_row(curve="0.1000 0.2000", val_accuracy=np.float32(0.25), seed=np.int64(3)),
        row("data", dataset='imagefolder:/a "b", c/\N{GREEK SMALL LETTER RHO}'),
        study_row(param_optimizer="sgd", **PROXY),
    ]
    back = read_rows(written(tmp_path, rows))
    names = list(COLUMNS)
    after = names.index("choice") + 1
    assert list(back) == [*names[:after], "param_lr", "param_optimizer", *names[after:]]
    assert back["seed"].tolist() == [3, 0, 0]
    assert back["seed"].dtype == "int64"
    assert back["dataset"][1] == rows[1]["dataset"]
    assert back["val_accuracy"][0] == 0.25
    assert math.isnan(back["val_accuracy"][1])
    assert math.isnan(back["param_lr"][1])
    assert back["param_optimizer"].tolist() == ["", "", "sgd"]
    assert back["curve"].tolist() == ["0.1000 0.2000", "", ""]
    again = read_rows(written(tmp_path, back))
    pd.testing.assert_frame_equal(again, back)


def test_what_a_row_does_not_give_is_missing(tmp_path):
    given_ = {k: v for k, v in row("data").items() if COLUMNS[k].missing is None}
    given_["sampler"] = "tpe"
    back = read_rows(written(tmp_path, [given_]))
    assert back["trial"][0] == -1
    assert back["proxy"][0] == ""
    assert back["samples"][0] == 0
    assert math.isnan(back["test_accuracy"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown column 'colour'"),
        ({"wall_seconds": None}, "wall_seconds is empty"),
        ({"state": "done"}, "state 'done': choose from complete, stopped, diverged, failed"),
        ({"purpose": "fun"}, "purpose 'fun': choose from data, proxy, study"),
        ({"role": "both"}, "role 'both': choose from base, proxy"),
        ({"choice": "base+best"}, "choice 'base[+]best': choose from base, proxy, verified"),
        ({"val_accuracy": 90.0}, "val_accuracy '90.0' is not between 0 and 1"),
        ({"epochs": 1.5}, "epochs '1.5' is not a whole number"),
        ({"sampler": ""}, "a study row needs a sampler"),
        ({"curve": "0.1\n0.2"}, "a value holds a line break"),
    ],
)
def test_a_wrong_row_is_refused_and_the_file_kept(tmp_path, change, message):
    path = written(tmp_path, [study_row()])
    before = path.read_bytes()
    for write in (write_rows, append_rows):
        with pytest.raises(InputError, match=rf"some\.csv, line \d: {message}"):
            write(path, [study_row(**change)])
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} <= {"some.csv", ".some.csv.lock"}


@pytest.mark.parametrize(
    ("damage", "line", "message"),
    [
        (lambda text: text[:-9], 3, "the line isn't whole"),
        (lambda text: "", 1, "the line isn't whole"),
        (lambda text: text.replace(",complete,", ",comp,", 1), 2, "state 'comp'"),
        (lambda text: text + "1,2,3\n", 4, "3 values for"),
        (lambda text: text + "\n", 4, "0 values for"),
        (lambda text: text.replace("profile,", "", 1), 1, "the header lacks 'profile'"),
        (lambda text: text.replace("profile,dataset", "dataset,profile", 1), 1, "another order"),
        (lambda text: text.replace("trial,state", "trial,mood", 1), 1, "has unknown 'mood'"),
        (lambda text: text.replace(",1.0,", ",1.o,", 1), 2, "'1.o' is not a number"),
        (lambda text: text.replace("a processor", "a \udcff", 1), 2, "not UTF-8"),
        (lambda text: text.replace("a processor", '"a" "b"', 1), 2, "expected after"),
    ],
)
def test_a_corrupt_file_is_named_with_its_line_and_left_as_it_is(tmp_path, damage, line, message):
    path = written(tmp_path, [study_row(), study_row(trial=1)])
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogateescape"))
    before = path.read_bytes()
    for read in (read_rows, lambda p: append_rows(p, [study_row()])):
        with pytest.raises(InputError, match=rf"{re.escape(str(path))}, line {line}: .*{message}"):
            read(path)
    with pytest.raises(InputError):
        load_results(tmp_path)
    assert path.read_bytes() == before


def test_rows_that_were_recorded_before_a_column_came_are_read(tmp_path):
    path = written(tmp_path, [study_row(), study_row(trial=1)])
    whole = read_rows(path)
    table = list(csv.reader(path.read_text().splitlines()))
    later = ("elapsed_seconds", "microbatches", "workers")
    kept = [i for i, name in enumerate(table[0]) if name not in later]
    path.write_text("".join(",".join(line[i] for i in kept) + "\n" for line in table))
    pd.testing.assert_frame_equal(read_rows(path), whole)
    append_rows(path, [study_row(trial=2)])
    assert read_rows(path)["workers"].tolist() == [1, 1, 1]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.csv: No such file"):
        read_rows(tmp_path / "nothing.csv")


def test_appending_keeps_what_was_there_and_makes_room_for_new_parameters(tmp_path):
    path = tmp_path / "new folder" / "some.csv"
    append_rows(path, [study_row()])
    append_rows(path, [study_row(trial=1, param_momentum=0.9)])
    rows = read_rows(path)
    assert rows["trial"].tolist() == [0, 1]
    assert rows["param_lr"].tolist() == [0.1, 0.1]
    assert rows["param_momentum"].tolist()[1] == 0.9
    assert math.isnan(rows["param_momentum"][0])


APPEND = """
import sys
sys.path.insert(0, {tests!r})
from made_rows import row
# gone
for trial in range({n}):
    append_rows({path!r}, [row("study", trial=trial, seed={seed})])
"""


def appending(path, n, seed):
    code = APPEND.format(tests=TESTS, path=str(path), n=n, seed=seed)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    path = tmp_path / "some.csv"
    processes = [appending(path, 8, seed) for seed in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    rows = read_rows(path)
    assert sorted(zip(rows["seed"], rows["trial"], strict=True)) == [
        (seed, trial) for seed in range(3) for trial in range(8)
    ]


def test_a_killed_process_leaves_whole_rows_and_no_lock(tmp_path):
    path = tmp_path / "some.csv"
    process = appending(path, 100_000, 0)
    while not path.exists():
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(read_rows(path))
    append_rows(path, [study_row()])
    assert len(load_results(tmp_path)) == left + 1


def test_load_results_reads_a_folder_in_order_of_names(tmp_path):
    write_rows(tmp_path / "b.csv", [study_row(param_momentum=0.9)])
    write_rows(tmp_path / "a.csv", [study_row(trial=7), study_row(trial=8)])
    write_rows(tmp_path / "empty.csv", [])
    rows = load_results(tmp_path)
    assert rows["file"].tolist() == ["a.csv", "a.csv", "b.csv"]
    assert rows["trial"].tolist() == [7, 8, 0]
    parameters = [list(rows).index(name) for name in ("choice", "param_lr", "param_momentum")]
    assert np.diff(parameters).tolist() == [1, 1]
    write_rows(tmp_path / "whole.csv", rows)
    assert len(read_rows(tmp_path / "whole.csv")) == 3


@pytest.mark.parametrize("folder", [".", "not there"])
def test_a_folder_without_rows_gives_the_columns(tmp_path, folder):
    rows = load_results(tmp_path / folder)
    assert list(rows) == [*COLUMNS, "file"]
    assert rows.empty
    assert rows["wall_seconds"].dtype == float
    assert rows["seed"].dtype == "int64"


def test_config_id_stands_for_the_values():
    one = {"lr": 0.1, "batch_size": 128}
    assert config_id(one) == "d17ebfc8"
    same = {"batch_size": np.int64(128), "lr": np.float64(0.1)}
    assert config_id(same) == config_id({"batch_size": 128.0, "lr": 0.1})
    assert config_id(same) == config_id(one)
    assert config_id({"lr": 0.1000000001, "batch_size": 128}) != config_id(one)


def test_result_path(tmp_path):
    path = result_path(tmp_path, "smoke", "digits-resnet8-tpe-seed0")
    assert path == tmp_path / "results" / "smoke" / "digits-resnet8-tpe-seed0.csv"
