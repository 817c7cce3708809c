"""The package as a whole: its public names, the order of its rooms, and its wheel."""

import ast
import graphlib
import os
import pydoc
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import bare_environment

import proxyhpo

SOURCE = Path(proxyhpo.__file__)
ROOT = SOURCE.parents[1]
PUBLIC = [name for name in proxyhpo.__all__ if name != "__version__"]


def test_help_lists_each_public_name_with_one_line():
    told = pydoc.plain(pydoc.render_doc(proxyhpo))
    listed = re.findall(r"^ {8}(\w+) {2,}\S.+$", told, re.MULTILINE)
    assert sorted(listed) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_has_words_of_its_own(name):
    value = getattr(proxyhpo, name)
    if name != "PROFILES":
        assert value.__doc__.splitlines()[0].endswith((".", ":"))


def test_type_checkers_see_what_loads_on_first_use():
    (block,) = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module.removeprefix("proxyhpo.")
        for node in block.body
        for alias in node.names
    }
    assert seen == proxyhpo._HOMES
    assert SOURCE.with_name("py.typed").exists()


ROOMS = {
    "config": "",
    "models": "config",
    "data": "config",
    "training": "config models data",
    "pruning": "config models",
    "rows": "config",
    "hpo": "config data pruning rows",
    "experiment": "config models data training rows hpo",
    "analysis": "config hpo",
    "tuning": "config models data training pruning rows hpo experiment analysis",
    "report": "config analysis",
    "notebook": "config rows hpo experiment analysis report",
    "cli": "config hpo experiment analysis report notebook",
}
"""Room -> what it may import beside itself; in the order in which data pass through."""


def imports():
    """Return module -> our modules that it imports anywhere, in functions too."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules()}
    found = {}
    for path, name in names.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: imports are written out"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= inside & set(names.values()) or {node.module}
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "load":
                found[name] |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return {name: {m for m in own if m.startswith("proxyhpo.")} for name, own in found.items()}


def modules():
    return [path for path in SOURCE.parent.rglob("*.py") if path.name[:2] != "__"]


def test_a_room_imports_only_what_stands_before_it():
    rooms = list(ROOMS)
    assert all(set(may.split()) <= set(rooms[: rooms.index(room)]) for room, may in ROOMS.items())
    for name, imported in imports().items():
        room = name.split(".")[1]
        for other in {module.split(".")[1] for module in imported} - {room}:
            assert other in ROOMS[room].split(), f"{name} imports {other}"


def test_no_imports_go_in_a_circle():
    assert list(graphlib.TopologicalSorter(imports()).static_order())


def test_the_inner_init_files_are_empty():
    assert {path.read_text() for path in SOURCE.parent.glob("*/__init__.py")} == {""}
    assert all((path.parent / "__init__.py").exists() for path in modules())


@pytest.mark.slow
def test_a_wheel_brings_the_recorded_tables_and_draws_a_figure_outside_a_checkout(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("proxyhpo", "results", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tmp_path / "source")
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run([sys.executable, "-m", "pip", *build, "."], cwd=tmp_path / "source", check=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert packed >= {str(path.relative_to(ROOT)) for path in modules()}
    tables = [path.name for path in (ROOT / "results" / "curves").glob("*.csv")]
    assert packed >= {f"proxyhpo/recorded/curves/{name}" for name in tables}
    assert "proxyhpo/recorded/experiment.ipynb" in packed

    python, site = bare_environment(tmp_path / "new")
    # what the package needs is lent; a .pth file's own .pth files aren't read, so no checkout is
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = (
        "from pathlib import Path; import proxyhpo; from proxyhpo.analysis.evidence import Evidence"
        "; from proxyhpo.report.figures import draw_all; print(proxyhpo.__file__)"
        "; assert any(f.suffix == '.svg' for f in draw_all(Evidence(), Path('figures')))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
