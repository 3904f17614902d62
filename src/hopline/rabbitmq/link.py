"""A Link keeps one connection to RabbitMQ alive, and each queue of the topology declared and used on it.

    forever: connect to the next host
             for each queue, in a task of its own, forever: look, tell if it is missing, declare it and its bindings,
                 use it until it has to be declared again; after a failure wait and try again
             when every queue was tried and one works: ready, until the connection is over

After any loss the link connects again, with full-jitter backoff, to the host after the one that failed. A login is no
proof that a host works: a node without a quorum lets clients log in. A queue that fails leaves the others alone; if
none works any more, the connection is given up.

A queue or exchange that exists with other arguments (406) is our mistake: it ends the link with TopologyMismatch;
nothing is deleted. A queue that is missing is told of (`on_missing`) before it is declared anew: its messages are lost.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from typing import Any

import structlog

from hopline import amqp
from hopline.errors import BrokerUnavailable, OutsideError, TopologyMismatch, UsageError
from hopline.live import CLOSE_TIMEOUT_SECONDS, CONNECT_TIMEOUT_SECONDS, channel_of, declare, look
from hopline.rabbitmq.waiting import Hosts, pause_seconds
from hopline.topology import Queue, Topology

HEARTBEAT_SECONDS = 10
STEADY_SECONDS = 10.0
"""A queue that was used for so long and then fails is tried again without a growing pause."""
TOLD_QUEUES = 3
"""`trouble` names at most so many queues; `state` has all of them."""
TOLD_CHARACTERS = 300
"""Length of what is told of one queue."""

ALARM = "RabbitMQ blocks publishers: "
"""How the trouble of a memory or disk alarm begins."""

log = structlog.get_logger("hopline.rabbitmq")

OnMissing = Callable[[Sequence[str]], Awaitable[None]]
"""Told of queues that are missing, or were made anew, before they are used; may raise OutsideError to be told again."""

FAILURES = (amqp.AMQPError, OSError, TimeoutError, OutsideError)
"""What the outside world can do to a link: it is tried again. Anything else is a fault of ours, and ends the link."""


async def unheard(_queues: Sequence[str]) -> None:
    """The OnMissing of a link whose owner has nothing to recover."""


class Link:
    """Keeps one connection alive. `start()` it, watch `ready`, `failed` and `trouble`, `stop()` it."""

    def __init__(self, url: str, topology: Topology, *, name: str, on_missing: OnMissing = unheard) -> None:
        try:
            address = amqp.parse_url(url)
        except amqp.InvalidURL as error:
            raise UsageError(f"HOPLINE_BROKER_URL cannot be used: {error}") from None
        self.name = name
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends with an exception when the link is over: TopologyMismatch if a person has to act, else a fault."""
        self.reconnects = 0
        self._url = url
        self._hosts = Hosts(address.hosts)
        self._topology = topology
        self._on_missing = on_missing
        self._making = asyncio.Lock()
        """One missing queue at a time is told of and made: a queue and its dead letters are one event."""
        self._why = "not connected yet"
        """Why the whole link is not ready; empty while it is."""
        self._troubles: dict[str, str] = {}
        """The queues that cannot be used, and why."""
        self._failures: dict[str, int] = {}
        """How often in a row each queue failed."""
        self._tried: set[str] = set()
        """The queues that were tried on this connection."""
        self._undeclared = {queue.name for queue in topology.queues}
        """The queues that are not known to exist with all of their bindings."""
        self.withheld: frozenset[tuple[str, str]] = frozenset()
        """Exchanges and routing keys of those: what is published there now would not reach them."""
        self._last_failure: BaseException | None = None
        """What a queue failed with last."""
        self._is_open = False
        """Whether this connection has been ready."""
        self._again = {queue.name: asyncio.Event() for queue in topology.queues}
        self._progress = asyncio.Event()
        """A queue was tried."""
        self._connection: amqp.Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._lost = asyncio.Event()

    # what others see

    @property
    def connected(self) -> bool:
        """Whether the link can be used: every queue was tried, one works, and no alarm of the broker blocks it."""
        return self._connection is not None and not self._connection.closed and not self._why

    @property
    def ready(self) -> bool:
        """Whether the link does all that its role needs."""
        return self.connected

    @property
    def trouble(self) -> str:
        """What is wrong with the link, or with some of its queues; empty when nothing is."""
        if self._why:
            return self._why
        troubles = self.queue_troubles()
        told = [f"the queue {name} cannot be used: {troubles[name]}" for name in sorted(troubles)[:TOLD_QUEUES]]
        more = len(troubles) - len(told)
        return "; ".join([*told, f"and {more} more queues"] if more else told)

    def queue_troubles(self) -> dict[str, str]:
        """The queues that cannot be used, and why."""
        return dict(self._troubles)

    def state(self) -> dict[str, object]:
        """What an operator wants to know of it, as JSON-able values."""
        return {
            "ready": self.ready,
            "trouble": self.trouble,
            "reconnects": self.reconnects,
            "connected": self.connected,
            "queues": self.queue_troubles(),
        }

    def start(self) -> None:
        """Begins to connect; returns at once."""
        self._task = asyncio.create_task(self._keep_alive(), name=f"link {self.name}")
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Closes in order and ends the task."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.failed.done() and not self.failed.cancelled():
            self.failed.exception()  # seen: whoever stops the link has been told or does not care any more
        await self._close()

    def lose(self, why: str) -> None:
        """Gives the connection up, to make a new one."""
        self._why = why
        self._lost.set()

    # what a role does

    async def opened(self, connection: amqp.Connection) -> None:
        """Makes a fresh connection, on which queues work, ready for use."""

    def closing(self) -> None:
        """The connection is over: forget what was made on it."""

    def loops(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What runs beside, from `opened` to the end of the connection."""
        return ()

    def proving(self) -> frozenset[str]:
        """The queues of which at least one has to work, or the connection is of no use."""
        return frozenset(queue.name for queue in self._topology.queues)

    def made_anew(self, queue: str) -> None:
        """The queue was missing, that was told, and it is declared now."""

    async def use(self, connection: amqp.Connection, queue: str) -> None:  # noqa: ARG002 - a role needs it
        """Uses a queue that is declared; returns when it has to be declared again, raises when it cannot be used."""
        self.works(queue)
        await self._again[queue].wait()
        self._again[queue].clear()

    def works(self, queue: str) -> None:
        """A role calls this when it uses the queue."""
        self._tried.add(queue)
        self._progress.set()
        if self._troubles.pop(queue, None) is not None:
            log.warning("the queue works again", link=self.name, queue=queue)

    def declare_again(self) -> None:
        """Has every queue looked for and declared again."""
        for event in self._again.values():
            event.set()

    # the connection

    async def _keep_alive(self) -> None:
        failures = 0
        while True:
            error = await self._session()
            self._hosts.failed()
            if self._is_open:
                self.reconnects += 1
                failures = 0
                self._why = str(error)
                log.warning("broker connection lost", link=self.name, error=self._why)
            else:
                self._why = trouble_of(error)
                log.warning("broker unavailable", link=self.name, error=self._why, failures=failures)
            rounds = self._hosts.rounds(failures)
            await asyncio.sleep(pause_seconds(rounds, error.__cause__ or error, random.random()))
            failures += not self._is_open

    async def _session(self) -> BaseException:
        """One connection, from its first to its last moment; gives what ended it."""
        self._is_open = False
        self._lost.clear()
        self._tried.clear()
        connection: amqp.Connection | None = None
        try:
            connection = self._connection = await amqp.connect(
                self._url,
                host=self._hosts.current,
                name=self.name,
                heartbeat_seconds=HEARTBEAT_SECONDS,
                timeout_seconds=CONNECT_TIMEOUT_SECONDS,
            )
            connection.on_blocked = self._blocked
            await self._declare_exchanges(connection)
            await self._work(connection)
        except FAILURES as error:  # of a connection that is over, its own reason says most
            return (connection.close_reason if connection is not None else None) or error
        finally:
            await self._close()
        raise AssertionError("a link works until its connection is over")

    async def _work(self, connection: amqp.Connection) -> None:
        """Everything that runs on a connection; raises what ends it first."""
        opening = asyncio.create_task(self._open(connection))
        tasks = {
            opening,
            asyncio.create_task(self._until_lost()),
            asyncio.create_task(_until_closed(connection)),
            *(
                asyncio.create_task(self._keep_queue(connection, queue), name=f"queue {queue.name}")
                for queue in self._topology.queues
            ),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if done == {opening} and opening.exception() is None:
                tasks.remove(opening)
                tasks.update(asyncio.create_task(loop) for loop in self.loops())
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in sorted(done, key=_is_failure):  # a mistake or fault of ours before what the outside world did
            task.result()

    async def _open(self, connection: amqp.Connection) -> None:
        await self._until_usable()
        await self.opened(connection)
        self._is_open = True
        self._why = f"{ALARM}{connection.blocked}" if connection.blocked is not None else ""
        log.info("broker connected", link=self.name, host="{}:{}".format(*self._hosts.current))

    async def _until_usable(self) -> None:
        """Until every queue was tried, but for those that failed on the connection before, and one works."""
        known_bad = set(self._troubles)
        names = {queue.name for queue in self._topology.queues}
        while not (names - known_bad <= self._tried and self._is_useful()):
            if names <= self._tried:
                raise self._no_queue_works()
            self._progress.clear()
            await self._progress.wait()

    def _is_useful(self) -> bool:
        proving = self.proving()
        return not proving or bool(self._tried & proving - self._troubles.keys())

    def _no_queue_works(self) -> BrokerUnavailable:
        name, why = next(iter(self._troubles.items()))
        error = BrokerUnavailable(f"no queue can be used through this host; the queue {name}: {why}")
        error.__cause__ = self._last_failure
        return error

    async def _until_lost(self) -> None:
        await self._lost.wait()
        raise BrokerUnavailable(self._why)

    def _blocked(self, reason: str | None) -> None:
        if reason is not None:
            self._why = f"{ALARM}{reason}"
        elif self._why.startswith(ALARM):
            self._why = ""
        log.warning("broker alarm" if reason is not None else "broker alarm over", link=self.name, reason=reason)

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        self.closing()
        if connection is not None:
            await connection.close(CLOSE_TIMEOUT_SECONDS)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Only `stop` ends the task in order. Any other end is told: nobody would connect again."""
        if self._stopping or self.failed.done():
            return
        cause = None if task.cancelled() else task.exception()
        error: BaseException
        if isinstance(cause, TopologyMismatch):
            error = cause
        else:
            error = RuntimeError(f"the link {self.name!r} to RabbitMQ has a fault and has ended: {cause!r}")
            error.__cause__ = cause
            log.error("a link has a fault and has ended", link=self.name, exc_info=cause)
        self._why = str(error)
        self.failed.set_exception(error)

    # the queues

    async def _declare_exchanges(self, connection: amqp.Connection) -> None:
        async with channel_of(connection) as channel:
            await declare(channel, Topology(self._topology.exchanges, (), ()))

    async def _keep_queue(self, connection: amqp.Connection, queue: Queue) -> None:
        """Declares and uses one queue, again and again. Raises what ends the connection, or the whole link."""
        while True:
            began = time.monotonic()
            error: BaseException | None = None
            try:
                await self._declare(connection, queue)
                await self.use(connection, queue.name)
            except FAILURES as failure:
                if connection.closed:
                    raise
                error = failure
            if time.monotonic() - began > STEADY_SECONDS:
                self._failures.pop(queue.name, None)
            if error is not None:
                self._queue_failed(queue.name, error)
                failures = self._failures.get(queue.name, 0)
                self._failures[queue.name] = failures + 1
                await asyncio.sleep(pause_seconds(failures, error, random.random()))

    async def _declare(self, connection: amqp.Connection, queue: Queue) -> None:
        """Declares a queue with its bindings; tells before that if it is missing."""
        is_missing = await look(connection, queue.name) is None
        async with self._making if is_missing else nullcontext():
            if is_missing:
                self._set_declared(queue.name, declared=False)
                log.info("a queue is missing", link=self.name, queue=queue.name)
                await self._on_missing([queue.name])
            bindings = tuple(binding for binding in self._topology.bindings if binding.queue == queue.name)
            async with channel_of(connection) as channel:
                await declare(channel, Topology(self._topology.exchanges, (queue,), bindings))
        self._set_declared(queue.name, declared=True)
        if is_missing:
            self.made_anew(queue.name)

    def _set_declared(self, queue: str, *, declared: bool) -> None:
        if declared == (queue not in self._undeclared):
            return
        (self._undeclared.discard if declared else self._undeclared.add)(queue)
        self.withheld = frozenset(
            (binding.exchange, binding.routing_key)
            for binding in self._topology.bindings
            if binding.queue in self._undeclared
        )

    def _queue_failed(self, queue: str, error: BaseException) -> None:
        why = str(error)[:TOLD_CHARACTERS]
        log.warning("a queue cannot be used", link=self.name, queue=queue, error=why)
        self._troubles[queue] = why
        self._last_failure = error
        self._tried.add(queue)
        self._progress.set()
        if self._is_open and self.proving() <= self._troubles.keys():
            self.lose(str(self._no_queue_works()))


async def _until_closed(connection: amqp.Connection) -> None:
    reason = await connection.wait_closed()
    raise reason or amqp.ConnectionClosed("the connection was closed")


def _is_failure(task: asyncio.Task[None]) -> bool:
    return not task.cancelled() and isinstance(task.exception(), FAILURES)


def trouble_of(error: BaseException) -> str:
    """Why the link could not be made, in one sentence, with what to check."""
    if isinstance(error, amqp.AuthenticationFailed):
        return (
            f"RabbitMQ refuses the login ({error.text}): check the user and the password, in HOPLINE_BROKER_URL and on "
            "the server; the login is tried again by itself"
        )
    if isinstance(error, amqp.NotAllowed | amqp.InvalidPath):
        return (
            f"RabbitMQ refuses the virtual host ({error.text}): check its name in HOPLINE_BROKER_URL, that it exists, "
            "and that the user may use it; it is tried again by itself"
        )
    if isinstance(error, amqp.TLSFailed):
        return f"no TLS connection to RabbitMQ ({error.text}): {error.advice} It is tried again by itself"
    return f"cannot connect to RabbitMQ: {error}"
