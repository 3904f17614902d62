"""Exchanges, queues and bindings as plain data, declared in full by every role at start.

- topic exchange `hopline`, routing key = message type: whatever is published once for all who want it;
- direct exchange `hopline.to`, routing key = queue name: whatever is meant for one queue (retries, replays);
- direct exchange `hopline.dead`: where RabbitMQ itself dead-letters to, one `NAME.dead` queue per queue.

Arguments follow RabbitMQ's quorum queue documentation: at-least-once dead-lettering needs
`x-overflow=reject-publish`; `.dead` queues get a very large positive delivery limit because 4.x drops after
20 by default and -1 is unknown to 3.10.

`compare` says how a live broker differs. Adding what is missing is safe; nothing else is ever done by a program,
because what differs or is left over may hold messages: `Change.steps` are for a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from hopline.errors import UsageError

EXCHANGE = "hopline"
DIRECT_EXCHANGE = "hopline.to"
DEAD_EXCHANGE = "hopline.dead"
DEAD_SUFFIX = ".dead"
DELIVERY_LIMIT = 20
QUEUE_NAME_BYTES = 250
"""AMQP allows 255, and `.dead` needs five."""
UNLIMITED_DELIVERIES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: Literal["topic", "direct"]


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue with its arguments."""

    name: str
    arguments: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binding:
    """Messages of `exchange` with this routing key go to `queue`."""

    exchange: str
    queue: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class Topology:
    """All that is declared on the broker, in the order in which it is declared."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]


def dead_queue(queue: str) -> str:
    """The name of the queue that takes what RabbitMQ dead-letters from `queue`."""
    return f"{queue}{DEAD_SUFFIX}"


def base_queue(queue: str) -> str:
    """The queue that a `.dead` queue belongs to; any other queue itself."""
    return queue.removesuffix(DEAD_SUFFIX)


def build(subscriptions: Iterable[tuple[str, str]]) -> Topology:
    """The topology for (queue, message type) pairs; the same pairs in any order give the same topology."""
    pairs = sorted(set(subscriptions))
    names = sorted({queue for queue, _ in pairs})
    queues: list[Queue] = []
    bindings: list[Binding] = []
    for name in names:
        check_queue_name(name)
        queues += [Queue(name, _live_arguments(name)), Queue(dead_queue(name), _dead_arguments())]
        bindings += [Binding(DIRECT_EXCHANGE, name, name), Binding(DEAD_EXCHANGE, dead_queue(name), name)]
    bindings += [Binding(EXCHANGE, queue, message_type) for queue, message_type in pairs]
    exchanges = (Exchange(EXCHANGE, "topic"), Exchange(DIRECT_EXCHANGE, "direct"), Exchange(DEAD_EXCHANGE, "direct"))
    return Topology(exchanges, tuple(queues), tuple(bindings))


def join(topologies: Iterable[Topology]) -> Topology:
    """The topology of several programs on one broker."""
    bindings = [binding for topology in topologies for binding in topology.bindings]
    return build((binding.queue, binding.routing_key) for binding in bindings if binding.exchange == EXCHANGE)


def check_queue_name(name: str) -> None:
    """UsageError unless the name is one that RabbitMQ and the `.dead` convention can take."""
    if (
        not name
        or name.startswith("amq.")
        or name.endswith(DEAD_SUFFIX)
        or any(c.isspace() or not c.isprintable() for c in name)
    ):
        raise UsageError(f"{name!r} is no queue name: not empty, no blanks or controls, not 'amq.…', not '….dead'")
    if len(name.encode()) > QUEUE_NAME_BYTES:
        raise UsageError(f"the queue name {name[:40]!r}… is longer than 250 bytes")


def _live_arguments(name: str) -> dict[str, str | int]:
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": DEAD_EXCHANGE,
        "x-dead-letter-routing-key": name,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _dead_arguments() -> dict[str, str | int]:
    return {"x-queue-type": "quorum", "x-delivery-limit": UNLIMITED_DELIVERIES}


# the broker as it is, and how it differs

Trait = str | int | float | bool | None
"""One value of a declaration that RabbitMQ compares on a second one (406 if it differs); None: not given."""


@dataclass(frozen=True, slots=True)
class LiveExchange:
    """An exchange on the broker."""

    traits: Mapping[str, Trait]


@dataclass(frozen=True, slots=True)
class LiveQueue:
    """A queue on the broker; `messages` is None when it does not say (it has no leader)."""

    traits: Mapping[str, Trait]
    messages: int | None


@dataclass(frozen=True, slots=True)
class Live:
    """What is on the broker, whoever declared it."""

    exchanges: Mapping[str, LiveExchange]
    queues: Mapping[str, LiveQueue]
    bindings: frozenset[Binding]

    def holding(self, ready: Mapping[str, int]) -> Live:
        """The same, with at least so many messages in these queues."""
        queues = {
            name: queue if queue.messages is None else replace(queue, messages=max(queue.messages, ready.get(name, 0)))
            for name, queue in self.queues.items()
        }
        return replace(self, queues=queues)


@dataclass(frozen=True, slots=True)
class Difference:
    """One trait that the broker has otherwise."""

    trait: str
    live: Trait
    declared: Trait


@dataclass(frozen=True, slots=True)
class Change:
    """One exchange, queue or binding that is not on the broker as declared."""

    state: Literal["missing", "different", "extra"]
    kind: Literal["exchange", "queue", "binding"]
    name: str
    differences: tuple[Difference, ...] = ()
    messages: int | None = None
    """What a live queue holds."""
    steps: tuple[str, ...] = ()
    """What a person can do about what no program does by itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What differs, and the part of the topology that can be declared without touching anything that exists."""

    changes: tuple[Change, ...]
    additions: Topology

    @property
    def in_sync(self) -> bool:
        """Whether the broker is exactly as declared."""
        return not self.changes

    def count(self, state: str) -> int:
        """Changes of one state."""
        return sum(change.state == state for change in self.changes)


def exchange_traits(kind: str, more: Mapping[str, Trait] | None = None) -> dict[str, Trait]:
    """All traits of an exchange: those of a durable one unless `more` says otherwise."""
    return {"durable": True, "auto-delete": False, "internal": False, **(more or {}), "type": kind}


def queue_traits(arguments: Mapping[str, Trait]) -> dict[str, Trait]:
    """All traits of a queue: those of a durable one unless the arguments say otherwise."""
    return {"durable": True, "auto-delete": False, **arguments}


def compare(declared: Topology, live: Live) -> Plan:
    """How the broker differs from what is declared. Pure.

    Extra is said only of Hopline's own: exchanges `hopline…`, queues bound to one, bindings from one.
    """
    exchanges = tuple(each for each in declared.exchanges if each.name not in live.exchanges)
    queues = tuple(each for each in declared.queues if each.name not in live.queues)
    bindings = tuple(each for each in declared.bindings if each not in live.bindings)
    different = tuple(_different(declared, live))
    # A queue or exchange that is refused gets no binding either: messages would come into what is not as declared.
    refused = {(change.kind, change.name): change.name for change in different}
    blocked = {
        each: refused.get(("queue", each.queue)) or refused.get(("exchange", each.exchange)) or "" for each in bindings
    }
    changes = [
        *(Change("missing", "exchange", each.name) for each in exchanges),
        *(Change("missing", "queue", each.name) for each in queues),
        *(Change("missing", "binding", binding_name(each), steps=_wait_for(blocked[each])) for each in bindings),
        *different,
        *_extra(declared, live),
    ]
    return Plan(tuple(changes), Topology(exchanges, queues, tuple(each for each in bindings if not blocked[each])))


def binding_name(binding: Binding) -> str:
    """A binding in one line."""
    return f"{binding.exchange} --{binding.routing_key}--> {binding.queue}"


def _different(declared: Topology, live: Live) -> Iterable[Change]:
    for exchange in declared.exchanges:
        found = live.exchanges.get(exchange.name)
        if found and (differences := _differences(found.traits, exchange_traits(exchange.kind))):
            yield Change("different", "exchange", exchange.name, differences, steps=_mend_exchange(exchange.name))
    for queue in declared.queues:
        there = live.queues.get(queue.name)
        if there and (differences := _differences(there.traits, queue_traits(queue.arguments))):
            steps = _mend_queue(queue.name, there.messages)
            yield Change("different", "queue", queue.name, differences, there.messages, steps)


def _differences(live: Mapping[str, Trait], declared: Mapping[str, Trait]) -> tuple[Difference, ...]:
    names = sorted({*live, *declared})
    return tuple(
        Difference(name, live.get(name), declared.get(name)) for name in names if live.get(name) != declared.get(name)
    )


def _extra(declared: Topology, live: Live) -> Iterable[Change]:
    known = {exchange.name for exchange in declared.exchanges}
    own = {name for name in live.exchanges if name.startswith(EXCHANGE)}
    for name in sorted(own - known):
        yield Change("extra", "exchange", name, steps=_drop_exchange(name))
    wanted = {queue.name for queue in declared.queues}
    bound = {binding.queue for binding in live.bindings if binding.exchange in own}
    for name in sorted(bound - wanted):
        there = live.queues.get(name)
        messages = there.messages if there else None
        yield Change("extra", "queue", name, messages=messages, steps=_drop_queue(name, messages))
    left_over = {each for each in live.bindings if each.exchange in own & known and each.queue in wanted}
    for binding in sorted(left_over - set(declared.bindings), key=binding_name):
        yield Change("extra", "binding", binding_name(binding), steps=_drop_binding(binding))


def _wait_for(refused: str) -> tuple[str, ...]:
    return (f"{refused!r} is not as declared: mend that first, then `hopline topology apply`",) if refused else ()


def _mend_exchange(name: str) -> tuple[str, ...]:
    return (
        f"either declare {name!r} in the code as it is on the broker,",
        f"or delete the exchange {name!r} on RabbitMQ's management pages and apply at once: sends wait in the outbox",
        "meanwhile, and what `apply` then reports as missing are its bindings",
    )


def _mend_queue(name: str, messages: int | None) -> tuple[str, ...]:
    return (
        f"either declare {name!r} in the code as it is on the broker, or replace the queue:",
        *_emptied(name, messages, "run workers of the version that declared it"),
        f"rabbitmqctl delete_queue {name}    (sends wait in the outbox meanwhile)",
        "hopline topology apply",
    )


def _drop_queue(name: str, messages: int | None) -> tuple[str, ...]:
    return (
        f"if {name!r} belongs to another program on this broker, name that too: --also module:attribute; else:",
        f"unbind it from {EXCHANGE!r} on RabbitMQ's management pages, so that nothing more comes",
        *_emptied(name, messages, "run workers that still have its handler"),
        f"rabbitmqctl delete_queue {name}",
    )


def _emptied(name: str, messages: int | None, how: str) -> tuple[str, ...]:
    if messages == 0:
        return (f"rabbitmqctl list_queues name messages    (it must still say 0 for {name})",)
    held = "an unknown number of" if messages is None else f"{messages:,}"
    return (
        f"it holds {held} messages, and a queue that holds messages is never deleted: {how}",
        f"until `rabbitmqctl list_queues name messages` says 0 for {name}",
    )


def _drop_exchange(name: str) -> tuple[str, ...]:
    return (f"make sure that nobody publishes to {name!r}, then delete it on RabbitMQ's management pages",)


def _drop_binding(binding: Binding) -> tuple[str, ...]:
    return (
        f"if another program needs {binding.routing_key!r} in {binding.queue!r}, name that too (--also); else:",
        f"unbind {binding.routing_key!r} from {binding.queue!r} on RabbitMQ's management pages;",
        "what still comes that way is parked as an unknown type",
    )
