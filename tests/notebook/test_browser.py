"""The explorer as a reader sees it: JupyterLab, Notebook 7 and Voila in a headless Chromium."""

import csv
import io
import shutil
import time
from functools import partial

import browser
import made_rows
import pytest

from proxyhpo.notebook.grid import FOLDER
from proxyhpo.rows import result_path, write_rows

pytestmark = pytest.mark.skipif(
    bool(browser.missing()), reason=f"the browser tests need {browser.missing()}"
)

CONTROLS = ("pruning ratio", "stand-in", "sampler", "network", "data set", "profile")
STATUS = "[data-testid=explorer-status]"
STUDY = "[data-testid=study-status]"
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the notebook and rows in which every control has a choice."""
    folder = tmp_path_factory.mktemp("browser")
    shutil.copy(FOLDER / "explore.ipynb", folder)
    for profile, dataset, network, sampler in CELLS:
        names = {"profile": profile, "dataset": dataset, "network": network}
        rows = made_rows.experiment(rng=len(network + dataset), sampler=sampler, **names)
        write_rows(result_path(folder, profile, f"{dataset}-{network}-{sampler}"), rows)
    rows = made_rows.ranking(STAND_INS, n=8, **dict(zip(CELL, CELLS[0][:3], strict=True)))
    write_rows(result_path(folder, "laptop", "ranking"), rows)
    return folder


CELL = ("profile", "dataset", "network")
CELLS = (
    ("laptop", "cifar10", "resnet56", "tpe"),
    ("laptop", "cifar10", "resnet56", "gp"),
    ("laptop", "cifar10", "vgg16_bn", "tpe"),
    ("laptop", "cifar100", "resnet56", "tpe"),
    ("gpu", "cifar10", "resnet56", "tpe"),
)
STAND_INS = {
    name: made_rows.STAND_INS[name] for name in (("snip", 0.5), ("snip", 0.75), ("uniform", 0.5))
}


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser.CHROMIUM, args=browser.FLAGS)
        yield started
        started.close()


def changes(page, image, act, seconds=browser.PATIENCE / 1000):
    """Do something, wait until the picture is another one; return how long that took."""
    before, began = image.evaluate(BYTES), time.monotonic()
    act()
    while image.evaluate(BYTES) == before:
        assert time.monotonic() - began < seconds, page.locator(STATUS).inner_text()
        page.wait_for_timeout(20)
    return time.monotonic() - began


def explore(page, keyboard):
    """Change each control, found by its label, with or without keys; each changes the picture."""
    page.wait_for_selector(STATUS)
    image = page.locator("img.widget-image:visible").first
    took = []
    for name in CONTROLS:
        control = page.get_by_label(name).first
        other = control.locator("option:not(:checked)").first.inner_text()
        if keyboard:
            last = control.evaluate("one => one.selectedIndex + 1 === one.options.length")
            act = partial(control.press, "ArrowUp" if last else "ArrowDown")
        else:
            act = partial(control.select_option, other)
        took.append(changes(page, image, act))
        assert "drawn in" in page.locator(STATUS).inner_text()
        assert page.locator("[data-testid=error]").count() == 0
    return took


def download(page, tmp_path):
    with page.expect_download() as waiting:
        page.get_by_text("all columns (CSV)").click()
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    shown = page.locator("[aria-label='the rows that are shown'] tbody tr").count()
    assert len(list(csv.DictReader(io.StringIO(path.read_text())))) == shown > 10
    assert path.suffix == ".csv"


def study(page):
    """Run a small study until a trial is done, then stop it: of a network that takes its time."""
    page.get_by_label("network").nth(1).select_option("mobilenetv2_x0.35")
    page.locator("button.jupyter-button", has_text="Run").click()
    page.locator(STUDY, has_text="1 of 6 done").wait_for()
    page.locator("img.widget-image:visible").nth(2).wait_for()  # its figure and the channels
    page.locator("button.jupyter-button", has_text="Stop").click()
    page.locator(STUDY, has_text="stopped").wait_for(timeout=5_000)
    assert page.locator("[data-testid=error]").count() == 0


@pytest.mark.parametrize(
    ("server", "path"),
    [
        ("jupyterlab", "lab/workspaces/t/tree/explore.ipynb?reset"),
        ("notebook", "notebooks/explore.ipynb"),
    ],
)
def test_jupyter(server, path, folder, chromium, tmp_path):
    arguments = [
        *("--allow-root", "--ip=127.0.0.1", "--expose-app-in-browser"),
        *("--IdentityProvider.token=", "--ServerApp.password="),
        f"--ServerApp.root_dir={folder}",
    ]
    with (
        browser.serving(server, folder, *arguments, ready="/api/status") as address,
        browser.looking(chromium, address, height=3000) as (page, errors),
    ):
        page.goto(f"{address}/{path}")
        page.wait_for_function(READY)
        page.evaluate(RUN)
        page.wait_for_selector(STATUS)
        page.wait_for_function(READY)  # the cells after it have run, too
        took = explore(page, keyboard=False)  # arrows move between its cells
        download(page, tmp_path)
        page.locator("img.widget-image:visible").first.scroll_into_view_if_needed()
        study(page)
        browser.shoot(page, server)
    print(
        f"a change took {sorted(took)[len(took) // 2]:.2f} s in {server}, at most {max(took):.2f}"
    )
    assert [error for error in errors if not browser.NOISE.search(error)] == []


def test_voila(folder, chromium, tmp_path):
    arguments = [
        *("explore.ipynb", "--Voila.ip=127.0.0.1"),
        # Notebook 7's own extension of JupyterLab doesn't load in Voila, and says so on every page
        "--VoilaConfiguration.extension_denylist=['@jupyter-notebook/lab-extension']",
    ]
    with (
        browser.serving("voila", folder, *arguments, ready="/voila/static/favicon.ico") as address,
        browser.looking(chromium, address, height=2400) as (page, errors),
    ):
        page.goto(address)
        took = explore(page, keyboard=True)
        download(page, tmp_path)
        study(page)
        browser.shoot(page, "voila")
    print(f"a change took {sorted(took)[len(took) // 2]:.2f} s in Voila, at most {max(took):.2f}")
    assert [error for error in errors if not browser.NOISE.search(error)] == []
