"""Figures and generated pages, drawn from tables made by formula."""

import copy
import json
import re
import shutil
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from made_tables import made_evidence, made_rows, made_steps, made_table

from proxyhpo.analysis.claims import HEADLINES, POOLED, claims
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.analysis.released import AS_RELEASED
from proxyhpo.config import InputError
from proxyhpo.hpo.tables import TABLES
from proxyhpo.report import figures, pages
from proxyhpo.report.tables import CLAIMS
from proxyhpo.rows import write_rows


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    return made_evidence(tmp_path_factory.mktemp("checkout") / "results")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A table whose first weight seed alone is recorded: no truth, no costs, no replays."""
    folder = tmp_path_factory.mktemp("bare") / "results" / "curves"
    folder.mkdir(parents=True)
    rows = made_rows()
    few = rows[(rows["purpose"] == "curve") & (rows["seed"] == 0)]
    write_rows(folder / "cifar10-resnet20.csv", few)
    return Evidence(folder)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_has_one_title_and_no_legend_over_its_data(evidence, name):
    figure = figures.draw(name, evidence)
    assert figure.get_suptitle()
    for text in figure.texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert 1 <= len(figure.axes) <= 6
    for axes in figure.axes:
        assert axes.get_legend() is None
        assert axes.has_data()
        assert axes.get_xlabel()


def test_marks_are_filled_where_the_difference_from_the_ceiling_shows_them_worse(evidence):
    other = copy.copy(evidence)
    known = evidence.agreement[evidence.agreement["measure"] == "regret3"]
    ends = pd.DataFrame({"difference_low": -1.0, "difference_high": 1.0}, known.index)
    seen = known["view"].isin(["uniform@0.25", "snip@0.25", "base:1", "base:1 averaged"])
    first = known.index[(known["table"] == known["table"].iloc[0]) & seen]
    ends.loc[first] = [[0.6, 1.0], [0.4, 0.9], [0.0, 0.0], [-0.1, 1.0]]
    other.agreement = known.assign(**ends)
    figure = figures.draw("regret", other)
    assert "\n1 of " in figure.get_suptitle()
    marks = [
        line for line in figure.axes[0].lines if line.get_ls() == "None" and len(line.get_xdata())
    ]
    assert sum(mark.get_markerfacecolor() != "white" for mark in marks) == 1
    places = np.sort([mark.get_xdata()[0] for mark in marks])
    assert len(places) > 4
    assert (places[1:] / places[:-1] > 1.08).all()  # none hides another
    texts = [text.get_text() for text in figure.legends[0].texts]
    assert "filled: shown to be so" in texts


def test_the_race_figure_marks_where_a_full_search_ends_and_loses_no_minus_zero(evidence):
    other = copy.copy(evidence)
    parts = ["regret_quarter", "regret_full"]
    other.race_summary = evidence.race_summary.assign(**dict.fromkeys(parts, -0.01))
    figure = figures.draw("race", other)
    assert "(0.0 and 0.0 points)" in figure.get_suptitle()
    for axes, trials in zip(figure.axes, evidence.searches.values(), strict=True):
        upright = [line for line in axes.lines if list(line.get_xdata()) == [trials] * 2]
        assert len(upright) == 1


def test_the_claims_figure_words_each_claim_and_shows_all_of_each_line(evidence):
    other = copy.copy(evidence)
    own = evidence.claims[evidence.claims["table"] == evidence.claims["table"].iloc[0]]
    outcomes = ["yes", "undecided", *["yes"] * (len(own) - 2)]
    other.claims = own.assign(outcome=outcomes)
    figure = figures.draw("claims", other)
    title = f"CIFAR-10, ResNet-20: {len(own) - 1} of {len(own)} claims hold, 1 undecided"
    assert figure.get_suptitle() == title
    texts = [tick.get_text() for axes in figure.axes for tick in axes.get_yticklabels()]
    assert len(texts) == len(own)
    assert "accuracy lost with snip 25 %,\nholds below 0.5 points" in texts
    assert "accuracy gained by snip over\nuniform width 25 %, holds above 0.5 points" in texts
    assert not any("@" in text for text in texts)
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low < min(axes.get_yticks()) - 0.5
        assert high > max(axes.get_yticks()) + 0.5


def test_the_sight_figure_counts_the_intervals_above_zero(evidence):
    other = copy.copy(evidence)
    other.sight = evidence.sight.assign(low=0.1)
    views = ("uniform@0.25", "base:1 averaged")
    along = other.sight["axis"] == "weight_decay"
    other.sight.loc[along & other.sight["view"].isin(views), "low"] = -0.1
    count = other.sight.loc[along, "view"].nunique() - 2  # two early epochs are left out
    title = figures.draw("sight", other).get_suptitle()
    counted = f"{count} of {count} on learning rates, {count - 2} of {count} on weight decays"
    assert f"{counted} (CIFAR-10, ResNet-20)" in title


@pytest.mark.parametrize(
    ("saved", "released", "words"),
    [
        (-23, 36, "23 % more time;\nas released it seems to save 36 % ("),
        (12, -5, "12 % less time;\nas released it seems to take 5 % more ("),
    ],
)
def test_the_released_codes_figure_says_what_is_saved_by_either_sign(
    evidence, saved, released, words
):
    other = copy.copy(evidence)
    known = evidence.switches
    values = known["switch"].map({"corrected": saved, AS_RELEASED: released}).fillna(0.0)
    other.switches = known.assign(saved=values)
    figure = figures.draw("released", other)
    assert words in figure.get_suptitle()
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert "without a trial pruner" in names
    assert "trial pruner never asked" in set(known["switch"])  # as it is recorded
    assert "without a trial pruner" in pages.PARTS["switches"](other)


def test_legends_show_the_marks_and_tell_the_stand_in_from_the_number_verified(evidence):
    (legend,) = figures.draw("shift", evidence).legends
    marks = [handle.get_marker() for handle in legend.legend_handles]
    assert len(set(marks)) == len(marks) > 3
    assert "None" not in marks
    (legend,) = figures.draw("speedup", evidence).legends
    texts = [text.get_text() for text in legend.texts]
    criteria, k = ["snip 25 %", "uniform width 25 %"], ["k = 0", "k = 1", "k = 3"]
    assert texts == [*criteria, *k, "the paper's maximum, 37 %"]
    styles = [handle.get_linestyle() for handle in legend.legend_handles[2:]]
    assert len(set(styles)) == len(styles)  # the paper's line is no network's


def test_the_epochs_extremes_are_told_apart_by_network_or_else_by_criterion(evidence):
    other = copy.copy(evidence)
    costs = evidence.epoch_costs
    other.epoch_costs = costs[costs["table"] == "cifar10-resnet20"]
    one = figures.draw("epoch_cost", other).get_suptitle()
    assert "uniform width 25 %)" in one
    assert "(snip 25 %)" in one
    assert "ResNet-20" not in one


@pytest.mark.parametrize(
    ("more", "words"),
    [(0.4, "1.1 x"), (1.0, "1.1 x"), (1.21, "1.3 x"), (9.95, "10 x"), (12.1, "13 x")],
)
def test_what_an_undecided_claim_would_take_is_rounded_up_and_never_one(more, words):
    assert CLAIMS["would take"]({"more": more}) == words
    assert CLAIMS["would take"]({"more": np.inf}) == "over 100 x"
    assert CLAIMS["would take"]({"more": np.nan}) == ""


def test_figures_are_files_that_say_what_they_were_drawn_from(evidence, tmp_path):
    figure = figures.draw("shift", evidence)
    first = [path.read_bytes() for path in figures.save_figure(figure, tmp_path, "shift", evidence)]
    again = figures.draw("shift", evidence)
    paths = figures.save_figure(again, tmp_path, "shift", evidence)
    assert [path.read_bytes() for path in paths] == first
    assert "cifar10-resnet20.csv" in json.loads((tmp_path / "shift.json").read_text())["files"]
    pixels = matplotlib.image.imread(tmp_path / "shift.png")
    assert pixels.shape[1] == 1400
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50


def test_each_data_set_has_pictures_of_its_own_where_a_panel_is_a_table(tmp_path):
    for name in ("cifar10-resnet20", "cifar100-resnet20"):
        rows = made_rows(name)
        write_rows(tmp_path / f"{name}.csv", rows[rows["seed"] == 0])
    evidence = Evidence(tmp_path)
    parts = figures.pictures("shift", evidence)
    assert {name: list(part.tables) for name, part in parts.items()} == {
        "shift-cifar10": ["cifar10-resnet20"],
        "shift-cifar100": ["cifar100-resnet20"],
    }
    assert figures.pictures("claims", evidence) == {"claims": evidence}
    drawn = figures.draw_all(evidence, tmp_path / "figures", lambda _: None)
    assert {"shift-cifar10", "shift-cifar100"} < {path.stem for path in drawn}
    files = json.loads((tmp_path / "figures" / "shift-cifar100.json").read_text())["files"]
    assert list(files) == ["cifar100-resnet20.csv"]


def test_a_table_of_another_scale_is_shown_and_not_pooled(tmp_path):
    for name in ("cifar10-resnet56", "cifar10-resnet56-gpu"):
        write_rows(tmp_path / f"{name}.csv", made_rows(name))
    steps = made_steps(TABLES["cifar10-resnet56-gpu"].entrants)
    steps.assign(device="a GPU").to_csv(tmp_path / "cifar10-resnet56-gpu-steps.csv", index=False)
    evidence = Evidence(tmp_path)
    assert list(evidence.tables) == ["cifar10-resnet56"]
    write_rows(tmp_path / "cifar10-vgg16_bn-gpu.csv", made_rows("cifar10-vgg16_bn-gpu").head(3))
    assert list(Evidence(tmp_path).scaled) == ["cifar10-resnet56-gpu"]  # the other has just begun
    scaled = pages.PARTS["scaled"](evidence)
    assert "CIFAR-10, ResNet-56 | 8,000 pictures of 32 pixels, 24 epochs" in scaled
    timed = pages.PARTS["scaled_steps"](evidence)
    assert re.search(r"\| a GPU \| 256 pictures of 32 pixels \| (?:49|50)\.\d \|", timed)
    assert re.search(r"\| snip 25 % \| 0\.5\d \[0\.5\d, 0\.5\d\] \|", timed)
    steps = made_steps(TABLES["cifar10-resnet56"].entrants)
    steps.to_csv(tmp_path / "cifar10-resnet56-steps.csv", index=False)
    time = pages.PARTS["advice"](Evidence(tmp_path)).splitlines()[0]
    assert "a step of ResNet-56 takes less time pruned (snip 25 %: 0.5" in time


def test_what_is_not_recorded_is_left_out_with_its_reason(bare, tmp_path):
    told = []
    drawn = figures.draw_all(bare, tmp_path, told.append)
    assert {path.stem for path in drawn} == {"shift-cifar10", "sight"}
    assert any("./run_all.sh replay" in line for line in told)
    with pytest.raises(InputError, match="choose from race"):
        figures.draw("pie", bare)


def test_pages_are_generated_between_their_marks_and_again_alike(evidence):
    root = evidence.folder.parent.parent
    figures.draw_all(evidence, root / "figures", lambda _: None)
    page = root / "RESULTS.md"
    parts = "".join(f"<!-- generated: {name} -->\nSTALE\n<!-- end -->\n" for name in pages.PARTS)
    page.write_text(f"by hand\n{parts}", encoding="utf-8")
    told = []
    assert page in pages.generate(root, told.append)
    assert told == [f"generated: {name}" for name in pages.PARTS]
    assert pages.generate(root) == []
    text = page.read_text(encoding="utf-8")
    assert text.startswith("by hand\n")
    assert "STALE" not in text
    assert "not recorded" in text  # of the paper's 27 experiments
    assert not re.search(r"\bnan\b|\binf\b|None", text)
    shown = (root / "figures" / "README.md").read_text(encoding="utf-8")
    assert shown.count("![") == len(figures.FIGURES)


def test_answers_about_tables_in_general_say_how_each_decides_alone():
    tables = [made_table(f"cifar10-{name}") for name in ("resnet20", "resnet56", "mobilenetv2")]
    assert POOLED not in set(claims(tables[:2], pd.DataFrame())["table"])  # three are needed
    known = claims(tables, pd.DataFrame(), HEADLINES)
    short, _, _, _, *lines = pages.PARTS["answers"](
        SimpleNamespace(headlines=known, searches={}, overall=pd.DataFrame())
    ).splitlines()
    assert short.startswith(
        "**In short.** On one CPU core, an epoch on a pruned network takes less "
    )
    assert "hyperparameters" not in short  # nothing is known of them yet
    assert "| **yes** | 44 [" in lines[0]
    assert re.search(r"% less time \| yes 3; 44 \| .*; 3 tables of 3 networks \|$", lines[0])
    assert "**open** | - |  | no truth and replays recorded yet" in lines[3]


def test_the_papers_space_and_trials_say_what_trusting_the_proxy_costs(evidence):
    (line,) = [
        one
        for one in pages.PARTS["advice_in_full"](evidence).splitlines()
        if "space and trials" in one
    ]
    recorded = evidence.cells[evidence.cells["draw"] == 0]
    means = recorded[["saved", "lost", "saved_verified", "lost_verified"]].mean()
    assert "8 trials, interpolated from our short trainings, 1 of 27 experiments replayed: " in line
    for end, how in {"": "best trusted", "_verified": "three verified"}.items():
        saved, lost = 100 * means[f"saved{end}"], means[f"lost{end}"]
        text = f"{how}, {saved:.0f} % less time and a median of {lost:.1f} points of test accuracy"
        assert f"{text} lost, {lost:.1f}" in line
    assert "Most is lost on CIFAR-10, ResNet-56." in line
    other = copy.copy(evidence)
    other.cells = evidence.cells.assign(table="cifar100-resnet20")  # no network of the paper's
    assert "space and trials" not in pages.PARTS["advice_in_full"](other)


def test_the_cases_of_claims_are_in_words_that_no_page_takes_for_mail_addresses(evidence):
    text = pages.PARTS["claims"](evidence)
    assert "| snip 25 %, 18 trials |" in text
    assert "| snip against uniform width 25 % |" in text
    assert "@" not in text


def test_an_answer_about_accuracy_says_after_how_many_trials(evidence):
    *_, quality, _ = pages.PARTS["answers"](evidence).splitlines()
    saved = "6 trials on one table (no time saved), 18 trials on one table; "
    assert f"| snip 25 %, 3 verified; {saved}" in quality


def test_the_first_way_is_held_against_the_next_two_on_the_tables_that_judge(evidence):
    lost = {
        "first": [1.0, 2.0, 3.0, 0.0],
        "second": [1.5, 2.4, 3.6, 9.0],
        "third": [0.9, 2.3, 3, 9],
    }
    networks = ["resnet20", "resnet56", "vgg16_bn", "mobilenetv2"]
    lines = [
        {"way": way, "dataset": "cifar10" if one == "mobilenetv2" else "cifar100", "network": one}
        | dict.fromkeys(["regret_quarter", "regret_half", "regret_full"], points)
        for way, every in lost.items()
        for one, points in zip(networks, every, strict=True)
    ]
    other = copy.copy(evidence)
    other.overall = pd.DataFrame({"way": [*lost, "fourth"]})
    other.race_summary = pd.DataFrame(lines)
    assert other.ahead["points"].tolist() == pytest.approx([0.5, 0.2 / 3])
    assert "first has the lowest mean loss" in (text := pages.PARTS["answers"](other))
    beaten = (
        "it is shown to beat 1 of the next two (0.5 [0.3, 0.7] and 0.1 [-0.5, 0.6] points ahead"
    )
    assert beaten in text
    other.ahead = other.ahead.assign(low=-1.0)
    assert "it isn't shown to beat the next two (" in pages.PARTS["answers"](other)


def test_the_sentences_between_the_tables_count_what_these_show(evidence):
    gates = pd.DataFrame({"icc": [0.8, 0.3, np.nan]}, ["cifar10-resnet20", "cifar10-vgg16_bn", "x"])
    other = copy.copy(evidence)
    other.gates = gates
    text = pages.PARTS["informative"](other)
    assert text.endswith("(ICC 0.80 or more) on 1 of 2 tables, not on CIFAR-10, VGG-16-BN (0.30).")
    assert f"The {len(evidence.claims)} claims of this list" in pages.PARTS["held"](evidence)
    switches = evidence.switches.assign(optimism=-1.25)
    switches.loc[switches["switch"] == "chosen on the test split", "optimism"] = 0.26
    other.switches = switches
    text = pages.PARTS["reported"](other)
    assert "less than is true on 1 of 1 tables (its optimism is -1.2 points)" in text
    assert "0.3 points more or less than is true on average, instead of 1.2." in text


def test_the_advice_says_where_a_pruned_network_never_pays(evidence):
    other = copy.copy(evidence)
    costs = evidence.epoch_costs
    slow = costs["entrant"].isin(["snip@0.25", "uniform@0.25"])
    first = costs.index[slow][:1]
    other.epoch_costs = costs.assign(trial=costs["trial"].where(costs.index != first[0], 1.02))
    assert f"(never in 1 of {slow.sum()} cases)" in pages.PARTS["advice"](other)
    other.epoch_costs = costs.assign(trial=costs["trial"].where(~slow, 1.02))
    assert "save 5 % of the time (never in" in pages.PARTS["advice"](other)


def test_the_short_advice_opens_each_part_of_the_full_one(evidence):
    short, full = (
        pages.PARTS[name](evidence).splitlines() for name in ("advice", "advice_in_full")
    )
    assert len(short) == len(full) > 4
    assert all(more.startswith(line) for line, more in zip(short, full, strict=True))
    assert len("".join(short)) < 0.9 * len("".join(full))


def test_the_advice_says_against_which_other_searches_a_claim_fails(evidence):
    other = copy.copy(evidence)
    lines = [("uniform@0.25", "tpe", "yes"), ("uniform@0.25", "gp", "undecided")]
    lines += [("snip@0.25", "tpe", "undecided"), ("snip@0.25", "random", "no")]
    other.baselines = pd.DataFrame(lines, columns=["case", "baseline", "outcome"])
    text = pages.PARTS["advice_in_full"](other)
    assert "For uniform width 25 % it isn't shown against GP on N_B, " in text
    assert "random search" not in text


def test_the_advice_says_which_claims_hold_of_tables_in_general(evidence):
    other = copy.copy(evidence)
    pooled = {"claim": "quality", "table": POOLED, "case": "uniform@0.25", "outcome": "yes"}
    pooled |= {"estimate": -0.4, "low": -1.1, "high": 0.4, "unit": "points"}
    other.claims = pd.concat([evidence.claims, pd.DataFrame([pooled])])
    assert "shown for uniform width 25 % (-0.4 [-1.1, 0.4] points). " in pages.PARTS[
        "advice_in_full"
    ](other)
    assert "On all tables together" not in pages.PARTS["advice_in_full"](evidence)


@pytest.mark.parametrize("decay", [np.nan, 5e-4])  # a grid of one decay doesn't name it
def test_live_studies_say_which_trials_their_replays_share(bare, decay):
    known = {"table": "cifar10-resnet20", "stand_in": "snip@0.25", "sampler": "tpe"}
    known |= {"weight_decay_live": 5e-4, "weight_decay_replay": decay, "device": "new processor"}
    trials = {"lr_live": [0.1, 0.1, 0.1], "lr_replay": [0.1, 0.1, 0.2]}  # the last went elsewhere
    trials |= {"accuracy_live": [0.51, 0.53, 0.99], "accuracy_replay": [0.5, 0.5, 0.5]}
    path = bare.folder.parent / "live" / "one.csv"
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(trials).assign(**known).to_csv(path, index=False)
    shown, apart = (pages.PARTS[name](Evidence(bare.folder)) for name in ("live", "live_apart"))
    pd.DataFrame(trials).head(2).assign(**known).to_csv(path, index=False)
    alike = pages.PARTS["live_apart"](Evidence(bare.folder))
    shutil.rmtree(path.parent)
    assert "| new processor | made | 2 of 3 | +2.0 (1.4) |" in shown
    assert "most at" not in apart
    assert "differ, most at learning rate 0.1 (+3.0 points)." in alike


def test_an_unknown_part_is_refused(evidence):
    with pytest.raises(InputError, match="'weather': choose from answers"):
        pages.render("<!-- generated: weather -->\n<!-- end -->", evidence)


def test_pages_of_a_table_under_way_say_what_is_missing(bare):
    for name, part in pages.PARTS.items():
        assert part(bare).strip(), name


def test_without_any_table_one_line_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"no recorded table in .*record lists"):
        Evidence(tmp_path)
