"""Deliveries that no handler of this worker takes: unknown, undecodable, or given up by RabbitMQ itself.

Unknown types and versions are deferred, without spending an attempt, for as long as a deploy may take; then they
are parked, as everything else that cannot be handled is at once. What RabbitMQ dead-letters is fetched from
`NAME.dead` into the database; a message that it gave up for its many deliveries is tried once more, as a suspect.
All is committed before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import structlog

from hopline import outbox
from hopline.batching import Groups
from hopline.broker import Delivery
from hopline.clock import utcnow
from hopline.database import Transaction
from hopline.deadletters import DeadLetter, park_delivered, settled
from hopline.errors import MessageError, UnknownType, text_of
from hopline.message import Envelope
from hopline.schema import storable
from hopline.worker.desk import Desk, dead_letter

UNKNOWN_DELAY_SECONDS = 30.0
UNKNOWN_LOG_SECONDS = 60.0
"""How often at most one unknown type is logged."""
UNKNOWN_TYPES = 50
"""Unknown types that are counted by name; further ones are counted together."""
OTHER_TYPES = "other types"
SETTLED_SECONDS = 2.0
"""So long after an acknowledgement on a channel that is still open, RabbitMQ has it."""
DELIVERY_LIMIT = "delivery_limit"
REASONS = frozenset({DELIVERY_LIMIT, "expired", "maxlen", "rejected"})
"""RabbitMQ's words in x-death (its documentation, "Dead Letter Exchanges"); any other was written by somebody else."""

log = structlog.get_logger("hopline.worker")


@dataclass(frozen=True, slots=True)
class Stray:
    """A delivery, and why no handler takes it."""

    delivery: Delivery
    error: MessageError


class GivenUp(MessageError):
    """RabbitMQ itself dead-lettered the message."""

    def __init__(self, reason: str, queue: str) -> None:
        if reason not in REASONS:
            reason = "dead-lettered"
        super().__init__(f"RabbitMQ dead-lettered it from {queue!r}: {reason}")
        self.reason = reason.replace("_", "-")
        self.delivery_limit = reason == DELIVERY_LIMIT
        self.queue = queue


class Strays:
    """Defers, parks and sends back strays, in groups."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._groups: Groups[Stray, None] = Groups(
            self._store, max_members=desk.group_members, name="strays", on_error=desk.crash
        )
        self._unsettled: dict[str, tuple[float, Delivery]] = {}
        """Letters whose delivery was acknowledged, at this time of the monotonic clock, and not for certain yet."""
        self._settling: asyncio.Task[None] | None = None
        self._unknown: Counter[str] = Counter()
        self._logged: dict[str, float] = {}

    @property
    def busy(self) -> int:
        """Deliveries that are not settled yet."""
        return self._groups.busy

    def add(self, delivery: Delivery, error: MessageError) -> None:
        """Takes a stray; returns at once."""
        self._groups.put([Stray(delivery, error)])

    async def drained(self) -> None:
        """Returns when all is settled."""
        await self._groups.drained()
        await self._store_settled(list(self._unsettled))

    async def abandon(self) -> None:
        """Stops at once."""
        await self._groups.abandon()
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)

    def state(self) -> dict[str, int]:
        """The unknown types that were deferred, such as {'order.placed v3 on orders': 12}."""
        return dict(self._unknown)

    async def _store(self, strays: list[Stray]) -> list[None]:
        parked: list[tuple[DeadLetter, Delivery]] = []
        ids: list[str | None] = []

        async def store() -> None:
            parked.clear()
            self._forget_lost()
            async with self._desk.database.transaction() as tx:
                for queue in sorted({stray.delivery.queue for stray in strays}):
                    own = [stray for stray in strays if stray.delivery.queue == queue]
                    parked.extend(await self._kept_waiting(tx, queue, own))
                came = [(letter, delivery.redelivered) for letter, delivery in parked]
                ids[:] = await park_delivered(tx, came, mine=self._unsettled.keys())

        try:
            await self._desk.persist(store, "strays")
        except Exception as error:
            if len(strays) == 1:
                raise
            log.warning("strays cannot be stored together", strays=len(strays), error=text_of(error))
            for stray in strays:
                await self._store([stray])
            return [None] * len(strays)
        for letter, _ in parked:
            log.error("message parked", queue=letter.queue, reason=letter.reason, error=letter.error[:300])
        self._desk.settle([stray.delivery for stray in strays])
        now = time.monotonic()
        self._unsettled.update(
            {identifier: (now, delivery) for identifier, (_, delivery) in zip(ids, parked, strict=True) if identifier}
        )
        if self._unsettled and self._settling is None:
            self._settling = asyncio.create_task(self._settle_later(), name="letters settled")
        return [None] * len(strays)

    async def _settle_later(self) -> None:
        """Stores which letters stand for a message that will not come again, until there is none left."""
        try:
            while self._unsettled:
                await asyncio.sleep(SETTLED_SECONDS)
                self._forget_lost()
                until = time.monotonic() - SETTLED_SECONDS
                await self._store_settled([i for i, (at, _) in self._unsettled.items() if at <= until])
        finally:
            self._settling = None

    def _forget_lost(self) -> None:
        """Drops letters whose channel is gone: whether RabbitMQ has their acknowledgement is not known."""
        lost = [i for i, (_, delivery) in self._unsettled.items() if not self._desk.owns_any([delivery])]
        for identifier in lost:
            del self._unsettled[identifier]

    async def _store_settled(self, ids: Sequence[str]) -> None:
        async def store() -> None:
            async with self._desk.database.transaction() as tx:
                await settled(tx, ids)

        if ids:
            await self._desk.persist(store, "letters settled")
            for identifier in ids:
                self._unsettled.pop(identifier, None)

    async def _kept_waiting(
        self, tx: Transaction, queue: str, strays: Sequence[Stray]
    ) -> list[tuple[DeadLetter, Delivery]]:
        """Schedules those that are worth another try; returns the dead letters of the rest."""
        unknown = [s.delivery.envelope for s in strays if isinstance(s.error, UnknownType) and s.delivery.envelope]
        first = await outbox.first_sends(tx, queue, unknown) if unknown else {}
        now = utcnow()
        deferred: list[tuple[Envelope, float]] = []
        letters: list[tuple[DeadLetter, Delivery]] = []
        for stray in strays:
            envelope = stray.delivery.envelope
            match stray.error:
                case UnknownType() if envelope and self._is_worth_waiting(
                    envelope, now - first.get((envelope.id, envelope.run), now)
                ):
                    deferred.append((envelope, UNKNOWN_DELAY_SECONDS))
                    self._note(envelope, queue)
                case GivenUp(delivery_limit=True, queue=origin) if envelope and not envelope.suspect:
                    tx.schedule(envelope.changed(suspect=True), queue=origin, delay_seconds=0.0)
                    log.error("given up by RabbitMQ, tried once more alone", queue=origin, message_id=envelope.id)
                case error:
                    letters.append((letter_of(stray.delivery, error), stray.delivery))
        await self._desk.defer(tx, queue, deferred)
        return letters

    def _is_worth_waiting(self, envelope: Envelope, waited: timedelta) -> bool:
        """Whether a deploy may still bring the type; a name that cannot even be stored is no type of anybody's."""
        in_time = waited.total_seconds() < self._desk.settings.unknown_type_seconds
        return in_time and storable(envelope.type) == envelope.type

    def _note(self, envelope: Envelope, queue: str) -> None:
        name = f"{envelope.type[:100]} v{envelope.version} on {queue}"
        if name not in self._unknown and len(self._unknown) >= UNKNOWN_TYPES:
            name = OTHER_TYPES
        self._unknown[name] += 1
        now = time.monotonic()
        if now - self._logged.get(name, -UNKNOWN_LOG_SECONDS) >= UNKNOWN_LOG_SECONDS:
            self._logged[name] = now
            log.error(
                "unknown message type deferred",
                type=envelope.type,
                version=envelope.version,
                queue=queue,
                deferred=self._unknown[name],
                parked_after_seconds=self._desk.settings.unknown_type_seconds,
            )


def letter_of(delivery: Delivery, error: MessageError) -> DeadLetter:
    """The dead letter of a stray; one that came from `NAME.dead` belongs to the queue that it died in."""
    letter = dead_letter(delivery, None, error.reason, str(error))
    return replace(letter, queue=error.queue) if isinstance(error, GivenUp) else letter


def given_up(queue: str, properties: Mapping[str, Any]) -> GivenUp:
    """Why RabbitMQ gave up a message of `queue`, by the headers that it wrote."""
    headers = properties.get("headers")
    deaths = headers.get("x-death") if isinstance(headers, Mapping) else None
    latest = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping) else {}
    return GivenUp(str(latest.get("reason", "")), queue)
