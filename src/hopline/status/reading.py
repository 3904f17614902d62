"""Reading a status: the database's part in one snapshot by bounded queries, and the broker's beside it.

A broker that does not answer is part of the status and hides nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.audit import Audit
from hopline.database import Database, now
from hopline.deadletter_queries import Filter, count, groups
from hopline.errors import BrokerUnavailable
from hopline.live import QueueReading, measure_queues
from hopline.schema import dead_letters, endpoints, inbox, messages, outbox, queue_losses, workers
from hopline.settings import Settings
from hopline.status.snapshot import Loss, OutboxStatus, QueueStatus, Status, paused_of, unknown_of, worker_of
from hopline.suspects import DEATH_HEARTBEATS
from hopline.topology import base_queue, dead_queue

OUTBOX_ROWS = 100_000
"""Waiting rows of the outbox are counted up to this."""
SCANNED_SENDS = 5_000
"""A queue's oldest message is looked for among so many of the latest sends."""
PARKED_GROUPS = 5
WORKERS = 200
LOSSES = 20
REMEMBERED_SECONDS = 86_400.0
"""A process that died longer ago is not told any more."""

Reconcile = Callable[[], Awaitable[Audit]]


@dataclass(frozen=True, slots=True)
class _Unsettled:
    """What the database knows to be in a queue: how much, and the age of the oldest."""

    count: int
    oldest_seconds: float


async def snapshot(
    database: Database, queues: Sequence[str], settings: Settings, *, reconcile: Reconcile | None = None
) -> Status:
    """The status of the given queues and of the whole database; with `reconcile`, the audit too.

    DatabaseUnavailable without the database; a broker that does not answer is part of the status.
    """
    alive_seconds = DEATH_HEARTBEATS * settings.heartbeat_seconds
    async with database.reading() as connection:
        at: datetime = (await connection.execute(sa.select(now()))).scalar_one()
        processes = await _workers(connection)
        known = [worker_of(row, (at - row.heartbeat_at).total_seconds(), alive_seconds) for row in processes]
        living = [row.state for row, one in zip(processes, known, strict=True) if one.alive]
        unsettled = await _unsettled(connection, at)
        waiting = await _outbox(connection, at)
        parked = await count(connection, Filter())
        largest = await groups(connection, Filter(), limit=PARKED_GROUPS)
        losses = await _losses(connection)
    readings, broker_trouble = await _measured(settings, queues)
    audit, audit_trouble = await _reconciled(reconcile)
    return Status(
        at=at,
        queues=_queues(queues, readings, unsettled),
        broker_trouble=broker_trouble,
        outbox=waiting,
        parked=parked,
        parked_groups=tuple(largest),
        workers=tuple(known),
        paused=paused_of(living),
        unknown=unknown_of(living),
        losses=losses,
        audit=audit,
        audit_trouble=audit_trouble,
    )


async def _measured(settings: Settings, queues: Sequence[str]) -> tuple[Mapping[str, QueueReading] | None, str]:
    names = [*queues, *(dead_queue(queue) for queue in queues)]
    try:
        return await measure_queues(settings.broker_url, settings.management_url, names), ""
    except BrokerUnavailable as error:
        return None, str(error)


async def _reconciled(reconcile: Reconcile | None) -> tuple[Audit | None, str]:
    try:
        return (await reconcile() if reconcile else None), ""
    except BrokerUnavailable as error:
        return None, str(error)


def _queues(
    names: Sequence[str], readings: Mapping[str, QueueReading] | None, unsettled: Mapping[str, _Unsettled]
) -> tuple[QueueStatus, ...]:
    """The given queues, and those of their `.dead` queues that hold something."""
    if readings is None:
        return tuple(_queue(name, None, None, unsettled.get(name)) for name in names)
    every = [*names, *(n for n, one in readings.items() if base_queue(n) != n and (one.ready or one.unacked))]
    return tuple(
        _queue(name, name in readings, readings.get(name), unsettled.get(name)) for name in dict.fromkeys(every)
    )


def _queue(name: str, exists: bool | None, reading: QueueReading | None, unsettled: _Unsettled | None) -> QueueStatus:
    if reading is None:
        return QueueStatus(name, exists, None, None, None)
    depth = reading.ready + (reading.unacked or 0)
    if not depth or unsettled is None:
        return QueueStatus(name, exists, reading.ready, reading.unacked, reading.consumers)
    return QueueStatus(
        name,
        exists,
        reading.ready,
        reading.unacked,
        reading.consumers,
        oldest_seconds=unsettled.oldest_seconds,
        oldest_is_least=unsettled.count < depth,
    )


async def _workers(connection: AsyncConnection) -> list[sa.Row[tuple[object, ...]]]:
    query = (
        sa.select(workers)
        .where(workers.c.heartbeat_at > now(-REMEMBERED_SECONDS))
        .order_by(workers.c.heartbeat_at.desc())
        .limit(WORKERS)
    )
    return sorted((await connection.execute(query)).fetchall(), key=lambda row: (row.role, row.instance))


async def _losses(connection: AsyncConnection) -> tuple[Loss, ...]:
    columns = (queue_losses.c[name] for name in ("queue", "lost_at", "found_by", "rescheduled"))
    query = sa.select(*columns).where(queue_losses.c.recovered_at.is_(None)).order_by(queue_losses.c.lost_at)
    return tuple(Loss(**row) for row in (await connection.execute(query.limit(LOSSES))).mappings())


async def _outbox(connection: AsyncConnection, at: datetime) -> OutboxStatus:
    """By the partial index of what waits."""
    some = sa.select(outbox.c.due_at, outbox.c.attempt).where(outbox.c.next_at.is_not(None)).limit(OUTBOX_ROWS)
    waiting = some.subquery()
    due = waiting.c.due_at <= now()
    query = sa.select(
        sa.func.count().label("rows"),
        sa.func.count(sa.case((due, 1))).label("unsent"),
        sa.func.min(sa.case((due, waiting.c.due_at))).label("oldest"),
        sa.func.count(sa.case((sa.and_(~due, waiting.c.attempt > 0), 1))).label("retrying"),
    )
    row = (await connection.execute(query)).one()
    oldest = max(0.0, (at - row.oldest).total_seconds()) if row.oldest else None
    delayed = row.rows - row.unsent - row.retrying
    return OutboxStatus(row.unsent, oldest, row.retrying, delayed, is_least=row.rows >= OUTBOX_ROWS)


async def _unsettled(connection: AsyncConnection, at: datetime) -> dict[str, _Unsettled]:
    """What was sent to each queue and has neither a result nor a later send, among the latest sends."""
    columns = (outbox.c[name] for name in ("id", "message_id", "destination", "run", "sent_at"))
    latest = sa.select(*columns).order_by(outbox.c.id.desc()).limit(SCANNED_SENDS).subquery("latest")
    later = outbox.alias("later")
    settled = sa.or_(
        sa.exists().where(inbox.c.message_id == latest.c.message_id, inbox.c.endpoint == endpoints.c.endpoint),
        sa.exists().where(
            dead_letters.c.message_id == latest.c.message_id,
            dead_letters.c.queue == endpoints.c.queue,
            dead_letters.c.run >= latest.c.run,
        ),
        sa.exists().where(
            later.c.message_id == latest.c.message_id,
            later.c.destination == endpoints.c.queue,
            later.c.id > latest.c.id,
        ),
    )
    query = (
        sa.select(endpoints.c.queue, sa.func.count().label("held"), sa.func.min(latest.c.sent_at).label("oldest"))
        .select_from(
            latest.join(messages, messages.c.id == latest.c.message_id).join(
                endpoints, endpoints.c.type == messages.c.type
            )
        )
        .where(
            latest.c.destination.in_([sa.literal(""), endpoints.c.queue]),
            latest.c.sent_at >= endpoints.c.since,
            ~settled,
        )
        .group_by(endpoints.c.queue)
    )
    return {
        row.queue: _Unsettled(row.held, max(0.0, (at - row.oldest).total_seconds()))
        for row in await connection.execute(query)
    }
