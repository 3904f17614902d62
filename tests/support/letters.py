"""Dead letters for tests of repair: a small program, its database without a relay, and ways to park."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from hopline import schema
from hopline.clock import new_id
from hopline.database import Database
from hopline.deadletters import DeadLetter, park
from hopline.fingerprint import Cause
from hopline.handlers import Handlers
from hopline.message import Catalog, Envelope, message
from hopline.outbox import Outbox
from hopline.repair import Code
from tests.support.engine import envelope_for, rows

BROKEN = Cause("shop.errors.NoStock", "shop.stock:reserve")


@message("parcel.packed", key="id")
class Packed(msgspec.Struct):
    id: str
    weight: int = 1


@message("parcel.lost", key="id")
class Lost(msgspec.Struct):
    id: str


handlers = Handlers()


@handlers.on("parcels")
async def ship(one: Packed) -> None: ...


CODE = Code(Catalog([endpoint.type for endpoint in handlers]), handlers, timedelta(days=14))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """A database with an outbox that nobody empties."""
    database = Database(url)
    await database.create()
    database.riders.append(Outbox(limit=1_000, lease_seconds=30))
    try:
        yield database
    finally:
        await database.close()


def dead(one: msgspec.Struct, envelope: Envelope | None = None, **changes: Any) -> DeadLetter:
    """A letter as a worker would park it: its handler has failed in each of its attempts."""
    envelope = envelope or envelope_for(one)
    letter = DeadLetter(
        queue="parcels",
        endpoint="parcels/parcel.packed",
        envelope=envelope,
        reason="exhausted",
        error="NoStock: none left",
        stack="Traceback: …",
        properties={"message_id": envelope.id, "type": envelope.type, "correlation_id": envelope.correlation_id},
        body=envelope.body,
        cause=BROKEN,
    )
    return replace(letter, **changes)


async def parked(database: Database, *letters: DeadLetter) -> list[str]:
    """Parks letters, one a transaction; their ids."""
    known = {row.id for row in await rows(database, schema.dead_letters)}
    for letter in letters:
        async with database.transaction() as tx:
            await park(tx, [letter])
    return [str(row.id) for row in await rows(database, schema.dead_letters) if row.id not in known]


async def finished(database: Database, message_id: str, endpoint: str = "parcels/parcel.packed", run: int = 0) -> None:
    """What a worker leaves of a message that it has done."""
    moment = schema.inbox.c.done_at.type
    row = {"message_id": message_id, "endpoint": endpoint, "run": run, "attempt": 0, "outcome": "done", "note": ""}
    async with database.transaction() as tx:
        at = (await tx.rows(sa.select(sa.literal_column("CURRENT_TIMESTAMP", moment))))[0][0]
        await tx.execute(sa.insert(schema.inbox).values(**row, worker="w", started_at=at, done_at=at))


def stranger(body: bytes = b'{"id": "p-1"}', **properties: Any) -> DeadLetter:
    """A letter of a message that was not sent by Hopline."""
    properties = {"type": "parcel.packed", "app_id": new_id(), **properties}
    return DeadLetter("parcels", None, None, "undecodable", "it has no message id", "", properties, body)
