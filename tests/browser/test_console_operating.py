"""What an operator does in the browser, end to end: find an order, mend one that failed, pause a queue, stay live."""

from __future__ import annotations

import json
import re

import pytest
import sqlalchemy as sa
from playwright.async_api import Page, expect

from hopline import pausing, schema
from hopline.database import Database
from orders.dataset import Basket
from tests.browser.conftest import OpenWindow, Window
from tests.browser.mending import refusing_mails, waits_in_dead_letters
from tests.support import oracle
from tests.support.system import DEADLINE_SECONDS, System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


async def placed(running: System, basket: Basket, key: str) -> str:
    """An order that is decided and whose mail was sent; its id."""
    status, order = await running.post(basket, key)
    assert status == 202
    await wait_until(lambda: order in running.oracle.ledger.mails(), DEADLINE_SECONDS, "its mail")
    return order


async def search(window: Window, text: str) -> None:
    """Types into the search field of the page, as a person does."""
    await window.page.keyboard.press("/")
    await window.page.keyboard.type(text)
    await window.page.keyboard.press("Enter")


async def dialog(page: Page, button: str, act: str = "", reason: str = "") -> None:
    """Presses a button that asks, gives a reason, and says yes; with the page's scripts at work."""
    await page.locator('#live[data-state="live"]').wait_for()
    await page.locator("summary").filter(has_text=re.compile(rf"^\s*{button}\s*$")).first.click()
    asked = page.locator("dialog[open]")
    if reason:
        await asked.get_by_label("Reason").fill(reason)
    await asked.get_by_role("button", name=act or button, exact=True).click()


async def test_an_order_is_found_by_its_id_and_by_its_address_and_tells_its_story_to_the_delivered_mail(
    running: System, open_window: OpenWindow
) -> None:
    (basket,) = running.take_clean(1)
    given = json.loads(basket.body)
    given["customer"]["email"] = "only-one@example.com"
    order = await placed(running, Basket(basket.id, json.dumps(given).encode()), "found")
    window = await open_window()
    await window.open("/")

    for text in (order, "only-one@example.com"):
        await search(window, text)
        await expect(window.page).to_have_url(f"{window.url}/flows/{order}")

    story = window.page.get_by_role("region", name="Steps, the oldest first")
    steps = await story.locator("tbody tr").all_inner_texts()
    assert "request" in steps[0]
    assert any("order.placed" in step and "done" in step for step in steps)
    assert any("order.confirmed" in step and "only-one@example.com" in step for step in steps)
    assert await window.page.locator("svg a, svg rect").count() > 3  # the waterfall


async def test_an_order_whose_mail_was_refused_is_found_in_its_group_replayed_and_seen_to_arrive(
    running: System, open_window: OpenWindow
) -> None:
    window = await open_window()
    page = window.page
    async with refusing_mails(running):
        order, _ = await waits_in_dead_letters(running)
        await window.open("/dead")
        row = page.get_by_role("row").filter(has_text="mail-refused")
        await row.get_by_role("link").first.click()
        await expect(page.locator("main")).to_contain_text("<b>bees</b>")  # the server's answer, as text
    await wait_until(lambda: bool(running.stack.roles["mailbox"].pid), DEADLINE_SECONDS)

    await dialog(page, "Replay group", "Replay", "the mail server is well again")
    await page.get_by_role("status").get_by_text("finished", exact=True).wait_for()
    await wait_until(lambda: order in running.oracle.ledger.mails(), DEADLINE_SECONDS, "its mail")

    await window.open(f"/flows/{order}")
    await expect(page.locator("main .notice").first).to_contain_text("Done")
    await window.open("/audit")
    acts = page.get_by_role("region", name="Acts").get_by_role("row")
    await expect(acts.filter(has_text="the mail server is well again").first).to_contain_text("operator Ann")


async def test_a_queue_is_paused_and_resumed(running: System, open_window: OpenWindow) -> None:
    window = await open_window()
    page = window.page
    database = Database(running.database_url)
    try:
        await window.open("/queues/emails")
        await dialog(page, "Pause", reason="the prices are wrong")
        await expect(page.locator("main")).to_contain_text("paused by operator Ann")
        await wait_until(lambda: _obeyed(database, "emails"), DEADLINE_SECONDS, "the worker hears of it")
        (basket,) = running.take_clean(1)
        _, order = await running.post(basket, "paused")
        await wait_until(lambda: _is_decided(running, order), DEADLINE_SECONDS, "the other queues go on")
        async with database.reading() as connection:
            assert [pause.queue for pause in await pausing.read(connection)] == ["emails"]
        assert order not in running.oracle.ledger.mails()

        await page.reload()
        await dialog(page, "Resume")
        await expect(page.locator("main")).not_to_contain_text("paused by operator Ann")

        await wait_until(lambda: order in running.oracle.ledger.mails(), DEADLINE_SECONDS, "its mail")
    finally:
        await pausing.resume(database, "emails", who="test")
        await database.close()


async def _obeyed(database: Database, queue: str) -> bool:
    workers = await database.query(sa.select(schema.workers.c.state).where(schema.workers.c.role == "worker"))
    return bool(workers) and all(queue in row.state.get("paused_by_operator", ()) for row in workers)


async def _is_decided(running: System, order: str) -> bool:
    return (await oracle.states(running.database_url)).get(order) in oracle.TERMINAL


async def test_a_viewer_sees_no_buttons_and_no_addresses_until_a_reason_is_written_down(
    running: System, open_window: OpenWindow
) -> None:
    (basket,) = running.take_clean(1)
    given = json.loads(basket.body)
    given["customer"] = {"email": "masked@example.com", "name": "Masked Person"}
    order = await placed(running, Basket(basket.id, json.dumps(given).encode()), "masked")
    window = await open_window("viewer")
    page = window.page

    for path in ("/queues", "/workers", f"/flows/{order}"):
        await window.open(path)
        assert await page.locator("main details[data-confirm]").count() == 0, path
        assert "masked@example.com" not in await page.content(), path
    await page.locator("main a[href*='/messages/']").first.click()
    await expect(page.locator("main")).to_contain_text("•••")
    assert "Masked Person" not in await page.content()

    await dialog(page, "Show personal data", "Show", "a customer asks")

    await expect(page.locator("main")).to_contain_text("Masked Person")
    await window.open("/audit")
    await expect(page.locator("tbody tr").first).to_contain_text("a customer asks")
    await expect(page.locator("tbody tr").first).to_contain_text("viewer Ann")


async def test_what_a_customer_typed_is_text_wherever_it_is_shown(running: System, open_window: OpenWindow) -> None:
    (basket,) = running.take_clean(1)
    given = json.loads(basket.body)
    given["customer"] = {"email": "hostile@example.com", "name": HOSTILE}
    order = await placed(running, Basket(basket.id, json.dumps(given).encode()), "hostile")
    window = await open_window()
    page = window.page
    page.on("dialog", lambda asked: pytest.fail(f"a script has run: {asked.message}"))

    await window.open(f"/flows/{order}")
    links = await page.locator("main tbody a[href*='/messages/']").evaluate_all("all => all.map(one => one.pathname)")
    seen = 0
    for path in [f"/flows/{order}", *dict.fromkeys(links), "/mailbox", f"/search?q={HOSTILE}"]:
        await window.open(path)
        assert await page.locator("main img, main script").count() == 0, path
        seen += "<script>alert(2)</script>" in await page.locator("body").inner_text()
    await page.locator("#search").wait_for()
    assert await page.locator("#search").input_value() == HOSTILE
    assert seen >= 2  # in the bodies of the messages


async def test_a_mail_is_seen_as_its_reader_sees_it(running: System, open_window: OpenWindow) -> None:
    (basket,) = running.take_clean(1)
    order = await placed(running, basket, "seen")
    window = await open_window()
    await window.open("/mailbox")
    await window.page.get_by_role("link").filter(has_text=order).first.click()

    frame = window.page.frame_locator("iframe")

    await expect(frame.locator("body")).to_contain_text(f"your order {order} is confirmed")
    await expect(frame.locator("table")).to_be_visible()


async def test_a_stream_that_breaks_off_says_so_and_comes_back(running: System, open_window: OpenWindow) -> None:
    window = await open_window()
    await window.open("/")
    await window.is_live()
    console = running.stack.roles["console"]

    await console.stop()
    lost = window.page.locator('#live[data-state="reconnecting"]')
    await lost.wait_for()
    assert "since" in await lost.inner_text()
    await console.start()

    await window.is_live()
    window.complaints.clear()  # the browser tells of each connection that was refused


async def test_the_flow_page_shows_what_happens_without_a_reload(running: System, open_window: OpenWindow) -> None:
    window = await open_window()
    await window.open("/")
    await window.is_live()
    answered: list[str] = []
    window.page.on("response", lambda answer: answered.append(answer.url))
    database = Database(running.database_url)
    try:
        await pausing.pause(database, "users", who="somebody else", reason="a look at the live page")
        await expect(window.page.locator("[data-live-html=flow]")).to_contain_text("paused")
        await pausing.resume(database, "users", who="somebody else")
        await expect(window.page.locator("[data-live-html=flow]")).not_to_contain_text("paused")
    finally:
        await pausing.resume(database, "users", who="test")
        await database.close()
    assert f"{window.url}/" not in answered


async def test_the_keyboard_goes_everywhere(running: System, open_window: OpenWindow) -> None:
    window = await open_window()
    page = window.page
    await window.open("/")
    await window.is_live()

    for key, place in (("d", "/dead"), ("q", "/queues"), ("s", "/scheduled"), ("w", "/workers"), ("a", "/audit")):
        await page.keyboard.press("g")
        await page.keyboard.press(key)
        await expect(page).to_have_url(window.url + place)
        await window.is_live()
    await window.open("/mailbox")
    await window.is_live()
    await page.keyboard.press("j")
    await page.keyboard.press("j")
    await page.keyboard.press("k")
    assert await page.evaluate("[...document.querySelectorAll('[data-row]')].indexOf(document.activeElement)") == 0
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(re.compile(r"/mailbox/\d+$"))
    await window.is_live()
    await page.keyboard.press("?")
    await page.locator("dialog[open]").wait_for()


async def test_without_javascript_everything_is_read_and_can_be_done(running: System, open_window: OpenWindow) -> None:
    window = await open_window(java_script_enabled=False)
    page = window.page
    for path in ("/", "/dead", "/queues", "/scheduled", "/workers", "/mailbox", "/audit"):
        await window.open(path)
        assert await page.locator("main h1").is_visible(), path

    await window.open("/queues/users")
    for act, seen in (("Pause", "paused by"), ("Resume", "is resumed")):
        question = page.locator("details[data-confirm]").filter(has_text=act)
        await question.locator("summary").click()
        await question.get_by_label("Reason").fill("by hand")
        await question.get_by_role("button", name=act).click()
        await expect(page.locator("main")).to_contain_text(seen)
