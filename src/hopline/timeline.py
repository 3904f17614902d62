"""One business key's whole story, in time order: every send, confirm, delivery, attempt, dead letter and repair.

It is read from the engine's tables only, in one snapshot, so it says what happened and not what should have.
A flow is all messages with the key, and whatever was caused by them. Times: a message's creation and an
attempt's times are the process's clock, everything else is the database's. Who repaired is the audit log's word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.auditlog import letter_target, send_target
from hopline.clock import id_time
from hopline.database import Database, as_table, table_rows
from hopline.schema import attempts, audit_log, dead_letters, inbox, messages, outbox

ORIGIN_HEADER = "origin"
FLOW_MESSAGES = 1_000


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened."""

    at: datetime
    what: str
    """request, message, outbox, confirm, attempt, done, dead-letter or repair."""
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
        for table, to_steps in ((attempts, _tried), (inbox, _done)):
            query = sa.select(table).where(table.c.message_id.in_(ids))
            for row in (await connection.execute(query)).fetchall():
                steps += to_steps(row, types[row.message_id])
        of_ids = sa.select(outbox).where(outbox.c.message_id.in_(ids))
        sends = (await connection.execute(of_ids)).fetchall()
        of_key = sa.or_(dead_letters.c.message_id.in_(ids), dead_letters.c.key == key)
        letters = (await connection.execute(sa.select(dead_letters).where(of_key).limit(FLOW_MESSAGES))).fetchall()
        acts = await _acts(connection, [send_target(s.id) for s in sends] + [letter_target(d.id) for d in letters])
    for row in sends:
        steps += _sent(row, types[row.message_id], acts.get(send_target(row.id), []))
    for row in letters:
        steps += _died(row, acts.get(letter_target(row.id), []))
    return sorted(steps, key=_place)


_CAUSES_FIRST = ("request", "message", "attempt", "dead-letter", "repair", "outbox", "confirm", "done")


def _place(step: Step) -> tuple[datetime, int]:
    """By time to the millisecond, which is what an id and SQLite know; within one, causes come first."""
    return step.at.replace(microsecond=step.at.microsecond // 1000 * 1000), _CAUSES_FIRST.index(step.what)


async def _acts(connection: AsyncConnection, targets: Sequence[str]) -> Mapping[str, list[sa.Row[Any]]]:
    """What operators did to the given targets, oldest first."""
    given = as_table(connection.dialect.name, {"target": sa.String()})
    query = sa.select(audit_log).where(audit_log.c.target == given.c.target).order_by(audit_log.c.id)
    acts: dict[str, list[sa.Row[Any]]] = {}
    for row in await connection.execute(query, table_rows([{"target": target} for target in targets])):
        acts.setdefault(row.target, []).append(row)
    return acts


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


def _sent(row: sa.Row[Any], type_name: str, acts: Sequence[sa.Row[Any]]) -> Iterator[Step]:
    to = f"to the queue {row.destination}" if row.destination else "to all queues bound to it"
    which = f", run {row.run} attempt {row.attempt}" if row.run or row.attempt else ""
    failures = f", {row.sends} failed sends" if row.sends else ""
    stored_at = id_time(row.id)
    if row.next_at is not None:
        due = f", due {row.next_at:%H:%M:%S}"
        yield Step(stored_at, "outbox", row.message_id, type_name, f"waits {to}{which}{failures}{due}")
    else:
        never = "" if row.sent_at or acts else ", never sent"
        yield Step(stored_at, "outbox", row.message_id, type_name, f"stored {to}{which}{failures}{never}")
    if row.sent_at is not None:
        yield Step(row.sent_at, "confirm", row.message_id, type_name, f"confirmed by RabbitMQ{which}")
    for act in acts:
        what = "cancelled" if act.action == "cancel" else "made due now"
        yield Step(act.at, "repair", row.message_id, type_name, f"the send {to}{which} was {what}{_by(act)}")


def _by(act: sa.Row[Any]) -> str:
    return f", by {act.who}" + (f": {act.reason}" if act.reason else "")


def _tried(row: sa.Row[Any], type_name: str) -> list[Step]:
    seconds = (row.finished_at - row.started_at).total_seconds()
    text = f"{row.endpoint}: attempt {row.attempt} failed, {row.outcome}: {row.error}"
    return [Step(row.finished_at, "attempt", row.message_id, type_name, text, row.worker, seconds)]


def _done(row: sa.Row[Any], type_name: str) -> list[Step]:
    seconds = (row.done_at - row.started_at).total_seconds()
    text = f"{row.endpoint}: attempt {row.attempt} done" + (f": {row.note}" if row.note else "")
    return [Step(row.done_at, "done", row.message_id, type_name, text, row.worker, seconds)]


def _died(row: sa.Row[Any], acts: Sequence[sa.Row[Any]]) -> Iterator[Step]:
    text = f"parked from {row.queue or 'the outbox'}, {row.reason}: {row.error}"
    yield Step(row.dead_at, "dead-letter", row.message_id or "", row.type, text)
    if row.resolution:
        new = f" as the new message {row.replaced_by}" if row.replaced_by else ""
        by = _by(acts[-1]) if acts else ""
        yield Step(row.resolved_at, "repair", row.message_id or "", row.type, f"{row.resolution}{new}{by}")
