"""The parts of a status, and what in it is not as it should be. Pure.

What processes say of themselves (`hopline_workers.state`) may come from another version: whatever is missing or of
another kind in it is left out, never an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hopline.audit import Audit
from hopline.deadletter_queries import Group

RECENT_DEATH_SECONDS = 600.0
"""A process that died within this time is a trouble."""
OLD_SEND_SECONDS = 60.0
"""What has been due for longer does not leave."""

State = Mapping[str, Any]
"""What a process says of itself: docs/reference/tables.md, `hopline_workers.state`."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue; what could not be asked is None."""

    name: str
    exists: bool | None
    ready: int | None
    unacked: int | None
    """Delivered and not acknowledged."""
    consumers: int | None
    oldest_seconds: float | None = None
    """The age of its oldest message, by what the database knows of sends and results: an estimate."""
    oldest_is_least: bool = False
    """Whether it holds more than was found, so that its oldest may be older."""

    @property
    def depth(self) -> int | None:
        """All that it holds, as far as that is known."""
        return None if self.ready is None else self.ready + (self.unacked or 0)


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """What waits in the outbox."""

    unsent: int
    """Due, and not confirmed by RabbitMQ."""
    oldest_seconds: float | None
    """For how long the first of them has been due."""
    retrying: int
    """Scheduled after a failed attempt."""
    delayed: int
    """Scheduled otherwise: delayed or deferred."""
    is_least: bool
    """Whether there are more rows than were counted."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One process, as it last said of itself."""

    instance: str
    role: str
    version: str
    age_seconds: float
    """Of its last heartbeat."""
    alive: bool
    queues: tuple[str, ...]
    busy: int
    """Deliveries that it has not settled."""
    troubles: tuple[str, ...]
    """What it says is wrong with its links and its database."""


@dataclass(frozen=True, slots=True)
class PausedQueue:
    """A queue of which living workers take nothing, because what its handler needs is down."""

    queue: str
    endpoint: str
    reason: str
    since: datetime | None
    until: datetime | None
    probing: bool
    """Whether one message at a time is tried now."""
    workers: int


@dataclass(frozen=True, slots=True)
class UnknownType:
    """Messages of a type or version that living workers do not know, so that they are deferred."""

    name: str
    """Such as `order.placed v3 on orders`."""
    deferred: int
    """How often, since those workers started."""
    workers: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A queue that was found missing or made anew, and of which lost messages may still turn up."""

    queue: str
    lost_at: datetime
    found_by: str
    rescheduled: int


@dataclass(frozen=True, slots=True)
class Status:
    """One snapshot."""

    at: datetime
    """By the database's clock."""
    queues: tuple[QueueStatus, ...]
    broker_trouble: str
    """Why RabbitMQ could not be asked; empty if it was."""
    outbox: OutboxStatus
    parked: int
    parked_groups: tuple[Group, ...]
    """The largest ones."""
    workers: tuple[WorkerStatus, ...]
    paused: tuple[PausedQueue, ...]
    unknown: tuple[UnknownType, ...]
    losses: tuple[Loss, ...]
    audit: Audit | None
    """None: was not asked for, or could not be made."""
    audit_trouble: str

    @property
    def in_flight(self) -> int | None:
        """Delivered to workers and not settled, of all queues; None if that is not known."""
        unacked = [queue.unacked for queue in self.queues if queue.exists is not False]
        return None if None in unacked else sum(number for number in unacked if number is not None)


def worker_of(row: Any, age_seconds: float, alive_seconds: float) -> WorkerStatus:
    """A row of `hopline_workers`; a heartbeat older than `alive_seconds` is a process that died."""
    state: State = row.state if isinstance(row.state, Mapping) else {}
    queues = state.get("queues")
    busy = state.get("busy")
    return WorkerStatus(
        instance=row.instance,
        role=row.role,
        version=row.version,
        age_seconds=age_seconds,
        alive=age_seconds < alive_seconds,
        queues=tuple(str(queue) for queue in queues) if isinstance(queues, list) else (),
        busy=busy if isinstance(busy, int) else 0,
        troubles=tuple(_told_troubles(state)),
    )


def _told_troubles(state: State) -> Iterator[str]:
    for name, link in _mapping(state, "links").items():
        if isinstance(link, Mapping) and not link.get("ready", True):
            yield f"{name}: {link.get('trouble') or 'not connected'}"
    database = state.get("database", "ok")
    if database != "ok":
        yield f"database: {database}"


def paused_of(living: Iterable[State]) -> tuple[PausedQueue, ...]:
    """The queues that living processes have paused, each once: since the first, until the last."""
    found: dict[str, PausedQueue] = {}
    for state in living:
        for queue, pause in _mapping(state, "paused").items():
            if isinstance(pause, Mapping):
                one = _pause_of(queue, pause)
                found[queue] = _joined(found[queue], one) if queue in found else one
    return tuple(found[queue] for queue in sorted(found))


def _pause_of(queue: str, pause: State) -> PausedQueue:
    return PausedQueue(
        queue=queue,
        endpoint=str(pause.get("endpoint", "")),
        reason=str(pause.get("reason", "")),
        since=_time(pause.get("since")),
        until=_time(pause.get("until")),
        probing=pause.get("probing") is True,
        workers=1,
    )


def _joined(one: PausedQueue, other: PausedQueue) -> PausedQueue:
    return PausedQueue(
        one.queue,
        one.endpoint,
        one.reason or other.reason,
        min((time for time in (one.since, other.since) if time), default=None),
        max((time for time in (one.until, other.until) if time), default=None),
        one.probing or other.probing,
        one.workers + other.workers,
    )


def unknown_of(living: Iterable[State]) -> tuple[UnknownType, ...]:
    """The types that living processes do not know, each once."""
    found: dict[str, UnknownType] = {}
    for state in living:
        for name, deferred in _mapping(state, "unknown").items():
            if isinstance(deferred, int) and deferred:
                before = found.get(name, UnknownType(name, 0, 0))
                found[name] = UnknownType(name, before.deferred + deferred, before.workers + 1)
    return tuple(found[name] for name in sorted(found))


def troubles(status: Status) -> list[str]:
    """What in a status needs a person, one line each; empty if all is well."""
    return [
        *_broker_troubles(status),
        *_outbox_troubles(status),
        *_worker_troubles(status),
        *(f"the queue {one.queue} is paused: {one.reason or one.endpoint}" for one in status.paused),
        *(f"{one.name} is a type that {one.workers} of the workers do not know" for one in status.unknown),
        *(f"the queue {one.queue} was lost; {one.rescheduled} messages are sent again" for one in status.losses),
        *([f"{status.parked:,} dead letters are parked: `hopline dead groups`"] if status.parked else []),
        *_audit_troubles(status),
    ]


def _broker_troubles(status: Status) -> Iterator[str]:
    if status.broker_trouble:
        yield f"RabbitMQ: {status.broker_trouble}"
    paused = {one.queue for one in status.paused}
    for queue in status.queues:
        if queue.exists is False:
            yield f"the queue {queue.name} does not exist; a worker or `hopline topology apply` makes it"
        elif queue.depth and queue.consumers == 0 and queue.name not in paused:
            yield f"the queue {queue.name} holds {queue.depth:,} messages and has no consumer"


def _outbox_troubles(status: Status) -> Iterator[str]:
    oldest = status.outbox.oldest_seconds
    if oldest is not None and oldest > OLD_SEND_SECONDS:
        yield f"{status.outbox.unsent:,} messages wait for RabbitMQ, the first for {oldest:.0f} s; is a relay running?"


def _worker_troubles(status: Status) -> Iterator[str]:
    for worker in status.workers:
        if worker.alive:
            yield from (f"{worker.instance}: {trouble}" for trouble in worker.troubles)
        elif worker.age_seconds < RECENT_DEATH_SECONDS:
            yield f"{worker.instance} died {worker.age_seconds:.0f} s ago"


def _audit_troubles(status: Status) -> Iterator[str]:
    if status.audit_trouble:
        yield f"the account could not be made: {status.audit_trouble}"
    if status.audit is not None and status.audit.missing:
        yield f"{status.audit.missing:,} messages are missing: `hopline audit` names them"


def _mapping(state: State, name: str) -> Mapping[str, Any]:
    value = state.get(name)
    return value if isinstance(value, Mapping) else {}


def _time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time if time is not None and time.tzinfo is not None else None
