"""The worker: decode -> inbox -> handle -> outcome -> settle. One delivery ends in exactly one outcome.

Every delivery goes one of three ways: to the lane of its endpoint (lanes.py), through the quarantine first if it
may have killed a worker (quarantine.py), or to the strays if no handler takes it (strays.py).

Invariants: nothing is acknowledged before its outcome is committed; a failure of the database spends no
attempt, the group runs again; everything in memory is bounded by the prefetch.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from msgspec.structs import replace

from hopline import codec, topology
from hopline.broker import Consumer, Delivery
from hopline.clock import from_epoch, utcnow
from hopline.database import Database
from hopline.errors import MessageError, Undecodable, UnknownType, text_of
from hopline.handlers import Handlers
from hopline.heartbeat import Heard
from hopline.history import Recorder
from hopline.settings import Settings
from hopline.worker.calling import Member
from hopline.worker.desk import Desk
from hopline.worker.lanes import EffectLane, Lane, TransactionLane
from hopline.worker.quarantine import Quarantine
from hopline.worker.strays import Strays, given_up

CLOCK_AHEAD = timedelta(days=1)
"""As much may the clock of a producer be ahead of the database's."""
TOLD_RUNNING = 20
"""So many of the messages that are being handled are told of."""


class Worker:
    """Handles deliveries of the given handlers' queues. Give `receive` to a Consumer, then `attach` it."""

    def __init__(self, database: Database, handlers: Handlers, settings: Settings, *, instance: str) -> None:
        self._oldest = timedelta(days=settings.inbox_retention_days)
        self._clock_ahead = timedelta(0)
        self._desk = Desk(database, settings, instance)
        self._lanes: dict[tuple[str, str, int], Lane] = {}
        for endpoint in handlers:
            lane = TransactionLane(self._desk, endpoint) if endpoint.transactional else EffectLane(self._desk, endpoint)
            self._lanes[endpoint.queue, endpoint.type.name, endpoint.type.version] = lane
        self._dead_queues = {topology.dead_queue(queue): queue for queue in handlers.queues()}
        self._quarantine = Quarantine(self._desk, self._lanes.values())
        self._strays = Strays(self._desk)

    @property
    def crashed(self) -> asyncio.Future[None]:
        """Ends with an exception if the worker itself has a fault; the process should then stop, unacknowledged."""
        return self._desk.crashed

    @property
    def busy(self) -> int:
        """Deliveries that are not settled yet."""
        return self._strays.busy + self._quarantine.busy + sum(lane.busy for lane in self._lanes.values())

    def state(self) -> dict[str, object]:
        """What a worker says of itself (docs/reference/tables.md, `hopline_workers.state`)."""
        return {
            "busy": self.busy,
            "paused": self._desk.pauses.state(),
            "paused_by_operator": self._desk.pauses.by_operator,
            "unknown": self._strays.state(),
            "database": self._desk.pauses.storing_trouble or "ok",
        }

    def details(self) -> dict[str, object]:
        """What it is doing right now: the messages that have run the longest (docs/reference/tables.md)."""
        running = [one for lane in self._lanes.values() for one in lane.running(TOLD_RUNNING)]
        return {
            "running": [
                {
                    "endpoint": one.endpoint,
                    "message_id": one.member.envelope.id,
                    "key": one.member.envelope.key,
                    "since": from_epoch(one.since).isoformat(),
                }
                for one in heapq.nsmallest(TOLD_RUNNING, running, key=lambda one: one.since)
            ]
        }

    def attach(self, consumer: Consumer, recorder: Recorder | None = None) -> None:
        """The consumer that settles, and who counts outcomes; before the first delivery."""
        self._desk.attach(consumer, recorder)

    def obey(self, paused: Collection[str]) -> None:
        """These queues, and no others, are paused by an operator now."""
        self._desk.pauses.obey(paused)

    def set_clock(self, ahead: timedelta) -> None:
        """How far the database's clock is ahead of this process's: by that clock messages are too old, and purged."""
        self._clock_ahead = ahead

    def hear(self, heard: Heard) -> None:
        """What operators want, what other workers have done, and the database's clock, with each heartbeat."""
        if heard.clock_ahead is not None:
            self.set_clock(heard.clock_ahead)
        self.obey([pause.queue for pause in heard.pauses])
        self._desk.pauses.found_up_elsewhere(heard.succeeded)

    def found_down_at(self) -> Mapping[str, float]:
        """The handlers whose queue is paused since they found down what they need; see Heartbeat."""
        return self._desk.pauses.found_down_at

    def receive(self, deliveries: list[Delivery]) -> None:
        """Takes deliveries; returns at once."""
        opened: dict[Lane, list[Member]] = {}
        now = utcnow() + self._clock_ahead
        for delivery in deliveries:
            try:
                lane, member = self._open(delivery, now)
            except MessageError as error:
                self._strays.add(delivery, error)
                continue
            except BaseException as error:  # noqa: BLE001 - code of the message's class: it fails this message alone
                self._strays.add(delivery, Unreadable(error))
                continue
            if delivery.redelivered or member.envelope.suspect:
                self._quarantine.add(lane, replace(member, suspect=True))
            else:
                opened.setdefault(lane, []).append(member)
        for lane, members in opened.items():
            if self._quarantine.closed:
                self._quarantine.hold(lane, members)
            else:
                lane.add(members)

    async def drained(self) -> None:
        """Returns when every delivery that was taken is settled, but for suspects that another worker has to judge."""
        await self._strays.drained()
        await self._quarantine.drained()
        for lane in self._lanes.values():
            await lane.drained()

    async def abandon(self) -> None:
        """Stops at once; what is not settled will be delivered again."""
        self._desk.abandoned = True
        self._desk.pauses.close()
        await self._strays.abandon()
        await self._quarantine.abandon()
        for lane in self._lanes.values():
            await lane.abandon()

    def _open(self, delivery: Delivery, now: datetime) -> tuple[Lane, Member]:
        if delivery.queue in self._dead_queues:
            raise given_up(self._dead_queues[delivery.queue], delivery.describe())
        envelope = delivery.envelope
        if envelope is None:
            raise Undecodable("the message has no message_id (a UUIDv7) or no type: it was not sent by Hopline")
        if envelope.created_at < now - self._oldest:
            raise TooOld(envelope.created_at, self._oldest)
        if envelope.created_at > now + CLOCK_AHEAD:
            raise FromTheFuture(envelope.created_at)
        lane = self._lanes.get((delivery.queue, envelope.type, envelope.version))
        if lane is None:
            raise UnknownType(envelope.type, envelope.version)
        return lane, Member(delivery, envelope, codec.decode(lane.endpoint.type, delivery.body))


class Unreadable(MessageError):
    """Reading the message raised what reading does not raise; the program's own message class may."""

    reason = "unreadable"

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"reading the message raised {type(error).__name__}: {text_of(error)}")


class FromTheFuture(MessageError):
    """Its id was made at a time that is not yet: the inbox could not forget it in time, nor keep it for long enough."""

    reason = "from-the-future"

    def __init__(self, created_at: datetime) -> None:
        super().__init__(
            f"its id says that it was made at {created_at:%Y-%m-%d %H:%M} UTC, over {CLOCK_AHEAD} ahead of the "
            "database's clock; compare the clocks, then replay it"
        )


class TooOld(MessageError):
    """Older than the inbox remembers: whether it was done is not known any more."""

    reason = "too-old"

    def __init__(self, created_at: datetime, oldest: timedelta) -> None:
        super().__init__(
            f"made at {created_at:%Y-%m-%d %H:%M} UTC, longer ago than the inbox remembers ({oldest.days} days)"
        )
