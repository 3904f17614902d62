"""The outbox: one thin row per send. Everything that goes to RabbitMQ goes through here.

`Outbox` rides along with every write transaction: it stores what the transaction sends, and after the commit
hands it to the relay's window if that had room. Invariant: a row leaves the due index only when its confirm
is known (sent), it was cancelled, or it is parked. Time is the database's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.clock import id_time, new_id
from hopline.database import Dialect, Send, Transaction, as_table, insert, now, table_rows
from hopline.errors import OutboxFull
from hopline.message import Envelope
from hopline.schema import Id, messages, outbox

RETRY_AFTER_SECONDS = 5


class Window(Protocol):
    """The relay's bounded memory between commit and confirm."""

    def reserve(self, wanted: int) -> int:
        """Reserves up to `wanted` slots; 0 while the broker cannot be reached."""
        ...

    def release(self, slots: int) -> None:
        """Gives reserved slots back unused."""
        ...

    def offer(self, sends: Sequence[Send]) -> None:
        """Takes committed sends into reserved slots, to be published at once."""
        ...


class Outbox:
    """Stores what transactions send. `unsent` is the count at the last probe plus what came since."""

    def __init__(self, *, limit: int, lease_seconds: float) -> None:
        self.limit = limit
        self.lease_seconds = lease_seconds
        self.window: Window | None = None
        self.unsent = 0

    async def board(self, tx: Transaction) -> Callable[[bool], None] | None:
        """Stores the transaction's sends; the returned landing offers them to the relay."""
        if not tx.sends:
            return None
        if self.unsent + len(tx.sends) > self.limit:
            raise OutboxFull(self.unsent, self.limit, RETRY_AFTER_SECONDS)
        immediate = [send for send in tx.sends if send.delay_seconds == 0.0]
        slots = self.window.reserve(len(immediate)) if self.window else 0
        leased = immediate[:slots]
        try:
            await store(tx, tx.sends, leased={send.id for send in leased}, lease_seconds=self.lease_seconds)
        except BaseException:
            self._land(leased, committed=False)
            raise
        waiting = len(tx.sends) - slots

        def land(committed: bool) -> None:
            if committed:
                self.unsent += waiting
            self._land(leased, committed=committed)

        return land

    def _land(self, leased: Sequence[Send], *, committed: bool) -> None:
        if self.window is None or not leased:
            return
        if committed:
            self.window.offer(leased)
        else:
            self.window.release(len(leased))


async def store(tx: Transaction, sends: Sequence[Send], *, leased: set[str], lease_seconds: float) -> None:
    """Inserts messages and outbox rows; a row in `leased` belongs to this process for the lease."""
    new = [_message_row(send.envelope) for send in sends if send.new]
    if new:
        await tx.execute(sa.insert(messages), new)
    known = {send.envelope.id: _message_row(send.envelope) for send in sends if not send.new}
    if known:  # the producer's database may be another one: then this is where the message is first stored
        await tx.execute(insert(tx.dialect, messages).on_conflict_do_nothing(), list(known.values()))
    await tx.execute(
        _storing(),
        [
            {
                "id": send.id,
                "message_id": send.envelope.id,
                "destination": send.destination,
                "run": send.envelope.run,
                "attempt": send.envelope.attempt,
                "suspect": send.envelope.suspect,
                "sends": 0,
                "sent_at": None,
                "due_in_seconds": send.delay_seconds,
                "next_in_seconds": lease_seconds if send.id in leased else send.delay_seconds,
            }
            for send in sends
        ],
    )


async def again(tx: Transaction, queue: str, sends: Sequence[tuple[str, int, int]]) -> None:
    """Inserts rows, due now, that send stored messages to one queue: (message id, run, attempt) each."""
    rows = [
        {
            "id": new_id(),
            "message_id": message_id,
            "destination": queue,
            "run": run,
            "attempt": attempt,
            "suspect": False,
            "sends": 0,
            "sent_at": None,
            "due_in_seconds": 0.0,
            "next_in_seconds": 0.0,
        }
        for message_id, run, attempt in sends
    ]
    await tx.execute(_storing(), rows)


async def claim(tx: Transaction, *, limit: int, lease_seconds: float) -> list[tuple[Send, int]]:
    """Leases up to `limit` due rows to this process: (send, failed sends so far), in due order."""
    due = (
        sa.select(outbox.c.id)
        .where(outbox.c.next_at <= now())
        .order_by(outbox.c.next_at, outbox.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    leased = (
        sa.update(outbox)
        .where(outbox.c.id.in_(due.scalar_subquery()))
        .values(next_at=now(sa.bindparam("lease_seconds", lease_seconds, type_=sa.Float)))
        .returning(outbox.c.id)
    )
    ids = [row.id for row in await tx.rows(leased)]
    if not ids:
        return []
    given = as_table(tx.dialect, {"id": Id})
    query = (
        sa.select(outbox, messages, outbox.c.id.label("send_id"))
        .select_from(outbox.join(given, outbox.c.id == given.c.id).join(messages, messages.c.id == outbox.c.message_id))
        .order_by(outbox.c.id)
    )
    return [_send_of(row) for row in await tx.rows(query, table_rows([{"id": i} for i in ids]))]


async def mark_sent(tx: Transaction, ages_seconds: Mapping[str, float]) -> None:
    """Confirmed, each so long ago: the rows leave the due index."""
    if ages_seconds:
        rows = [{"id": identifier, "age": round(age, 6)} for identifier, age in sorted(ages_seconds.items())]
        await tx.execute(_marking(tx.dialect), table_rows(rows))


async def mark_unroutable(tx: Transaction, ids: Sequence[str]) -> None:
    """Parked: no longer due and never sent."""
    if ids:
        await tx.execute(_unsent(tx.dialect).values(next_at=None, sends=outbox.c.sends + 1), _id_rows(ids))


async def postpone(tx: Transaction, ids: Sequence[str], delay_seconds: float) -> None:
    """Returned or refused: not sent, due again after the delay."""
    later = now(sa.bindparam("delay_seconds", delay_seconds, type_=sa.Float))
    if ids:
        await tx.execute(_unsent(tx.dialect).values(next_at=later, sends=outbox.c.sends + 1), _id_rows(ids))


async def give_up_lease(tx: Transaction, ids: Sequence[str]) -> None:
    """Outcome unknown, or the process stops: due now, for whoever can send."""
    if ids:
        await tx.execute(_unsent(tx.dialect).values(next_at=now()), _id_rows(ids))


async def waiting(tx: Transaction, queue: str, envelopes: Sequence[Envelope]) -> set[str]:
    """The messages of which a send to this queue, of the same run and attempt, is unsent already."""
    rows = [{"id": e.id, "run": e.run, "attempt": e.attempt} for e in envelopes]
    found = await tx.rows(_waiting(tx.dialect), {"to_queue": queue, **table_rows(rows)})
    return {row.message_id for row in found}


async def first_sends(tx: Transaction, queue: str, envelopes: Sequence[Envelope]) -> dict[str, datetime]:
    """When each of the messages was first sent to this very queue, in this run; without those that never were."""
    rows = [{"id": e.id, "run": e.run} for e in envelopes]
    found = await tx.rows(_first_sends(tx.dialect), {"to_queue": queue, **table_rows(rows)})
    return {row.message_id: id_time(row.first_id) for row in found}


async def is_due(connection: AsyncConnection) -> bool:
    """Whether any row is due now; one look into the partial index."""
    query = sa.select(sa.literal(1)).select_from(outbox).where(outbox.c.next_at <= now()).limit(1)
    return (await connection.execute(query)).first() is not None


async def count_unsent(connection: AsyncConnection, *, limit: int) -> int:
    """How many rows are unsent, counted up to `limit`."""
    some = sa.select(outbox.c.id).where(outbox.c.next_at.is_not(None)).limit(limit).subquery()
    return (await connection.execute(sa.select(sa.func.count()).select_from(some))).scalar_one()


@cache
def _storing() -> sa.Executable:
    return sa.insert(outbox).values(
        due_at=now(sa.bindparam("due_in_seconds", type_=sa.Float)),
        next_at=now(sa.bindparam("next_in_seconds", type_=sa.Float)),
    )


@cache
def _marking(dialect: Dialect) -> sa.Executable:
    given = as_table(dialect, {"id": Id, "age": sa.Float()})
    mine = (outbox.c.id == given.c.id, outbox.c.sent_at.is_(None))
    return sa.update(outbox).where(*mine).values(next_at=None, sent_at=now(-given.c.age))


@cache
def _waiting(dialect: Dialect) -> sa.Select[Any]:
    given = as_table(dialect, {"id": Id, "run": sa.Integer(), "attempt": sa.Integer()})
    return sa.select(outbox.c.message_id).where(
        outbox.c.message_id == given.c.id,
        outbox.c.run == given.c.run,
        outbox.c.attempt == given.c.attempt,
        outbox.c.destination == sa.bindparam("to_queue"),
        outbox.c.next_at.is_not(None),
    )


@cache
def _first_sends(dialect: Dialect) -> sa.Select[Any]:
    given = as_table(dialect, {"id": Id, "run": sa.Integer()})
    first = sa.func.min(sa.cast(outbox.c.id, sa.String)).label("first_id")
    mine = (outbox.c.message_id == given.c.id, outbox.c.run == given.c.run)
    return (
        sa.select(outbox.c.message_id, first)
        .where(*mine, outbox.c.destination == sa.bindparam("to_queue"))
        .group_by(outbox.c.message_id)
    )


def _unsent(dialect: Dialect) -> sa.Update:
    """An UPDATE of the given rows, as far as they are not sent."""
    given = as_table(dialect, {"id": Id})
    chosen = sa.select(given.c.id).order_by(given.c.id)
    return sa.update(outbox).where(outbox.c.id.in_(chosen), outbox.c.sent_at.is_(None))


def _id_rows(ids: Sequence[str]) -> dict[str, str]:
    return table_rows([{"id": i} for i in sorted(ids)])


def _message_row(envelope: Envelope) -> dict[str, Any]:
    return {
        "id": envelope.id,
        "type": envelope.type,
        "version": envelope.version,
        "key": envelope.key,
        "correlation_id": envelope.correlation_id,
        "cause_id": envelope.cause_id,
        "headers": dict(envelope.headers),
        "body": envelope.body,
        "created_at": envelope.created_at,
    }


def _send_of(row: sa.Row[Any]) -> tuple[Send, int]:
    envelope = Envelope(
        id=row.message_id,
        type=row.type,
        version=row.version,
        key=row.key,
        correlation_id=row.correlation_id,
        cause_id=row.cause_id,
        created_at=row.created_at,
        body=row.body,
        headers=row.headers,
        run=row.run,
        attempt=row.attempt,
        suspect=row.suspect,
    )
    return Send(row.send_id, envelope, row.destination, 0.0, new=False), row.sends
