"""The audit: every message accounted for, at every endpoint it was meant for, by evidence.

    created = done + open + in broker + parked + discarded + cancelled + missing

All but "in broker" and "missing" are rows. What was confirmed by RabbitMQ and is not settled must be in a
queue, ready or unacknowledged; the queues are read before and after one snapshot of the database. If a queue
is empty in both readings, the unsettled messages that were sent to it are missing, and named.

An endpoint is registered before its queue is bound, and answers for what was sent since (`hopline_endpoints.since`). It
has one account, with all versions of its type that it handles. A queue is bound to a type and not to a version: for the
versions that no endpoint of the queue handles, the endpoint with the latest version answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.database import Database, now
from hopline.handlers import Endpoint
from hopline.live import QueueReading
from hopline.rows import insert
from hopline.schema import dead_letters, endpoints, inbox, messages, outbox

METRICS_LAG_SECONDS = 15.0
"""RabbitMQ refreshes the figures of a quorum queue every 5 s; what was confirmed more recently may not show."""
SECOND_LOOK_SECONDS = 5.0
"""A queue that has no leader yet (RabbitMQ has just started) says 0: nothing is missing on one look alone."""
NAMED_IDS = 1_000

ReadQueues = Callable[[Sequence[str]], Awaitable[Mapping[str, QueueReading]]]


@dataclass(frozen=True, slots=True)
class EndpointAudit:
    """The account of one endpoint; `created` is the sum of the others."""

    endpoint: str
    queue: str
    created: int
    done: int
    open: int
    in_broker: int
    parked: int
    discarded: int
    cancelled: int
    missing: int
    unproven: int
    """Sent and unsettled, while the broker's unacknowledged deliveries could not be read."""
    missing_ids: tuple[str, ...]
    """The message ids that are missing, at most 1,000 of them."""


@dataclass(frozen=True, slots=True)
class Audit:
    """The account of a whole database."""

    endpoints: tuple[EndpointAudit, ...]

    @property
    def missing(self) -> int:
        """Messages that are nowhere; 0 is the promise."""
        return sum(one.missing for one in self.endpoints)

    @property
    def unproven(self) -> int:
        """Messages about which the broker could not be asked."""
        return sum(one.unproven for one in self.endpoints)

    @property
    def pending(self) -> int:
        """Messages that are on their way: open in the outbox or in the broker."""
        return sum(one.open + one.in_broker for one in self.endpoints)


async def audit(database: Database, watched: Sequence[Endpoint], read_queues: ReadQueues) -> Audit:
    """Accounts for every message at every watched endpoint. BrokerUnavailable if the queues cannot be read.

    If something seems to be missing it looks a second time, SECOND_LOOK_SECONDS later, and that account counts.
    """
    first = await _look(database, watched, read_queues)
    if not first.missing:
        return first
    await asyncio.sleep(SECOND_LOOK_SECONDS)
    return await _look(database, watched, read_queues)


async def _look(database: Database, watched: Sequence[Endpoint], read_queues: ReadQueues) -> Audit:
    queues = sorted({endpoint.queue for endpoint in watched})
    before = await read_queues(queues)
    async with database.reading() as connection:
        counted = [(e, await _count(connection, e), await _unsettled(connection, e)) for e in subjects(watched)]
    after = await read_queues(queues)
    return Audit(tuple(_account(e, counts, ids, before, after) for e, counts, ids in counted))


@dataclass(frozen=True, slots=True)
class Subject:
    """What one account is about: an endpoint name at a queue."""

    name: str
    queue: str
    type: str
    versions: frozenset[int]
    """The versions that it handles."""
    others: frozenset[int] | None
    """None, or: it also answers for the versions that no endpoint of the queue handles, and these are handled."""


def subjects(watched: Sequence[Endpoint]) -> list[Subject]:
    """The accounts of endpoints: each message that comes to a queue belongs to exactly one of them. Pure."""
    versions: dict[tuple[str, str, str], set[int]] = {}
    handled: dict[tuple[str, str], set[int]] = {}
    for endpoint in watched:
        versions.setdefault((endpoint.name, endpoint.queue, endpoint.type.name), set()).add(endpoint.type.version)
        handled.setdefault((endpoint.queue, endpoint.type.name), set()).add(endpoint.type.version)
    return [
        Subject(
            name,
            queue,
            type_name,
            frozenset(own),
            frozenset(handled[queue, type_name]) if max(handled[queue, type_name]) in own else None,
        )
        for (name, queue, type_name), own in versions.items()
    ]


async def register(database: Database, bound: Sequence[Endpoint]) -> None:
    """Remembers since when each endpoint answers for what is sent; the first time counts.

    Call it before anything of the endpoints is declared or published: what is sent earlier is outside of the account.
    """
    places = {(endpoint.name, endpoint.queue, endpoint.type.name, endpoint.type.version) for endpoint in bound}
    key = tuple(endpoints.primary_key.columns)
    async with database.reading() as connection:
        new = places - {tuple(row) for row in await connection.execute(sa.select(*key))}
    if not new:
        return
    async with database.transaction() as tx:
        for place in sorted(new):
            row = {column.name: value for column, value in zip(key, place, strict=True)}
            await tx.execute(insert(tx.dialect, endpoints).values(**row, since=now()).on_conflict_do_nothing())


def _belongs(subject: Subject) -> sa.ColumnElement[bool]:
    """SQL: whether the message is of a type and version that the account is about."""
    mine: sa.ColumnElement[bool] = messages.c.version.in_(sorted(subject.versions))
    if subject.others is not None:
        mine = sa.or_(mine, messages.c.version.not_in(sorted(subject.others)))
    return sa.and_(messages.c.type == subject.type, mine)


def named_at(column: sa.ColumnElement[str | None] | sa.Column[str], queue: str) -> sa.ColumnElement[bool]:
    """SQL: whether the column has the name of an endpoint that handles, or ever handled, messages of the queue."""
    return column.in_(sa.select(endpoints.c.endpoint).where(endpoints.c.queue == queue))


def _state(endpoint: Subject) -> sa.ColumnElement[str]:
    """SQL: the one state of a message at an endpoint; rows are the evidence, `unsettled` is the rest.

    What was replaced by a new message (edited, replayed as new) counts as discarded. Whether a message is cancelled
    is told by its latest send: an earlier one of a retry was sent, one that was unroutable was replayed since.
    """
    mine = sa.and_(outbox.c.message_id == messages.c.id, outbox.c.destination.in_(["", endpoint.queue]))
    letter = sa.and_(
        dead_letters.c.message_id == messages.c.id,
        sa.or_(
            dead_letters.c.endpoint == endpoint.name,
            dead_letters.c.endpoint.is_(None),
            named_at(dead_letters.c.endpoint, endpoint.queue),
        ),
        dead_letters.c.queue.in_(["", endpoint.queue]),
    )
    given_up = sa.or_(dead_letters.c.resolution == "discarded", dead_letters.c.replaced_by.is_not(None))
    latest = (
        sa.select(outbox.c.sent_at)
        .where(mine)
        .order_by(outbox.c.run.desc(), outbox.c.attempt.desc(), outbox.c.id.desc())
        .limit(1)
        .correlate(messages)
        .scalar_subquery()
    )
    since = (  # of the binding: a later version, or another name, adds nothing to it
        sa.select(sa.func.min(endpoints.c.since))
        .where(endpoints.c.queue == endpoint.queue, endpoints.c.type == endpoint.type)
        .scalar_subquery()
    )
    here = sa.or_(inbox.c.endpoint == endpoint.name, named_at(inbox.c.endpoint, endpoint.queue))
    came = sa.or_(outbox.c.destination == endpoint.queue, outbox.c.sent_at >= since)
    return sa.case(
        (sa.exists().where(inbox.c.message_id == messages.c.id, here), "done"),
        (sa.exists().where(mine, outbox.c.next_at.is_not(None)), "open"),
        (sa.exists().where(letter, dead_letters.c.resolution.is_(None)), "parked"),
        (sa.exists().where(letter, given_up), "discarded"),
        (~sa.exists().where(mine), "elsewhere"),
        (latest.is_(None), "cancelled"),
        (~sa.exists().where(mine, outbox.c.sent_at.is_not(None), came), "elsewhere"),
        (sa.exists().where(mine, outbox.c.sent_at >= now(-METRICS_LAG_SECONDS)), "recent"),
        else_="unsettled",
    )


async def _count(connection: AsyncConnection, endpoint: Subject) -> dict[str, int]:
    states = sa.select(_state(endpoint).label("state")).where(_belongs(endpoint)).subquery()
    query = sa.select(states.c.state, sa.func.count()).group_by(states.c.state)
    return {row[0]: row[1] for row in await connection.execute(query)}


async def _unsettled(connection: AsyncConnection, endpoint: Subject) -> tuple[str, ...]:
    query = (
        sa.select(messages.c.id)
        .where(_belongs(endpoint), _state(endpoint) == "unsettled")
        .order_by(messages.c.id)
        .limit(NAMED_IDS)
    )
    return tuple((await connection.execute(query)).scalars())


def _account(
    endpoint: Subject,
    counts: Mapping[str, int],
    unsettled_ids: tuple[str, ...],
    before: Mapping[str, QueueReading],
    after: Mapping[str, QueueReading],
) -> EndpointAudit:
    unsettled = counts.get("unsettled", 0)
    empty = is_empty(before.get(endpoint.queue), after.get(endpoint.queue))
    missing, unproven = (unsettled, 0) if empty else (0, unsettled if empty is None else 0)
    in_broker = counts.get("recent", 0) + unsettled - missing - unproven
    created = sum(count for state, count in counts.items() if state != "elsewhere")
    return EndpointAudit(
        endpoint=endpoint.name,
        queue=endpoint.queue,
        created=created,
        done=counts.get("done", 0),
        open=counts.get("open", 0),
        in_broker=in_broker,
        parked=counts.get("parked", 0),
        discarded=counts.get("discarded", 0),
        cancelled=counts.get("cancelled", 0),
        missing=missing,
        unproven=unproven,
        missing_ids=unsettled_ids if missing else (),
    )


def is_empty(before: QueueReading | None, after: QueueReading | None) -> bool | None:
    """Whether a queue held nothing in both readings; None when that cannot be told. A queue that does not
    exist holds nothing."""
    readings = [True if reading is None else reading.is_empty for reading in (before, after)]
    if False in readings:
        return False
    return None if None in readings else True
