"""CONTRIBUTING.md, followed to the letter; and the habits that it asks for."""

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import yaml

from proxyhpo.notebook.grid import FOLDER, SHOWN

ROOT = FOLDER.parent
TRY = """
import sys
import pytest
from proxyhpo import Experiment, cli, run_experiment, scaled

cli.parse(["--model", "plain"])
status = pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_models.py", "-k", "plain"])
assert status == 0, status
scale = scaled("smoke", trials=2, verify=1, epochs=1, ranking=0, subset=10)
rows = run_experiment(Experiment("digits", "plain", "random", scale), out=sys.argv[1])
assert set(rows["network"]) == {"plain"}
base, proxy = (rows[rows["role"] == role]["macs"].max() for role in ("base", "proxy"))
assert 0.2 < proxy / base < 0.3, (proxy, base)
print("followed")
"""


def add_to(path, registry, end, line, before=""):
    source, count = re.subn(
        registry,
        lambda match: f"{before}{match[1]}    {line}{end}",
        path.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    assert count == 1
    path.write_text(source, encoding="utf-8")


@pytest.mark.slow
def test_a_network_added_in_these_steps_is_tested_pruned_and_run(tmp_path):
    words = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = words.partition("## A base network")[2].partition("\n## ")[0]
    blocks = re.findall(r"^   ```python\n(.*?)^   ```", section, re.DOTALL | re.MULTILINE)
    function, line = (textwrap.dedent(block) for block in blocks)
    for name in ("proxyhpo", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    add_to(tmp_path / "proxyhpo/models.py", r"^(MODELS: .*?)^}$", "}", line, function + "\n\n")
    add_to(tmp_path / "proxyhpo/config.py", r"^(NETWORKS = .*?)^\)$", ")", '"plain",\n')
    done = subprocess.run(
        [sys.executable, "-P", "-c", TRY, tmp_path / "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["followed"], done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_hooks_run_installed_tools_and_need_no_network():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in repos} == {"local"}
    hooks = {hook["id"]: hook for repo in repos for hook in repo["hooks"]}
    assert set(hooks) >= {"nbstripout", "ruff", "ruff-format", "mypy"}
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    for extra in ("metadata.papermill", "cell.metadata.papermill", "metadata.language_info"):
        assert extra in hooks["nbstripout"]["entry"]
    for path in FOLDER.glob("*.ipynb"):
        kept = re.search(hooks["nbstripout"]["exclude"], f"notebooks/{path.name}")
        assert bool(kept) == (path.stem in SHOWN), path


def test_issue_templates_ask_for_what_is_needed():
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
    assert [path.stem for path in templates] == ["bug", "new_network", "wrong_number"]
    for path in templates:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form["name"]
        assert form["description"]
        required = [f for f in form["body"] if f.get("validations", {}).get("required")]
        assert required
        identifiers = [field["id"] for field in form["body"]]
        assert len(set(identifiers)) == len(identifiers)
        for field in form["body"]:
            assert field["type"] in ("input", "textarea", "dropdown")
            assert field["attributes"]["label"]
