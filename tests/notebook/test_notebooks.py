import ast
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from proxyhpo.config import PROFILES, Experiment, InputError, grid
from proxyhpo.notebook import grid as notebooks
from proxyhpo.notebook.grid import FOLDER, execute, grid_name, grid_notebooks, set_parameters

ROOT = FOLDER.parent
ALL = sorted(FOLDER.glob("*.ipynb"))
# at the smallest scale that still makes every figure; a notebook without an entry runs as it is
SMALLEST = {
    "00_start_here.ipynb": {"trials": 4, "epochs": 3, "ranking": 3},
    "anatomy.ipynb": {"network": "resnet8", "criteria": ["snip", "uniform"], "repeats": 1}
    | {"seeds": 2, "epochs": 1},
    "experiment.ipynb": {"trials": 4, "epochs": 3, "ranking": 3},
    "explore.ipynb": {},
    "figures.ipynb": {"profile": "custom"},
    "review.ipynb": {"profile": "custom"},
    "your_own.ipynb": {"trials": 4, "epochs": 3, "verify": 1},
}


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_regenerating_the_grid_gives_the_same_files():
    made = grid_notebooks()
    assert len(made) == 27
    assert set(made) == {path.name for path in (FOLDER / "grid").glob("*.ipynb")}
    for name, notebook in made.items():
        assert (FOLDER / "grid" / name).read_text(encoding="utf-8") == notebooks.text(notebook)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_badges_and_colab_cells_are_the_generated_ones(path):
    assert path.read_text(encoding="utf-8") == notebooks.text(
        notebooks.stamp(read(path), path.name)
    )
    assert len(tagged(read(path), "badge")) == len(tagged(read(path), "colab")) == 1


@pytest.mark.parametrize("experiment", grid(PROFILES["laptop"]), ids=lambda e: e.name)
def test_each_grid_notebook_runs_its_own_experiment(experiment):
    (parameters,) = tagged(read(FOLDER / "grid" / grid_name(experiment)), "parameters")
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(parameters.source).body
    }
    named = {key: getattr(experiment, key) for key in ("dataset", "network", "sampler")}
    assert {key: values[key] for key in named} == named
    assert values["profile"] == "laptop"


def test_the_repositorys_address_stands_once():
    """Wherever else it is written, it agrees with the project's URLs."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    address = urls["Repository"]
    assert notebooks.address() == address
    assert address in (ROOT / "README.md").read_text()
    assert address in (ROOT / "CITATION.cff").read_text()
    for path in (FOLDER / "grid").glob("*.ipynb"):
        (badge,) = tagged(read(path), "badge")
        assert address.removeprefix("https://github.com/") in badge.source


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_a_notebook_opens_with_its_question_and_cost_and_ends_with_what_was_learnt(path):
    cells = read(path).cells
    first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    opening = "\n".join(cell.source for cell in cells[:first])
    question, cost = (opening.find(words) for words in ("**The question.**", "**Cost"))
    assert 0 <= opening.find("\n# ") < question < cost
    assert "minute" in opening[cost:]
    assert "colab" in cells[first].metadata["tags"]  # installed before anything is imported
    (parameters,) = tagged(read(path), "parameters")
    if "\nprofile = " in f"\n{parameters.source}":
        assert "every profile" in opening or set(re.findall(r"`(\w+)`", opening)) >= set(PROFILES)
    assert cells[-1].cell_type == "markdown"
    assert "## What was learnt\n" in cells[-1].source


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_there_is_prose_before_each_code_cell(path):
    cells = read(path).cells
    for before, cell in pairwise(cells):
        if "parameters" not in cell.metadata.get("tags", []):
            assert before.cell_type == "markdown" or cell.cell_type == "markdown", cell.source


def test_solutions_are_hidden():
    exercises = [c for c in read(FOLDER / "00_start_here.ipynb").cells if "Exercises" in c.source]
    (cell,) = exercises
    numbered = re.findall(r"^\*\*\d\.\*\*.*?(?=^\*\*\d|\Z)", cell.source, re.DOTALL | re.MULTILINE)
    assert len(numbered) == 5
    for exercise in numbered:
        assert exercise.count("<details><summary>Solution</summary>\n\n") == 1
        assert exercise.rstrip().endswith("</details>")


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_code_cells_are_short_and_notebooks_are_saved_without_outputs(path):
    notebook = read(path)
    lines = sorted(len(c.source.splitlines()) for c in notebook.cells if c.cell_type == "code")
    assert lines[len(lines) // 2] <= 6
    assert lines[-1] <= 20
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_setting_parameters_keeps_the_comments_and_refuses_unknown_names():
    source = 'dataset = "digits"  # a # name\nseed = 0\nout = None  # folder'
    changed = set_parameters(source, {"dataset": "cifar10", "seed": 3, "out": "/a b"})
    assert changed == 'dataset = "cifar10"  # a # name\nseed = 3\nout = "/a b"  # folder'
    with pytest.raises(InputError, match="sampler"):
        set_parameters(source, {"sampler": "tpe"})


def _out(path, folder):
    (parameters,) = tagged(read(path), "parameters")
    return {"out": str(folder)} if "\nout = " in parameters.source else {}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Every notebook, run by papermill at the smallest scale, in an order that leaves rows."""
    out = tmp_path_factory.mktemp("executed notebooks")
    order = sorted(ALL, key=lambda path: path.name != "experiment.ipynb")  # others show its rows
    for path in order:
        execute(path, out / path.name, SMALLEST.get(path.name, {}) | _out(path, out))
    return out


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_every_notebook_runs(executed, path):
    notebook = read(executed / path.name)
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source]
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert [o for o in outputs if "image/png" in o.get("data", {})]
    shown = "\n".join(_words(output) for output in outputs)
    assert not re.search("warning", shown, re.IGNORECASE)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|var|work|content)/|[A-Z]:\\\\", shown)
    assert str(ROOT) not in shown
    assert str(executed) not in shown
    assert _unfinished(shown) == []
    if any("this_device()" in cell.source for cell in code):
        assert re.search(r"^device: .+ \((cpu|cuda), \d+ CPU threads?\)$", shown, re.MULTILINE)
    assert not (executed / f"{path.stem}.failed.ipynb").exists()


def _words(output):
    """What a reader sees of an output, as text."""
    data = output.get("data", {})
    return output.get("text", "") + data.get("text/plain", "") + data.get("text/markdown", "")


def _unfinished(shown):
    """Progress that ends before its total: of each label, and of tqdm's bars."""
    counts = {label: pair for label, *pair in re.findall(r"^(.+?): (\d+)/(\d+),", shown, re.M)}
    bars = re.findall(r"(\d+)%\|", shown)
    return [label for label, (done, total) in counts.items() if done != total] + [
        bar for bar in bars[-1:] if bar != "100"
    ]


def test_unfinished_progress_is_seen():
    assert _unfinished("HPO on N_B: 1/4, 3 s left\nHPO on N_B: 4/4, took 4 s  complete") == []
    assert _unfinished("HPO on N_B: 1/4, 3 s left\n") == ["HPO on N_B"]
    assert _unfinished(" 20%|██        | 2/10\r 70%|███████   | 7/10") == ["70"]
    assert _unfinished(" 20%|██        | 2/10\r100%|██████████| 10/10") == []


def test_misspelled_parameters_are_refused_before_anything_runs(tmp_path):
    target = tmp_path / "x.ipynb"
    with pytest.raises(InputError, match="'trails': choose from dataset"):
        execute(FOLDER / "experiment.ipynb", target, {"trails": 3})
    assert not list(tmp_path.iterdir())


def test_a_failing_notebook_leaves_an_earlier_copy_alone(tmp_path):
    target = tmp_path / "x.ipynb"
    target.write_text("earlier")
    with pytest.raises(Exception, match="resnet57"):
        execute(FOLDER / "experiment.ipynb", target, {"network": "resnet57", "out": str(tmp_path)})
    assert target.read_text() == "earlier"
    assert (tmp_path / "x.failed.ipynb").exists()


def test_grid_experiments_have_their_own_notebook_and_others_the_template():
    paper = Experiment("cifar100", "vgg16_bn", "gp", PROFILES["laptop"])
    assert notebooks.source_of(paper) == FOLDER / "grid" / "cifar100-vgg16_bn-gp.ipynb"
    digits = Experiment("digits", "resnet8", "gp", PROFILES["smoke"])
    assert notebooks.source_of(digits) == Path(FOLDER / "experiment.ipynb")
