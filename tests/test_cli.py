import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxyhpo import cli as runner
from proxyhpo import config
from proxyhpo.config import PROFILES, Experiment
from proxyhpo.rows import PURPOSES, load_results

ROOT = Path(runner.__file__).resolve().parent.parent


def command(*arguments, cwd=ROOT, path=ROOT, **options):
    return subprocess.run(
        [sys.executable, "-m", "proxyhpo", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


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
        (["--nonsense"], "--nonsense"),
        (["--dataset", "imagefolder:/nowhere/at/all"], "/nowhere/at/all"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
        (["figures", "--out", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_values_get_one_line_and_status_2(arguments, named, capsys, tmp_path):
    assert runner.main(["--out", str(tmp_path), *arguments]) == 2
    told = capsys.readouterr()
    assert named in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.csv"))


def test_a_wrong_profile_is_answered_without_loading_torch():
    script = (
        "import sys; from proxyhpo import cli; status = cli.main(['--profile', 'x']);"
        "sys.exit(status if 'torch' not in sys.modules else 9)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 2


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp("a folder with blanks")
    return out, command("--sampler", "tpe", "--model", "resnet8", "--out", out)


def test_a_run_leaves_rows_figures_and_notebooks(ran):
    out, done = ran
    assert done.returncode == 0, done.stderr
    assert "1 to run" in done.stdout
    assert "HPO on N_P" in done.stdout + done.stderr
    rows = load_results(out / "results" / "smoke")
    assert set(rows["purpose"]) == set(PURPOSES) - {"lost"}
    drawn = {path.name for path in (out / "figures" / "smoke").iterdir()}
    for name in ("speedup", "ledger", "rank_correlation", "incumbent"):
        assert {f"{name}.svg", f"{name}.png", f"{name}.json"} <= drawn
    assert (out / "runs/smoke/notebooks/digits-resnet8-tpe-seed0.ipynb").exists()


def test_a_finished_run_is_skipped(ran):
    out, _ = ran
    before = {p: p.stat().st_mtime_ns for p in (out / "results").rglob("*.csv")}
    done = command("--sampler", "tpe", "--model", "resnet8", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "1 of them recorded" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (out / "results").rglob("*.csv")}


def test_figures_are_drawn_again_without_torch(ran, tmp_path):
    out, _ = ran
    (tmp_path / "torch.py").write_text("raise ImportError('torch')", encoding="utf-8")
    before = {p.name: p.read_bytes() for p in (out / "figures" / "smoke").glob("*.svg")}
    # on the path, hence met by the processes that draw as well
    drawn = command("figures", "--out", out, path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert drawn.returncode == 0, drawn.stderr
    assert before == {p.name: p.read_bytes() for p in (out / "figures" / "smoke").glob("*.svg")}


def test_a_failing_notebook_is_named_and_the_others_still_run(tmp_path, monkeypatch, capsys):
    ran = []

    def execute(source, target, parameters):
        ran.append(parameters["sampler"])
        if parameters["sampler"] == "tpe":
            raise RuntimeError("a reason\nand more")

    monkeypatch.setattr(config.load("proxyhpo.notebook.grid"), "execute", execute)
    monkeypatch.setattr(runner, "_draw", lambda *_: 0)
    status = runner.main(["--model", "resnet8", "--out", str(tmp_path)])
    told = capsys.readouterr()
    assert status == 1
    assert sorted(ran) == ["cmaes", "gp", "tpe"]
    assert "failed: digits-resnet8-tpe-seed0: RuntimeError: a reason" in told.err
    assert "2 of 3 experiments ran" in told.out


def test_an_interrupted_run_ends_soon_and_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "proxyhpo", "--model", "mobilenetv2_x0.35", "--out", str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # whatever started the tests in the background may have them ignore interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    experiment = Experiment("digits", "mobilenetv2_x0.35", "tpe", PROFILES["smoke"])
    pending = tmp_path / "runs" / "smoke" / experiment.name / "base.journal"
    deadline = time.monotonic() + 90
    while not pending.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == runner.INTERRUPTED
    assert "the same command goes on" in told
