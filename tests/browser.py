"""Real Jupyter servers and a headless Chromium for tests of what a reader sees in explore.ipynb."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from conftest import PATIENCE, answer_of, free_port

ROOT = Path(__file__).resolve().parent.parent
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", ROOT / "tests" / "screenshots"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
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
# what JupyterLab would otherwise ask at its first start
QUIET = '{"fetchNews": "false", "checkForUpdates": false}'
# of no consequence: what is fetched from elsewhere, maps that only a debugger asks for, and what
# Notebook 7.6 says of its own settings on any page, an empty notebook's too
NOISE = re.compile(r"net::ERR_FAILED|\.map\b|favicon|\(reading 'schema'\)$")


def missing():
    """Say what these tests can't do without and isn't there; an empty text if all is."""
    needed = ("playwright", "jupyterlab", "notebook", "voila")
    lacking = [name for name in needed if not find_spec(name)]
    lacking += [] if CHROMIUM else ["chromium (Debian: apt-get install chromium)"]
    return ", ".join(lacking)


@contextmanager
def serving(module, folder, *arguments, ready):
    """Start a server in ``folder`` with a home of its own; yield its address."""
    port, home, log = free_port(), folder / "home", folder / f"{module}.log"
    notification = home / "settings" / "@jupyterlab" / "apputils-extension"
    notification.mkdir(parents=True, exist_ok=True)
    (notification / "notification.jupyterlab-settings").write_text(QUIET)
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
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", module, "--no-browser", f"--port={port}", *arguments],
            cwd=folder,
            env=os.environ | {key: str(value) for key, value in own.items()},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        answer_of(server, address + ready, partial(log.read_text, errors="replace"))
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
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def told(message):
        if message.type == "error":
            errors.append(f"{message.text} {message.location.get('url', '')}")

    page.on("console", told)
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
        flags = ["--disable-gpu", "--disable-quic"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
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
        assert time.monotonic() - began < PATIENCE, page.locator(STATUS).inner_text()
        page.wait_for_timeout(20)
    return time.monotonic() - began


def first_sign(page):
    """Run a small study; return the seconds until its process says something."""
    began = time.monotonic()
    page.locator("button.jupyter-button", has_text="Run").click()
    page.locator(STUDY, has_text=re.compile("loading PyTorch|done")).wait_for()
    return time.monotonic() - began
