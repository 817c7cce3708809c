"""Studies in their storages: taken up after an interruption, and shared by workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from made_trials import SETTINGS, attempt, configurations, opened, run, settings
from optuna.trial import TrialState

from proxyhpo.config import InputError
from proxyhpo.hpo.search import SAMPLERS
from proxyhpo.hpo.storage import open_storage
from proxyhpo.hpo.study import Study

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
WORKER = """
import sys, time
from made_trials import attempt, settings
from proxyhpo.hpo.study import Study, work

def slowly(claim):
    time.sleep({pause})
    return attempt(claim, 3)

work(Study(settings(trials={trials}, epochs=3), {where!r}, "shared"), slowly)
"""


@pytest.fixture(params=["journal", "sqlite"])
def where(request, tmp_path):
    file = str(tmp_path / "study.journal")
    return file if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("interrupted_at", [1, 5, 8])
def test_a_study_taken_up_again_is_as_if_never_interrupted(tmp_path, sampler, interrupted_at):
    chosen = settings(sampler=sampler, trials=10)
    whole = run(opened(chosen, tmp_path / "whole.journal"))

    path = tmp_path / "torn.journal"
    claim = run(opened(chosen, path), interrupted_at).claim()
    claim.stop(1, 0.1)  # killed while this trial was training ...
    with path.open("ab") as journal:
        journal.write(b'{"op_code": 8, "tri')  # ... and while a line was being written
    resumed = opened(chosen, path, exclusive=True)
    assert len(resumed.finished) == interrupted_at
    run(resumed)

    assert configurations(resumed) == configurations(whole)
    assert [t.value for t in resumed.finished] == [t.value for t in whole.finished]
    assert [t.user_attrs["rows"][-1]["trial"] for t in resumed.finished] == list(range(10))


def test_an_interrupted_trial_is_run_again_with_its_parameters(where):
    study = run(opened(SETTINGS, where, "a"), 5)
    claim = study.claim()
    before = claim.configuration
    with pytest.raises(KeyboardInterrupt):
        interrupt(claim)
    assert study.trials[5].state == TrialState.WAITING
    with opened(SETTINGS, where, "a").claim() as again:
        assert (again.number, again.configuration) == (5, before)
        assert len(again.lost) == 1
        assert 0 <= again.lost[0] < 5
        again.tell(*attempt(again))
    assert study.finished[5].user_attrs["rows"][0]["lost"] == again.lost


def interrupt(claim):
    """What Ctrl-C after the first epoch does."""
    with claim:
        claim.stop(1, 0.5)
        raise KeyboardInterrupt


def test_a_trial_whose_worker_is_killed_waits_again_and_its_seconds_are_lost(where):
    study = opened(settings(trials=2, epochs=3), where, "shared")
    script = WORKER.format(pause=60, trials=2, where=where)
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}"}
    worker = subprocess.Popen([sys.executable, "-c", script], env=environment)
    while not (alive := study.trials[0].user_attrs.get("alive")):
        time.sleep(0.05)
    assert alive["after"] < 5
    study.mend()
    assert study.trials[0].state == TrialState.RUNNING  # its worker lives
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    study.mend()
    assert study.trials[0].state == TrialState.WAITING
    assert len(study.trials[0].user_attrs["lost"]) == 1
    run(study)
    assert study.finished[0].user_attrs["rows"][0]["lost"] == study.trials[0].user_attrs["lost"]


def test_a_worker_elsewhere_counts_as_gone_after_its_last_sign_of_life(where, monkeypatch):
    study = opened(SETTINGS, where, "a")
    monkeypatch.setattr(
        "proxyhpo.hpo.study._myself", lambda: {"host": "elsewhere", "pid": 1, "born": 0.0}
    )
    with study.claim() as claim:
        while not study.trials[0].user_attrs.get("alive"):
            time.sleep(0.05)
        study.mend()
        assert study.trials[0].state == TrialState.RUNNING
        monkeypatch.setattr("proxyhpo.hpo.study.GRACE", 0.0)
        study.mend()
        assert study.trials[0].state == TrialState.WAITING
        claim.tell(*attempt(claim))  # it was only slow: nothing is lost by that
    assert study.trials[0].state.is_finished()


def share(where, *, workers, trials, pause=0.02):
    """Let worker processes run a study; return it."""
    study = opened(settings(trials=trials, epochs=3), where, "shared")
    script = WORKER.format(pause=pause, trials=trials, where=where)
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}"}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(workers)
    ]
    assert [process.wait(120) for process in processes] == [0] * workers
    return study


def assert_exact(study, trials):
    assert len(study.optuna.get_trials()) == trials
    assert all(trial.state.is_finished() for trial in study.trials)
    assert [t.user_attrs["rows"][-1]["trial"] for t in study.finished] == list(range(trials))
    assert len({t.params["lr"] for t in study.finished}) == trials
    owners = {t.user_attrs["owner"]["pid"] for t in study.finished}
    assert len(owners) > 1


def test_workers_keep_the_budget_exactly(where):
    assert_exact(share(where, workers=3, trials=20), 20)


def test_four_workers_share_a_study_on_postgresql(postgresql):
    study = share(postgresql, workers=4, trials=24)
    assert_exact(study, 24)
    again = opened(settings(trials=24, epochs=3), postgresql, "shared")
    assert again.done
    with pytest.raises(InputError, match=r"seed was 1, now 2"):
        opened(settings(trials=24, epochs=3, seed=2), postgresql, "shared")


def test_other_settings_are_named_and_the_study_is_left_alone(where):
    opened(SETTINGS, where, "a")
    with pytest.raises(InputError, match=r"sampler was 'tpe', now 'gp'.*trials was 12, now 5"):
        opened(settings(sampler="gp", trials=5), where, "a")
    narrow = {"lr": SETTINGS.space["lr"]}
    with pytest.raises(InputError, match=r"space was .*momentum.*, now \{'lr'"):
        opened(settings(space=narrow), where, "a")
    assert len(opened(SETTINGS, where, "a").trials) == 12


@pytest.mark.parametrize("attributes", [{}, {"plan": "half"}])
def test_a_study_whose_maker_was_killed_is_made_whole(where, attributes):
    torn = optuna.create_study(
        storage=open_storage(where), study_name="a study", direction="maximize"
    )
    for name, value in attributes.items():
        torn.set_user_attr(name, value)
    study = opened(SETTINGS, where, plan=lambda: "whole", exclusive=True)
    assert study.plan == "whole"
    assert len(run(study, 2).finished) == 2
    assert opened(SETTINGS, where, plan=lambda: "another").plan == "whole"


def test_a_study_of_somebody_else_is_left_alone(where):
    theirs = optuna.create_study(storage=open_storage(where), study_name="a")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(InputError, match="isn't proxyhpo's"):
        opened(SETTINGS, where, "a")
    assert len(theirs.trials) == 2


def test_machines_that_open_a_new_database_at_once_all_get_in(tmp_path):
    script = (
        "import sys; from proxyhpo.storage import open_storage; sys.stdin.read();"
        f"open_storage('sqlite:///{tmp_path}/new.db')"
    )
    command = [sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    machines = [subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) for _ in range(3)]
    time.sleep(3)  # until all have loaded what they need
    for machine in machines:
        machine.stdin.close()
    assert [machine.wait(60) for machine in machines] == [0, 0, 0]


@pytest.mark.parametrize(
    ("storage", "named"),
    [
        ("nonsense://x", "nonsense"),
        ("postgresql+psycopg2://nobody:secret@127.0.0.1:1/none", "can't be opened"),
        ("mysql+pymysqlnot://nobody@127.0.0.1/none", "pymysqlnot"),
        ("oracle://nobody@127.0.0.1/none", "pip install oracledb"),
        ("sqlite:////proc/nowhere/x.db", "can't be opened"),
        ("/proc/nowhere/x.journal", "can't make the folder"),
    ],
)
def test_a_storage_that_cant_be_opened_is_named(storage, named):
    with pytest.raises(InputError) as told:
        open_storage(storage)
    assert named in str(told.value)
    assert "secret" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_study_that_isnt_there_is_named(where):
    with pytest.raises(InputError, match="no study 'a'"):
        Study(SETTINGS, where, "a")
