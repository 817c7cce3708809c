"""explore.ipynb as a reader sees it: JupyterLab and Voila in a headless Chromium."""

import re
import statistics

import browser
import pytest

from proxyhpo.notebook.grid import FOLDER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(browser.missing()), reason=f"needs {browser.missing()}"),
]
FIGURES = ("epoch cost", "shift", "sight", "claims", "speedup", "race")
WIDE = "one => one.scrollWidth <= one.clientWidth + 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, curves):
    """A folder with the notebook, and tables where it looks for them."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "explore.ipynb").write_bytes((FOLDER / "explore.ipynb").read_bytes())
    (folder / "results").symlink_to(curves.parent)
    return folder


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as started:
        yield started


@pytest.mark.parametrize("where", ["in_lab", "in_voila"])
def test_a_reader_looks_asks_and_runs_a_study(where, folder, chromium):
    with getattr(browser, where)(chromium, folder) as (page, errors):
        explorer = page.locator(".widget-vbox", has=page.locator(browser.STATUS)).first
        explorer.scroll_into_view_if_needed()
        browser.shoot(page, where)
        box = explorer.bounding_box()
        assert box["height"] < 690  # what JupyterLab leaves of a screen of 800
        took = [browser.redraws(page, "figure", name) for name in FIGURES]
        took.append(browser.redraws(page, "table", "CIFAR-10, ResNet-56"))
        took.append(browser.redraws(page, "table", "CIFAR-10, ResNet-20"))

        answer = page.locator(browser.CALCULATOR)
        page.locator(browser.CALCULATOR, has_text="recorded replays").wait_for()
        page.get_by_label("by", exact=True).first.select_option("random")
        page.locator(browser.CALCULATOR, has_text="replayed now").wait_for()
        before = answer.inner_text()
        page.get_by_role("slider").nth(1).press("ArrowLeft")
        page.wait_for_function(
            f"before => document.querySelector('{browser.CALCULATOR}').innerText !== before",
            arg=before,
        )
        assert "replayed now" in answer.inner_text()  # one replay answers every number of trials

        page.set_viewport_size({"width": 900, "height": 800})
        explorer.scroll_into_view_if_needed()
        browser.shoot(page, f"{where}-900")
        assert explorer.evaluate(WIDE)
        page.set_viewport_size({"width": 1280, "height": 800})

        page.get_by_label("network", exact=True).select_option("mobilenetv2_x0.35")  # takes longest
        sign = browser.first_sign(page)
        page.locator(browser.STUDY, has_text=re.compile(r"\d of 10 done; best.* on N_B")).wait_for()
        page.locator("img.widget-image:visible").nth(1).wait_for()
        page.locator(browser.STUDY).scroll_into_view_if_needed()
        browser.shoot(page, f"{where}-study")
        page.locator("button.jupyter-button", has_text="Stop").click()
        page.locator(browser.STUDY, has_text="stopped").wait_for()
        assert page.locator("[data-testid=error]").count() == 0
    print(f"{where}: a change {statistics.median(took):.2f} s, the study's first sign {sign:.2f} s")
    assert [error for error in errors if not browser.NOISE.search(error)] == []
