"""Where is it? One text, looked up everywhere that an operator may have it from, each time by an index.

A business key, the id of a message, a flow (correlation id), a send or a dead letter, an idempotency key, and what
the program itself can look up (an e-mail address). A hit names the flow whose timeline tells the rest. What was found
nowhere may have been purged: an id tells its own age.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.clock import id_time, utcnow
from hopline.database import Database
from hopline.schema import dead_letters, idempotency, is_id, messages, outbox, storable

HITS = 50
"""The most that one search returns."""
TEXT_CHARACTERS = 500
SCOPES = 1_000
"""An idempotency key is looked for in so many scopes (callers and routes)."""

Kind = Literal["key", "message", "flow", "send", "dead-letter", "idempotency", "lookup"]


class Hit(msgspec.Struct, frozen=True):
    """One thing that was found."""

    kind: Kind
    id: str
    """Of the message, send or letter; else the text that was looked for."""
    flow: str
    """What `timeline` wants to tell its story."""
    type: str
    key: str
    at: datetime | None
    text: str
    """What it is, in one line; without personal data."""


class LookedUp(msgspec.Struct, frozen=True):
    """What a program has found: the business key of a flow."""

    key: str
    text: str
    """What it is, in one line; without personal data."""
    at: datetime | None = None


class Lookup(msgspec.Struct, frozen=True):
    """Something that a program can look up in tables of its own."""

    name: str
    """Such as `e-mail address`."""
    find: Callable[[AsyncConnection, str], Awaitable[Sequence[LookedUp]]]
    """Gets a trimmed text; has to be quick, by an index, and bounded."""


class Found(msgspec.Struct, frozen=True):
    """The answer to one search."""

    text: str
    hits: tuple[Hit, ...]
    looked_for: tuple[str, ...]
    """As what it was looked for."""
    purged: bool
    """Whether nothing was found because it is older than what is kept."""
    more: bool
    """Whether there were more hits than are returned."""


Finder = Callable[[AsyncConnection, str], Awaitable[list[Hit]]]


async def find(database: Database, text: str, lookups: Sequence[Lookup] = (), *, retention: timedelta) -> Found:
    """Everything that has the text as its name; `retention` is for how long messages are kept."""
    wanted = storable(text.strip())[:TEXT_CHARACTERS]
    identifier = wanted.lower()
    if not wanted:
        return Found(wanted, (), (), purged=False, more=False)
    finders: list[tuple[str, Finder, str]] = [("business key", _by_key, wanted), *_id_finders(identifier)]
    finders += [("idempotency key", _by_idempotency_key, wanted)]
    finders += [(lookup.name, _looked_up(lookup), wanted) for lookup in lookups]
    hits: dict[tuple[str, str], Hit] = {}
    async with database.reading() as connection:
        for _, finder, argument in finders:
            for hit in await finder(connection, argument):
                hits.setdefault((hit.kind, hit.id if hit.kind != "lookup" else hit.key), hit)
    purged = not hits and is_id(identifier) and _is_gone(identifier, retention)
    every = list(hits.values())
    return Found(wanted, tuple(every[:HITS]), tuple(name for name, *_ in finders), purged, more=len(every) > HITS)


def _id_finders(identifier: str) -> list[tuple[str, Finder, str]]:
    if not is_id(identifier):
        return []
    names = (("message", _by_message), ("flow", _by_flow), ("send", _by_send), ("dead letter", _by_letter))
    return [(f"{name} id", finder, identifier) for name, finder in names]


def _is_gone(identifier: str, retention: timedelta) -> bool:
    """Only a UUIDv7 tells its age."""
    return identifier[14] == "7" and id_time(identifier) < utcnow() - retention


async def _by_key(connection: AsyncConnection, text: str) -> list[Hit]:
    """The flows with that key; and strangers' letters, whose messages are not stored here."""
    query = sa.select(*_MESSAGE).where(messages.c.key == text).order_by(messages.c.id).limit(HITS + 1)
    rows = (await connection.execute(query)).fetchall()
    if rows:
        first = rows[0]
        counted = f"{len(rows)} messages" if len(rows) > 1 else "1 message"
        return [Hit("key", text, text, first.type, text, first.created_at, f"{counted} with that business key")]
    letters = sa.select(*_LETTER).where(dead_letters.c.key == text).order_by(dead_letters.c.id).limit(HITS + 1)
    return [_letter(row) for row in await connection.execute(letters)]


async def _by_message(connection: AsyncConnection, identifier: str) -> list[Hit]:
    rows = await connection.execute(sa.select(*_MESSAGE).where(messages.c.id == identifier))
    return [
        Hit(
            "message",
            row.id,
            row.correlation_id,
            row.type,
            row.key,
            row.created_at,
            f"the message {row.type} of {row.key}",
        )
        for row in rows
    ]


async def _by_flow(connection: AsyncConnection, identifier: str) -> list[Hit]:
    query = sa.select(*_MESSAGE).where(messages.c.correlation_id == identifier).order_by(messages.c.id).limit(1)
    return [
        Hit("flow", identifier, identifier, row.type, row.key, row.created_at, f"the flow that began with {row.type}")
        for row in await connection.execute(query)
    ]


async def _by_send(connection: AsyncConnection, identifier: str) -> list[Hit]:
    joined = outbox.join(messages, messages.c.id == outbox.c.message_id)
    query = sa.select(outbox.c.destination, *_MESSAGE).select_from(joined).where(outbox.c.id == identifier)
    return [
        Hit(
            "send",
            identifier,
            row.correlation_id,
            row.type,
            row.key,
            id_time(identifier),
            f"a send of {row.type} of {row.key} to {row.destination or 'all bound queues'}",
        )
        for row in await connection.execute(query)
    ]


async def _by_letter(connection: AsyncConnection, identifier: str) -> list[Hit]:
    """By the letter's own id, or that of its message."""
    hits: list[Hit] = []
    for column in (dead_letters.c.id, dead_letters.c.message_id):
        query = sa.select(*_LETTER).where(column == identifier).order_by(dead_letters.c.id).limit(HITS)
        hits += [_letter(row) for row in await connection.execute(query)]
    return hits


async def _by_idempotency_key(connection: AsyncConnection, text: str) -> list[Hit]:
    """A key is unique in its scope, so the scopes are walked along the primary key."""
    return [
        Hit("idempotency", text, row.response, "", row.response, row.created_at, f"answered with {row.response}")
        for row in await connection.execute(_idempotent(), {"wanted": text})
        if len(row.response) <= 255
    ]


def _looked_up(lookup: Lookup) -> Finder:
    async def finder(connection: AsyncConnection, text: str) -> list[Hit]:
        found = await lookup.find(connection, text)
        return [Hit("lookup", text, one.key, "", one.key, one.at, one.text) for one in found[: HITS + 1]]

    return finder


def _letter(row: sa.Row[Any]) -> Hit:
    flow = row.key or row.message_id or ""
    state = row.resolution or "parked"
    text = f"a dead letter of {row.type or 'no type'} in {row.queue or 'no queue'}, {row.reason}, {state}"
    return Hit("dead-letter", row.id, flow, row.type, row.key or "", row.dead_at, text)


_MESSAGE = tuple(messages.c[name] for name in ("id", "type", "key", "correlation_id", "created_at"))
_LETTER = tuple(
    dead_letters.c[name] for name in ("id", "message_id", "type", "key", "queue", "reason", "resolution", "dead_at")
)


@cache
def _idempotent() -> sa.Select[Any]:
    scopes = sa.select(sa.func.min(idempotency.c.scope).label("scope")).cte("scopes", recursive=True)
    after = sa.select(sa.func.min(idempotency.c.scope)).where(idempotency.c.scope > scopes.c.scope)
    scopes = scopes.union_all(sa.select(after.correlate(scopes).scalar_subquery()).where(scopes.c.scope.is_not(None)))
    some = sa.select(scopes.c.scope).where(scopes.c.scope.is_not(None)).limit(SCOPES).subquery("some")
    mine = sa.and_(idempotency.c.scope == some.c.scope, idempotency.c.key == sa.bindparam("wanted"))
    return (
        sa.select(idempotency.c.response, idempotency.c.created_at)
        .select_from(some.join(idempotency, mine))
        .order_by(idempotency.c.created_at)
        .limit(HITS)
    )
