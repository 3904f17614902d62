"""Retention: what is finished and older than the inbox remembers is deleted, in small batches.

One age for everything that a message has left behind: its sends, attempts, results, resolved dead letters, and
itself. It is the message's age, which its id tells, so a batch is one walk along the primary key. What is still
on its way or parked stays, however old. The history of rates is kept for a day; the audit log is never purged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import cache, partial

import sqlalchemy as sa

from hopline import history
from hopline.clock import first_id
from hopline.database import Database, Transaction, now, retried
from hopline.rows import Dialect, Rows
from hopline.schema import (
    Id,
    attempts,
    dead_letters,
    idempotency,
    inbox,
    messages,
    outbox,
    queue_losses,
    suspects,
    workers,
)

BATCH_MESSAGES = 250
PAUSE_SECONDS = 0.05
"""Between batches, so that a purge never holds up the work."""


async def purge(database: Database, retention: timedelta) -> int:
    """Deletes everything that is due; returns how many messages that were. DatabaseError ends it, and the next
    call goes on."""
    async with database.reading() as connection:
        current: datetime = (await connection.execute(sa.select(now()))).scalar_one()
    oldest = current - retention
    purged = await _in_batches(partial(_purge_messages, database, first_id(oldest)))
    await _in_batches(partial(_purge_results, database, first_id(oldest)))
    await _in_batches(partial(_purge_by_time, database, oldest))
    await _in_batches(partial(_purge_history, database, current))
    return purged


async def _in_batches(batch: Callable[[], Awaitable[int]]) -> int:
    total = 0
    while count := await retried(batch):
        total += count
        await asyncio.sleep(PAUSE_SECONDS)
    return total


async def _purge_messages(database: Database, before_id: str) -> int:
    """Messages of this database, with all that belongs to them."""
    on_the_way = sa.exists().where(outbox.c.message_id == messages.c.id, outbox.c.next_at.is_not(None))
    parked = sa.exists().where(dead_letters.c.message_id == messages.c.id, dead_letters.c.resolution.is_(None))
    due = (
        sa.select(messages.c.id)
        .where(messages.c.id < before_id, ~on_the_way, ~parked)
        .order_by(messages.c.id)
        .limit(BATCH_MESSAGES)
        .with_for_update(skip_locked=True)
    )
    async with database.transaction() as tx:
        ids = [row.id for row in await tx.rows(due)]
        await _delete(tx, ids, (outbox, attempts, inbox, suspects, dead_letters), "message_id")
        await _delete(tx, ids, (messages,), "id")
    return len(ids)


async def _purge_results(database: Database, before_id: str) -> int:
    """Results of messages that are stored in another database."""
    count = 0
    async with database.transaction() as tx:
        for table in (inbox, attempts):
            stored = sa.exists().where(messages.c.id == table.c.message_id)
            due = sa.select(table.c.message_id).where(table.c.message_id < before_id, ~stored)
            ids = [row.message_id for row in await tx.rows(due.order_by(table.c.message_id).limit(BATCH_MESSAGES))]
            await _delete(tx, ids, (table,), "message_id")
            count += len(ids)
    return count


async def _purge_by_time(database: Database, oldest: datetime) -> int:
    """Rows that belong to no message: answers to requests, processes that died, lost queues, strangers' letters."""
    count = 0
    async with database.transaction() as tx:
        for table, column in (
            (idempotency, idempotency.c.created_at),
            (workers, workers.c.heartbeat_at),
            (queue_losses, queue_losses.c.recovered_at),
            (dead_letters, dead_letters.c.resolved_at),
        ):
            keys = list(table.primary_key.columns)
            due = sa.select(*keys).where(column < oldest).limit(BATCH_MESSAGES)
            for row in await tx.rows(due):
                await tx.execute(sa.delete(table).where(*(key == value for key, value in zip(keys, row, strict=True))))
                count += 1
    return count


async def _purge_history(database: Database, current: datetime) -> int:
    """What charts show no more: hours old, whatever the retention of messages is."""
    async with database.transaction() as tx:
        return await history.purge(tx, current.timestamp())


async def _delete(tx: Transaction, ids: Sequence[str], tables: Sequence[sa.Table], column: str) -> None:
    if ids:
        for table in tables:
            await tx.execute(_deleting(tx.dialect, table, column), _IDS.given(tx.dialect, id=sorted(ids)))


_IDS = Rows("ids", id=Id)


@cache
def _deleting(dialect: Dialect, table: sa.Table, column: str) -> sa.Delete:
    return sa.delete(table).where(_IDS.among(dialect, table.c[column]))
