"""One message whole: its body and headers, where it was sent, and what came of it at each endpoint.

As the database has it; what another database has of it (its producer's, another worker's) is not here. Each list is
bounded, the latest first are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.database import Database, now
from hopline.deadletter_queries import Letter, of_message
from hopline.message import Envelope
from hopline.properties import described, properties_of
from hopline.schema import attempts, check_id, inbox, messages, outbox

LISTED = 200
"""The most of each list."""


class Send(msgspec.Struct, frozen=True):
    """One send."""

    id: str
    destination: str
    """A queue, or empty: all that are bound."""
    run: int
    attempt: int
    sends: int
    """Times that RabbitMQ returned or refused it."""
    state: Literal["scheduled", "waits", "sent", "cancelled"]
    """cancelled: or parked as unroutable."""
    due_at: datetime
    next_at: datetime | None
    sent_at: datetime | None


class FailedAttempt(msgspec.Struct, frozen=True):
    """One run of a handler that did not end as done."""

    endpoint: str
    run: int
    attempt: int
    outcome: str
    error: str
    stack: str
    worker: str
    started_at: datetime
    finished_at: datetime


class DoneBy(msgspec.Struct, frozen=True):
    """An endpoint that has finished it."""

    endpoint: str
    run: int
    attempt: int
    note: str
    worker: str
    started_at: datetime
    done_at: datetime


class Caused(msgspec.Struct, frozen=True):
    """A message that was sent while this one was handled."""

    id: str
    type: str
    key: str
    created_at: datetime


class WholeMessage(msgspec.Struct, frozen=True):
    """A message with all that is known of it; the lists are in the order of time."""

    id: str
    type: str
    version: int
    key: str
    correlation_id: str
    cause_id: str | None
    created_at: datetime
    headers: Mapping[str, str]
    properties: Mapping[str, Any]
    """AMQP's, as its first send has them."""
    body: bytes
    sends: tuple[Send, ...]
    attempts: tuple[FailedAttempt, ...]
    done: tuple[DoneBy, ...]
    letters: tuple[Letter, ...]
    caused: tuple[Caused, ...]


async def read(database: Database, message_id: str) -> WholeMessage | None:
    """The message of that id; None if this database has none. UsageError if it is no id."""
    check_id(message_id)
    async with database.reading() as connection:
        found = (await connection.execute(sa.select(messages).where(messages.c.id == message_id))).mappings().first()
        if found is None:
            return None
        envelope = Envelope(**found)
        at = (await connection.execute(sa.select(now()))).scalar_one()
        sends = await _of(connection, outbox, message_id, outbox.c.id)
        tried = await _of(connection, attempts, message_id, attempts.c.finished_at)
        finished = await _of(connection, inbox, message_id, inbox.c.done_at)
        letters = await of_message(connection, message_id, limit=LISTED)
        caused = await _caused(connection, envelope)
    return WholeMessage(
        **{name: getattr(envelope, name) for name in ("id", "type", "version", "key", "correlation_id", "cause_id")},
        created_at=envelope.created_at,
        headers=envelope.headers,
        properties=described(properties_of(envelope)),
        body=envelope.body,
        sends=tuple(_send(row, at) for row in sends),
        attempts=tuple(_struct(FailedAttempt, row) for row in tried),
        done=tuple(_struct(DoneBy, row) for row in finished),
        letters=tuple(letters),
        caused=tuple(_struct(Caused, row) for row in caused),
    )


async def _of(
    connection: AsyncConnection, table: sa.Table, message_id: str, order: sa.Column[Any]
) -> Sequence[sa.Row[Any]]:
    query = sa.select(table).where(table.c.message_id == message_id).order_by(order.desc()).limit(LISTED)
    return (await connection.execute(query)).fetchall()[::-1]


async def _caused(connection: AsyncConnection, envelope: Envelope) -> Sequence[sa.Row[Any]]:
    """By the flow's index: there is none of causes."""
    mine = (messages.c.correlation_id == envelope.correlation_id, messages.c.cause_id == envelope.id)
    return (await connection.execute(sa.select(messages).where(*mine).order_by(messages.c.id).limit(LISTED))).fetchall()


def _send(row: sa.Row[Any], at: datetime) -> Send:
    if row.next_at is not None:
        state: Literal["scheduled", "waits", "sent", "cancelled"] = "scheduled" if row.due_at > at else "waits"
    else:
        state = "sent" if row.sent_at is not None else "cancelled"
    return Send(row.id, row.destination, row.run, row.attempt, row.sends, state, row.due_at, row.next_at, row.sent_at)


def _struct(kind: type[Any], row: sa.Row[Any]) -> Any:
    return kind(**{name: getattr(row, name) for name in kind.__struct_fields__})
