"""How old the oldest message in a queue is, by what the database knows of sends and results: an estimate.

RabbitMQ does not tell it of quorum queues. What was sent to a queue and has neither a result nor a later send must be
in it. Only queues that hold something are asked about. The latest sends are looked through; if a queue holds more
than was found among them, the boundary between what is settled and what is not is sought further back, in steps that
double and then halve: a queue gives its messages in order, more or less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.clock import first_id, id_time
from hopline.schema import dead_letters, endpoints, inbox, messages, outbox

SCANNED_SENDS = 1_000
"""A queue's oldest message is looked for among so many of the latest sends."""
PROBED_SENDS = 100
"""So many sends are looked at further back, at each step."""
HALVINGS = 4
OLDEST_SECONDS = 400 * 86_400.0


@dataclass(frozen=True, slots=True)
class Unsettled:
    """What is known to be in a queue: how much, and the age of the oldest."""

    count: int
    oldest_seconds: float


async def unsettled_in(connection: AsyncConnection, at: datetime, depths: Mapping[str, int]) -> dict[str, Unsettled]:
    """Of the queues that hold something, by `depths`."""
    queues = [queue for queue, depth in depths.items() if depth]
    if not queues:
        return {}
    found, begin = await _look(connection, at, 0.0, queues, SCANNED_SENDS)
    deep = [queue for queue in queues if queue not in found or found[queue].count < depths[queue]]
    if deep and begin is not None:
        for queue, age in (await _further_back(connection, at, (at - begin).total_seconds(), deep)).items():
            found[queue] = Unsettled(found[queue].count if queue in found else 0, age)
    return found


async def _further_back(
    connection: AsyncConnection, at: datetime, age_seconds: float, queues: Sequence[str]
) -> dict[str, float]:
    """The oldest that was found of each queue, older than the given age."""
    oldest: dict[str, float] = {}

    async def is_there(age: float) -> bool:
        seen, begin = await _look(connection, at, age, queues, PROBED_SENDS)
        oldest.update({queue: max(oldest.get(queue, 0.0), one.oldest_seconds) for queue, one in seen.items()})
        return bool(seen) and begin is not None

    low, high = 0.0, max(1.0, age_seconds)
    while high < OLDEST_SECONDS and await is_there(high):
        low, high = high, high * 2
    if low:
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if await is_there(middle) else (low, middle)
    return oldest


async def _look(
    connection: AsyncConnection, at: datetime, age_seconds: float, queues: Sequence[str], limit: int
) -> tuple[dict[str, Unsettled], datetime | None]:
    """What is unsettled among the last sends that were that old, and when the first of those sends was stored."""
    before = first_id(at - timedelta(seconds=age_seconds) if age_seconds else at + timedelta(days=1))
    parameters = {"before": before, "most": limit}
    first = (await connection.execute(_first(), parameters)).scalar()
    rows = await connection.execute(_unsettled(), {**parameters, "queues": list(queues)})
    found = {row.queue: Unsettled(row.held, max(0.0, (at - row.oldest).total_seconds())) for row in rows}
    return found, id_time(first) if first else None


def _latest(*names: str) -> sa.Select[Any]:
    columns = (outbox.c[name] for name in names)
    before = outbox.c.id < sa.bindparam("before", type_=outbox.c.id.type)
    return sa.select(*columns).where(before).order_by(outbox.c.id.desc()).limit(sa.bindparam("most", type_=sa.Integer))


@cache
def _first() -> sa.Select[Any]:
    latest = _latest("id").subquery("latest")
    return sa.select(latest.c.id).order_by(latest.c.id).limit(1)


@cache
def _unsettled() -> sa.Select[Any]:
    """What was sent to each queue and has neither a result nor a later send."""
    latest = _latest("id", "message_id", "destination", "run", "sent_at").subquery("latest")
    later = outbox.alias("later")
    bound = (  # each queue and type once, whatever endpoints and versions there are
        sa.select(endpoints.c.queue, endpoints.c.type, sa.func.min(endpoints.c.since).label("since"))
        .group_by(endpoints.c.queue, endpoints.c.type)
        .subquery("bound")
    )
    names = sa.select(endpoints.c.endpoint).where(endpoints.c.queue == bound.c.queue).correlate(bound)
    settled = sa.or_(
        sa.exists().where(inbox.c.message_id == latest.c.message_id, inbox.c.endpoint.in_(names)),
        sa.exists().where(
            dead_letters.c.message_id == latest.c.message_id,
            dead_letters.c.queue == bound.c.queue,
            dead_letters.c.run >= latest.c.run,
        ),
        sa.exists().where(
            later.c.message_id == latest.c.message_id,
            later.c.destination == bound.c.queue,
            later.c.id > latest.c.id,
        ),
    )
    return (
        sa.select(bound.c.queue, sa.func.count().label("held"), sa.func.min(latest.c.sent_at).label("oldest"))
        .select_from(
            latest.join(messages, messages.c.id == latest.c.message_id).join(bound, bound.c.type == messages.c.type)
        )
        .where(
            bound.c.queue.in_(sa.bindparam("queues", expanding=True)),
            latest.c.destination.in_([sa.literal(""), bound.c.queue]),
            latest.c.sent_at >= bound.c.since,
            ~settled,
        )
        .group_by(bound.c.queue)
    )
