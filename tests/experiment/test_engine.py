"""The workers of a recording or a shared study, killed and lost in every way we know."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import psutil
import pytest
from chores import deadly, failing, square, surroundings
from conftest import free_port
from optuna.trial import TrialState

from proxyhpo.config import InputError
from proxyhpo.experiment import engine as engines
from proxyhpo.experiment.engine import Engine, Killed

HERE = Path(__file__).resolve()


def results(engine, count):
    """Wait for so many tasks; return what came of them, by first argument."""
    found = {}
    deadline = time.monotonic() + 400
    while len(found) < count and time.monotonic() < deadline:
        found |= {arguments[0]: result for arguments, result in engine.wait() if arguments}
    assert len(found) == count
    return found


def wait_for_a_worker(engine):
    deadline = time.monotonic() + 120
    while not engine.free:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def engine():
    with Engine(2) as engine:
        yield engine


@pytest.mark.slow
def test_workers_have_one_thread_and_glibcs_own_rule_for_memory_and_dont_hear_interrupts(engine):
    engine.submit(surroundings)
    while not (ended := engine.wait()):
        pass
    [(_, (variables, worker, blocked))] = ended
    assert variables["OMP_NUM_THREADS"] == "1"
    assert "MALLOC_TRIM_THRESHOLD_" not in variables
    assert worker != os.getpid()
    assert signal.SIGINT in blocked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.slow
def test_nothing_listens_beyond_the_loopback(engine):
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.slow
def test_a_task_that_kills_its_workers_is_given_up_and_the_others_go_on(engine):
    engine.submit(deadly, 0)
    for number in (1, 2, 3):
        engine.submit(square, number, 2.0)
    found = results(engine, 4)
    assert isinstance(found.pop(0), Killed)
    assert found == {1: 1, 2: 4, 3: 9}


@pytest.mark.slow
def test_what_a_task_raises_is_raised(engine):
    engine.submit(failing, 7)
    with pytest.raises(ValueError, match="no 7"):
        results(engine, 1)


@contextmanager
def dask(program, *arguments, cwd):
    """Run ``dask scheduler`` or ``dask worker``, as somebody would by hand."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", program, *map(str, arguments)],
        cwd=cwd,
        env=os.environ
        | {"PYTHONPATH": f"{HERE.parents[2]}{os.pathsep}{HERE.parent}", "OMP_NUM_THREADS": "1"}
        | {"MALLOC_TRIM_THRESHOLD_": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:  # the test hasn't ended it itself
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
        process.wait()


@pytest.fixture
def address():
    return f"tcp://127.0.0.1:{free_port()}"


@contextmanager
def scheduler(address, cwd):
    port = int(address.rpartition(":")[2])
    where = ("--host", "127.0.0.1", "--port", port, "--dashboard-address", ":0")
    with dask("scheduler", *where, cwd=cwd) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield process


def worker(address, cwd, threads=1):
    return dask("worker", address, "--nthreads", threads, cwd=cwd)


@pytest.mark.slow
def test_a_restarted_scheduler_gets_the_tasks_again(address, tmp_path):
    with (
        scheduler(address, tmp_path) as first,
        worker(address, tmp_path),
        Engine(1, address) as engine,
    ):
        wait_for_a_worker(engine)
        engine.submit(square, 3, 20.0)
        time.sleep(1)
        first.kill()
        first.wait()
        with scheduler(address, tmp_path), worker(address, tmp_path):
            assert results(engine, 1) == {3: 9}


@pytest.mark.slow
def test_a_scheduler_that_stays_away_is_named(address, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "PATIENCE", 3.0)
    with scheduler(address, tmp_path) as only, Engine(1, address) as engine:
        engine.submit(square, 3)
        only.kill()
        only.wait()
        with pytest.raises(ConnectionError, match=f"{address} is gone; the same command"):
            results(engine, 1)


def test_where_no_scheduler_answers_the_address_is_named(address, monkeypatch):
    monkeypatch.setattr(engines, "PATIENCE", 0.5)
    with (
        pytest.raises(InputError, match=f"--scheduler {address}: no scheduler"),
        Engine(1, address),
    ):
        pass


@pytest.mark.slow
def test_a_worker_with_several_threads_is_refused(address, tmp_path):
    with (
        scheduler(address, tmp_path),
        worker(address, tmp_path, threads=2),
        Engine(1, address) as engine,
        pytest.raises(InputError, match="2 threads: start it with dask worker --nthreads 1"),
    ):
        wait_for_a_worker(engine)


def test_what_ended_beside_a_task_that_raised_is_returned_first():
    engine = Engine()
    engine._client = Mock(status="running")
    failed, ended = (Mock(**{"cancelled.return_value": False}) for _ in range(2))
    failed.result.side_effect = failed.exception.return_value = ValueError("no 7")
    ended.exception.return_value, ended.result.return_value = None, 9
    engine._tasks = {ended: (square, (3,), 0.0), failed: (failing, (7,), 0.0)}
    assert engine.wait() == [((3,), 9)]
    assert engine.busy
    with pytest.raises(ValueError, match="no 7"):
        engine.wait()
    assert not engine.busy


def test_a_worker_that_dies_takes_its_own_trial_along_and_no_other_of_that_pid():
    owners = [{"host": f"pod-{name}", "pid": 17} for name in "abc"]
    trials = [
        SimpleNamespace(number=n, state=TrialState.RUNNING, params={}, user_attrs={"owner": owner})
        for n, owner in enumerate(owners)
    ]
    study, deaths = MagicMock(trials=trials), Counter()
    study.optuna.user_attrs = {"Worker-1": ["pod-a", 17]}
    for _ in range(2):
        killed = Killed("10.0.0.1", "Worker-1", 1.0)
        engines._take_over(killed, study, MagicMock(), "base", deaths)
    study.give_back.assert_called_once_with(trials[0])
    assert [call.args[0] for call in study.fail.call_args_list] == [trials[0]]


@pytest.mark.parametrize(("scheduler", "told"), [(None, "/here"), ("tcp://127.0.0.1:1", None)])
def test_workers_elsewhere_arent_told_where_pictures_lie_here(scheduler, told, monkeypatch):
    monkeypatch.setattr(engines, "Engine", made := MagicMock())
    how = {"workers": 1, "scheduler": scheduler, "data_dir": "/here", "after": print}
    engines.share(Mock(done=True), Mock(), Mock(), "base", "base", **how)
    (call,) = made().__enter__().submit.call_args_list
    assert call.args[5] == told


def test_interrupts_are_left_alone_where_they_cant_be_kept_away(monkeypatch):
    monkeypatch.delattr(signal, "pthread_sigmask")  # Windows
    with engines._deaf_to_interrupts():
        pass
