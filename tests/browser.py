"""Real Jupyter servers and a headless Chromium for tests of what a reader sees in explore.ipynb."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from made_tables import made_rows, made_steps

from proxyhpo.analysis.evidence import write_replays
from proxyhpo.analysis.quality import StudyWay, race, study_way
from proxyhpo.hpo.curves import load_table
from proxyhpo.hpo.tables import TABLES
from proxyhpo.rows import write_rows

ROOT = Path(__file__).resolve().parent.parent
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", ROOT / "tests" / "screenshots"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
STATUS, CALCULATOR, STUDY = (
    f"[data-testid={name}-status]" for name in ("explorer", "calculator", "study")
)
READY = """() => {
    const app = window.jupyterapp;
    const session = app?.shell?.currentWidget?.sessionContext;
    return app?.commands.isEnabled("notebook:run-all-cells")
        && session?.isReady && session.session?.kernel?.status === "idle";
}"""
RUN = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
BYTES = """async image => {
    const bytes = await (await fetch(image.src)).arrayBuffer();
    const sum = await crypto.subtle.digest("SHA-256", bytes);
    return [bytes.byteLength, ...new Uint8Array(sum)].join(" ");
}"""
PATIENCE = 120_000  # ms: a busy machine takes a minute for what takes an idle one seconds
SETTINGS = {  # what JupyterLab would otherwise ask at its first start
    "jupyterlab": {
        "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    },
}
# of no consequence: what is fetched from elsewhere, maps that only a debugger asks for, and what
# Notebook 7.6 says of its own settings on any page, an empty notebook's too
NOISE = re.compile(r"net::ERR_FAILED|\.map\b|favicon|\(reading 'schema'\)$")


def made_folder(folder, names=("cifar10-resnet20", "cifar10-resnet56")):
    """Make whole tables in ``folder``, and recorded replays of a few ways beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "replays").mkdir(exist_ok=True)
    ways = {study_way("base", 0): StudyWay("tpe")}
    ways |= {study_way(one, 3): StudyWay("tpe", one, 3) for one in ("snip@0.25", "uniform@0.25")}
    for name in names:
        write_rows(folder / f"{name}.csv", made_rows(name))
        made_steps(TABLES[name].entrants).to_csv(folder / f"{name}-steps.csv", index=False)
        lines = race(load_table(*name.split("-"), folder), ways, draws=3, seeds=1)
        write_replays(folder.parent / "replays" / f"{name}-race.csv", pd.DataFrame(lines))
    return folder


def missing():
    """Say what these tests can't do without and isn't there; an empty text if all is."""
    lacking = [
        name for name in ("playwright", "jupyterlab", "notebook", "voila") if not find_spec(name)
    ]
    lacking += [] if CHROMIUM else ["chromium (Debian: apt-get install chromium)"]
    return ", ".join(lacking)


@contextmanager
def serving(module, folder, *arguments, ready):
    """Start a server in ``folder`` with a home of its own; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = folder / "home"
    for name, text in SETTINGS.get(module, {}).items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    own = {
        "HOME": home,
        "IPYTHONDIR": home / "ipython",
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
        "PYTHONPATH": ROOT,
    }
    with (folder / f"{module}.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", module, "--no-browser", f"--port={port}", *arguments],
            cwd=folder,
            env=os.environ | {key: str(value) for key, value in own.items()},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE / 1000
        while True:
            try:
                with urllib.request.urlopen(address + ready, timeout=5):
                    break
            except OSError:
                said = (folder / f"{module}.log").read_text(errors="replace")
                assert server.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@contextmanager
def looking(browser, address):
    """Yield a page of 1280 x 800 that reaches nothing but ``address``, and the errors it met."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            errors.append(f"{message.text} {message.location.get('url', '')}")
            if message.type == "error"
            else None
        ),
    )
    local = re.compile(rf"{re.escape(address)}|data:|blob:|ws://127\.0\.0\.1")
    page.route(
        re.compile(".*"),
        lambda route: route.continue_() if local.match(route.request.url) else route.abort(),
    )
    try:
        yield page, errors
    except BaseException:
        shoot(page, "failed")
        raise
    finally:
        context.close()


def shoot(page, name):
    """Save what the page shows as a picture."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


@contextmanager
def chromium():
    """Yield a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@contextmanager
def in_voila(browser, folder):
    """Yield explore.ipynb in Voila, ready, and its errors."""
    arguments = [
        *("explore.ipynb", "--Voila.ip=127.0.0.1"),
        # Notebook 7's own extension of JupyterLab doesn't load in Voila, and says so on every page
        "--VoilaConfiguration.extension_denylist=['@jupyter-notebook/lab-extension']",
    ]
    with (
        serving("voila", folder, *arguments, ready="/voila/static/favicon.ico") as address,
        looking(browser, address) as (page, errors),
    ):
        page.goto(address)
        page.wait_for_selector(STATUS)
        yield page, errors


@contextmanager
def in_lab(browser, folder):
    """Yield explore.ipynb in JupyterLab, all its cells run, and its errors."""
    arguments = [
        *("--allow-root", "--ip=127.0.0.1", "--expose-app-in-browser"),
        *("--IdentityProvider.token=", "--ServerApp.password="),
        f"--ServerApp.root_dir={folder}",
    ]
    with (
        serving("jupyterlab", folder, *arguments, ready="/api/status") as address,
        looking(browser, address) as (page, errors),
    ):
        page.goto(f"{address}/lab/workspaces/t/tree/explore.ipynb?reset")
        page.wait_for_function(READY)
        page.evaluate(RUN)
        page.wait_for_selector(STATUS)
        page.wait_for_function(READY)  # the cells after it have run, too
        yield page, errors


def redraws(page, control, value):
    """Choose a value; return the seconds until the picture is another one."""
    image = page.locator("img.widget-image").first
    before, began = image.evaluate(BYTES), time.monotonic()
    page.get_by_label(control, exact=True).first.select_option(value)
    while image.evaluate(BYTES) == before:
        assert time.monotonic() - began < PATIENCE / 1000, page.locator(STATUS).inner_text()
        page.wait_for_timeout(20)
    return time.monotonic() - began


def first_sign(page):
    """Run a small study; return the seconds until its process says something."""
    began = time.monotonic()
    page.locator("button.jupyter-button", has_text="Run").click()
    page.locator(STUDY, has_text=re.compile("loading PyTorch|done")).wait_for()
    return time.monotonic() - began
