"""Real Jupyter servers and a headless Chromium for tests of what a reader sees."""

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
PATIENCE = 120_000  # ms: a busy machine takes a minute for what takes an idle one seconds
SETTINGS = {  # what JupyterLab would otherwise ask at its first start
    "jupyterlab": {
        "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    },
}
# of no consequence: what is fetched from elsewhere, maps that only a debugger asks for, and what
# Notebook 7.6 says of its own settings on any page, an empty notebook's too
NOISE = re.compile(r"net::ERR_FAILED|\.map\b|favicon|\(reading 'schema'\)$")


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
def looking(browser, address, *, height):
    """Yield a page that reaches nothing but ``address``, and the errors that it met."""
    context = browser.new_context(viewport={"width": 1280, "height": height}, accept_downloads=True)
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
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
