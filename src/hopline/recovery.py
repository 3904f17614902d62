"""What was in a queue that is gone is scheduled again: nothing that was confirmed is lost with it.

The event is what triggers it (a queue is found missing, or was made anew), never a message's age: it is written
down (`hopline_queue_losses`) before the queue is declared anew. Then each send that was routed to the queue
before that moment, and of which neither a result nor another send is known, is sent to it again. Some of them
may not have been in it any more (a worker held them): the inbox absorbs those.

Confirms from before the event may be marked, or their leases end, some time after it; so a loss stays open, and
is looked at again, for twice the lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
import structlog

from hopline.clock import new_id
from hopline.database import Database, Transaction, now, retried
from hopline.outbox import again
from hopline.schema import attempts, dead_letters, endpoints, inbox, messages, outbox, queue_losses
from hopline.topology import base_queue

CHUNK_SENDS = 500
SAME_EVENT_SECONDS = 5.0
"""Several links find the same queue missing within moments of each other."""

log = structlog.get_logger("hopline.recovery")


Sent = tuple[str, int, int]
"""(message id, run, attempt) of a send that was routed to a queue that is gone."""


async def found_missing(database: Database, queues: Sequence[str], found_by: str) -> None:
    """Writes down that queues are missing, as far as they were known to exist. DatabaseError if it cannot."""
    names = {base_queue(queue) for queue in queues}
    async with database.transaction() as tx:
        known = {row.queue for row in await tx.rows(sa.select(endpoints.c.queue).distinct())}
        recent = sa.select(queue_losses.c.queue).where(queue_losses.c.lost_at > now(-SAME_EVENT_SECONDS))
        noted = {row.queue for row in await tx.rows(recent)}
        for queue in sorted(names & known - noted):
            row = {"id": new_id(), "queue": queue, "found_by": found_by, "rescheduled": 0}
            await tx.execute(sa.insert(queue_losses).values(**row, lost_at=now()))
            log.error("queue lost; what was in it is sent again", queue=queue)


async def recover(database: Database, *, lease_seconds: float) -> bool:
    """Schedules a chunk of what was lost again; True if there may be more to do now."""
    open_losses = sa.select(queue_losses).where(queue_losses.c.recovered_at.is_(None)).order_by(queue_losses.c.id)
    async with database.reading() as connection:
        if (await connection.execute(open_losses.limit(1))).first() is None:
            return False
    return await retried(lambda: _recover(database, open_losses, lease_seconds))


async def _recover(database: Database, open_losses: sa.Select[Any], lease_seconds: float) -> bool:
    more = False
    async with database.transaction() as tx:
        over = (queue_losses.c.lost_at < now(-2 * lease_seconds)).label("over")
        for loss in await tx.rows(open_losses.add_columns(over).with_for_update(skip_locked=True)):
            lost = await _lost(tx, loss)
            if lost:
                await again(tx, loss.queue, lost)
                log.warning("lost messages scheduled again", queue=loss.queue, messages=len(lost))
            more |= len(lost) == CHUNK_SENDS
            values: dict[str, object] = {"rescheduled": queue_losses.c.rescheduled + len(lost)}
            if loss.over and not lost:
                values["recovered_at"] = now()
            if lost or loss.over:
                await tx.execute(sa.update(queue_losses).where(queue_losses.c.id == loss.id).values(**values))
    return more


async def _lost(tx: Transaction, loss: sa.Row[Any]) -> list[Sent]:
    """Sends to the queue from before its loss, without a result and without another send since."""
    sent, since = outbox.alias("sent"), outbox.alias("since")
    bound = sa.select(endpoints).where(endpoints.c.queue == loss.queue).subquery()
    result = sa.or_(
        sa.exists().where(inbox.c.message_id == sent.c.message_id, inbox.c.endpoint == bound.c.endpoint),
        sa.exists().where(
            attempts.c.message_id == sent.c.message_id,
            attempts.c.endpoint == bound.c.endpoint,
            attempts.c.run == sent.c.run,
            attempts.c.attempt == sent.c.attempt,
        ),
        sa.exists().where(
            dead_letters.c.message_id == sent.c.message_id,
            dead_letters.c.queue == loss.queue,
            dead_letters.c.run == sent.c.run,
        ),
        sa.exists().where(
            since.c.message_id == sent.c.message_id,
            since.c.run == sent.c.run,
            since.c.attempt == sent.c.attempt,
            since.c.destination.in_(["", loss.queue]),
            sa.or_(since.c.next_at.is_not(None), since.c.sent_at >= loss.lost_at),
        ),
    )
    query = (
        sa.select(sent.c.message_id, sent.c.run, sent.c.attempt)
        .distinct()
        .select_from(
            sent.join(messages, messages.c.id == sent.c.message_id).join(bound, bound.c.type == messages.c.type)
        )
        .where(
            sent.c.destination.in_(["", loss.queue]),
            sent.c.sent_at >= bound.c.since,
            sent.c.sent_at < loss.lost_at,
            ~result,
        )
        .limit(CHUNK_SENDS)
    )
    return [(row.message_id, row.run, row.attempt) for row in await tx.rows(query)]
