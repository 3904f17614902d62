"""The outbox and the relay on real databases, with a broker that answers what the test says."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec
import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

from hopline import outbox, schema
from hopline.broker import Publish, Published
from hopline.clock import utcnow
from hopline.database import Database, now
from hopline.errors import OutboxFull, UsageError
from hopline.message import message
from hopline.outbox import Outbox
from hopline.settings import Settings
from tests.support.engine import FAST, ScriptedPublisher, relaying, rows, send_of
from tests.support.waiting import wait_until


@message("thing.made", key="id")
class Made(msgspec.Struct):
    id: str


async def send(database: Database, *ids: str, delay_seconds: float = 0.0, queue: str = "") -> None:
    async with database.transaction() as tx:
        for identifier in ids:
            tx.send(Made(identifier), delay_seconds=delay_seconds, queue=queue)


async def send_and_fail(database: Database) -> None:
    async with database.transaction() as tx:
        tx.send(Made("a"))
        raise ZeroDivisionError


async def all_sent(database: Database) -> bool:
    found = await rows(database, schema.outbox)
    return bool(found) and all(row.sent_at is not None and row.next_at is None for row in found)


async def test_a_committed_message_is_published_at_once_and_marked_sent(database_url: str) -> None:
    publisher = ScriptedPublisher()
    async with relaying(database_url, publisher) as (database, _):
        await send(database, "a", "b")

        await wait_until(lambda: all_sent(database))

    assert [publish.envelope.key for publish in publisher.published] == ["a", "b"]
    assert {(publish.exchange, publish.routing_key) for publish in publisher.published} == {("hopline", "thing.made")}


async def test_publishes_are_counted_by_how_they_ended(sqlite_database_url: str) -> None:
    def counted(outcome: str) -> float:
        return REGISTRY.get_sample_value("hopline_published_total", {"outcome": outcome}) or 0.0

    before = counted("confirmed"), counted("returned")
    publisher = ScriptedPublisher(
        answer=lambda publish: Published.RETURNED if publish.routing_key == "nowhere" else Published.CONFIRMED
    )
    async with relaying(sqlite_database_url, publisher) as (database, _):
        await send(database, "a", "b")
        await send(database, "c", queue="nowhere")

        await wait_until(lambda: (counted("confirmed"), counted("returned")) == (before[0] + 2, before[1] + 1))


async def test_a_message_for_one_queue_goes_through_the_direct_exchange(database_url: str) -> None:
    publisher = ScriptedPublisher()
    async with relaying(database_url, publisher) as (database, _):
        await send(database, "a", queue="orders")

        await wait_until(lambda: all_sent(database))

    assert [(publish.exchange, publish.routing_key) for publish in publisher.published] == [("hopline.to", "orders")]


async def test_nothing_of_a_transaction_that_rolls_back_is_sent_or_stored(database_url: str) -> None:
    publisher = ScriptedPublisher()
    async with relaying(database_url, publisher) as (database, _):
        with pytest.raises(ZeroDivisionError):
            await send_and_fail(database)

        await send(database, "b")
        await wait_until(lambda: all_sent(database))
        stored = await rows(database, schema.messages)

    assert [publish.envelope.key for publish in publisher.published] == ["b"]
    assert [row.key for row in stored] == ["b"]


async def test_a_rolled_back_savepoint_takes_its_sends_along(database_url: str) -> None:
    publisher = ScriptedPublisher()
    async with relaying(database_url, publisher) as (database, _):
        async with database.transaction() as tx:
            tx.send(Made("kept"))
            async with tx.savepoint() as savepoint:
                tx.send(Made("undone"))
                await savepoint.undo()

        await wait_until(lambda: all_sent(database))

    assert [publish.envelope.key for publish in publisher.published] == ["kept"]


async def test_while_the_broker_is_away_messages_wait_and_then_go(database_url: str) -> None:
    publisher = ScriptedPublisher(ready=False)
    async with relaying(database_url, publisher) as (database, relay):
        await send(database, "a")
        assert relay.reserve([send_of()]) == 0
        assert not await all_sent(database)

        publisher.ready = True

        await wait_until(lambda: all_sent(database))
    assert [publish.envelope.key for publish in publisher.published] == ["a"]


async def test_what_has_no_room_in_memory_waits_in_the_database_and_then_goes(database_url: str) -> None:
    publisher = ScriptedPublisher(hold=asyncio.Event())
    small = Settings(probe_seconds=0.05, lease_seconds=30.0, relay_window_bytes=10)
    async with relaying(database_url, publisher, small) as (database, _):
        for key in "abc":
            await send(database, key)
        await wait_until(lambda: len(publisher.published) == 1)
        leased = [row for row in await rows(database, schema.outbox) if row.next_at > utcnow()]

        assert publisher.hold is not None
        publisher.hold.set()

        await wait_until(lambda: all_sent(database))
    assert len(leased) == 1
    assert [publish.envelope.key for publish in publisher.published] == ["a", "b", "c"]


async def test_what_a_dead_process_left_is_swept_when_its_lease_is_over(database_url: str) -> None:
    dead = ScriptedPublisher(hold=asyncio.Event())
    async with relaying(database_url, dead) as (database, relay):
        await send(database, "a")
        await wait_until(lambda: bool(dead.published))
        for task in list(relay._flights):
            task.cancel()  # as a kill -9 between publish and confirm would
        async with database.transaction() as tx:
            await tx.execute(sa.update(schema.outbox).values(next_at=utcnow() - timedelta(seconds=1)))

        heir = ScriptedPublisher()
        dead.ready = False
        async with relaying(database_url, heir) as (other, _):
            await wait_until(lambda: all_sent(other))

    assert [publish.envelope.key for publish in heir.published] == ["a"]


async def test_a_leased_row_is_left_alone(database_url: str) -> None:
    busy, idle = ScriptedPublisher(hold=asyncio.Event()), ScriptedPublisher()
    async with relaying(database_url, busy) as (database, _), relaying(database_url, idle) as (other, _):
        await send(database, "a")
        await wait_until(lambda: bool(busy.published))
        await send(other, "b")  # the idle relay has swept at least once when this one is sent and marked

        await wait_until(lambda: _sent_keys(other, {"b"}))
        await asyncio.sleep(0)
        assert [publish.envelope.key for publish in idle.published] == ["b"]
        assert busy.hold is not None
        busy.hold.set()
        await wait_until(lambda: all_sent(database))


async def _sent_keys(database: Database, wanted: set[str]) -> bool:
    keys = {row.id: row.key for row in await rows(database, schema.messages)}
    return {keys[row.message_id] for row in await rows(database, schema.outbox) if row.sent_at} == wanted


async def test_a_delayed_message_waits_until_it_is_due(database_url: str) -> None:
    publisher = ScriptedPublisher()
    async with relaying(database_url, publisher) as (database, _):
        await send(database, "later", delay_seconds=3600)
        await send(database, "now")
        await wait_until(lambda: _sent_keys(database, {"now"}))

        async with database.transaction() as tx:
            await tx.execute(sa.update(schema.outbox).where(schema.outbox.c.sent_at.is_(None)).values(next_at=utcnow()))

        await wait_until(lambda: all_sent(database))
    assert [publish.envelope.key for publish in publisher.published] == ["now", "later"]


@pytest.mark.parametrize("outcome", [Published.REFUSED, Published.UNKNOWN])
async def test_what_was_not_confirmed_is_sent_again(database_url: str, outcome: Published) -> None:
    answers = [outcome]
    publisher = ScriptedPublisher(answer=lambda publish: answers.pop() if answers else Published.CONFIRMED)
    async with relaying(database_url, publisher) as (database, _):
        await send(database, "a")

        await wait_until(lambda: all_sent(database))
        (row,) = await rows(database, schema.outbox)

    assert [publish.envelope.key for publish in publisher.published] == ["a", "a"]
    assert publisher.published[0].envelope.id == publisher.published[1].envelope.id
    assert row.sends == 0


async def test_an_unroutable_message_is_parked_after_the_stated_number_of_returns(database_url: str) -> None:
    publisher = ScriptedPublisher(answer=lambda publish: Published.RETURNED)
    settings = msgspec.structs.replace(FAST, returns_before_parking=2)
    async with relaying(database_url, publisher, settings) as (database, _):
        await send(database, "a")

        await wait_until(lambda: _count(database, schema.dead_letters, 1))
        (row,) = await rows(database, schema.outbox)
        (letter,) = await rows(database, schema.dead_letters)

    assert len(publisher.published) == 2
    assert (row.next_at, row.sent_at, row.sends) == (None, None, 2)
    assert (letter.reason, letter.key, letter.message_id) == ("unroutable", "a", row.message_id)
    assert letter.body == b'{"id":"a"}'


async def test_a_message_that_amqp_cannot_carry_is_parked_at_once(database_url: str) -> None:
    publisher = ScriptedPublisher(
        answer=lambda publish: Published.UNSENDABLE if publish.envelope.key == "odd" else Published.CONFIRMED
    )
    async with relaying(database_url, publisher) as (database, _):
        async with database.transaction() as tx:
            for key in ("a", "odd", "b"):
                tx.send(Made(key))

        await wait_until(lambda: _count(database, schema.dead_letters, 1))
        await wait_until(lambda: _unsent(database, 0))
        (letter,) = await rows(database, schema.dead_letters)

    assert len(publisher.published) == 3
    assert (letter.reason, letter.key) == ("unsendable", "odd")


async def test_refusals_are_no_returns(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "REFUSED_PAUSES", ((3600.0, 0.01),))
    answers = [Published.RETURNED, *[Published.REFUSED] * 5, Published.UNKNOWN]
    publisher = ScriptedPublisher(answer=lambda publish: answers.pop() if answers else Published.CONFIRMED)
    settings = msgspec.structs.replace(FAST, returns_before_parking=2)
    async with relaying(database_url, publisher, settings) as (database, _):
        await send(database, "a")

        await wait_until(lambda: all_sent(database))
        (row,) = await rows(database, schema.outbox)
        assert await rows(database, schema.dead_letters) == []

    assert len(publisher.published) == 8
    assert row.sends == 1


@pytest.mark.parametrize(
    ("due_seconds_ago", "least", "most"), [(0, 0.4, 1.1), (20, 2.4, 5.1), (60, 9, 21), (900, 29, 61)]
)
async def test_what_is_refused_waits_the_longer_the_longer_it_has_been_due(
    database_url: str, due_seconds_ago: float, least: float, most: float
) -> None:
    database = Database(database_url)
    await database.create()
    database.riders.append(Outbox(limit=100, lease_seconds=30))
    await send(database, "a")
    async with database.transaction() as tx:
        await tx.execute(sa.update(schema.outbox).values(due_at=now(-due_seconds_ago)))

    async with database.transaction() as tx:
        (row,) = await tx.rows(sa.select(schema.outbox))
        await outbox.postpone_refused(tx, [row.id])
    (row,) = await rows(database, schema.outbox)

    pause = (row.next_at - row.due_at).total_seconds() - due_seconds_ago
    assert least <= pause <= most
    await database.close()


async def _unsent(database: Database, wanted: int) -> bool:
    return sum(row.next_at is not None for row in await rows(database, schema.outbox)) == wanted


async def _count(database: Database, table: sa.Table, wanted: int) -> bool:
    return len(await rows(database, table)) == wanted


async def test_an_optional_type_needs_no_subscriber(database_url: str) -> None:
    publisher = ScriptedPublisher(answer=lambda publish: Published.RETURNED)
    async with relaying(database_url, publisher, optional=["thing.made"]) as (database, _):
        await send(database, "a")

        await wait_until(lambda: all_sent(database))


async def test_beyond_the_limit_of_unsent_messages_nothing_is_stored(database_url: str) -> None:
    publisher = ScriptedPublisher(ready=False)
    settings = Settings(probe_seconds=0.05, outbox_limit=3)
    async with relaying(database_url, publisher, settings) as (database, _):
        await send(database, "a", "b")

        with pytest.raises(OutboxFull) as refused:
            await send(database, "c", "d")
        assert await _count(database, schema.messages, 2)

        publisher.ready = True
        await wait_until(lambda: all_sent(database))
        await wait_until(lambda: _accepts(database))
    assert refused.value.retry_after_seconds > 0


async def _accepts(database: Database) -> bool:
    try:
        await send(database, "later")
    except OutboxFull:
        return False
    return True


async def test_a_clean_stop_marks_what_was_confirmed(database_url: str) -> None:
    publisher = ScriptedPublisher(hold=asyncio.Event())
    async with relaying(database_url, publisher) as (database, relay):
        await send(database, *(f"k{number}" for number in range(700)))
        assert publisher.hold is not None
        asyncio.get_running_loop().call_soon(publisher.hold.set)

        await relay.stop()

        assert await all_sent(database)


async def test_a_clean_stop_gives_up_what_has_no_answer_yet(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopline.relay.STOP_SECONDS", 0.05)
    silent, heir = ScriptedPublisher(hold=asyncio.Event()), ScriptedPublisher()
    async with relaying(database_url, silent) as (database, relay):
        await send(database, "a")
        await wait_until(lambda: bool(silent.published))

        await relay.stop()

        async with relaying(database_url, heir) as (other, _):  # long before the lease of 30 s is over
            await wait_until(lambda: all_sent(other), 5)
    assert [publish.envelope.key for publish in heir.published] == ["a"]


async def test_a_batch_that_cannot_be_encoded_comes_again_and_stops_nothing(database_url: str) -> None:
    faults = [ValueError("no such character")]

    def answer(publish: Publish) -> Published:
        if faults:
            raise faults.pop()
        return Published.CONFIRMED

    publisher = ScriptedPublisher(answer=answer)
    async with relaying(database_url, publisher) as (database, relay):
        await send(database, "a")

        await wait_until(lambda: all_sent(database))
        assert relay.reserve([send_of()] * FAST.relay_window) == FAST.relay_window  # no room is lost
        assert not relay.crashed.done()


@pytest.mark.parametrize("key", ["", "x" * 256, "nul\x00", "half \ud800"])
async def test_a_key_that_no_column_holds_is_refused_before_anything_is_stored(database_url: str, key: str) -> None:
    async with relaying(database_url, ScriptedPublisher()) as (database, _):
        with pytest.raises(UsageError, match="1 to 255 characters"):
            await send(database, key)
        assert await rows(database, schema.messages) == []


async def test_headers_are_few_and_short(sqlite_database_url: str) -> None:
    async with relaying(sqlite_database_url, ScriptedPublisher()) as (database, _), database.transaction() as tx:
        for headers in ({"note": "x" * 5000}, {"": "x"}, {"n" * 200: "x"}, {"note": "nul\x00"}, {"note": "\ud800"}):
            with pytest.raises(UsageError, match="headers"):
                tx.send(Made("a"), headers=headers)
        tx.send(Made("a"), headers={"note": "fine"})
