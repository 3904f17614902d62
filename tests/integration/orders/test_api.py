"""The HTTP API on real databases, with RabbitMQ down: it must not matter."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
import sqlalchemy as sa
from litestar import Litestar
from litestar.testing import AsyncTestClient

from hopline import (
    CommitUnknown,
    Database,
    DatabaseContention,
    DatabaseUnavailable,
    Hopline,
    Settings,
    Transaction,
    UsageError,
    new_id,
    utcnow,
)
from orders import deciding, handlers, messages, placing, store
from orders.api import create_app
from orders.domain import Customer, Line
from orders.lookups import by_email
from tests.unit.orders.examples import as_placed, line, new_order

NO_BROKER = "amqp://127.0.0.1:1/"
GOOD: dict[str, Any] = {
    "customer": {"email": "Ann@Example.com", "name": "Ann Müller"},
    "lines": [
        {"sku": "apple", "quantity": 2, "unit_price": "0.495"},
        {"sku": "bread", "quantity": 1, "unit_price": "1.10"},
    ],
}
JSON = {"Content-Type": "application/json"}

Client = AsyncTestClient[Litestar]


@asynccontextmanager
async def serving(database: Database, **settings: Any) -> AsyncIterator[Client]:
    url = database.url.render_as_string(hide_password=False)
    app = Hopline(
        handlers=[handlers.handlers],
        messages=[messages.OrderPlaced, messages.UserRegistered],
        tables=[store.metadata],
        settings=Settings(database_url=url, broker_url=NO_BROKER, **settings),
    )
    async with AsyncTestClient(create_app(app)) as client:
        yield client


@pytest.fixture
async def client(database: Database) -> AsyncIterator[Client]:
    async with serving(database) as opened:
        yield opened


@pytest.fixture
async def any_client(sqlite_database_url: str) -> AsyncIterator[Client]:
    """For what is refused before the database is asked: one kind of it is enough."""
    database = Database(sqlite_database_url)
    await database.create(store.metadata)
    async with serving(database) as opened:
        yield opened
    await database.close()


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document, after a look at everything that each must have."""
    document: dict[str, Any] = response.json()
    assert response.status_code == status, document
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == document["request_id"]
    assert (document["status"], document["code"]) == (status, code)
    assert document["title"]
    assert document["detail"]
    assert len(response.content) < 10_000
    return document


async def test_an_order_is_accepted_and_can_be_looked_at(client: Client) -> None:
    # When an order is posted
    response = await client.post("/orders", json=GOOD)

    # Then it is accepted, and its URL shows it, with times
    assert response.status_code == 202
    body = response.json()
    assert body == {"id": body["id"], "state": "accepted", "url": response.headers["location"]}
    shown = (await client.get(response.headers["location"])).json()
    assert datetime.fromisoformat(shown["history"][0].pop("at")).utcoffset() == timedelta()
    assert shown == {
        "id": body["id"],
        "state": "accepted",
        "reasons": [],
        "lines": [
            {"sku": "apple", "quantity": 2, "unit_price": "0.495"},
            {"sku": "bread", "quantity": 1, "unit_price": "1.10"},
        ],
        "total": "2.09",
        "history": [{"state": "accepted"}],
    }


async def test_a_decided_order_shows_reasons_and_times(client: Client, database: Database) -> None:
    accepted = (await client.post("/orders", json=GOOD | {"lines": [{**GOOD["lines"][0], "sku": "unicorn"}]})).json()
    placed = as_placed(new_order([Line("unicorn", 2, line().unit_price)], id=accepted["id"]))
    async with database.transaction() as tx:
        await deciding.decide(tx, [placed])

    shown = (await client.get(accepted["url"])).json()

    assert shown["state"] == "rejected"
    assert [(reason["code"], reason["line"]) for reason in shown["reasons"]] == [("unknown-product", 1)]
    assert [event["state"] for event in shown["history"]] == ["accepted", "rejected"]


async def test_a_user_is_registered(client: Client, database: Database) -> None:
    response = await client.post("/users", json={"email": "ann@example.com", "name": "名前"})
    shown = (await client.get(response.headers["location"])).json()

    assert response.status_code == 202
    assert (shown["id"], shown["state"]) == (response.json()["id"], "accepted")
    row = await store.find_user(database, shown["id"])
    assert row is not None
    assert row.name == "名前"


@pytest.mark.parametrize(
    ("email", "kept"),
    [
        ("J\u00f6rg@M\u00fcnchen.DE", "J\u00f6rg@m\u00fcnchen.de"),
        ("ann@M\u00fcnchen.DE", "ann@xn--mnchen-3ya.de"),
        ("\u540d\u524d@\u4f8b\u3048.jp", "\u540d\u524d@\u4f8b\u3048.jp"),
    ],
)
async def test_an_address_outside_ascii_is_taken_and_found_as_it_is_typed(
    email: str, kept: str, client: Client, database: Database
) -> None:
    order = (await client.post("/orders", json={**GOOD, "customer": {"email": email}})).json()
    response = await client.post("/users", json={"email": email})
    user = await store.find_user(database, response.json()["id"])
    async with database.transaction() as tx:
        registered = messages.UserRegistered(response.json()["id"], Customer(kept), utcnow())
        await deciding.register(tx, [registered])

    async with database.reading() as connection:
        found = await by_email(connection, email)

    assert response.status_code == 202
    assert user is not None
    assert user.email == kept
    assert [one.key for one in found] == [order["id"], response.json()["id"]]


async def test_the_trace_starts_at_http(client: Client, database: Database) -> None:
    given = await client.post("/orders", json=GOOD, headers={"X-Request-Id": "abc-123"})
    made_up = await client.post("/orders", json=GOOD, headers={"X-Request-Id": "a b\tc"})

    assert given.headers["x-request-id"] == "abc-123"
    assert re.fullmatch("[0-9a-f-]{36}", made_up.headers["x-request-id"])
    async with database.reading() as connection:
        rows = await connection.execute(sa.text("SELECT key, headers FROM hopline_messages"))
        headers = {row.key: row.headers for row in rows}
    text = {
        key: value if isinstance(value, str) else msgspec.json.encode(value).decode() for key, value in headers.items()
    }
    assert "POST /orders abc-123" in text[given.json()["id"]]


def changed(**changes: Any) -> dict[str, Any]:
    """The good order with changes to its first line, or to itself for what no line has."""
    first = GOOD["lines"][0] | {name: value for name, value in changes.items() if name in GOOD["lines"][0]}
    return GOOD | {"lines": [first]} | {name: value for name, value in changes.items() if name not in GOOD["lines"][0]}


BAD_ORDERS: dict[str, tuple[Any, str, str | None]] = {
    "quantity 0": (changed(quantity=0), "quantity-out-of-range", "/lines/0/quantity"),
    "quantity negative": (changed(quantity=-5), "quantity-out-of-range", "/lines/0/quantity"),
    "quantity huge": (changed(quantity=10**18), "quantity-out-of-range", "/lines/0/quantity"),
    "quantity as text": (changed(quantity="2"), "type-wrong", "/lines/0/quantity"),
    "quantity 1.5": (changed(quantity=1.5), "type-wrong", "/lines/0/quantity"),
    "quantity null": (changed(quantity=None), "type-wrong", "/lines/0/quantity"),
    "price negative": (changed(unit_price="-0.01"), "price-negative", "/lines/0/unit_price"),
    "price with an exponent": (changed(unit_price="1e2"), "price-malformed", "/lines/0/unit_price"),
    "price as an object": (changed(unit_price={"amount": 1}), "price-malformed", "/lines/0/unit_price"),
    "price NaN": (changed(unit_price="NaN"), "price-malformed", "/lines/0/unit_price"),
    "sku empty": (changed(sku=""), "sku-malformed", "/lines/0/sku"),
    "sku with NUL": (changed(sku="a\x00"), "sku-malformed", "/lines/0/sku"),
    "sku of a megabyte": (changed(sku="a" * 900_000), "sku-malformed", "/lines/0/sku"),
    "no lines": (GOOD | {"lines": []}, "lines-missing", "/lines"),
    "10,000 lines": (GOOD | {"lines": GOOD["lines"] * 5_000}, "lines-too-many", "/lines"),
    "unknown field": (GOOD | {"coupon": "x"}, "field-unknown", "/coupon"),
    "missing field": ({"lines": GOOD["lines"]}, "field-missing", "/customer"),
    "no object": ([GOOD], "type-wrong", ""),
    "header injection by name": (
        changed(customer={"email": "a@example.com", "name": "Ann\r\nBcc: b@example.com"}),
        "name-malformed",
        "/customer/name",
    ),
    "header injection by address": (
        changed(customer={"email": "a@example.com\r\nBcc: b@example.com"}),
        "email-malformed",
        "/customer/email",
    ),
    "name with NUL": (changed(customer={"email": "a@example.com", "name": "\x00"}), "name-malformed", "/customer/name"),
    "name of a megabyte": (
        changed(customer={"email": "a@example.com", "name": "n" * 900_000}),
        "name-malformed",
        "/customer/name",
    ),
    "address of a megabyte": (changed(customer={"email": "a" * 900_000}), "email-malformed", "/customer/email"),
}


@pytest.mark.parametrize("name", BAD_ORDERS)
async def test_a_bad_order_is_refused_with_its_place(name: str, any_client: Client) -> None:
    body, code, pointer = BAD_ORDERS[name]

    response = await any_client.post("/orders", content=msgspec.json.encode(body), headers=JSON)

    document = problem(response, 422, code)
    assert document["errors"][0].get("pointer") == pointer


async def test_what_is_refused_is_not_stored(client: Client, database: Database) -> None:
    responses = [
        await client.post("/orders", content=msgspec.json.encode(body), headers=JSON)
        for body, _, _ in BAD_ORDERS.values()
    ]

    assert {response.status_code for response in responses} == {422}
    assert await store.count_states(database) == {"accepted": 0, "confirmed": 0, "rejected": 0}


BAD_BODIES: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "malformed": (b'{"customer":', JSON, 400, "json-malformed"),
    "empty": (b"", JSON, 400, "json-malformed"),
    "not UTF-8": (b'{"customer":{"email":"\xff"}}', JSON, 400, "json-malformed"),
    "half a surrogate pair": (b'{"customer":{"email":"\\ud800"}}', JSON, 400, "json-malformed"),
    "nested 500,000 deep": (b"[" * 500_000, JSON, 422, "type-wrong"),
    "nested in an unknown field": (b'{"x":' * 100_000, JSON, 422, "field-unknown"),
    "a number beyond 64 bits": (
        msgspec.json.encode(changed(quantity=7)).replace(b"7", b"7" + b"0" * 5_000),
        JSON,
        422,
        "type-wrong",
    ),
    "over 1 MiB": (b" " * ((1 << 20) + 1), JSON, 413, "too-large"),
    "a form": (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "media-type"),
    "no type": (b"{}", {}, 415, "media-type"),
    "key with a line break": (msgspec.json.encode(GOOD), JSON | {"Idempotency-Key": "a b"}, 400, "idempotency-key"),
    "key too long": (msgspec.json.encode(GOOD), JSON | {"Idempotency-Key": "k" * 256}, 400, "idempotency-key"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_body_that_is_none_is_refused(name: str, any_client: Client) -> None:
    content, headers, status, code = BAD_BODIES[name]

    response = await any_client.post("/orders", content=content, headers=headers)

    problem(response, status, code)


async def test_all_faults_are_told_at_once(client: Client) -> None:
    body = {
        "customer": {"email": "nobody", "name": "\x00"},
        "lines": [{"sku": "apple", "quantity": 0, "unit_price": "x"}, {"sku": "", "quantity": 1, "unit_price": "1"}],
    }

    document = problem(await client.post("/orders", json=body), 422, "email-malformed")

    assert [(error["code"], error.get("line")) for error in document["errors"]] == [
        ("email-malformed", None),
        ("name-malformed", None),
        ("quantity-out-of-range", 1),
        ("price-malformed", 1),
        ("sku-malformed", 2),
    ]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/docs/nothing", 404, "not-found"),
        ("GET", "/orders/1", 404, "not-found"),
        ("GET", "/orders/%00", 404, "not-found"),
        ("GET", f"/orders/{new_id()}", 404, "not-found"),
        ("GET", f"/users/{new_id()}", 404, "not-found"),
        ("GET", "/orders", 405, "method-not-allowed"),
        ("DELETE", f"/orders/{new_id()}", 405, "method-not-allowed"),
    ],
)
async def test_what_is_not_there_is_a_problem_document(
    method: str, path: str, status: int, code: str, client: Client
) -> None:
    problem(await client.request(method, path), status, code)


async def test_the_same_key_gets_the_same_answer_and_another_body_is_refused(
    client: Client, database: Database
) -> None:
    # Given an order with a key
    key = {"Idempotency-Key": "basket-1"}
    first = await client.post("/orders", json=GOOD, headers=key)

    # When it is sent again, laid out and written differently, and then with another content
    same = msgspec.json.format(msgspec.json.encode(GOOD)).replace(b'"1.10"', b"1.1").replace(b'"0.495"', b"0.4950")
    again = await client.post("/orders", content=same, headers=JSON | key)
    other = await client.post("/orders", json=changed(quantity=3), headers=key)
    elsewhere = await client.post("/users", json=GOOD["customer"], headers=key)

    # Then it is one order, and a key belongs to its route
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["location"] == first.headers["location"]
    problem(other, 422, "idempotency-key-reused")
    assert elsewhere.status_code == 202
    assert (await store.count_states(database))["accepted"] == 1


async def test_a_refusal_is_not_remembered(client: Client) -> None:
    key = {"Idempotency-Key": "basket-1"}

    problem(await client.post("/orders", json=changed(quantity=0), headers=key), 422, "quantity-out-of-range")

    assert (await client.post("/orders", json=GOOD, headers=key)).status_code == 202


async def test_many_at_once_are_all_stored_and_duplicates_once(client: Client, database: Database) -> None:
    headers = [{"Idempotency-Key": f"basket-{number % 50}"} for number in range(200)]

    responses = await asyncio.gather(*(client.post("/orders", json=GOOD, headers=header) for header in headers))

    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["id"] for response in responses}) == 50
    assert (await store.count_states(database))["accepted"] == 50


async def test_a_full_outbox_is_503_and_nothing_is_stored(database: Database) -> None:
    async with serving(database, outbox_limit=2) as client:
        answers = [await client.post("/orders", json=GOOD) for _ in range(3)]
        ready = await client.get("/readyz")

    assert [answer.status_code for answer in answers] == [202, 202, 503]
    problem(answers[2], 503, "outbox-full")
    assert int(answers[2].headers["retry-after"]) > 0
    assert (await store.count_states(database))["accepted"] == 2
    assert ready.status_code == 503
    assert "outbox is full" in ready.json()["why"]


@pytest.mark.parametrize(
    ("error", "key", "status", "code"),
    [
        (DatabaseUnavailable("gone: password=secret"), False, 503, "database-unavailable"),
        (DatabaseContention("deadlock"), False, 503, "database-unavailable"),
        (DatabaseContention("lock timeout"), True, 409, "in-progress"),
        (CommitUnknown("died"), False, 503, "commit-unknown"),
        (ZeroDivisionError("secret"), False, 500, "internal"),
    ],
)
async def test_what_is_not_certainly_stored_is_never_a_2xx(
    error: Exception, key: bool, status: int, code: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_tx: Transaction, _orders: list[placing.NewOrder]) -> None:
        raise error

    monkeypatch.setattr(placing, "place_orders", fail)
    async with serving(database) as client:
        response = await client.post("/orders", json=GOOD, headers={"Idempotency-Key": "k"} if key else {})

    document = problem(response, status, code)
    assert ("retry-after" in response.headers) == (status != 500)
    assert "secret" not in str(document)


async def test_a_commit_whose_answer_was_lost_is_read_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a database that commits, and whose connection then dies
    commit = Database._commit

    async def commit_and_die(self: Database, connection: Any) -> None:
        await commit(self, connection)
        monkeypatch.setattr(Database, "_commit", commit)
        raise CommitUnknown("the connection died during COMMIT")

    async with serving(database) as client:
        await client.get("/readyz")
        monkeypatch.setattr(Database, "_commit", commit_and_die)

        # When an order is posted
        response = await client.post("/orders", json=GOOD)

    # Then it is found to be stored, and accepted
    assert response.status_code == 202
    assert await store.find_order(database, response.json()["id"]) is not None


async def test_health_with_the_broker_down(client: Client) -> None:
    alive, ready = await client.get("/livez"), await client.get("/readyz")

    assert alive.json() == {"alive": True}
    assert ready.status_code == 200
    assert (ready.json()["ready"], ready.json()["why"]) == (True, "")
    assert "cannot" in ready.json()["broker"]


async def test_metrics_say_what_waits_and_what_the_link_is(client: Client) -> None:
    await client.post("/orders", json=GOOD)

    metrics = await client.get("/metrics")

    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'hopline_link_ready{link="publish"} 0.0' in metrics.text
    assert "hopline_outbox_unsent 1.0" in metrics.text
    assert "hopline_ready" not in metrics.text


async def test_not_ready_without_the_database(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(_database: Database) -> None:
        raise DatabaseUnavailable("no connection")

    async with serving(database) as client:
        monkeypatch.setattr(store, "ping", unreachable)
        ready, alive = await client.get("/readyz"), await client.get("/livez")

    assert ready.status_code == 503
    assert "database" in ready.json()["why"]
    assert alive.status_code == 200


async def test_without_tables_the_api_says_what_to_run(sqlite_database_url: str) -> None:
    empty = Database(sqlite_database_url)
    try:
        with pytest.raises(ExceptionGroup) as failed:
            await serving(empty).__aenter__()
    finally:
        await empty.close()
    assert failed.group_contains(UsageError, match="migrate")


async def test_the_description_is_there_without_the_internet(client: Client) -> None:
    document, page = await client.get("/docs/openapi.json"), await client.get("/docs")

    assert document.json()["openapi"] == "3.1.0"
    assert "/orders/{id}" in document.json()["paths"]
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "Place an order" in page.text
    assert not re.search(r"<script|<link|<img|src=|url\(", page.text)


LINE = '{"sku": "apple", "quantity": 1, "unit_price": "1.00"}'
CUSTOMER = '{"email": "a@b.example", "name": "Ann: the first"}'


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/orders", f'{{"customer": {CUSTOMER}, "customer": {CUSTOMER}, "lines": [{LINE}]}}', "/customer"),
        ("/orders", f'{{"customer": {CUSTOMER}, "lines": [{LINE}], "lines": [{LINE}]}}', "/lines"),
        ("/orders", f'{{"customer": {CUSTOMER}, "lines": [{LINE}, {LINE[:-1]}, "sku": "b"}}]}}', "/lines/1/sku"),
        ("/users", '{"email": "a@b.example", "\\u0065mail": "c@d.example"}', "/email"),
        ("/users", '{"email": "a@b.example", "name": "", "name": ""}', "/name"),
    ],
)
async def test_a_key_that_stands_twice_is_refused(any_client: Client, path: str, body: str, pointer: str) -> None:
    document = problem(await any_client.post(path, content=body, headers=JSON), 400, "key-twice")

    assert [error["pointer"] for error in document["errors"]] == [pointer]


@pytest.mark.parametrize("name", ['"name": ""', '"name": "12:30: at noon"', '"name" : "\\":{}"'])
async def test_colons_elsewhere_are_no_keys(any_client: Client, name: str) -> None:
    answer = await any_client.post("/users", content=f'{{"email": "a@b.example", {name}}}', headers=JSON)

    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br, gzip", "deflate", "identity, gzip", ""])
async def test_an_encoded_body_is_415(any_client: Client, coding: str) -> None:
    refused = await any_client.post("/orders", json=GOOD, headers={"Content-Encoding": coding})
    plain = await any_client.post("/orders", json=GOOD, headers={"Content-Encoding": "Identity"})

    problem(refused, 415, "content-encoding")
    assert refused.headers["accept-encoding"] == "identity"
    assert plain.status_code == 202


async def test_two_idempotency_keys_are_refused(any_client: Client) -> None:
    headers = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]

    problem(await any_client.post("/orders", json=GOOD, headers=headers), 400, "idempotency-key")


@pytest.mark.parametrize("nested", ["[" * 600 + "]" * 600, '{"a":' * 600 + "1" + "}" * 600, "[" * 33 + "]" * 33])
async def test_a_body_that_is_nested_too_deep_is_refused(any_client: Client, nested: str) -> None:
    body = f'{{"customer": {CUSTOMER}, "lines": [{{"sku": "a", "quantity": 1, "unit_price": {nested}}}]}}'

    problem(await any_client.post("/orders", content=body, headers=JSON), 400, "json-too-deep")
