"""A careful replay of many letters, with a worker that handles what is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from hopline import schema
from hopline.broker import Publish, Published
from hopline.database import Database, Transaction
from hopline.deadletter_queries import Filter
from hopline.handlers import Handlers
from hopline.message import Catalog
from hopline.repair import Code, Plan, Progress, ramp, select
from hopline.retry import RetryPolicy
from hopline.worker import Worker
from tests.support.engine import FAST, ScriptedConsumer, ScriptedPublisher, delivery_for, envelope_for, relaying, rows
from tests.support.letters import Packed, dead, parked

EAGER = Plan(canary=True, rate=100_000, deadline_seconds=20)


class Shop:
    """A program whose handler fails for the ids in `broken`, on a broker that delivers at once."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.asked: list[str] = []
        self.handlers = Handlers()

        @self.handlers.on("parcels", retry=RetryPolicy(attempts=1, immediate=0))
        async def pack(one: Packed, tx: Transaction) -> None:
            self.asked.append(one.id)
            if one.id in self.broken:
                raise RuntimeError(f"{one.id} is broken")

        types = Catalog([endpoint.type for endpoint in self.handlers])
        self.code = Code(types, self.handlers, timedelta(days=14))

    @asynccontextmanager
    async def running(self, url: str) -> AsyncIterator[Database]:
        publisher = ScriptedPublisher()
        async with relaying(url, publisher) as (database, _):
            worker = Worker(database, self.handlers, FAST, instance="worker-1")
            worker.attach(ScriptedConsumer())

            def deliver(publish: Publish) -> Published:
                worker.receive([delivery_for(publish.routing_key, publish.envelope)])
                return Published.CONFIRMED

            publisher.answer = deliver
            try:
                yield database
            finally:
                await worker.abandon()


async def collect(database: Database, shop: Shop, plan: Plan = EAGER) -> list[Progress]:
    selection = await select(database, Filter())
    async with asyncio.timeout(60):
        return [progress async for progress in ramp(database, shop.code, selection, plan, who="ann")]


async def test_a_canary_sends_1_then_10_then_100_then_the_rest(database_url: str) -> None:
    shop = Shop()
    async with shop.running(database_url) as database:
        await parked(database, *(dead(Packed(f"p-{number:03}")) for number in range(130)))

        steps = await collect(database, shop)

        assert {letter.resolution for letter in await rows(database, schema.dead_letters)} == {"replayed"}
        assert len(await rows(database, schema.inbox)) == 130
    sizes: dict[int, int] = {}
    for before, after in zip([None, *steps], steps, strict=False):
        stage = before.tally.stage if before else 0
        sizes[stage] = sizes.get(stage, 0) + sum(one.verdict.ok for one in after.judged)
    assert sizes == {0: 1, 1: 10, 2: 100, 3: 19}
    assert shop.asked[0] == "p-000"  # the oldest first
    last = steps[-1]
    assert (last.ended, last.tally.done, last.tally.sent, last.tally.failed) == ("finished", 130, 130, 0)


async def test_a_canary_stops_when_a_replay_fails_again_and_leaves_the_rest_parked(database_url: str) -> None:
    shop = Shop()
    shop.broken = {"p-005"}
    async with shop.running(database_url) as database:
        ids = await parked(database, *(dead(Packed(f"p-{number:03}")) for number in range(30)))

        steps = await collect(database, shop)

        letters = await rows(database, schema.dead_letters)
    last = steps[-1]
    failures = [failure for step in steps for failure in step.failures]
    assert last.ended == "failed-again"
    assert last.tally.sent == 11
    assert [(failure.letter_id, failure.parked) for failure in failures] == [(ids[5], True)]
    assert "p-005 is broken" in failures[0].error
    assert sum(letter.resolution == "replayed" for letter in letters) == 11
    assert sum(letter.resolution is None for letter in letters) == 19 + 1  # never sent, and failed again
    assert [letter.run for letter in letters if letter.resolution is None and letter.run] == [1]


@pytest.mark.parametrize("run", [0, 3])
async def test_a_message_that_died_at_two_endpoints_has_a_result_at_each(database_url: str, run: int) -> None:
    shop, labelled = Shop(), list[str]()

    @shop.handlers.on("labels", retry=RetryPolicy(attempts=1, immediate=0))
    async def label(one: Packed, tx: Transaction) -> None:
        labelled.append(one.id)

    async with shop.running(database_url) as database:
        twice = envelope_for(Packed("p-1"))
        here = dead(Packed("p-1"), twice)
        there = dead(Packed("p-1"), twice.changed(run=run), queue="labels", endpoint="labels/parcel.packed")
        await parked(database, dead(Packed("p-0")), here, there)

        steps = await collect(database, shop)

    last = steps[-1]
    assert (last.ended, last.tally.sent, last.tally.done, last.tally.failed) == ("finished", 3, 3, 0)
    assert (shop.asked, labelled) == (["p-0", "p-1"], ["p-1"])


@pytest.mark.parametrize("run", [0, 3])
async def test_a_failure_of_such_a_message_is_one_of_its_own_letter(database_url: str, run: int) -> None:
    shop = Shop()

    @shop.handlers.on("labels", retry=RetryPolicy(attempts=1, immediate=0))
    async def label(one: Packed, tx: Transaction) -> None:
        raise RuntimeError("no labels")

    async with shop.running(database_url) as database:
        twice = envelope_for(Packed("p-1"))
        here = dead(Packed("p-1"), twice)
        there = dead(Packed("p-1"), twice.changed(run=run), queue="labels", endpoint="labels/parcel.packed")
        ids = await parked(database, dead(Packed("p-0")), here, there)

        steps = await collect(database, shop)

    failures = [failure for step in steps for failure in step.failures]
    assert steps[-1].ended == "failed-again"
    assert [(failure.letter_id, failure.where) for failure in failures] == [(ids[2], "labels")]


async def test_a_canary_without_a_worker_ends_at_its_deadline(database_url: str) -> None:
    shop = Shop()
    publisher = ScriptedPublisher()
    async with relaying(database_url, publisher) as (database, _):
        await parked(database, *(dead(Packed(f"p-{number}")) for number in range(3)))

        steps = await collect(database, shop, Plan(canary=True, rate=1_000, deadline_seconds=0.5))

    last = steps[-1]
    assert (last.ended, last.tally.sent, last.tally.done) == ("no-result", 1, 0)
    assert last.waiting == (publisher.published[0].envelope.id,)


async def test_what_is_refused_is_skipped_and_told(database_url: str) -> None:
    shop = Shop()
    async with shop.running(database_url) as database:
        (old, *_) = await parked(database, dead(Packed("p-0"), reason="too-old"), *map(dead, map(Packed, "abc")))

        steps = await collect(database, shop)

    told = {one.letter_id: one.verdict.kind for step in steps for one in step.judged}
    assert told.pop(old) == "too-old"
    assert list(told.values()) == ["ok"] * 3
    assert (steps[-1].ended, steps[-1].tally.refused, steps[-1].tally.done) == ("finished", 1, 3)


async def test_without_a_canary_all_is_sent_and_nothing_waited_for(database_url: str) -> None:
    shop = Shop()
    publisher = ScriptedPublisher(ready=False)
    async with relaying(database_url, publisher) as (database, _):
        await parked(database, *(dead(Packed(f"p-{number:03}")) for number in range(30)))

        steps = await collect(database, shop, Plan(rate=100_000))

        assert len(await rows(database, schema.outbox)) == 30
    assert (steps[-1].ended, steps[-1].tally.sent) == ("finished", 30)


async def test_a_ramp_does_not_go_faster_than_its_rate(sqlite_database_url: str) -> None:
    shop = Shop()
    loop = asyncio.get_running_loop()
    async with relaying(sqlite_database_url, ScriptedPublisher(ready=False)) as (database, _):
        await parked(database, *(dead(Packed(f"p-{number}")) for number in range(11)))

        begun = loop.time()
        await collect(database, shop, Plan(rate=20))  # two pauses of a quarter of a second between batches of five

    assert loop.time() - begun >= 0.5


async def test_nothing_to_replay_ends_at_once(sqlite_database_url: str) -> None:
    shop = Shop()
    async with relaying(sqlite_database_url, ScriptedPublisher()) as (database, _):
        (last,) = await collect(database, shop)

    assert (last.ended, last.tally.chosen) == ("finished", 0)


async def test_whoever_stops_to_look_stops_the_ramp(sqlite_database_url: str) -> None:
    shop = Shop()
    async with relaying(sqlite_database_url, ScriptedPublisher()) as (database, _):
        await parked(database, *(dead(Packed(f"p-{number:03}")) for number in range(60)))
        selection = await select(database, Filter())
        steps = ramp(database, shop.code, selection, Plan(rate=40), who="ann")

        await anext(steps)
        await steps.aclose()  # type: ignore[attr-defined]

        assert len(await rows(database, schema.outbox)) == 10
