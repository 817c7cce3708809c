"""What tests of several modules need."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
import venv
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

PATIENCE = 120  # seconds: a busy machine takes a minute for what takes an idle one seconds
# A loaded machine is no reason to fail.
settings.register_profile("proxyhpo", deadline=None)
settings.load_profile("proxyhpo")

# Before torch is imported: tests share a small machine with the kernels that some of them start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests as well")


def pytest_collection_modifyitems(config, items):
    """Leave out slow tests unless they are asked for, by --slow or by name."""
    if config.getoption("--slow") or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answer_of(server, url, told=str):
    """What the process ``server`` answers at ``url``, once it is up; ``told()`` says why not."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read()
        except OSError:
            assert server.poll() is None, told()
            assert time.monotonic() < deadline, told()
            time.sleep(0.1)


def bare_environment(folder):
    """Make an environment with nothing installed; return its Python and its site-packages."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    return folder / "bin" / "python", site


@pytest.fixture(scope="session")
def curves(tmp_path_factory):
    """A folder of two made tables, their replays beside it; only to be read."""
    from made_tables import made_evidence  # loads what few tests need

    return made_evidence(tmp_path_factory.mktemp("results")).folder


@pytest.fixture(scope="session")
def postgresql():
    """URL of an empty database on a PostgreSQL server of our own."""
    with postgresql_server() as url:
        yield url


@contextmanager
def postgresql_server():
    """Run a PostgreSQL server on loopback while the block runs; give its URL."""
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(servers[-1]) if servers else shutil.which("initdb")
    if not found:
        pytest.skip("PostgreSQL isn't installed (Debian: apt-get install postgresql)")
    # the server refuses to run as root
    options = {}
    if os.getuid() == 0:
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL won't run as root, and there is no user postgres")
        options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="proxyhpo-postgresql-"))
    if options:
        os.chown(folder, account.pw_uid, account.pw_gid)
    port = free_port()

    def call(program, *arguments):
        command = [str(Path(found).with_name(program)), "-D", str(folder / "data"), *arguments]
        subprocess.run(
            command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=120, **options
        )

    try:
        call("initdb", "-A", "trust", "-U", "tester", "--no-sync")
        settings = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
        call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", settings, "start")
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            call("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
