import json
import re
from itertools import combinations
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from made_rows import STAND_INS, TRUST, experiment, frame, ranking, rival, row, whole_grid
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from proxyhpo.analysis.cost import speedup, ways
from proxyhpo.analysis.quality import rivals
from proxyhpo.analysis.ranking import CEILING, rank_correlation
from proxyhpo.config import InputError
from proxyhpo.report import figures
from proxyhpo.report import ranking as trust_drawing
from proxyhpo.report import style as drawing
from proxyhpo.report.figures import FIGURES

LONG = {"dataset": "imagefolder:/somewhere/my pictures", "network": "mobilenetv2_x0.35"}


def some_rows(**identity):
    return frame([*experiment(trials=6, **identity), *ranking(n=8, **identity)])


def words(figure):
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())


def nine(**identity):
    cells = [(n, s) for n in ("resnet8", LONG["network"], "vgg11_bn") for s in ("tpe", "gp", "x")]
    rows = []
    for index, (network, sampler) in enumerate(cells):
        rows += experiment(trials=4, rng=index, network=network, sampler=sampler, **identity)
    for network in dict(cells):
        rows += ranking(n=6, network=network, **identity)
    return frame(rows)


LAYOUTS = {
    "one, smoke, long names": lambda: some_rows(profile="smoke", **LONG),
    "nine": nine,
    "three seeds": lambda: frame(
        r for seed in range(3) for r in experiment(seed=seed, rng=seed, **LONG)
    ),
    "unfinished": lambda: frame(r for r in experiment() if r["role"] == "base"),
    "many stand-ins that rank backwards": lambda: frame(
        r | {"val_accuracy": 0.9 - 0.8 * r["val_accuracy"]} if r["role"] == "proxy" else r
        for r in ranking(TRUST, n=6, **LONG)
    ),
    "rivals, three seeds": lambda: frame(
        r
        for seed in range(3)
        for r in [
            *experiment(seed=seed, rng=seed),
            *rival("best_k", seed=seed, rng=seed),
            *rival("hyperband", seed=seed, rng=seed + 5),
        ]
    ),
    "rivals alone": lambda: frame(rival("random")),
    "nothing but ties": lambda: frame(r | {"val_accuracy": 0.5} for r in ranking(n=4)),
}
CASES = [(layout, name) for layout in LAYOUTS for name in FIGURES]


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_nothing_is_cut_off_or_too_small_or_laid_over_something_else(layout, name):
    rows = LAYOUTS[layout]()
    if figures.used_rows(name, rows).empty:
        with pytest.raises(InputError, match=f"figure {name}: no rows with purpose"):
            FIGURES[name](rows)
        return
    figure = FIGURES[name](rows)
    width, height = figure.get_size_inches()
    assert width in (3.5, 7.0)
    canvas = FigureCanvasAgg(figure)
    with mpl.rc_context(drawing.STYLE):
        canvas.draw()
        tight = figure.get_tightbbox(canvas.get_renderer())
    assert tight.x0 > -0.01
    assert tight.y0 > -0.01
    assert tight.x1 < width + 0.01
    assert tight.y1 < height + 0.01
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 7
    free = [t for axes in figure.axes for t in (axes._left_title, axes._right_title, *axes.texts)]
    boxes = [t.get_window_extent() for t in [*free, *figure.texts] if t.get_text()]
    boxes += [axes.xaxis.label.get_window_extent() for axes in figure.axes if axes.get_xlabel()]
    boxes += [axes.yaxis.label.get_window_extent() for axes in figure.axes if axes.get_ylabel()]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    for one, other in combinations(boxes, 2):
        shared_width = min(one.x1, other.x1) - max(one.x0, other.x0)
        shared_height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert shared_width < 1 or shared_height < 1


def test_a_group_of_bars_for_every_experiment_with_its_reduction_and_the_papers_line():
    rows = frame(whole_grid())
    figure = FIGURES["speedup"](rows)
    assert [axes._left_title.get_text() for axes in figure.axes] == [
        "cifar10", "cifar100", "tinyimagenet"
    ]  # fmt: skip
    table = speedup(rows, pool_seeds=True)
    written = words(figure)
    for value in table["reduction_hpo_wall"]:
        assert f"{value:.0f} %".replace("-", "−") in written
    assert "paper: up to 37 % less" in written
    # one dashed line a pair of bars, at 63 % of the bar of N_B
    lines = [c for axes in figure.axes for c in axes.collections]
    assert len(lines) == len(table) == 27
    height = lines[0].get_segments()[0][0, 1] * 60
    assert height == pytest.approx(0.63 * table["hpo_base_wall"][0])


def test_the_ledger_stacks_all_seconds_of_both_ways():
    rows = some_rows()
    figure = FIGURES["ledger"](rows)
    drawn = sum(patch.get_height() for patch in figure.axes[0].patches) * 60
    assert drawn == pytest.approx(ways(rows)["wall_seconds"].sum())
    for purpose in ("loading the pictures", "building the proxy", "trials", "verification"):
        assert purpose in words(figure)


def test_what_interruptions_lost_is_on_the_ledger_and_not_compared():
    rows = some_rows()
    study = rows[rows["purpose"] == "study"].iloc[[0]]
    torn = pd.concat([rows, study.assign(purpose="lost", state="failed", wall_seconds=500.0)])
    figure = FIGURES["ledger"](torn)
    drawn = sum(patch.get_height() for patch in figure.axes[0].patches) * 60
    assert drawn == pytest.approx(ways(rows)["wall_seconds"].sum() + 500)
    assert "lost to interruptions" in words(figure)
    assert "lost to interruptions" not in words(FIGURES["ledger"](rows))
    pd.testing.assert_frame_equal(speedup(torn), speedup(rows))


def test_seconds_of_several_workers_are_said_to_be_summed():
    rows = some_rows()
    assert "workers" not in figures.caption("speedup", rows)
    assert "summed over up to 4 workers" in figures.caption("speedup", rows.assign(workers=4))


def test_more_stand_ins_than_one_panel_can_hold_get_a_column_for_each_kind():
    rows = frame(ranking(TRUST))
    trust, shift = FIGURES["trust"](rows), FIGURES["shift"](rows)
    kinds = ["random", "snip", "synflow", "uniform", "controls"]
    assert [axes._left_title.get_text() for axes in trust.axes[:5]] == kinds
    assert [axes._left_title.get_text() for axes in shift.axes] == kinds
    assert len(trust.axes) == 30
    assert len(FIGURES["trust"](some_rows()).axes) == 6
    # the shares of one stand-in are joined, with an interval each
    (line, _, (bars,)) = trust.axes[1].containers[0]
    table = rank_correlation(rows)
    snip = table[table["proxy"] == "snip"].sort_values("share_wall")
    assert line.get_xdata().tolist() == pytest.approx((100 * snip["share_wall"]).tolist())
    assert line.get_ydata().tolist() == snip["rho"].tolist()
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx(end) for end in snip[["rho_low", "rho_high"]].to_numpy()]


def test_time_is_named_as_it_is_measured():
    quiet = some_rows()
    busy = quiet.assign(load=3.0, cpu_seconds=quiet["wall_seconds"] / 2)
    for rows, clock in ((quiet, "wall-clock"), (busy, "CPU")):
        for name in ("speedup", "incumbent", "rivals"):
            assert f"{clock} " in words(FIGURES[name](rows))
        block = FIGURES["trust"](rows).subfigs[0]
        assert f"measured {clock} time" in block._supxlabel.get_text()
    assert "CPU time, since others kept" in figures.caption("speedup", busy)
    assert "since others kept" not in figures.caption("speedup", quiet)
    assert "since others kept" not in figures.caption("ledger", busy)


def test_every_way_of_hpo_stands_in_the_figure_of_rivals():
    rows = LAYOUTS["rivals, three seeds"]()
    figure = FIGURES["rivals"](rows)
    table = rivals(rows)
    for axes, unit, factor in zip(figure.axes, ("wall", "macs"), (60, 1e9), strict=True):
        drawn = sorted(c.lines[0].get_xdata()[0] * factor for c in axes.containers)
        assert drawn == pytest.approx(sorted(table[unit]))
        assert axes.get_xlim()[1] * factor > table[f"{unit}_high"].max()
    assert "best k after one epoch" in words(figure)
    assert "no stand-in yet" not in words(FIGURES["speedup"](rows))
    assert "n = 1 experiments" in figures.caption("speedup", rows)


def test_correlations_are_written_into_the_panels():
    rows = some_rows()
    table = rank_correlation(rows).set_index("proxy")
    written = words(FIGURES["rank_correlation"](rows))
    for proxy, name in {"snip": "rho", "uniform": "tau", CEILING: "rho"}.items():
        value = f"{table.loc[proxy, name]:.2f}".replace("0.", ".").replace("1.00", "1")
        assert f"{'ρ' if name == 'rho' else 'τ'} {value} [" in written
    assert "all 8:" in written
    assert "ceiling:" in written


def test_a_correlation_of_nothing_but_ties_is_undefined():
    assert "all 4: ρ undefined, τ undefined" in words(
        FIGURES["rank_correlation"](LAYOUTS["nothing but ties"]())
    )


def test_too_many_panels_leave_the_controls_out_and_say_so():
    rows = frame([r for n in "abcd" for r in ranking(STAND_INS, network=n, n=5)])
    shown = trust_drawing.scatter_panels(rows)
    assert {key[3] for key in shown} == {"snip"}
    assert "32 more stand-ins are left out" in figures.caption("rank_correlation", rows)
    few = figures.caption("rank_correlation", some_rows())
    assert "left out" not in few


@pytest.mark.parametrize("name", FIGURES)
def test_a_smoke_run_says_so_in_the_picture_and_in_the_caption(name):
    smoke = some_rows(profile="smoke")
    assert "smoke run: not evidence" in words(FIGURES[name](smoke))
    assert "smoke run: not evidence" in figures.caption(name, smoke)


@pytest.mark.parametrize("name", FIGURES)
def test_a_caption_names_n_seeds_device_profile_and_interval(name):
    told = figures.caption(name, some_rows())
    assert "Profile laptop" in told
    assert "a processor, 1 thread" in told
    assert re.search(r"seeds 0|\(0\)", told)
    found = re.findall(r"n = 8 conf|n = 1 experiments, 6 trials a study|n = 1 seeds a way", told)
    assert len(found) == 1
    if name == "rivals":
        assert "One seed, hence no intervals" in told
        told = figures.caption(name, LAYOUTS["rivals, three seeds"]())
    if name not in ("ledger", "incumbent"):
        assert "95 %, percentile bootstrap over" in told


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """Rows of two files, a folder of all their figures, and the paths that draw_all told."""
    rows, folder = some_rows(), tmp_path_factory.mktemp("figures")
    rows.loc[rows["role"] == "proxy", "file"] = "other.csv"
    return rows, folder, figures.draw_all(rows, folder, "laptop")


def test_the_same_rows_give_the_same_bytes(evidence, tmp_path):
    rows, folder, paths = evidence
    assert [path.name for path in paths] == [
        f"{name}.{suffix}" for name in FIGURES for suffix in ("svg", "pdf", "png", "json")
    ]
    again = figures.draw_all(rows, tmp_path, "laptop")
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths}


def test_the_text_of_a_vector_figure_is_text(evidence):
    _, folder, _ = evidence
    text = (folder / "speedup.svg").read_text(encoding="utf-8")
    assert "paper: up to 37 % less</text>" in text
    assert "<dc:date>" not in text
    ElementTree.fromstring(text)
    assert (folder / "speedup.png").read_bytes().startswith(b"\x89PNG")


def test_the_sidecar_tells_where_the_picture_comes_from(evidence):
    rows, folder, _ = evidence
    told = json.loads((folder / "speedup.json").read_text(encoding="utf-8"))
    assert told["files"] == {"made-up.csv": 6 + 2, "other.csv": 6 + 1}
    assert told["purposes"] == {"proxy": 1, "study": 12, "verify": 2}
    assert told["rows"] == 15
    assert (told["profile"], told["seeds"]) == ("laptop", [0])
    assert told["commits"] == ["0123456789abcdef"]
    assert told["device"] == ["a processor, 1 thread"]
    assert told["measured with"]["torch"] == ["2.15.0"]
    assert told["caption"] == figures.caption("speedup", rows)


def test_a_smoke_run_never_overwrites_evidence(evidence):
    _, folder, paths = evidence
    before = [path.read_bytes() for path in paths]
    with pytest.raises(InputError, match=r"speedup\.json belongs to profile laptop, not smoke"):
        figures.draw_all(some_rows(profile="smoke"), folder, "smoke")
    rows = some_rows(profile="smoke")
    with pytest.raises(InputError, match="rows of profile smoke"):
        figures.save_figure(FIGURES["speedup"](rows), folder, "speedup", rows, "laptop")
    assert [path.read_bytes() for path in paths] == before


def test_figures_without_rows_are_left_out_with_a_reason(tmp_path):
    told = []
    rows = frame([*ranking(n=6), *experiment(profile="gpu")])
    paths = figures.draw_all(rows, tmp_path, "laptop", told.append)
    assert {path.stem for path in paths} == {"rank_correlation", "trust", "shift"}
    assert [line.split(":")[1] for line in told] == [
        " figure speedup", " figure ledger", " figure incumbent", " figure rivals"
    ]  # fmt: skip
    told.clear()
    stopped = row("study", state="stopped", epochs=1, budget=9, val_accuracy=0.3)
    figures.draw_all(frame([stopped]), tmp_path / "stopped", "laptop", told.append)
    assert "left out: figure incumbent: no trial was trained to its full budget" in told


def test_an_unknown_figure():
    with pytest.raises(InputError, match="unknown figure 'speedups': did you mean 'speedup'"):
        figures.draw("speedups", some_rows())


def test_a_notebook_shows_a_figure():
    data, _ = DisplayFormatter().format(FIGURES["speedup"](some_rows()))
    assert data["image/png"].startswith(b"\x89PNG")


def test_drawing_changes_neither_rows_nor_global_style():
    rows = some_rows()
    before, style = rows.copy(), dict(mpl.rcParams)
    for draw in FIGURES.values():
        assert "smoke" not in words(draw(rows))
    assert rows.equals(before)
    assert dict(mpl.rcParams) == style
