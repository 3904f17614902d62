"""Reading the history: windows of equal steps for charts, and what each endpoint did lately."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.clock import from_epoch, utcnow
from hopline.database import Database
from hopline.history.steps import AGED, COARSE_SECONDS, COLUMNS, RAN, SENDING, STEP_SECONDS, known_until, quantile
from hopline.schema import HISTORY_SLOTS, history

Window = Literal["15m", "1h", "24h"]
WINDOWS: Final[Mapping[Window, tuple[int, int]]] = {
    "15m": (900, STEP_SECONDS),
    "1h": (3_600, 2 * STEP_SECONDS),
    "24h": (86_400, COARSE_SECONDS),
}
"""How long each window is, and the step of its points, in seconds."""


class Point(msgspec.Struct, frozen=True):
    """One step. Quantiles are estimates in seconds; None: nothing ran."""

    at: datetime
    """Its begin."""
    seconds: float
    """How much of it is over and known."""
    done: int
    retried: int
    dead: int
    deferred: int
    accepted: int
    """New messages that were committed to the outbox; of the whole system, so 0 for one endpoint."""
    published: int
    """Sends that RabbitMQ confirmed; as `accepted`."""
    handler_p50: float | None
    handler_p99: float | None
    total_p50: float | None
    """From the creation of a message until it is done."""
    total_p99: float | None

    @property
    def rate(self) -> float:
        """Of what was done, a second."""
        return self.done / self.seconds


class History(msgspec.Struct, frozen=True):
    """A window of equal steps, oldest first; also those without work."""

    window: Window
    step_seconds: int
    endpoint: str | None
    """None: the whole system."""
    points: tuple[Point, ...]


class Rate(msgspec.Struct, frozen=True):
    """What an endpoint did lately. Quantiles are estimates in seconds; None: nothing ran."""

    endpoint: str
    seconds: float
    done: int
    retried: int
    dead: int
    deferred: int
    per_second: float
    """Of what was done."""
    retry_ratio: float | None
    """Failed attempts, among all attempts."""
    handler_p50: float | None
    handler_p99: float | None
    total_p50: float | None
    total_p99: float | None


async def read(database: Database, window: Window, endpoint: str | None = None) -> History:
    """The window that ends now, of one endpoint or of the whole system."""
    length, step = WINDOWS[window]
    until = known_until(utcnow().timestamp())
    last = (until - 1) // step * step
    first = last - length + step
    stored = COARSE_SECONDS if step % COARSE_SECONDS == 0 else STEP_SECONDS
    bucket = history.c.at - history.c.at % step
    mine = [history.c.step == stored, history.c.at.between(first, until - 1)]
    if endpoint is not None:
        mine.append(history.c.endpoint == endpoint)
    query = sa.select(bucket.label("bucket"), *_sums()).where(*mine).group_by(bucket)
    found = {int(row.bucket): _numbers(row) for row in await database.query(query)}
    nothing = [0] * len(COLUMNS)
    points = [point_of(at, min(step, until - at), found.get(at, nothing)) for at in range(first, until, step)]
    return History(window, step, endpoint, tuple(points))


async def rates(database: Database, seconds: int = 300) -> dict[str, Rate]:
    """What each endpoint did in the last so many seconds; without those that did nothing."""
    until = known_until(utcnow().timestamp())
    mine = (history.c.step == STEP_SECONDS, history.c.at.between(until - seconds, until - 1))
    query = sa.select(history.c.endpoint, *_sums()).where(*mine, history.c.endpoint != SENDING)
    rows = await database.query(query.group_by(history.c.endpoint).order_by(history.c.endpoint))
    return {row.endpoint: rate_of(row.endpoint, seconds, _numbers(row)) for row in rows}


def point_of(at: int, seconds: float, counts: Sequence[int]) -> Point:
    """A point by the numbers of its step."""
    return Point(from_epoch(at), seconds, *counts[:RAN], *_quantiles(counts))


def rate_of(endpoint: str, seconds: float, counts: Sequence[int]) -> Rate:
    """A rate by the numbers of so many seconds."""
    done, retried, dead, deferred = counts[:4]
    attempts = done + retried + dead
    ratio = (retried + dead) / attempts if attempts else None
    return Rate(endpoint, seconds, done, retried, dead, deferred, done / seconds, ratio, *_quantiles(counts))


def _quantiles(counts: Sequence[int]) -> Iterator[float | None]:
    for start in (RAN, AGED):
        slots = counts[start : start + HISTORY_SLOTS]
        yield from (quantile(slots, 0.5), quantile(slots, 0.99))


def _sums() -> Iterable[sa.Label[Any]]:
    return (sa.func.sum(history.c[name]).label(name) for name in COLUMNS)


def _numbers(row: sa.Row[Any]) -> list[int]:
    """Postgres sums to a numeric."""
    return [int(value) for value in tuple(row)[1:]]


async def succeeded(connection: AsyncConnection, since: Mapping[str, float], *, but: str) -> frozenset[str]:
    """The endpoints at which a process other than `but` has handled a message since the given times (since 1970).

    Only steps that began after the time count, so a success from before it never does.
    """
    if not since:
        return frozenset()
    after = (
        sa.and_(history.c.endpoint == endpoint, history.c.at >= (int(seconds) // STEP_SECONDS + 1) * STEP_SECONDS)
        for endpoint, seconds in since.items()
    )
    first = int(min(since.values()))
    others = (history.c.step == STEP_SECONDS, history.c.at >= first, history.c.instance != but, history.c.done > 0)
    query = sa.select(history.c.endpoint).distinct().where(*others, sa.or_(*after))
    return frozenset(row.endpoint for row in await connection.execute(query))
