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
    as_frame,
    commit,
    config_id,
    load_results,
    provenance,
    read_rows,
    write_rows,
)

ROOT = Path(__file__).resolve().parent.parent
NEEDED = [name for name, column in COLUMNS.items() if column.missing is None]


def study_row(**fields):
    return row("study", trial=0, param_lr=0.1) | fields


def written(folder, rows, write=write_rows):
    path = folder / "some.csv"
    write(path, rows)
    return path


def header(path):
    return path.read_text().partition("\n")[0].split(",")


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5))
def test_floats_come_back_exactly(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "floats.csv"
    write_rows(path, [study_row(val_loss=v, param_lr=v) for v in values])
    rows = read_rows(path)
    assert list(map(str, rows["val_loss"])) == list(map(str, values))
    assert list(map(str, rows["param_lr"])) == list(map(str, values))


def test_a_file_comes_back_as_it_was(tmp_path):
    rows = [
        study_row(curve="0.1000 0.2000", val_accuracy=np.float32(0.1), seed=np.int64(3)),
        row("data", dataset='imagefolder:/a "b", #c/\N{GREEK SMALL LETTER RHO}'),
        study_row(param_optimizer="sgd", level_lr=4, trial=1.0, **PROXY),
    ]
    back = read_rows(written(tmp_path, rows), finished=True)
    names = list(COLUMNS)
    after = names.index("config_id") + 1
    free = ["level_lr", "param_lr", "param_optimizer"]
    assert list(back) == [*names[:after], *free, *names[after:]]
    assert back["seed"].tolist() == [3, 0, 0]
    assert back["seed"].dtype == back["level_lr"].dtype == "int64"
    assert back["level_lr"].tolist() == [-1, -1, 4]
    assert back["dataset"][1] == rows[1]["dataset"]
    assert back["val_accuracy"][0] == float(np.float32(0.1))
    assert math.isnan(back["val_accuracy"][1])
    assert math.isnan(back["param_lr"][1])
    assert back["param_optimizer"].tolist() == ["", "", "sgd"]
    assert back["curve"].tolist() == ["0.1000 0.2000", "", ""]
    pd.testing.assert_frame_equal(as_frame(rows), back)
    pd.testing.assert_frame_equal(read_rows(written(tmp_path, back)), back)


def test_columns_of_defaults_are_left_out_and_come_back(tmp_path):
    sparse = {name: row("data")[name] for name in NEEDED} | {"sampler": "tpe"}
    path = written(tmp_path, [sparse])
    optional = ["proxy", "pruning_ratio", "plan", "sampler"]  # the identity's are always there
    assert header(path) == [name for name in COLUMNS if name in [*NEEDED, *optional]] + ["rows"]
    back = read_rows(path)
    assert back.loc[0, ["trial", "proxy", "samples", "workers"]].tolist() == [-1, "", 0, 1]
    assert math.isnan(back["test_accuracy"][0])
    assert "workers" in header(written(tmp_path, [sparse | {"workers": 2}]))


def test_a_file_is_a_plain_table_to_others_who_may_turn_its_columns(tmp_path):
    path = written(tmp_path, [study_row(trial=i, side=16) for i in range(3)])
    whole, table = read_rows(path), pd.read_csv(path)
    assert table[["trial", "rows"]].to_numpy().tolist() == [[0, 3], [1, 3], [2, 3]]
    table[table.columns[::-1]].to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_rows(path), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown column 'colour'"),
        ({"wall_seconds": None}, "wall_seconds is empty"),
        ({"state": "done"}, "state 'done' is not one of complete, stopped, diverged, failed"),
        ({"purpose": "fun"}, "purpose 'fun' is not one of data, proxy, study"),
        ({"role": "both"}, "role 'both' is not one of base, proxy"),
        ({"choice": "base+best"}, "choice 'base[+]best' is not one of .*base[+]proxy"),
        ({"val_accuracy": 90.0}, "val_accuracy '90.0' is not between 0 and 1"),
        ({"test_accuracy": -0.1}, "test_accuracy '-0.1' is not between 0 and 1"),
        ({"epochs": 1.5}, "epochs '1.5' is not a whole number"),
        ({"level_lr": 0.5}, "level_lr '0.5' is not a whole number"),
        ({"load": "low"}, "load 'low' is not a number"),
        ({"sampler": ""}, "sampler '' is for tables"),
        ({"curve": "0.1\n0.2"}, "curve '0.1.n0.2' holds a line break"),
        ({"param_net": "a\rb"}, "param_net 'a.rb' holds a line break"),
    ],
)
def test_a_wrong_row_is_refused_and_the_file_kept(tmp_path, change, message):
    path = written(tmp_path, [study_row()])
    before = path.read_bytes()
    for write in (write_rows, append_rows):
        with pytest.raises(InputError, match=rf"some\.csv, line \d: {message}"):
            write(path, [study_row(), study_row(**change)])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["some.csv"]


@pytest.mark.parametrize(
    ("damage", "line", "message"),
    [
        (lambda text: text[:-9], 3, "the file isn't whole; delete .*some.csv and run the same"),
        (lambda text: text[:-1], 3, "the file isn't whole"),
        (lambda text: "".join(text.splitlines(True)[:-1]), 3, "the file isn't whole"),
        (lambda text: text.splitlines(True)[0], 2, "the file isn't whole"),
        (lambda text: text + "laptop,dig", 4, "the file isn't whole"),
        (lambda text: text[:9], 1, "the file isn't whole"),
        (lambda text: "", 1, "the file isn't whole"),
        (lambda text: text + text.splitlines(True)[1], 5, "the file isn't whole"),
        (lambda text: text.replace(",complete,", ",comp,", 1), 2, "state 'comp'"),
        (lambda text: text + "1,2,3\n", 4, "fewer values than"),
        (lambda text: text.replace("\n", ",1\n").replace(",1", "", 1), None, "fields in line 2"),
        (lambda text: text + "\n", 4, "fewer values than"),
        (lambda text: re.sub("^[^,]*,", "", text, flags=re.MULTILINE), 1, "no column 'profile'"),
        (lambda text: text.replace("trial,state", "trial,mood", 1), 1, "unknown column 'mood'"),
        (lambda text: text.replace("trial,state", "state,state", 1), 1, "two columns 'state'"),
        (lambda text: text.replace(",1.0,", ",1.o,", 1), 2, "_seconds '1.o' is not a number"),
        (lambda text: text.replace("a processor", "a \udcff", 1), None, "'utf-8' codec"),
        (lambda text: text.replace("a processor", '"a" "b"', 1), None, "expected after"),
        (lambda text: text.replace("a processor", '"a', 1), None, "unexpected end"),
    ],
)
def test_a_corrupt_file_is_named_with_its_line_and_left_as_it_is(tmp_path, damage, line, message):
    path = written(tmp_path, [study_row(), study_row(trial=1)])
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogateescape"))
    before, place = path.read_bytes(), f", line {line}" if line else ""
    for read in (
        read_rows,
        lambda p: append_rows(p, [study_row()]),
        lambda p: load_results(p.parent),
    ):
        with pytest.raises(InputError, match=rf"{re.escape(str(path))}{place}: .*{message}"):
            read(path)
    assert path.read_bytes() == before


def test_only_a_finished_file_counts_as_finished(tmp_path):
    path = written(tmp_path, [study_row(), study_row(trial=1)], append_rows)
    assert len(read_rows(path)) == 2
    with pytest.raises(InputError, match="line 4: the file isn't whole; delete"):
        read_rows(path, finished=True)
    write_rows(path, read_rows(path))
    assert len(read_rows(path, finished=True)) == 2
    append_rows(path, [study_row(trial=2)])  # goes on: it is under way again
    assert read_rows(path)["trial"].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="isn't whole"):
        read_rows(path, finished=True)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.csv: No such file"):
        read_rows(tmp_path / "nothing.csv")


def test_appending_adds_a_line_and_makes_room_for_new_columns(tmp_path):
    path = written(tmp_path / "new folder", [study_row()], append_rows)
    began, inode = path.read_bytes(), path.stat().st_ino
    append_rows(path, [study_row(trial=1), row("data")])
    assert path.read_bytes().startswith(began)
    assert path.stat().st_ino == inode
    with path.open("rb") as reader:  # goes on to see the file as it was
        append_rows(path, [study_row(trial=2, param_momentum=0.9, test_loss=1.5)])
        assert reader.read().count(b"\n") == 4
    append_rows(path, [])
    rows = read_rows(path)
    assert rows["trial"].tolist() == [0, 1, -1, 2]
    np.testing.assert_equal(rows["param_lr"].tolist(), [0.1, 0.1, math.nan, 0.1])
    np.testing.assert_equal(rows["param_momentum"].tolist(), [math.nan] * 3 + [0.9])
    np.testing.assert_equal(rows["test_loss"].tolist(), [math.nan] * 3 + [1.5])


@pytest.mark.parametrize("more", [{}, {"test_loss": 1.5}])
def test_a_line_that_a_kill_left_torn_is_cut(tmp_path, more):
    path = written(tmp_path, [study_row()], append_rows)
    whole = path.read_bytes()
    for end in (whole[:-1], whole + b"laptop,dig", whole + "laptop,\N{DEGREE SIGN}".encode()[:-1]):
        path.write_bytes(end)
        left = 1 if end.startswith(whole) else 0
        assert len(read_rows(path)) == left
        append_rows(path, [study_row(trial=1) | more])
        assert read_rows(path)["trial"].tolist() == [0] * left + [1]


APPEND = """
import sys
sys.path.insert(0, {tests!r})
from made_rows import row
from proxyhpo.rows import append_rows
for trial in range({n}):
    append_rows({path!r}, [row("study", trial=trial, seed={seed})])
"""


def appending(path, n, seed):
    code = APPEND.format(tests=str(ROOT / "tests"), path=str(path), n=n, seed=seed)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    path = tmp_path / "some.csv"
    processes = [appending(path, 8, seed) for seed in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    rows = read_rows(path)
    assert rows.groupby("seed")["trial"].agg(list).tolist() == [list(range(8))] * 2


def test_a_killed_process_leaves_whole_rows_and_no_lock(tmp_path):
    path = tmp_path / "some.csv"
    process = appending(path, 100_000, 0)
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = read_rows(path)["trial"].tolist()
    append_rows(path, [study_row()])
    assert load_results(tmp_path)["trial"].tolist() == [*range(len(left)), 0]


def test_load_results_reads_a_folder_in_order_of_names(tmp_path):
    write_rows(tmp_path / "b.csv", [study_row(param_momentum=0.9, level_lr=2)])
    append_rows(tmp_path / "a.csv", [study_row(trial=7), study_row(trial=8, param_lr="high")])
    write_rows(tmp_path / "empty.csv", [])
    (tmp_path / "b-steps.csv").write_text("entrant,repeat,step_seconds\nbase,0,0.1\n")
    rows = load_results(tmp_path)
    assert rows["file"].tolist() == ["a.csv", "a.csv", "b.csv"]
    assert rows["trial"].tolist() == [7, 8, 0]
    assert rows["level_lr"].tolist() == [-1, -1, 2]
    assert rows["param_lr"].tolist() == ["0.1", "high", "0.1"]
    write_rows(tmp_path / "whole.csv", rows)
    pd.testing.assert_frame_equal(read_rows(tmp_path / "whole.csv"), rows.drop(columns="file"))


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
    assert config_id({"batch_size": np.int64(128), "lr": np.float64(0.1)}) == config_id(one)
    assert config_id({"batch_size": 128.0, "lr": 0.1}) == config_id(one)
    assert config_id({"lr": 0.1000000001, "batch_size": 128}) != config_id(one)


def test_provenance_is_part_of_a_row():
    known = provenance()
    assert set(known) <= set(COLUMNS)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", known["recorded"])
    assert all(re.match(r"\d+\.\d+", known[name]) for name in ("version", "optuna", "torch"))
    assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", known["commit"])


def test_a_commit_says_whether_the_package_was_changed(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    look = commit.__wrapped__
    package, installed = tmp_path / "package", tmp_path / ".venv" / "package"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "code.py").write_text("x = 1\n")
    assert look(package) == ""
    git("init")
    assert look(package) == ""
    git("add", "package")
    git("commit", "-m", "first")
    assert re.fullmatch("[0-9a-f]{40}", look(package))
    (tmp_path / "results.csv").write_text("rows that were added\n")
    assert re.fullmatch("[0-9a-f]{40}", look(package))
    assert look(installed) == ""
    (package / "code.py").write_text("x = 2\n")
    assert re.fullmatch("[0-9a-f]{40}-dirty", look(package))


def test_rows_are_read_without_torch():
    code = "import sys, proxyhpo.rows; sys.exit(bool({'torch', 'optuna'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
