"""One running system with its console and one Chromium for all tests; each test has windows of its own.

A window collects what the browser complained of (errors of scripts, of the console's policy, of the network), and a
test fails if there was anything that it did not expect.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from tests.support.console import OPERATOR_PASSWORD, VIEWER_PASSWORD
from tests.support.system import Scale, System, system

CHROMIUM = shutil.which(os.environ.get("HOPLINE_CHROMIUM", "chromium"))
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SCALE = Scale(
    baskets=40,
    rate=100.0,
    seconds=1.0,
    broker_kills=0,
    environment={
        "HOPLINE_CONSOLE_OPERATOR_PASSWORD": OPERATOR_PASSWORD,
        "HOPLINE_CONSOLE_VIEWER_PASSWORD": VIEWER_PASSWORD,
        "HOPLINE_CONSOLE_SECRET": "s" * 32,  # a console that was restarted knows who is signed in
        "HOPLINE_CONSOLE_SAMPLE_SECONDS": "0.3",
        "HOPLINE_HEARTBEAT_SECONDS": "0.3",
        "HOPLINE_PAUSE_CAP_SECONDS": "1",
    },
)
"""An operator's pause reaches the workers with their next heartbeat."""
PATIENCE_MILLISECONDS = 20_000.0
expect.set_options(timeout=PATIENCE_MILLISECONDS)

Role = Literal["operator", "viewer"]
PASSWORDS: dict[Role, str] = {"operator": OPERATOR_PASSWORD, "viewer": VIEWER_PASSWORD}


@dataclass
class Window:
    """A page in a browser context of its own, and what the browser complained of."""

    page: Page
    url: str
    """The console's."""
    complaints: list[str] = field(default_factory=list)

    async def open(self, path: str) -> None:
        """Opens a page of the console; it has to be there."""
        answer = await self.page.goto(self.url + path)
        assert answer is not None
        assert answer.ok, (path, answer.status)

    async def is_live(self) -> None:
        """Waits until the page says that it is live."""
        await self.page.locator('#live[data-state="live"]').wait_for()

    def heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} at {message.location.get('url', '')}")


class OpenWindow(Protocol):
    """Opens a window, signed in unless the role is None."""

    def __call__(self, role: Role | None = "operator", **context: Any) -> Awaitable[Window]: ...


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, with a profile of its own that is thrown away."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (./dev test installs it where it may)")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        await started.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running(
    rabbitmq_installed: None, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """The system with its console, after real baskets have gone through it."""
    async with system(tmp_path_factory.mktemp("system"), scale=SCALE, console=True) as one:
        await one.assert_nothing_lost_nothing_twice(await one.send())
        yield one


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cookies(browser: Browser, running: System) -> dict[Role, list[Any]]:
    """What a browser has after each role has signed in with its form."""
    found: dict[Role, list[Any]] = {}
    for role, password in PASSWORDS.items():
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(f"{running.stack.console_url}/")
        await page.get_by_label("Your name").fill(f"{role} Ann")
        await page.get_by_label("Password").fill(password)
        await page.get_by_role("button", name="Sign in").click()
        await page.get_by_role("heading", name="Flow", exact=True).wait_for()
        found[role] = [dict(cookie) for cookie in await context.cookies()]
        await context.close()
    return found


@asynccontextmanager
async def window(browser: Browser, url: str, cookies: list[Any], **context: Any) -> AsyncIterator[Window]:
    """A window until the end of the block."""
    given: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **context}
    opened = await browser.new_context(**given)
    try:
        opened.set_default_timeout(PATIENCE_MILLISECONDS)
        await opened.add_cookies(cookies)
        made = Window(await opened.new_page(), url)
        made.page.on("console", made.heard)
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        yield made
    finally:
        await opened.close()


@pytest_asyncio.fixture(loop_scope="session")
async def open_window(
    browser: Browser, running: System, cookies: dict[Role, list[Any]]
) -> AsyncIterator[Callable[..., Awaitable[Window]]]:
    """Opens windows of the test's own; at its end none of them may have complained."""
    made: list[Window] = []
    async with AsyncExitStack() as stack:

        async def opening(role: Role | None = "operator", **context: Any) -> Window:
            signed_in = cookies[role] if role else []
            one = await stack.enter_async_context(window(browser, running.stack.console_url, signed_in, **context))
            made.append(one)
            return one

        yield opening
    assert [complaint for one in made for complaint in one.complaints] == []
