"""One business key's whole story, in time order: every send, confirm, delivery, attempt and dead letter.

It is read from the engine's tables only, in one snapshot, so it says what happened and not what should have.
A flow is all messages with the key, and whatever was caused by them. Times: a message's creation and an
attempt's times are the process's clock, everything else is the database's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.clock import id_time
from hopline.database import Database
from hopline.schema import attempts, dead_letters, inbox, messages, outbox

ORIGIN_HEADER = "origin"
FLOW_MESSAGES = 1_000


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened."""

    at: datetime
    what: str
    """request, message, outbox, confirm, cancelled, attempt, done or dead-letter."""
    message_id: str
    type: str
    text: str
    worker: str = ""
    seconds: float | None = None
    """How long it took, where that is known."""


async def timeline(database: Database, key: str) -> list[Step]:
    """The steps of all messages of a business key, oldest first; empty if nothing is known of it."""
    async with database.reading() as connection:
        found = await _flow(connection, key)
        ids = [row.id for row in found]
        types = {row.id: row.type for row in found}
        steps = [step for row in found for step in _made(row)]
        for table, to_steps in ((outbox, _sent), (attempts, _tried), (inbox, _done), (dead_letters, _died)):
            query = sa.select(table).where(table.c.message_id.in_(ids))
            for row in (await connection.execute(query)).fetchall():
                steps += to_steps(row, types[row.message_id])
    return sorted(steps, key=_place)


_CAUSES_FIRST = ("request", "message", "attempt", "outbox", "confirm", "done", "dead-letter", "cancelled")


def _place(step: Step) -> tuple[datetime, int]:
    """By time to the millisecond, which is what an id and SQLite know; within one, causes come first."""
    return step.at.replace(microsecond=step.at.microsecond // 1000 * 1000), _CAUSES_FIRST.index(step.what)


async def _flow(connection: AsyncConnection, key: str) -> Sequence[sa.Row[Any]]:
    flows = sa.select(messages.c.correlation_id).where(messages.c.key == key)
    query = (
        sa.select(messages)
        .where(sa.or_(messages.c.key == key, messages.c.correlation_id.in_(flows)))
        .order_by(messages.c.id)
        .limit(FLOW_MESSAGES)
    )
    return (await connection.execute(query)).fetchall()


def _made(row: sa.Row[Any]) -> list[Step]:
    cause = f", caused by {row.cause_id}" if row.cause_id else ""
    steps = [
        Step(id_time(row.id), "message", row.id, row.type, f"{row.type} v{row.version}, {len(row.body)} bytes{cause}")
    ]
    if origin := row.headers.get(ORIGIN_HEADER):
        steps.insert(0, Step(id_time(row.id), "request", row.id, row.type, origin))
    return steps


def _sent(row: sa.Row[Any], type_name: str) -> list[Step]:
    to = f"to the queue {row.destination}" if row.destination else "to all queues bound to it"
    which = f", run {row.run} attempt {row.attempt}" if row.run or row.attempt else ""
    failures = f", {row.sends} failed sends" if row.sends else ""
    steps = [Step(id_time(row.id), "outbox", row.message_id, type_name, f"stored {to}{which}{failures}")]
    if row.sent_at is not None:
        steps.append(Step(row.sent_at, "confirm", row.message_id, type_name, f"confirmed by RabbitMQ{which}"))
    elif row.next_at is not None:
        steps[0] = Step(
            id_time(row.id),
            "outbox",
            row.message_id,
            type_name,
            f"waits {to}{which}{failures}, due {row.next_at:%H:%M:%S}",
        )
    else:
        steps.append(Step(id_time(row.id), "cancelled", row.message_id, type_name, f"not sent{which}"))
    return steps


def _tried(row: sa.Row[Any], type_name: str) -> list[Step]:
    seconds = (row.finished_at - row.started_at).total_seconds()
    text = f"{row.endpoint}: attempt {row.attempt} failed, {row.outcome}: {row.error}"
    return [Step(row.finished_at, "attempt", row.message_id, type_name, text, row.worker, seconds)]


def _done(row: sa.Row[Any], type_name: str) -> list[Step]:
    seconds = (row.done_at - row.started_at).total_seconds()
    text = f"{row.endpoint}: attempt {row.attempt} done" + (f": {row.note}" if row.note else "")
    return [Step(row.done_at, "done", row.message_id, type_name, text, row.worker, seconds)]


def _died(row: sa.Row[Any], type_name: str) -> list[Step]:
    text = f"parked from {row.queue or 'the outbox'}, {row.reason}: {row.error}"
    if row.resolution:
        text += f" ({row.resolution} at {row.resolved_at:%Y-%m-%d %H:%M:%S})"
    return [Step(row.dead_at, "dead-letter", row.message_id, type_name, text)]
