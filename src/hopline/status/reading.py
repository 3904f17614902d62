"""Reading a status: the database's part in one snapshot by bounded queries, and the broker's beside it.

A broker that does not answer is part of the status and hides nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline import pausing
from hopline.audit import Audit
from hopline.database import Database, now
from hopline.deadletter_queries import Filter, count_up_to, overview
from hopline.errors import BrokerUnavailable
from hopline.live import QueueReading, measure_queues
from hopline.schema import outbox, queue_losses, workers
from hopline.settings import Settings
from hopline.status.ages import Unsettled, unsettled_in
from hopline.status.snapshot import (
    Loss,
    OutboxStatus,
    QueueStatus,
    Status,
    WorkerStatus,
    held_of,
    paused_of,
    unknown_of,
    worker_of,
)
from hopline.suspects import DEATH_HEARTBEATS
from hopline.topology import base_queue, dead_queue

COUNTED = 10_000
"""Waiting rows of the outbox and dead letters are counted up to this."""
GROUP_LETTERS = 1_000
"""Each of the largest groups is counted up to this."""
PARKED_GROUPS = 5
WORKERS = 200
LOSSES = 20
REMEMBERED_SECONDS = 86_400.0
"""A process that died longer ago is not told any more."""

Reconcile = Callable[[], Awaitable[Audit]]


async def snapshot(
    database: Database, queues: Sequence[str], settings: Settings, *, reconcile: Reconcile | None = None
) -> Status:
    """The status of the given queues and of the whole database; with `reconcile`, the audit too.

    DatabaseUnavailable without the database; a broker that does not answer is part of the status.
    """
    alive_seconds = DEATH_HEARTBEATS * settings.heartbeat_seconds
    # Side by side: while RabbitMQ does not answer, each of them waits for its deadline.
    measured, reconciled = await asyncio.gather(_measured(settings, queues), _reconciled(reconcile))
    (readings, broker_trouble), (audit, audit_trouble) = measured, reconciled
    async with database.reading() as connection:
        at: datetime = (await connection.execute(sa.select(now()))).scalar_one()
        rows = await _workers(connection)
        known = [worker_of(row, (at - row.heartbeat_at).total_seconds(), alive_seconds) for row in rows]
        living = [row.state for row, one in zip(rows, known, strict=True) if one.alive]
        unsettled = await unsettled_in(connection, at, _depths(readings))
        waiting = await _outbox(connection, at)
        parked = await count_up_to(connection, Filter(), COUNTED)
        largest = await overview(connection, limit=PARKED_GROUPS, count_letters=GROUP_LETTERS)
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        today = await count_up_to(connection, Filter(state="any", since=midnight), COUNTED)
        held = held_of(await pausing.read(connection), living)
        losses = await _losses(connection)
    return Status(
        at=at,
        queues=_queues(queues, readings, unsettled, known),
        broker_trouble=broker_trouble,
        outbox=waiting,
        parked=parked,
        parked_groups=largest.groups,
        workers=tuple(known),
        paused=paused_of(living),
        unknown=unknown_of(living),
        losses=losses,
        audit=audit,
        audit_trouble=audit_trouble,
        held=held,
        parked_is_least=parked >= COUNTED,
        dead_today=today,
        dead_today_is_least=today >= COUNTED,
    )


async def processes(database: Database, settings: Settings) -> list[WorkerStatus]:
    """The processes that have told of themselves within a day, by role and name."""
    alive_seconds = DEATH_HEARTBEATS * settings.heartbeat_seconds
    async with database.reading() as connection:
        at: datetime = (await connection.execute(sa.select(now()))).scalar_one()
        rows = await _workers(connection)
    return [worker_of(row, (at - row.heartbeat_at).total_seconds(), alive_seconds) for row in rows]


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


def _depths(readings: Mapping[str, QueueReading] | None) -> dict[str, int]:
    return {name: one.ready + (one.unacked or 0) for name, one in (readings or {}).items()}


def _queues(
    names: Sequence[str],
    readings: Mapping[str, QueueReading] | None,
    unsettled: Mapping[str, Unsettled],
    workers: Sequence[WorkerStatus],
) -> tuple[QueueStatus, ...]:
    """The given queues, and those of their `.dead` queues that hold something."""
    expected = {name: sum(one.alive and name in one.consuming for one in workers) for name in names}
    if readings is None:
        return tuple(QueueStatus(name, None, None, None, None, None, False, expected[name]) for name in names)
    every = [*names, *(n for n, one in readings.items() if base_queue(n) != n and (one.ready or one.unacked))]
    return tuple(
        _queue(name, readings.get(name), unsettled.get(name), expected.get(name)) for name in dict.fromkeys(every)
    )


def _queue(
    name: str, reading: QueueReading | None, unsettled: Unsettled | None, expected_consumers: int | None
) -> QueueStatus:
    if reading is None:
        return QueueStatus(name, False, None, None, None, None, False, expected_consumers)
    depth = reading.ready + (reading.unacked or 0)
    known = unsettled if depth else None
    return QueueStatus(
        name,
        True,
        reading.ready,
        reading.unacked,
        reading.consumers,
        oldest_seconds=known.oldest_seconds if known else None,
        oldest_is_least=known is not None and known.count < depth,
        expected_consumers=expected_consumers,
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
    """By the partial index of what waits, those that are due first first."""
    columns = (outbox.c.due_at, outbox.c.next_at, outbox.c.attempt, outbox.c.sends)
    some = sa.select(*columns).where(outbox.c.next_at.is_not(None)).order_by(outbox.c.next_at, outbox.c.id)
    waiting = some.limit(COUNTED).subquery()
    due = waiting.c.due_at <= now()
    in_hand = sa.and_(due, waiting.c.next_at > now(), waiting.c.sends == 0)
    query = sa.select(
        sa.func.count().label("rows"),
        sa.func.count(sa.case((due, 1))).label("unsent"),
        sa.func.count(sa.case((in_hand, 1))).label("unconfirmed"),
        sa.func.min(sa.case((due, waiting.c.due_at))).label("oldest"),
        sa.func.count(sa.case((sa.and_(~due, waiting.c.attempt > 0), 1))).label("retrying"),
    )
    row = (await connection.execute(query)).one()
    oldest = max(0.0, (at - row.oldest).total_seconds()) if row.oldest else None
    delayed = row.rows - row.unsent - row.retrying
    return OutboxStatus(row.unsent, oldest, row.retrying, delayed, row.rows >= COUNTED, row.unconfirmed)
