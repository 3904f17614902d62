"""The loss watch: a worker looks whether sends are under way to its queues that nobody has.

A queue that is deleted and made anew at once by somebody else is never missing, and RabbitMQ may cancel no consumer
and deliver nothing to it. So a worker that was given nothing for a while looks for sends without a result. If there
are any it proves, or fails to prove, that nobody has them (recovery.py):

    what workers hold, the queue, what workers hold, the queue, what workers hold

Each is read after the one before; between the readings every worker beats once. If it is proven, the loss is written
down and recovered as that of any queue. Every worker of the queue then makes its consumer again: RabbitMQ may hold
messages for the one that it forgot.

Age alone proves nothing: a message that a slow handler has is in a worker's hand. The proof needs a moment in which
no worker of the queue holds or is given anything, so a queue that is never idle is looked at when it is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import sqlalchemy as sa
import structlog

from hopline.database import Database, now
from hopline.errors import OutsideError
from hopline.handlers import Handlers
from hopline.live import QueueReading
from hopline.recovery import Holding, Holdings, holdings_of, lost_sends, nobody_holds, note_loss
from hopline.schema import UtcTime, outbox, queue_losses, workers
from hopline.suspects import DEATH_HEARTBEATS
from hopline.topology import dead_queue

LOOK_SECONDS = 10.0
"""How often a worker looks."""
SETTLING_SECONDS = 10.0
"""A send that was confirmed more recently is not looked for: it may just be on its way to a worker."""
SCANNED_SENDS = 2_000
"""So many sends are looked through at a time: the latest, and then as many further back."""
HEARTBEATS = 5
"""So many heartbeats of each worker are waited for."""

log = structlog.get_logger("hopline.recovery")

ReadQueues = Callable[[Sequence[str]], Awaitable[Mapping[str, QueueReading]]]


class Consuming(Protocol):
    """What the watch asks of the consumer of its process."""

    def holding(self, queue: str) -> Mapping[str, object]:
        """`delivered`, `unsettled` and `consuming` of a queue."""
        ...

    def remake(self, queue: str, why: str) -> bool:
        """Makes a consumer again, unless it holds deliveries."""
        ...


def is_bare(queue: QueueReading | None, dead: QueueReading | None, holdings: Holdings) -> bool:
    """Whether a queue has nothing ready, a leader that says so, and no consumer but those of known workers. Pure.

    A queue without a leader reads as empty and without consumers.
    """
    told = sum(holding.consumers for holding in holdings.values())
    if queue is None or dead is None or queue.ready or dead.ready:
        return False
    return 1 <= (queue.consumers or 0) <= told


class LossWatch:
    """Looks at the queues of one worker. `run` ends when it is cancelled."""

    def __init__(
        self,
        database: Database,
        consumer: Consuming,
        read_queues: ReadQueues,
        handlers: Handlers,
        queues: Sequence[str],
        *,
        instance: str,
        heartbeat_seconds: float,
    ) -> None:
        self._database = database
        self._consumer = consumer
        self._read_queues = read_queues
        self._types = {
            queue: frozenset(endpoint.type.name for endpoint in handlers if endpoint.queue == queue) for queue in queues
        }
        self._instance = instance
        self._heartbeat_seconds = heartbeat_seconds
        self._delivered: dict[str, object] = {}
        """What had been delivered of each queue at the last look."""
        self._before: dict[str, str] = {}
        """The id of the send up to which each queue was looked through, from the latest on."""
        self._remade: dict[str, datetime] = {}
        """The losses for which a consumer was made again, or which are older than this process."""

    async def run(self) -> None:
        """Looks again and again."""
        try:
            self._remade = await self._open_losses()
        except OutsideError as error:
            log.warning("open losses could not be read", error=str(error))
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))
            try:
                await self._remake_consumers()
                for queue in self._types:
                    await self._look(queue)
            except (OutsideError, TimeoutError) as error:
                log.warning("it could not be looked whether messages are lost", error=str(error))

    async def _look(self, queue: str) -> None:
        holding = self._consumer.holding(queue)
        before, self._delivered[queue] = self._delivered.get(queue), holding["delivered"]
        if before != holding["delivered"] or holding["unsettled"] or not holding["consuming"]:
            return
        async with self._database.reading() as connection:
            began: datetime = (await connection.execute(sa.select(now()))).scalar_one()
        if await self._has_unanswered(queue, began) and await self._is_proven(queue):
            await self._note(queue, began)

    async def _has_unanswered(self, queue: str, at: datetime) -> bool:
        """Whether sends have no result: among the latest ones, or among as many further back."""
        if await self._scan(queue, at, None):
            return True
        return queue in self._before and await self._scan(queue, at, self._before[queue])

    async def _scan(self, queue: str, at: datetime, before: str | None) -> bool:
        ids = sa.select(outbox.c.id).order_by(outbox.c.id.desc()).limit(SCANNED_SENDS)
        if before is not None:
            ids = ids.where(outbox.c.id < before)
        chunk = ids.subquery()
        among = sa.select(chunk.c.id)
        settled_at = at - timedelta(seconds=SETTLING_SECONDS)
        unanswered = lost_sends(queue, settled_at, types=self._types[queue], among=among).limit(1)
        async with self._database.reading() as connection:
            found = (await connection.execute(unanswered)).first()
            last = (await connection.execute(sa.select(chunk.c.id).order_by(chunk.c.id).limit(1))).scalar()
        if last is None:
            self._before.pop(queue, None)  # all were looked through: from the latest on again
        elif before is not None or queue not in self._before:
            self._before[queue] = last
        return found is not None

    async def _is_proven(self, queue: str) -> bool:
        said: list[Holdings] = []
        after: datetime | None = None
        for is_last in (False, False, True):
            holdings = await self._said_after(queue, after)
            if not holdings or any(holding.unsettled for holding in holdings.values()):
                return False
            said.append(holdings)
            if not is_last:
                readings = await self._read_queues([queue, dead_queue(queue)])
                mine = readings.get(queue)
                if mine is not None and not mine.consumers:
                    self._consumer.remake(queue, "RabbitMQ does not know it")  # or the queue has no leader
                    return False
                if not is_bare(mine, readings.get(dead_queue(queue)), holdings):
                    return False
                async with self._database.reading() as connection:
                    after = (await connection.execute(sa.select(now()))).scalar_one()
        return nobody_holds(said[0], said[-1])

    async def _said_after(self, queue: str, after: datetime | None) -> Holdings | None:
        """What each worker of the queue said after a time; None if one does not say, or not soon enough."""
        async with asyncio.timeout(HEARTBEATS * (self._heartbeat_seconds + 1)):
            while True:
                async with self._database.reading() as connection:
                    at: datetime = (await connection.execute(sa.select(now()))).scalar_one()
                    rows = (await connection.execute(sa.select(workers))).fetchall()
                found = holdings_of(rows, queue, at, DEATH_HEARTBEATS * self._heartbeat_seconds)
                if found is None or after is None or all(_is_after(one, after) for one in found.values()):
                    return found
                await asyncio.sleep(self._heartbeat_seconds / 2)

    async def _note(self, queue: str, lost_at: datetime) -> None:
        settled_at = lost_at - timedelta(seconds=SETTLING_SECONDS)
        async with self._database.transaction() as tx:
            # Once more, after the proof: what a worker had settled by then has its result in the database.
            still = await tx.rows(lost_sends(queue, settled_at, types=self._types[queue]).limit(1))
            if not still:
                return
            log.error("messages were sent to a queue and nobody has them", queue=queue, example=still[0].message_id)
            await note_loss(tx, queue, self._instance, sa.literal(lost_at, UtcTime()))

    async def _open_losses(self) -> dict[str, datetime]:
        query = sa.select(queue_losses.c.queue, queue_losses.c.lost_at).where(queue_losses.c.recovered_at.is_(None))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.order_by(queue_losses.c.lost_at))).fetchall()
        return {row.queue: row.lost_at for row in rows}

    async def _remake_consumers(self) -> None:
        for queue, lost_at in (await self._open_losses()).items():
            is_new = queue in self._types and self._remade.get(queue) != lost_at
            if is_new and self._consumer.remake(queue, "its queue was lost"):
                self._remade[queue] = lost_at


def _is_after(holding: Holding, after: datetime) -> bool:
    return holding.taken_at > after
