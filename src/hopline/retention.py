"""Retention: what is finished and older than the inbox remembers is deleted, in small batches.

One age for everything that a message has left behind: its sends, attempts, results, resolved dead letters, and
itself. It is the message's age, which its id tells, so a batch is one walk along the primary key. What is still
on its way or parked stays, however old. The history of rates is kept for a day; the audit log is never purged.

Invariant: nothing is deleted by an earlier look. A batch first locks its messages. Then each DELETE repeats the whole
condition, and the messages themselves go last. Whoever stores something for a known message holds it (holding.py): so
it has committed before the lock and is seen, or it waits until the batch is over and finds the message gone. An inbox
row is stored without holding its message: the margin keeps workers and the purge apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from hopline import history
from hopline.clock import first_id
from hopline.database import Database, now, retried
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
MARGIN = timedelta(days=1)
"""As much older than the retention must be what is deleted. A worker refuses a message that is older than the retention
when it arrives; a younger one may then wait in the worker, and its inbox row must still be there when it runs. RabbitMQ
takes back what a worker has not acknowledged after its consumer timeout, which is far below a day."""


class Batch(NamedTuple):
    """What one batch found due, and how much of it was still due when it was deleted."""

    found: int
    gone: int


async def purge(database: Database, retention: timedelta) -> int:
    """Deletes what is finished and older than the retention and MARGIN, by the database's clock; returns how many
    messages that were. DatabaseError ends it, and the next call goes on."""
    async with database.reading() as connection:
        current: datetime = (await connection.execute(sa.select(now()))).scalar_one()
    oldest = current - retention - MARGIN
    purged = await _in_batches(partial(_purge_messages, database, first_id(oldest)))
    await _in_batches(partial(_purge_results, database, first_id(oldest)))
    await _in_batches(partial(_purge_by_time, database, oldest))
    await _in_batches(partial(_purge_history, database, current))
    return purged


async def _in_batches(batch: Callable[[], Awaitable[Batch]]) -> int:
    total = 0
    while (done := await retried(batch)).found:
        total += done.gone
        await asyncio.sleep(PAUSE_SECONDS)
    return total


async def _purge_messages(database: Database, before_id: str) -> Batch:
    """Messages of this database, with all that belongs to them."""
    due = (
        sa.select(messages.c.id)
        .where(messages.c.id < before_id, *_finished(messages.c.id))
        .order_by(messages.c.id)
        .limit(BATCH_MESSAGES)
        .with_for_update(skip_locked=True)
    )
    gone = 0
    async with database.transaction() as tx:
        ids = [row.id for row in await tx.rows(due)]
        if ids:
            given = _IDS.given(tx.dialect, id=ids)
            for table in (outbox, attempts, inbox, suspects, dead_letters):
                await tx.execute(_deleting_finished(tx.dialect, table, table.c.message_id), given)
            gone = (await tx.execute(_deleting_finished(tx.dialect, messages, messages.c.id), given)).rowcount
    return Batch(len(ids), gone)


async def _purge_results(database: Database, before_id: str) -> Batch:
    """Results of messages that are stored in another database, and sends that were given up for want of a message."""
    found = gone = 0
    async with database.transaction() as tx:
        for table in (inbox, attempts, outbox):
            due = sa.select(table.c.message_id).where(table.c.message_id < before_id, _foreign(table))
            ids = [row.message_id for row in await tx.rows(due.order_by(table.c.message_id).limit(BATCH_MESSAGES))]
            found += len(ids)
            if ids:
                given = _IDS.given(tx.dialect, id=sorted(set(ids)))
                gone += (await tx.execute(_deleting_foreign(tx.dialect, table), given)).rowcount
    return Batch(found, gone)


async def _purge_by_time(database: Database, oldest: datetime) -> Batch:
    """Rows that belong to no message: answers to requests, processes that died, lost queues, strangers' letters."""
    found = gone = 0
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
                mine = (key == value for key, value in zip(keys, row, strict=True))
                found += 1
                gone += (await tx.execute(sa.delete(table).where(*mine, column < oldest))).rowcount
    return Batch(found, gone)


async def _purge_history(database: Database, current: datetime) -> Batch:
    """What charts show no more: hours old, whatever the retention of messages is."""
    async with database.transaction() as tx:
        count = await history.purge(tx, current.timestamp())
    return Batch(count, count)


_IDS = Rows("ids", id=Id)


def _finished(message_id: sa.Column[Any]) -> Sequence[sa.ColumnElement[bool]]:
    """Nothing of the message is on its way, and nothing of it is parked."""
    sends, letters = outbox.alias("sends"), dead_letters.alias("letters")
    on_the_way = sa.exists().where(sends.c.message_id == message_id, sends.c.next_at.is_not(None))
    parked = sa.exists().where(letters.c.message_id == message_id, letters.c.resolution.is_(None))
    return ~on_the_way, ~parked


def _foreign(table: sa.Table) -> sa.ColumnElement[bool]:
    """The message of a row is not stored here, and the row itself is not on its way."""
    is_foreign = ~sa.exists().where(messages.c.id == table.c.message_id)
    return sa.and_(is_foreign, outbox.c.next_at.is_(None)) if table is outbox else is_foreign


@cache
def _deleting_finished(dialect: Dialect, table: sa.Table, message_id: sa.Column[Any]) -> sa.Delete:
    """Of the given messages what is still finished.

    The row's own state stands in the condition too: it is what Postgres looks at again after it has waited for a
    transaction that changes the row.
    """
    conditions = [_IDS.among(dialect, message_id), *_finished(message_id)]
    if table is outbox:
        conditions.append(outbox.c.next_at.is_(None))
    if table is dead_letters:
        conditions.append(dead_letters.c.resolution.is_not(None))
    if table is messages:  # a send may have been confirmed since those that were finished were deleted
        conditions += [~sa.exists().where(rest.c.message_id == message_id) for rest in (outbox, dead_letters)]
    return sa.delete(table).where(*conditions)


@cache
def _deleting_foreign(dialect: Dialect, table: sa.Table) -> sa.Delete:
    return sa.delete(table).where(_IDS.among(dialect, table.c.message_id), _foreign(table))
