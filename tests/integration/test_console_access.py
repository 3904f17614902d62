"""Who may do what at the console: every route is tried, so that one that is new is covered by what holds for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from http.cookies import SimpleCookie

import pytest

from hopline.console.application import SECURITY_HEADERS
from tests.support.console import OPERATOR_PASSWORD, VIEWER_PASSWORD, Route, Stocked, console, routes_of, stocked

FOR_ANYONE = {"/sign-in", "/once", "/once/{token:str}"}
VIEWERS_POST = {"/sign-out", "/audit/reconcile", "/messages/{message:str}/reveal", "/dead/letters/{letter:str}/reveal"}
"""All that a viewer may change: the own session, what is written to the audit log, and a figure made anew."""


@pytest.fixture
async def made(sqlite_database_url: str) -> AsyncIterator[Stocked]:
    async with stocked(sqlite_database_url) as one:
        yield one


def pages(made: Stocked) -> Iterator[Route]:
    """What is read, but for the static files, and the stream, which does not end."""
    for route in routes_of(made.console):
        if route.method == "GET" and "file_path" not in route.path and route.path != "/events":
            yield route


def acts(made: Stocked) -> Iterator[Route]:
    return (route for route in routes_of(made.console) if route.method not in ("GET", "HEAD"))


async def test_who_is_not_signed_in_sees_the_sign_in_and_nothing_else(made: Stocked) -> None:
    async with made.person() as stranger:
        for route in [*pages(made), *acts(made)]:
            if route.path in FOR_ANYONE:
                continue
            answer = await stranger.client.request(route.method, made.path_of(route))

            if route.is_api:
                assert answer.status_code == 401, route
                assert answer.headers["content-type"] == "application/problem+json", route
            else:
                assert answer.status_code == 303, route
                assert answer.headers["location"].startswith("/sign-in"), route
            assert "www-authenticate" not in answer.headers, route
        assert (await stranger.get("/events")).status_code == 401

    assert {route.path for route in routes_of(made.console) if route.access == "anyone"} == FOR_ANYONE | {
        route.path for route in routes_of(made.console) if "file_path" in route.path
    }


async def test_a_viewer_is_refused_every_action(made: Stocked) -> None:
    tried = []
    async with made.person(VIEWER_PASSWORD, "vera") as vera:
        for route in acts(made):
            if route.path.removeprefix("/api") in VIEWERS_POST | FOR_ANYONE:
                continue
            answer = await vera.post(made.path_of(route), reason="because", id=made.names["letter"])
            assert answer.status_code == 403, (route, answer.text)
            assert "operator" in answer.text, route
            tried.append(route)
        assert (await vera.get(f"/dead/letters/{made.names['letter']}/edit")).status_code == 403

    assert len(tried) >= 20
    assert await made.log() == []


async def test_a_viewers_pages_offer_no_action(made: Stocked) -> None:
    async with made.person(VIEWER_PASSWORD) as viewer, made.person(OPERATOR_PASSWORD) as operator:
        offered = set()
        for route in pages(made):
            no_page = route.is_api or route.path in FOR_ANYONE or route.path.endswith(("/raw", "/edit"))
            if no_page or "job" in route.path:
                continue
            path = made.path_of(route)
            theirs = set(_forms(await viewer.page(path)))
            allowed = {one.replace("{message:str}", made.names["message"]) for one in VIEWERS_POST}
            allowed = {one.replace("{letter:str}", made.names["letter"]) for one in allowed}
            assert theirs <= allowed | {"/dead/letters", "/scheduled"}, path
            offered |= set(_forms(await operator.page(path)))

    letter, group = made.names["letter"], made.names["fingerprint"]
    assert offered >= {f"/dead/letters/{letter}/replay", f"/dead/letters/{letter}/discard", f"/dead/{group}/replay"}
    assert offered >= {"/queues/parcels/pause", "/workers/worker-1/drain", "/scheduled"}


def _forms(page: str) -> Iterator[str]:
    for part in page.split("<form ")[1:]:
        head = part.partition(">")[0]
        if 'method="post"' in head:
            yield head.partition('action="')[2].partition('"')[0]


@pytest.mark.parametrize("forged", ["", "x", "another session's"])
async def test_no_form_acts_without_the_token_of_its_session(made: Stocked, forged: str) -> None:
    async with made.person(OPERATOR_PASSWORD) as ann, made.person(OPERATOR_PASSWORD) as bob:
        token = bob.csrf if forged == "another session's" else forged
        for route in acts(made):
            if route.path in FOR_ANYONE:
                continue
            answer = await ann.post(made.path_of(route), csrf=token, reason="because", id=made.names["letter"])
            assert answer.status_code == 403, (route, answer.text)
        assert (await ann.get("/scheduled")).status_code == 200  # and is signed in still

    assert await made.log() == []


@pytest.mark.parametrize(
    "sent", [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.test"}]
)
async def test_no_form_of_another_site_is_taken(made: Stocked, sent: dict[str, str]) -> None:
    async with made.person(OPERATOR_PASSWORD) as ann:
        for route in acts(made):
            fields = {"csrf": ann.csrf, "password": OPERATOR_PASSWORD, "token": "t", "reason": "because"}
            answer = await ann.client.post(made.path_of(route), data=fields, headers=sent)
            assert answer.status_code == 403, route
            assert "set-cookie" not in answer.headers, route

    assert await made.log() == []


async def test_every_answer_has_the_headers_that_keep_a_page_from_running_anything(made: Stocked) -> None:
    static = next(route.path for route in routes_of(made.console) if "file_path" in route.path).partition("{")[0]
    async with made.person(OPERATOR_PASSWORD) as ann, made.person() as stranger:
        answers = [await ann.get(made.path_of(route)) for route in pages(made)]
        answers += [await stranger.get(made.path_of(route)) for route in pages(made)]
        for route in acts(made):
            answers.append(await ann.post(made.path_of(route), csrf="x"))
        for path in ("/nothing", "/dead/letters/no-id", "/history", "/api/history?window=x", f"{static}nothing.css"):
            answers.append(await ann.get(path))
        answers.append(await ann.client.request("DELETE", "/dead"))
        answers.append(await ann.client.post("/scheduled", content=b"x" * (5 << 20)))
        file = await stranger.get(f"{static}css/base.css")

    assert {answer.status_code for answer in answers} >= {200, 303, 400, 401, 403, 404, 405, 413}
    for answer in [*answers, file]:
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers.get(name) == value, (answer.request.url, answer.status_code, name)
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store", answer.request.url
    assert "immutable" in file.headers["cache-control"]
    assert "set-cookie" not in file.headers


async def test_the_session_is_a_cookie_that_no_script_reads_and_no_other_site_sends(made: Stocked) -> None:
    async with made.person() as ann, made.person(base_url="https://console.test") as secure:
        plain = await ann.sign_in(OPERATOR_PASSWORD, "ann")
        tls = await secure.post("/sign-in", csrf="", password=OPERATOR_PASSWORD)

    for answer, is_secure in ((plain, False), (tls, True)):
        cookie = SimpleCookie(answer.headers["set-cookie"])["hopline_session"]
        assert cookie["httponly"]
        assert cookie["samesite"].lower() == "strict"
        assert cookie["path"] == "/"
        assert int(cookie["max-age"]) == 12 * 3_600
        assert bool(cookie["secure"]) is is_secure
        assert OPERATOR_PASSWORD not in answer.headers["set-cookie"]


async def test_a_wrong_password_signs_nobody_in_and_is_limited(made: Stocked) -> None:
    async with made.person() as ann:
        for _ in range(5):
            answer = await ann.sign_in("wrong password")
            assert answer.status_code == 401
            assert "set-cookie" not in answer.headers
            assert "wrong password" not in answer.text

        limited = await ann.sign_in(OPERATOR_PASSWORD)
        by_basic = await ann.client.get("/api/dead", auth=("ann", OPERATOR_PASSWORD))

    assert limited.status_code == 429
    assert int(limited.headers["retry-after"]) > 0
    assert "set-cookie" not in limited.headers
    assert by_basic.status_code == 429


async def test_who_signs_in_comes_back_to_where_they_were_going_within_the_console_only(made: Stocked) -> None:
    async with made.person() as ann:
        asked = await ann.get("/dead/letters", state="any")
        page = await ann.page(asked.headers["location"])
        assert "/dead/letters?state=any" in page

        assert (await ann.sign_in(OPERATOR_PASSWORD, to="/dead/letters?state=any")).headers[
            "location"
        ] == "/dead/letters?state=any"
        for evil in ("https://evil.test/", "//evil.test", "/\\evil.test", "javascript:alert(1)", "/a\r\nX: y"):
            assert (await ann.sign_in(OPERATOR_PASSWORD, to=evil)).headers["location"] == "/", evil


async def test_who_signs_out_is_out_also_with_the_old_cookie(made: Stocked) -> None:
    async with made.person(OPERATOR_PASSWORD) as ann, made.person() as thief:
        cookie = ann.client.cookies["hopline_session"]
        thief.client.cookies.set("hopline_session", cookie)
        assert (await thief.get("/dead")).status_code == 200

        assert (await ann.post("/sign-out")).headers["location"] == "/sign-in"

        assert "hopline_session" not in ann.client.cookies
        assert (await thief.get("/dead")).status_code == 303


async def test_a_link_signs_in_once_and_looking_at_it_does_not_use_it_up(sqlite_database_url: str) -> None:
    token = "a-token-of-a-test"
    async with (
        console(sqlite_database_url, operator_password="", viewer_password="", link_token=token) as made,
        made.person() as ann,
        made.person() as late,
    ):
        for _ in range(3):
            assert token in await ann.page(f"/once/{token}")
        assert (await ann.get("/dead")).status_code == 303

        used = await ann.post("/once", csrf="", token=token, name="ann")
        again = await late.post("/once", csrf="", token=token)

        assert used.status_code == 303
        assert "operator" in await ann.page("/scheduled")
        assert again.status_code == 401
        assert (await late.get("/dead")).status_code == 303
        assert made.desk.link is not None
        assert made.desk.link.token != token
        assert (await late.sign_in("")).status_code == 401  # there is no password, not even the empty one


async def test_with_passwords_there_is_no_link(made: Stocked) -> None:
    async with made.person() as stranger:
        assert (await stranger.post("/once", csrf="", token="")).status_code == 401


async def test_a_program_signs_each_request_in_by_password_and_needs_no_token(made: Stocked) -> None:
    async with made.person() as program:
        auth = ("robot", OPERATOR_PASSWORD)
        paused = await program.client.post("/api/queues/parcels/pause", json={"reason": "repair"}, auth=auth)
        refused = await program.client.post(
            "/api/queues/parcels/resume", json={"reason": "x"}, auth=("v", VIEWER_PASSWORD)
        )
        on_a_page = await program.client.get("/dead", auth=auth)

    assert paused.status_code == 200
    assert refused.status_code == 403
    assert on_a_page.status_code == 303  # by password only where no browser keeps it
    (entry,) = await made.log()
    assert (entry.who, entry.action) == ("robot (operator, 192.0.2.1)", "pause")
    assert "set-cookie" not in paused.headers
