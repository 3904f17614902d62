"""What all lanes of a worker share: the database, the consumer, who this worker is, and how outcomes are stored."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import structlog

from hopline import attempts, inbox, metrics, outbox, suspects
from hopline.attempts import Attempt
from hopline.broker import Consumer, Delivery
from hopline.clock import utcnow
from hopline.database import Database, Transaction
from hopline.deadletters import DeadLetter, park
from hopline.errors import DatabaseError, DatabaseUnavailable, OutboxFull, TransactionAborted
from hopline.fingerprint import NO_CAUSE, fingerprint
from hopline.handlers import Endpoint
from hopline.history import Recorder
from hopline.inbox import Finished
from hopline.message import Envelope
from hopline.outcome import Dead, Defer, Done, Retry
from hopline.retry import bounded
from hopline.settings import Settings
from hopline.worker.calling import Handled, Member
from hopline.worker.pauses import Pauses

DATABASE_BACKOFF_CAP_SECONDS = 5.0
TRACES_TOLD = 1_000
"""Causes of failures whose stack was logged and is not logged again, by this process."""

log = structlog.get_logger("hopline.worker")


class Desk:
    """Stores outcomes and acknowledges them, in that order."""

    def __init__(self, database: Database, settings: Settings, instance: str) -> None:
        self.database = database
        self.settings = settings
        self.instance = instance
        self.pauses = Pauses(settings)
        self.consumer: Consumer | None = None
        self._recorder = Recorder()
        self.crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.abandoned = False
        """Whether the worker itself cancels what runs: any other cancellation is a handler's."""
        self.group_members = database.group_members(settings.group_members)
        self._traces_told: set[str] = set()

    def attach(self, consumer: Consumer, recorder: Recorder | None = None) -> None:
        """The consumer that settles, and who counts outcomes; before the first delivery."""
        self.consumer = consumer
        self._recorder = recorder or self._recorder
        self.pauses.attach(consumer)

    def crash(self, error: BaseException) -> None:
        """A fault of the worker itself, not of a message: the process should not go on."""
        if not self.crashed.done():
            self.crashed.set_exception(error)

    def owned(self, members: Sequence[Member]) -> list[Member]:
        """Those that are still ours to settle: the channel they came on is open."""
        assert self.consumer is not None
        return [member for member in members if self.consumer.owns(member.delivery)]

    def owns_any(self, deliveries: Sequence[Delivery]) -> bool:
        """Whether at least one of the deliveries is still ours to settle."""
        assert self.consumer is not None
        return any(self.consumer.owns(delivery) for delivery in deliveries)

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledges, after the commit."""
        assert self.consumer is not None
        self.consumer.settle(deliveries)

    async def persist(self, work: Callable[[], Awaitable[None]], what: str) -> None:
        """Runs a whole transaction until it commits. A failing database spends no attempt of any message.

        While it cannot be used at all, or the outbox is full, no queue is consumed. A limit that ends a statement of
        the engine's own counts as that; one that a handler exceeds never comes here (blame.py).
        """
        failures = 0
        try:
            while True:
                try:
                    return await work()
                except (DatabaseError, OutboxFull) as error:
                    if isinstance(error, DatabaseUnavailable | TransactionAborted | OutboxFull):
                        self.pauses.storing_fails(what, str(error))
                    delay = min(DATABASE_BACKOFF_CAP_SECONDS, 0.02 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)
                    log.warning("waiting for the database", lane=what, error=str(error), retry_in_seconds=delay)
                    await asyncio.sleep(delay)
                    failures += 1
        finally:
            self.pauses.storing_works(what)

    def judged(self, endpoint: Endpoint, handled: Handled) -> Handled:
        """Tells the endpoint's breaker what one run of its handler found; a pause gets its length here."""
        match handled.outcome:
            case Defer(pause=True) as outcome:
                self.pauses.found_down(endpoint, handled.error_text, handled.seconds)
                delay = self.pauses.deferral_seconds(endpoint)
                return handled.changed(outcome=replace(outcome, delay_seconds=delay))
            case Done() | Dead() if handled.failure is None:  # what it needs has answered
                self.pauses.found_up(endpoint, handled.seconds)
        return handled

    def deferred(self, endpoint: Endpoint) -> Handled:
        """What becomes of a message that is not run, because its handler is paused."""
        return Handled(Defer(self.pauses.deferral_seconds(endpoint), "its handler is paused"))

    async def claim(self, tx: Transaction, endpoint: str, members: Sequence[Member]) -> list[Member]:
        """The members to handle: not done, and not a duplicate of an attempt that has failed already.

        At most one member of a message: its claim is one row.
        """
        claimed = await inbox.claim(tx, endpoint, [member.envelope for member in members], self.instance)
        fresh = [member for member in members if member.envelope.id in claimed]
        if not fresh:
            return []
        # A statement of its own, after the claim: the claim may have waited for another worker's transaction, and
        # only a later snapshot shows the attempt that failed in it.
        parameters = {"of_endpoint": endpoint, **attempts.given(tx.dialect, [member.envelope for member in fresh])}
        failed = {row.message_id for row in await tx.rows(attempts.recorded(tx.dialect), parameters)}
        await inbox.release(tx, endpoint, sorted(failed))
        return [member for member in fresh if member.envelope.id not in failed]

    async def conclude(
        self, tx: Transaction, endpoint: Endpoint, results: Sequence[tuple[Member, Handled]], *, claimed: bool = True
    ) -> None:
        """Stores the outcomes of members, and what they send, in the open transaction.

        Those of members that are not `claimed` have to be effects that are done and send nothing.
        """
        finished: list[Finished] = []
        failed: list[tuple[Member, Handled]] = []
        for member, handled in results:
            if isinstance(handled.outcome, Done):
                finished.append(Finished(member.envelope, handled.seconds, handled.outcome.note))
                for envelope in handled.sends:
                    tx.add(envelope)
            else:
                failed.append((member, handled))
        if finished and claimed:
            inbox.finish(tx, endpoint.name, finished)
        elif finished:
            inbox.record(tx, endpoint.name, finished, self.instance)
        if failed:
            await self._store_failures(tx, endpoint, failed)
        if survived := [member.envelope.id for member, _ in results if member.suspect]:
            await suspects.clear(tx, endpoint.name, survived)

    def count(self, endpoint: Endpoint, results: Sequence[tuple[Member, Handled]]) -> None:
        """Counts outcomes, after their commit."""
        now = time.time()
        ran: Counter[tuple[str, float]] = Counter()  # a handler of lists runs once for all that have the same seconds
        for member, handled in results:
            outcome = type(bounded(handled.outcome, member.envelope.attempt, endpoint.retry)).__name__.lower()
            ran[outcome, handled.seconds] += 1
            age = now - member.envelope.created_at.timestamp()
            self._recorder.handled(endpoint.name, outcome, handled.seconds, age)
        for (outcome, seconds), messages in ran.items():
            metrics.handled(endpoint.name, outcome, seconds, messages)

    async def defer(self, tx: Transaction, queue: str, deferred: Sequence[tuple[Envelope, float]]) -> None:
        """Sends messages to their queue again, each after its delay, unless a duplicate has done so already."""
        known = await outbox.scheduled(tx, queue, [envelope for envelope, _ in deferred]) if deferred else set()
        for envelope, delay_seconds in deferred:
            if envelope.attempt_id not in known:
                tx.schedule(envelope.changed(suspect=False), queue=queue, delay_seconds=delay_seconds)

    async def _store_failures(
        self, tx: Transaction, endpoint: Endpoint, failed: Sequence[tuple[Member, Handled]]
    ) -> None:
        await inbox.release(tx, endpoint.name, sorted(member.envelope.id for member, _ in failed))
        rows: list[Attempt] = []
        letters: list[DeadLetter] = []
        deferred: list[tuple[Envelope, float]] = []
        for member, handled in failed:
            envelope = member.envelope
            outcome = bounded(handled.outcome, envelope.attempt, endpoint.retry)
            match outcome:
                case Retry(delay_seconds=delay):
                    rows.append(self._attempt(endpoint, member, handled, "retry"))
                    again = envelope.changed(attempt=envelope.attempt + 1, suspect=False)
                    tx.schedule(again, queue=endpoint.queue, delay_seconds=delay)
                case Defer(delay_seconds=delay):
                    deferred.append((envelope, delay))
                case Dead(reason=reason):
                    row = self._attempt(endpoint, member, handled, "dead")
                    rows.append(row)
                    letter = dead_letter(member.delivery, endpoint.name, reason, row.error, row.stack)
                    letters.append(replace(letter, cause=handled.failure.cause if handled.failure else NO_CAUSE))
                case Done():
                    raise AssertionError("a member that is done did not fail")
            paused = isinstance(outcome, Defer) and self.pauses.is_open(endpoint)  # said once, by the pause
            (log.debug if paused else log.warning)(
                "message not handled",
                endpoint=endpoint.name,
                message_id=envelope.id,
                key=envelope.key,
                attempt=envelope.attempt,
                outcome=type(outcome).__name__.lower(),
                error=handled.error_text[:300],
                **self._trace(handled, envelope.type),
            )
        await self.defer(tx, endpoint.queue, deferred)
        await attempts.record(tx, rows)
        await park(tx, letters)

    def _trace(self, handled: Handled, type_name: str) -> dict[str, str]:
        """The stack for the log, once for each cause."""
        if handled.failure is None:
            return {}
        cause = fingerprint(handled.failure.cause, "", type_name)
        if cause in self._traces_told or len(self._traces_told) >= TRACES_TOLD:
            return {}
        self._traces_told.add(cause)
        return {"exception": handled.failure.stack}

    def _attempt(self, endpoint: Endpoint, member: Member, handled: Handled, outcome: str) -> Attempt:
        finished_at = utcnow()
        return Attempt(
            endpoint=endpoint.name,
            envelope=member.envelope,
            outcome=outcome,
            error=handled.error_text,
            stack=handled.failure.stack if handled.failure else "",
            worker=self.instance,
            started_at=finished_at - timedelta(seconds=handled.seconds),
            finished_at=finished_at,
        )


def dead_letter(delivery: Delivery, endpoint: str | None, reason: str, error: str, stack: str = "") -> DeadLetter:
    """A dead letter with all that the delivery brought."""
    properties = delivery.describe()
    return DeadLetter(delivery.queue, endpoint, delivery.envelope, reason, error, stack, properties, delivery.body)
