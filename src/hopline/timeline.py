"""One flow's whole story, in time order: every send, confirm, delivery, attempt, dead letter and repair.

It is read from the engine's tables only, in one snapshot, so it says what happened and not what should have.
A flow is all messages with a business key, and whatever was caused by them; any of its correlation and message ids
names it too. Times: a message's creation and an
attempt's times are the process's clock, everything else is the database's. Who repaired is the audit log's word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.auditlog import letter_target, send_target
from hopline.clock import id_time
from hopline.database import Database
from hopline.rows import Dialect, Rows
from hopline.schema import attempts, audit_log, dead_letters, inbox, is_id, messages, outbox, storable

ORIGIN_HEADER = "origin"
FLOW_MESSAGES = 1_000
"""The most messages of one flow."""
FLOW_ROWS = 10_000
"""The most sends, attempts and results of it."""


Tone = Literal["ok", "busy", "warn", "bad", "idle"]


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
    start: datetime | None = None
    """When it began, if it took a while: a send from its storing to its confirm, a run of a handler."""
    end: datetime | None = None
    """When it ended; None with a start: it goes on."""
    endpoint: str = ""
    run: int | None = None
    attempt: int | None = None
    tone: Tone = "idle"
    error: str = ""
    id: str = ""
    """Of the send or the dead letter that it is about."""
    key: str = ""


async def timeline(database: Database, flow: str) -> list[Step]:
    """The steps of a flow, oldest first, by a business key or any id in it; empty if nothing is known of it."""
    async with database.reading() as connection:
        found = await _flow(connection, flow)
        of = {row.id: row for row in found}
        ids = list(of)
        sends = await _rows(connection, outbox.c.message_id, ids)
        letters = await _letters(connection, flow, ids)
        steps = [step for row in found for step in _made(row)]
        steps += [step for row in await _rows(connection, attempts.c.message_id, ids) for step in _tried(row, of)]
        steps += [step for row in await _rows(connection, inbox.c.message_id, ids) for step in _done(row, of)]
        acts = await _acts(connection, [send_target(s.id) for s in sends] + [letter_target(d.id) for d in letters])
    for row in sends:
        steps += _sent(row, of[row.message_id], acts.get(send_target(row.id), []))
    for row in letters:
        steps += _died(row, acts.get(letter_target(row.id), []))
    return sorted(steps, key=_place)


async def _rows(connection: AsyncConnection, column: sa.Column[Any], ids: Sequence[str]) -> Sequence[sa.Row[Any]]:
    query = sa.select(column.table).where(column.in_(ids)).limit(FLOW_ROWS)
    return (await connection.execute(query)).fetchall()


async def _letters(connection: AsyncConnection, key: str, ids: Sequence[str]) -> Sequence[sa.Row[Any]]:
    """Those of the flow's messages, and strangers' with the key."""
    by_key = await _small(connection, dead_letters.c.key == storable(key))
    by_id = await _small(connection, dead_letters.c.message_id.in_(ids)) if ids else ()
    return list({row.id: row for row in (*by_key, *by_id)}.values())


async def _small(connection: AsyncConnection, condition: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
    """Letters without their large parts."""
    large = {"body", "properties", "stack"}
    columns = [column for column in dead_letters.columns if column.name not in large]
    return (await connection.execute(sa.select(*columns).where(condition).limit(FLOW_MESSAGES))).fetchall()


_CAUSES_FIRST = ("request", "message", "attempt", "dead-letter", "repair", "outbox", "confirm", "done")


def _place(step: Step) -> tuple[datetime, int]:
    """By time to the millisecond, which is what an id and SQLite know; within one, causes come first."""
    return step.at.replace(microsecond=step.at.microsecond // 1000 * 1000), _CAUSES_FIRST.index(step.what)


_TARGETS = Rows("targets", target=sa.Text())


async def _acts(connection: AsyncConnection, targets: Sequence[str]) -> Mapping[str, list[sa.Row[Any]]]:
    """What operators did to the given targets, oldest first."""
    dialect: Dialect = "sqlite" if connection.dialect.name == "sqlite" else "postgresql"
    query = sa.select(audit_log).where(_TARGETS.among(dialect, audit_log.c.target, "target")).order_by(audit_log.c.id)
    acts: dict[str, list[sa.Row[Any]]] = {}
    for row in await connection.execute(query, _TARGETS.given(dialect, target=targets)):
        acts.setdefault(row.target, []).append(row)
    return acts


async def _flow(connection: AsyncConnection, flow: str) -> Sequence[sa.Row[Any]]:
    """Each step looks up by one index: a condition with OR would have the tables read whole."""
    flows = await _correlations(connection, messages.c.key == storable(flow))
    if is_id(flow):
        flows |= await _correlations(connection, messages.c.id == flow)
        flows |= await _correlations(connection, messages.c.correlation_id == flow)
    by_flow = sa.select(messages).where(messages.c.correlation_id.in_(sorted(flows)))
    query = by_flow.order_by(messages.c.id).limit(FLOW_MESSAGES)
    return (await connection.execute(query)).fetchall() if flows else ()


async def _correlations(connection: AsyncConnection, condition: sa.ColumnElement[bool]) -> set[str]:
    query = sa.select(messages.c.correlation_id).where(condition).limit(FLOW_MESSAGES)
    return set((await connection.execute(query)).scalars())


def _made(row: sa.Row[Any]) -> Iterator[Step]:
    made_at = id_time(row.id)
    if origin := row.headers.get(ORIGIN_HEADER):
        yield Step(made_at, "request", row.id, row.type, origin, tone="ok", key=row.key)
    cause = f", caused by {row.cause_id}" if row.cause_id else ""
    text = f"{row.type} v{row.version}, {len(row.body)} bytes{cause}"
    yield Step(made_at, "message", row.id, row.type, text, key=row.key)


def _sent(row: sa.Row[Any], of: sa.Row[Any], acts: Sequence[sa.Row[Any]]) -> Iterator[Step]:
    to = f"to the queue {row.destination}" if row.destination else "to all queues bound to it"
    which = f", run {row.run} attempt {row.attempt}" if row.run or row.attempt else ""
    failures = f", returned {row.sends} times" if row.sends else ""
    stored_at = id_time(row.id)

    def step(at: datetime, what: str, text: str, tone: Tone, **more: Any) -> Step:
        mine = {"run": row.run, "attempt": row.attempt, "id": row.id, "key": of.key}
        return Step(at, what, of.id, of.type, text, tone=tone, **mine, **more)

    if row.next_at is not None:
        due = f", due {row.next_at:%H:%M:%S}"
        tone: Tone = "warn" if row.sends else "busy"
        yield step(stored_at, "outbox", f"waits {to}{which}{failures}{due}", tone, start=stored_at)
    else:
        never = "" if row.sent_at or acts else ", never sent"
        text = f"stored {to}{which}{failures}{never}"
        yield step(stored_at, "outbox", text, "bad" if never else "idle", start=stored_at, end=row.sent_at or stored_at)
    if row.sent_at is not None:
        seconds = max(0.0, (row.sent_at - stored_at).total_seconds())
        yield step(row.sent_at, "confirm", f"confirmed by RabbitMQ{which}", "ok", seconds=seconds)
    for act in acts:
        what = "cancelled" if act.action == "cancel" else "made due now"
        yield step(act.at, "repair", f"the send {to}{which} was {what}{_by(act)}", "idle")


def _by(act: sa.Row[Any]) -> str:
    return f", by {act.who}" + (f": {act.reason}" if act.reason else "")


def _tried(row: sa.Row[Any], of: Mapping[str, sa.Row[Any]]) -> Iterator[Step]:
    text = f"{row.endpoint}: attempt {row.attempt} failed, {row.outcome}: {row.error}"
    yield _ran(row, of, "attempt", text, row.finished_at, "bad" if row.outcome == "dead" else "warn", row.error)


def _done(row: sa.Row[Any], of: Mapping[str, sa.Row[Any]]) -> Iterator[Step]:
    text = f"{row.endpoint}: attempt {row.attempt} done" + (f": {row.note}" if row.note else "")
    yield _ran(row, of, "done", text, row.done_at, "ok", "")


def _ran(
    row: sa.Row[Any], of: Mapping[str, sa.Row[Any]], what: str, text: str, ended_at: datetime, tone: Tone, error: str
) -> Step:
    message = of[row.message_id]
    return Step(
        ended_at,
        what,
        message.id,
        message.type,
        text,
        row.worker,
        (ended_at - row.started_at).total_seconds(),
        start=row.started_at,
        end=ended_at,
        endpoint=row.endpoint,
        run=row.run,
        attempt=row.attempt,
        tone=tone,
        error=error,
        key=message.key,
    )


_ACTS = {
    "replay": "replayed",
    "replay-as-new": "replayed",
    "edit": "edited",
    "discard": "discarded",
    "undo": "parked again",
}


def _died(row: sa.Row[Any], acts: Sequence[sa.Row[Any]]) -> Iterator[Step]:
    def step(at: datetime, what: str, text: str, tone: Tone, error: str = "") -> Step:
        mine = {"endpoint": row.endpoint or "", "run": row.run, "attempt": row.attempt}
        return Step(
            at, what, row.message_id or "", row.type, text, tone=tone, error=error, id=row.id, key=row.key or "", **mine
        )

    text = f"parked from {row.queue or 'the outbox'}, {row.reason}: {row.error}"
    yield step(row.dead_at, "dead-letter", text, "idle" if row.resolution else "bad", row.error)
    told = [act for act in acts if act.action in _ACTS]
    for act in told:
        new = f" as the new message {row.replaced_by}" if row.replaced_by and act is told[-1] else ""
        yield step(act.at, "repair", f"{_ACTS[act.action]}{new}{_by(act)}", "idle")
    if row.resolution and not told:
        yield step(row.resolved_at, "repair", row.resolution, "idle")
