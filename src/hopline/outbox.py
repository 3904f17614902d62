"""The outbox: one thin row per send. Everything that goes to RabbitMQ goes through here.

`Outbox` rides along with every write transaction: it stores what the transaction sends, and after the commit
hands it to the relay if that had room. Invariant: a row leaves the due index only when its confirm
is known (sent), it was cancelled, or it is parked. Time is the database's alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.clock import id_time, new_id
from hopline.database import Send, Transaction, Write, now
from hopline.errors import OutboxFull, UsageError
from hopline.holding import hold
from hopline.message import AttemptId, Envelope
from hopline.rows import Dialect, Made, Parameters, Rows, as_json
from hopline.schema import Id, Json, UtcTime, messages, outbox

RETRY_AFTER_SECONDS = 5
REFUSED_PAUSES = ((5.0, 1.0), (30.0, 5.0), (120.0, 20.0))
"""How long a refused send waits, by how long it has been due: (due for less than these seconds, pause in seconds)."""
REFUSED_CAP_SECONDS = 60.0
"""The pause of one that has been due for longer."""

log = structlog.get_logger("hopline.outbox")


class Sender(Protocol):
    """Who publishes what was committed: the relay of this process."""

    def reserve(self, sends: Sequence[Send]) -> int:
        """How many of them, from the first on, it will hold; 0 while the broker cannot be reached."""
        ...

    def release(self, sends: Sequence[Send]) -> None:
        """They were reserved, and were not committed."""
        ...

    def offer(self, sends: Sequence[Send]) -> None:
        """They were reserved and are committed: publishes them at once."""
        ...


class Outbox:
    """Stores what transactions send. `unsent` is the count at the last probe plus what came since."""

    def __init__(self, *, limit: int, lease_seconds: float) -> None:
        self.limit = limit
        self.lease_seconds = lease_seconds
        self.sender: Sender | None = None
        self.unsent = 0

    async def board(self, tx: Transaction) -> Callable[[bool], None] | None:
        """Stores the transaction's sends; the returned landing offers them to the relay."""
        if not tx.sends:
            return None
        if len(tx.sends) > self.limit:
            raise UsageError(
                f"one transaction sends {len(tx.sends)} messages, more than the outbox may ever hold ({self.limit}); "
                "send them in several transactions, or raise HOPLINE_OUTBOX_LIMIT"
            )
        if self.unsent + len(tx.sends) > self.limit:
            raise OutboxFull(self.unsent, self.limit, RETRY_AFTER_SECONDS)
        immediate = [send for send in tx.sends if send.delay_seconds == 0.0]
        leased = immediate[: self.sender.reserve(immediate)] if self.sender else []
        store(tx, tx.sends, leased={send.id for send in leased}, lease_seconds=self.lease_seconds)
        waiting = len(tx.sends) - len(leased)

        def land(committed: bool) -> None:
            if committed:
                self.unsent += waiting
            self._land(leased, committed=committed)

        return land

    def _land(self, leased: Sequence[Send], *, committed: bool) -> None:
        if self.sender is None or not leased:
            return
        if committed:
            self.sender.offer(leased)
        else:
            self.sender.release(leased)


def store(tx: Transaction, sends: Sequence[Send], *, leased: set[str], lease_seconds: float) -> None:
    """Has messages and outbox rows inserted; a row in `leased` belongs to this process for the lease."""
    new = {send.envelope.id: send.envelope for send in sends if send.new}
    if new:
        tx.defer(_storing(tx.dialect), _given(_MESSAGES, tx.dialect, new.values()))
    # A producer's database may be another one: then this is where a message that is sent again is first stored.
    known = {send.envelope.id: send.envelope for send in sends if send.envelope.id not in new}
    if known:
        in_order = [known[identifier] for identifier in sorted(known)]  # or two that know the same ones could deadlock
        tx.defer(_storing_unless_known(tx.dialect), _given(_KNOWN, tx.dialect, in_order))
    values = _SENDS.inserted(
        tx.dialect,
        id=[send.id for send in sends],
        message_id=[send.envelope.id for send in sends],
        destination=[send.destination for send in sends],
        run=[send.envelope.run for send in sends],
        attempt=[send.envelope.attempt for send in sends],
        suspect=[send.envelope.suspect for send in sends],
        due_in=[send.delay_seconds for send in sends],
        next_in=[lease_seconds if send.id in leased else send.delay_seconds for send in sends],
    )
    tx.defer(_sending(tx.dialect), values)


async def again(tx: Transaction, queue: str, sends: Sequence[tuple[str, int, int]]) -> None:
    """Inserts rows, due now, that send stored messages to one queue: (message id, run, attempt) each.

    A message that was purged since the caller found it is not sent.
    """
    stored = await hold(tx, [message_id for message_id, _, _ in sends])
    sends = [send for send in sends if send[0] in stored]
    if not sends:
        return
    count = len(sends)
    values = _SENDS.inserted(
        tx.dialect,
        id=[new_id() for _ in sends],
        message_id=[message_id for message_id, _, _ in sends],
        destination=[queue] * count,
        run=[run for _, run, _ in sends],
        attempt=[attempt for _, _, attempt in sends],
        suspect=[False] * count,
        due_in=[0.0] * count,
        next_in=[0.0] * count,
    )
    await tx.execute(_sending(tx.dialect), values)


async def claim(tx: Transaction, *, limit: int, lease_seconds: float) -> list[tuple[Send, int]]:
    """Leases up to `limit` due rows to this process: (send, returns so far), in due order.

    A row whose message is not stored can never be sent. It leaves the due index, and the log tells of it.
    """
    due = (
        sa.select(outbox.c.id)
        .where(_is_due())
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
    claimed = [_send_of(row) for row in await tx.rows(_reading(tx.dialect), _IDS.given(tx.dialect, id=ids))]
    if orphans := sorted(set(ids) - {send.id for send, _ in claimed}):
        log.error("sends are given up, because their messages are not stored", sends=orphans)
        await mark_parked(tx, orphans)
    return claimed


def mark_sent(tx: Transaction, ages_seconds: Mapping[str, float]) -> None:
    """Confirmed, each so long ago: the rows are to leave the due index with this transaction."""
    if ages_seconds:
        ids = sorted(ages_seconds)
        ages = [round(ages_seconds[identifier], 6) for identifier in ids]
        tx.defer(_marking(tx.dialect), _MARKS.given(tx.dialect, id=ids, age=ages))


async def mark_parked(tx: Transaction, ids: Sequence[str]) -> None:
    """Parked as unroutable or unsendable: no longer due and never sent."""
    if ids:
        await tx.execute(
            _unsent(tx.dialect).values(next_at=None, sends=outbox.c.sends + 1), _IDS.given(tx.dialect, id=sorted(ids))
        )


async def postpone_returned(tx: Transaction, ids: Sequence[str], delay_seconds: float) -> None:
    """No queue took it: one return more, due again after the delay."""
    later = now(sa.bindparam("delay_seconds", delay_seconds, type_=sa.Float))
    if ids:
        await tx.execute(
            _unsent(tx.dialect).values(next_at=later, sends=outbox.c.sends + 1), _IDS.given(tx.dialect, id=sorted(ids))
        )


async def postpone_refused(tx: Transaction, ids: Sequence[str]) -> None:
    """The queue could not store it: due again after a pause that grows with how long it has been due.

    So a pause needs no count of refusals, which could be taken for returns.
    """
    if ids:
        jitter = random.uniform(0.5, 1.0)
        pauses = [(outbox.c.due_at > now(-due_for), now(pause * jitter)) for due_for, pause in REFUSED_PAUSES]
        later = sa.case(*pauses, else_=now(REFUSED_CAP_SECONDS * jitter))
        await tx.execute(_unsent(tx.dialect).values(next_at=later), _IDS.given(tx.dialect, id=sorted(ids)))


async def give_up_lease(tx: Transaction, ids: Sequence[str]) -> None:
    """Outcome unknown, or the process stops: due now, for whoever can send."""
    if ids:
        await tx.execute(_unsent(tx.dialect).values(next_at=now()), _IDS.given(tx.dialect, id=sorted(ids)))


async def scheduled(tx: Transaction, queue: str, envelopes: Sequence[Envelope]) -> set[AttemptId]:
    """The attempts of which a send to this queue is still to come.

    A send that is due counts as gone, marked or not: what is at hand may have come by it.
    """
    given = _OF_ATTEMPTS.given(
        tx.dialect,
        id=[envelope.id for envelope in envelopes],
        run=[envelope.run for envelope in envelopes],
        attempt=[envelope.attempt for envelope in envelopes],
    )
    found = await tx.rows(_sent_before(tx.dialect), {"to_queue": queue, **given})
    return {(row.message_id, row.run, row.attempt) for row in found if row.is_to_come}


async def first_sends(tx: Transaction, queue: str, envelopes: Sequence[Envelope]) -> dict[tuple[str, int], datetime]:
    """When each run of a message (id, run) was first sent to this very queue; without those that never were."""
    given = _OF_RUNS.given(tx.dialect, id=[e.id for e in envelopes], run=[e.run for e in envelopes])
    found = await tx.rows(_first_sends(tx.dialect), {"to_queue": queue, **given})
    return {(row.message_id, row.run): id_time(row.first_id) for row in found}


async def is_due(connection: AsyncConnection) -> bool:
    """Whether any row is due now; one look into the partial index.

    In its order, for that leads Postgres there: it takes a third of all rows to be due, and would look for one of them
    in the table.
    """
    query = sa.select(sa.literal(1)).select_from(outbox).where(_is_due()).order_by(outbox.c.next_at).limit(1)
    return (await connection.execute(query)).first() is not None


def _is_due() -> sa.ColumnElement[bool]:
    """Of the clock as it is once, or Postgres could not look into the index for it."""
    return outbox.c.next_at <= sa.select(now()).scalar_subquery()


async def count_unsent(connection: AsyncConnection, *, limit: int) -> int:
    """How many rows are unsent, counted up to `limit`."""
    some = sa.select(outbox.c.id).where(outbox.c.next_at.is_not(None)).limit(limit).subquery()
    return (await connection.execute(sa.select(sa.func.count()).select_from(some))).scalar_one()


_COLUMNS: Mapping[str, sa.types.TypeEngine[Any]] = {
    "id": Id,
    "type": sa.Text(),
    "version": sa.Integer(),
    "key": sa.Text(),
    "correlation_id": Id,
    "cause_id": Id,
    "headers": sa.Text(),
    "body": sa.LargeBinary(),
    "created_at": UtcTime(),
}
_MESSAGES = Rows("stored", **_COLUMNS)
_KNOWN = Rows("known", **_COLUMNS)
_SENDS = Rows(
    "sent",
    id=Id,
    message_id=Id,
    destination=sa.Text(),
    run=sa.Integer(),
    attempt=sa.Integer(),
    suspect=sa.Boolean(),
    due_in=sa.Float(),
    next_in=sa.Float(),
)
_MARKS = Rows("marked", id=Id, age=sa.Float())
_IDS = Rows("ids", id=Id)
_OF_RUNS = Rows("of_runs", id=Id, run=sa.Integer())
_OF_ATTEMPTS = Rows("of_attempts", id=Id, run=sa.Integer(), attempt=sa.Integer())


def _given(rows: Rows, dialect: Dialect, envelopes: Collection[Envelope]) -> Parameters:
    return rows.inserted(
        dialect,
        id=[envelope.id for envelope in envelopes],
        type=[envelope.type for envelope in envelopes],
        version=[envelope.version for envelope in envelopes],
        key=[envelope.key for envelope in envelopes],
        correlation_id=[envelope.correlation_id for envelope in envelopes],
        cause_id=[envelope.cause_id for envelope in envelopes],
        headers=[_encode(envelope.headers).decode() if envelope.headers else "{}" for envelope in envelopes],
        body=[envelope.body for envelope in envelopes],
        created_at=[envelope.created_at for envelope in envelopes],
    )


_encode = msgspec.json.Encoder().encode


@cache
def _storing(dialect: Dialect) -> Write:
    return _MESSAGES.insertion(dialect, messages, _headers(dialect))


@cache
def _storing_unless_known(dialect: Dialect) -> Write:
    """Inserts messages that are not stored, and holds the others (holding.py), so that no purge deletes them meanwhile.

    On Postgres an ON CONFLICT DO UPDATE locks a row also if its WHERE lets it change nothing (documentation of INSERT),
    and inserts the message if it was deleted while it waited for the lock. DO NOTHING does not wait for a lock.
    """
    insertion = _KNOWN.insertion(dialect, messages, _headers(dialect))
    if dialect == "sqlite":
        return insertion.on_conflict_do_nothing()
    return insertion.on_conflict_do_update(
        index_elements=[messages.c.id], set_={"type": messages.c.type}, where=sa.false()
    )


def _headers(dialect: Dialect) -> Made:
    return {"headers": lambda given: as_json(dialect, given["headers"], Json)}


@cache
def _sending(dialect: Dialect) -> Write:
    made: Made = {
        "sends": lambda _: sa.literal(0),
        "due_at": lambda given: now(given["due_in"]),
        "next_at": lambda given: now(given["next_in"]),
    }
    return _SENDS.insertion(dialect, outbox, made)


@cache
def _marking(dialect: Dialect) -> Write:
    given = _MARKS.table(dialect)
    # Not as a condition: statistics say that hardly any row is unsent, and Postgres would begin with those.
    sent_at = sa.func.coalesce(outbox.c.sent_at, now(-given.c.age))
    return sa.update(outbox).where(outbox.c.id == given.c.id).values(next_at=None, sent_at=sent_at)


@cache
def _reading(dialect: Dialect) -> sa.Executable:
    return (
        sa.select(outbox, messages, outbox.c.id.label("send_id"))
        .select_from(outbox.join(messages, messages.c.id == outbox.c.message_id))
        .where(_IDS.among(dialect, outbox.c.id))
        .order_by(outbox.c.id)
    )


@cache
def _sent_before(dialect: Dialect) -> sa.Select[Any]:
    given = _OF_ATTEMPTS.table(dialect)
    # next_at is never before due_at: no process has published what is not due. Cancelled is what has no next_at.
    is_to_come = sa.and_(outbox.c.next_at.is_not(None), outbox.c.due_at > now()).label("is_to_come")
    return sa.select(outbox.c.message_id, outbox.c.run, outbox.c.attempt, is_to_come).where(
        outbox.c.message_id == given.c.id,
        outbox.c.run == given.c.run,
        outbox.c.attempt == given.c.attempt,
        outbox.c.destination == sa.bindparam("to_queue"),
    )


@cache
def _first_sends(dialect: Dialect) -> sa.Select[Any]:
    given = _OF_RUNS.table(dialect)
    first = sa.func.min(sa.cast(outbox.c.id, sa.String)).label("first_id")
    mine = (outbox.c.message_id == given.c.id, outbox.c.run == given.c.run)
    return (
        sa.select(outbox.c.message_id, outbox.c.run, first)
        .where(*mine, outbox.c.destination == sa.bindparam("to_queue"))
        .group_by(outbox.c.message_id, outbox.c.run)
    )


def _unsent(dialect: Dialect) -> sa.Update:
    """An UPDATE of the given rows, as far as they are still to be sent: neither sent, nor cancelled, nor parked."""
    return sa.update(outbox).where(
        _IDS.among(dialect, outbox.c.id), outbox.c.sent_at.is_(None), outbox.c.next_at.is_not(None)
    )


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
