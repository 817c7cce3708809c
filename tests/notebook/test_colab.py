"""A notebook on a machine like Colab's: torch is there, the repository and its package aren't.

What is real: the notebook's own first cell, pip, git, the build of the package, and the notebook
run with what pip installed. What is made up: the versions that Colab is said to have (August 2026),
as metadata over this environment's modules, and the network: git reads GitHub's address from a
repository on this disk, and pip finds wheels packed from what is installed here. What can't be seen
here: Colab's own image, its Python 3.13, its GPU, and how long its network takes.
"""

import json
import os
import shutil
import subprocess
import sysconfig
import time
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

import nbformat
import papermill
import pytest
from conftest import bare_environment

from proxyhpo.notebook.grid import FOLDER, address, project

ROOT = FOLDER.parent
SITE = Path(sysconfig.get_path("purelib"))
PINS = (ROOT / ".ci" / "colab.txt").read_text(encoding="utf-8").splitlines()
COLAB = dict(line.split("==") for line in PINS if not line.startswith("#"))
LACKING = ("alembic", "cmaes", "colorlog", "entrypoints", "Mako", "optuna", "papermill")
SECONDS = 120


def tops(dist):
    """The names in site-packages that a distribution owns."""
    return {file.parts[0] for file in dist.files or () if file.parts[0] != ".."}


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Return the Python of an environment with Colab's metadata, and without our package."""
    if not shutil.which("git"):
        pytest.skip("there is no git")
    absent = [name for name in (*COLAB, *LACKING, "setuptools", "pip") if not here(name)]
    if absent:
        pytest.skip(f"not installed in {SITE}, so not to be lent: {', '.join(absent)}")
    python, site = bare_environment(tmp_path_factory.mktemp("colab"))

    hidden = {"google", "__pycache__"}
    for name in (*LACKING, "proxyhpo"):
        hidden |= tops(distribution(name)) if here(name) else set()
    for entry in SITE.iterdir():
        if entry.name not in hidden and entry.suffix not in (".pth", ".dist-info"):
            (site / entry.name).symlink_to(entry)
    for dist in distributions(path=[str(SITE)]):
        if dist.name not in (*LACKING, "proxyhpo"):
            stub(site, dist, COLAB.get(dist.name, dist.version))
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").touch()
    (site / "colab.pth").write_text("import google.colab\n")  # imported before any cell, as there
    return python


def here(name):
    try:
        return Path(str(distribution(name).locate_file(""))).samefile(SITE)
    except PackageNotFoundError:
        return False


def stub(site, dist, version):
    """Metadata that no installer can take for files of its own, so replacing it is an error."""
    info = site / f"{dist.name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {dist.name}\nVersion: {version}\n"
    )
    if entry_points := dist.read_text("entry_points.txt"):
        (info / "entry_points.txt").write_text(entry_points)


def pack(name, folder):
    """Pack an installed distribution into a wheel again."""
    dist = distribution(name)
    files = [f for f in dist.files if f.parts[0] != ".." and f.suffix != ".pyc"]
    stem = f"{dist.name.replace('-', '_')}-{dist.version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for file in files:
            if file.name not in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                wheel.write(file.locate(), str(file))
        record = next(str(file) for file in files if file.name == "RECORD")
        wheel.writestr(record, "".join(f"{n},,\n" for n in [*wheel.namelist(), record]))


def tagged_repository(folder):
    """Make a repository of the package as it is here, with the tag that the cell asks for."""
    for name in ("proxyhpo", "results"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=no"]
    for command in (
        ["init", "-q"],
        ["add", "."],
        [*who, "commit", "-qm", "package"],
        ["tag", f"v{project()['version']}"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)


def frozen(python):
    listed = subprocess.run(
        [python, "-I", "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True
    )
    return set(listed.stdout.splitlines())


@pytest.mark.slow
def test_the_first_cell_brings_the_package_and_replaces_nothing(colab, tmp_path, monkeypatch):
    for name in ("repository", "wheels", "empty", "kernels/colab"):
        (tmp_path / name).mkdir(parents=True)
    tagged_repository(tmp_path / "repository")
    for name in (*LACKING, "setuptools"):
        pack(name, tmp_path / "wheels")
    settings = {
        "PYTHONPATH": "",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_ROOT_USER_ACTION": "ignore",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path / 'repository'}.insteadOf",
        "GIT_CONFIG_VALUE_0": address(),
    }
    argv = [str(colab), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": argv, "display_name": "colab", "language": "python", "env": settings}
    (tmp_path / "kernels" / "colab" / "kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))

    lacks = subprocess.run([colab, "-I", "-c", "import proxyhpo"], capture_output=True, text=True)
    assert "No module named 'proxyhpo'" in lacks.stderr
    before = frozen(colab)
    assert f"torch=={COLAB['torch']}" in before

    began = time.monotonic()
    papermill.execute_notebook(
        FOLDER / "00_start_here.ipynb",
        tmp_path / "executed.ipynb",
        parameters={"trials": 6},
        kernel_name="colab",
        cwd=tmp_path / "empty",
        progress_bar=False,
        execution_timeout=600,
    )
    print(f"the notebook took {time.monotonic() - began:.0f} s")
    cells = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert address() in first.source
    print(f"its first cell took {first.metadata.papermill.duration:.0f} s")
    assert first.metadata.papermill.duration < SECONDS

    after = frozen(colab)
    assert before < after
    added = {line.partition("==")[0].partition(" @")[0] for line in after - before}
    assert added == {"proxyhpo", *LACKING}
    shown = "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))
    assert "cifar10-resnet20: r = " in shown  # the recorded tables came with the package
    assert not list((tmp_path / "empty").iterdir())
