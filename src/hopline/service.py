"""A role as a process: uvloop, logging, signals. SIGTERM and SIGINT drain; a second one stops at once.

Exit status: 0 after a clean stop, 1 when the role failed (the reason is the last line of its log).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
import uvloop

from hopline import failpoints
from hopline.errors import HoplineError, UsageError
from hopline.settings import Settings

GC_OBJECTS = 20_000
"""So many new objects that could be in a cycle are a few MB."""

log = structlog.get_logger("hopline")


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


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]], settings: Settings) -> int:
    """Runs a role to its end: `main` gets an event that is set when the process is told to stop.

    Returns the exit status: 0, 1 if it was told twice and did not drain, 2 for our mistake, 3 for the outside's.
    """
    configure_logging(settings)
    failpoints.install(os.environ)

    async def guarded() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def told() -> None:
            if stop.is_set():
                task.cancel()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told)
        try:
            await main(stop)
        except HoplineError as error:
            log.error("stopped", reason=str(error), kind=type(error).__name__)
            return 2 if isinstance(error, UsageError) else 3
        return 0

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(guarded())
    except asyncio.CancelledError:
        log.error("stopped at once, without draining")
        return 1


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
