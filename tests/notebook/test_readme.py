import re
from pathlib import Path

import nbformat
import pytest

from proxyhpo.analysis.evidence import Evidence
from proxyhpo.config import InputError
from proxyhpo.notebook.grid import FOLDER
from proxyhpo.report import pages
from proxyhpo.report.figures import draw

ROOT = FOLDER.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
READ = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "figures" / "README.md"]
READ += [ROOT / "results" / "README.md"]
READ += [*FOLDER.glob("*.ipynb"), FOLDER / "grid" / "cifar10-resnet56-tpe.ipynb"]
PAGES = [pytest.param("README.md"), pytest.param("RESULTS.md", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def evidence():
    return Evidence(ROOT / "results" / "curves")


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_say_what_the_recorded_rows_say(evidence, name):
    text = (ROOT / name).read_text(encoding="utf-8")
    made = pages.render(text, evidence)
    changed = [line for line in made.splitlines() if line not in text.splitlines()]
    assert not changed, f"{name} is of other rows; run ./run_all.sh generate: {changed[0]}"


def test_other_rows_give_other_numbers(evidence, curves):
    made = pages.render(README, Evidence(curves))
    assert numbers(made) != numbers(pages.render(README, evidence))
    assert by_hand(made) == by_hand(README)


def test_each_recorded_file_is_described():
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    patterns = [re.sub(r"<\w+>", "*", name) for name in re.findall(r"^\| `([^`]+)`", page, re.M)]
    files = [path.relative_to(ROOT / "results") for path in (ROOT / "results").rglob("*.*")]
    kept = [f for f in files if f.parts[0] in ("curves", "replays", "live") or len(f.parts) == 1]
    lines = [f for f in kept if f.suffix in (".csv", ".json") and not f.name.startswith(".")]
    undescribed = [f for f in lines if not any(f.match(p) for p in patterns)]
    assert lines
    assert not undescribed
    absent = [p for p in patterns if not any(f.match(p) for f in lines)]
    assert not absent, "described, but not there"


def by_hand(text):
    return re.sub(r"(<!-- generated: \w+ -->\n).*?(<!-- end -->)", r"\1\2", text, flags=re.DOTALL)


def numbers(text):
    return re.findall(r"\d+(?:\.\d+)?", text)


def test_no_share_or_accuracy_is_typed_in():
    """What is written by hand has no other percentage than the paper's claim and the margin."""
    assert set(re.findall(r"\S+ ?(?:%|points)", by_hand(README))) <= {"37 %", "5 %"}


def test_the_contact_sheet_is_of_the_drawn_figures(evidence):
    sheet = ROOT / "figures" / "README.md"
    wanted = pages.contact_sheet(sheet.parent, evidence)
    assert sheet.read_text(encoding="utf-8") == wanted, "run ./run_all.sh generate"


def test_every_notebook_is_in_the_readme():
    for path in FOLDER.glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in README


@pytest.mark.parametrize("path", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_base_network_and_proxy_are_spelled_out_where_they_are_first_named(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for name, words in {"N_B": r"base\s+network", "N_P": r"proxy"}.items():
        known, found, rest = text.partition(name)
        sentence = known + found + rest.partition(".")[0]
        assert not found or re.search(words, sentence, re.IGNORECASE), sentence[-300:]


@pytest.mark.parametrize("name", ["README.md", "RESULTS.md"])
def test_links_lead_somewhere_but_to_figures_of_what_is_not_recorded(name, evidence):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert len(links) >= 5
    for link in (link for link in links if not (ROOT / link).exists()):
        assert link.startswith("figures/"), link
        with pytest.raises(InputError, match="no recorded replays"):
            draw(Path(link).stem.partition("-")[0], evidence)


@pytest.mark.slow
def test_the_readmes_example_of_ones_own_network_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(example, {})
    assert "resnet18" in example
    assert "best: lr" in capsys.readouterr().out
