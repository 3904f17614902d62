"""A scripted broker for tests of the relay and the worker: what it is told to answer, and what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa

from hopline.broker import Delivery, Publish, Published
from hopline.clock import new_id, utcnow
from hopline.database import Database, Send
from hopline.message import Envelope, type_of
from hopline.outbox import Outbox
from hopline.relay import Relay
from hopline.settings import Settings

FAST = Settings(probe_seconds=0.05, lease_seconds=30.0)


@dataclass
class ScriptedPublisher:
    """A Publisher that answers as it is told; CONFIRMED unless `answer` says otherwise."""

    ready: bool = True
    answer: Callable[[Publish], Published] = lambda publish: Published.CONFIRMED
    published: list[Publish] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def publish(self, batch: Sequence[Publish], *, timeout_seconds: float) -> list[Published]:
        self.published += batch
        if self.hold is not None:
            await self.hold.wait()
        return [self.answer(publish) for publish in batch]


@dataclass
class ScriptedConsumer:
    """A Consumer that remembers what was settled; `lost` channels own nothing any more."""

    ready: bool = True
    settled: list[Delivery] = field(default_factory=list)
    lost: set[object] = field(default_factory=set)
    prefetches: dict[str, int] = field(default_factory=lambda: {"things": 100})
    limits: list[tuple[str, int | None]] = field(default_factory=list)

    def limit(self, queue: str, prefetch: int | None) -> None:
        self.limits.append((queue, prefetch))

    def owns(self, delivery: Delivery) -> bool:
        return delivery.receipt not in self.lost

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        self.settled += [delivery for delivery in deliveries if self.owns(delivery)]


def envelope_for(message: msgspec.Struct, **changes: object) -> Envelope:
    """An envelope as a producer would make it."""
    declared = type_of(message)
    identifier = new_id()
    envelope = Envelope(
        id=identifier,
        type=declared.name,
        version=declared.version,
        key=declared.key_of(message),
        correlation_id=identifier,
        cause_id=None,
        created_at=utcnow(),
        body=msgspec.json.encode(message),
    )
    return envelope.changed(**changes)


def send_of(body: bytes = b"{}") -> Send:
    """A send with such a body, as a transaction makes one."""
    identifier = new_id()
    envelope = Envelope(
        id=identifier,
        type="thing.made",
        version=1,
        key="a",
        correlation_id=identifier,
        cause_id=None,
        created_at=utcnow(),
        body=body,
    )
    return Send(new_id(), envelope, "", 0.0, new=True)


def delivery_for(
    queue: str, envelope: Envelope, *, channel: object = "channel 1", redelivered: bool = False
) -> Delivery:
    """A delivery of an envelope, on a channel that a ScriptedConsumer can lose."""
    return Delivery(queue, envelope.body, envelope, redelivered, channel, lambda: {"message_id": envelope.id})


@asynccontextmanager
async def relaying(
    url: str, publisher: ScriptedPublisher, settings: Settings = FAST, *, optional: Iterable[str] = ()
) -> AsyncIterator[tuple[Database, Relay]]:
    """A database with an outbox and a running relay."""
    database = Database(url)
    await database.create()
    outbox = Outbox(limit=settings.outbox_limit, lease_seconds=settings.lease_seconds)
    database.riders.append(outbox)
    relay = Relay(database, outbox, publisher, settings, optional_types=frozenset(optional))
    relay.start()
    try:
        yield database, relay
    finally:
        await relay.stop()
        await database.close()


async def rows(database: Database, table: sa.Table) -> list[sa.Row[tuple[object, ...]]]:
    """All rows of a table, in the order of its first column."""
    async with database.reading() as connection:
        return list((await connection.execute(sa.select(table).order_by(table.columns[0]))).fetchall())
