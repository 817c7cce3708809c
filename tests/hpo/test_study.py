"""Studies in their storages: taken up after an interruption, and shared by workers."""

import contextlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import optuna
import psutil
import pytest
from conftest import free_port
from hypothesis import given
from hypothesis import strategies as st
from made_trials import SETTINGS, accuracy, attempt, rows, run, settings
from optuna.trial import TrialState, create_trial

from proxyhpo.config import InputError
from proxyhpo.hpo.search import SAMPLERS, suggest
from proxyhpo.hpo.storage import (
    hide_password,
    local_lock,
    open_storage,
    open_trial,
    set_params,
    set_state,
    shown_address,
)
from proxyhpo.hpo.study import Study, work

TESTS = Path(__file__).parents[1]
PATHS = [str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(PATHS)}
WORKER = """
import time
from made_trials import attempt, settings
from proxyhpo.hpo.study import Study, work

def slowly(claim):
    print(claim.began, flush=True)
    time.sleep({pause})
    return attempt(claim, 3)

work(Study(settings(trials={trials}, epochs=3), {where!r}, "shared"), slowly)
"""


def worker(where, trials, pause):
    """A process that trains trials of the study "shared" and prints when it claimed them."""
    script = WORKER.format(where=where, trials=trials, pause=pause)
    return subprocess.Popen(
        [sys.executable, "-c", script], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(params=["journal", "sqlite"])
def where(request, tmp_path):
    file = str(tmp_path / "study.journal")
    return file if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("interrupted_at", [1, 5, 8])
def test_a_study_taken_up_again_is_as_if_never_interrupted(tmp_path, sampler, interrupted_at):
    chosen = settings(sampler=sampler, trials=10)
    whole = run(Study.open(chosen, tmp_path / "whole.journal"))

    path = tmp_path / "torn.journal"
    study = run(Study.open(chosen, path), interrupted_at)
    if interrupted_at == 5:  # killed while this trial was being suggested ...
        trial = open_trial(study.optuna, 5)
        assert set_state(trial, TrialState.RUNNING)
        (name, distribution), *_ = chosen.asked.items()
        set_params(trial, suggest(chosen, study.trials, 5), {name: distribution})
    else:  # ... or trained
        claim = study.claim()
        claim.stop(1, accuracy(claim.configuration, 1))
    with path.open("ab") as journal:
        journal.write(b'{"op_code": 8, "tri')  # ... and while a line was being written
    resumed = Study.open(chosen, path, exclusive=True)
    assert len(resumed.finished) == interrupted_at
    run(resumed)

    for kept in ("params", "value", "intermediate_values"):
        assert [getattr(trial, kept) for trial in resumed.finished] == [
            getattr(trial, kept) for trial in whole.finished
        ]
    assert [row["trial"] for row in rows(resumed)] == list(range(10))


def test_an_interrupted_trial_is_run_again_with_its_parameters(where):
    study = run(Study.open(SETTINGS, where, "a"), 5)
    claim = study.claim()
    before = claim.configuration
    with pytest.raises(KeyboardInterrupt):
        interrupt(claim)
    assert study.trials[5].state == TrialState.WAITING
    with Study.open(SETTINGS, where, "a").claim() as again:
        assert (again.number, again.configuration) == (5, before)
        assert len(again.lost) == 1
        assert 0 <= again.lost[0] < 5
        again.tell(*attempt(again))
    assert rows(study)[5]["lost"] == again.lost


def interrupt(claim):
    """What Ctrl-C after the first epoch does."""
    with claim:
        claim.stop(1, 0.5)
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_workers_trial_waits_again_and_its_seconds_are_lost(where):
    study = Study.open(settings(trials=2, epochs=3), where, "shared")
    for kills, seconds in enumerate([1.5, 3.0], start=1):
        killed = worker(where, trials=2, pause=60)
        began = float(killed.stdout.readline())
        time.sleep(began + seconds - time.monotonic())
        study.mend()
        assert study.trials[0].state == TrialState.RUNNING  # its worker lives
        killed.send_signal(signal.SIGKILL)
        truth = time.monotonic() - began
        killed.wait()
        study.mend()
        assert study.trials[0].state == TrialState.WAITING
        lost = study.trials[0].user_attrs["lost"]
        assert len(lost) == kills
        assert lost[-1] == pytest.approx(truth, rel=0.05, abs=1)
    run(study)
    assert rows(study)[0]["lost"] == lost


def test_a_clock_that_is_set_takes_no_trial_from_its_worker(where, monkeypatch):
    study = Study.open(SETTINGS, where, "a")
    with study.claim():
        born, now = psutil.Process().create_time(), time.time()
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: born + 3600)
        monkeypatch.setattr(time, "time", lambda: now + 3600)
        study.mend()
        assert study.trials[0].state == TrialState.RUNNING


def test_a_worker_elsewhere_counts_as_gone_a_minute_after_its_last_new_sign(where, monkeypatch):
    study, clock = Study.open(SETTINGS, where, "a"), SimpleNamespace(now=0.0)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("proxyhpo.hpo.study.this_host", lambda: "elsewhere")
        claim = study.claim()
    with claim:
        claim._stop_beating()
        here = SimpleNamespace(monotonic=lambda: clock.now)
        monkeypatch.setattr("proxyhpo.hpo.study.time", here)
        for clock.now in (0, 59, 61, 100):  # seconds at which it is looked at
            if clock.now == 59:
                claim._sign(59.0)
            study.mend()
            assert study.trials[0].state == TrialState.RUNNING
        clock.now = 120
        study.mend()
        assert study.trials[0].state == TrialState.WAITING
        claim.tell(*attempt(claim))  # it was only slow: nothing is lost by that
    assert study.trials[0].state.is_finished()


def test_stop_ends_the_search_after_the_trial(tmp_path):
    study = Study.open(SETTINGS, tmp_path / "study.journal")
    work(study, attempt, lambda trial: trial.number == 2 and study.optuna.stop())
    assert len(study.finished) == 3
    study.optuna.optimize(lambda trial: study.optuna.stop() or 0.0, n_trials=9)  # Optuna's too
    assert len(study.finished) == 4


def share(where, *, workers, trials, pause=0.02):
    """Let worker processes run a study; return it."""
    study = Study.open(settings(trials=trials, epochs=3), where, "shared")
    processes = [worker(where, trials, pause) for _ in range(workers)]
    assert [process.communicate(timeout=120) and process.returncode for process in processes] == [
        0
    ] * workers
    assert len(study.optuna.get_trials()) == trials
    assert [row["trial"] for row in rows(study)] == list(range(trials))
    assert len({t.params["lr"] for t in study.finished}) == trials
    assert len({t.user_attrs["owner"]["pid"] for t in study.finished}) > 1
    return study


@pytest.mark.slow
def test_workers_keep_the_budget_exactly(where):
    share(where, workers=3, trials=20)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_four_workers_share_a_study_on_postgresql(postgresql, driver):
    pytest.importorskip(driver)
    url = postgresql if driver == "psycopg" else postgresql.replace("://", "+psycopg2://")
    share(url, workers=4, trials=24)
    assert Study.open(settings(trials=24, epochs=3), url, "shared").done
    with pytest.raises(InputError, match=r"seed was 1, now 2"):
        Study.open(settings(trials=24, epochs=3, seed=2), url, "shared")
    optuna.delete_study(study_name="shared", storage=url)


def test_other_settings_are_named_and_the_study_is_left_alone(where):
    Study.open(SETTINGS, where, "a")
    with pytest.raises(InputError, match=r"sampler was 'tpe', now 'gp'.*trials was 12, now 5"):
        Study.open(settings(sampler="gp", trials=5), where, "a")
    narrow = {"lr": SETTINGS.space["lr"]}
    with pytest.raises(InputError, match=r"space was .*momentum.*, now \{'lr'"):
        Study.open(settings(space=narrow), where, "a")
    assert len(Study.open(SETTINGS, where, "a").trials) == 12


@pytest.mark.parametrize("attributes", [{}, {"plan": "half"}])
def test_a_study_whose_maker_was_killed_is_made_whole(where, attributes):
    torn = optuna.create_study(
        storage=open_storage(where), study_name="a study", direction="maximize"
    )
    for name, value in attributes.items():
        torn.set_user_attr(name, value)
    study = Study.open(SETTINGS, where, plan=lambda: "whole", exclusive=True)
    assert study.plan == "whole"
    assert len(run(study, 2).finished) == 2
    assert Study.open(SETTINGS, where, plan=lambda: "another").plan == "whole"


def test_a_study_of_somebody_else_is_left_alone(where):
    theirs = optuna.create_study(storage=open_storage(where), study_name="a")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(InputError, match="isn't proxyhpo's"):
        Study.open(SETTINGS, where, "a")
    assert len(theirs.trials) == 2


@pytest.mark.slow
def test_machines_that_open_a_new_database_at_once_all_get_in(tmp_path):
    script = (
        "import sys; from proxyhpo.hpo.storage import open_storage; print(flush=True);"
        f"sys.stdin.read(); open_storage('sqlite:///{tmp_path}/new.db')"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": ENVIRONMENT}
    machines = [subprocess.Popen([sys.executable, "-c", script], **pipes) for _ in range(3)]
    for machine in machines:
        machine.stdout.readline()  # it has loaded what it needs
    for machine in machines:
        machine.stdin.close()
    assert [machine.wait(60) for machine in machines] == [0, 0, 0]


class Planted:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_no_trial_attribute_is_unpickled(where, tmp_path):
    study = Study.open(settings(sampler="cmaes"), where, "a")
    planted = pickle.dumps(Planted(tmp_path / "executed")).hex()
    for _ in range(2):
        with study.claim() as claim:
            storage = claim._trial.storage
            storage.set_trial_system_attr(claim._trial._trial_id, "cma:optimizer:0", planted)
            claim.tell(*attempt(claim))
    run(Study.open(settings(sampler="cmaes"), where, "a"))
    assert not (tmp_path / "executed").exists()
    theirs = optuna.load_study(
        study_name="a", storage=open_storage(where), sampler=optuna.samplers.CmaEsSampler()
    )
    theirs.ask(SETTINGS.asked)
    assert (tmp_path / "executed").exists()  # Optuna's own sampler falls for it


def until_it_answers(call):
    """Call until it raises nothing, for half a minute."""
    for _ in range(300):
        with contextlib.suppress(Exception):
            return call()
        time.sleep(0.1)
    raise AssertionError("no answer")


def test_no_snapshot_of_a_redis_journal_is_unpickled(tmp_path):
    redis = pytest.importorskip("redis")
    if not shutil.which("redis-server"):
        pytest.skip("Redis isn't installed (Debian: apt-get install redis-server)")
    port = str(free_port())
    server = subprocess.Popen(
        ["redis-server", "--port", port, "--save", ""], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    try:
        client, url = redis.Redis(port=int(port)), f"redis://127.0.0.1:{port}"
        until_it_answers(client.ping)
        client.set(":snapshot", pickle.dumps(Planted(tmp_path / "executed")))
        assert run(Study.open(settings(trials=3), url, "a")).done
        assert not (tmp_path / "executed").exists()
        optuna.storages.JournalStorage(optuna.storages.journal.JournalRedisBackend(url))
        assert (tmp_path / "executed").exists()  # Optuna's own falls for it
    finally:
        server.kill()
        server.wait()


def test_what_is_private_in_optuna_is_as_it_was(where):
    study = optuna.create_study(storage=open_storage(where), direction="maximize")
    study.add_trial(create_trial(state=TrialState.WAITING))
    changed = f"checked with Optuna 5.0.0; {optuna.__version__} differs"
    params = {"lr": 0.1, "weight_decay": 1e-3, "momentum": 0.9}
    assert [trial.number for trial in study.trials] == [0]
    assert set_state(open_trial(study, 0), TrialState.RUNNING), changed
    assert not set_state(open_trial(study, 0), TrialState.RUNNING), changed
    set_params(open_trial(study, 0), params, SETTINGS.asked)
    assert open_trial(study, 0).params == study.trials[0].params == params, changed
    assert set_state(open_trial(study, 0), TrialState.WAITING), changed
    assert study.trials[0].state == TrialState.WAITING, changed
    assert set_state(open_trial(study, 0), TrialState.RUNNING), changed
    study.tell(open_trial(study, 0), 1.0)
    assert not set_state(open_trial(study, 0), TrialState.RUNNING), changed


@pytest.mark.parametrize(
    ("storage", "named"),
    [
        ("nonsense://x", "nonsense"),
        ("postgresql+psycopg://nobody:secret@127.0.0.1:1/none", "can't be opened"),
        ("postgresql://nobody:sec@ret@127.0.0.1:1/none", "%40"),
        ("postgresql://nobody:secret", "can't be read"),
        ("postgresql:nobody:secret@127.0.0.1/none", "can't be read"),
        ("postgresql:/nobody:secret@127.0.0.1/none", "can't be read"),
        ("mysql+pymysqlnot://nobody@127.0.0.1/none", "pymysqlnot"),
        ("oracle+oracledb://nobody@127.0.0.1/none", "pip install oracledb"),
        ("mysql://nobody@127.0.0.1/none", "pip install mysqlclient"),
        ("redis://127.0.0.1:1", "can't be opened" if find_spec("redis") else "pip install redis"),
        ("sqlite:////proc/nowhere/x.db", "can't be opened"),
        ("/proc/nowhere/x.journal", "can't write"),
    ],
)
def test_a_storage_that_cant_be_opened_is_named(storage, named):
    with pytest.raises(InputError) as told:
        open_storage(storage)
    assert named in str(told.value)
    assert "secret" not in str(told.value)
    assert "ret@" not in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.pt", b"PK\x03\x04\x80\x00a line\nand \xff more without an end"),
        ("notes.txt", b"one line without an end"),
        ("settings.json", b'{"a": 1,\n "b": 2}'),
        ("rows.jsonl", b'{"a": 1}\n{"b"'),
        ("run.py", b"import proxyhpo\n\nproxyhpo.tune()"),
    ],
)
def test_a_file_that_isnt_a_journal_is_refused_and_left_alone(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: not a journal of studies"):
        open_storage(file)
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("torn", [b"", b'{"op_code":0,"worker'])
def test_a_journal_whose_first_line_is_torn_begins_anew(tmp_path, torn):
    (tmp_path / "study.journal").write_bytes(torn)
    assert run(Study.open(settings(trials=2), tmp_path / "study.journal")).done


def test_what_cant_hold_a_storage_is_named(tmp_path):
    with pytest.raises(InputError, match=f"storage {tmp_path}: a folder; give a file"):
        open_storage(tmp_path)
    with pytest.raises(InputError, match="storage 3: a file, or a URL"):
        open_storage(3)


@pytest.mark.parametrize(
    ("scheme", "opened"),
    [("postgresql", "postgresql+psycopg"), ("postgresql+psycopg2", "postgresql+psycopg2")],
)
def test_a_plain_postgresql_is_opened_by_psycopg_3(monkeypatch, scheme, opened):
    monkeypatch.setattr("proxyhpo.hpo.storage.RDBStorage", lambda url: url)
    assert open_storage(f"{scheme}://u:p@127.0.0.1:1/x") == f"{opened}://u:p@127.0.0.1:1/x"


@pytest.mark.parametrize(
    ("scheme", "missing", "package"),
    [
        ("postgresql", "psycopg", "'psycopg[binary]'"),
        ("postgresql+psycopg2", "psycopg2", "psycopg2-binary"),
    ],
)
def test_a_missing_driver_is_named(monkeypatch, scheme, missing, package):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=re.escape(f"pip install {package}")):
        open_storage(f"{scheme}://u@127.0.0.1:1/x")


NAMES = st.text("abcdefghijklmnop", min_size=1, max_size=8)


@given(
    password=st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    user=NAMES,
    host=NAMES,
    key=st.sampled_from(["password", "sslpassword", "passwd", "api_token", "PASS%57ORD"]),
    query=st.booleans(),
    quoted=st.booleans(),
)
def test_no_password_is_shown(password, user, host, key, query, quoted):
    secret = f"S3C{quote(password, safe='') if quoted else password}R3T"
    url = f"postgresql://{user}@{host}/db?x=1&{key}={quote(secret)}"
    if not query:
        url = f"postgresql+psycopg2://{user}:{secret}@{host}:5432/db?x=1"
    shown = hide_password(url)
    assert "S3C" not in shown
    assert "R3T" not in shown
    if quoted:
        assert shown.startswith(url.partition(":")[0] + f"://{user}")
        assert f"@{host}" in shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@host/db?pw=SECRET",
        "postgresql://me@host/db?options=-c%20SECRET",
        "postgresql://host/db?x=1?password=SECRET",
        "postgresql://host/db#password=SECRET",
        "postgresql://host/db;password=SECRET",
        "postgresql:///me:SECRET@host/db",
        "postgresql:/me:SECRET@host/db",
        "postgresql:me:SECRET@host/db",
        "me:SECRET@host/db",
        "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3DSECRET",
        "mssql+pyodbc:///?odbc_connect=UID=me;PWD=SECRET",
    ],
)
def test_no_password_is_shown_wherever_it_stands(url):
    assert "SECRET" not in hide_password(url)


@pytest.mark.parametrize("plain", ["runs/a@b:c@d/study.journal", "sqlite:////home/a/x.db"])
def test_what_has_no_password_is_shown_as_it_is(plain):
    assert hide_password(plain) == plain


def test_an_open_storage_is_known_by_where_it_lies(where, tmp_path):
    opened = open_storage(where)
    assert shown_address(opened) == where
    assert local_lock(opened, "a").lock_file == local_lock(where, "a").lock_file
    assert shown_address(optuna.storages.InMemoryStorage()) == "the InMemoryStorage"


def test_a_study_that_isnt_there_is_named(where):
    with pytest.raises(InputError, match="no study 'a'"):
        Study(SETTINGS, where, "a")
