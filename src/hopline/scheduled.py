"""What is scheduled: sends of the outbox that are due later. Retries, deferrals, delayed messages.

Only a send that is not due yet can be cancelled or hurried: what is due may be on its way to RabbitMQ already.
Each act is one UPDATE with that condition in it, so a relay that claims the same row either comes first, and
the act changes nothing, or finds it changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.database import Transaction, now
from hopline.errors import UsageError
from hopline.rows import Dialect, Rows
from hopline.schema import Id, attempts, check_id, endpoints, messages, outbox, readable, storable

PAGE_SENDS = 1_000
"""The most that one call returns, and the most ids that one filter names."""

Kind = Literal["retry", "deferred", "delayed"]
Place = tuple[datetime, str]
"""Where a page begins: after the send of this `due_at` and id."""


@dataclass(frozen=True, slots=True)
class ScheduledFilter:
    """Which scheduled sends; each field narrows, None is all. UsageError if an id is no UUID."""

    queue: str | None = None
    """The queue that it is to be sent to; empty: to all that are bound."""
    type: str | None = None
    key: str | None = None
    ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for identifier in self.ids or ():
            check_id(identifier)
        if self.ids is not None and len(self.ids) > PAGE_SENDS:
            raise UsageError(f"{len(self.ids)} ids at once; at most {PAGE_SENDS} can be named, use a filter instead")


@dataclass(frozen=True, slots=True)
class ScheduledSend:
    """One send that is due later."""

    id: str
    message_id: str
    type: str
    version: int
    key: str
    destination: str
    run: int
    attempt: int
    kind: Kind
    """retry: an attempt failed; deferred: it was delivered and not run; delayed: it was sent with a delay."""
    due_at: datetime
    error: str
    """Why the attempt before failed; empty if none did."""

    @property
    def place(self) -> Place:
        """For the page that begins after it."""
        return self.due_at, self.id


async def find(
    connection: AsyncConnection, which: ScheduledFilter, *, limit: int, after: Place | None = None
) -> list[ScheduledSend]:
    """A page of at most `limit` sends (and never more than PAGE_SENDS), the soonest first."""
    due_at = readable(outbox.c.due_at)  # as `after` has it, or a page of a far future would come again and again
    query = (
        sa.select(
            *(outbox.c[name] for name in ("id", "message_id", "destination", "run", "attempt", "due_at")),
            *(messages.c[name] for name in ("type", "version", "key")),
            _kind().label("kind"),
            sa.func.coalesce(_error(), "").label("error"),
        )
        .select_from(_JOINED)
        .where(*_conditions(which))
        .order_by(due_at, outbox.c.id)
        .limit(min(limit, PAGE_SENDS))
    )
    if after is not None:
        last = sa.tuple_(sa.literal(after[0], outbox.c.due_at.type), sa.literal(after[1], outbox.c.id.type))
        query = query.where(sa.tuple_(due_at, outbox.c.id) > last)
    return [ScheduledSend(**row) for row in (await connection.execute(query)).mappings()]


async def count(connection: AsyncConnection, which: ScheduledFilter) -> int:
    """How many sends there are."""
    query = sa.select(sa.func.count()).select_from(_JOINED).where(*_conditions(which))
    return (await connection.execute(query)).scalar_one()


async def bodies(tx: Transaction, ids: Sequence[str]) -> dict[str, bytes]:
    """The bodies of the messages of the given sends, by the ids of the sends."""
    query = sa.select(outbox.c.id, messages.c.body).select_from(_JOINED).where(outbox.c.id.in_(ids))
    return {row.id: row.body for row in await tx.rows(query)}


async def run_now(tx: Transaction, ids: Sequence[str]) -> set[str]:
    """Makes sends due now; returns those that were scheduled until now."""
    return await _change(tx, _hurrying(tx.dialect), ids)


async def cancel(tx: Transaction, ids: Sequence[str]) -> set[str]:
    """Sends that will never be sent; returns those that were scheduled until now."""
    return await _change(tx, _cancelling(tx.dialect), ids)


async def _change(tx: Transaction, statement: sa.Executable, ids: Sequence[str]) -> set[str]:
    return {row.id for row in await tx.rows(statement, _IDS.given(tx.dialect, id=sorted(ids)))}


_JOINED = outbox.join(messages, messages.c.id == outbox.c.message_id)


def _is_scheduled() -> tuple[sa.ColumnElement[bool], ...]:
    # next_at is never before due_at, so the first condition only lets the partial index serve.
    return outbox.c.next_at > now(), outbox.c.due_at > now(), outbox.c.sent_at.is_(None)


def _conditions(which: ScheduledFilter) -> list[sa.ColumnElement[bool]]:
    wanted: dict[sa.Column[Any], str | None] = {
        outbox.c.destination: which.queue,
        messages.c.type: which.type,
        messages.c.key: which.key,
    }
    conditions = [*_is_scheduled()]
    conditions += [column == storable(value) for column, value in wanted.items() if value is not None]
    if which.ids is not None:
        conditions.append(outbox.c.id.in_(which.ids))
    return conditions


def _kind() -> sa.ColumnElement[str]:
    before = outbox.alias("before")
    again = sa.exists().where(
        before.c.message_id == outbox.c.message_id,
        before.c.destination.in_([sa.literal(""), outbox.c.destination]),
        before.c.run == outbox.c.run,
        before.c.attempt == outbox.c.attempt,
        before.c.id < outbox.c.id,
    )
    return sa.case((again, "deferred"), (outbox.c.attempt > 0, "retry"), else_="delayed")


def _error() -> sa.ScalarSelect[str]:
    """Of the attempt before, at the endpoint that the send goes to as far as that is known."""
    at_its_queue = sa.and_(endpoints.c.endpoint == attempts.c.endpoint, endpoints.c.queue == outbox.c.destination)
    return (
        sa.select(attempts.c.error)
        .select_from(attempts.outerjoin(endpoints, at_its_queue))
        .where(
            attempts.c.message_id == outbox.c.message_id,
            attempts.c.run == outbox.c.run,
            attempts.c.attempt == outbox.c.attempt - 1,
        )
        .order_by(endpoints.c.endpoint.is_(None), attempts.c.finished_at.desc())
        .limit(1)
        .correlate(outbox)
        .scalar_subquery()
    )


@cache
def _hurrying(dialect: Dialect) -> sa.Executable:
    return _of_given(dialect).values(due_at=now(), next_at=now()).returning(outbox.c.id)


@cache
def _cancelling(dialect: Dialect) -> sa.Executable:
    return _of_given(dialect).values(next_at=None).returning(outbox.c.id)


_IDS = Rows("ids", id=Id)


def _of_given(dialect: Dialect) -> sa.Update:
    return sa.update(outbox).where(_IDS.among(dialect, outbox.c.id), *_is_scheduled())
