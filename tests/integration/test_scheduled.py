"""What is scheduled: listed with its reason, hurried, cancelled; and a race with a relay that claims it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from hopline import attempts, auditlog, outbox, repair, scheduled, schema
from hopline.attempts import Attempt
from hopline.clock import new_id, utcnow
from hopline.database import Database
from hopline.errors import UsageError
from hopline.message import Envelope
from hopline.outcome import LONGEST_DELAY_SECONDS
from hopline.scheduled import ScheduledFilter, ScheduledSend
from hopline.timeline import timeline
from tests.support.engine import envelope_for, rows
from tests.support.letters import Lost, Packed, opened

LATER = 3_600.0
FAR = ["11533-05-06 07:08:09+00", "infinity", "9999-12-31 23:59:59.999999+00"]
EVERY = ScheduledFilter()


async def listed(database: Database, which: ScheduledFilter = EVERY) -> list[ScheduledSend]:
    async with database.reading() as connection:
        return await scheduled.find(connection, which, limit=100)


async def send_later(database: Database, envelope: Envelope, queue: str = "parcels", seconds: float = LATER) -> None:
    async with database.transaction() as tx:
        tx.schedule(envelope, queue=queue, delay_seconds=seconds)


async def test_each_scheduled_send_is_listed_with_why_it_waits(database_url: str) -> None:
    retried, deferred = envelope_for(Packed("p-1")), envelope_for(Packed("p-2"))
    async with opened(database_url) as database:
        await send_later(database, retried, seconds=0)
        failed = Attempt("parcels/parcel.packed", retried, "retry", "NoStock: none", "", "w", utcnow(), utcnow())
        elsewhere = replace(failed, endpoint="labels/parcel.packed", error="not this one", finished_at=utcnow())
        async with database.transaction() as tx:
            await attempts.record(tx, [failed, elsewhere])
            known = {"endpoint": "parcels/parcel.packed", "queue": "parcels", "type": "parcel.packed"}
            await tx.execute(sa.insert(schema.endpoints).values(**known, since=utcnow()))
        await send_later(database, retried.changed(attempt=1), seconds=LATER)
        await send_later(database, deferred, seconds=0)
        await send_later(database, deferred, seconds=LATER + 1)
        async with database.transaction() as tx:
            delayed = tx.send(Lost("p-3"), delay_seconds=LATER + 2)

        found = await listed(database)

        assert [(one.message_id, one.kind, one.error) for one in found] == [
            (retried.id, "retry", "NoStock: none"),
            (deferred.id, "deferred", ""),
            (delayed.id, "delayed", ""),
        ]
        assert [(one.key, one.type, one.destination, one.attempt) for one in found] == [
            ("p-1", "parcel.packed", "parcels", 1), ("p-2", "parcel.packed", "parcels", 0),
            ("p-3", "parcel.lost", "", 0),
        ]  # fmt: skip
        assert timedelta(minutes=59) < found[0].due_at - utcnow() < timedelta(minutes=61)
        assert [one.key for one in await listed(database, ScheduledFilter(queue="parcels"))] == ["p-1", "p-2"]
        assert [one.key for one in await listed(database, ScheduledFilter(queue=""))] == ["p-3"]
        assert [one.key for one in await listed(database, ScheduledFilter(type="parcel.lost"))] == ["p-3"]
        assert [one.key for one in await listed(database, ScheduledFilter(key="p-2"))] == ["p-2"]
        assert [one.key for one in await listed(database, ScheduledFilter(ids=(found[1].id,)))] == ["p-2"]
        async with database.reading() as connection:
            assert await scheduled.count(connection, ScheduledFilter(queue="parcels")) == 2
            page = await scheduled.find(connection, ScheduledFilter(), limit=5, after=found[0].place)
        assert [one.key for one in page] == ["p-2", "p-3"]


async def test_what_runs_now_is_due_and_what_is_cancelled_never_is(database_url: str) -> None:
    async with opened(database_url) as database:
        for number in range(3):
            await send_later(database, envelope_for(Packed(f"p-{number}")))
        first, second, third = await listed(database)

        hurried = await repair.run_now(database, [first.id, new_id()], who="ann", reason="the customer waits")
        cancelled = await repair.cancel(database, [second.id, first.id], who="ann", reason="ordered twice")

        assert (hurried, cancelled) == ({first.id}, {second.id})
        assert [one.id for one in await listed(database)] == [third.id]
        async with database.transaction() as tx:
            assert [send.id for send, _ in await outbox.claim(tx, limit=10, lease_seconds=30)] == [first.id]
        (row,) = [row for row in await rows(database, schema.outbox) if row.id == second.id]
        assert (row.next_at, row.sent_at) == (None, None)
        async with database.reading() as connection:
            log = await auditlog.recent(connection, limit=10)
    assert [(entry.action, entry.target, entry.reason) for entry in reversed(log)] == [
        ("run-now", f"send {first.id}", "the customer waits"),
        ("cancel", f"send {second.id}", "ordered twice"),
    ]
    assert log[0].before_hash == auditlog.hash_of(envelope_for(Packed("p-1")).body)
    assert log[0].after_hash is None


async def test_what_a_relay_has_claimed_cannot_be_cancelled(database_url: str) -> None:
    async with opened(database_url) as database:
        await send_later(database, envelope_for(Packed("p-1")), seconds=0)
        async with database.transaction() as tx:
            ((send, _),) = await outbox.claim(tx, limit=10, lease_seconds=30)

        assert await repair.cancel(database, [send.id], who="ann") == set()
        assert await repair.run_now(database, [send.id], who="ann") == set()

        (row,) = await rows(database, schema.outbox)
        assert row.next_at is not None


async def test_a_cancel_at_the_same_time_as_a_claim_does_one_of_the_two(database_url: str) -> None:
    """Each send is hurried and claimed while somebody cancels it: it is cancelled or claimed, never both."""
    async with opened(database_url) as one, opened(database_url) as other:
        for number in range(12):
            await send_later(one, envelope_for(Packed(f"p-{number}")))
        ids = [send.id for send in await listed(one)]

        async def claim() -> list[str]:
            async with one.transaction() as tx:
                return [send.id for send, _ in await outbox.claim(tx, limit=1, lease_seconds=30)]

        async def send_at_once(identifier: str) -> list[str]:
            await repair.run_now(one, [identifier], who="ann")
            return await claim()

        for identifier in ids:
            claimed, cancelled = await asyncio.gather(
                send_at_once(identifier), repair.cancel(other, [identifier], who="bob")
            )
            claimed += await claim()  # a relay skips a row that is being looked at, and comes again
            assert sorted([*claimed, *cancelled]) == [identifier]


async def test_two_who_cancel_at_once_cancel_once(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as other:
        await send_later(one, envelope_for(Packed("p-1")))
        (send,) = await listed(one)

        first, second = await asyncio.gather(
            repair.cancel(one, [send.id], who="ann"), repair.cancel(other, [send.id], who="bob")
        )

        assert sorted([*first, *second]) == [send.id]
        assert len(await rows(one, schema.audit_log)) == 1


@pytest.mark.parametrize("due", FAR)
async def test_what_is_due_in_a_far_future_can_be_seen_and_cancelled(postgres_database_url: str, due: str) -> None:
    """Rows that were stored before delays had a bound; Python ends with the year 9999."""
    far = envelope_for(Packed("p-1"))
    async with opened(postgres_database_url) as database:
        await send_later(database, far)
        await send_later(database, envelope_for(Packed("p-2")))
        async with database.transaction() as tx:
            await tx.execute(
                sa.text(f"UPDATE hopline_outbox SET due_at = '{due}', next_at = '{due}' WHERE message_id = '{far.id}'")
            )

        soon, late = await listed(database)
        async with database.reading() as connection:
            following = [await scheduled.find(connection, EVERY, limit=9, after=one.place) for one in (soon, late)]
        steps = await timeline(database, "p-1")
        cancelled = await repair.cancel(database, [late.id], who="ann", reason="")

        assert [row.next_at for row in await rows(database, schema.outbox) if row.id == late.id] == [None]
    assert late.due_at.year == 9999
    assert [[one.id for one in page] for page in following] == [[late.id], []]
    assert [step.what for step in steps] == ["message", "outbox"]
    assert cancelled == {late.id}


@pytest.mark.parametrize("delay", [3e11, 1e18, float("inf"), float("nan"), -5, "60", None])
async def test_a_delay_that_cannot_be_stored_is_refused_at_the_call(database_url: str, delay: float) -> None:
    async with opened(database_url) as database:
        async with database.transaction() as tx:
            with pytest.raises(UsageError, match="delay_seconds"):
                tx.send(Packed("p-1"), delay_seconds=delay)
            with pytest.raises(UsageError, match="delay_seconds"):
                tx.schedule(envelope_for(Packed("p-2")), queue="parcels", delay_seconds=delay)

        assert await rows(database, schema.outbox) == []


@pytest.mark.parametrize("delay", [LONGEST_DELAY_SECONDS, 1e-7, 5e-324])
async def test_every_delay_that_is_accepted_is_stored(database_url: str, delay: float) -> None:
    async with opened(database_url) as database:
        async with database.transaction() as tx:
            tx.send(Packed("p-1"), delay_seconds=delay)

        (row,) = await rows(database, schema.outbox)
    assert abs(row.next_at - utcnow() - timedelta(seconds=delay)) < timedelta(seconds=20)
    assert row.due_at <= row.next_at


async def test_no_message_is_delayed_beyond_what_the_inbox_remembers(sqlite_database_url: str) -> None:
    database = Database(sqlite_database_url, retention_seconds=14 * 86_400)
    await database.create()
    async with database.transaction() as tx:
        tx.send(Packed("p-1"), delay_seconds=12 * 86_400)
        with pytest.raises(UsageError, match="HOPLINE_INBOX_RETENTION_DAYS to 15"):
            tx.send(Packed("p-2"), delay_seconds=13 * 86_400)
    await database.close()
