"""A role as a process: uvloop, logging, signals. SIGTERM and SIGINT drain; a later one stops at once.

| Exit status | Meaning |
|---|---|
| 0 | it was told to stop, and drained |
| 1 | it was told again, and stopped without draining; or a bug, whose traceback is in the log |
| 2 | our mistake: the settings, the program or the tables have to change before it can run |
| 3 | the outside failed: RabbitMQ or the database; trying again may help |
| 5 | a handler never ended, so the process ended itself (watch/); 137 (SIGKILL) if only its watcher could end it |
| 6 | a task that the program made itself raised SystemExit or KeyboardInterrupt: it ended at once, as by a crash |

(4 is of `hopline topology`.) The reason is the last line of its log.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn

import structlog
import uvloop

from hopline import failpoints
from hopline.errors import EndlessHandler, HoplineError, UsageError
from hopline.settings import Settings

GC_OBJECTS = 20_000
"""So many new objects that could be in a cycle are a few MB."""

SAME_WISH_SECONDS = 2.0
"""Signals so close together are one wish to stop.

`timeout`, process managers and terminals signal the whole process group, and a parent in it passes its own on.
"""
CLOSE_SECONDS = 5.0
"""How long a process that is done waits for threads that handlers have left behind."""
ENDLESS_STATUS = 5
TASK_EXIT_STATUS = 6

log = structlog.get_logger("hopline")


class Stopping:
    """What the signals to stop of one process mean: the first drains, a later one stops at once."""

    def __init__(self, stop: asyncio.Event, at_once: Callable[[], object]) -> None:
        self._stop = stop
        self._at_once = at_once
        self._first_at: float | None = None

    def told(self, now: float | None = None) -> None:
        """A signal came. `now` is in seconds of the monotonic clock."""
        now = time.monotonic() if now is None else now
        if self._first_at is None:
            self._first_at = now
            log.info("told to stop: drains", a_further_signal=f"stops at once, from {SAME_WISH_SECONDS:g} s on")
            self._stop.set()
        elif now - self._first_at > SAME_WISH_SECONDS:
            self._at_once()


def configure_logging(settings: Settings) -> None:
    """Structured log lines on stderr: coloured on a terminal, JSON with HOPLINE_LOG_JSON=true."""
    level = logging.getLevelNamesMapping().get(settings.log_level.upper(), logging.INFO)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr)


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]], settings: Settings, *, role: str = "") -> int:
    """Runs a role to its end: `main` gets an event that is set when the process is told to stop.

    Returns the exit status. A role that uses the database and the broker gives its name, for the first line of its log.
    """
    configure_logging(settings)
    failpoints.install(os.environ)
    if role:
        log.info("starting", role=role, **settings.places())

    async def guarded() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        stopping = Stopping(stop, task.cancel)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.told)
        try:
            await main(stop)
        except HoplineError as error:
            log.error("stopped", reason=str(error), kind=type(error).__name__)
            return _status_of(error)
        return 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            status = runner.run(guarded())
        except asyncio.CancelledError:
            log.error("stopped at once, without draining")
            status = 1
        except (SystemExit, KeyboardInterrupt):
            # asyncio passes these from a task through its loop. The worker's row in hopline_workers stays: if a message
            # has done it, the row is the evidence by which the quarantine parks that message in the end.
            log.critical("a task of the program ended the process", exc_info=True)
            _end_now(TASK_EXIT_STATUS)
        leaving = threading.Timer(CLOSE_SECONDS, _leave, [status])
        leaving.daemon = True
        leaving.start()
    leaving.cancel()
    return status


def _status_of(error: HoplineError) -> int:
    if isinstance(error, EndlessHandler):
        return ENDLESS_STATUS
    return 2 if isinstance(error, UsageError) else 3


def _leave(status: int) -> None:
    """The loop cannot be closed while a thread of its executor runs, and nothing ends a thread but the process."""
    log.error("ends without waiting any longer for threads that handlers have left behind")
    _end_now(status)


def _end_now(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def started() -> None:
    """A role calls this when it has started, for the garbage collector.

    What it has made by now stays, so it need not be looked at again. What comes after is counted down by its
    references: cycles are rare, so they are looked for less often (by default after 700 more objects, which are two
    or three orders).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 20)


async def until_stopped(stop: asyncio.Event, *failures: Awaitable[None]) -> None:
    """Waits for the signal to stop, or for the first of the failures, which is raised. The role has started."""
    started()
    waiting = asyncio.ensure_future(stop.wait())
    watched = [asyncio.ensure_future(failure) for failure in failures]
    await asyncio.wait([waiting, *watched], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for future in watched:
        if future.done():
            future.result()
