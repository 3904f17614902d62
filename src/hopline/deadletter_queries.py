"""Reading the dead letters: by filter in pages, in groups of one cause, and one whole.

A page is read by key and not by offset, so that it costs the same wherever it begins, and what is resolved
meanwhile shifts nothing. Every answer is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.database import now
from hopline.errors import UsageError
from hopline.rows import Dialect, Rows
from hopline.schema import Id, check_id, dead_letters, storable

PAGE_LETTERS = 1_000
"""The most that one call returns, and the most ids that one filter names."""
GROUPS = 100
"""The most groups that one call returns."""
COUNTED_LETTERS = 2_000
"""An overview counts each group up to this."""
SAMPLED_LETTERS = 100
"""The latest letters of a group, which tell in how many queues and of how many types they are."""
TREND_HOURS = 24
TREND_CAP = 300

State = Literal["parked", "replayed", "edited", "discarded", "any"]
Place = tuple[datetime, str]
"""Where a page begins: after the letter of this `dead_at` and id."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters; each field narrows, None is all. UsageError if an id is no UUID."""

    queue: str | None = None
    """Empty: those that were unroutable from the start."""
    type: str | None = None
    key: str | None = None
    reason: str | None = None
    group: str | None = None
    """A fingerprint."""
    since: datetime | None = None
    until: datetime | None = None
    """Both by the time of death, inclusive."""
    ids: tuple[str, ...] | None = None
    state: State = "parked"

    def __post_init__(self) -> None:
        for identifier in self.ids or ():
            check_id(identifier)
        if self.ids is not None and len(self.ids) > PAGE_LETTERS:
            raise UsageError(f"{len(self.ids)} ids at once; at most {PAGE_LETTERS} can be named, use a filter instead")


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter, without its large parts."""

    id: str
    queue: str
    """The queue in which it died; empty if RabbitMQ knew none for it."""
    endpoint: str | None
    message_id: str | None
    type: str
    version: int
    run: int
    attempt: int
    key: str | None
    reason: str
    error: str
    error_type: str
    frame: str
    fingerprint: str
    dead_at: datetime
    resolution: str | None
    """None while it is parked."""
    resolved_at: datetime | None
    replaced_by: str | None
    body_bytes: int

    @property
    def place(self) -> Place:
        """For the page that begins after it."""
        return self.dead_at, self.id


@dataclass(frozen=True, slots=True)
class WholeLetter:
    """A dead letter with its large parts."""

    letter: Letter
    stack: str
    properties: Mapping[str, Any]
    body: bytes


@dataclass(frozen=True, slots=True)
class Group:
    """Letters of one cause. Of what they may differ in (queue, type, reason), one is named, and how many there are."""

    fingerprint: str
    error_type: str
    frame: str
    reason: str
    queue: str
    queues: int
    type: str
    types: int
    count: int
    first_at: datetime
    last_at: datetime
    sample_id: str
    """The latest one."""
    sample_error: str
    count_is_least: bool = False
    """Whether there are more letters than were counted."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The groups of what is parked, the largest first."""

    groups: tuple[Group, ...]
    more: bool
    """Whether there are more groups than were looked at."""


async def find(
    connection: AsyncConnection, which: Filter, *, limit: int, after: Place | None = None, newest_first: bool = True
) -> list[Letter]:
    """A page of at most `limit` letters (and never more than PAGE_LETTERS), by the time of death."""
    place = sa.tuple_(dead_letters.c.dead_at, dead_letters.c.id)
    query = sa.select(*_columns()).where(*_conditions(which)).limit(min(limit, PAGE_LETTERS))
    if after is not None:
        last = sa.tuple_(
            sa.literal(after[0], dead_letters.c.dead_at.type), sa.literal(after[1], dead_letters.c.id.type)
        )
        query = query.where(place < last if newest_first else place > last)
    # All of one state have the same resolution: named in the order, so that Postgres reads an index of it in order.
    constant = () if which.state == "any" else (dead_letters.c.resolution,)
    order = (*constant, dead_letters.c.dead_at, dead_letters.c.id)
    rows = await connection.execute(query.order_by(*(c.desc() if newest_first else c.asc() for c in order)))
    return [Letter(**row) for row in rows.mappings()]


async def count(connection: AsyncConnection, which: Filter) -> int:
    """How many letters there are."""
    query = sa.select(sa.func.count()).select_from(dead_letters).where(*_conditions(which))
    return (await connection.execute(query)).scalar_one()


async def groups(connection: AsyncConnection, which: Filter, *, limit: int = GROUPS) -> list[Group]:
    """The groups of the letters, the largest first."""
    letters = dead_letters.c
    grouped = (
        sa.select(
            letters.fingerprint,
            sa.func.min(letters.reason).label("reason"),
            sa.func.min(letters.queue).label("queue"),
            sa.func.count(letters.queue.distinct()).label("queues"),
            sa.func.min(letters.type).label("type"),
            sa.func.count(letters.type.distinct()).label("types"),
            sa.func.count().label("count"),
            sa.func.min(letters.dead_at).label("first_at"),
            sa.func.max(letters.dead_at).label("last_at"),
            sa.func.max(sa.cast(letters.id, sa.String)).label("sample_id"),
        )
        .where(*_conditions(which))
        .group_by(letters.fingerprint)
        .order_by(sa.func.count().desc(), letters.fingerprint)
        .limit(min(limit, GROUPS))
        .subquery()
    )
    query = (
        sa.select(grouped, letters.error_type, letters.frame, letters.error.label("sample_error"))
        .select_from(grouped.join(dead_letters, letters.id == sa.cast(grouped.c.sample_id, Id)))
        .order_by(grouped.c.count.desc(), grouped.c.fingerprint)
    )
    return [Group(**row) for row in (await connection.execute(query)).mappings()]


async def overview(
    connection: AsyncConnection,
    *,
    limit: int = GROUPS,
    count_letters: int = COUNTED_LETTERS,
    fingerprint: str | None = None,
) -> Overview:
    """The groups of what is parked, or the one of a fingerprint, in bounded time however many letters there are.

    At most GROUPS groups are looked at, each is counted up to `count_letters`, and of what its letters may differ in
    (queue, type) the latest few tell.
    """
    if fingerprint is None:
        result = await connection.execute(_overview(count_letters))
    else:
        result = await connection.execute(_overview(count_letters, one=True), {"fingerprint": storable(fingerprint)})
    rows = result.mappings().fetchall()
    found = [_group_of(row, count_letters) for row in rows[:GROUPS]]
    found.sort(key=lambda group: (-group.count, group.fingerprint))
    return Overview(tuple(found[:limit]), more=len(rows) > GROUPS)


async def trends(connection: AsyncConnection, fingerprints: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """How many letters died in each of the last TREND_HOURS hours, the oldest first, for at most GROUPS groups.

    Of any state. Each hour is counted up to TREND_CAP.
    """
    if not fingerprints:
        return {}
    dialect: Dialect = "sqlite" if connection.dialect.name == "sqlite" else "postgresql"
    given = _FINGERPRINTS.given(dialect, fingerprint=sorted(set(fingerprints))[:GROUPS])
    at: datetime = (await connection.execute(sa.select(now()))).scalar_one()
    ends = {f"end_{hours}": at - timedelta(hours=hours) for hours in range(TREND_HOURS + 1)}
    rows = await connection.execute(_trends(dialect), {**given, **ends})
    return {row[0]: tuple(row[1:]) for row in rows}


async def count_up_to(connection: AsyncConnection, which: Filter, limit: int) -> int:
    """How many letters there are, counted up to `limit`."""
    some = sa.select(dead_letters.c.id).where(*_conditions(which)).limit(limit).subquery()
    return (await connection.execute(sa.select(sa.func.count()).select_from(some))).scalar_one()


async def get(connection: AsyncConnection, identifier: str) -> WholeLetter | None:
    """One letter, whatever became of it."""
    check_id(identifier)
    return next(iter(await load(connection, [identifier])), None)


async def of_message(connection: AsyncConnection, message_id: str, *, limit: int) -> list[Letter]:
    """The letters of a message, the oldest first; at most `limit`, and then the latest."""
    mine = sa.select(*_columns()).where(dead_letters.c.message_id == message_id)
    rows = await connection.execute(mine.order_by(dead_letters.c.id.desc()).limit(limit))
    return [Letter(**row) for row in rows.mappings()][::-1]


async def load(connection: AsyncConnection, ids: Sequence[str], *, lock: bool = False) -> list[WholeLetter]:
    """Those of the letters that exist, in the order of their ids; `lock` holds them until the transaction ends."""
    query = _whole().with_for_update() if lock else _whole()
    rows = await connection.execute(query, {"ids": sorted(ids)})
    return [_whole_letter(row) for row in rows.mappings()]


@cache
def _columns() -> tuple[sa.ColumnElement[Any], ...]:
    large = {"identity", "unsettled", "stack", "properties", "body"}
    small = [column for column in dead_letters.columns if column.name not in large]
    return (*small, sa.func.length(dead_letters.c.body).label("body_bytes"))


@cache
def _whole() -> sa.Select[Any]:
    large = (dead_letters.c.stack, dead_letters.c.properties, dead_letters.c.body)
    mine = dead_letters.c.id.in_(sa.bindparam("ids", expanding=True))
    return sa.select(*_columns(), *large).where(mine).order_by(dead_letters.c.id)


def _whole_letter(row: Mapping[str, Any]) -> WholeLetter:
    values = dict(row)
    large = {name: values.pop(name) for name in ("stack", "properties", "body")}
    return WholeLetter(Letter(**values), **large)


def _conditions(which: Filter) -> list[sa.ColumnElement[bool]]:
    letters = dead_letters.c
    wanted = {
        letters.queue: which.queue,
        letters.type: which.type,
        letters.key: which.key,
        letters.reason: which.reason,
        letters.fingerprint: which.group,
    }
    conditions = [column == storable(value) for column, value in wanted.items() if value is not None]
    if which.state == "parked":
        conditions.append(letters.resolution.is_(None))
    elif which.state != "any":
        conditions.append(letters.resolution == which.state)
    if which.since is not None:
        conditions.append(letters.dead_at >= which.since)
    if which.until is not None:
        conditions.append(letters.dead_at <= which.until)
    if which.ids is not None:
        conditions.append(letters.id.in_(which.ids))
    return conditions


def _group_of(row: Mapping[str, Any], count_letters: int) -> Group:
    values = {**row, "count": min(row["count"], count_letters)}
    return Group(**values, count_is_least=row["count"] > count_letters)


@cache
def _overview(count_letters: int, *, one: bool = False) -> sa.Select[Any]:
    """Looks at the ends of each group, or of the one that is given."""
    letters, latest = dead_letters.c, dead_letters.alias("latest")
    parked = letters.resolution.is_(None)
    given = sa.select(sa.bindparam("fingerprint", type_=letters.fingerprint.type).label("fingerprint"))
    some = (given if one else _fingerprints(parked)).subquery("some")
    mine = (parked, letters.fingerprint == some.c.fingerprint)
    place = (letters.resolution, letters.fingerprint, letters.dead_at)
    newest = tuple(column.desc() for column in place)

    def several(column: sa.Column[str]) -> sa.ScalarSelect[int]:
        few = sa.select(column).where(*mine).order_by(*newest).limit(SAMPLED_LETTERS).correlate(some).subquery()
        return sa.select(sa.func.count(few.c[column.name].distinct())).scalar_subquery()

    counted = sa.select(letters.dead_at).where(*mine).limit(count_letters + 1).correlate(some).subquery()
    oldest = sa.select(letters.dead_at).where(*mine).order_by(*place).limit(1).correlate(some)
    sample = sa.select(letters.id).where(*mine).order_by(*newest).limit(1).correlate(some).scalar_subquery()
    return sa.select(
        some.c.fingerprint,
        sa.select(sa.func.count()).select_from(counted).scalar_subquery().label("count"),
        several(letters.queue).label("queues"),
        several(letters.type).label("types"),
        oldest.scalar_subquery().label("first_at"),
        latest.c.dead_at.label("last_at"),
        latest.c.id.label("sample_id"),
        *(latest.c[name] for name in ("reason", "queue", "type", "error_type", "frame")),
        latest.c.error.label("sample_error"),
    ).select_from(some.join(latest, latest.c.id == sample))


def _fingerprints(parked: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Walks from fingerprint to fingerprint along the index."""
    letters = dead_letters.c
    # All that is parked has the same resolution: named in the order, so that Postgres reads the index in order.
    first = sa.select(letters.fingerprint).where(parked).order_by(letters.resolution, letters.fingerprint).limit(1)
    walk = sa.select(first.scalar_subquery().label("fingerprint")).cte("walk", recursive=True)
    after = first.where(letters.fingerprint > walk.c.fingerprint).correlate(walk).scalar_subquery()
    walk = walk.union_all(sa.select(after).where(walk.c.fingerprint.is_not(None)))
    return sa.select(walk.c.fingerprint).where(walk.c.fingerprint.is_not(None)).limit(GROUPS + 1)


_FINGERPRINTS = Rows("fingerprints", fingerprint=sa.Text())


@cache
def _trends(dialect: Dialect) -> sa.Select[Any]:
    given = _FINGERPRINTS.table(dialect)

    def died(hours_ago: int) -> sa.ScalarSelect[Any]:
        few = (
            sa.select(sa.literal(1))
            .where(
                dead_letters.c.fingerprint == given.c.fingerprint,
                # Times as parameters: by a clock that ticks meanwhile Postgres would look into every letter.
                dead_letters.c.dead_at > sa.bindparam(f"end_{hours_ago}", type_=dead_letters.c.dead_at.type),
                dead_letters.c.dead_at <= sa.bindparam(f"end_{hours_ago - 1}", type_=dead_letters.c.dead_at.type),
            )
            .limit(TREND_CAP)
            .correlate(given)
            .subquery()
        )
        return sa.select(sa.func.count()).select_from(few).scalar_subquery()

    return sa.select(given.c.fingerprint, *(died(hours).label(f"h{hours}") for hours in range(TREND_HOURS, 0, -1)))
