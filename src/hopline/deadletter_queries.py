"""Reading the dead letters: by filter in pages, in groups of one cause, and one whole.

A page is read by key and not by offset, so that it costs the same wherever it begins, and what is resolved
meanwhile shifts nothing. Every answer is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.errors import UsageError
from hopline.schema import Id, check_id, dead_letters, storable

PAGE_LETTERS = 1_000
"""The most that one call returns, and the most ids that one filter names."""
GROUPS = 100

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


async def get(connection: AsyncConnection, identifier: str) -> WholeLetter | None:
    """One letter, whatever became of it."""
    check_id(identifier)
    return next(iter(await load(connection, [identifier])), None)


async def load(connection: AsyncConnection, ids: Sequence[str], *, lock: bool = False) -> list[WholeLetter]:
    """Those of the letters that exist, in the order of their ids; `lock` holds them until the transaction ends."""
    query = _whole().with_for_update() if lock else _whole()
    rows = await connection.execute(query, {"ids": sorted(ids)})
    return [_whole_letter(row) for row in rows.mappings()]


@cache
def _columns() -> tuple[sa.ColumnElement[Any], ...]:
    large = {"identity", "stack", "properties", "body"}
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
