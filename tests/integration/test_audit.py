"""The account of messages that were repaired: each act has one place in it, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from hopline import audit as auditing
from hopline import outbox, repair, scheduled, schema
from hopline.audit import Audit, EndpointAudit, audit, register
from hopline.clock import utcnow
from hopline.database import Database
from hopline.errors import BrokerUnavailable
from hopline.live import QueueReading
from hopline.message import Envelope
from hopline.scheduled import ScheduledFilter
from tests.support.engine import envelope_for
from tests.support.letters import CODE, Packed, dead, finished, handlers, opened, parked
from tests.support.waiting import wait_until

LATER = 3_600.0
Reading = Mapping[str, QueueReading] | BrokerUnavailable
FIGURES = ("done", "open", "in_broker", "parked", "discarded", "cancelled", "missing")


@asynccontextmanager
async def registered(url: str) -> AsyncIterator[Database]:
    async with opened(url) as database:
        await register(database, list(handlers))
        async with database.transaction() as tx:  # sends of these tests are made an hour old
            await tx.execute(sa.update(schema.endpoints).values(since=utcnow() - timedelta(days=1)))
        yield database


async def account(database: Database, monkeypatch: pytest.MonkeyPatch) -> EndpointAudit:
    """The account with an empty queue, so that nothing hides in the broker; what was sent is made an hour old."""
    monkeypatch.setattr(auditing, "SECOND_LOOK_SECONDS", 0.0)
    async with database.transaction() as tx:
        sent = schema.outbox.c.sent_at
        await tx.execute(
            sa.update(schema.outbox).where(sent.is_not(None)).values(sent_at=utcnow() - timedelta(hours=1))
        )

    (one,) = (await audit(database, list(handlers), empty)).endpoints
    assert one.created == sum(getattr(one, name) for name in (*FIGURES, "unproven"))
    return one


async def look(database: Database, reading: Reading, monkeypatch: pytest.MonkeyPatch) -> Audit:
    """The account while RabbitMQ says this of its queues; what was sent is as old as it is."""
    monkeypatch.setattr(auditing, "SECOND_LOOK_SECONDS", 0.0)

    async def read(queues: Sequence[str]) -> Mapping[str, QueueReading]:
        if isinstance(reading, Exception):
            raise reading
        return {queue: reading[queue] for queue in queues if queue in reading}

    return await audit(database, list(handlers), read)


async def aged(database: Database) -> None:
    """What was sent is made an hour old."""
    async with database.transaction() as tx:
        sent = schema.outbox.c.sent_at
        await tx.execute(
            sa.update(schema.outbox).where(sent.is_not(None)).values(sent_at=utcnow() - timedelta(hours=1))
        )


async def state(database: Database, monkeypatch: pytest.MonkeyPatch) -> str:
    """The one state of the database's only message."""
    one = await account(database, monkeypatch)
    (name,) = [name for name in FIGURES if getattr(one, name)]
    assert one.created == 1
    return name


async def send(database: Database, envelope: Envelope, queue: str = "parcels") -> None:
    """Sent and confirmed."""
    async with database.transaction() as tx:
        tx.schedule(envelope, queue=queue, delay_seconds=0)
    await confirm_due(database)


async def confirm_due(database: Database) -> None:
    async with database.transaction() as tx:
        claimed = await outbox.claim(tx, limit=100, lease_seconds=30)
        outbox.mark_sent(tx, {one.id: 0.0 for one, _ in claimed})


async def retry_later(database: Database, envelope: Envelope) -> str:
    async with database.transaction() as tx:
        tx.schedule(envelope, queue="parcels", delay_seconds=LATER)
    async with database.reading() as connection:
        (waiting,) = await scheduled.find(connection, ScheduledFilter(), limit=10)
    return waiting.id


async def test_a_retry_that_is_cancelled_after_a_send_is_cancelled_and_not_missing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    envelope = envelope_for(Packed("p-1"))
    async with registered(database_url) as database:
        await send(database, envelope, queue="")
        assert await state(database, monkeypatch) == "missing"
        identifier = await retry_later(database, envelope.changed(attempt=1))
        assert await state(database, monkeypatch) == "open"

        await repair.cancel(database, [identifier], who="ann")

        assert await state(database, monkeypatch) == "cancelled"


async def test_a_deferral_that_is_cancelled_is_cancelled_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    envelope = envelope_for(Packed("p-1"))
    async with registered(database_url) as database:
        await send(database, envelope)
        identifier = await retry_later(database, envelope)

        await repair.cancel(database, [identifier], who="ann")

        assert await state(database, monkeypatch) == "cancelled"


async def test_an_unroutable_send_that_was_replayed_is_not_cancelled(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    envelope = envelope_for(Packed("p-1"))
    async with registered(database_url) as database:
        async with database.transaction() as tx:
            tx.schedule(envelope, queue="", delay_seconds=0)
        async with database.transaction() as tx:
            claimed = await outbox.claim(tx, limit=10, lease_seconds=30)
            await outbox.mark_parked(tx, [one.id for one, _ in claimed])
        unroutable = dead(Packed("p-1"), envelope, queue="", endpoint=None, reason="unroutable")
        (letter,) = await parked(database, unroutable)
        assert await state(database, monkeypatch) == "parked"

        (judged,) = await repair.replay(database, CODE, [letter], who="ann")
        assert judged.verdict.ok
        assert await state(database, monkeypatch) == "open"

        await confirm_due(database)
        assert await state(database, monkeypatch) == "missing"  # sent, and the queue is empty
        await finished(database, envelope.id, run=1)
        assert await state(database, monkeypatch) == "done"


async def test_a_letter_counts_as_parked_until_it_is_replayed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    envelope = envelope_for(Packed("p-1"))
    async with registered(database_url) as database:
        await send(database, envelope)
        (letter,) = await parked(database, dead(Packed("p-1"), envelope))
        assert await state(database, monkeypatch) == "parked"

        await repair.replay(database, CODE, [letter], who="ann")
        assert await state(database, monkeypatch) == "open"
        await confirm_due(database)
        (again,) = await parked(database, dead(Packed("p-1"), envelope.changed(run=1)))
        assert await state(database, monkeypatch) == "parked"

        await repair.discard(database, [again], who="ann", reason="not needed")
        assert await state(database, monkeypatch) == "discarded"


async def test_what_is_replaced_by_a_new_message_counts_as_discarded_and_the_new_one_for_itself(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, older = envelope_for(Packed("p-1")), envelope_for(Packed("p-2"))
    async with registered(database_url) as database:
        await send(database, old)
        await send(database, older)
        edited, too_old = await parked(database, dead(Packed("p-1"), old), dead(Packed("p-2"), older, reason="too-old"))

        await repair.edit(database, CODE, edited, b'{"id":"p-3"}', who="ann")
        await repair.replay(database, CODE, [too_old], who="ann", as_new=True)

        one = await account(database, monkeypatch)
    assert (one.created, one.discarded, one.open, one.missing) == (4, 2, 2, 0)


async def test_two_versions_of_a_type_under_two_names_are_two_accounts(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(iter(handlers))
    second = replace(first, name="second", type=replace(first.type, version=2))
    old, new, newer = envelope_for(Packed("p-1")), envelope_for(Packed("p-2")), envelope_for(Packed("p-3"))
    async with registered(database_url) as database:
        await register(database, [first, second])
        await send(database, old, queue="")
        await send(database, new.changed(version=2), queue="")
        await send(database, newer.changed(version=3))
        await finished(database, old.id)
        await finished(database, new.id)
        monkeypatch.setattr(auditing, "SECOND_LOOK_SECONDS", 0.0)
        async with database.transaction() as tx:
            await tx.execute(
                sa.update(schema.inbox).where(schema.inbox.c.message_id == new.id).values(endpoint="second")
            )
            await tx.execute(sa.update(schema.outbox).values(sent_at=utcnow() - timedelta(hours=1)))

        accounts = (await audit(database, [first, second], empty)).endpoints

    assert [(one.endpoint, one.created, one.done, one.missing) for one in accounts] == [
        (first.name, 1, 1, 0), ("second", 2, 1, 1),
    ]  # fmt: skip


async def empty(queues: Sequence[str]) -> Mapping[str, QueueReading]:
    return {queue: QueueReading(0, 0) for queue in queues}


async def test_messages_that_a_queue_in_use_cannot_hold_are_missing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six were purged, and two came since: the queue is not empty."""
    async with registered(database_url) as database:
        for number in range(8):
            await send(database, envelope_for(Packed(f"p-{number}")))
        await aged(database)

        found = await look(database, {"parcels": QueueReading(1, 1)}, monkeypatch)

    (one,) = found.endpoints
    assert (found.missing, found.missing_is_least, found.is_fine) == (6, True, False)
    assert (one.created, one.in_broker, one.missing, one.missing_ids) == (8, 2, 6, ())


async def test_what_lies_in_the_dead_queue_is_not_missing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with registered(database_url) as database:
        for number in range(3):
            await send(database, envelope_for(Packed(f"p-{number}")))
        await aged(database)

        found = await look(database, {"parcels": QueueReading(0, 0), "parcels.dead": QueueReading(3, 0)}, monkeypatch)

    assert (found.missing, found.unproven, found.endpoints[0].in_broker) == (0, 0, 3)
    assert found.queues[0].dead == 3


async def test_without_rabbitmq_the_account_has_the_half_of_the_database(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled, sent = envelope_for(Packed("p-1")), envelope_for(Packed("p-2"))
    async with registered(database_url) as database:
        await send(database, settled)
        await send(database, sent)
        await finished(database, settled.id)

        found = await look(database, BrokerUnavailable("connection refused"), monkeypatch)

    (one,) = found.endpoints
    assert (one.created, one.done, one.unproven, one.missing) == (2, 1, 1, 0)
    assert (found.trouble, found.is_fine) == ("connection refused", False)


async def test_what_was_just_sent_is_unproven_until_its_queue_shows_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with registered(database_url) as database:
        await send(database, envelope_for(Packed("p-1")))

        unseen = await look(database, {"parcels": QueueReading(0, 0)}, monkeypatch)
        seen = await look(database, {"parcels": QueueReading(1, 0)}, monkeypatch)

    assert (unseen.missing, unseen.unproven) == (0, 1)
    assert (seen.missing, seen.unproven, seen.pending) == (0, 0, 1)


async def _is_over(moment: datetime) -> bool:
    """Whether its millisecond is over: SQLite stores times to the millisecond."""
    return utcnow() - moment > timedelta(milliseconds=2)


async def test_what_is_sent_between_two_looks_is_not_part_of_the_account(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy system would never be proven else: something was always just sent."""
    monkeypatch.setattr(auditing, "SECOND_LOOK_SECONDS", 0.0)
    first = envelope_for(Packed("p-1"))
    looks = 0
    async with registered(database_url) as database:
        await send(database, first)

        async def read(_queues: Sequence[str]) -> Mapping[str, QueueReading]:
            nonlocal looks
            looks += 1
            if looks == 2:  # after the first snapshot
                await finished(database, first.id)
                begun = utcnow()
                await wait_until(lambda: _is_over(begun))
                await send(database, envelope_for(Packed("p-2")))
            return {}

        found = await audit(database, list(handlers), read)

    assert (found.endpoints[0].created, found.endpoints[0].done, found.is_fine) == (1, 1, True)
