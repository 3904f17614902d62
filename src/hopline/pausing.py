"""Pauses by an operator: a queue that no worker takes anything from until somebody resumes it.

A pause is a row, so it outlives every process. Each worker reads the rows when it starts, before it consumes, and
with each heartbeat; what it has in memory and has not begun is deferred, what runs is finished. It is not what a
handler does that finds its dependency down (worker/pauses.py): that one ends by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.auditlog import REASON_CHARACTERS, WHO_CHARACTERS, Action, Entry, append, check_who, queue_target
from hopline.database import Database, Transaction, now, retried
from hopline.errors import UsageError
from hopline.rows import insert
from hopline.schema import pauses, storable


class Pause(msgspec.Struct, frozen=True):
    """A queue that is paused, by whom, why and since when."""

    queue: str
    who: str
    reason: str
    since: datetime


async def read(connection: AsyncConnection) -> list[Pause]:
    """All pauses, by queue."""
    rows = await connection.execute(sa.select(pauses).order_by(pauses.c.queue))
    return [Pause(**row) for row in rows.mappings()]


async def pause(database: Database, queue: str, *, who: str, reason: str) -> bool:
    """Pauses a queue, for a reason; False if it was paused already, and then stays as it is."""
    if not reason.strip():
        raise UsageError("say why: whoever finds the queue paused has to know when to resume it")

    async def work(tx: Transaction) -> bool:
        row = {
            "queue": queue,
            "who": storable(who.strip()[:WHO_CHARACTERS]),
            "reason": storable(reason[:REASON_CHARACTERS]),
        }
        statement = insert(tx.dialect, pauses).values(**row, since=now()).on_conflict_do_nothing()
        return bool(await tx.rows(statement.returning(pauses.c.queue)))

    return await _acting(database, "pause", queue, who, reason, work)


async def resume(database: Database, queue: str, *, who: str, reason: str = "") -> bool:
    """Ends the pause of a queue; False if there was none."""

    async def work(tx: Transaction) -> bool:
        gone = sa.delete(pauses).where(pauses.c.queue == queue).returning(pauses.c.queue)
        return bool(await tx.rows(gone))

    return await _acting(database, "resume", queue, who, reason, work)


async def _acting(
    database: Database,
    action: Action,
    queue: str,
    who: str,
    reason: str,
    work: Callable[[Transaction], Awaitable[bool]],
) -> bool:
    """Writes the act down in its own transaction, if it changed something."""
    check_who(who)

    async def once() -> bool:
        async with database.transaction() as tx:
            changed = await work(tx)
            if changed:
                await append(tx, [Entry(who, action, queue_target(queue), None, None, reason)])
            return changed

    return await retried(once)
