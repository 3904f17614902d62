"""A thread that sees a handler go on long after its deadline, or the event loop stand still, and ends the process.

A deadline is a cancellation, and it needs the loop: it stops neither `while True: pass` nor a coroutine that catches
its CancelledError, nor a thread. What becomes of each:

1. A call in the loop that is overdue, or a loop that does not turn: the stacks of all threads go to stderr, and the
   process ends at once with ENDLESS_STATUS. Its row in hopline_workers stays, with a heartbeat that does not move any
   more: the evidence by which the quarantine counts the death (suspects.py), runs the message alone, and parks it.
2. A call in a thread that is overdue: its message has failed at its deadline already, and no other is hurt, so the
   process drains, and then ends with the same status (`Watch.left_behind`). What it needs to drain may be blocked by
   such threads, so that has a deadline too.
3. A call that holds the interpreter's lock (a regular expression, a C library): no thread runs, this one included. So
   the thread gives a sign of life to a small process outside (watcher.py), which ends this one when none comes.

Invariant: time in which the process was frozen as a whole does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog

from hopline.errors import EndlessHandler
from hopline.service import ENDLESS_STATUS
from hopline.watch.outside import STDERR, watched_from_outside
from hopline.worker.calls import CALLS, Call, Calls

TICK_SECONDS: Final = 0.25
"""How often the thread looks."""
WATCHER_SECONDS: Final = 2.0
"""The watcher outside waits so much longer: what the thread can end itself it reports better."""
STOP_SECONDS: Final = 2.0
LEAVE_SECONDS: Final = 10.0
"""As long a process may take to end, beside its draining, when a thread is left behind."""
TOLD_IDS: Final = 20
"""At most so many message ids of a call are logged."""

log = structlog.get_logger("hopline.watch")


class Watch:
    """Watches from `start()` to `stop()`; to be made in the loop that it watches."""

    def __init__(
        self,
        longest_seconds: float,
        overrun_seconds: float,
        leave_seconds: float,
        *,
        calls: Calls = CALLS,
        end: Callable[[str, Sequence[Call]], None] | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._overrun_seconds = overrun_seconds
        self._still_limit_seconds = longest_seconds + overrun_seconds
        self._leave_seconds = leave_seconds
        self._leaving_seconds = 0.0
        self._calls = calls
        self._end = end or end_process
        self._alive = alive
        self._still_seconds = 0.0
        self._turned = threading.Event()
        self._turned.set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.left_behind: asyncio.Future[None] = self._loop.create_future()
        """Ends with EndlessHandler when a handler's thread is overdue: the process should drain and end."""
        self.left_behind.add_done_callback(lambda future: future.cancelled() or future.exception())

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch; blocks for a moment, the loop too: handlers may have used up the threads of its executor."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stopping.wait(TICK_SECONDS):
            now = time.monotonic()
            self.look(now - before)
            before = now

    def look(self, elapsed_seconds: float) -> None:
        """One look, so many seconds after the last one."""
        self._alive()
        awake = min(elapsed_seconds, 2 * TICK_SECONDS)  # the rest is not ours: the process was frozen
        self._calls.awake_seconds += awake
        overdue = self._calls.overdue(self._overrun_seconds)
        in_loop = [call for call in overdue if not call.in_thread]
        if in_loop:
            self._end("a handler has not ended long after its deadline", in_loop)
        elif not self._turns(awake):
            self._end("the event loop stands still", [*self._calls.open.copy()])
        elif overdue:
            self._leaving_seconds += awake
            self._in_loop(self._leave_behind, overdue)
            if self._leaving_seconds > self._leave_seconds:
                self._end("threads that handlers have left behind keep it from draining", overdue)

    def _turns(self, awake_seconds: float) -> bool:
        """Asks the loop for a turn, once until it has turned; whether it does, within the limit."""
        if self._turned.is_set():
            self._turned.clear()
            self._still_seconds = 0.0
            self._in_loop(self._turned.set)
            return True
        self._still_seconds += awake_seconds
        return self._still_seconds <= self._still_limit_seconds

    def _in_loop(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends anyway
            self._loop.call_soon_threadsafe(function, *arguments)

    def _leave_behind(self, calls: Sequence[Call]) -> None:
        if not self.left_behind.done():
            dump()
            self.left_behind.set_exception(EndlessHandler(calls[0].endpoint, calls[0].message_ids))


def dump() -> None:
    """Writes the stacks of all threads to stderr, while they run."""
    with contextlib.suppress(OSError):  # there may be no stderr
        faulthandler.dump_traceback(file=STDERR, all_threads=True)


def end_process(why: str, calls: Sequence[Call]) -> None:
    """Ends the process at once, without any cleaning up, as a crash would."""
    log.critical(
        "the process ends itself, and RabbitMQ delivers again what it held",
        why=why,
        running=[{"endpoint": call.endpoint, "message_ids": call.message_ids[:TOLD_IDS]} for call in calls],
        exit_status=ENDLESS_STATUS,
    )
    dump()
    os._exit(ENDLESS_STATUS)


@asynccontextmanager
async def watching(longest_seconds: float, overrun_seconds: float, drain_seconds: float) -> AsyncIterator[Watch]:
    """Watches this process, by a thread and on Linux by a process outside, to the end of the block.

    `longest_seconds` is the longest deadline of a handler.
    """
    leave_seconds = drain_seconds + LEAVE_SECONDS
    with watched_from_outside(longest_seconds + overrun_seconds + WATCHER_SECONDS) as alive:
        watch = Watch(longest_seconds, overrun_seconds, leave_seconds, alive=alive)
        watch.start()
        try:
            yield watch
        finally:
            watch.stop()
