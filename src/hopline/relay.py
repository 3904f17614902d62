"""The relay: from committed row to confirmed message to sent mark.

Three things happen here. What a transaction of this process just committed is published at once from memory,
without reading it back (`offer`). Rows that are due and nobody holds (delayed ones, and what a dead process
left) are claimed and published (`_sweep`). Confirmed rows are marked sent, in batches (`_flush_marks`).

Invariants: a row is marked only after its confirm; it leaves the due index in no other way than sent, parked
or cancelled; memory is bounded by the window. The lease is longer than twice the confirm deadline, so a row
is never published by two processes at once unless one of them was frozen; the inbox absorbs that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice

import structlog

from hopline import metrics, outbox, topology
from hopline.broker import Publish, Published, Publisher
from hopline.database import Database, Send, Transaction, retried
from hopline.deadletters import DeadLetter, park
from hopline.errors import DatabaseError
from hopline.outbox import Outbox
from hopline.settings import Settings
from hopline.window import Window

CHUNK_MESSAGES = 250
MARKS_PER_TRANSACTION = 1_000
RIDE_WAIT_SECONDS = 0.02
"""How long marks wait for another write transaction of the process to ride along with."""
POSTPONE_CAP_SECONDS = 60.0
STOP_SECONDS = 10.0

log = structlog.get_logger("hopline.relay")


class Relay:
    """Publishes what the outbox of one database holds. `start()` and `stop()` it in the loop that uses it."""

    def __init__(
        self,
        database: Database,
        store: Outbox,
        publisher: Publisher,
        settings: Settings,
        *,
        optional_types: frozenset[str] = frozenset(),
    ) -> None:
        self.crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends with an exception if the relay itself has a fault; the process should then stop."""
        self.confirmed_total = 0
        """Sends that RabbitMQ has confirmed since the start."""
        self._database = database
        self._store = store
        self._publisher = publisher
        self._settings = settings
        self._optional_types = optional_types
        self._window = Window(messages=settings.relay_window, bytes_=settings.relay_window_bytes)
        self._freed = asyncio.Event()
        """There is room in the window again."""
        self._flights: set[asyncio.Task[None]] = set()
        self._leased: set[str] = set()
        """Rows that are being published, to be given up if the process stops before their outcome is known."""
        self._confirmed: dict[str, float] = {}
        """Rows to mark, with the time of their confirm (time.monotonic)."""
        self._to_mark = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._stopping = False

    # -- as the outbox sees it

    def reserve(self, sends: Sequence[Send]) -> int:
        """See outbox.Sender: as there is room in memory, and a broker that can be reached."""
        return self._window.take(sends) if self._can_send else 0

    def release(self, sends: Sequence[Send]) -> None:
        """See outbox.Sender."""
        self._window.give(sends)

    def offer(self, sends: Sequence[Send]) -> None:
        """See outbox.Sender."""
        self._launch([(send, 0) for send in sends])

    @property
    def _can_send(self) -> bool:
        return self._publisher.ready and not self._stopping

    # -- life

    def start(self) -> None:
        """Begins to sweep and to mark, and takes the outbox's new sends from now on."""
        self._store.sender = self
        self._database.riders.append(self)
        self._loops = [
            asyncio.create_task(self._sweep_forever(), name="relay sweep"),
            asyncio.create_task(self._mark_forever(), name="relay marks"),
        ]
        for loop in self._loops:
            loop.add_done_callback(self._ended)

    def _ended(self, loop: asyncio.Task[None]) -> None:
        if not loop.cancelled() and (error := loop.exception()) is not None:
            log.error("the relay has a fault and does not send any more", error=repr(error))
            if not self.crashed.done():
                self.crashed.set_exception(error)

    async def stop(self) -> None:
        """Finishes what is in flight, stores its marks, and gives up the leases of the rest."""
        self._stopping = True
        if self._flights:
            await asyncio.wait(self._flights, timeout=STOP_SECONDS)
        for task in (*self._loops, *self._flights):
            task.cancel()
        await asyncio.gather(*self._loops, *self._flights, return_exceptions=True)
        self._store.sender = None
        if self in self._database.riders:
            self._database.riders.remove(self)
        with suppress(DatabaseError):  # then the leases end by themselves, and another relay sends the rows
            while self._confirmed:
                await self._flush_marks()
            if self._leased:
                async with self._database.transaction() as tx:
                    await outbox.give_up_lease(tx, list(self._leased))

    async def board(self, tx: Transaction) -> Callable[[bool], None] | None:
        """The marks ride along with the process's other write transactions: a commit, and its fsync, less."""
        if not self._confirmed:
            return None
        riding = self._take_marks()
        outbox.mark_sent(tx, _ages(riding))

        def land(committed: bool) -> None:
            if not committed:
                self._confirmed.update(riding)
                self._to_mark.set()

        return land

    # -- publishing

    def _launch(self, sends: list[tuple[Send, int]]) -> None:
        for start in range(0, len(sends), CHUNK_MESSAGES):
            task = asyncio.create_task(self._fly(sends[start : start + CHUNK_MESSAGES]), name="relay publish")
            self._flights.add(task)
            task.add_done_callback(self._flights.discard)

    async def _fly(self, sends: list[tuple[Send, int]]) -> None:
        outcomes = [Published.UNKNOWN] * len(sends)
        self._leased.update(send.id for send, _ in sends)
        started = time.monotonic()
        try:
            batch = [publish_of(send) for send, _ in sends]
            outcomes = await self._publisher.publish(batch, timeout_seconds=self._settings.confirm_timeout_seconds)
        except Exception:  # a fault of ours: all come again, later
            log.exception("a batch could not be published", messages=len(sends))
            outcomes = [Published.REFUSED] * len(sends)
        finally:
            self._window.give([send for send, _ in sends])
            self._freed.set()
            metrics.published((outcome.value for outcome in outcomes), time.monotonic() - started)
            sent = [send.id for (send, _), outcome in zip(sends, outcomes, strict=True) if self._is_sent(send, outcome)]
            if sent:
                self.confirmed_total += len(sent)
                self._confirmed.update(dict.fromkeys(sent, time.monotonic()))
                self._to_mark.set()
        unsent = [
            (*pair, outcome)
            for pair, outcome in zip(sends, outcomes, strict=True)
            if not self._is_sent(pair[0], outcome)
        ]
        if unsent:
            await self._put_back(unsent)
        self._leased.difference_update(send.id for send, _ in sends)

    def _is_sent(self, send: Send, outcome: Published) -> bool:
        if outcome is Published.RETURNED:
            return not send.destination and send.envelope.type in self._optional_types
        return outcome is Published.CONFIRMED

    async def _put_back(self, unsent: list[tuple[Send, int, Published]]) -> None:
        """Makes rows due again, or parks them as unroutable. If the database fails too, the lease ends by itself."""
        log.warning("messages not sent", outcomes={o.value: sum(u[2] is o for u in unsent) for o in Published})
        try:
            await retried(lambda: self._store_unsent(unsent))
        except DatabaseError as error:
            log.warning("unsent messages wait for the end of their lease", error=str(error))

    async def _store_unsent(self, unsent: list[tuple[Send, int, Published]]) -> None:
        limit = self._settings.returns_before_parking - 1
        by_outcome: dict[Published, list[tuple[Send, int]]] = {outcome: [] for outcome in Published}
        for send, returns, outcome in unsent:
            by_outcome[outcome].append((send, returns))
        unknown = [send.id for send, _ in by_outcome[Published.UNKNOWN]]
        refused = [send.id for send, _ in by_outcome[Published.REFUSED]]
        if self._can_send:  # the connection works, so it is their queue that does not answer
            unknown, refused = [], [*refused, *unknown]
        parked = [send for send, returns in by_outcome[Published.RETURNED] if returns >= limit]
        unsendable = [send for send, _ in by_outcome[Published.UNSENDABLE]]
        returned: dict[int, list[str]] = {}
        for send, returns in by_outcome[Published.RETURNED]:
            if returns < limit:
                returned.setdefault(returns, []).append(send.id)
        async with self._database.transaction() as tx:
            await outbox.give_up_lease(tx, unknown)
            await outbox.postpone_refused(tx, refused)
            for returns, ids in returned.items():
                await outbox.postpone_returned(tx, ids, min(POSTPONE_CAP_SECONDS, 2.0 ** min(returns, 10)))
            await park(tx, [*map(unroutable_letter, parked), *map(unsendable_letter, unsendable)])
            await outbox.mark_parked(tx, [send.id for send in (*parked, *unsendable)])

    # -- sweeping

    async def _sweep_forever(self) -> None:
        more = False
        while True:
            if not more:
                await asyncio.sleep(self._settings.probe_seconds * random.uniform(0.8, 1.2))
            try:
                more = await self._look() and await self._sweep()
            except DatabaseError as error:
                more = False
                log.warning("the outbox cannot be read", error=str(error))

    async def _look(self) -> bool:
        """Counts what is unsent; True if some of it is due."""
        async with self._database.reading() as connection:
            self._store.unsent = await outbox.count_unsent(connection, limit=self._store.limit)
            return self._store.unsent > 0 and await outbox.is_due(connection)

    async def _sweep(self) -> bool:
        """Sends what is due, for as long as the time between two looks; True if there may be more to send now."""
        look_at = time.monotonic() + self._settings.probe_seconds
        while self._can_send and time.monotonic() < look_at:
            room = self._window.claimable(CHUNK_MESSAGES)
            if room:
                claimed = await retried(partial(self._claim, room))
                self._window.hold([send for send, _ in claimed])
                self._launch(claimed)
                if len(claimed) < room:
                    return False
            else:
                self._freed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, look_at - time.monotonic())):
                        await self._freed.wait()
        return self._can_send

    async def _claim(self, room: int) -> list[tuple[Send, int]]:
        async with self._database.transaction() as tx:
            return await outbox.claim(tx, limit=room, lease_seconds=self._settings.lease_seconds)

    # -- marking

    async def _mark_forever(self) -> None:
        while True:
            await self._to_mark.wait()
            self._to_mark.clear()
            try:
                while self._confirmed:
                    oldest = next(iter(self._confirmed.values()))
                    if (left := oldest + RIDE_WAIT_SECONDS - time.monotonic()) > 0:
                        await asyncio.sleep(left)  # meanwhile they may have gone with another transaction
                    else:
                        await self._flush_marks()
            except DatabaseError as error:
                log.warning("sent messages could not be marked yet", error=str(error))
                await asyncio.sleep(self._settings.probe_seconds)
                self._to_mark.set()

    async def _flush_marks(self) -> None:
        marks = self._take_marks()
        try:
            async with self._database.transaction() as tx:
                outbox.mark_sent(tx, _ages(marks))
        except BaseException:
            self._confirmed.update(marks)
            raise

    def _take_marks(self) -> dict[str, float]:
        marks = dict(islice(self._confirmed.items(), MARKS_PER_TRANSACTION))
        for identifier in marks:
            del self._confirmed[identifier]
        return marks


def _ages(confirmed: Mapping[str, float]) -> dict[str, float]:
    """How long ago each confirm came, in seconds."""
    now = time.monotonic()
    return {identifier: now - at for identifier, at in confirmed.items()}


def publish_of(send: Send) -> Publish:
    """To one queue through `hopline.to`, or to all that are bound to the type through `hopline`."""
    if send.destination:
        return Publish(topology.DIRECT_EXCHANGE, send.destination, send.envelope)
    return Publish(topology.EXCHANGE, send.envelope.type, send.envelope)


def unroutable_letter(send: Send) -> DeadLetter:
    """The dead letter of a message that no queue takes."""
    where = f"the queue {send.destination!r}" if send.destination else f"a queue bound to {send.envelope.type!r}"
    text = f"RabbitMQ knows no such queue: {where}. Start a worker that handles it, then replay."
    return _letter(send, "unroutable", text)


def unsendable_letter(send: Send) -> DeadLetter:
    """The dead letter of a message that AMQP cannot carry."""
    text = "AMQP cannot carry it as it is: its destination, key or headers are too long. Edit it, or discard it."
    return _letter(send, "unsendable", text)


def _letter(send: Send, reason: str, error: str) -> DeadLetter:
    envelope = send.envelope
    return DeadLetter(
        queue=send.destination,
        endpoint=None,
        envelope=envelope,
        reason=reason,
        error=error,
        stack="",
        properties={"type": envelope.type, "message_id": envelope.id, "correlation_id": envelope.correlation_id},
        body=envelope.body,
    )
