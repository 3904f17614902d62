"""The arithmetic of the audit: counted rows and read queues in, the account out. Pure.

A send that RabbitMQ confirmed and that nobody settled lies in its queue (ready or unacknowledged) or in the queue's
`.dead` queue. Together these hold at most so many messages; the unsettled sends above that are missing. It is a
lower bound, because what the queues hold may be something else, such as a second copy of a settled message. If the
queues hold nothing, the bound is exact, and every unsettled message is missing by name.

Nothing is taken for granted: what no figure of RabbitMQ can cover is unproven.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from hopline.live import QueueReading
from hopline.topology import dead_queue

METRICS_LAG_SECONDS = 15.0
"""RabbitMQ refreshes the figures of a quorum queue every 5 s; what was confirmed more recently may not show."""

Readings = Mapping[str, QueueReading] | None
"""Queues by name; one that does not exist is not in it. None: RabbitMQ could not be asked."""


@dataclass(frozen=True, slots=True)
class EndpointAudit:
    """The account of one endpoint; `created` is the sum of the others."""

    endpoint: str
    queue: str
    created: int
    done: int
    open: int
    in_broker: int
    parked: int
    discarded: int
    cancelled: int
    missing: int
    """At least so many; exactly so many if they are named."""
    unproven: int
    """Sent and unsettled, and no figure of RabbitMQ says that it holds them."""
    missing_ids: tuple[str, ...]
    """The message ids that are missing, at most 1,000 of them; empty while the queue holds something."""


@dataclass(frozen=True, slots=True)
class QueueAudit:
    """The unsettled sends to one queue, against what it holds."""

    queue: str
    unsettled: int
    held: int | None
    """At most so many messages are in it and in its `.dead` queue; None: that is not known."""
    dead: int
    """As many of them are in its `.dead` queue, to be fetched by a worker."""
    missing: int
    """At least so many."""
    unproven: int
    recent: int
    """As many of the unproven ones were confirmed so recently that RabbitMQ's figures may not show them yet."""
    unattributed: int = 0
    """As many of the missing ones are of one of several endpoints; it is not known of which."""

    @property
    def is_named(self) -> bool:
        """Whether the missing ones are known by id: then nothing can hide in the queue."""
        return self.held == 0


@dataclass(frozen=True, slots=True)
class Audit:
    """The account of a whole database."""

    endpoints: tuple[EndpointAudit, ...]
    queues: tuple[QueueAudit, ...] = ()
    until: datetime | None = None
    """What was last sent before this moment is missing if it is named; by the database's clock."""
    trouble: str = ""
    """Why RabbitMQ could not be asked, or not about everything; empty if it was."""

    @property
    def missing(self) -> int:
        """Messages that are nowhere; 0 is the promise."""
        return sum(one.missing for one in self.endpoints) + self._unattributed

    @property
    def missing_is_least(self) -> bool:
        """Whether more may be missing than can be told while a queue holds something."""
        return any(one.missing and not one.is_named for one in self.queues)

    @property
    def unproven(self) -> int:
        """Messages of which nothing says where they are: RabbitMQ could not be asked, or not about all."""
        return sum(one.unproven for one in self.endpoints) - self._unattributed

    @property
    def recent(self) -> int:
        """The unproven ones that RabbitMQ's figures may not show yet."""
        return sum(one.recent for one in self.queues)

    @property
    def pending(self) -> int:
        """Messages that are on their way: open in the outbox or in the broker."""
        return sum(one.open + one.in_broker for one in self.endpoints)

    @property
    def is_fine(self) -> bool:
        """Whether every message is accounted for."""
        return not self.missing and not self.unproven

    @property
    def _unattributed(self) -> int:
        return sum(one.unattributed for one in self.queues)


@dataclass(frozen=True, slots=True)
class Unsettled:
    """The unsettled sends of one endpoint."""

    old: int
    """Those that RabbitMQ's figures must show if it has them."""
    recent: int
    """Those that the figures may not show yet."""

    @property
    def all(self) -> int:
        """Both."""
        return self.old + self.recent


@dataclass(frozen=True, slots=True)
class Held:
    """How many messages a queue and its `.dead` queue held around one moment."""

    most: int | None
    """None: that is not known."""
    seen: int
    """Those that were counted."""
    dead: int
    """Those that were counted in the `.dead` queue."""


def held_in(queue: str, before: Readings, after: Readings) -> Held:
    """What two readings, one before and one after a moment, say of the moment: the larger figure of each queue.

    A queue that does not exist holds nothing.
    """
    if before is None or after is None:
        return Held(None, 0, 0)
    live = [look.get(queue) for look in (before, after)]
    dead = [look.get(dead_queue(queue)) for look in (before, after)]
    dead_seen = max(_seen(one) for one in dead)
    seen = max(_seen(one) for one in live) + dead_seen
    is_known = all(one is None or one.unacked is not None for one in (*live, *dead))
    return Held(seen if is_known else None, seen, dead_seen)


def _seen(reading: QueueReading | None) -> int:
    return 0 if reading is None else reading.ready + (reading.unacked or 0)


def account_of_queue(queue: str, sends: Sequence[Unsettled], held: Held) -> QueueAudit:
    """The unsettled sends of all endpoints of a queue, against what it holds."""
    old, unsettled = sum(one.old for one in sends), sum(one.all for one in sends)
    if held.most is None:
        unproven = max(0, unsettled - held.seen)
        recent = max(0, unproven - max(0, old - held.seen))
        return QueueAudit(queue, unsettled, None, held.dead, 0, unproven, recent)
    missing = max(0, old - held.most)
    recent = max(0, unsettled - held.most) - missing
    mine = sum(max(0, one.old - held.most) for one in sends)
    return QueueAudit(queue, unsettled, held.most, held.dead, missing, recent, recent, missing - mine)


def shares(account: QueueAudit, sends: Sequence[Unsettled]) -> Iterator[tuple[int, int]]:
    """(missing, unproven) of each endpoint of a queue. What is not known to be of one of them is unproven."""
    doubtful = account.unproven + account.unattributed
    for one in sends:
        missing = 0 if account.held is None else max(0, one.old - account.held)
        unproven = min(doubtful, one.all - missing)
        doubtful -= unproven
        yield missing, unproven


def explained(audit: Audit) -> tuple[str, ...]:
    """What the figures of an account mean and what to do, one sentence or two each; empty if nothing is to be said."""
    texts = [_least(one) if one.missing and not one.is_named else _dead(one) for one in audit.queues]
    return tuple(text for text in (*texts, _unproven(audit)) if text)


def _least(one: QueueAudit) -> str:
    dead = f", {one.dead:,} of them in {dead_queue(one.queue)}" if one.dead else ""
    return (
        f"At least {one.missing:,} of {one.unsettled:,} unsettled sends to the queue {one.queue} are missing: it holds "
        f"{one.held:,}{dead}. Let the workers empty it and ask again: then the missing ones are named."
    )


def _dead(one: QueueAudit) -> str:
    if not one.dead:
        return ""
    return f"{dead_queue(one.queue)} holds {one.dead:,}: a running worker fetches and parks what lies there."


def _unproven(audit: Audit) -> str:
    if not audit.unproven:
        return ""
    sends = "1 send is" if audit.unproven == 1 else f"{audit.unproven:,} sends are"
    text = f"{sends} not settled, and nothing proves where: "
    if audit.trouble:
        return f"{text}{audit.trouble.rstrip('.')}. Ask again when RabbitMQ answers."
    if audit.recent >= audit.unproven:
        return f"{text}RabbitMQ's figures may not show them yet. Ask again in {METRICS_LAG_SECONDS:g} s."
    if any(one.held is None for one in audit.queues):
        return (
            f"{text}workers hold what cannot be counted. Set HOPLINE_MANAGEMENT_URL, or stop the workers and ask again."
        )
    return f"{text}a queue of several handlers holds less than was sent to it. Ask again when it is empty."
