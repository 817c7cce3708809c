import pytest
from made_tables import made_rows, write_table

from proxyhpo.analysis.cost import reduction, saving
from proxyhpo.config import PROFILES, Experiment, InputError
from proxyhpo.experiment.replayed import ReplayedRun
from proxyhpo.hpo.tables import TABLES
from proxyhpo.report.experiment import experiment_figure, ranking_figure


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    for name in ("cifar10-resnet20", "cifar10-resnet56"):
        write_table(folder, name)
    return folder


@pytest.mark.parametrize("network", ["resnet20", "resnet56"])
def test_a_replayed_experiment_has_the_steps_and_rows_of_a_live_one(folder, network):
    experiment = Experiment("cifar10", network, "tpe", PROFILES["table"])
    with ReplayedRun(experiment, folder=folder) as run:
        trials = PROFILES["table"].trials
        assert len(run.search("base")) == len(run.search("proxy")) == trials
        assert len(run.verify()) == 3
        assert run.final()["choice"].tolist() == ["base", "proxy", "verified"]
        assert run.final()["test_accuracy"].between(0.3, 0.6).all()
        ranking = run.ranking()
        assert set(ranking["proxy"]) == {"", *TABLES[f"cifar10-{network}"].entrants} - {"base"}
        rows = run.finish()
    share = run.table.seconds("snip@0.25", 1) / run.table.seconds("base", 1)
    build = run.table.costs["snip@0.25"].build / run.table.whole
    epochs = rows[rows["purpose"] == "study"].groupby("role")["epochs"].sum()
    trained = epochs["base"] / run.table.curves("base").epochs
    expected = saving(trained, 3, share * epochs["proxy"] / epochs["base"], build=build)
    assert reduction(rows)["verified"].iloc[0] == pytest.approx(expected, abs=0.01)
    figure = experiment_figure(rows)
    verified = 100 * rows.loc[rows["purpose"] == "verify", "val_accuracy"]
    drawn = figure.axes[1].lines[-1]
    assert drawn.get_marker() == "o"
    assert drawn.get_ydata() == pytest.approx(verified.to_numpy())  # each, not the best so far
    assert f"{verified.max():.1f} % with the stand-in's" in figure.get_suptitle()
    ranking_figure(rows)


def test_what_is_not_recorded_is_named_with_its_command_and_gives_no_rows(folder, tmp_path):
    run = ReplayedRun(Experiment("cifar10", "vgg16_bn", "gp", PROFILES["table"]), folder=folder)
    (line,) = run.missing
    assert "record --dataset cifar10 --model vgg16_bn" in line
    for rows in (run.search("base"), run.search("proxy"), run.verify(), run.final(), run.ranking()):
        assert rows.empty
    assert run.finish().empty

    rows = made_rows("cifar10-resnet56")
    write_table(tmp_path, "cifar10-resnet56", rows[rows["purpose"] == "curve"])
    experiment = Experiment("cifar10", "resnet56", "tpe", PROFILES["table"])
    steps = (tmp_path / "cifar10-resnet56-steps.csv").rename(tmp_path / "steps")
    (line,) = ReplayedRun(experiment, folder=tmp_path).missing
    assert line.endswith("python benchmarks/steps.py --dataset cifar10 --model resnet56")
    steps.rename(tmp_path / "cifar10-resnet56-steps.csv")
    with ReplayedRun(experiment, folder=tmp_path) as run:
        assert [line.split(" in ")[0] for line in run.missing] == ["verification", "truth"]
        assert len(run.search("proxy")) == PROFILES["table"].trials
        assert run.verify().empty
        assert run.final().empty


def test_names_that_no_table_or_sampler_has_are_refused(folder):
    with pytest.raises(InputError, match="unknown table 'digits-resnet20'"):
        ReplayedRun(Experiment("digits", "resnet20", "tpe", PROFILES["table"]), folder=folder)
    with pytest.raises(InputError, match="unknown sampler 'tpx': did you mean 'tpe'"):
        ReplayedRun(Experiment("cifar10", "resnet20", "tpx", PROFILES["table"]), folder=folder)
