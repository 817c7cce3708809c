import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch

from proxyhpo.config import PROFILES, Experiment, InputError
from proxyhpo.data.datasets import Dataset
from proxyhpo.experiment import trial
from proxyhpo.experiment.engine import thread_environment
from proxyhpo.experiment.protocol import Run, check, run_experiment
from proxyhpo.hpo.storage import open_storage
from proxyhpo.rows import ranked

TINY = dataclasses.replace(
    PROFILES["smoke"], name="tiny", subset=24, test_subset=10, trials=6, epochs=3, ranking=3
)
EXPERIMENT = Experiment("digits", "resnet8", "tpe", TINY)


def changed(**changes):
    """The experiment at a changed scale."""
    return dataclasses.replace(EXPERIMENT, profile=dataclasses.replace(TINY, **changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    began = time.process_time()
    rows = run_experiment(EXPERIMENT, out=out)
    return out, rows, time.process_time() - began


@pytest.fixture
def rows(finished):
    return finished[1]


def test_each_step_leaves_its_rows(rows):
    counts = rows.groupby(["purpose", "role"]).size().to_dict()
    assert counts["study", "base"] == counts["study", "proxy"] == TINY.trials
    assert counts["verify", "base"] == TINY.verify
    assert 1 <= counts["final", "base"] <= 3
    assert counts["ranking", "base"] == 2 * TINY.ranking
    assert counts["ranking", "proxy"] == len(TINY.ranked) * TINY.ranking
    assert counts["proxy", "proxy"] == 1 + len(set(TINY.ranked) - {TINY.proxy})


def test_the_ledger_adds_up_to_what_was_waited_for(finished):
    _, rows, seconds = finished
    # By the processor's clock, and as shares of it: a second thing on the machine slows both. No
    # second is booked twice; what isn't booked is reading and writing files, a tenth of a run that
    # trains on 24 pictures, and less than any of its five steps would leave out.
    assert 0.75 * seconds < rows["cpu_seconds"].sum() < 1.01 * seconds
    parts = rows[["proxy_seconds", "train_seconds", "eval_seconds", "sampler_seconds"]].sum(axis=1)
    assert (parts <= rows["wall_seconds"] + 1e-6).all()
    trained = rows["purpose"] != "data"  # loading has no parts
    assert parts.sum() > 0.7 * rows.loc[trained, "wall_seconds"].sum()


def test_configurations_are_the_same_on_both_networks(rows):
    ranking = rows[rows["purpose"] == "ranking"]
    sets = ranking.groupby(["proxy", "seed"])["config_id"].agg(frozenset)
    assert len(set(sets)) == 1
    assert len(sets) == 2 + len(TINY.ranked)
    assert set(ranking[ranking["role"] == "proxy"]["seed"]) == {1}
    assert ranking["state"].isin(["complete", "diverged"]).all()


def test_verification_takes_the_proxys_best(rows):
    study = rows[(rows["purpose"] == "study") & (rows["role"] == "proxy")]
    best = study[study["state"] == "complete"].sort_values("val_accuracy", ascending=False)
    verified = rows[rows["purpose"] == "verify"]
    assert set(verified["config_id"]) <= set(best["config_id"])
    assert best.iloc[0]["config_id"] in set(verified["config_id"])


def test_only_the_final_training_has_a_test_accuracy(rows):
    final = rows["purpose"] == "final"
    assert rows.loc[final, "test_accuracy"].notna().all()
    assert rows.loc[final, "val_accuracy"].isna().all()
    assert rows.loc[~final, "test_accuracy"].isna().all()
    chosen = "+".join(rows.loc[final, "choice"]).split("+")
    assert sorted(chosen) == ["base", "proxy", "verified"]


def test_the_proxy_is_smaller_and_the_base_is_not_changed(rows):
    trained = rows[rows["samples"] > 0]
    assert len(set(trained[trained["role"] == "base"]["macs"])) == 1
    base = trained[trained["role"] == "base"]["macs"].iloc[0]
    proxies = trained[(trained["role"] == "proxy") & (trained["purpose"] == "study")]["macs"]
    assert (proxies < 0.3 * base).all()


@pytest.mark.slow
def test_the_test_split_is_read_by_the_final_training_alone(tmp_path, monkeypatch):
    read = []
    genuine = trial.load_dataset

    class Watched(Dataset):
        def __getattribute__(self, name):
            if name == "test":
                read.append(step)
            return super().__getattribute__(name)

    def watched(*arguments, **options):
        dataset = genuine(*arguments, **options)
        fields = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)}
        made = Watched(**fields)
        read.clear()
        return made

    monkeypatch.setattr(trial, "load_dataset", watched)
    step = "loading"
    with Run(EXPERIMENT, out=tmp_path) as run:
        for step in ("base", "proxy"):
            run.search(step)
        step = "verify"
        run.verify()
        step = "ranking"
        run.ranking()
        step = "final"
        run.final()
    assert set(read) == {"final"}


def test_every_trial_starts_from_fresh_weights(tmp_path, monkeypatch):
    starts = []
    genuine = trial.train

    def noting(network, *arguments, **options):
        starts.append(torch.cat([p.detach().flatten() for p in network.parameters()])[:50].clone())
        return genuine(network, *arguments, **options)

    monkeypatch.setattr(trial, "train", noting)
    with Run(EXPERIMENT, out=tmp_path) as run:
        run.search("base")
        fresh = [run.bench.base(seed) for seed in range(2)]
    assert len(starts) == TINY.trials
    assert len({tuple(start.tolist()) for start in starts}) == TINY.trials
    weights = torch.cat([p.detach().flatten() for p in fresh[0].parameters()])[:50]
    assert all(start.std() == pytest.approx(weights.std().item(), rel=0.5) for start in starts)


def test_a_finished_experiment_is_not_run_again(finished, monkeypatch):
    out, rows, _ = finished
    # anything that trains would fail
    monkeypatch.setattr("proxyhpo.experiment.protocol.Workbench", None)
    again = run_experiment(EXPERIMENT, out=out)
    pd.testing.assert_frame_equal(again, rows)


def test_the_samplers_share_the_ranking_study(finished):
    out, rows, _ = finished
    other = dataclasses.replace(EXPERIMENT, sampler="random")
    again = run_experiment(other, out=out)
    columns = ["config_id", "proxy", "seed", "recorded"]
    before, after = (r[r["purpose"] == "ranking"][columns] for r in (rows, again))
    assert before.to_numpy().tolist() == after.to_numpy().tolist()


@pytest.mark.slow
def test_workers_share_the_studies_and_seconds_are_summed_and_elapsed(tmp_path):
    rows = run_experiment(changed(name="shared", ranking=0, trials=8), out=tmp_path, workers=2)
    study = rows[rows["purpose"] == "study"]
    assert study.groupby("role")["trial"].agg(sorted).tolist() == [list(range(8))] * 2
    assert set(study["workers"]) == {2}
    assert (study.groupby("role")["config_id"].nunique() == 8).all()
    # waiting for the processes to start is part of it, and is nobody's training time
    assert study["elapsed_seconds"].sum() > 0
    assert (study["wall_seconds"] > 0).all()
    assert not (study["elapsed_seconds"] == study["wall_seconds"]).any()


@pytest.mark.slow
def test_machines_that_share_a_storage_share_the_study_and_each_records_all_of_it(tmp_path):
    storage = f"sqlite:///{tmp_path}/studies.db"
    script = (
        "import sys; from test_protocol import EXPERIMENT, Run\n"
        f"with Run(EXPERIMENT, out=sys.argv[1], storage={storage!r}) as run:\n"
        "    run.search('base')"
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}"}
    outs = [tmp_path / name for name in ("one", "other")]
    machines = [
        subprocess.Popen([sys.executable, "-c", script, str(out)], env=environment) for out in outs
    ]
    assert [machine.wait(200) for machine in machines] == [0, 0]
    tables = [Run(EXPERIMENT, out=out, storage=storage).select(purpose="study") for out in outs]
    columns = ["trial", "config_id", "state", "val_accuracy"]
    assert all(sorted(table["trial"]) == list(range(TINY.trials)) for table in tables)
    one, other = (table[columns].sort_values("trial", ignore_index=True) for table in tables)
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.slow
def test_a_trial_that_ends_its_workers_is_recorded_as_failed_and_the_others_go_on(tmp_path):
    # trials long enough for the killer to meet each of them
    deadly = changed(name="deadly", ranking=0, trials=4, verify=0, epochs=20)
    with Run(deadly, out=tmp_path, workers=2) as run:
        killer = threading.Thread(target=kill_workers_of_trial, args=(run.folder, 1), daemon=True)
        killer.start()
        rows = run.search("base")
    assert rows.set_index("trial")["state"].to_dict()[1] == "failed"
    assert (rows[rows["trial"] != 1]["state"] != "failed").all()
    assert sorted(rows["trial"]) == [0, 1, 2, 3]


def kill_workers_of_trial(folder, number):
    """Kill whatever trains trial ``number`` of the study on N_B, as an operating system does."""
    while True:
        for journal in folder.glob("base.journal"):
            (name,) = optuna.get_all_study_names(open_storage(journal)) or [None]
            trials = optuna.load_study(storage=open_storage(journal), study_name=name).trials
            for one in trials[number : number + 1]:
                owner = one.user_attrs.get("owner")
                if owner and one.state == optuna.trial.TrialState.RUNNING:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(owner["pid"], signal.SIGKILL)
        time.sleep(0.01)


def test_the_pictures_are_those_that_the_profile_says():
    experiment = changed(classes=3, subset=20, val=0.25, resolution=12)
    data = trial.Workbench.of(experiment, lambda row: None).dataset
    assert (len(data.classes), len(data.train), len(data.val), data.side) == (3, 45, 15, 12)


@pytest.mark.parametrize(
    ("processes", "asked", "threads", "policy"),
    [
        (2, {}, "4", None),
        (3, {}, "2", None),
        (9, {}, "1", "passive"),
        (2, {"OMP_NUM_THREADS": "3"}, "3", None),
        (4, {"OMP_NUM_THREADS": "3"}, "3", "passive"),
        (9, {"OMP_WAIT_POLICY": "active"}, "1", "active"),
    ],
)
def test_waiting_threads_sleep_where_there_are_more_of_them_than_cores(
    processes, asked, threads, policy, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(os, "environ", asked)
    expected = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": policy}
    assert thread_environment(processes) == {k: v for k, v in expected.items() if v}


@pytest.mark.parametrize("workers", [0, -1, 1.5, 10_000])
def test_a_senseless_number_of_workers_is_refused(tmp_path, workers):
    with pytest.raises(InputError, match=r"workers .* a whole number from 1 to"):
        Run(EXPERIMENT, out=tmp_path, workers=workers)


def test_a_schedulers_workers_may_be_more_than_this_machine_has_room_for(tmp_path):
    where = {"scheduler": "tcp://127.0.0.1:1", "storage": "sqlite://", "out": tmp_path}
    Run(EXPERIMENT, workers=10_000, **where)
    with pytest.raises(InputError, match=r"workers 0: a whole number, at least 1"):
        Run(EXPERIMENT, workers=0, **where)


def test_a_stand_in_follows_the_plan_that_another_machine_kept():
    bench = trial.Workbench.of(EXPERIMENT, lambda row: None)
    own = bench.stand_in("snip", lambda row: None)
    other = trial.Workbench.of(dataclasses.replace(EXPERIMENT, seed=1), lambda row: None)
    kept = other.stand_in("snip", lambda row: None).plan
    assert kept != own.plan
    assert bench.stand_in("snip", lambda row: None, kept).plan == kept
    assert bench.stand_in("snip", lambda row: None).plan == kept


@pytest.mark.parametrize("by", ["an argument", "the environment"])
def test_a_storage_that_cant_be_reached_is_named_before_any_work(tmp_path, by, monkeypatch):
    url = "postgresql+psycopg://u@127.0.0.1:1/x"
    monkeypatch.setenv("PROXYHPO_STORAGE", url if by == "the environment" else "")
    run = Run(EXPERIMENT, out=tmp_path, storage=url if by == "an argument" else None)
    with pytest.raises(InputError, match=r"storage .* can.t be opened"):
        run.open()


def test_other_settings_are_named(tmp_path):
    with Run(EXPERIMENT, out=tmp_path):
        pass
    with pytest.raises(InputError, match="trials was 6, now 7"):
        Run(changed(trials=7), out=tmp_path).open()


def test_a_finished_experiment_of_a_changed_profile_isnt_shown_for_another(tmp_path):
    two, three = (changed(trials=n, verify=0, ranking=0) for n in (2, 3))
    rows = run_experiment(two, out=tmp_path)
    pd.testing.assert_frame_equal(run_experiment(two, out=tmp_path), rows)
    with pytest.raises(InputError, match=r"trials was 2, now 3; remove .* and .*seed0\.csv"):
        run_experiment(three, out=tmp_path)


@pytest.mark.parametrize(
    ("experiment", "named"),
    [
        (dataclasses.replace(EXPERIMENT, dataset="digit"), "digits"),
        (dataclasses.replace(EXPERIMENT, network="resnet57"), "resnet56"),
        (dataclasses.replace(EXPERIMENT, sampler="tpee"), "tpe"),
        (changed(space="papers"), "paper"),
        (changed(trial_pruner="asha"), "hyperband"),
        (changed(proxy="snap"), "snip"),
        (changed(ranked=("snip+subsets",)), "subset"),
    ],
)
def test_unknown_names_are_answered_with_the_choices(experiment, named):
    with pytest.raises(InputError, match=named):
        check(experiment)


def test_a_corrupt_results_file_is_named_and_left_alone(tmp_path):
    path = tmp_path / "results" / "tiny" / f"{EXPERIMENT.name}.csv"
    path.parent.mkdir(parents=True)
    path.write_text("profile,dataset\nsmoke")
    with pytest.raises(InputError, match=EXPERIMENT.name):
        Run(EXPERIMENT, out=tmp_path).open()
    assert path.read_text() == "profile,dataset\nsmoke"


def test_ranked_leaves_out_stopped_trials_and_doubles():
    trials = pd.DataFrame(
        {
            "state": ["complete", "stopped", "complete", "complete", "diverged"],
            "val_accuracy": [0.5, 0.9, 0.7, 0.7, float("nan")],
            "config_id": ["a", "b", "c", "c", "d"],
            "param_lr": [0.1, 0.2, 0.3, 0.3, 0.4],
        }
    )
    assert ranked(trials) == [{"lr": 0.3}, {"lr": 0.1}]
