"""Failpoints: a process that kills, freezes or ends itself at a chosen step, to prove that the step may fail.

    HOPLINE_FAILPOINTS="worker.before-commit=kill@3,relay.after-confirm=stop"

Each names a point, what happens there, and at which time that it is reached (the first unless given). `install`
wraps the methods that the points stand for; without the variable nothing is wrapped, so the way of a message has
no trace of this. Modules are named by text and found at that moment: this file imports nothing of the rest.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import structlog

from hopline.errors import UsageError

VARIABLE = "HOPLINE_FAILPOINTS"
EXIT_STATUS = 70
"""Of a process that a failpoint ends (EX_SOFTWARE, sysexits.h)."""

Moment = Literal["before", "after"]

log = structlog.get_logger("hopline.failpoints")


@dataclass(frozen=True, slots=True)
class Point:
    """A step of the engine: the moment before or after a method runs."""

    module: str
    owner: str
    """The class."""
    method: str
    moment: Moment

    @property
    def target(self) -> type[Any]:
        """The class, imported; ImportError or AttributeError if it is not there any more."""
        found: type[Any] = getattr(importlib.import_module(self.module), self.owner)
        return found


POINTS: Mapping[str, Point] = {
    # The handlers have run and their outcomes are stored, in a transaction that is still open.
    "worker.before-commit": Point("hopline.worker.desk", "Desk", "conclude", "after"),
    # The outcomes are committed, and nothing is acknowledged.
    "worker.after-commit": Point("hopline.worker.desk", "Desk", "settle", "before"),
    # RabbitMQ has confirmed a batch, and no row says so.
    "relay.after-confirm": Point("hopline.rabbitmq", "RabbitPublisher", "publish", "after"),
    # The group of a request is committed, and its caller has no answer.
    "api.after-commit": Point("hopline.batching", "Groups", "_resolve", "before"),
    # Any write transaction, complete but for its COMMIT.
    "database.before-commit": Point("hopline.database", "Database", "_commit", "before"),
}


@dataclass(frozen=True, slots=True)
class Failpoint:
    """One entry of the variable."""

    name: str
    action: str
    """kill (SIGKILL), stop (SIGSTOP, until somebody sends SIGCONT) or exit (at once, without any cleaning up)."""
    at: int = 1
    """Which time that the point is reached."""


def parse(text: str) -> list[Failpoint]:
    """The entries of the variable's value; UsageError says what is wrong with one."""
    return [_parse_one(entry.strip()) for entry in text.split(",") if entry.strip()]


def _parse_one(entry: str) -> Failpoint:
    name, _, rest = entry.partition("=")
    action, _, at = rest.partition("@")
    if name not in POINTS:
        raise UsageError(f"{VARIABLE}: there is no failpoint {name!r}; there are {', '.join(POINTS)}")
    if action not in _ACTIONS:
        raise UsageError(f"{VARIABLE}: {name} cannot {action!r}; it can {', '.join(_ACTIONS)}")
    if at and not (at.isascii() and at.isdecimal() and int(at) > 0):
        raise UsageError(f"{VARIABLE}: {entry!r} counts from 1, as in {name}={action}@3")
    return Failpoint(name, action, int(at or 1))


def install(environment: Mapping[str, str]) -> list[Failpoint]:
    """Puts in place what the environment asks for, for the life of this process; does nothing if it asks for nothing.

    Call it once, before the process begins its work.
    """
    failpoints = parse(environment.get(VARIABLE, ""))
    for failpoint in failpoints:
        point = POINTS[failpoint.name]
        wrapped = _wrapped(getattr(point.target, point.method), point.moment, _trigger(failpoint))
        setattr(point.target, point.method, wrapped)
        log.warning("failpoint set", point=failpoint.name, action=failpoint.action, at=failpoint.at)
    return failpoints


def _trigger(failpoint: Failpoint) -> Callable[[], None]:
    """What is called each time that the point is reached."""
    reached = count(1)

    def trigger() -> None:
        if next(reached) == failpoint.at:
            _ACTIONS[failpoint.action]()

    return trigger


def _wrapped(method: Callable[..., Any], moment: Moment, trigger: Callable[[], None]) -> Callable[..., Any]:
    """The method with the trigger before or after it, a coroutine function if it is one."""
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            if moment == "before":
                trigger()
            result = await method(*args, **kwargs)
            if moment == "after":
                trigger()
            return result

        return asynchronous

    @functools.wraps(method)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            trigger()
        result = method(*args, **kwargs)
        if moment == "after":
            trigger()
        return result

    return synchronous


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _exit() -> None:
    os._exit(EXIT_STATUS)


_ACTIONS: Mapping[str, Callable[[], None]] = {"kill": _kill, "stop": _stop, "exit": _exit}
