"""What one POST costs beside the database: bounds on Python calls, so that slowness shows without timing anything."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from hopline import Hopline, Settings
from orders.api import create_app
from orders.placing import NewOrder, NewUser, Placed
from orders.serving import Joining
from tests.support.calls import counted_calls

LINES = [{"sku": f"sku-{number}", "quantity": 2, "unit_price": "1.99"} for number in range(3)]
BODIES = {
    "/orders": {"customer": {"email": "ann@example.com", "name": "Ann Müller"}, "lines": LINES},
    "/users": {"email": "ann@example.com", "name": "Ann Müller"},
}
CALLS_MAX = {"/orders": 40, "/users": 32}
"""Through Litestar's own routing an order takes 145."""


async def stored(new: NewOrder | NewUser) -> Placed:
    return Placed(new.id)


@pytest.mark.parametrize("path", BODIES)
async def test_a_post_takes_few_calls(path: str) -> None:
    # Given the application, with a database that takes everything at once
    app = create_app(Hopline(settings=Settings()))
    app.state.desk = SimpleNamespace(place_order=stored, place_user=stored)
    body = msgspec.json.encode(BODIES[path])
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    async def post() -> None:
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "state": {}}
        await app(scope, receive, send)  # type: ignore[arg-type]

    await post()

    # When a request comes after the first one
    with counted_calls() as calls:
        await post()

    # Then it is accepted in so many calls
    assert [event.get("status") for event in sent] == [202, None] * 2
    assert calls.count <= CALLS_MAX[path]


class Socket:
    """What is written, and whether it is closed."""

    def __init__(self) -> None:
        self.events: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.events.append(data)

    def close(self) -> None:
        self.events.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.events


async def test_an_answer_leaves_in_one_write() -> None:
    socket = Socket()
    joining = Joining(socket, asyncio.get_running_loop())  # type: ignore[arg-type]

    for answer in (b"first", b"second"):
        joining.write(b"head of the " + answer)
        joining.write(b", and body")
        await asyncio.sleep(0)

    assert socket.events == [b"head of the first, and body", b"head of the second, and body"]


async def test_what_is_written_before_the_end_leaves_before_it() -> None:
    socket = Socket()
    joining = Joining(socket, asyncio.get_running_loop())  # type: ignore[arg-type]

    joining.write(b"head")
    joining.write(b"body")
    joining.close()
    await asyncio.sleep(0)

    assert socket.events == [b"headbody", "closed"]
    assert joining.is_closing()
