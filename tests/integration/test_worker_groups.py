"""Group commit under failure: any mix of messages in any grouping ends as each of them would alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hopline import schema
from hopline.broker import Delivery
from hopline.clock import new_id
from hopline.database import Database, Transaction
from hopline.handlers import Handlers
from hopline.message import Envelope, message
from hopline.outbox import Outbox
from hopline.outcome import Dead, Defer, Retry
from hopline.retry import RetryPolicy
from hopline.worker import Worker
from tests.support.engine import FAST, ScriptedConsumer, delivery_for, envelope_for, rows

POLICY = RetryPolicy(attempts=3, first_seconds=600, immediate=1, never=(PermissionError,))
DEADLINE_SECONDS = 0.1
KINDS = ("well", "raise", "late", "retry", "defer", "die", "forbidden", "poison", "last try")

effects = sa.Table("group_effects", sa.MetaData(), sa.Column("name", sa.String(64)))


@message("task.given", key="name")
class Task(msgspec.Struct):
    name: str
    does: str


@message("task.told", key="name")
class Told(msgspec.Struct):
    name: str


async def perform(task: Task, tx: Transaction | None) -> Any:
    if tx is not None:
        await tx.execute(sa.insert(effects).values(name=task.name))
    match task.does:
        case "raise" | "last try":
            raise RuntimeError("broken")
        case "late":
            await asyncio.sleep(10 * DEADLINE_SECONDS)
        case "retry":
            return Retry(600, "not yet")
        case "defer":
            return Defer(600, "later")
        case "die":
            return Dead("refused")
        case "forbidden":
            raise PermissionError(task.name)
    return Told(task.name)


def one_by_one() -> Handlers:
    handlers = Handlers()

    @handlers.on("tasks", retry=POLICY, deadline_seconds=DEADLINE_SECONDS)
    async def handle(task: Task, tx: Transaction) -> Any:
        return await perform(task, tx)

    return handlers


def as_lists() -> Handlers:
    handlers = Handlers()

    @handlers.on("tasks", retry=POLICY, deadline_seconds=DEADLINE_SECONDS)
    async def handle(tasks: list[Task], tx: Transaction) -> list[Any]:
        return [await perform(task, tx) for task in tasks]

    return handlers


def as_effects() -> Handlers:
    handlers = Handlers()

    @handlers.on("tasks", retry=POLICY, deadline_seconds=DEADLINE_SECONDS)
    async def handle(task: Task) -> Any:
        return await perform(task, None)

    return handlers


@asynccontextmanager
async def working(url: str, handlers: Handlers) -> AsyncIterator[tuple[Database, Worker, ScriptedConsumer]]:
    database = Database(url)
    await database.create(effects.metadata)
    database.riders.append(Outbox(limit=100_000, lease_seconds=30))
    worker = Worker(database, handlers, FAST, instance="worker-1")
    consumer = ScriptedConsumer()
    worker.attach(consumer)
    try:
        yield database, worker, consumer
    finally:
        await worker.abandon()
        await database.close()


def envelope_of(kind: str) -> Envelope:
    name = new_id()
    body = {"body": b"{"} if kind == "poison" else {}
    return envelope_for(Task(name, kind), key=name, attempt=2 if kind == "last try" else 0, **body)


async def final_state(database: Database, names: dict[str, int]) -> dict[str, Any]:
    """What is stored about the named messages, each called by its place in the mix."""

    async def of(table: sa.Table, *columns: str) -> list[tuple[Any, ...]]:
        found = [row for row in await rows(database, table) if row.message_id in ids]
        return sorted((ids[row.message_id], *(getattr(row, column) for column in columns)) for row in found)

    told = [row for row in await rows(database, schema.messages) if row.type == "task.told" and row.key in names]
    stored = [row for row in await rows(database, schema.messages) if row.key in names and row.type == "task.given"]
    letters = [row for row in await rows(database, schema.dead_letters) if row.key in names]
    ids = {row.id: names[row.key] for row in stored} | {row.message_id: names[row.key] for row in letters}
    ids |= {row.cause_id: names[row.key] for row in told}
    return {
        "effects": sorted(names[row.name] for row in await rows(database, effects) if row.name in names),
        "told": sorted(names[row.key] for row in told),
        "done": await of(schema.inbox, "attempt"),
        "failed": await of(schema.attempts, "attempt", "outcome"),
        "scheduled": await of(schema.outbox, "destination", "attempt"),
        "dead": await of(schema.dead_letters, "reason", "attempt"),
    }


async def run(database: Database, worker: Worker, groups: list[list[Delivery]]) -> None:
    for group in groups:
        worker.receive(group)
        async with asyncio.timeout(60):
            await worker.drained()
    assert not worker.crashed.done()


@st.composite
def mixes(draw: st.DrawFn) -> tuple[list[int], list[str], list[int]]:
    """Deliveries (each the place of its message: twice is a duplicate), kinds of messages, sizes of groups."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=8))
    order = draw(st.permutations(range(len(kinds))))
    deliveries = draw(st.lists(st.sampled_from(order), max_size=4)) + list(order)
    sizes = draw(st.lists(st.integers(1, len(deliveries)), min_size=len(deliveries), max_size=len(deliveries)))
    return deliveries, kinds, sizes


@pytest.mark.parametrize("kind", [one_by_one, as_lists, as_effects])
async def test_any_mix_in_any_grouping_ends_as_one_by_one(database_url: str, kind: Callable[[], Handlers]) -> None:
    loop = asyncio.get_running_loop()

    async with working(database_url, kind()) as (database, worker, consumer):

        async def compare(mix: tuple[list[int], list[str], list[int]]) -> None:
            order, kinds, sizes = mix
            states = []
            for sizes_now in (sizes, [1] * len(order)):
                envelopes = [envelope_of(does) for does in kinds]
                deliveries = [delivery_for("tasks", envelopes[place]) for place in order]
                settled_before = len(consumer.settled)
                await run(database, worker, grouped(deliveries, sizes_now))
                assert len(consumer.settled) - settled_before == len(deliveries)
                states.append(await final_state(database, {e.key: place for place, e in enumerate(envelopes)}))
            assert states[0] == states[1]

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(mixes())
        def compare_all(mix: tuple[list[int], list[str], list[int]]) -> None:
            asyncio.run_coroutine_threadsafe(compare(mix), loop).result(120)

        await asyncio.to_thread(compare_all)


def grouped(deliveries: list[Delivery], sizes: list[int]) -> list[list[Delivery]]:
    groups, start = [], 0
    for size in sizes:
        groups.append(deliveries[start : start + size])
        start += size
    return [group for group in groups if group]
