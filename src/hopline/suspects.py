"""The suspects: messages whose delivery may have killed a worker, and the evidence for it.

A mark names the instance that began to run a suspect alone. It counts when that instance is dead (its
heartbeat is old and does not move), and is worth nothing when the instance lives or has stopped in order. The
first kill is never marked, for nobody suspected the message then; two marks that count prove three kills.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.database import Transaction, now
from hopline.rows import Dialect, Rows, insert
from hopline.schema import Id, suspects, workers

DEATH_HEARTBEATS = 4
"""Heartbeats that have to be missing before an instance is taken to be dead."""
LOOK_HEARTBEATS = 2
"""Between two looks at an instance that must have moved if it lives: the database itself may have been down."""
KILLS_COUNTED = 2
"""Marks that count, before the message is parked."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An instance that began to run a message and did not end it; None when it has stopped in order."""

    worker: str
    heartbeat_at: datetime | None
    age_seconds: float
    """Of the last heartbeat, by the database's clock."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of an instance's heartbeat at a first look, by the judge's own monotonic clock."""

    heartbeat_at: datetime | None
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many marks count; whether some instance is neither known to live nor to be dead yet."""

    counted: int
    undecided: bool

    @property
    def killer(self) -> bool:
        """Whether the message has killed as many workers as it may."""
        return self.counted >= KILLS_COUNTED


def judge(marks: Sequence[Mark], first: Mapping[str, Look], at_seconds: float, heartbeat_seconds: float) -> Verdict:
    """The verdict on a message by the marks of it, compared with the first look at each instance. Pure."""
    counted, undecided = 0, False
    for mark in marks:
        look = first.get(mark.worker)
        if mark.heartbeat_at is None or (look is not None and mark.heartbeat_at != look.heartbeat_at):
            continue  # stopped in order, or alive
        silent = mark.age_seconds >= DEATH_HEARTBEATS * heartbeat_seconds
        watched = look is not None and at_seconds - look.at_seconds >= LOOK_HEARTBEATS * heartbeat_seconds
        counted += silent and watched
        undecided |= not (silent and watched)
    return Verdict(counted, undecided)


async def read(connection: AsyncConnection, endpoint: str, ids: Sequence[str], but: str) -> dict[str, list[Mark]]:
    """The marks of the given messages at an endpoint, without those of the instance `but`."""
    dialect: Dialect = "sqlite" if connection.dialect.name == "sqlite" else "postgresql"
    parameters = {"of_endpoint": endpoint, "but": but, **_IDS.given(dialect, id=ids)}
    found: dict[str, list[Mark]] = {}
    for row in await connection.execute(_reading(dialect), parameters):
        age = (row.now - row.heartbeat_at).total_seconds() if row.heartbeat_at else 0.0
        found.setdefault(row.message_id, []).append(Mark(row.worker, row.heartbeat_at, age))
    return found


async def mark(tx: Transaction, endpoint: str, message_id: str, worker: str) -> None:
    """An instance begins to run a suspect."""
    row = {"endpoint": endpoint, "message_id": message_id, "worker": worker}
    await tx.execute(insert(tx.dialect, suspects).values(**row, started_at=now()).on_conflict_do_nothing())


async def clear(tx: Transaction, endpoint: str, ids: Sequence[str]) -> None:
    """These messages have an outcome: they did not kill."""
    mine = sa.and_(suspects.c.endpoint == endpoint, suspects.c.message_id.in_(ids))
    await tx.execute(sa.delete(suspects).where(mine))


async def clear_worker(tx: Transaction, worker: str) -> None:
    """The instance lives, and runs none of its suspects any more."""
    await tx.execute(sa.delete(suspects).where(suspects.c.worker == worker))


_IDS = Rows("ids", id=Id)


@cache
def _reading(dialect: Dialect) -> sa.Select[Any]:
    return (
        sa.select(suspects.c.message_id, suspects.c.worker, workers.c.heartbeat_at, now().label("now"))
        .select_from(suspects.join(workers, workers.c.instance == suspects.c.worker, isouter=True))
        .where(
            suspects.c.endpoint == sa.bindparam("of_endpoint"),
            suspects.c.worker != sa.bindparam("but"),
            _IDS.among(dialect, suspects.c.message_id),
        )
    )
