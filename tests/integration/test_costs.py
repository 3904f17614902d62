"""What a thousand orders cost, counted and not timed: statements, round trips, commits, frames, bytes, Python calls.

The bounds are what the code needs today; a statement more a group, or one a row, is above them. Groups have a fixed
size, so that the counts are the same on every machine.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from hopline import Settings, codec, new_id, outbox, utcnow
from hopline.broker import Delivery, Publish, Published
from hopline.database import Database, Transaction
from hopline.message import type_of
from hopline.outbox import Outbox
from hopline.rabbitmq import RabbitConsumer, RabbitPublisher
from hopline.relay import CHUNK_MESSAGES, Relay
from hopline.topology import build
from orders import deciding
from orders.domain import Product, reserve, total_cents
from orders.messages import OrderPlaced
from tests.support.engine import ScriptedPublisher, envelope_for
from tests.support.meter import Meter, amqp_frames, postgres_answers
from tests.support.waiting import wait_until
from tests.support.way import CUSTOMER, GROUP, LINES, Way, a_shop

GROUPS = 4
SCALE = 1000 / (GROUP * GROUPS)
"""What is counted is told for a thousand orders."""


@contextmanager
def statements_of(database: Database) -> Iterator[Counter[str]]:
    """Counts what SQLAlchemy gives to the driver, and the commits."""
    counts: Counter[str] = Counter()

    def executed(*_: object) -> None:
        counts["statements"] += 1

    def committed(_: object) -> None:
        counts["commits"] += 1

    engines = {database._writer.sync_engine, database._reader.sync_engine}
    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", executed)
        sa.event.listen(engine, "commit", committed)
    try:
        yield counts
    finally:
        for engine in engines:
            sa.event.remove(engine, "before_cursor_execute", executed)
            sa.event.remove(engine, "commit", committed)


async def cost_of_each_step(way: Way, now: Callable[[], Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """What grew by how much in each step, for a thousand orders. The first groups prepare the statements."""
    for _ in range(2):
        await way.handle(await way.handle(await way.place()))
    costs: dict[str, dict[str, float]] = {}

    def add(step: str, before: Mapping[str, float]) -> dict[str, float]:
        after, cost = dict(now()), costs.setdefault(step, {})
        for name, value in after.items():
            cost[name] = cost.get(name, 0.0) + (value - before.get(name, 0.0)) * SCALE
        return after

    for _ in range(GROUPS):
        at = dict(now())
        placed = await way.place()
        at = add("placed", at)
        decided = await way.handle(placed)
        at = add("decided", at)
        await way.handle(decided)
        add("mailed", at)
    assert len(way.consumer.settled) == (GROUPS + 2) * GROUP * 2
    return costs


def per_thousand(groups_each: float) -> float:
    """So many for a group is so many for a thousand orders."""
    return groups_each * 1000 / GROUP


async def test_the_statements_of_a_thousand_orders_on_sqlite(sqlite_database_url: str) -> None:
    async with a_shop(sqlite_database_url) as database:
        with statements_of(database) as counts:
            costs = await cost_of_each_step(Way(database), lambda: counts)

    assert costs["placed"] == {"statements": per_thousand(4), "commits": per_thousand(1)}, costs
    assert costs["decided"] == {"statements": per_thousand(10), "commits": per_thousand(1)}, costs
    assert costs["mailed"] == {"statements": per_thousand(4), "commits": per_thousand(1)}, costs


async def test_the_round_trips_of_a_thousand_orders_on_postgres(postgres_database_url: str) -> None:
    server = urlsplit(postgres_database_url)
    async with (
        Meter(server.hostname or "", server.port or 0, postgres_answers) as meter,
        a_shop(postgres_database_url.replace(f":{server.port}/", f":{meter.port}/")) as database,
    ):
        costs = await cost_of_each_step(
            Way(database),
            lambda: {
                "round trips": meter.received.messages["Z"],
                "bytes sent": meter.sent.bytes,
                "bytes received": meter.received.bytes,
            },
        )

    trips = {step: cost["round trips"] for step, cost in costs.items()}
    assert trips == {"placed": per_thousand(1), "decided": per_thousand(6), "mailed": per_thousand(2)}
    assert costs["placed"]["bytes sent"] < 1000 * 850
    assert costs["decided"]["bytes sent"] < 1000 * 900
    assert costs["mailed"]["bytes sent"] < 1000 * 240
    assert sum(cost["bytes received"] for cost in costs.values()) < 1000 * 120


async def test_the_statements_of_a_thousand_swept_sends(sqlite_database_url: str) -> None:
    """Whatever waits behind them: it is counted once a look, and not once a claim."""
    async with a_shop(sqlite_database_url) as database:
        store = Outbox(limit=100_000, lease_seconds=30)
        database.riders.append(store)
        async with database.transaction() as tx:
            for _ in range(1_000):
                tx.send(an_order())
        publisher = ScriptedPublisher()
        relay = Relay(database, store, publisher, Settings(probe_seconds=10))

        with statements_of(database) as counts:
            more = await relay._sweep()
            await relay.stop()

    claims = 1_000 // CHUNK_MESSAGES + 1  # the last one finds nothing
    assert not more
    assert len(publisher.published) == 1_000
    assert counts["statements"] <= claims * 3 + 2  # begin, claim, read; and the marks at the end


async def test_the_frames_of_a_thousand_messages(broker_url: str) -> None:
    server = urlsplit(broker_url)
    topology = build([("orders", "order.placed")])
    batch = [Publish("hopline", "order.placed", envelope_for(an_order())) for _ in range(GROUP * GROUPS)]
    received: list[Delivery] = []
    async with Meter(server.hostname or "", server.port or 0, amqp_frames, amqp_frames) as meter:
        url = broker_url.replace(f":{server.port}/", f":{meter.port}/")
        publisher = RabbitPublisher(url, topology, name="counted")
        consumer = RabbitConsumer(url, topology, name="counted", prefetches={"orders": 500}, receive=received.extend)
        publisher.start()
        await wait_until(lambda: publisher.ready)
        meter.reset()

        outcomes = await publisher.publish(batch, timeout_seconds=20)
        sent, answered = meter.reset()
        await publisher.stop()
        consumer.start()
        await wait_until(lambda: len(received) == len(batch))
        meter.reset()
        for start in range(0, len(batch), GROUP):
            consumer.settle(received[start : start + GROUP])
        await wait_until(lambda: meter.sent.messages["1"] >= GROUPS)
        settled, _ = meter.reset()
        await consumer.stop()

    assert outcomes == [Published.CONFIRMED] * len(batch)
    assert sent.messages == {"1": len(batch), "2": len(batch), "3": len(batch)}  # method, header, body
    assert sent.bytes < len(batch) * 700
    assert answered.messages["1"] <= len(batch)
    assert answered.bytes <= len(batch) * 21
    assert settled.messages["1"] == GROUPS  # `multiple`: one for a group


def an_order() -> OrderPlaced:
    return OrderPlaced(new_id(), CUSTOMER, LINES, total_cents(LINES), utcnow())


@contextmanager
def python_calls() -> Iterator[Counter[str]]:
    """Counts calls of functions that are written in Python."""
    counts: Counter[str] = Counter()

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        counts[event] += 1

    sys.setprofile(profile)
    try:
        yield counts
    finally:
        sys.setprofile(None)


def calls_an_order(work: Callable[[], object]) -> float:
    work()  # what is made once is made
    with python_calls() as counts:
        work()
    return counts["call"] / GROUP


def test_the_python_calls_of_an_order() -> None:
    orders = [an_order() for _ in range(GROUP)]
    bodies = [codec.encode(order, limit_bytes=1 << 20) for order in orders]
    shelf = {line.sku: Product(line.sku, line.sku, line.unit_price, 1_000_000) for line in LINES}
    confirmed = [deciding.answer_to(order, [], shelf) for order in orders]
    declared = type_of(OrderPlaced)

    assert calls_an_order(lambda: [codec.decode(declared, body) for body in bodies]) < 2
    assert calls_an_order(lambda: reserve(orders, shelf)) < 8
    assert calls_an_order(lambda: [deciding.answer_to(order, [], shelf) for order in orders]) < 7
    assert calls_an_order(lambda: _send_all(confirmed)) < 15


def _send_all(messages: Sequence[Any]) -> None:
    tx = Transaction(None, "postgresql", 1 << 20)  # type: ignore[arg-type]
    tx.cause = envelope_for(an_order())
    for message in messages:
        tx.send(message)
    outbox.store(tx, tx.sends, leased={send.id for send in tx.sends}, lease_seconds=30)
