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

import pytest
import yaml
from conftest import bare_environment

from proxyhpo import cli
from proxyhpo.config import PROFILES

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {
    **{"dask": "dask-core", "matplotlib": "matplotlib-base"},
    **{"seaborn": "seaborn-base", "torch": "pytorch"},
}
CONDA_NAMES["playwright"] = "playwright-python"

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


def start(script, *arguments, active=sys.prefix, **settings):
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CONDA_PREFIX")}
    return subprocess.Popen(
        [script, *map(str, arguments)],
        env=inherited | {"VIRTUAL_ENV": str(active)} | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=settings.get("CALLED_FROM", ROOT),
    )


def ended(process):
    """Return the exit status, standard output and standard error of ``process``."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="session")
def empty(tmp_path_factory):
    """An active environment with nothing installed."""
    folder = tmp_path_factory.mktemp("environments") / "empty"
    bare_environment(folder)
    return folder


@pytest.fixture
def miniature(tmp_path, empty):
    """Return a folder, and how to start its run_all.sh in an environment that lacks something."""
    folder = tmp_path / "a miniature"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "proxyhpo", folder / "proxyhpo", ignore=ignored)
    shutil.copy2(ROOT / "run_all.sh", folder)
    (folder / "pyproject.toml").write_text(MINIATURE)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "proxyhpo" / "__main__.py").write_text(TELL)
    (tmp_path / "go").symlink_to(folder / "run_all.sh")

    def begin(*arguments, **settings):
        offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "CALLED_FROM": str(tmp_path)}
        return start(tmp_path / "go", *arguments, active=empty, **offline, **settings)

    return folder, begin


def test_help_needs_no_python_and_names_every_verb_flag_and_profile(tmp_path):
    for tool in ("bash", "cat", "dirname", "env", "readlink"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    bare = {"PATH": str(tmp_path), "active": tmp_path / "nowhere"}
    status, told, _ = ended(start(ROOT / "run_all.sh", "help", **bare))
    assert status == 0
    assert told == ended(start(ROOT / "run_all.sh", "figures", "--help", **bare))[1]
    own = subprocess.run([sys.executable, "-m", "proxyhpo", "help"], capture_output=True, text=True)
    flags = set(re.findall(r"--[a-z-]+", told))
    assert flags - {"--slow"} == set(re.findall(r"--[a-z-]+", own.stdout))
    assert set(re.findall(r"^  ([a-z]+) ", told, re.MULTILINE)) == {*cli.VERBS, "test"}
    scales = told.partition("--profile")[2].partition("--dataset")[0]
    assert all(re.search(rf"\b{profile}\b", scales) for profile in PROFILES)

    status, _, told = ended(start(ROOT / "run_all.sh", **bare))
    assert (status, len(told.splitlines())) == (1, 1)
    assert "Python 3.11 or later" in told


@pytest.mark.parametrize(("argument", "named"), [("tset", "'test'"), ("--nonsense", "--nonsense")])
def test_wrong_arguments_are_answered_before_anything_is_set_up(miniature, argument, named):
    folder, begin = miniature
    status, _, told = ended(begin(argument))
    assert (status, len(told.splitlines())) == (2, 1)
    assert named in told
    assert not (folder / ".venv.lock").exists()


def test_the_test_verb_leaves_slow_tests_out_unless_asked():
    def collected(*more):
        arguments = ("test", "tests/test_setup.py", "--collect-only", "-q", "-n", "0", *more)
        return ended(start(ROOT / "run_all.sh", *arguments))[1]

    name = "test_a_set_up_that_failed_or_was_killed_is_made_anew"
    assert name not in collected()
    assert name in collected("--slow")


@pytest.mark.slow
def test_two_starts_at_once_set_up_once_and_later_ones_not_again(miniature):
    folder, begin = miniature
    told = [ended(process) for process in (begin("--jobs", "2"), begin("--jobs", "2"))]
    for status, out, error in told:
        assert status == 7, error  # the runner's own status is passed on
        assert out.startswith(f"{folder / '.venv'} ")
        assert out.rstrip().endswith("'--jobs', '2']")
    assert sum("CUDA" in error for *_, error in told) == 1
    assert sum("waiting" in error for *_, error in told) == 1
    assert ended(begin())[::2] == (7, "")

    (folder / "pyproject.toml").write_text(MINIATURE + "# changed\n")
    assert "completing" in ended(begin())[2]
    assert ended(begin())[2] == ""


@pytest.mark.slow
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
    assert not (folder / ".venv" / "torn").exists()
    assert ended(begin())[2] == ""


def test_what_is_lacking_is_named_with_the_version_that_is_there():
    assert cli.shortfall({"pytest": ">=8", "not-to-be-had": ">=1"}) == ["not-to-be-had"]
    assert cli.shortfall({"pytest": ">=8", "pyyaml": ""}) == []
    (told,) = cli.shortfall({"pytest": "<1"})
    assert re.fullmatch(r"pytest<1 \(it has [\d.]+\)", told)


def test_conda_gets_what_pip_gets():
    wanted = cli.requirements(PROJECT["optional-dependencies"])
    conda = {CONDA_NAMES.get(name, name) + span for name, span in wanted.items()}
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert set(listed[:-1]) == conda | {f"python{PROJECT['requires-python']}", "pip"}
    assert listed[-1] == {"pip": ["-e ."]}


def test_the_package_asks_for_what_it_imports_and_for_nothing_else():
    imported = set()
    for path in (ROOT / "proxyhpo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    homes = packages_distributions()
    asked = {name.lower() for name in cli.requirements()} - {"ipykernel"}  # what papermill starts
    used = set()
    for module in imported - sys.stdlib_module_names - {"proxyhpo", "IPython"}:
        owners = {home.lower() for home in homes[module]}
        assert asked & owners, module
        used |= owners
    assert asked <= used


def test_the_citation_names_this_version_and_the_repository_is_one_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert PROJECT["urls"]["Repository"] in (ROOT / "README.md").read_text(encoding="utf-8")
