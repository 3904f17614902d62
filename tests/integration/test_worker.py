"""The worker on real databases: deliveries in, outcomes and acknowledgements out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from hopline import schema
from hopline.broker import Delivery
from hopline.clock import utcnow
from hopline.database import Database, Transaction
from hopline.errors import DatabaseContention
from hopline.handlers import Handlers
from hopline.heartbeat import Heard
from hopline.message import Envelope, message
from hopline.outbox import Outbox
from hopline.outcome import Dead, Defer, Done, Retry
from hopline.retry import RetryPolicy
from hopline.worker import Worker
from tests.support.engine import FAST, ScriptedConsumer, delivery_for, envelope_for, rows

effects = sa.Table("effects", sa.MetaData(), sa.Column("id", sa.String(64)), sa.Column("n", sa.Integer))


@message("thing.made", key="id")
class Made(msgspec.Struct):
    id: str
    does: str = "well"


@message("thing.seen", key="id")
class Seen(msgspec.Struct):
    id: str


async def write(tx: Transaction, *made: Made) -> None:
    await tx.execute(sa.insert(effects), [{"id": one.id, "n": 1} for one in made])


def misbehave(made: Made) -> Any:
    match made.does:
        case "raise":
            raise RuntimeError(f"{made.id} is broken")
        case "retry":
            return Retry(60, "not yet")
        case "defer":
            return Defer(60, "paused")
        case "die":
            return Dead("refused", "by rule")
        case "forbidden":
            raise PermissionError(made.id)
    return Seen(made.id)


POLICY = RetryPolicy(attempts=3, first_seconds=60, never=(PermissionError,))


def one_by_one() -> Handlers:
    handlers = Handlers()

    @handlers.on("things", retry=POLICY)
    async def handle(made: Made, tx: Transaction) -> Any:
        await write(tx, made)
        return misbehave(made)

    return handlers


def as_lists() -> Handlers:
    handlers = Handlers()

    @handlers.on("things", retry=POLICY)
    async def handle(made: list[Made], tx: Transaction) -> list[Any]:
        results = [misbehave(one) for one in made]
        good = [one for one, result in zip(made, results, strict=True) if isinstance(result, Seen)]
        if good:
            await write(tx, *good)
        return results

    return handlers


def as_effects() -> Handlers:
    handlers = Handlers()

    @handlers.on("things", retry=POLICY)
    async def handle(made: Made) -> Any:
        return misbehave(made)

    return handlers


KINDS = [one_by_one, as_lists, as_effects]


@asynccontextmanager
async def working(url: str, handlers: Handlers) -> AsyncIterator[tuple[Database, Worker, ScriptedConsumer]]:
    database = Database(url)
    await database.create(effects.metadata)
    database.riders.append(Outbox(limit=1_000, lease_seconds=30))
    worker = Worker(database, handlers, FAST, instance="worker-1")
    consumer = ScriptedConsumer()
    worker.attach(consumer)
    try:
        yield database, worker, consumer
    finally:
        await worker.abandon()
        await database.close()


async def handle_all(worker: Worker, deliveries: list[Delivery]) -> None:
    worker.receive(deliveries)
    async with asyncio.timeout(20):
        await worker.drained()
    assert not worker.crashed.done()
    assert worker.busy == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_any_mix_ends_as_each_message_would_alone(database_url: str, kind: Callable[[], Handlers]) -> None:
    made = [
        Made("a"), Made("b", "raise"), Made("c"), Made("d", "retry"), Made("e", "defer"), Made("f", "die"),
        Made("g", "forbidden"), Made("h"),
    ]  # fmt: skip
    envelopes = [envelope_for(one) for one in made]
    deliveries = [delivery_for("things", envelope) for envelope in envelopes]

    async with working(database_url, kind()) as (database, worker, consumer):
        await handle_all(worker, deliveries)

        keys = {envelope.id: envelope.key for envelope in envelopes}
        assert {keys[row.message_id] for row in await rows(database, schema.inbox)} == {"a", "c", "h"}
        assert {keys[row.message_id]: row.outcome for row in await rows(database, schema.attempts)} == {
            "b": "retry", "d": "retry", "f": "dead", "g": "dead",
        }  # fmt: skip
        again = {
            keys[r.message_id]: (r.destination, r.attempt)
            for r in await rows(database, schema.outbox)
            if r.message_id in keys
        }
        assert again == {"b": ("things", 1), "d": ("things", 1), "e": ("things", 0)}
        assert {row.key: row.reason for row in await rows(database, schema.dead_letters)} == {
            "f": "refused",
            "g": "permanent",
        }
        seen = [row for row in await rows(database, schema.messages) if row.type == "thing.seen"]
        assert sorted(row.key for row in seen) == ["a", "c", "h"]
        assert {keys[row.cause_id] for row in seen} == {"a", "c", "h"}
        if kind is not as_effects:
            assert sorted(row.id for row in await rows(database, effects)) == ["a", "c", "h"]
        assert set(map(id, consumer.settled)) == set(map(id, deliveries))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_delivered_again_has_no_second_effect(database_url: str, kind: Callable[[], Handlers]) -> None:
    envelope = envelope_for(Made("a"))
    first = [delivery_for("things", envelope) for _ in range(3)]
    later = [delivery_for("things", envelope, redelivered=True)]

    async with working(database_url, kind()) as (database, worker, consumer):
        await handle_all(worker, first)
        await handle_all(worker, later)

        assert len([row for row in await rows(database, schema.messages) if row.type == "thing.seen"]) == 1
        assert len(await rows(database, schema.inbox)) == 1
        assert len(consumer.settled) == 4


@pytest.mark.parametrize("kind", KINDS)
async def test_a_duplicate_of_a_failed_attempt_starts_no_second_chain(
    database_url: str, kind: Callable[[], Handlers]
) -> None:
    envelope = envelope_for(Made("a", "raise"))

    async with working(database_url, kind()) as (database, worker, _):
        await handle_all(worker, [delivery_for("things", envelope)])
        await handle_all(worker, [delivery_for("things", envelope, redelivered=True)])

        assert len(await rows(database, schema.attempts)) == 1
        assert len(await rows(database, schema.outbox)) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_the_last_attempt_parks_the_message_with_its_story(
    database_url: str, kind: Callable[[], Handlers]
) -> None:
    envelope = envelope_for(Made("a", "raise"), attempt=2)

    async with working(database_url, kind()) as (database, worker, _):
        await handle_all(worker, [delivery_for("things", envelope)])

        (letter,) = await rows(database, schema.dead_letters)
        (attempt,) = await rows(database, schema.attempts)
        assert await rows(database, schema.outbox) == []
    assert (letter.reason, letter.endpoint, letter.queue, letter.attempt) == (
        "exhausted",
        "things/thing.made",
        "things",
        2,
    )
    assert letter.error == "RuntimeError: a is broken"
    assert "misbehave" in letter.stack
    assert "MemberFailed" not in letter.stack
    assert letter.body == envelope.body
    assert letter.properties == {"message_id": envelope.id}
    assert attempt.worker == "worker-1"
    assert attempt.started_at <= attempt.finished_at


async def test_what_no_handler_can_take_is_parked_with_its_bytes(database_url: str) -> None:
    old = envelope_for(Made("a"), created_at=utcnow() - timedelta(days=15))
    broken = envelope_for(Made("b"), body=b"\xff{")
    deliveries = [
        delivery_for("things", old),
        delivery_for("things", broken),
        Delivery("things", b"raw", None, False, "channel 1", lambda: {"app_id": "stranger"}),
        Delivery("things", b"raw", None, True, "channel 1", lambda: {"app_id": "stranger"}),
    ]  # the last two are two messages: one is delivered for the first time, the other one again

    async with working(database_url, one_by_one()) as (database, worker, consumer):
        await handle_all(worker, deliveries)

        letters = {row.reason: row for row in await rows(database, schema.dead_letters) if row.message_id}
        strangers = [row for row in await rows(database, schema.dead_letters) if row.message_id is None]
    assert set(letters) == {"too-old", "undecodable"}
    assert letters["undecodable"].body == b"\xff{"
    assert [(row.body, row.properties) for row in strangers] == [(b"raw", {"app_id": "stranger"})] * 2
    assert len(consumer.settled) == 4


@pytest.mark.parametrize(
    ("ahead_days", "age_days", "reason"),
    [(0, 13, None), (2, 13, "too-old"), (-2, 15, None), (-2, 0, "from-the-future"), (2, -2, None)],
)
async def test_a_message_is_too_old_by_the_database_s_clock(
    sqlite_database_url: str, ahead_days: int, age_days: int, reason: str | None
) -> None:
    delivery = delivery_for("things", envelope_for(Made("a"), created_at=utcnow() - timedelta(days=age_days)))

    async with working(sqlite_database_url, one_by_one()) as (database, worker, _):
        worker.hear(Heard((), drain=False, clock_ahead=timedelta(days=ahead_days)))
        worker.hear(Heard((), drain=False))  # which has measured nothing
        await handle_all(worker, [delivery])

        assert [row.reason for row in await rows(database, schema.dead_letters)] == ([reason] if reason else [])
        assert len(await rows(database, effects)) == (0 if reason else 1)


async def test_deliveries_of_a_lost_channel_are_not_handled(database_url: str) -> None:
    gone = delivery_for("things", envelope_for(Made("gone")), channel="channel 1")
    kept = delivery_for("things", envelope_for(Made("kept")), channel="channel 2")

    async with working(database_url, one_by_one()) as (database, worker, consumer):
        consumer.lost.add("channel 1")
        await handle_all(worker, [gone, kept])

        assert [row.id for row in await rows(database, effects)] == ["kept"]
    assert consumer.settled == [kept]


async def test_contention_spends_no_attempt(database_url: str) -> None:
    handlers = Handlers()
    failures = [DatabaseContention("deadlock"), DatabaseContention("deadlock")]

    @handlers.on("things")
    async def handle(made: Made, tx: Transaction) -> None:
        await write(tx, made)
        if failures:
            raise failures.pop()

    async with working(database_url, handlers) as (database, worker, consumer):
        await handle_all(worker, [delivery_for("things", envelope_for(Made("a")))])

        assert [row.id for row in await rows(database, effects)] == ["a"]
        assert await rows(database, schema.attempts) == []
    assert len(consumer.settled) == 1


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_handler_that_runs_into_its_deadline_fails_alone(database_url: str, grouped: bool) -> None:
    handlers = Handlers()

    async def work(made: Made, tx: Transaction) -> None:
        await write(tx, made)
        if made.does == "hang":
            await asyncio.Event().wait()

    if grouped:

        @handlers.on("things", deadline_seconds=0.2)
        async def many(made: list[Made], tx: Transaction) -> None:
            for one in made:
                await work(one, tx)

    else:

        @handlers.on("things", deadline_seconds=0.2)
        async def single(made: Made, tx: Transaction) -> None:
            await work(made, tx)

    made = [Made("a"), Made("slow", "hang"), Made("b")]
    async with working(database_url, handlers) as (database, worker, consumer):
        await handle_all(worker, [delivery_for("things", envelope_for(one)) for one in made])

        assert sorted(row.id for row in await rows(database, effects)) == ["a", "b"]
        (attempt,) = await rows(database, schema.attempts)
    assert "deadline (0.2 s)" in attempt.error
    assert len(consumer.settled) == 3


async def test_a_handler_that_answers_nonsense_is_told_so_in_the_attempt(database_url: str) -> None:
    handlers = Handlers()

    @handlers.on("things")
    async def handle(made: list[Made], tx: Transaction) -> Any:
        return [Done()]

    async with working(database_url, handlers) as (database, worker, _):
        await handle_all(worker, [delivery_for("things", envelope_for(Made(key))) for key in "ab"])

        assert len(await rows(database, schema.inbox)) == 2  # one at a time its answer does fit

    nonsense = Handlers()

    @nonsense.on("things")
    async def number(made: Made, tx: Transaction) -> Any:
        return 7

    async with working(database_url, nonsense) as (database, worker, _):
        await handle_all(worker, [delivery_for("things", envelope_for(Made("c")))])

        (attempt,) = await rows(database, schema.attempts)
    assert "returned int" in attempt.error


async def test_effects_run_at_once_up_to_the_bound(database_url: str) -> None:
    running = most = 0
    handlers = Handlers()
    release = asyncio.Event()

    @handlers.on("things")
    async def handle(made: Made, envelope: Envelope) -> Done:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if most == FAST.effect_concurrency:
            release.set()
        await release.wait()
        running -= 1
        return Done(f"250 {envelope.id}")

    async with working(database_url, handlers) as (database, worker, consumer):
        envelopes = [envelope_for(Made(str(number))) for number in range(100)]
        await handle_all(worker, [delivery_for("things", envelope) for envelope in envelopes])

        found = {row.message_id: row.note for row in await rows(database, schema.inbox)}
    assert most == FAST.effect_concurrency
    assert found == {envelope.id: f"250 {envelope.id}" for envelope in envelopes}
    assert len(consumer.settled) == 100


async def test_a_message_that_comes_again_on_a_new_channel_is_settled_with_the_running_one(database_url: str) -> None:
    handlers = Handlers()
    started, release = asyncio.Event(), asyncio.Event()

    @handlers.on("things")
    async def handle(made: Made) -> None:
        started.set()
        await release.wait()

    envelope = envelope_for(Made("a"))
    first = delivery_for("things", envelope, channel="channel 1")
    second = delivery_for("things", envelope, channel="channel 2", redelivered=True)
    async with working(database_url, handlers) as (database, worker, consumer):
        worker.receive([first])
        await started.wait()
        consumer.lost.add("channel 1")
        worker.receive([second])
        await asyncio.sleep(0.05)
        assert consumer.settled == []  # not before the outcome is stored: the process may still die

        release.set()
        await worker.drained()

        assert len(await rows(database, schema.inbox)) == 1
    assert consumer.settled == [second]


ODD = "nul \x00, half a character \ud800"
"""Text that Python can hold and Postgres cannot."""


@pytest.mark.parametrize("kind", [as_effects, one_by_one])
async def test_errors_and_notes_of_any_text_are_stored(database_url: str, kind: Callable[[], Handlers]) -> None:
    handlers = Handlers()
    if kind is as_effects:

        @handlers.on("things", retry=POLICY)
        async def effect(made: Made) -> Done:
            if made.does == "raise":
                raise RuntimeError(ODD)
            return Done(ODD)

    else:

        @handlers.on("things", retry=POLICY)
        async def written(made: Made, tx: Transaction) -> Done:
            if made.does == "raise":
                raise RuntimeError(ODD)
            return Done(ODD)

    deliveries = [delivery_for("things", envelope_for(made)) for made in (Made("a", "raise"), Made("b"))]
    async with working(database_url, handlers) as (database, worker, consumer):
        await handle_all(worker, deliveries)

        (attempt,) = await rows(database, schema.attempts)
        (finished,) = await rows(database, schema.inbox)
    assert attempt.error == "RuntimeError: nul \ufffd, half a character ?"
    assert finished.note == "nul \ufffd, half a character ?"
    assert len(consumer.settled) == 2


async def test_a_strangers_message_of_any_text_is_parked(database_url: str) -> None:
    properties = {"headers": {ODD: [ODD, float("nan"), {"deep": ODD}]}, "type": ODD}
    stranger = Delivery("things", b"\x00", None, False, "channel 1", lambda: properties)
    unknown = delivery_for("things", envelope_for(Made("a"), type=ODD, key=ODD))

    async with working(database_url, one_by_one()) as (database, worker, consumer):
        await handle_all(worker, [stranger, unknown])

        letters = {row.reason: row for row in await rows(database, schema.dead_letters)}
    assert set(letters) == {"undecodable", "unknown-type"}
    assert letters["undecodable"].body == b"\x00"
    assert letters["undecodable"].properties["type"] == "nul \ufffd, half a character ?"
    assert letters["undecodable"].properties["headers"]["nul \ufffd, half a character ?"][1] == "nan"
    assert letters["unknown-type"].key == "nul \ufffd, half a character ?"
    assert len(consumer.settled) == 2
