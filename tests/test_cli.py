import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from unittest.mock import Mock

import nbformat
import pytest
from filelock import FileLock
from made_tables import made_rows, made_steps
from papermill import PapermillExecutionError

from proxyhpo import cli
from proxyhpo.config import PROFILES, Experiment
from proxyhpo.rows import load_results, write_rows

ROOT = cli.CHECKOUT
SMALL = ["--model", "resnet8"]
DIGITS = Experiment("digits", "resnet8", "tpe", PROFILES["smoke"])


def command(*arguments, before=(), path=ROOT):
    return subprocess.run(
        [*before, sys.executable, "-m", "proxyhpo", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def told(capsys, out, *arguments):
    """Return the status of a command, and the only line that it tells on standard error."""
    status = cli.main(["--out", str(out), *arguments])
    (line,) = capsys.readouterr().err.strip().splitlines()
    return status, line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["runn"], "did you mean 'run'"),
        (["--profile", "smok"], "did you mean 'smoke'"),
        (["--dataset", "digit"], "digits"),
        (["--model", "resnet57"], "resnet56"),
        (["--sampler", "bo"], "tpe, cmaes, gp"),
        (["--jobs", "0"], "--jobs 0"),
        (["--jobs", "two"], "--jobs two"),
        (["--jobs", "10000"], "--jobs 10000"),
        (["--nonsense"], "--nonsense"),
        (["--data-dir", "/nowhere"], "/nowhere"),
        (["--scheduler", "tcp://127.0.0.1:1"], "record"),
        (["figures", "--dataset", "cifar10"], "--dataset: goes with the verb run or record or "),
        (["replay", "--sampler", "gp"], "--sampler: goes with the verb run"),
        (["record", "--dataset", "digits", "--model", "resnet56"], "digits-resnet8"),
        (["record", "--profile", "gpu", "--dataset", "digits", *SMALL], "'digits-resnet8-gpu'"),
        (["record", "--profile", "paper"], "'paper': choose from smoke, gpu"),
        (["record", "--entrant", "snipp@0.25"], "did you mean 'snip@0.25'"),
        (["replay"], "no recorded table"),
        (["replay", "--profile", "gpu"], "--profile: goes with the verb run or record"),
        (["--profile", "table", "--storage", "x.db"], "leave out --storage and --data-dir"),
        (["--profile", "table", "--data-dir", "/tmp"], "leave out --storage and --data-dir"),
        (["--dataset", "imagefolder:/nowhere/at/all"], "/nowhere/at/all"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
        (["figures", "--out", "/proc/nowhere"], "can't write to the output folder /proc/nowhere"),
        (["generate"], "generate writes into its own checkout"),
    ],
)
def test_wrong_values_get_one_line_and_status_2(arguments, named, capsys, tmp_path):
    status, line = told(capsys, tmp_path, *arguments)
    assert status == 2
    assert named in line
    assert not list(tmp_path.rglob("*.csv"))


def test_generate_outside_a_checkout_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    status, line = told(capsys, tmp_path, "generate")
    assert status == 2
    assert "needs a checkout" in line


@pytest.mark.parametrize(
    ("arguments", "then"),
    [
        (["run"], "goes on where this one stopped"),
        (["record"], "goes on where this one stopped"),
        (["--profile", "table"], "begins anew"),
        (["replay"], "begins anew"),
    ],
)
def test_an_interruption_says_what_the_same_command_does(
    arguments, then, capsys, tmp_path, monkeypatch
):
    for verb in ("run", "record", "replay"):
        monkeypatch.setitem(cli.ACTIONS, verb, Mock(side_effect=KeyboardInterrupt))
    cli.main([*arguments, "--out", str(tmp_path)])
    assert f"interrupted; the same command {then}" in capsys.readouterr().err


def test_names_are_answered_before_any_library_has_loaded():
    script = (
        "import sys; from proxyhpo import cli\n"
        "for flag in ('--profile', '--dataset', '--model', '--sampler'):\n"
        "    assert cli.main([flag, 'x']) == 2\n"
        "assert not {'torch', 'numpy', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:SECRET@host/db",
        "postgresql://me:SEC@RET@host/db",
        "postgresql://me@SECRET@host/db",
        "postgresql://me@host/db?password=SECRET",
        "postgresql://me@host/db?pw=SECRET",
        "postgresql://host/db#password=SECRET",
        "postgresql:me:SECRET@host/db",
        "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3DSECRET",
        "redis://:SECRET@host:6379",
    ],
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(url, capsys, tmp_path):
    status, line = told(capsys, tmp_path, "--storage", url)
    assert status == 2
    assert "PROXYHPO_STORAGE" in line
    assert "SEC" not in line


@pytest.mark.parametrize("where", ["studies.db", "sqlite:///x.db", "postgresql://me@host:5432/db"])
def test_a_storage_without_a_password_may_be_named(where):
    assert cli.parse(["--storage", where]).storage == where


def test_a_storage_that_isnt_one_is_refused_before_any_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PROXYHPO_STORAGE", "")  # it is set by the command, for its notebooks
    script = tmp_path / "run.py"
    script.write_text("print()")
    small = ("--dataset", "digits", "--model", "resnet8")
    status, line = told(capsys, tmp_path, "--storage", str(script), *small)
    assert status == 2
    assert "run.py: not a journal of studies" in line
    assert script.read_text() == "print()"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with one table, made by formula."""
    out = tmp_path_factory.mktemp("recorded")
    curves = out / "results" / "curves"
    curves.mkdir(parents=True)
    write_rows(curves / "cifar10-resnet20.csv", made_rows())
    made_steps().to_csv(curves / "cifar10-resnet20-steps.csv", index=False)
    return out


def test_figures_are_drawn_from_tables_without_torch(recorded, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch')", encoding="utf-8")
    drawn = command("figures", "--out", recorded, path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert drawn.returncode == 0, drawn.stderr
    names = {path.name for path in (recorded / "figures").iterdir()}
    assert {"regret-cifar10.svg", "speedup-cifar10.png", "epoch_cost.json"} <= names
    assert "regret-cifar10 drawn" in drawn.stdout.splitlines()
    assert str(recorded / "figures") in drawn.stdout.splitlines()[-1]


def test_record_lists_the_tables_of_a_scale(tmp_path, capsys):
    def listed(*arguments):
        assert cli.main(["record", *arguments, "--out", str(tmp_path)]) == 0
        return capsys.readouterr().out

    digits = listed("--dataset", "digits")
    assert "digits-resnet8: 0 trainings recorded, next gate, 9 of 9 to train" in digits
    larger = listed("--dataset", "cifar10", "--profile", "gpu")
    assert "cifar10-resnet56-gpu: 0 trainings recorded" in larger
    assert "cifar10-resnet56: " not in larger
    assert "record --profile gpu --dataset NAME" in larger


@pytest.mark.slow
def test_a_table_is_recorded_and_then_nothing_is_missing(tmp_path):
    table = ("record", "--dataset", "digits", *SMALL, "--out", tmp_path, "--until", "seed 0")
    assert command(*table, "--jobs", "2").returncode == 0
    again = command(*table)
    assert "nothing missing" in again.stdout
    assert (tmp_path / "results" / "curves" / "digits-resnet8.csv").exists()


@pytest.mark.slow
def test_experiments_are_looked_up_in_tables_and_the_others_named(recorded):
    networks = ["--model", "resnet20", "--model", "resnet56"]
    table = ["--profile", "table", "--dataset", "cifar10", "--sampler", "tpe", *networks]
    done = command(*table, "--out", recorded)
    assert done.returncode == 0, done.stderr
    assert "not recorded: table cifar10-resnet56" in done.stdout
    assert "1 of 1 experiments ran" in done.stdout
    (executed,) = (recorded / "runs/table/notebooks").glob("*.ipynb")
    assert executed.name == "cifar10-resnet20-tpe-seed0.ipynb"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run with a storage that nobody else should see."""
    out = tmp_path_factory.mktemp("a folder with blanks")
    file = out / "SECRET.db"
    return out, command(*SMALL, "--storage", file, "--out", out)


@pytest.mark.slow
def test_a_run_leaves_rows_figures_and_notebooks_and_says_where(ran):
    out, done = ran
    assert done.returncode == 0, done.stderr
    assert "1 to run" in done.stdout
    assert "HPO on N_P" in done.stdout + done.stderr
    rows = load_results(out / "results" / "smoke")
    assert {"study", "verify", "final", "ranking"} <= set(rows["purpose"])
    assert list((out / "figures").glob("*.svg"))
    *_, figures, where = done.stdout.strip().splitlines()
    assert str(out / "figures") in figures
    assert "RESULTS.md" in where


@pytest.mark.slow
def test_the_storage_is_used_and_not_written_into_the_notebook(ran):
    out, _ = ran
    assert (out / "SECRET.db").stat().st_size > 10_000
    (path,) = (out / "runs" / "smoke" / "notebooks").glob("*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    assert "SECRET" not in nbformat.writes(notebook)


@pytest.mark.slow
def test_a_finished_run_is_skipped(ran):
    out, _ = ran
    before = {p: p.stat().st_mtime_ns for p in (out / "results").rglob("*.csv")}
    done = command(*SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "1 of them recorded" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (out / "results").rglob("*.csv")}


@pytest.mark.slow
def test_a_failing_notebook_is_named_and_the_others_still_run(tmp_path, capsys):
    experiments = [replace(DIGITS, network=name) for name in ("no", "such")]
    options = argparse.Namespace(out=tmp_path, jobs=2, data_dir=None)
    failed = cli._execute(experiments, options)
    assert sorted(failed) == ["digits-no-tpe-seed0", "digits-such-tpe-seed0"]
    out, err = capsys.readouterr()
    assert "failed: digits-no-tpe-seed0: InputError: unknown network 'no'" in err
    assert "0 of 2 experiments ran" in out


def test_a_kernel_that_starts_after_an_interrupt_is_ended_too():
    script = (
        "import subprocess, time; from proxyhpo import cli; pool = cli.ThreadPoolExecutor(1)\n"
        "late = lambda: (time.sleep(0.5), subprocess.run(['sleep', '300']))\n"
        "jobs = [pool.submit(late) for _ in range(2)]\n"
        "cli._end_kernels(pool, jobs)\n"
        "assert jobs[1].cancelled()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=100)


def test_a_second_run_is_refused_in_one_line_with_status_1(tmp_path, capsys):
    run = cli.load("proxyhpo.experiment.protocol").Run(DIGITS, out=tmp_path)
    run.folder.mkdir(parents=True)
    with FileLock(run._own.lock.lock_file):
        status, line = told(capsys, tmp_path, *SMALL)
    assert status == 1
    assert str(run.folder) in line


@pytest.mark.parametrize("arguments", [["figures"], SMALL])
def test_a_full_disk_gets_one_line_that_names_it_and_status_1(arguments, tmp_path):
    private = ["unshare", "--map-root-user", "--mount"]
    small = f"mount -t tmpfs -o size=40k none {tmp_path}"
    fill = f"head -c 1M /dev/zero > {tmp_path}/filler; :"
    if not shutil.which("unshare") or subprocess.run([*private, "sh", "-c", small]).returncode:
        pytest.skip("no small disk can be had here")
    script = f'{small}; {fill}; exec "$@"'
    done = command(*arguments, "--out", tmp_path, before=[*private, "sh", "-c", script, "sh"])
    (line,) = [one for one in done.stderr.splitlines() if "head:" not in one]
    assert done.returncode == 1
    assert "no space left" in line
    assert str(tmp_path) in line


@pytest.mark.parametrize(
    "value", ["[Errno 28] No space left on device", "(sqlite3.OperationalError) disk is full"]
)
def test_a_full_disk_in_a_notebooks_kernel_is_none_of_its_failures(value, tmp_path, monkeypatch):
    error = PapermillExecutionError(1, 1, "", "OSError", value, [])
    monkeypatch.setattr(cli, "_one", Mock(side_effect=error))
    options = argparse.Namespace(out=tmp_path, jobs=1, data_dir=None)
    with pytest.raises(OSError, match="No space left") as caught:
        cli._execute([DIGITS], options)
    assert caught.value.filename == str(tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_soon_and_says_how_to_go_on(tmp_path, sent, status):
    process = subprocess.Popen(
        [sys.executable, "-m", "proxyhpo", *SMALL, "--jobs", "1", "--out", str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # whatever started the tests in the background may have them ignore interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    pending = tmp_path / "runs" / "smoke" / DIGITS.name / "base.journal"
    deadline = time.monotonic() + 240
    while not pending.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "the same command goes on" in err.splitlines()[-1]
    assert "Traceback" not in err
