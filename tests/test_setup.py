"""run_all.sh in copies of the repository; and the files that have to agree with pyproject.toml."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import made_rows
import pytest
import yaml

from proxyhpo import cli as environment
from proxyhpo.cli import VERBS
from proxyhpo.config import PROFILES
from proxyhpo.rows import result_path, write_rows

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"matplotlib": "matplotlib-base", "seaborn": "seaborn-base", "torch": "pytorch"}
CONDA_NAMES["psycopg2-binary"] = "psycopg2"
CONDA_NAMES["playwright"] = "playwright-python"
ONLY_ON_PYPI = {"torch-pruning"}

# A project with run_all.sh that is set up in seconds and without a network. It depends on itself
# because that's a dependency which no other environment has.
MINIATURE = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "miniature"
version = "1"
dependencies = ["miniature"]
[project.optional-dependencies]
lab = []
test = []
"""
BACKEND = """
import os, pathlib, time, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    pathlib.Path("building").touch()
    time.sleep(float(os.environ.get("SECONDS_TO_BUILD", 0)))
    info = "miniature-1.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder, "miniature-1-py3-none-any.whl"), "w") as wheel:
        metadata = "Metadata-Version: 2.1\\nName: miniature\\nVersion: 1\\nRequires-Dist: miniature"
        extras = "\\nProvides-Extra: lab\\nProvides-Extra: test\\n"
        wheel.writestr(f"{info}/METADATA", metadata + extras)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "miniature-1-py3-none-any.whl"
"""
TELL = "import sys; print(sys.prefix, sys.argv[1:]); sys.exit(7)"


def copy(target):
    """Copy what git has or would have of this repository."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("the tests don't run in a git checkout")
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def start(script, *arguments, cwd, active=sys.prefix, **settings):
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CONDA_PREFIX")}
    return subprocess.Popen(
        [script, *map(str, arguments)],
        cwd=cwd,
        env=inherited | {"VIRTUAL_ENV": str(active)} | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process):
    """Return the exit status, standard output and standard error of ``process``."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def call(*arguments, **options):
    return ended(start(*arguments, **options))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return copy(tmp_path_factory.mktemp("copies") / "a folder with blanks")


@pytest.fixture(scope="module")
def script(checkout, tmp_path_factory):
    """A symbolic link to the copy's run_all.sh, in another folder."""
    link = tmp_path_factory.mktemp("some where") / "go"
    link.symlink_to(checkout / "run_all.sh")
    return link


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An active environment with nothing installed."""
    folder = tmp_path_factory.mktemp("environments") / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


@pytest.fixture
def bare(tmp_path):
    """A PATH without any Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "cat", "dirname", "env", "readlink"):
        (folder / tool).symlink_to(shutil.which(tool))
    return {"PATH": str(folder), "active": tmp_path / "nowhere"}


def test_help_needs_no_python_and_names_every_verb_flag_and_profile(script, tmp_path, bare):
    status, told, _ = call(script, "figures", "--help", cwd=tmp_path, **bare)
    assert status == 0
    own = subprocess.run(
        [sys.executable, "-m", "proxyhpo", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert set(re.findall(r"--[a-z-]+", told)) == set(re.findall(r"--[a-z-]+", own.stdout))
    assert set(re.findall(r"^  ([a-z]+) ", told, re.MULTILINE)) == {*VERBS, "test"}
    for profile in PROFILES:
        assert re.search(rf"--profile .*\b{profile}\b", told)


def test_without_a_python_that_is_new_enough_one_line_says_so(script, tmp_path, bare):
    status, _, told = call(script, cwd=tmp_path, **bare)
    assert status == 1
    assert len(told.splitlines()) == 1
    assert "Python 3.11 or later" in told


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["tset"], "'test'"),
        (["fgures"], "figures"),
        (["--profile", "smok"], "smoke, laptop, trust, gpu, paper"),
        (["--jobs", "0"], "at least 1"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_arguments_are_answered_before_anything_is_set_up(
    checkout, script, empty, tmp_path, arguments, named
):
    status, _, told = call(script, *arguments, cwd=tmp_path, active=empty)
    assert status == 2
    assert len(told.splitlines()) == 1
    assert named in told
    assert not (checkout / ".venv.lock").exists()


def test_an_active_environment_is_used_and_paths_belong_to_the_callers_folder(
    checkout, script, tmp_path
):
    out = tmp_path / "an out folder"
    rows = made_rows.experiment() + made_rows.ranking()
    file = result_path(out, "laptop", "made-up")
    file.parent.mkdir(parents=True)
    write_rows(file, rows)
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')")
    status, _, error = call(script, "figures", "--out", out.name, cwd=tmp_path)
    assert status == 0, error
    assert list((out / "figures" / "laptop").glob("*.svg"))
    assert not (checkout / ".venv.lock").exists()


def test_without_an_out_folder_it_is_the_checkout_whatever_the_current_folder(
    checkout, script, tmp_path
):
    shutil.rmtree(checkout / "results", ignore_errors=True)
    status, _, told = call(script, "figures", cwd=tmp_path)
    assert status == 2
    assert str(checkout / "results") in told


def test_test_runs_pytest_in_the_checkout(script, tmp_path):
    chosen = "tests/test_config.py"
    status, told, error = call(script, "test", chosen, "--collect-only", "-q", cwd=tmp_path)
    assert status == 0, error
    assert re.search(r"^\d+ tests collected", told, re.MULTILINE)


@pytest.fixture
def miniature(tmp_path, empty):
    """Return a folder, and how to start its run_all.sh in an environment that lacks something."""
    folder = tmp_path / "a miniature"
    shutil.copytree(ROOT / "proxyhpo", folder / "proxyhpo")
    shutil.copy2(ROOT / "run_all.sh", folder)
    (folder / "pyproject.toml").write_text(MINIATURE)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "proxyhpo" / "__main__.py").write_text(TELL)

    def begin(*arguments, **settings):
        offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
        script = folder / "run_all.sh"
        return start(script, *arguments, cwd=tmp_path, active=empty, **offline, **settings)

    return folder, begin


def test_two_starts_at_once_set_up_once_and_later_ones_not_again(miniature):
    folder, begin = miniature
    told = [ended(process) for process in (begin("--jobs", "2"), begin("--jobs", "2"))]
    for status, out, error in told:
        assert status == 7, error  # the runner's own status is passed on
        assert out.startswith(f"{folder / '.venv'} ")
        assert out.rstrip().endswith("'--jobs', '2']")
    assert sum("2 minutes" in error for *_, error in told) == 1
    assert sum("waiting" in error for *_, error in told) == 1

    quickest = []
    for _ in range(3):
        began = time.perf_counter()
        assert ended(begin())[::2] == (7, "")
        quickest.append(time.perf_counter() - began)
    assert min(quickest) < 1

    (folder / "pyproject.toml").write_text(MINIATURE + "# changed\n")
    assert "completing" in ended(begin())[2]
    assert ended(begin())[2] == ""


def test_a_set_up_that_failed_or_was_killed_is_made_anew(miniature):
    folder, begin = miniature
    status, out, told = ended(begin(SECONDS_TO_BUILD="a broken build"))
    assert (status, out) == (1, "")
    assert "a broken build" in told
    assert told.splitlines()[-1].startswith("run_all.sh: error: the installation failed")

    (folder / "building").unlink()
    killed = begin(SECONDS_TO_BUILD="100")
    deadline = time.monotonic() + 60
    while not (folder / "building").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    ended(killed)
    (folder / ".venv" / "torn").touch()

    status, _, told = ended(begin())
    assert status == 7, told
    assert "2 minutes" in told
    assert not (folder / ".venv" / "torn").exists()
    assert ended(begin())[2] == ""


def test_what_is_lacking_is_named_with_the_version_that_is_there():
    assert environment.shortfall({"pytest": ">=8", "not-to-be-had": ">=1"}) == ["not-to-be-had"]
    assert environment.shortfall({"pytest": ">=8", "pyyaml": ""}) == []
    (told,) = environment.shortfall({"pytest": "<1"})
    assert re.fullmatch(r"pytest<1 \(it has [\d.]+\)", told)


def test_conda_gets_what_pip_gets():
    wanted = environment.requirements(PROJECT["optional-dependencies"])
    conda = {
        CONDA_NAMES.get(name, name) + span
        for name, span in wanted.items()
        if name not in ONLY_ON_PYPI
    }
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert set(listed[:-1]) == conda | {f"python{PROJECT['requires-python']}", "pip"}
    pypi = {name + wanted[name] for name in ONLY_ON_PYPI}
    assert set(listed[-1]["pip"]) == pypi | {"-e ."}


def test_all_that_the_package_imports_is_asked_for():
    imported = set()
    for path in (ROOT / "proxyhpo").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    homes = packages_distributions()
    asked = {name.lower() for name in environment.requirements()}
    for module in imported - sys.stdlib_module_names - {"proxyhpo"}:
        assert asked & {home.lower() for home in homes[module]}, module


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
