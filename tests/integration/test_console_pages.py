"""The pages and their JSON twins: on each database, with what nobody expects in them, and with the world down."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from hopline.app import Hopline
from hopline.console import create_console
from hopline.node import Node
from tests.support.console import (
    OPERATOR_PASSWORD,
    VIEWER_PASSWORD,
    Person,
    Stocked,
    console,
    console_settings,
    routes_of,
    settings_of,
    stocked,
    token_of,
    transport_of,
)
from tests.support.letters import Packed, dead, handlers, parked, stranger
from tests.support.waiting import wait_until

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[31m\u202e{{7*7}}"
WITHOUT_TWIN = {
    "/dead/letters/{letter:str}/edit",
    "/dead/letters/{letter:str}/raw",
    "/messages/{message:str}/raw",
    "/sign-in",
    "/once/{token:str}",
    "/events",
}
"""A form, bytes as they are, the sign-in, and the stream; each other page is JSON too."""


@pytest.fixture
async def made(database_url: str) -> AsyncIterator[Stocked]:
    async with stocked(database_url) as one:
        yield one


def page_paths(made: Stocked) -> list[str]:
    """The pages, but for a replay: there is none."""
    return [
        made.path_of(route)
        for route in routes_of(made.console)
        if route.method == "GET"
        and not route.is_api
        and route.path not in WITHOUT_TWIN
        and "file_path" not in route.path
        and "job" not in route.path
    ]


async def test_every_page_is_there_and_has_a_twin_that_says_the_same(made: Stocked) -> None:
    paths = page_paths(made)
    async with made.person(OPERATOR_PASSWORD) as ann:
        for path in paths:
            page = await ann.page(path)
            found = await ann.json(f"/api{path}" if path != "/" else "/api/flow")
            assert found, path
            assert "<h1>" in page, path
        letters = (await ann.json("/api/dead/letters"))["rows"]
        steps = (await ann.json("/api/flows/p-1"))["steps"]

    assert len(paths) >= 12
    assert {row["letter"]["key"] for row in letters} == {"p-2", "p-3", "p-4"}
    assert steps[0]["what"] == "message"


async def test_what_names_one_flow_goes_straight_to_it(made: Stocked) -> None:
    async with made.person(VIEWER_PASSWORD) as vera:
        for text in ("p-1", made.names["message"]):
            answer = await vera.get("/search", q=text)
            assert (answer.status_code, answer.headers.get("location")) == (303, "/flows/" + await _flow(vera, text))
        assert "Nothing has that name" in await vera.page("/search", q="4711")
        assert "p-2" in await vera.page((await vera.get("/search", q="p-2")).headers["location"])


async def _flow(vera: Person, text: str) -> str:
    return (await vera.get("/api/search", q=text)).headers["location"].removeprefix("/api/flows/")


async def test_a_viewers_twins_are_masked_as_the_pages_are(database_url: str) -> None:
    letter = dead(
        Packed("p-1"), error="no stock for ann@example.com", body=b'{"id": "p-1", "email": "bob@example.com"}'
    )
    async with console(database_url) as made:
        (identifier,) = await parked(made.database, letter)
        async with made.person(VIEWER_PASSWORD) as vera, made.person(OPERATOR_PASSWORD) as operator:
            (group,) = (await operator.json("/api/dead"))["rows"]
            for path in ("", f"/{group['group']['fingerprint']}", "/letters", f"/letters/{identifier}"):
                for mine in (f"/dead{path}", f"/api/dead{path}"):
                    assert "example.com" not in (await vera.get(mine)).text, mine
                    assert "ann@example.com" in (await operator.get(mine)).text, mine


async def test_hostile_bytes_are_text_on_every_page(database_url: str) -> None:
    async with console(database_url) as made:
        body = msgspec.json.encode({"id": HOSTILE, "note": HOSTILE * 3})
        hostile = dead(Packed(HOSTILE), error=HOSTILE, stack=HOSTILE, body=body, properties={"type": HOSTILE})
        first, second = await parked(made.database, hostile, stranger(b"\xff\x00" + HOSTILE.encode(), type=HOSTILE))
        async with made.database.transaction() as tx:
            sent = tx.send(Packed(HOSTILE))
        async with made.person(OPERATOR_PASSWORD, HOSTILE) as ann:
            pages = [await ann.page(f"/dead/letters/{one}") for one in (first, second)]
            pages += [await ann.page(path) for path in ("/dead", "/dead/letters", f"/dead/letters/{first}/edit")]
            pages += [await ann.page(f"/messages/{sent.id}"), await ann.page(f"/flows/{sent.correlation_id}")]
            pages.append((await ann.client.get("/search", params={"q": HOSTILE + "x"})).text)
            pages.append((await ann.client.get("/dead/letters", params={"key": HOSTILE})).text)
            pages.append((await ann.client.get("/audit", params={"who": HOSTILE})).text)
            raw = await ann.get(f"/dead/letters/{second}/raw")

    for page in pages:
        assert "<script>alert" not in page
        assert "<img" not in page
        shown = re.sub(r'value="[^"]*"', "", page)  # what was typed goes back into its field as it was
        assert "\x1b" not in shown
        assert "\u202e" not in shown
    assert any("<script>alert(1)</script>" in html.unescape(page) for page in pages)
    assert raw.content == b"\xff\x00" + HOSTILE.encode()
    assert raw.headers["content-type"].startswith("text/plain")
    assert raw.headers["content-disposition"].startswith("attachment")
    assert raw.headers["x-content-type-options"] == "nosniff"


async def test_a_body_of_a_megabyte_is_cut_on_the_page_and_whole_in_the_download(sqlite_database_url: str) -> None:
    body = msgspec.json.encode({"id": "x" * 1_000_000})
    async with console(sqlite_database_url) as made:
        (identifier,) = await parked(made.database, dead(Packed("p-1"), body=body))
        async with made.person(OPERATOR_PASSWORD) as ann:
            page = await ann.page(f"/dead/letters/{identifier}")
            raw = await ann.get(f"/dead/letters/{identifier}/raw")

    assert len(page) < 200_000
    assert "Cut: it has" in page
    assert raw.content == body


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dead/letters/no-id", 400),
        ("/messages/no-id", 400),
        ("/messages/0190163d-8694-739b-aea5-966c26f8ad91", 404),
        ("/flows/no-such", 404),
        ("/queues/no-such", 404),
        ("/replays/no-such", 404),
        ("/no-such", 404),
        ("/dead/letters?state=x", 400),
        ("/?window=x", 400),
        ("/dead/letters?after=no-id", 400),
        ("/scheduled?after=no-id", 400),
        ("/audit?before=no-id", 400),
    ],
)
async def test_what_is_not_there_says_so(sqlite_database_url: str, path: str, status: int) -> None:
    async with console(sqlite_database_url) as made, made.person(VIEWER_PASSWORD) as vera:
        answer = await vera.get(path)
        twin = await vera.get(f"/api{path}" if not path.startswith("/?") else f"/api/flow{path[1:]}")

    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert twin.status_code == answer.status_code
    assert twin.headers["content-type"] == "application/problem+json"
    assert twin.json()["detail"]


async def test_with_rabbitmq_down_the_pages_say_so(made: Stocked) -> None:
    async with made.person(OPERATOR_PASSWORD) as ann:
        assert "does not answer" in await ann.page("/")
        assert "does not answer" in await ann.page("/queues")
        assert "does not answer" in await ann.page("/topology")
        told = await ann.act("/audit/reconcile")

    assert "the account could not be made" in told


async def test_with_the_database_down_the_pages_say_so_and_nobody_is_signed_out(sqlite_database_url: str) -> None:
    """Its tables are not there, which is as good as no database."""
    app = Hopline(handlers=[handlers], settings=settings_of(sqlite_database_url + ".gone/none.db"))
    down = create_console(app, console_settings())
    transport = transport_of(down)
    async with httpx.AsyncClient(transport=transport, base_url="http://console.test") as client:
        signed_in = await client.post("/sign-in", data={"password": OPERATOR_PASSWORD})
        assert signed_in.status_code == 303
        answers = {
            path: await client.get(path) for path in ("/", "/queues", "/workers", "/dead", "/audit", "/search?q=x")
        }
    await down.state.desk.close()

    for path in ("/", "/queues", "/workers"):
        assert answers[path].status_code == 200, path
        assert "The database does not answer" in answers[path].text, path
    for path in ("/dead", "/audit", "/search?q=x"):
        assert answers[path].status_code == 503, path
        assert int(answers[path].headers["retry-after"]) > 0
        assert "Sign in" not in answers[path].text


async def test_with_rabbitmq_the_figures_are_there(database_url: str, broker_url: str, rabbitmq: Node) -> None:
    settings = settings_of(database_url, broker_url=broker_url, management_url=rabbitmq.management_url)
    async with (
        console(database_url, settings=settings) as made,
        made.desk.app.working(),
        made.person(OPERATOR_PASSWORD) as ann,
    ):
        await wait_until(lambda: _is_read(ann, "parcels"))
        assert "As declared" in await ann.page("/topology")
        assert await ann.act("/audit/reconcile") == "every message is accounted for"
        assert "every message is accounted for" in await ann.page("/audit")


async def _is_read(ann: Person, queue: str) -> bool:
    (report,) = (await ann.json("/api/queues"))["reports"]
    return (report["name"], report["status"]["ready"]) == (queue, 0)


async def test_below_a_path_of_another_application_every_link_leads_within_it(sqlite_database_url: str) -> None:
    async with console(sqlite_database_url, path="/console") as made:
        await parked(made.database, dead(Packed("p-1")))

        async def outer(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"].startswith("/console"):
                path = scope["path"].removeprefix("/console") or "/"
                inner: Any = {**scope, "path": path, "raw_path": path.encode()}
                await made.console(inner, receive, send)

        transport = transport_of(outer)
        async with httpx.AsyncClient(transport=transport, base_url="http://console.test") as client:
            away = await client.get("/console/dead?x=1")
            signed_in = await client.post("/console/sign-in", data={"password": OPERATOR_PASSWORD, "next": "/dead"})
            page = await client.get("/console/dead")
            paused = await client.post(
                "/console/queues/parcels/pause", data={"csrf": token_of(page.text), "reason": "x"}
            )
            sheets = re.findall(r'(?:href|src|action)="(/[^"]*)"', page.text)
            static = [await client.get(sheet) for sheet in sheets if "/static/" in sheet]

    assert away.headers["location"] == "/console/sign-in?next=%2Fdead%3Fx%3D1"
    assert signed_in.headers["location"] == "/console/dead"
    assert "Path=/console" in signed_in.headers["set-cookie"]
    assert paused.headers["location"] == "/console/queues/parcels"
    assert len(sheets) > 20
    assert [sheet for sheet in sheets if not sheet.startswith("/console")] == []
    assert {answer.status_code for answer in static} == {200}


async def test_a_proxy_may_say_where_the_console_is(sqlite_database_url: str) -> None:
    """ASGI's root_path, as a server or an outer application gives it, goes before the setting."""
    async with console(sqlite_database_url) as made:
        transport = transport_of(made.console, root_path="/ops")
        async with httpx.AsyncClient(transport=transport, base_url="http://console.test") as client:
            answer = await client.get("/dead")

    assert answer.headers["location"] == "/ops/sign-in?next=%2Fdead"
