"""A queue with everything that an operator wants to know of it and of its handlers. Pure: put together from parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from hopline.handlers import Endpoint, Handlers
from hopline.history import Rate
from hopline.status.snapshot import HeldQueue, PausedQueue, QueueStatus, Status

DELAYS = 10
"""So many of a policy's delays are told."""


class Policy(msgspec.Struct, frozen=True):
    """What becomes of failures."""

    attempts: int
    immediate: int
    """Tries at once after the first one of an attempt failed."""
    delays_seconds: tuple[float, ...]
    """Before the second attempt, the third, …, without jitter; at most 10 of them."""
    longest_seconds: float
    """All delays of one run, at the longest."""
    never: tuple[str, ...]
    """Errors that are parked at once."""
    pause: tuple[str, ...]
    """Errors that pause the queue."""
    others: tuple[str, ...]
    """Errors that have a policy of their own."""


class EndpointReport(msgspec.Struct, frozen=True):
    """One handler."""

    name: str
    type: str
    version: int
    transactional: bool
    takes_list: bool
    blocking: bool
    deadline_seconds: float
    policy: Policy
    rate: Rate | None
    """None: it did nothing lately."""
    paused: PausedQueue | None
    """None, or why it takes nothing: what it needs is down."""


class QueueReport(msgspec.Struct, frozen=True):
    """One queue with its handlers."""

    name: str
    status: QueueStatus
    held: HeldQueue | None
    """None, or who has paused it."""
    paused: PausedQueue | None
    endpoints: tuple[EndpointReport, ...]


def queue_reports(status: Status, handlers: Handlers, rates: Mapping[str, Rate]) -> tuple[QueueReport, ...]:
    """The program's queues, by name; `rates` as history.rates gives them."""
    states = {queue.name: queue for queue in status.queues}
    held = {one.queue: one for one in status.held}
    paused = {one.queue: one for one in status.paused}
    return tuple(
        QueueReport(
            name,
            states.get(name, QueueStatus(name, None, None, None, None)),
            held.get(name),
            paused.get(name),
            tuple(_endpoint(one, rates, paused.get(name)) for one in handlers if one.queue == name),
        )
        for name in handlers.queues()
    )


def _endpoint(endpoint: Endpoint, rates: Mapping[str, Rate], paused: PausedQueue | None) -> EndpointReport:
    return EndpointReport(
        name=endpoint.name,
        type=endpoint.type.name,
        version=endpoint.type.version,
        transactional=endpoint.transactional,
        takes_list=endpoint.takes_list,
        blocking=endpoint.blocking,
        deadline_seconds=endpoint.deadline_seconds,
        policy=policy_of(endpoint),
        rate=rates.get(endpoint.name),
        paused=paused if paused is not None and paused.endpoint == endpoint.name else None,
    )


def policy_of(endpoint: Endpoint) -> Policy:
    """The retry policy of a handler, spelled out."""
    retry = endpoint.retry
    count = min(DELAYS, retry.attempts - 1)
    return Policy(
        attempts=retry.attempts,
        immediate=retry.immediate,
        delays_seconds=tuple(retry.delay_seconds(attempt, 0.5) for attempt in range(count)),
        longest_seconds=retry.longest_seconds(),
        never=_names(retry.never),
        pause=_names(retry.pause),
        others=_names(retry.on),
    )


def _names(errors: Iterable[type[BaseException]]) -> tuple[str, ...]:
    return tuple(error.__name__ for error in errors)
