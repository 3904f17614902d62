"""A connection, a channel and queues on the shared node; every name is new, so tests do not meet each other."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
import uvloop

from hopline import Node
from hopline.amqp import Channel, Connection, Outgoing, Properties, connect

_numbers = count()


@pytest.fixture
def fresh_name() -> str:
    return f"amqp-test-{uuid4().hex[:12]}"


@pytest_asyncio.fixture
async def connection(rabbitmq: Node) -> AsyncIterator[Connection]:
    connection = await connect(rabbitmq.url, name="amqp tests")
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def channel(connection: Connection) -> AsyncIterator[Channel]:
    """With confirms on."""
    channel = await connection.channel()
    await channel.confirm_select()
    yield channel
    await channel.close()


@pytest_asyncio.fixture
async def quorum_queue(connection: Connection, fresh_name: str) -> AsyncIterator[str]:
    channel = await connection.channel()
    await channel.declare_queue(fresh_name, arguments={"x-queue-type": "quorum"})
    await channel.close()
    yield fresh_name
    if not connection.closed:
        channel = await connection.channel()
        await channel.delete_queue(fresh_name)


@pytest.fixture
def message() -> Callable[..., Outgoing]:
    """Makes a persistent message with an id of its own."""

    def make(routing_key: str, body: bytes = b"{}", exchange: str = "", **properties: Any) -> Outgoing:
        fields: dict[str, Any] = {"delivery_mode": 2, "message_id": f"message-{next(_numbers)}", **properties}
        return Outgoing(exchange, routing_key, Properties(**fields), body)

    return make


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, as in production; the unit tests run on both loops."""
    return {"uvloop": uvloop.new_event_loop}
