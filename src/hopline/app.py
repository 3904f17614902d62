"""class Hopline: a program's handlers, message types and settings, and the two ways to run them.

`producing()` is for whatever sends: it opens the database and a relay, and gives transactions and group
commit. `working()` adds a consumer and a worker. Both are context managers: leaving them drains (stop taking,
finish, acknowledge, close), within a deadline.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog

from hopline import pausing, topology
from hopline.audit import Audit, audit, register
from hopline.batching import Groups
from hopline.database import Database, Transaction, clock_ahead, retried
from hopline.errors import CommitUnknown, DatabaseContention, DatabaseError, DatabaseUnavailable, OutboxFull, UsageError
from hopline.handlers import Endpoint, Handlers
from hopline.heartbeat import Heard, Heartbeat, Listening, ignored
from hopline.history import Recorder
from hopline.live import plan, read_queues
from hopline.loss_watch import LossWatch
from hopline.message import Catalog, type_of
from hopline.migrations import Migration
from hopline.outbox import Outbox
from hopline.rabbitmq import Link, RabbitConsumer, RabbitPublisher
from hopline.recovery import found_missing, note_declared, recover
from hopline.relay import Relay
from hopline.retention import purge
from hopline.search import Found, Lookup, find
from hopline.settings import Settings
from hopline.timeline import Step, timeline
from hopline.topology import Plan
from hopline.worker import Worker

Item = TypeVar("Item")
Result = TypeVar("Result")

GroupFunction = Callable[[Transaction, list[Item]], Awaitable[Sequence[Result | Exception]]]

RECOVERY_SECONDS = 5.0
"""How often a process looks for queues that were lost."""
DEAD_PREFETCH = 50
"""Of the messages that RabbitMQ dead-lettered, which are few."""

log = structlog.get_logger("hopline")


class Hopline:
    """One program: what it handles, what it sends, where it runs.

    `handlers` are registries filled with `@handlers.on(…)`; `messages` are types that it sends but nobody here
    handles; `tables` are the program's own SQLAlchemy metadata, made by `hopline migrate` beside the engine's;
    `resources` are opened before the first delivery and closed after the last (an SMTP pool); `lookups` are what a
    search can find in those tables (search.py).
    """

    def __init__(
        self,
        *,
        handlers: Sequence[Handlers] = (),
        messages: Sequence[type] = (),
        tables: Sequence[sa.MetaData] = (),
        resources: Sequence[AbstractAsyncContextManager[Any]] = (),
        lookups: Sequence[Lookup] = (),
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or Settings.from_environment()
        self.tables = tuple(tables)
        self.resources = tuple(resources)
        self.lookups = tuple(lookups)
        self.handlers = Handlers()
        self.handlers.include(handlers)
        self.catalog = Catalog([endpoint.type for endpoint in self.handlers])
        for message in messages:
            self.catalog.add(type_of(message))

    @property
    def topology(self) -> topology.Topology:
        """The exchanges, queues and bindings that this program's handlers need."""
        return topology.build((endpoint.queue, endpoint.type.name) for endpoint in self.handlers)

    @asynccontextmanager
    async def database(self, *, handling: bool = False) -> AsyncIterator[Database]:
        """A Database by the settings, closed at the end of the block; `handling`: handlers run in its transactions."""
        deadlines = [endpoint.deadline_seconds for endpoint in self.handlers if endpoint.transactional and handling]
        database = Database(
            self.settings.database_url,
            message_limit_bytes=self.settings.message_limit_bytes,
            handler_seconds=max(deadlines, default=0.0),
            retention_seconds=self.settings.inbox_retention_days * 86_400,
        )
        try:
            yield database
        finally:
            await database.close()

    async def migrate(self) -> Migration:
        """Brings the engine's tables to today's version, and makes those of `tables` that are missing. Safe to repeat.

        The program's own tables are made and never altered: their migrations are the program's.
        """
        async with self.database() as database:
            return await database.create(*self.tables)

    async def check(self) -> None:
        """UsageError if tables are missing or of another version, DatabaseUnavailable if the database is."""
        async with self.database() as database:
            await database.check(*self.tables)

    def check_queue(self, name: str) -> None:
        """UsageError if this program has no handler for the queue."""
        self._chosen([name])

    async def plan(self, also: Sequence[Hopline] = ()) -> Plan:
        """How the live broker differs from what this program, and others on the same broker, declare.

        UsageError without HOPLINE_MANAGEMENT_URL, BrokerUnavailable if RabbitMQ does not answer.
        """
        declared = topology.join([self.topology, *(other.topology for other in also)])
        return await plan(self.settings.broker_url, self.settings.management_url, declared)

    async def timeline(self, key: str) -> list[Step]:
        """A business key's whole story, in time order."""
        async with self.database() as database:
            return await timeline(database, key)

    async def search(self, database: Database, text: str) -> Found:
        """Everything that has the text as its name: keys, ids, and what this program can look up."""
        retention = timedelta(days=self.settings.inbox_retention_days)
        return await find(database, text, self.lookups, retention=retention)

    async def audit(self, *, patient: bool = True) -> Audit:
        """Accounts for every message at every endpoint of this program.

        It may take 20 s, until RabbitMQ's figures show what was just sent; not `patient`: that stays unproven.
        """
        settings, watched = self.settings, list(self.handlers)
        by_amqp = partial(read_queues, settings.broker_url, "")
        by_management = partial(read_queues, settings.broker_url, settings.management_url)
        async with self.database() as database:
            if settings.management_url:
                return await audit(database, watched, by_management, fall_back=by_amqp, patient=patient)
            return await audit(database, watched, by_amqp, patient=patient)

    @asynccontextmanager
    async def producing(self, *, role: str = "producer") -> AsyncIterator[Producer]:
        """Opens the database and the relay. RabbitMQ may be down: sends wait in the outbox.

        UsageError if the tables are missing, DatabaseUnavailable if the database is.
        """
        instance = f"{role}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        outbox = Outbox(limit=self.settings.outbox_limit, lease_seconds=self.settings.lease_seconds)
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(self.database(handling=role == "worker"))
            await database.check(*self.tables)
            await retried(partial(register, database, list(self.handlers)))  # before anything is declared or published
            database.riders.append(outbox)
            on_missing = partial(found_missing, database, found_by=instance)
            publisher = RabbitPublisher(
                self.settings.broker_url, self.topology, name=f"{instance} publish", on_missing=on_missing
            )
            publisher.start()
            stack.push_async_callback(publisher.stop)
            optional = frozenset(declared.name for declared in self.catalog if declared.optional)
            relay = Relay(database, outbox, publisher, self.settings, optional_types=optional)
            relay.start()
            stack.push_async_callback(relay.stop)
            producer = Producer(instance, database, outbox, relay, publisher, self.settings)
            database.riders.append(producer.recorder)
            stack.push_async_callback(producer.drained)
            heartbeat = Heartbeat(
                database,
                instance,
                role,
                self.settings.heartbeat_seconds,
                state=producer.state,
                details=producer.details,
                recorder=producer.recorder,
                listening=Listening(producer.hear, producer.found_down_at),
            )
            heartbeat.start()
            stack.push_async_exit(_stopping(heartbeat))
            for work in (self._note_declared(database, publisher), self._recover(database), self._purge(database)):
                stack.push_async_callback(_cancelled, asyncio.create_task(work))
            yield producer

    @asynccontextmanager
    async def working(self, *, queues: Sequence[str] = ()) -> AsyncIterator[Working]:
        """Opens a producer, the resources, a worker and its consumer, for the given queues (none: all)."""
        chosen = self._chosen(queues)
        self._check_handlers()
        async with self.producing(role="worker") as producer, AsyncExitStack() as stack:
            for resource in self.resources:
                await stack.enter_async_context(resource)
            worker = Worker(producer.database, self.handlers, self.settings, instance=producer.instance)
            consumer = RabbitConsumer(
                self.settings.broker_url,
                self.topology,
                name=f"{producer.instance} consume",
                prefetches=self._prefetches(chosen),
                receive=worker.receive,
                watchdog_seconds=self.settings.watchdog_seconds,
                on_missing=partial(found_missing, producer.database, found_by=producer.instance),
            )
            worker.attach(consumer, producer.recorder)
            async with producer.database.reading() as connection:
                worker.obey([pause.queue for pause in await pausing.read(connection)])
                worker.set_clock(await clock_ahead(connection))
            consumer.start()
            producer.says(lambda: {"queues": chosen, **worker.state()}, consume=consumer)
            producer.does(worker.details, worker.hear, worker.found_down_at)
            loss_watch = LossWatch(
                producer.database,
                consumer,
                partial(read_queues, self.settings.broker_url, ""),
                self.handlers,
                chosen,
                instance=producer.instance,
                heartbeat_seconds=self.settings.heartbeat_seconds,
            )
            stack.push_async_callback(_cancelled, asyncio.create_task(loss_watch.run(), name="loss watch"))
            try:
                yield Working(producer, worker, consumer, tuple(chosen))
            finally:
                await self._drain(worker, consumer)

    async def _drain(self, worker: Worker, consumer: RabbitConsumer) -> None:
        await consumer.stop_taking()
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                await worker.drained()
        except TimeoutError:
            log.warning("not drained in time; the rest will be delivered again", unsettled=worker.busy)
        await worker.abandon()
        await consumer.stop()

    async def _note_declared(self, database: Database, link: Link) -> None:
        """Remembers that the queues exist, once the link has found or declared them."""
        while True:
            await asyncio.sleep(self.settings.probe_seconds)
            if link.ready:
                try:
                    return await retried(partial(note_declared, database, self._usable(link)))
                except DatabaseError as error:
                    log.warning("the queues could not be marked as declared yet", error=str(error))

    def _usable(self, link: Link) -> list[str]:
        troubles = link.queue_troubles()
        return [queue for queue in self.handlers.queues() if queue not in troubles]

    async def _recover(self, database: Database) -> None:
        """Sends again what was in queues that are gone."""
        while True:
            try:
                while await recover(database, lease_seconds=self.settings.lease_seconds):
                    pass
            except DatabaseError as error:
                log.warning("lost queues could not be looked at", error=str(error))
            await asyncio.sleep(RECOVERY_SECONDS * random.uniform(0.8, 1.2))

    async def _purge(self, database: Database) -> None:
        """Deletes what is older than the retention; a while after the start, then once an hour."""
        retention = timedelta(days=self.settings.inbox_retention_days)
        while True:
            await asyncio.sleep(self.settings.purge_seconds * random.uniform(0.5, 1.5))
            try:
                if purged := await purge(database, retention):
                    log.info("purged", messages=purged, older_than_days=self.settings.inbox_retention_days)
            except DatabaseError as error:
                log.warning("old messages could not be purged", error=str(error))

    def _prefetches(self, queues: Sequence[str]) -> dict[str, int]:
        """What a worker takes of each queue, and of its dead letters."""
        dead = {topology.dead_queue(queue): min(DEAD_PREFETCH, self.settings.prefetch) for queue in queues}
        return {**dict.fromkeys(queues, self.settings.prefetch), **dead}

    def _chosen(self, queues: Sequence[str]) -> list[str]:
        known = self.handlers.queues()
        unknown = [queue for queue in queues if queue not in known]
        if unknown or not known:
            raise UsageError(
                f"no handler for the queue {unknown[0]!r}; this program has {', '.join(known) or 'no handlers at all'}"
                if unknown
                else "this program has no handlers: give Hopline(handlers=[…])"
            )
        return list(queues) or known

    def _check_handlers(self) -> None:
        """Refuses deadlines and retries that would break a promise (docs/explanation/guarantees.md)."""
        for endpoint in self.handlers:
            check_deadline(endpoint, self.settings)
            longest = endpoint.retry.longest_seconds()
            if longest >= self.settings.inbox_retention_days * 86_400:
                raise UsageError(
                    f"the retries of {endpoint.name} can take {timedelta(seconds=longest)}, longer than the inbox "
                    f"remembers ({self.settings.inbox_retention_days:g} days); lower attempts or cap_seconds"
                )


class Producer:
    """A running producer: transactions, group commit, and what /readyz wants to know."""

    def __init__(
        self,
        instance: str,
        database: Database,
        outbox: Outbox,
        relay: Relay,
        publisher: RabbitPublisher,
        settings: Settings,
    ) -> None:
        self.instance = instance
        self.database = database
        self.outbox = outbox
        self.publisher = publisher
        self.failures: tuple[asyncio.Future[None], ...] = (publisher.failed, relay.crashed)
        """One of them ends, with an exception, when only a person can help: the process should then stop."""
        self.told_to_drain: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends when an operator has asked this process to drain (draining.py)."""
        self.recorder = Recorder(lambda: relay.confirmed_total)
        self._settings = settings
        self._groups: list[Groups[Any, Any]] = []
        self._links: dict[str, Link] = {"publish": publisher}
        self._more: Callable[[], Mapping[str, object]] = dict
        self._details: Callable[[], Mapping[str, object]] = dict
        self._obey: Callable[[Heard], None] = ignored
        self._found_down_at: Callable[[], Mapping[str, float]] = dict

    def says(self, more: Callable[[], Mapping[str, object]], **links: Link) -> None:
        """Adds to what `state` says of this process."""
        self._more = more
        self._links |= links

    def does(
        self,
        details: Callable[[], Mapping[str, object]],
        obey: Callable[[Heard], None],
        found_down_at: Callable[[], Mapping[str, float]],
    ) -> None:
        """Adds to what `details` tells, to what `hear` does, and to what `found_down_at` asks."""
        self._details, self._obey, self._found_down_at = details, obey, found_down_at

    def state(self) -> dict[str, object]:
        """What this process says of itself (docs/reference/tables.md, `hopline_workers.state`)."""
        links = {name: link.state() for name, link in self._links.items()}
        draining = self.told_to_drain.done()
        return {"links": links, "unsent": self.outbox.unsent, "draining": draining, **self._more()}

    def details(self) -> Mapping[str, object]:
        """What it does right now; names messages, so it is for the database only."""
        return self._details()

    def found_down_at(self) -> Mapping[str, float]:
        """The handlers whose success elsewhere would end a pause here; see Heartbeat."""
        return self._found_down_at()

    def hear(self, heard: Heard) -> None:
        """What operators want of this process, with each heartbeat."""
        self._obey(heard)
        if heard.drain and not self.told_to_drain.done():
            log.warning("asked to drain", instance=self.instance)
            self.told_to_drain.set_result(None)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """One write transaction; `tx.send(message)` in it is published after its commit."""
        return self.database.transaction()

    def group(
        self,
        function: GroupFunction[Item, Result],
        *,
        read_back: GroupFunction[Item, Result] | None = None,
    ) -> Callable[[Item], Awaitable[Result]]:
        """Group commit for a function of (tx, items) -> one result or exception an item.

        Callers that come while one transaction commits share the next one. If a group fails and is known to be
        rolled back, its members run one by one, so that the failing one fails alone. After CommitUnknown
        `read_back` (in a new transaction) finds out what was stored; without it the members get CommitUnknown.
        """
        members = self.database.group_members(self._settings.group_members)
        # Nothing was stored, and alone the members would fare no better: on SQLite they all waited for one lock.
        no_better_alone: tuple[type[Exception], ...] = (OutboxFull, DatabaseUnavailable)
        if self.database.dialect == "sqlite":
            no_better_alone += (DatabaseContention,)

        async def together(items: list[Item]) -> Sequence[Result | BaseException]:
            async with self.transaction() as tx:
                return await function(tx, items)

        async def run(items: list[Item]) -> Sequence[Result | BaseException]:
            try:
                return await together(items)
            except CommitUnknown:
                if read_back is None:
                    raise
                async with self.transaction() as tx:
                    return await read_back(tx, items)
            except Exception as error:
                if len(items) == 1 or isinstance(error, no_better_alone):
                    raise
                log.warning("a group was rolled back; its members run alone", members=len(items), error=repr(error))
                results: list[Result | BaseException] = []
                for item in items:
                    down = results and isinstance(results[-1], DatabaseUnavailable)  # each would wait for as long
                    results.append(results[-1] if down else await _alone(together, item))
                return results

        groups: Groups[Item, Result] = Groups(run, max_members=members, name=f"group {function.__qualname__}")
        self._groups.append(groups)
        return groups.submit

    async def drained(self) -> None:
        """Returns when no group waits or runs."""
        for groups in self._groups:
            await groups.drained()

    @property
    def trouble(self) -> str:
        """Why messages do not leave now; empty when they do."""
        fault = next((repr(one.exception()) for one in self.failures if one.done() and not one.cancelled()), "")
        return fault or self.publisher.trouble


@dataclass(frozen=True, slots=True)
class Working:
    """A running worker."""

    producer: Producer
    worker: Worker
    consumer: RabbitConsumer
    queues: tuple[str, ...]


def check_deadline(endpoint: Endpoint, settings: Settings) -> None:
    """The last of a full prefetch must be settled well before RabbitMQ's consumer_timeout, which runs from delivery."""
    concurrency = settings.group_members if endpoint.transactional else settings.effect_concurrency
    worst = settings.prefetch / min(concurrency, settings.prefetch) * endpoint.deadline_seconds
    if worst >= settings.consumer_timeout_seconds / 2:
        raise UsageError(
            f"{endpoint.name}: {settings.prefetch} prefetched messages by {concurrency} at once with a deadline of "
            f"{endpoint.deadline_seconds:g} s can take {worst:g} s, over half of RabbitMQ's consumer timeout "
            f"({settings.consumer_timeout_seconds:g} s); lower HOPLINE_PREFETCH or deadline_seconds"
        )


async def _alone(
    together: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]], item: Item
) -> Result | BaseException:
    try:
        (result,) = await together([item])
    except Exception as error:  # noqa: BLE001 - it is this member's result, and its caller raises it
        return error
    return result


def _stopping(heartbeat: Heartbeat) -> Callable[[object, BaseException | None, object], Awaitable[None]]:
    """An exit of a context that tells the heartbeat of the fault that ended it."""

    async def stop(_kind: object, fault: BaseException | None, _trace: object) -> None:
        await heartbeat.stop(fault)

    return stop


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
