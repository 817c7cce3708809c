import asyncio
import base64
import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_rows import experiment, frame, ranking, row
from PIL import Image

from proxyhpo.notebook.explorer import Explorer
from proxyhpo.notebook.explorer_drawing import channels_figure, overview_figure, png
from proxyhpo.notebook.explorer_tables import CHOICE, Tables, choices
from proxyhpo.notebook.small_study import STAND_INS, Settings, channels
from proxyhpo.notebook.study_panel import StudyPanel
from proxyhpo.rows import COLUMNS, result_path, write_rows

ROOT = Path(__file__).resolve().parents[2]

QUICK = {"trials": 2, "epochs": 1}


@pytest.fixture
def folder(tmp_path):
    """Two profiles: a grid with gaps, and one smoke experiment."""
    ranked = {("snip", 0.5): (0.03, 0.6), ("snip", 0.75): (0.05, 0.4), ("random", 0.9): (0.1, 0.2)}
    files = {
        "a-tpe": experiment(trials=6),
        "a-gp": experiment(trials=6, sampler="gp", rng=1),
        "a-ranking": ranking(ranked, n=6),
        "b-tpe": experiment(trials=6, network="resnet20", dataset="cifar10", rng=2),
    }
    for name, rows in files.items():
        write_rows(result_path(tmp_path, "laptop", name), rows)
    smoke = experiment(trials=4, profile="smoke")
    write_rows(result_path(tmp_path, "smoke", "a"), smoke)
    return tmp_path


def offered(explorer, name):
    return [value for _, value in explorer.controls[name].options]


def text(html):
    return re.sub("<[^>]+>", " ", html.value)


def size(png_bytes):
    return Image.open(io.BytesIO(png_bytes)).size


def test_only_what_is_recorded_for_the_choices_before_can_be_chosen(folder):
    explorer = Explorer(folder)
    assert offered(explorer, "profile") == ["laptop", "smoke"]  # evidence first
    assert explorer.choice["profile"] == "laptop"
    explorer.controls["dataset"].value = "digits"
    assert offered(explorer, "network") == ["resnet8"]
    assert explorer.controls["network"].disabled  # there is no choice
    assert sorted(offered(explorer, "sampler")) == ["gp", "tpe"]
    assert offered(explorer, "proxy") == ["snip", "random"]
    assert offered(explorer, "pruning_ratio") == [0.5, 0.75]
    explorer.controls["proxy"].value = "random"
    assert offered(explorer, "pruning_ratio") == [0.9]
    explorer.controls["dataset"].value = "cifar10"
    assert offered(explorer, "network") == ["resnet20"]
    assert offered(explorer, "sampler") == ["tpe"]
    assert offered(explorer, "proxy") == ["snip"]


def test_a_choice_that_still_exists_is_kept(folder):
    explorer = Explorer(folder)
    explorer.controls["dataset"].value = "digits"
    explorer.controls["sampler"].value = "tpe"
    explorer.controls["pruning_ratio"].value = 0.5
    explorer.controls["profile"].value = "smoke"
    assert explorer.choice == dict(
        zip(CHOICE, ("smoke", "digits", "resnet8", "tpe", "snip", 0.5), strict=True)
    )
    assert "not evidence" in text(explorer.status)


def test_every_choice_has_a_picture_and_rows_and_no_two_look_alike(folder):
    explorer = Explorer(folder)
    table = explorer._choices
    assert len(table) == 8  # two samplers with three stand-ins each, and one each of two others
    seen = set()
    for line in table.to_dict("records"):
        for name, control in explorer.controls.items():
            control.value = line[name]
        assert explorer.choice == line
        assert "drawn in" in text(explorer.status)
        assert "<tbody><tr>" in explorer.table.value
        seen.add(explorer.picture.value)
    assert len(seen) == len(table)


def test_a_change_redraws_once(folder, monkeypatch):
    explorer = Explorer(folder)
    drawn = []
    explorer.picture.observe(lambda change: drawn.append(change.new), "value")
    explorer.controls["profile"].value = "smoke"
    assert len(drawn) == 1
    explorer.controls["profile"].value = "laptop"
    # a picture seen before isn't redrawn
    monkeypatch.setattr("proxyhpo.notebook.explorer.overview_figure", None)
    explorer.controls["profile"].value = "smoke"
    assert len(drawn) == 3
    assert "drawn in" in text(explorer.status)


def test_panels_are_there_where_rows_are():
    rows = frame([*experiment(trials=4), *ranking(n=5)])
    tuned = frame(experiment(trials=4))
    ranks = frame(ranking(n=5))
    heights, titles = [], []
    for some in (rows, tuned, ranks):
        tables = Tables.of(some)
        figure = overview_figure(tables, choices(tables).iloc[0].to_dict())
        heights.append(size(png(figure))[1])
        titles.append([axes._left_title.get_text() for axes in figure.axes])
    assert heights[0] > heights[1] == heights[2]
    assert titles[0] == titles[1] + titles[2]
    assert len(titles[0]) == 6


@pytest.mark.parametrize(
    "rows",
    [
        [r for r in experiment() if r["role"] == "base" and r["purpose"] == "study"],
        [row("study", state="stopped", epochs=1, budget=9, val_accuracy=0.3)],
        [r for seed in range(3) for r in experiment(seed=seed, rng=seed, trials=4)],
        [r for r in ranking(n=5) if r["seed"] or r["role"] == "base"],
        [r | {"val_accuracy": 0.5} for r in ranking(n=4)],
    ],
    ids=["unfinished", "nothing trained in full", "seeds", "ranked", "ties"],
)
def test_whatever_is_recorded_can_be_drawn(rows):
    tables = Tables.of(frame(rows))
    for choice in choices(tables).to_dict("records"):
        assert size(png(overview_figure(tables, choice)))[0] == 920


def test_all_of_the_picture_is_on_it():
    tables = Tables.of(frame([*experiment(), *ranking()]))
    figure = overview_figure(tables, choices(tables).iloc[0].to_dict())
    inches = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert inches.x0 > -0.01
    assert inches.y0 > -0.01
    assert inches.x1 < width + 0.01
    assert inches.y1 < height + 0.01


def test_the_numbers_in_words_are_those_of_the_tables(folder):
    explorer = Explorer(folder)
    explorer.controls["dataset"].value = "digits"
    line = explorer.tables.narrowed(explorer.choice).speeds.iloc[0]
    saved = f"{line['reduction_hpo_wall']:.0f} %".replace("-", "−")
    assert f"with verification: {saved} [" in text(explorer.numbers)
    assert "N_B reseeded ranks with" in text(explorer.numbers)


def test_the_download_holds_the_rows_that_are_shown(folder):
    explorer = Explorer(folder)
    explorer.controls["dataset"].value = "digits"
    link = re.search(r'download="([^"]+)" href="[^,]+,([^"]+)"', explorer.table.value)
    name, content = link.groups()
    assert name == "laptop-digits-resnet8-tpe-snip-50.csv"
    lines = list(csv.DictReader(io.StringIO(base64.b64decode(content).decode())))
    assert len(lines) == explorer.table.value.count("<tr>") - 1
    assert {line["purpose"] for line in lines} >= {"study", "verify", "final", "ranking"}
    assert {line["proxy"] for line in lines} == {"", "snip"}
    assert set(COLUMNS) <= set(lines[0])


def test_markup_in_names_is_text(tmp_path):
    rows = experiment(trials=3, dataset="imagefolder:/x/<b>my", network="<script>")
    write_rows(result_path(tmp_path, "custom", "a"), rows)
    explorer = Explorer(tmp_path)
    assert "<script>" not in explorer.table.value + explorer.numbers.value + explorer.status.value
    assert explorer.controls["dataset"].options[0][0] == "<b>my"


def test_without_rows_it_says_where_they_come_from(tmp_path):
    explorer = Explorer(tmp_path)
    told = text(explorer.widget.children[0])
    assert f"No rows are recorded in {tmp_path / 'results'}" in told
    assert "run_all.sh" in told
    assert not explorer.picture.value


def test_a_broken_file_is_named_and_the_other_profiles_are_shown(folder):
    broken = result_path(folder, "smoke", "a")
    broken.write_bytes(broken.read_bytes()[:-20])
    explorer = Explorer(folder)
    assert f"{broken}, line" in text(explorer.widget.children[0])
    assert offered(explorer, "profile") == ["laptop"]
    assert explorer.picture.value


def test_a_picture_that_fails_says_so_in_its_place(folder, monkeypatch):
    explorer = Explorer(folder)

    def fail(*_):
        raise RuntimeError("no <ink>")

    monkeypatch.setattr("proxyhpo.notebook.explorer.overview_figure", fail)
    explorer.controls["profile"].value = "smoke"
    assert "no &lt;ink&gt;" in explorer.status.value
    assert 'role="alert"' in explorer.status.value
    assert explorer.picture.layout.display == "none"  # not the picture of another choice
    monkeypatch.undo()
    explorer.controls["profile"].value = "laptop"
    assert explorer.picture.layout.display == ""


def test_every_control_has_a_name_and_says_what_it_does(folder):
    for part in (Explorer(folder), StudyPanel(folder / "studies")):
        for control in part.controls.values():
            assert control.description
            tips = ("tooltip", "description_tooltip")  # of ipywidgets 8, and of 7
            assert any(control.trait_values().get(tip) for tip in tips)


def test_a_small_study_runs_and_shows_what_came_of_it(tmp_path):
    panel = StudyPanel(tmp_path)
    panel.controls["trials"].value, panel.controls["epochs"].value = QUICK.values()
    panel.begin()
    assert panel.start.disabled
    assert not panel.stop.disabled
    asyncio.run(panel.follow())
    assert text(panel.status).strip().startswith("finished"), text(panel.status)
    assert panel.bar.value == panel.bar.max > 4
    assert size(panel.picture.value)[0] == size(panel.channels.value)[0] == 920
    assert panel.stop.disabled
    assert not panel.start.disabled
    shown = panel.study.rows
    assert set(shown["purpose"]) == {"data", "proxy", "study", "verify", "final"}
    # what was drawn is what was trained: the channels are those of the recorded proxy
    assert panel.study.channels == channels(panel.settings)


def test_a_study_is_stopped_at_once_and_goes_on_where_it_was(tmp_path):
    panel = StudyPanel(tmp_path)
    panel.controls["epochs"].value = 9
    panel.begin()

    async def stop_after_a_trial():
        following = asyncio.create_task(panel.follow())
        while (panel.study.rows["purpose"] == "study").sum() < 1:
            assert panel.study.running, panel.study.log
            await asyncio.sleep(0.05)
        panel.end()
        await asyncio.wait_for(following, 3)

    asyncio.run(stop_after_a_trial())
    assert panel.study.state == "stopped"
    assert "stopped; Run goes on from here" in text(panel.status)
    assert not panel.start.disabled
    before = panel.study.rows
    panel.begin()
    first = panel.study.rows
    panel.end()
    assert len(first) >= len(before) > 0
    assert first["recorded"][0] == before["recorded"][0]


def test_a_study_that_fails_says_why_in_its_place(tmp_path):
    panel = StudyPanel(tmp_path)
    options = panel.controls["network"].options
    panel.controls["network"].options = [*options, ("a typo", "resnet9")]
    panel.controls["network"].value = "resnet9"
    panel.begin()
    asyncio.run(panel.follow())
    assert "unknown network" in text(panel.status)
    assert "resnet8" in text(panel.status)
    assert 'role="alert"' in panel.status.value
    assert not panel.start.disabled
    (tmp_path / "file").touch()
    panel = StudyPanel(tmp_path / "file")
    panel.begin()
    assert "can&#x27;t start a study" in panel.status.value


def test_the_panel_offers_what_the_registries_know():
    from proxyhpo.experiment.protocol import check
    from proxyhpo.hpo.stand_ins import PROXIES
    from proxyhpo.pruning.criteria import CRITERIA

    assert set(STAND_INS) <= set(CRITERIA) & set(PROXIES)
    panel = StudyPanel()
    for name, control in panel.controls.items():
        for _, value in getattr(control, "options", ()):
            check(Settings(**{name: value}).experiment)


def test_channels_are_drawn_for_every_layer():
    rows = [{"item": str(at), "base": 16, "proxy": 4 + at} for at in range(5)]
    bars = channels_figure(rows, "a network").axes[0].patches
    assert [bar.get_height() for bar in bars] == [4, 5, 6, 7, 8, *[16] * 5]


def test_controls_and_pictures_load_no_torch(folder):
    code = (
        "import sys; from proxyhpo.widgets import Explorer, StudyPanel\n"
        f"assert Explorer({str(folder)!r}).picture.value; StudyPanel()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
