"""The worker: decode -> inbox -> handle -> outcome -> settle. One delivery ends in exactly one outcome.

Each endpoint has a lane. A transactional lane handles what has gathered as one group in one transaction:
claims, handler, outcomes and what they send commit together, then the group is acknowledged. If a member
raises, the group rolls back and runs again with a savepoint a member, so that the failing one fails alone. An
effect lane runs its handler concurrently without a transaction and settles the results in groups afterwards.

Invariants: nothing is acknowledged before its outcome is committed; a failure of the database spends no
attempt, the group runs again; everything in memory is bounded by the prefetch.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from hopline import attempts, codec, inbox
from hopline.attempts import Attempt
from hopline.batching import Groups
from hopline.broker import Consumer, Delivery
from hopline.clock import utcnow
from hopline.database import Database, Dialect, Transaction
from hopline.deadletters import DeadLetter, park
from hopline.errors import DatabaseError, MessageError, Undecodable, UnknownType, UsageError
from hopline.handlers import Endpoint, Handlers
from hopline.inbox import Finished
from hopline.message import Envelope, is_message
from hopline.outcome import Dead, Defer, Done, Outcome, Retry
from hopline.retry import bounded, decide
from hopline.settings import Settings

SAVEPOINT_MEMBERS = 50
DATABASE_BACKOFF_CAP_SECONDS = 5.0

log = structlog.get_logger("hopline.worker")


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A decoded delivery on its way through a lane."""

    delivery: Delivery
    envelope: Envelope
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class Handled:
    """What one run of a handler came to: its outcome, and the messages that it returned."""

    outcome: Outcome
    sends: tuple[msgspec.Struct, ...] = ()
    error: BaseException | None = None
    seconds: float = 0.0


class MemberFailed(Exception):
    """One member of a group did not end as Done: the group has to run again with savepoints."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.alone = alone
        """Whether the connection may be unusable (a handler ran into its deadline): no savepoints then."""


class Worker:
    """Handles deliveries of the given handlers' queues. Give `receive` to a Consumer, then `attach` it."""

    def __init__(self, database: Database, handlers: Handlers, settings: Settings, *, instance: str) -> None:
        self._oldest = timedelta(days=settings.inbox_retention_days)
        self._desk = Desk(database, settings, instance)
        self._lanes: dict[tuple[str, str, int], Lane] = {}
        for endpoint in handlers:
            lane = TransactionLane(self._desk, endpoint) if endpoint.transactional else EffectLane(self._desk, endpoint)
            self._lanes[endpoint.queue, endpoint.type.name, endpoint.type.version] = lane
        self._parking = Groups(
            self._park, max_members=self._desk.group_members, name="parking", on_error=self._desk.crash
        )

    @property
    def crashed(self) -> asyncio.Future[None]:
        """Ends with an exception if the worker itself has a fault; the process should then stop, unacknowledged."""
        return self._desk.crashed

    @property
    def busy(self) -> int:
        """Deliveries that are not settled yet."""
        return self._parking.busy + sum(lane.busy for lane in self._lanes.values())

    def attach(self, consumer: Consumer) -> None:
        """The consumer that settles; before the first delivery."""
        self._desk.consumer = consumer

    def receive(self, deliveries: list[Delivery]) -> None:
        """Takes deliveries; returns at once."""
        opened: dict[Lane, list[Member]] = {}
        for delivery in deliveries:
            try:
                lane, member = self._open(delivery)
            except MessageError as error:
                self._parking.put([(delivery, error)])
            else:
                opened.setdefault(lane, []).append(member)
        for lane, members in opened.items():
            lane.add(members)

    async def drained(self) -> None:
        """Returns when every delivery that was taken is settled."""
        await self._parking.drained()
        for lane in self._lanes.values():
            await lane.drained()

    async def abandon(self) -> None:
        """Stops at once; what is not settled will be delivered again."""
        await self._parking.abandon()
        for lane in self._lanes.values():
            await lane.abandon()

    def _open(self, delivery: Delivery) -> tuple[Lane, Member]:
        envelope = delivery.envelope
        if envelope is None:
            raise Undecodable("the message has no message_id (a UUIDv7) or no type: it was not sent by Hopline")
        if utcnow() - envelope.created_at > self._oldest:
            raise TooOld(envelope.created_at, self._oldest)
        lane = self._lanes.get((delivery.queue, envelope.type, envelope.version))
        if lane is None:
            raise UnknownType(envelope.type, envelope.version)
        return lane, Member(delivery, envelope, codec.decode(lane.endpoint.type, delivery.body))

    async def _park(self, entries: list[tuple[Delivery, MessageError]]) -> list[None]:
        letters = [dead_letter(delivery, None, error.reason, str(error), "") for delivery, error in entries]

        async def store() -> None:
            async with self._desk.database.transaction() as tx:
                await park(tx, letters)

        await self._desk.persist(store, "parking")
        for delivery, error in entries:
            log.error("message parked", queue=delivery.queue, reason=error.reason, error=str(error))
        self._desk.settle([delivery for delivery, _ in entries])
        return [None] * len(entries)


class TooOld(MessageError):
    """Older than the inbox remembers: whether it was done is not known any more."""

    reason = "too-old"

    def __init__(self, created_at: datetime, oldest: timedelta) -> None:
        super().__init__(
            f"made at {created_at:%Y-%m-%d %H:%M} UTC, longer ago than the inbox remembers ({oldest.days} days)"
        )


class Desk:
    """What all lanes share: the database, the consumer, who this worker is, and how outcomes are stored."""

    def __init__(self, database: Database, settings: Settings, instance: str) -> None:
        self.database = database
        self.settings = settings
        self.instance = instance
        self.consumer: Consumer | None = None
        self.crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.group_members = database.group_members(settings.group_members)

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
        """Runs a whole transaction until it commits. A failing database spends no attempt of any message."""
        failures = 0
        while True:
            try:
                return await work()
            except DatabaseError as error:
                delay = min(DATABASE_BACKOFF_CAP_SECONDS, 0.02 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)
                log.warning("waiting for the database", lane=what, error=str(error), retry_in_seconds=round(delay, 2))
                await asyncio.sleep(delay)
                failures += 1

    async def claim(self, tx: Transaction, endpoint: str, members: Sequence[Member]) -> list[Member]:
        """The members to handle: not done, and not a duplicate of an attempt that has failed already."""
        claimed = await inbox.claim(tx, endpoint, [member.envelope for member in members], self.instance)
        fresh = [member for member in members if member.envelope.id in claimed]
        if not fresh:
            return []
        # A statement of its own, after the claim: the claim may have waited for another worker's transaction, and
        # only a later snapshot shows the attempt that failed in it.
        parameters = {"of_endpoint": endpoint, **attempts.given([member.envelope for member in fresh])}
        failed = {row.message_id for row in await tx.rows(attempts.recorded(tx.dialect), parameters)}
        await inbox.release(tx, endpoint, sorted(failed))
        return [member for member in fresh if member.envelope.id not in failed]

    async def conclude(self, tx: Transaction, endpoint: Endpoint, results: Sequence[tuple[Member, Handled]]) -> None:
        """Stores the outcomes of claimed members, and what they send, in the open transaction."""
        finished: dict[str, Finished] = {}
        failed: list[tuple[Member, Handled]] = []
        for member, handled in results:
            if isinstance(handled.outcome, Done):
                finished[member.envelope.id] = Finished(handled.seconds, handled.outcome.note)
                tx.cause = member.envelope
                for message in handled.sends:
                    tx.send(message)
            else:
                failed.append((member, handled))
        tx.cause = None
        if finished:
            await inbox.finish(tx, endpoint.name, finished)
        if failed:
            await self._store_failures(tx, endpoint, failed)

    async def _store_failures(
        self, tx: Transaction, endpoint: Endpoint, failed: Sequence[tuple[Member, Handled]]
    ) -> None:
        await inbox.release(tx, endpoint.name, sorted(member.envelope.id for member, _ in failed))
        rows: list[Attempt] = []
        letters: list[DeadLetter] = []
        for member, handled in failed:
            envelope = member.envelope
            outcome = bounded(handled.outcome, envelope.attempt, endpoint.retry)
            match outcome:
                case Retry(delay_seconds=delay):
                    rows.append(self._attempt(endpoint, member, handled, "retry"))
                    again = replace(envelope, attempt=envelope.attempt + 1)
                    tx.schedule(again, queue=endpoint.queue, delay_seconds=delay)
                case Defer(delay_seconds=delay):
                    tx.schedule(envelope, queue=endpoint.queue, delay_seconds=delay)
                case Dead(reason=reason):
                    row = self._attempt(endpoint, member, handled, "dead")
                    rows.append(row)
                    letters.append(dead_letter(member.delivery, endpoint.name, reason, row.error, row.stack))
                case Done():
                    raise AssertionError("a member that is done did not fail")
            log.warning(
                "message not handled",
                endpoint=endpoint.name,
                message_id=envelope.id,
                key=envelope.key,
                attempt=envelope.attempt,
                outcome=type(outcome).__name__.lower(),
                error=_error_text(handled)[:300],
            )
        await attempts.record(tx, rows)
        await park(tx, letters)

    def _attempt(self, endpoint: Endpoint, member: Member, handled: Handled, outcome: str) -> Attempt:
        error = handled.error
        finished_at = utcnow()
        return Attempt(
            endpoint=endpoint.name,
            envelope=member.envelope,
            outcome=outcome,
            error=_error_text(handled),
            stack="".join(traceback.format_exception(error)) if error else "",
            worker=self.instance,
            started_at=finished_at - timedelta(seconds=handled.seconds),
            finished_at=finished_at,
        )


class Lane:
    """Deliveries of one endpoint."""

    def __init__(self, desk: Desk, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._desk = desk
        self._groups: Groups[Member, None] = Groups(
            self._run, max_members=desk.group_members, name=f"lane {endpoint.name}", on_error=desk.crash
        )

    @property
    def busy(self) -> int:
        """Deliveries that are not settled yet."""
        return self._groups.busy

    def add(self, members: Sequence[Member]) -> None:
        """Takes members; returns at once."""
        self._groups.put(members)

    async def drained(self) -> None:
        """Returns when all is settled."""
        await self._groups.drained()

    async def abandon(self) -> None:
        """Cancels the work."""
        await self._groups.abandon()

    async def _run(self, members: list[Member]) -> list[None]:
        await self._handle(members)
        return [None] * len(members)

    async def _handle(self, members: list[Member]) -> None:
        raise NotImplementedError


class TransactionLane(Lane):
    """Handles groups in one transaction each."""

    async def _handle(self, members: list[Member]) -> None:
        unique = list({member.envelope.id: member for member in members}.values())

        async def together() -> None:
            owned = self._desk.owned(unique)
            if owned:
                await self._together(owned)

        try:
            await self._desk.persist(together, self.endpoint.name)
        except MemberFailed as failed:
            size = 1 if failed.alone else SAVEPOINT_MEMBERS
            for start in range(0, len(unique), size):
                await self._apart(unique[start : start + size])
        self._desk.settle([member.delivery for member in members])

    async def _together(self, members: list[Member]) -> None:
        """The usual way: all in one transaction, without savepoints."""
        async with self._desk.database.transaction() as tx:
            claimed = await self._desk.claim(tx, self.endpoint.name, members)
            if claimed:
                await self._desk.conclude(tx, self.endpoint, await _run_group(self.endpoint, tx, claimed))

    async def _apart(self, members: list[Member]) -> None:
        """One transaction, a savepoint a member; a member that runs into its deadline makes all of them go alone."""
        timed_out: dict[str, Handled] = {}

        async def each() -> None:
            owned = self._desk.owned(members)
            if not owned:
                return
            async with self._desk.database.transaction() as tx:
                results: list[tuple[Member, Handled]] = []
                for member in await self._desk.claim(tx, self.endpoint.name, owned):
                    known = timed_out.get(member.envelope.id)
                    handled = known or await _run_apart(self.endpoint, tx, member)
                    if isinstance(handled.error, TimeoutError) and known is None:
                        timed_out[member.envelope.id] = handled
                        raise MemberFailed(alone=True)
                    results.append((member, handled))
                await self._desk.conclude(tx, self.endpoint, results)

        try:
            await self._desk.persist(each, self.endpoint.name)
        except MemberFailed:
            if len(members) == 1:
                await self._desk.persist(each, self.endpoint.name)  # its failure is known now, and is stored
            else:
                for member in members:
                    await self._apart([member])


@dataclass(slots=True, eq=False)
class Effect:
    """A message whose effect handler waits or runs in this process, with every delivery of it that came."""

    member: Member
    deliveries: list[Delivery]
    handled: Handled = Handled(Done())


class EffectLane(Lane):
    """Runs effect handlers concurrently, then settles their results in groups."""

    def __init__(self, desk: Desk, endpoint: Endpoint) -> None:
        super().__init__(desk, endpoint)
        self._slots = asyncio.Semaphore(desk.settings.effect_concurrency)
        self._effects: dict[str, Effect] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._settlement: Groups[Effect, None] = Groups(
            self._settle, max_members=desk.group_members, name=f"settlement {endpoint.name}"
        )

    @property
    def busy(self) -> int:
        """Deliveries that are not settled yet."""
        return self._groups.busy + len(self._effects)

    async def drained(self) -> None:
        """Returns when all is settled."""
        await super().drained()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def abandon(self) -> None:
        """Cancels the work."""
        await super().abandon()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._settlement.abandon()

    async def _handle(self, members: list[Member]) -> None:
        over = await self._over(members)
        for member in members:
            running = self._effects.get(member.envelope.id)
            if member.envelope.id in over:
                self._desk.settle([member.delivery])
            elif running is not None:
                running.deliveries.append(member.delivery)  # settled with it: its own channel may be gone
            else:
                self._launch(Effect(member, [member.delivery]))

    async def _over(self, members: list[Member]) -> set[str]:
        """The ids that are done, or whose very attempt has failed already."""
        found: set[str] = set()
        database = self._desk.database
        parameters = {"of_endpoint": self.endpoint.name, **attempts.given([member.envelope for member in members])}

        async def look() -> None:
            async with database.reading() as connection:
                found.update((await connection.execute(_over(database.dialect), parameters)).scalars())

        await self._desk.persist(look, self.endpoint.name)
        return found

    def _launch(self, effect: Effect) -> None:
        self._effects[effect.member.envelope.id] = effect
        task = asyncio.create_task(self._perform(effect), name=f"effect {self.endpoint.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _perform(self, effect: Effect) -> None:
        try:
            async with self._slots:
                if not self._desk.owns_any(effect.deliveries):
                    return  # the channel died while it waited: it is somebody else's by now
                effect.handled = await _run_one(self.endpoint, None, effect.member)
            await self._settlement.submit(effect)
        except Exception as error:  # noqa: BLE001 - handed to the process, which stops
            self._desk.crash(error)
        finally:
            self._effects.pop(effect.member.envelope.id, None)

    async def _settle(self, effects: list[Effect]) -> list[None]:
        """Stores results, then acknowledges. Claims first: what another worker finished meanwhile is not failed."""
        results = {effect.member.envelope.id: (effect.member, effect.handled) for effect in effects}

        async def store() -> None:
            async with self._desk.database.transaction() as tx:
                claimed = await self._desk.claim(tx, self.endpoint.name, [effect.member for effect in effects])
                await self._desk.conclude(tx, self.endpoint, [results[member.envelope.id] for member in claimed])

        await self._desk.persist(store, f"settlement {self.endpoint.name}")
        self._desk.settle([delivery for effect in effects for delivery in effect.deliveries])
        return [None] * len(effects)


@cache
def _over(dialect: Dialect) -> sa.CompoundSelect[Any]:
    return sa.union_all(inbox.done(dialect), attempts.recorded(dialect))


async def _run_group(endpoint: Endpoint, tx: Transaction, members: list[Member]) -> list[tuple[Member, Handled]]:
    """Runs the handler for all members; MemberFailed as soon as one does not end as Done."""
    started = time.perf_counter()
    if endpoint.takes_list:
        try:
            results = await _call_list(endpoint, tx, members)
        except DatabaseError:
            raise
        except Exception as error:
            raise MemberFailed(alone=isinstance(error, TimeoutError)) from error
        seconds = time.perf_counter() - started
        return [(member, replace(handled, seconds=seconds)) for member, handled in zip(members, results, strict=True)]
    done: list[tuple[Member, Handled]] = []
    for member in members:
        handled = await _run_one(endpoint, tx, member)
        if not isinstance(handled.outcome, Done):
            raise MemberFailed(alone=isinstance(handled.error, TimeoutError))
        done.append((member, handled))
    return done


async def _run_apart(endpoint: Endpoint, tx: Transaction, member: Member) -> Handled:
    """Runs the handler for one member inside a savepoint, which is undone unless it ends as Done."""
    async with tx.savepoint() as savepoint:
        handled = await _run_one(endpoint, tx, member)
        if not isinstance(handled.outcome, Done):
            await savepoint.undo()
    return handled


async def _run_one(endpoint: Endpoint, tx: Transaction | None, member: Member) -> Handled:
    """Runs the handler for one member. Its exceptions become an outcome; the database's own are raised."""
    started = time.perf_counter()
    try:
        if endpoint.takes_list:
            assert tx is not None
            (handled,) = await _call_list(endpoint, tx, [member])
        else:
            arguments: dict[str, Any] = {"envelope": member.envelope} if endpoint.takes_envelope else {}
            if tx is not None:
                tx.cause = member.envelope
                arguments["tx"] = tx
            async with _deadline(endpoint):
                handled = handled_of(await endpoint.function(member.message, **arguments), endpoint)
    except DatabaseError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a handler raises is an attempt that failed
        outcome = decide(error, member.envelope.attempt, endpoint.retry, random.random())
        return Handled(outcome, error=error, seconds=time.perf_counter() - started)
    return replace(handled, seconds=time.perf_counter() - started)


async def _call_list(endpoint: Endpoint, tx: Transaction, members: list[Member]) -> list[Handled]:
    """Calls a handler that takes a list; its answer is one entry a member, in order, or None for 'all done'."""
    arguments = {"envelope": [member.envelope for member in members]} if endpoint.takes_envelope else {}
    async with _deadline(endpoint):
        answer = await endpoint.function([member.message for member in members], tx=tx, **arguments)
    if answer is None:
        return [Handled(Done())] * len(members)
    if not isinstance(answer, list) or len(answer) != len(members):
        raise UsageError(
            f"{endpoint.function.__qualname__} got {len(members)} messages and must return None "
            f"or a list of as many outcomes or messages, not {str(answer)[:100]}"
        )
    return [handled_of(one, endpoint) for one in answer]


@asynccontextmanager
async def _deadline(endpoint: Endpoint) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(endpoint.deadline_seconds):
            yield
    except TimeoutError as error:
        raise TimeoutError(
            f"the handler of {endpoint.name} or something in it ran into its deadline "
            f"({endpoint.deadline_seconds:g} s): {error}"
        ) from error


def handled_of(answer: object, endpoint: Endpoint) -> Handled:
    """What a handler's return value means: nothing, an outcome, a message, or several messages."""
    if answer is None:
        return Handled(Done())
    if isinstance(answer, Done | Retry | Defer | Dead):
        return Handled(answer)
    if is_message(answer):
        assert isinstance(answer, msgspec.Struct)
        return Handled(Done(), (answer,))
    if isinstance(answer, list | tuple):
        outcomes = [one for one in answer if isinstance(one, Done)]
        sends = tuple(one for one in answer if is_message(one))
        if len(outcomes) + len(sends) == len(answer) and len(outcomes) <= 1:
            return Handled(outcomes[0] if outcomes else Done(), sends)
    raise UsageError(
        f"{endpoint.function.__qualname__} returned {type(answer).__name__}; "
        "return None, an outcome, a message, or a list of messages"
    )


def dead_letter(delivery: Delivery, endpoint: str | None, reason: str, error: str, stack: str) -> DeadLetter:
    """A dead letter with all that the delivery brought."""
    properties = delivery.describe()
    return DeadLetter(delivery.queue, endpoint, delivery.envelope, reason, error, stack, properties, delivery.body)


def _error_text(handled: Handled) -> str:
    if handled.error is not None:
        return f"{type(handled.error).__name__}: {handled.error}"
    match handled.outcome:
        case Retry(reason=reason) | Defer(reason=reason):
            return reason
        case Dead(reason=reason, detail=detail):
            return f"{reason}: {detail}" if detail else reason
        case Done(note=note):
            return note
