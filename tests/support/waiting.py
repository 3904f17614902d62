"""Waiting for a condition, with a deadline: what tests do where they might be tempted to sleep."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

POLL_SECONDS = 0.02


async def wait_until(
    condition: Callable[[], bool | Awaitable[bool]], deadline_seconds: float = 10, what: str = ""
) -> None:
    """Returns as soon as `condition`, a plain or an async callable, gives true; AssertionError after the deadline."""
    give_up_at = time.monotonic() + deadline_seconds
    while True:
        result = condition()
        if await result if inspect.isawaitable(result) else result:
            return
        if time.monotonic() >= give_up_at:
            raise AssertionError(_message(condition, deadline_seconds, what))
        await asyncio.sleep(POLL_SECONDS)


def wait_until_sync(condition: Callable[[], bool], deadline_seconds: float = 10, what: str = "") -> None:
    """The same in a thread of its own, without an event loop."""
    give_up_at = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() >= give_up_at:
            raise AssertionError(_message(condition, deadline_seconds, what))
        time.sleep(POLL_SECONDS)


def _message(condition: Callable[[], object], deadline_seconds: float, what: str) -> str:
    code = getattr(condition, "__code__", None)
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return f"not within {deadline_seconds:g} s: {what or 'the condition'}{place}"
