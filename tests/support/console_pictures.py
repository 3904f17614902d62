"""Pictures of a running console for the docs.

`python -m tests.support.console_pictures http://127.0.0.1:8100 PASSWORD ORDER_ID docs/img`, while orders go through
and something is parked: the flow, one order's story and the dead letters, light, and the flow once more, dark.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

WIDTH, LEAST_HEIGHT = 1280, 640
MOST_HEIGHT = 1100
"""A picture ends here, however long its page is."""
CHARTS_TO_COME = "[data-chart]:not(:has(canvas))"
LIVE = "#live[data-state=live]"


def take(address: str, password: str, order: str, folder: Path) -> None:
    """Writes console-*.png into the folder."""
    paths = {"flow": "/", "timeline": f"/search?q={order}", "dead": "/dead"}
    with sync_playwright() as playwright:
        chromium = shutil.which(os.environ.get("HOPLINE_CHROMIUM", "chromium"))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        light, dark = (_signed_in(browser, address, password, dark=dark) for dark in (False, True))
        for name, path in paths.items():
            _shoot(light, address + path, folder / f"console-{name}.png")
        _shoot(dark, address, folder / "console-flow-dark.png")
        browser.close()


def _signed_in(browser: Browser, address: str, password: str, *, dark: bool) -> Page:
    size = ViewportSize(width=WIDTH, height=LEAST_HEIGHT)
    page = browser.new_page(viewport=size, color_scheme="dark" if dark else "light")
    page.goto(f"{address}/sign-in")
    page.fill("[name=password]", password)
    page.press("[name=password]", "Enter")
    page.wait_for_url(f"{address}/")
    return page


def _shoot(page: Page, url: str, file: Path) -> None:
    page.goto(url)
    expect(page.locator(CHARTS_TO_COME)).to_have_count(0)
    page.locator(LIVE).wait_for()
    height = page.evaluate("Math.ceil(document.getElementById('content').getBoundingClientRect().bottom + scrollY)")
    page.set_viewport_size({"width": WIDTH, "height": min(max(height, LEAST_HEIGHT), MOST_HEIGHT)})
    page.screenshot(path=file, animations="disabled")
    page.set_viewport_size({"width": WIDTH, "height": LEAST_HEIGHT})


if __name__ == "__main__":
    take(sys.argv[1].rstrip("/"), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
