"""What was in a queue that is gone is scheduled again: nothing that was confirmed is lost with it.

The event is what triggers it (a queue is found missing, or was made anew), never a message's age: it is written
down (`hopline_queue_losses`) before the queue is declared anew. Then each send that was routed to the queue
before that moment, and of which neither a result nor another send is known, is sent to it again. Some of them
may not have been in it any more (a worker held them): the inbox absorbs those.

A queue that somebody else deletes and makes anew at once is never missing. Then the proof is that sends are under way
which nobody has (`nobody_holds`): the queue is empty, and no living worker holds or was given anything meanwhile.

Confirms from before the event may be marked, or their leases end, some time after it; so a loss stays open, and
is looked at again, for twice the lease.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog

from hopline.clock import new_id
from hopline.database import Database, Transaction, now, retried
from hopline.outbox import again
from hopline.schema import attempts, dead_letters, endpoints, inbox, messages, outbox, queue_losses
from hopline.topology import base_queue, dead_queue

CHUNK_SENDS = 500
GONE_SECONDS = 120.0
"""RabbitMQ has closed the connection of a process that has said nothing for so long, and has its messages again."""
STATE_LAG_SECONDS = 1.0
"""What a heartbeat tells was true at most so long before it, and for how long the loop was blocked."""
SAME_EVENT_SECONDS = 5.0
"""Several links find the same queue missing within moments of each other."""

log = structlog.get_logger("hopline.recovery")


Sent = tuple[str, int, int]
"""(message id, run, attempt) of a send that was routed to a queue that is gone."""


async def found_missing(database: Database, queues: Sequence[str], found_by: str) -> None:
    """Writes down that queues are missing, as far as they were known to exist. DatabaseError if it cannot.

    A queue that is registered and was never declared is not lost: that it is declared now is written down.
    """
    async with database.transaction() as tx:
        for queue in sorted({base_queue(queue) for queue in queues}):
            await _found_missing(tx, queue, found_by)


async def _found_missing(tx: Transaction, queue: str, found_by: str) -> None:
    recently = (endpoints.c.declared_at > now(-SAME_EVENT_SECONDS)).label("recently")
    known = sa.select(endpoints.c.declared_at, recently).where(endpoints.c.queue == queue)
    rows = [row for row in await tx.rows(known.with_for_update()) if row.declared_at is not None]
    if not rows:
        await _mark_declared(tx, [queue])
    elif not all(row.recently for row in rows) or await _was_sent_to(tx, queue):
        await note_loss(tx, queue, found_by, now())
    else:
        log.debug("several links declare a queue for the first time", queue=queue)


async def _was_sent_to(tx: Transaction, queue: str) -> bool:
    """Whether anything was, or may have been, published to a queue since it was registered."""
    is_in_hand = sa.and_(outbox.c.next_at > now(), outbox.c.due_at <= now())
    was_bound = sa.exists().where(
        messages.c.id == outbox.c.message_id, endpoints.c.queue == queue, endpoints.c.type == messages.c.type,
        sa.or_(endpoints.c.since <= outbox.c.sent_at, is_in_hand),
    )  # fmt: skip
    came = sa.or_(outbox.c.destination == queue, sa.and_(outbox.c.destination == "", was_bound))
    sends = sa.select(outbox.c.id).where(came, sa.or_(outbox.c.sent_at.is_not(None), is_in_hand))
    return bool(await tx.rows(sends.limit(1)))


async def note_declared(database: Database, queues: Sequence[str]) -> None:
    """Remembers that queues exist, as far as that was not known: if one is missing later, it was lost."""
    unknown = sa.select(endpoints.c.queue).where(endpoints.c.queue.in_(queues), endpoints.c.declared_at.is_(None))
    async with database.reading() as connection:
        if (await connection.execute(unknown.limit(1))).first() is None:
            return
    async with database.transaction() as tx:
        await _mark_declared(tx, queues)


async def _mark_declared(tx: Transaction, queues: Sequence[str]) -> None:
    unmarked = sa.and_(endpoints.c.queue.in_(queues), endpoints.c.declared_at.is_(None))
    await tx.execute(sa.update(endpoints).where(unmarked).values(declared_at=now()))


async def note_loss(tx: Transaction, queue: str, found_by: str, lost_at: sa.ColumnElement[Any]) -> None:
    """Writes down that what was sent to a queue before a time is lost. A loss that is open moves forward to that time.

    So what was sent after the first of two losses is covered too, and no message is recovered by two rows.
    """
    open_loss = sa.and_(queue_losses.c.queue == queue, queue_losses.c.recovered_at.is_(None))
    before = await tx.rows(sa.select(queue_losses.c.lost_at).where(open_loss).with_for_update())
    if before:
        await tx.execute(
            sa.update(queue_losses).where(open_loss, queue_losses.c.lost_at < lost_at).values(lost_at=lost_at)
        )
        log.warning("a lost queue is lost again; what was in it is sent again", queue=queue)
        return
    row = {"id": new_id(), "queue": queue, "found_by": found_by, "rescheduled": 0}
    await tx.execute(sa.insert(queue_losses).values(**row, lost_at=lost_at))
    log.error("queue lost; what was in it is sent again", queue=queue)


@dataclass(frozen=True, slots=True)
class Holding:
    """What one living worker says it has of a queue and of its dead letters."""

    taken_at: datetime
    """What it says was true then or later, by the database's clock."""
    delivered: int
    """Deliveries since it started."""
    unsettled: int
    consumers: int
    """Its consumers of the queue itself, without the dead letters."""


Holdings = Mapping[str, Holding]
"""What each living worker of a queue has, by instance."""


def holdings_of(rows: Iterable[Any], queue: str, at: datetime, alive_seconds: float) -> Holdings | None:
    """What the workers of a queue say in `hopline_workers`; None if one does not say, or may be frozen. Pure."""
    found: dict[str, Holding] = {}
    for row in rows:
        age = (at - row.heartbeat_at).total_seconds()
        parts = _parts(row.state, queue)
        if parts is None or age > GONE_SECONDS:
            continue
        if not parts or age >= alive_seconds:
            return None
        found[row.instance] = Holding(
            row.heartbeat_at - timedelta(seconds=_lag_seconds(row.state)),
            delivered=sum(_number(part.get("delivered")) for part in parts.values()),
            unsettled=sum(_number(part.get("unsettled")) for part in parts.values()),
            consumers=int(parts[queue].get("consuming") is True),
        )
    return found


def _parts(state: object, queue: str) -> Mapping[str, Mapping[str, Any]] | None:
    """What a process holds of the queue and its dead letters: None if it is no worker of it, empty if unclear."""
    if not isinstance(state, Mapping):
        return None
    queues, links = state.get("queues"), state.get("links")
    if not isinstance(queues, list) or queue not in queues:
        return None
    link = links.get("consume") if isinstance(links, Mapping) else None
    holding = link.get("holding") if isinstance(link, Mapping) else None
    if not isinstance(holding, Mapping) or queue not in holding:
        return {}
    parts = {name: holding[name] for name in (queue, dead_queue(queue)) if name in holding}
    return parts if all(isinstance(part, Mapping) for part in parts.values()) else {}


def _lag_seconds(state: Mapping[str, Any]) -> float:
    return STATE_LAG_SECONDS + min(max(0, _number(state.get("loop_lag_seconds"))), GONE_SECONDS)


def _number(value: object) -> int:
    return math.ceil(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def nobody_holds(before: Holdings, after: Holdings) -> bool:
    """Whether nothing that was sent before two empty readings of a queue can be with a worker. Pure.

    `before` was said before the first reading, `after` after the second one. Whoever had a message at a reading either
    has it in `before`, or was given it since. The second reading is for one whose channel has closed: the worker does
    not have it any more, and RabbitMQ gives it to somebody else a moment later.
    """
    if not before or before.keys() != after.keys():
        return False
    return all(
        not before[name].unsettled and not after[name].unsettled and before[name].delivered == after[name].delivered
        for name in before
    )


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
    query = lost_sends(loss.queue, loss.lost_at).limit(CHUNK_SENDS)
    return [(row.message_id, row.run, row.attempt) for row in await tx.rows(query)]


def lost_sends(
    queue: str, lost_at: datetime, *, types: Collection[str] | None = None, among: sa.Select[Any] | None = None
) -> sa.Select[Any]:
    """SQL: (message id, run, attempt) of sends to the queue from before a time that nobody answers for.

    A queue is bound to a type, whatever the version: so a result of any endpoint of the queue counts. What was sent to
    the very queue was in it whatever its type, such as a deferred message of a type that only a later release knows.
    `types` are those that the queue is bound to, if not all that it ever was; `among` are the ids of sends to look at.
    """
    sent, since = outbox.alias("sent"), outbox.alias("since")
    of_queue = endpoints.c.queue == queue
    was_bound = sa.exists().where(
        messages.c.id == sent.c.message_id,
        of_queue,
        endpoints.c.type == messages.c.type,
        endpoints.c.since <= sent.c.sent_at,
        *([] if types is None else [messages.c.type.in_(sorted(types))]),
    )
    came = sa.or_(sent.c.destination == queue, sa.and_(sent.c.destination == "", was_bound))
    names = sa.select(endpoints.c.endpoint).where(of_queue)
    same = sa.and_(since.c.run == sent.c.run, since.c.attempt == sent.c.attempt)
    later = sa.or_(since.c.run > sent.c.run, sa.and_(since.c.run == sent.c.run, since.c.attempt > sent.c.attempt))
    is_cancelled = sa.and_(since.c.next_at.is_(None), since.c.sent_at.is_(None), since.c.id > sent.c.id)
    result = sa.or_(
        sa.exists().where(inbox.c.message_id == sent.c.message_id, inbox.c.endpoint.in_(names)),
        sa.exists().where(
            attempts.c.message_id == sent.c.message_id,
            attempts.c.endpoint.in_(names),
            attempts.c.run == sent.c.run,
            attempts.c.attempt == sent.c.attempt,
        ),
        sa.exists().where(
            dead_letters.c.message_id == sent.c.message_id,
            dead_letters.c.queue == queue,
            dead_letters.c.run == sent.c.run,
        ),
        sa.exists().where(
            since.c.message_id == sent.c.message_id,
            since.c.destination.in_(["", queue]),
            sa.or_(
                later,
                sa.and_(same, sa.or_(since.c.next_at.is_not(None), since.c.sent_at >= lost_at, is_cancelled)),
            ),
        ),
    )
    return (
        sa.select(sent.c.message_id, sent.c.run, sent.c.attempt)
        .distinct()
        .where(came, sent.c.sent_at < lost_at, ~result, *([] if among is None else [sent.c.id.in_(among)]))
    )
