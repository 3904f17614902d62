"""That the API is served within limits, over real sockets: tests/integration/test_http_limits.py has every case."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from hopline import Database, Hopline, Settings
from orders import handlers, messages, serving, store
from orders.api import create_app
from tests.integration.orders.test_api import GOOD, NO_BROKER
from tests.support.raw_http import Listening, answer_to, hurried, listening

HEAD = b"POST /orders HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"


@pytest.fixture
async def api(sqlite_database_url: str) -> AsyncIterator[Listening]:
    """As `orders api` serves it, with shorter deadlines."""
    database = Database(sqlite_database_url)
    await database.create(store.metadata)
    app = Hopline(
        handlers=[handlers.handlers],
        messages=[messages.OrderPlaced, messages.UserRegistered],
        tables=[store.metadata],
        settings=Settings(database_url=sqlite_database_url, broker_url=NO_BROKER),
    )
    config = serving.config(lambda: create_app(app), "127.0.0.1", 0, drain_seconds=1)
    assert config.http is serving.Protocol
    config.http = hurried(serving.Protocol)
    async with listening(config) as server:
        yield server
    await database.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD, b"408"),
        (HEAD + b"Content-Length: 500\r\n\r\n{", b"408"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"408"),
        (HEAD + b"A: b\r\n" * 10_000, b"431"),
        (HEAD + b"Content-Length: 2000000\r\n\r\n{", b"413"),
    ],
)
async def test_a_bad_request_ends_and_the_next_is_taken(api: Listening, sent: bytes, status: bytes) -> None:
    answer = await answer_to(api.port, sent)
    body = msgspec.json.encode(GOOD)
    accepted = await answer_to(api.port, HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"application/problem+json" in answer
    assert accepted.startswith(b"HTTP/1.1 202 ")
