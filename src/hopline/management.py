"""What RabbitMQ's management API says of one virtual host: its queues' figures, and its topology as it is.

AMQP can only ask about what it can name; the management API lists. Plain HTTP, read only, one request a list;
every call blocks, so a coroutine goes through `asyncio.to_thread`. An answer that is no success is an OSError,
one that is no such list a ValueError.
https://www.rabbitmq.com/docs/http-api-reference
"""

from __future__ import annotations

import base64
import time
import urllib.parse
import urllib.request
from typing import Any, TypeVar

import msgspec

from hopline.topology import Binding, Live, LiveExchange, LiveQueue, exchange_traits, queue_traits

TIMEOUT_SECONDS = 5.0
"""For a connection, and for each part of an answer."""
ANSWER_SECONDS = 10.0
ANSWER_BYTES = 64 << 20
"""The longest answer: about 50,000 queues."""
_PART_BYTES = 1 << 16

# Without the statistics the figures come from the queues themselves, at once, instead of every few seconds.
_FRESH = "?disable_stats=true&enable_queue_totals=true"

Row = TypeVar("Row")


class QueueRow(msgspec.Struct):
    """One queue. The figures are None when it says nothing of itself: it has no leader."""

    name: str
    type: str = "classic"
    durable: bool = True
    auto_delete: bool = False
    arguments: dict[str, Any] = {}
    messages_ready: int | None = None
    messages_unacknowledged: int | None = None

    @property
    def messages(self) -> int | None:
        """All that it holds."""
        if self.messages_ready is None or self.messages_unacknowledged is None:
            return None
        return self.messages_ready + self.messages_unacknowledged


class _ExchangeRow(msgspec.Struct):
    name: str
    type: str
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: dict[str, Any] = {}


class _BindingRow(msgspec.Struct):
    source: str
    destination: str
    destination_type: str
    routing_key: str


def queues(management_url: str, vhost: str) -> list[QueueRow]:
    """Every queue of the virtual host."""
    return _get(management_url, "queues", vhost, QueueRow, _FRESH)


def live_topology(management_url: str, vhost: str) -> Live:
    """Exchanges, queues and the queues' bindings, but for those to the default exchange, which RabbitMQ makes."""
    exchanges = _get(management_url, "exchanges", vhost, _ExchangeRow)
    bindings = _get(management_url, "bindings", vhost, _BindingRow)
    return Live(
        exchanges={row.name: _exchange(row) for row in exchanges},
        queues={row.name: _queue(row) for row in queues(management_url, vhost)},
        bindings=frozenset(
            Binding(row.source, row.destination, row.routing_key)
            for row in bindings
            if row.source and row.destination_type == "queue"
        ),
    )


def _exchange(row: _ExchangeRow) -> LiveExchange:
    traits: dict[str, Any] = {"durable": row.durable, "auto-delete": row.auto_delete, "internal": row.internal}
    return LiveExchange(exchange_traits(row.type, {**row.arguments, **traits}))


def _queue(row: QueueRow) -> LiveQueue:
    traits: dict[str, Any] = {"durable": row.durable, "auto-delete": row.auto_delete, "x-queue-type": row.type}
    return LiveQueue(queue_traits({**row.arguments, **traits}), row.messages)


def _get(management_url: str, what: str, vhost: str, kind: type[Row], query: str = "") -> list[Row]:
    parts = urllib.parse.urlsplit(management_url)
    port = f":{parts.port}" if parts.port else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    url = (
        f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}/api/{what}/{urllib.parse.quote(vhost, safe='')}{query}"
    )
    credentials = f"{urllib.parse.unquote(parts.username or 'guest')}:{urllib.parse.unquote(parts.password or 'guest')}"
    token = base64.b64encode(credentials.encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {token}"})  # noqa: S310 - the operator set this URL
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
        return msgspec.convert(msgspec.json.decode(_whole(response)), list[kind])  # type: ignore[valid-type]


def _whole(response: Any) -> bytes:
    """The body. TimeoutError if it comes too slowly: the socket's timeout is for each part. ValueError if too long."""
    until = time.monotonic() + ANSWER_SECONDS
    answer = bytearray()
    while part := response.read1(_PART_BYTES):
        answer += part
        if len(answer) > ANSWER_BYTES:
            raise ValueError(f"the answer has more than {ANSWER_BYTES:,} bytes")
        if time.monotonic() > until:
            raise TimeoutError(f"the answer was not complete within {ANSWER_SECONDS:g} s")
    return bytes(answer)
