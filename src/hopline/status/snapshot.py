"""The parts of a status, read from what the database and the processes say. Pure.

What processes say of themselves (`hopline_workers.state`) may come from another version: whatever is missing or of
another kind in it is left out, never an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hopline.audit import Audit
from hopline.deadletter_queries import Group
from hopline.pausing import Pause
from hopline.rabbitmq import ALARM

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
    expected_consumers: int | None = None
    """How many living workers say that they consume it; None for a queue that no program was asked about."""

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
    unconfirmed: int = 0
    """Of the unsent ones, those that a process has in its hands: published and not confirmed, as a rule."""


@dataclass(frozen=True, slots=True)
class Running:
    """A message that a worker was handling at its last heartbeat."""

    endpoint: str
    message_id: str
    key: str
    since: datetime | None


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
    consuming: tuple[str, ...] = ()
    """The queues that it says it takes from: not while they are paused, or its link or its database is down."""
    blocked: tuple[str, ...] = ()
    """The links that an alarm of RabbitMQ blocks."""
    running: tuple[Running, ...] = ()
    """What has run the longest, at most 20 messages."""
    draining: bool = False
    """Whether it was asked to drain."""
    started_at: datetime | None = None


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
class HeldQueue:
    """A queue that an operator has paused."""

    queue: str
    who: str
    reason: str
    since: datetime
    workers: int
    """Living workers that obey by now."""
    of_workers: int
    """Living workers of that queue."""


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
    held: tuple[HeldQueue, ...] = ()
    parked_is_least: bool = False
    """Whether there are more than were counted."""
    dead_today: int = 0
    """Letters of any state that died since midnight, UTC."""
    dead_today_is_least: bool = False

    @property
    def in_flight(self) -> int | None:
        """Delivered to workers and not settled, of all queues; None if that is not known."""
        unacked = [queue.unacked for queue in self.queues if queue.exists is not False]
        return None if None in unacked else sum(number for number in unacked if number is not None)


def worker_of(row: Any, age_seconds: float, alive_seconds: float) -> WorkerStatus:
    """A row of `hopline_workers`; a heartbeat older than `alive_seconds` is a process that died."""
    state: State = row.state if isinstance(row.state, Mapping) else {}
    busy = state.get("busy")
    queues = _texts(state, "queues")
    return WorkerStatus(
        instance=row.instance,
        role=row.role,
        version=row.version,
        age_seconds=age_seconds,
        alive=age_seconds < alive_seconds,
        queues=queues,
        busy=busy if isinstance(busy, int) else 0,
        troubles=tuple(_told_troubles(state)),
        consuming=_consuming(state, queues),
        blocked=tuple(_blocked(state)),
        running=tuple(_running(state)),
        draining=getattr(row, "drain_at", None) is not None or state.get("draining") is True,
        started_at=getattr(row, "started_at", None),
    )


def _consuming(state: State, queues: Sequence[str]) -> tuple[str, ...]:
    link = _mapping(state, "links").get("consume")
    link = link if isinstance(link, Mapping) else {}
    works = (link.get("ready") is True or link.get("connected") is True) and state.get("database", "ok") == "ok"
    paused = {queue for queue, pause in _mapping(state, "paused").items() if not _is_probing(pause)}
    off = paused | set(_texts(state, "paused_by_operator")) | set(_mapping(link, "queues"))
    return tuple(queue for queue in queues if works and queue not in off)


def _is_probing(pause: object) -> bool:
    return isinstance(pause, Mapping) and pause.get("probing") is True


def _blocked(state: State) -> Iterator[str]:
    for name, link in _mapping(state, "links").items():
        if isinstance(link, Mapping) and str(link.get("trouble", "")).startswith(ALARM):
            yield name


def _running(state: State) -> Iterator[Running]:
    told = state.get("running")
    for one in told if isinstance(told, list) else ():
        if isinstance(one, Mapping):
            endpoint, message_id, key = (str(one.get(name, "")) for name in ("endpoint", "message_id", "key"))
            yield Running(endpoint, message_id, key, _time(one.get("since")))


def held_of(pauses: Iterable[Pause], living: Sequence[State]) -> tuple[HeldQueue, ...]:
    """The queues that operators have paused, with how many of their workers obey by now."""
    return tuple(
        HeldQueue(
            queue=one.queue,
            who=one.who,
            reason=one.reason,
            since=one.since,
            workers=sum(one.queue in _texts(state, "paused_by_operator") for state in living),
            of_workers=sum(one.queue in _texts(state, "queues") for state in living),
        )
        for one in pauses
    )


def _told_troubles(state: State) -> Iterator[str]:
    for name, link in _mapping(state, "links").items():
        if isinstance(link, Mapping) and (not link.get("ready", True) or link.get("queues")):
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


def _texts(state: State, name: str) -> tuple[str, ...]:
    value = state.get(name)
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _mapping(state: State, name: str) -> Mapping[str, Any]:
    value = state.get(name)
    return value if isinstance(value, Mapping) else {}


def _time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time if time is not None and time.tzinfo is not None else None
