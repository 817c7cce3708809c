import re

import pytest

from proxyhpo import readme
from proxyhpo.config import PROFILES, InputError, grid
from proxyhpo.results import load_results

README = readme.ROOT / "README.md"


def test_the_readme_says_what_the_committed_rows_say():
    text = README.read_text(encoding="utf-8")
    assert readme.render(text) == text


def test_every_cell_of_the_papers_grid_is_there_and_unrun_ones_say_so():
    rows = load_results(readme.ROOT / "results" / readme.EVIDENCE)
    lines = readme.results_table(rows).splitlines()[2:]
    cells = {(e.dataset, e.network, e.sampler) for e in grid(PROFILES[readme.EVIDENCE])}
    shown = {tuple(cell.strip() for cell in line.split("|")[1:4]): line for line in lines}
    assert cells <= set(shown)
    run = {
        tuple(key)
        for key in rows.loc[rows["purpose"] == "final", ["dataset", "network", "sampler"]]
        .drop_duplicates()
        .to_numpy()
    }
    assert all(("not run" in shown[cell]) == (cell not in run) for cell in cells)


def test_changed_rows_change_the_table():
    rows = load_results(readme.ROOT / "results" / readme.EVIDENCE)
    changed = rows.copy()
    changed.loc[changed["role"] == "proxy", "wall_seconds"] *= 2
    assert readme.results_table(changed) != readme.results_table(rows)


def test_an_unknown_part_is_refused():
    with pytest.raises(InputError, match="'resluts': choose from figure, results"):
        readme.render("<!-- generated: resluts -->\n<!-- end -->")


def test_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert len(links) >= 5
    assert [link for link in links if not (readme.ROOT / link).exists()] == []
