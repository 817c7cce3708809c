import errno
import io
import logging
import os
import re
import sys
from base64 import b64decode, b64encode
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from papermill import PapermillExecutionError
from PIL import Image

from proxyhpo.analysis.evidence import Evidence
from proxyhpo.config import PROFILES, Experiment, InputError, grid
from proxyhpo.notebook import grid as notebooks
from proxyhpo.notebook.experiment import open_experiment
from proxyhpo.notebook.grid import FOLDER, SHOWN, execute, grid_name, grid_notebooks, set_parameters
from proxyhpo.report.figures import FIGURES, draw

ROOT = FOLDER.parent
ALL = sorted(FOLDER.glob("*.ipynb"))
# at the smallest scale that still makes every figure
SMALLEST = {
    "00_start_here.ipynb": {"trials": 6},
    "anatomy.ipynb": {"network": "resnet8", "criteria": ["snip", "uniform"], "repeats": 1}
    | {"seeds": 2, "epochs": 1},
    "beyond.ipynb": {"dataset": "cifar10"},  # of the made tables
    "experiment.ipynb": {"trials": 4, "epochs": 3, "ranking": 3},
    "your_own.ipynb": {"trials": 5, "epochs": 2},
}
SLOW = ("anatomy.ipynb", "your_own.ipynb")


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_regenerating_the_grid_gives_the_same_files():
    made = grid_notebooks()
    assert len(made) == 27
    titled = made["cifar10-resnet56-cmaes.ipynb"].cells[1].source
    assert titled.startswith("# CIFAR-10, ResNet-56, CMA-ES\n")
    assert set(made) == {path.name for path in (FOLDER / "grid").glob("*.ipynb")}
    for name, notebook in made.items():
        assert (FOLDER / "grid" / name).read_text(encoding="utf-8") == notebooks.text(notebook)


def test_each_grid_notebook_runs_its_own_experiment():
    for experiment in grid(PROFILES["table"]):
        (parameters,) = tagged(read(FOLDER / "grid" / grid_name(experiment)), "parameters")
        values = {}
        exec(parameters.source, values)
        named = {key: getattr(experiment, key) for key in ("dataset", "network", "sampler")}
        named |= {"profile": "table", "source": "table"}
        assert {key: values[key] for key in named} == named


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_badges_and_colab_cells_are_the_generated_ones(path):
    assert path.read_text(encoding="utf-8") == notebooks.text(
        notebooks.stamp(read(path), path.name)
    )
    (badge,), (_,) = (tagged(read(path), tag) for tag in ("badge", "colab"))
    assert notebooks.address().removeprefix("https://github.com/") in badge.source


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


def test_solutions_are_hidden_and_exercises_left_out_of_the_slides():
    cells = read(FOLDER / "00_start_here.ipynb").cells
    (cell,) = [cell for cell in cells if "## Exercises" in cell.source]
    assert cell.metadata["slideshow"]["slide_type"] == "skip"
    numbered = re.findall(r"^\*\*\d\.\*\*.*?(?=^\*\*\d|\Z)", cell.source, re.DOTALL | re.MULTILINE)
    assert len(numbered) == 5
    for exercise in numbered:
        assert exercise.count("<details><summary>Solution</summary>\n\n") == 1
        assert exercise.rstrip().endswith("</details>")
    assert [c.metadata["slideshow"]["slide_type"] for c in cells].count("slide") >= 8


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_code_cells_are_short(path):
    code = [c.source.splitlines() for c in read(path).cells if c.cell_type == "code"]
    lines = sorted(sum(bool(line.strip()) for line in cell) for cell in code)
    assert lines[len(lines) // 2] <= 6
    assert lines[-1] <= 22


@pytest.mark.parametrize("path", [*ALL, FOLDER / "grid" / "cifar10-resnet56-tpe.ipynb"])
def test_only_what_visitors_read_first_is_kept_with_outputs(path):
    notebook = read(path)
    kept = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if path.stem in SHOWN:
        assert path.stat().st_size < 400_000
        told_apart(kept, path)
        if path.stem in notebooks.PICTURES_ALONE:
            assert [set(output["data"]) for output in kept] == [{"image/png"}]
    else:
        assert not kept
        assert not any(cell.get("execution_count") for cell in notebook.cells)


def test_outputs_are_of_the_present_cells_and_rows():
    # explore.ipynb names no table: its explorer reads the rows
    assert set(read(FOLDER / "explore.ipynb").metadata[notebooks.STAMP]) == {"code", "rows"}
    outdated = ", ".join(notebooks.outdated())
    assert not outdated, f"{outdated}: made from other cells or rows; run ./run_all.sh generate"


def test_a_changed_cell_or_row_outdates_the_outputs_and_other_words_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "SHOWN", ("one",))
    path, rows = tmp_path / "notebooks" / "one.ipynb", tmp_path / "results" / "curves" / "rows.csv"
    live = tmp_path / "results" / "smoke" / "rows.csv"
    for folder in (path.parent, rows.parent, live.parent):
        folder.mkdir(parents=True)
    rows.write_text("a\n1\n")
    cells = [nbformat.v4.new_markdown_cell("words"), nbformat.v4.new_code_cell("print('Evidence')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert notebooks.outdated() == ["one"]

    path.write_text(notebooks.text(notebooks.with_outputs(path)))
    assert notebooks.outdated() == []
    assert read(path).cells[1].outputs[0].text == "Evidence\n"
    path.write_text(path.read_text().replace("words", "other words"))
    live.write_text("a\n1\n")  # of a run here: no evidence
    assert notebooks.outdated() == []
    rows.write_text("a\n2\n")
    assert notebooks.outdated() == ["one"]
    rows.write_text("a\n1\n")
    path.write_text(path.read_text().replace("print('Evidence')", "print('Evidence', 2)"))
    assert notebooks.outdated() == ["one"]


def test_a_stored_picture_keeps_the_colours_that_tell_lines_apart(curves):
    drawn = draw("race", Evidence(curves))._repr_png_()
    few = b64decode(notebooks._fewer_colours(b64encode(drawn).decode()))
    assert len(few) < len(drawn) / 2
    before, after = (
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int) for png in (drawn, few)
    )
    assert np.abs(before - after).max() <= 24


def test_figures_shows_every_figure_once():
    code = "\n".join(c.source for c in read(FOLDER / "figures.ipynb").cells)
    shown = re.findall(r'^show\("(\w+)"\)$', code, re.MULTILINE)
    assert sorted(shown) == sorted(FIGURES)


def test_figures_says_nothing_twice():
    """Neither a title nor a sentence, be it in the notebook, a caption or a drawn title."""
    cells = read(FOLDER / "figures.ipynb").cells
    said = [cell.source for cell in cells if cell.cell_type == "markdown"]
    said += [kind.caption for kind in FIGURES.values()]
    names = [f"{name}-cifar10" if kind.panels else name for name, kind in FIGURES.items()]
    files = [ROOT / "figures" / f"{name}.svg" for name in names]
    titles = [path.read_text() for path in files if path.exists()]
    said += [max(re.findall(r"font-size: 10px.*?>([^<]+)</text>", one), key=len) for one in titles]
    sentences = re.findall(r"[^.?!:\n|#*]{20,}", "\n".join(said).lower())
    assert len(sentences) > 30
    assert sorted(set(sentences)) == sorted(sentences)


def test_your_own_takes_a_folder_of_other_pictures_in_two_changed_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXYHPO_DATA", str(tmp_path))  # where pictures are cached
    for number in range(36):  # three classes; no picture is like another, nor as large
        path = tmp_path / "train" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 24), (7 * number, 90, 0)).save(path)
    cells = read(FOLDER / "your_own.ipynb").cells
    code = [c.source for c in cells if c.cell_type == "code" and "%pip" not in c.source]
    built = next(place for place, source in enumerate(code) if "def network" in source)
    code[0] = set_parameters(code[0], {"folder": str(tmp_path), "side": 16})
    made = {}
    exec("\n".join(code[: built + 1]), made)
    assert made["network"]()(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_setting_parameters_keeps_the_comments_and_refuses_unknown_names():
    source = 'dataset = "digits"  # a # name\nseed = 0\nout = None  # folder'
    changed = set_parameters(source, {"dataset": "cifar10", "seed": 3, "out": "/a b"})
    assert changed == 'dataset = "cifar10"  # a # name\nseed = 3\nout = "/a b"  # folder'
    with pytest.raises(InputError, match="sampler"):
        set_parameters(source, {"sampler": "tpe"})


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if p.name in SLOW else []) for p in ALL],
    ids=lambda path: path.name,
)
def test_every_notebook_runs(path, curves, tmp_path, monkeypatch):
    # nbclient may lose a reply of a cell with controls on a busy machine, and would wait two days
    monkeypatch.setattr(notebooks, "CELL_SECONDS", 600)
    (parameters,) = tagged(read(path), "parameters")
    # those that read recorded tables read made ones
    folder = "of recorded tables" in parameters.source and {"folder": str(curves)}
    filed = "\nout = " in parameters.source and {"out": str(tmp_path)}
    done = tmp_path / path.name
    execute(path, done, SMALLEST.get(path.name, {}) | (folder or filed or {}))
    outputs = [output for cell in read(done).cells for output in cell.get("outputs", [])]
    assert [o for o in outputs if "image/png" in o.get("data", {})]
    shown = told_apart(outputs, done)
    assert _unfinished(shown) == []
    assert "not recorded" not in shown
    if path.name == "experiment.ipynb":
        assert re.search(r"^device: .+ \((cpu|cuda), \d+ CPU threads?\)$", shown, re.MULTILINE)
    assert not done.with_suffix(".failed.ipynb").exists()


def told_apart(outputs, path):
    """Check what outputs say to a reader, and return it: no errors, warnings or own paths."""
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    shown = "\n".join(_words(output) for output in outputs)
    assert not re.search("warning", shown, re.IGNORECASE)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|var|work|content)/|[A-Z]:\\\\", shown)
    assert str(ROOT) not in shown
    assert str(path.parent) not in shown
    return shown


def of_the_grid(name, curves, folder):
    """Run a notebook of the grid on the tables ``curves``; return its outputs, and as text."""
    (folder / "results").mkdir()
    (folder / "results" / "curves").symlink_to(curves)
    execute(FOLDER / "grid" / f"{name}.ipynb", folder / "x.ipynb", {"out": str(folder)})
    outputs = [o for cell in read(folder / "x.ipynb").cells for o in cell.get("outputs", [])]
    return outputs, told_apart(outputs, folder / "x.ipynb")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_notebook_of_the_grid_looks_its_experiment_up(curves, tmp_path, sampler):
    outputs, shown = of_the_grid(f"cifar10-resnet56-{sampler}", curves, tmp_path)
    assert len([o for o in outputs if "image/png" in o.get("data", {})]) == 2
    assert "not recorded" not in shown


def test_a_notebook_whose_table_is_not_recorded_says_so_and_ends_well(curves, tmp_path):
    _, shown = of_the_grid("tinyimagenet-vgg16_bn-tpe", curves, tmp_path)
    said = "not recorded: table tinyimagenet-vgg16_bn; record it: ./run_all.sh record --dataset "
    assert f"{said}tinyimagenet --model vgg16_bn" in shown


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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"network": ["resnet8"]}, r"network \['resnet8'\]: a text"),
        ({"dataset": 7}, "dataset 7: a text"),
        ({"network": "resnet57"}, "unknown network 'resnet57': did you mean"),
        ({"sampler": "tpx"}, "unknown sampler 'tpx'"),
        ({"seed": True}, "seed True: a whole number"),
        ({"trials": 2.5}, "trials 2.5: a whole number, or None"),
        ({"workers": "two"}, "workers 'two': a whole number"),
        ({"out": 5}, "out 5: a folder's path"),
        ({"data_dir": 5}, "data_dir 5: a folder's path"),
        ({"source": "tables"}, "unknown source 'tables': did you mean 'table'"),
        ({"source": "table"}, "source 'table', profile 'smoke': set both"),
        ({"source": "table", "profile": "table", "epochs": 3}, "epochs, ranking: None"),
    ],
    ids=str,
)
def test_every_parameter_is_checked_before_any_work(tmp_path, change, told):
    valid = {"dataset": "digits", "network": "resnet8", "sampler": "tpe", "profile": "smoke"}
    wanted = {**valid, "source": "live", "out": str(tmp_path), **change}
    with pytest.raises(InputError, match=told):
        open_experiment(**wanted)
    assert not list(tmp_path.iterdir())


def test_a_cell_that_opens_an_experiment_can_be_run_again(tmp_path):
    wanted = {"dataset": "digits", "network": "resnet8", "sampler": "tpe", "profile": "smoke"}
    first, second = (open_experiment(**wanted, source="live", out=str(tmp_path)) for _ in range(2))
    assert not first._own.lock.is_locked
    assert second._own.lock.is_locked
    second.close()


def test_what_notebooks_print_goes_to_standard_output():
    notebooks.tell_output(prefixed=False)
    assert [one.stream for one in logging.getLogger("papermill").handlers] == [sys.stdout]


def test_papermill_by_itself_runs_no_notebook_with_a_wrong_name(tmp_path):
    wrong = "unknown parameter 'trialz': did you mean 'trials'"
    with pytest.raises(PapermillExecutionError, match=wrong):
        papermill.execute_notebook(
            str(FOLDER / "experiment.ipynb"), str(tmp_path / "x.ipynb"),
            parameters={"trialz": 3, "out": str(tmp_path / "out")}, progress_bar=False,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_no_secret_can_enter_a_notebook_of_the_grid():
    (parameters,) = tagged(read(FOLDER / "experiment.ipynb"), "parameters")
    assert "storage" not in parameters.source


@pytest.mark.filterwarnings("ignore:To exit")
def test_the_colab_cell_stops_with_one_sentence_where_nothing_was_installed(monkeypatch):
    shell = InteractiveShell.instance()
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(shell, "run_line_magic", lambda *_, **__: None)
    ran = shell.run_cell(notebooks.colab_cell())
    assert isinstance(ran.error_in_exec, SystemExit)
    assert str(ran.error_in_exec) == f"{notebooks.address()} can't be reached, see above"


def test_a_failing_notebook_leaves_an_earlier_copy_alone(tmp_path):
    target = tmp_path / "x.ipynb"
    target.write_text("earlier")
    cells = [nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "source.ipynb")
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        execute(tmp_path / "source.ipynb", target, {})
    assert target.read_text() == "earlier"
    assert (tmp_path / "x.failed.ipynb").exists()


def test_a_full_disk_leaves_no_half_notebook(tmp_path, monkeypatch):
    def fill(source, draft, **_):
        Path(draft).write_text('{"cells": [{"cell_ty')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(papermill, "execute_notebook", fill)
    with pytest.raises(OSError, match="No space"):
        execute(FOLDER / "experiment.ipynb", tmp_path / "x.ipynb", {})
    assert not list(tmp_path.iterdir())


def test_grid_experiments_have_their_own_notebook_and_others_the_template():
    paper = Experiment("cifar100", "vgg16_bn", "gp", PROFILES["table"])
    assert notebooks.source_of(paper) == FOLDER / "grid" / "cifar100-vgg16_bn-gp.ipynb"
    digits = Experiment("digits", "resnet8", "gp", PROFILES["smoke"])
    assert notebooks.source_of(digits) == Path(FOLDER / "experiment.ipynb")


def test_outside_a_checkout_experiments_have_the_packed_template(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    digits = Experiment("digits", "resnet8", "gp", PROFILES["smoke"])
    assert notebooks.source_of(digits) == ROOT / "proxyhpo" / "recorded" / "experiment.ipynb"
