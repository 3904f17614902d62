"""Every part of the design system in a real browser: it breaks no rule of the console's policy, and none of axe's.

axe-core comes from npm (`node_modules`, made by `./dev`); the browser is the system's Chromium.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from tests.support.style_guide import served

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
CHROMIUM = shutil.which(os.environ.get("HOPLINE_CHROMIUM", "chromium"))

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; Debian: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served() as found:
        yield found


def opened(
    browser: Browser, address: str, size: str, theme: Literal["light", "dark"], **more: Any
) -> tuple[Page, list[str]]:
    """The page with its charts drawn, and what the browser complained of."""
    width, height = SIZES[size]
    viewport = ViewportSize(width=width, height=height)
    context = browser.new_context(viewport=viewport, color_scheme=theme, reduced_motion="reduce", **more)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    return page, complaints


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_axe_and_the_policy_find_nothing(
    browser: Browser, address: str, size: str, theme: Literal["light", "dark"]
) -> None:
    page, complaints = opened(browser, address, size, theme)
    page.wait_for_function("document.querySelectorAll('[data-chart] canvas').length === 2")

    page.evaluate(AXE.read_text() + "; true")
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)

    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []
    assert [text for text in complaints if "503" not in text] == []  # the stream of events, which is not served here
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    page.context.close()


def test_a_question_is_a_dialog_that_gives_its_form_back(browser: Browser, address: str) -> None:
    page, _ = opened(browser, address, "desktop", "light")
    question = page.locator("details[data-confirm] > summary")

    question.click()
    asked = page.locator("dialog[open] .confirm-title").inner_text()
    page.keyboard.press("Escape")

    assert asked == "Discard 3 letters?"
    page.locator("dialog").wait_for(state="detached")
    assert page.locator("details[data-confirm] > .confirm-panel").count() == 1
    assert question.evaluate("element => element === document.activeElement")
    page.context.close()


def test_the_keyboard_searches_moves_over_rows_and_helps(browser: Browser, address: str) -> None:
    page, _ = opened(browser, address, "desktop", "light")

    page.keyboard.press("j")
    page.keyboard.press("j")
    row = page.evaluate("[...document.querySelectorAll('[data-row]')].indexOf(document.activeElement)")
    page.keyboard.press("?")
    help_text = page.locator("dialog[open]").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("/")

    assert row == 1
    assert "Dead letters" in help_text
    assert page.evaluate("document.activeElement.id") == "search"
    page.context.close()


def test_a_theme_is_chosen_kept_and_drawn(browser: Browser, address: str) -> None:
    page, _ = opened(browser, address, "desktop", "light")
    before = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    page.locator("[data-theme-switch]").click()
    page.locator("[data-theme-switch]").click()

    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != before
    assert {cookie["name"]: cookie["value"] for cookie in page.context.cookies()} == {"hopline_theme": "dark"}
    page.context.close()


def test_a_chart_is_a_table_too(browser: Browser, address: str) -> None:
    page, _ = opened(browser, address, "desktop", "light")
    chart = page.locator("#latency")
    chart.locator("canvas").wait_for()

    words = chart.locator(".chart-picture").get_attribute("aria-label") or ""
    chart.locator("[data-chart-table]").click()

    assert words.startswith("Latency, the latest: handler p50 ")
    assert chart.locator("tbody tr").count() == 90
    page.context.close()


def test_without_javascript_it_is_read_and_questions_open_in_place(browser: Browser, address: str) -> None:
    page, _ = opened(browser, address, "desktop", "light", java_script_enabled=False)

    page.locator("details[data-confirm] > summary").click()

    assert page.locator(".confirm-panel").is_visible()
    assert not page.locator("#live").is_visible()
    assert page.locator(".chart-note a").first.is_visible()
    page.context.close()
