import re
import shutil

import pytest
from made_rows import experiment, frame, ranking, rival

from proxyhpo.config import PROFILES, InputError
from proxyhpo.notebook import readme
from proxyhpo.report import figures
from proxyhpo.rows import load_results

README = readme.ROOT / "README.md"


def test_the_readme_says_what_the_committed_rows_say():
    text = README.read_text(encoding="utf-8")
    assert readme.render(text) == text


def test_every_cell_of_the_papers_grid_is_there_and_unrun_ones_say_so():
    rows = load_results(readme.ROOT / "results" / readme.EVIDENCE)
    done = rows[rows["purpose"] == "final"]
    done = set(zip(done["dataset"], done["network"], done["sampler"], strict=True))
    profile = PROFILES[readme.EVIDENCE]
    lines = [line.split("|")[1:-1] for line in readme.results_table(rows).splitlines()]
    shown = {line[0].strip(): line[1:] for line in lines if len(line) == 1 + len(profile.samplers)}
    for dataset in profile.datasets:
        for network in profile.networks:
            cells = shown[f"{dataset}, {network}"]
            for sampler, cell in zip(profile.samplers, cells, strict=True):
                assert ("not run" in cell) == ((dataset, network, sampler) not in done)


def test_changed_rows_change_the_table():
    rows = load_results(readme.ROOT / "results" / readme.EVIDENCE)
    changed = rows.copy()
    changed.loc[changed["role"] == "proxy", ["wall_seconds", "cpu_seconds"]] *= 2
    assert readme.results_table(changed) != readme.results_table(rows)


def test_an_unknown_part_is_refused():
    with pytest.raises(InputError, match="'resluts': choose from figure, claims, results"):
        readme.render("<!-- generated: resluts -->\n<!-- end -->")


def test_the_contact_sheet_shows_every_figure_but_those_of_a_smoke_run(tmp_path):
    sheet = readme.ROOT / "figures" / "README.md"
    assert sheet.read_text(encoding="utf-8") == readme.contact_sheet(sheet.parent)
    links = re.findall(r"\]\(([^)]+)\)", sheet.read_text(encoding="utf-8"))
    assert [link for link in links if not (sheet.parent / link).exists()] == []
    rows = frame(r | {"profile": "gpu"} for r in ranking(n=5))
    figures.draw_all(rows, tmp_path / "gpu", "gpu", lambda _: None)
    shutil.copytree(tmp_path / "gpu", tmp_path / "smoke")
    made = readme.contact_sheet(tmp_path)
    assert re.findall("^#+ (.*)", made, re.MULTILINE) == [
        "All figures", "Profile gpu", "rank_correlation", "trust", "shift"
    ]  # fmt: skip
    assert "smoke" not in made
    assert made.count("Profile gpu; n = 5 configurations") == 3


def test_parts_without_rows_are_empty_and_with_rows_are_filled():
    rows = load_results(readme.ROOT / "results" / readme.EVIDENCE)
    assert readme.rivals_part(rows[~rows["sampler"].isin(readme.RIVALS)]) == ""
    told = readme.rivals_part(frame([*experiment(), *rival("best_k")]))
    assert "best k after one epoch on N_B" in told
    assert "### At equal time" in told


def test_the_recorded_experiments_are_counted_profile_by_profile():
    rows = frame([*experiment(), *experiment(seed=1, sampler="gp"), *ranking(n=5)])
    told = readme.recorded_words(rows)
    assert "`laptop`: 2 of 27 experiments, seeds 0, 1; ranking studies of 5" in told
    assert f"{PROFILES['laptop'].trials} trials a study" in told


def test_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"(?:\]\(|src=\")(?!https?:)([^)#\"]+)", text)
    assert len(links) >= 5  # notebooks, figures, files
    assert [link for link in links if not (readme.ROOT / link).exists()] == []


def test_the_readmes_example_of_ones_own_network_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "make_proxy" in block]
    exec(example, {})
    assert capsys.readouterr().out == "0.25 of the multiply-accumulates\n"
