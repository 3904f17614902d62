"""Each process says that it is alive: one row, renewed every few seconds, gone after a clean stop.

It beats in a thread with a connection of its own, so that it says "the process is alive" and not "its loop is
free": a handler that computes for a minute must not look like one that has killed its process. An old heartbeat
that does not move is therefore a process that died (or is frozen as a whole).

The same transaction carries the other small things between a process and its operator: the counts of the history go
out, pauses and requests to drain come in.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version

import sqlalchemy as sa
import structlog

from hopline import history, pausing
from hopline.clock import utcnow
from hopline.database import Database, Transaction, now, translated
from hopline.errors import DatabaseError, HoplineError
from hopline.pausing import Pause
from hopline.rows import insert
from hopline.schema import storable_json, workers
from hopline.suspects import clear_worker

STOP_SECONDS = 5.0
STATE_SECONDS = 0.5
"""How often the loop writes down what the thread tells; older than a few of these, the loop is blocked."""

VERSION = version("hopline")

log = structlog.get_logger("hopline.heartbeat")

State = Callable[[], Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Heard:
    """What operators want of this process."""

    pauses: tuple[Pause, ...]
    drain: bool
    succeeded: frozenset[str] = frozenset()
    """Of the handlers that were asked for: those with which another process has handled a message since."""
    clock_ahead: timedelta | None = None
    """How far the database's clock is ahead of this process's; None: nothing was measured."""


def ignored(_heard: Heard) -> None:
    """The `hear` of a process that nobody can ask for anything."""


@dataclass(frozen=True, slots=True)
class Listening:
    """What a process wants to hear of others. Both are called in its loop."""

    hear: Callable[[Heard], None] = ignored
    """Takes what was heard, with each beat."""
    found_down_at: Callable[[], Mapping[str, float]] = dict
    """Names handlers whose success in other processes counts, each with since when (seconds since 1970)."""


class Heartbeat:
    """Beats from `start()` to `stop()`. `state` and `details` are called in the loop.

    `state` says what the process is doing, twice a second; `details` says more, once a beat.
    """

    def __init__(
        self,
        database: Database,
        instance: str,
        role: str,
        interval_seconds: float,
        *,
        state: State,
        details: State = dict,
        recorder: history.Recorder | None = None,
        listening: Listening | None = None,
    ) -> None:
        self.instance = instance
        self._url = database.url
        self._role = role
        self._interval_seconds = interval_seconds
        self._state = state
        self._details = details
        self._detailed: Mapping[str, object] = {}
        self._recorder = recorder or history.Recorder()
        self._listening = listening or Listening()
        self._asked: Mapping[str, float] = {}
        self._loop = asyncio.get_running_loop()
        self._latest: tuple[float, Mapping[str, object]] = (time.monotonic(), {})
        self._stopping = threading.Event()
        self._signs_off = True
        self._thread = threading.Thread(target=self._run, name=f"heartbeat {instance}", daemon=True)
        self._watching: asyncio.Task[None] | None = None

    @property
    def loop_lag_seconds(self) -> float:
        """How long ago the loop was last free; a few times STATE_SECONDS is a loop that is blocked."""
        return max(0.0, time.monotonic() - self._latest[0] - STATE_SECONDS)

    def start(self) -> None:
        """Begins to beat; returns at once."""
        self._watching = asyncio.create_task(self._watch(), name="heartbeat state")
        self._thread.start()

    async def stop(self, fault: BaseException | None = None) -> None:
        """Ends the beat. In order, it takes the row and this instance's marks back.

        After a fault of the process they stay: what it ran then may have been the reason, and the row is the evidence
        that it died (suspects.py). A failure that has a name (HoplineError) and a stop that was asked for are none.
        """
        self._signs_off = fault is None or isinstance(fault, HoplineError | asyncio.CancelledError)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._recorder.roll(time.time(), ending=True)
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    async def _watch(self) -> None:
        detailed_at = 0.0
        while True:
            now_at = time.monotonic()
            if now_at - detailed_at >= self._interval_seconds:
                self._detailed, detailed_at = self._details(), now_at
            self._latest = (now_at, {**self._state(), **self._detailed})
            self._asked = self._listening.found_down_at()
            self._recorder.roll(time.time())
            await asyncio.sleep(STATE_SECONDS)

    def _run(self) -> None:
        asyncio.run(self._beat_until_stopped())

    async def _beat_until_stopped(self) -> None:
        database = Database(self._url)
        try:
            while not self._stopping.is_set():
                heard = await self._quietly(database, self._beat)
                if heard is not None:
                    with suppress(RuntimeError):  # the loop has ended without waiting for this thread
                        self._loop.call_soon_threadsafe(self._listening.hear, heard)
                await asyncio.to_thread(self._stopping.wait, self._interval_seconds)
            if self._signs_off:
                await self._quietly(database, self._sign_off)
        finally:
            await database.close()

    async def _quietly(
        self, database: Database, work: Callable[[Transaction], Awaitable[Heard | None]]
    ) -> Heard | None:
        """A database that is down is told by everything else; the row is renewed when it works again."""
        counts = self._recorder.take()
        try:
            async with database.transaction() as tx:
                heard = await work(tx)
                await history.write(tx, self.instance, counts)
        except DatabaseError as error:
            log.info("no heartbeat could be written", error=str(error))
            self._recorder.put_back(counts)
            return None
        return heard

    async def _beat(self, tx: Transaction) -> Heard:
        said = {**self._latest[1], "loop_lag_seconds": round(self.loop_lag_seconds, 1)}
        row = {"instance": self.instance, "role": self._role, "version": VERSION, "state": storable_json(said)}
        statement = insert(tx.dialect, workers).values(**row, started_at=now(), heartbeat_at=now())
        renewed = {"state": statement.excluded.state, "heartbeat_at": now()}
        beating = statement.on_conflict_do_update(index_elements=[workers.c.instance], set_=renewed)
        (mine,) = await tx.rows(beating.returning(workers.c.drain_at, workers.c.heartbeat_at))
        ahead = mine.heartbeat_at - utcnow()
        with translated():
            pauses = await pausing.read(tx.connection)
            succeeded = await history.succeeded(tx.connection, self._asked, but=self.instance)
        return Heard(tuple(pauses), mine.drain_at is not None, succeeded, ahead)

    async def _sign_off(self, tx: Transaction) -> None:
        await clear_worker(tx, self.instance)
        await tx.execute(sa.delete(workers).where(workers.c.instance == self.instance))
