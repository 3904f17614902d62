"""The audit: every message accounted for, at every endpoint it was meant for, by evidence.

    created = done + open + in broker + parked + discarded + cancelled + missing

All but "in broker" and "missing" are rows. What was confirmed by RabbitMQ and is not settled must be in a
queue, ready or unacknowledged, or in its `.dead` queue; they are read before and after one snapshot of the database.
More unsettled sends than the queues hold are missing; if the queues are empty in both readings, all are, and are named.
accounting.py has the arithmetic.

An endpoint is registered before its queue is bound, and answers for what was sent since (`hopline_endpoints.since`). It
has one account, with all versions of its type that it handles. A queue is bound to a type and not to a version: for the
versions that no endpoint of the queue handles, the endpoint with the latest version answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.accounting import (
    METRICS_LAG_SECONDS,
    Audit,
    EndpointAudit,
    QueueAudit,
    Unsettled,
    account_of_queue,
    held_in,
    shares,
)
from hopline.database import Database, now
from hopline.errors import BrokerUnavailable
from hopline.handlers import Endpoint
from hopline.live import QueueReading
from hopline.rows import insert
from hopline.schema import dead_letters, endpoints, inbox, messages, outbox
from hopline.topology import dead_queue

__all__ = ["Audit", "EndpointAudit", "QueueAudit", "Window", "audit", "register", "unsettled"]

SECOND_LOOK_SECONDS = 5.0
"""A queue that has no leader yet (RabbitMQ has just started) says 0: nothing is missing on one look alone."""
MORE_LOOKS = 4
"""After the first: until what was sent before the first is older than METRICS_LAG_SECONDS, and one to confirm it."""
NAMED_IDS = 1_000

ReadQueues = Callable[[Sequence[str]], Awaitable[Mapping[str, QueueReading]]]


async def audit(
    database: Database,
    watched: Sequence[Endpoint],
    read_queues: ReadQueues,
    *,
    fall_back: ReadQueues | None = None,
    patient: bool = True,
) -> Audit:
    """Accounts for every message at every watched endpoint.

    If RabbitMQ cannot be asked, the account has the database's half, and what is unproven. `fall_back` is asked if
    `read_queues` raises BrokerUnavailable.

    If something seems to be missing, or was sent too recently to be seen in its queue, it looks again,
    SECOND_LOOK_SECONDS later, and that account counts. What was sent since the first look is not part of it.
    Not `patient`: it does not wait for what was sent recently.
    """
    last = await _look(database, watched, read_queues, fall_back, None)
    first_at = last.at
    for _ in range(MORE_LOOKS):
        missing = last.audit.missing
        if not missing and not (patient and last.may_change):
            break
        await asyncio.sleep(SECOND_LOOK_SECONDS)
        last = await _look(database, watched, read_queues, fall_back, first_at)
        if last.audit.missing <= missing and not (patient and last.may_change):
            break
    return last.audit


@dataclass(frozen=True, slots=True)
class _Look:
    audit: Audit
    at: datetime

    @property
    def may_change(self) -> bool:
        """Whether a later look may prove more: figures of RabbitMQ are late, and everything else is proven."""
        recent = self.audit.recent
        return bool(recent) and recent == self.audit.unproven and not self.audit.trouble


async def _look(
    database: Database,
    watched: Sequence[Endpoint],
    read_queues: ReadQueues,
    fall_back: ReadQueues | None,
    first_at: datetime | None,
) -> _Look:
    queues = sorted({endpoint.queue for endpoint in watched})
    names = [*queues, *(dead_queue(queue) for queue in queues)]
    began = time.monotonic()
    before, trouble = await _readings(names, read_queues, fall_back)
    async with database.reading() as connection:
        at: datetime = (await connection.execute(sa.select(now()))).scalar_one()
        window = Window(at - timedelta(seconds=METRICS_LAG_SECONDS + time.monotonic() - began), at, first_at or at)
        counted = [(subject, await _count(connection, subject, window)) for subject in subjects(watched)]
        ids = {one: await unsettled(connection, one, window, limit=NAMED_IDS) for one, _ in counted}
    after = None
    if before is not None:
        after, late_trouble = await _readings(names, fall_back if trouble and fall_back else read_queues, fall_back)
        trouble = trouble or late_trouble
    accounts: list[QueueAudit] = []
    found: dict[Subject, EndpointAudit] = {}
    for queue in queues:
        mine = [(subject, counts) for subject, counts in counted if subject.queue == queue]
        sends = [Unsettled(counts.get("unsettled", 0), counts.get("recent", 0)) for _, counts in mine]
        account = account_of_queue(queue, sends, held_in(queue, before, after))
        accounts.append(account)
        for (subject, counts), share in zip(mine, shares(account, sends), strict=True):
            found[subject] = _account(subject, counts, share, ids[subject] if account.is_named else ())
    endpoint_accounts = tuple(found[subject] for subject, _ in counted)
    return _Look(Audit(endpoint_accounts, tuple(accounts), window.recent, trouble), at)


async def _readings(
    names: Sequence[str], read_queues: ReadQueues, fall_back: ReadQueues | None
) -> tuple[Mapping[str, QueueReading] | None, str]:
    """The queues, and why they could not be read as they should be. The last reader that failed knows best why."""
    trouble = ""
    for reader in (read_queues, fall_back):
        if reader is not None:
            try:
                return await reader(names), trouble
            except BrokerUnavailable as error:
                trouble = str(error)
    return None, trouble


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


@dataclass(frozen=True, slots=True)
class Window:
    """How what was sent around a look counts; by the database's clock."""

    recent: datetime
    """What was sent since then may not be in RabbitMQ's figures yet."""
    at: datetime
    """The look."""
    first_at: datetime
    """The first look: what was sent after it and before this one is not part of the account."""


def _state(endpoint: Subject, window: Window) -> sa.ColumnElement[str]:
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
        (sa.exists().where(mine, outbox.c.sent_at > window.first_at, outbox.c.sent_at <= window.at), "elsewhere"),
        (sa.exists().where(mine, outbox.c.sent_at >= window.recent), "recent"),
        else_="unsettled",
    )


async def _count(connection: AsyncConnection, endpoint: Subject, window: Window) -> dict[str, int]:
    states = sa.select(_state(endpoint, window).label("state")).where(_belongs(endpoint)).subquery()
    query = sa.select(states.c.state, sa.func.count()).group_by(states.c.state)
    return {row[0]: row[1] for row in await connection.execute(query)}


async def unsettled(
    connection: AsyncConnection,
    endpoint: Subject,
    window: Window,
    *,
    limit: int,
    among: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """The ids of messages that were sent to an endpoint before the window and are not settled, sorted."""
    query = (
        sa.select(messages.c.id)
        .where(_belongs(endpoint), _state(endpoint, window) == "unsettled")
        .order_by(messages.c.id)
        .limit(limit)
    )
    if among is not None:
        query = query.where(messages.c.id.in_(among))
    return tuple((await connection.execute(query)).scalars())


def _account(
    endpoint: Subject, counts: Mapping[str, int], share: tuple[int, int], unsettled_ids: tuple[str, ...]
) -> EndpointAudit:
    missing, unproven = share
    in_broker = counts.get("recent", 0) + counts.get("unsettled", 0) - missing - unproven
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
