"""Every page in a real browser: nothing breaks, nothing is refused by its policy, everybody can read it.

Pictures of each, in light and dark and at two widths, are written to HOPLINE_SCREENSHOTS, or to the test's own folder.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page

from tests.browser.conftest import OpenWindow, Window
from tests.browser.mending import refusing_mails, waits_in_dead_letters
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="session")

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
"""All that another theme can break."""
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
THEMES = ("light", "dark")

PAGES = {
    "flow": "/",
    "search": "/search",
    "search-nothing": "/search?q=4711",
    "search-hits": "/search?q={email}",
    "story": "/flows/{order}",
    "message": "/flows/{order} > /messages/",
    "dead": "/dead",
    "group": "/dead > /dead/",
    "letters": "/dead/letters",
    "letter": "/dead/letters > /dead/letters/",
    "edit": "/dead/letters > /dead/letters/ > /edit",
    "queues": "/queues",
    "queue": "/queues/emails",
    "topology": "/topology",
    "scheduled": "/scheduled",
    "workers": "/workers",
    "mailbox": "/mailbox",
    "mail": "/mailbox > /mailbox/",
    "audit": "/audit",
}
"""Where each page is; after a > the end of the address of a link on it that is followed."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def names(running: System) -> AsyncIterator[dict[str, str]]:
    """An order whose mail is dead, so that there is something on every page."""
    async with refusing_mails(running):
        order, email = await waits_in_dead_letters(running)
    yield {"order": order, "email": email}


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_whole_readable_by_everybody_and_no_wider_than_the_screen(
    open_window: OpenWindow, names: dict[str, str], tmp_path: Path, name: str
) -> None:
    window = await open_window(color_scheme="light")
    await go(window, PAGES[name].format(**names))
    await look(window.page, name, folder(tmp_path))


@pytest.mark.parametrize(("name", "path"), [("sign-in", "/sign-in"), ("not-there", "/messages/none-such")])
async def test_so_is_a_page_without_the_console_around_it_and_one_that_tells_of_an_error(
    open_window: OpenWindow, tmp_path: Path, name: str, path: str
) -> None:
    window = await open_window(None if name == "sign-in" else "operator", color_scheme="light")
    await window.page.goto(window.url + path)
    await look(window.page, name, folder(tmp_path))
    window.complaints.clear()  # the browser tells of an answer that is an error


def folder(tmp_path: Path) -> Path:
    """Where the pictures go."""
    given = os.environ.get("HOPLINE_SCREENSHOTS")
    if not given:
        return tmp_path
    made = Path(given)
    made.mkdir(parents=True, exist_ok=True)
    return made


async def go(window: Window, way: str) -> None:
    """Opens an address and follows links from it."""
    first, *links = way.split(" > ")
    await window.open(first)
    for link in links:
        of_a_thing = f"main :is(tbody, .page-actions) a[href*='{link}']:not([href$='/dead/letters'])"
        await window.page.locator(of_a_thing).first.click()
        await window.page.wait_for_load_state()


async def look(page: Page, name: str, to: Path) -> None:
    """At both sizes and in both themes: a picture, no sideways scrolling, and nothing that axe finds."""
    await page.evaluate(AXE.read_text() + "; true")
    for size, (width, height) in SIZES.items():
        await page.set_viewport_size({"width": width, "height": height})
        for theme in THEMES:
            await page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
            await page.screenshot(path=to / f"{name}-{size}-{theme}.png", full_page=True)
            rules = RULES if theme == "light" else COLOURS
            found = await page.evaluate("rules => axe.run(document, {...rules, resultTypes: ['violations']})", rules)
            seen = [(one["id"], [node["html"][:300] for node in one["nodes"]]) for one in found["violations"]]
            assert seen == [], (name, size, theme)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, (name, size)
