"""Retention: what is old and finished goes, in batches; what is on its way or parked stays, whoever acts meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.util import await_only

from hopline import attempts, deadletters, inbox, outbox, schema
from hopline.attempts import Attempt
from hopline.clock import first_id, utcnow
from hopline.database import Database, Send, Transaction, now
from hopline.deadletters import DeadLetter
from hopline.message import Envelope, message
from hopline.outbox import Outbox, store
from hopline.repair import discard, undo
from hopline.retention import BATCH_MESSAGES, MARGIN, purge
from tests.support.engine import envelope_for, rows
from tests.support.waiting import wait_until

RETENTION = timedelta(days=14)


@message("page.printed", key="id")
class Page(msgspec.Struct):
    id: str


def aged(name: str, age: timedelta, number: int = 0) -> Envelope:
    """A message of that age, by its id."""
    made: datetime = utcnow() - age
    identifier = first_id(made)[:-12] + f"{number:012x}"
    return envelope_for(Page(name), id=identifier, correlation_id=identifier, created_at=made)


async def sent(tx: Transaction, *envelopes: Envelope) -> None:
    """Stores messages whose sends are confirmed."""
    sends = [Send(replace_last(envelope.id), envelope, "", 0.0, new=True) for envelope in envelopes]
    store(tx, sends, leased=set(), lease_seconds=30)
    await tx.flush()
    ids = [envelope.id for envelope in envelopes]
    confirmed = sa.update(schema.outbox).where(schema.outbox.c.message_id.in_(ids))
    await tx.execute(confirmed.values(next_at=None, sent_at=now()))


def replace_last(identifier: str) -> str:
    return identifier[:14] + "7abc" + identifier[18:]


async def finished(tx: Transaction, envelope: Envelope) -> None:
    await inbox.claim(tx, "pages/page.printed", [envelope], "worker-1")
    failed = Attempt("pages/page.printed", envelope, "retry", "broken", "", "worker-1", utcnow(), utcnow())
    await attempts.record(tx, [failed])


def letter(envelope: Envelope) -> DeadLetter:
    return DeadLetter("pages", "pages/page.printed", envelope, "exhausted", "broken", "", {}, envelope.body)


async def test_what_is_old_and_finished_goes_with_all_that_belongs_to_it(database_url: str) -> None:
    database = Database(database_url)
    await database.create()
    old, young = aged("old", timedelta(days=16)), aged("young", timedelta(days=13))
    async with database.transaction() as tx:
        await sent(tx, old, young)
        for envelope in (old, young):
            await finished(tx, envelope)
            await deadletters.park(tx, [letter(envelope)])
        await tx.execute(sa.update(schema.dead_letters).values(resolution="discarded", resolved_at=now()))

    purged = await purge(database, RETENTION)

    assert purged == 1
    assert [row.id for row in await rows(database, schema.messages)] == [young.id]
    for table in (schema.outbox, schema.inbox, schema.attempts, schema.dead_letters):
        assert [row.message_id for row in await rows(database, table)] == [young.id]
    await database.close()


async def test_what_is_parked_or_on_its_way_stays_however_old(database_url: str) -> None:
    database = Database(database_url)
    await database.create()
    parked, waiting = aged("parked", timedelta(days=99)), aged("waiting", timedelta(days=98))
    async with database.transaction() as tx:
        await sent(tx, parked, waiting)
        await deadletters.park(tx, [letter(parked)])
        tx.schedule(waiting, queue="pages", delay_seconds=60)
        store(tx, tx.sends, leased=set(), lease_seconds=30)
        await tx.flush()

    assert await purge(database, RETENTION) == 0

    assert {row.id for row in await rows(database, schema.messages)} == {parked.id, waiting.id}
    assert len(await rows(database, schema.dead_letters)) == 1
    await database.close()


async def test_more_than_a_batch_goes_too_and_results_of_other_databases_messages(database_url: str) -> None:
    database = Database(database_url)
    await database.create()
    many = [aged("old", timedelta(days=20), number) for number in range(BATCH_MESSAGES + 50)]
    foreign = aged("foreign", timedelta(days=20), 999_999)
    async with database.transaction() as tx:
        await sent(tx, *many)
        await finished(tx, foreign)

    assert await purge(database, RETENTION) == len(many)

    for table in (schema.messages, schema.outbox, schema.inbox, schema.attempts):
        assert await rows(database, table) == []
    await database.close()


async def test_old_answers_and_dead_processes_go(database_url: str) -> None:
    database = Database(database_url)
    await database.create()
    async with database.transaction() as tx:
        for key, age in (("old", 16), ("young", 1)):
            answer = {"scope": "POST /orders", "key": key, "request_hash": "", "response": ""}
            process = {"instance": key, "role": "worker", "version": "1", "state": {}, "started_at": now()}
            moment = now(-age * 86_400)
            await tx.execute(sa.insert(schema.idempotency).values(**answer, created_at=moment))
            await tx.execute(sa.insert(schema.workers).values(**process, heartbeat_at=moment))

    await purge(database, RETENTION)

    assert [row.key for row in await rows(database, schema.idempotency)] == ["young"]
    assert [row.instance for row in await rows(database, schema.workers)] == ["young"]
    await database.close()


@asynccontextmanager
async def two_processes(url: str) -> AsyncIterator[tuple[Database, Database]]:
    """The database as the purge and as somebody else has it."""
    purging, other = Database(url), Database(url)
    await purging.create()
    other.riders.append(Outbox(limit=1_000, lease_seconds=30))
    try:
        yield purging, other
    finally:
        await purging.close()
        await other.close()


async def waits_for_a_lock(database: Database) -> bool:
    """Whether somebody waits for somebody's lock; on SQLite every second writer does."""
    if database.dialect == "sqlite":
        return True
    return bool(await database.query(sa.text("SELECT 1 FROM pg_locks WHERE NOT granted")))


async def purge_while(
    purging: Database, other: Database, work: Callable[[], Awaitable[Any]], *, before: str
) -> tuple[int, Any]:
    """Purges, and has `work` done just before the first statement that begins so, as far as no lock keeps it.

    Returns how much was purged, and the result of the work.
    """
    working: list[asyncio.Task[Any]] = []

    async def meanwhile() -> None:
        working.append(asyncio.ensure_future(work()))
        done = working[0].done

        async def gone_as_far_as_it_goes() -> bool:
            return done() or await waits_for_a_lock(other)

        await wait_until(gone_as_far_as_it_goes)

    def pause(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not working and statement.startswith(before):
            await_only(meanwhile())

    sa.event.listen(purging._writer.sync_engine, "before_cursor_execute", pause)
    purged = await purge(purging, RETENTION)
    assert working, "the purge ran no such statement"
    return purged, await working[0]


DELETES = [f"DELETE FROM hopline_{table} " for table in ("outbox", "attempts", "inbox", "dead_letters", "messages")]


@pytest.mark.parametrize("before", DELETES)
async def test_a_retry_that_is_stored_while_its_message_is_purged_is_sent(database_url: str, before: str) -> None:
    old = aged("old", timedelta(days=16))
    async with two_processes(database_url) as (purging, other):
        async with other.transaction() as tx:
            await sent(tx, old)

        async def fails() -> None:
            async with other.transaction() as tx:
                failed = Attempt("pages/page.printed", old, "retry", "broken", "", "worker-1", utcnow(), utcnow())
                await attempts.record(tx, [failed])
                tx.schedule(old.changed(attempt=1), queue="pages", delay_seconds=0)

        await purge_while(purging, other, fails, before=before)

        async with other.transaction() as tx:
            ((send, _),) = await outbox.claim(tx, limit=10, lease_seconds=30)
        assert (send.envelope.id, send.envelope.attempt, send.envelope.body) == (old.id, 1, old.body)
        assert [row.message_id for row in await rows(other, schema.attempts)] == [old.id]


async def test_a_purge_leaves_a_message_for_which_somebody_is_storing_a_retry(postgres_database_url: str) -> None:
    old = aged("old", timedelta(days=16))
    async with two_processes(postgres_database_url) as (purging, other):
        async with other.transaction() as tx:
            await sent(tx, old)
            await finished(tx, old)
        async with other.transaction() as tx:
            tx.schedule(old.changed(attempt=1), queue="pages", delay_seconds=0)
            store(tx, tx.sends, leased=set(), lease_seconds=30)
            tx.sends.clear()
            await tx.flush()

            assert await purge(purging, RETENTION) == 0

        assert [row.id for row in await rows(other, schema.messages)] == [old.id]
        for table in (schema.inbox, schema.attempts):
            assert [row.message_id for row in await rows(other, table)] == [old.id]


@pytest.mark.parametrize("before", DELETES)
async def test_a_letter_that_is_parked_while_its_message_is_purged_stays(database_url: str, before: str) -> None:
    old = aged("old", timedelta(days=16))
    async with two_processes(database_url) as (purging, other):
        async with other.transaction() as tx:
            await sent(tx, old)

        async def dies() -> None:
            async with other.transaction() as tx:
                await deadletters.park(tx, [letter(old)])

        await purge_while(purging, other, dies, before=before)
        await purge(purging, RETENTION)

        (parked,) = await rows(other, schema.dead_letters)
        assert (parked.message_id, parked.body, parked.resolution) == (old.id, old.body, None)


async def test_a_purge_leaves_a_message_of_which_somebody_is_parking_a_letter(postgres_database_url: str) -> None:
    old = aged("old", timedelta(days=16))
    async with two_processes(postgres_database_url) as (purging, other):
        async with other.transaction() as tx:
            await sent(tx, old)
            await finished(tx, old)
        async with other.transaction() as tx:
            await deadletters.park(tx, [letter(old)])

            assert await purge(purging, RETENTION) == 0

        assert [row.id for row in await rows(other, schema.messages)] == [old.id]
        assert len(await rows(other, schema.attempts)) == 1


@pytest.mark.parametrize(
    ("before", "stored_here"),
    [
        ("DELETE FROM hopline_outbox ", True),
        ("DELETE FROM hopline_dead_letters ", True),
        ("DELETE FROM hopline_dead_letters ", False),
    ],
    ids=["own, before its sends go", "own, before its letters go", "of another database's message"],
)
async def test_an_undo_that_says_ok_is_not_purged(database_url: str, before: str, stored_here: bool) -> None:
    old = aged("old", timedelta(days=16))
    async with two_processes(database_url) as (purging, other):
        async with other.transaction() as tx:
            if stored_here:
                await sent(tx, old)
            await deadletters.park(tx, [letter(old)])
        (parked,) = await rows(other, schema.dead_letters)
        await discard(other, [parked.id], who="ada", reason="a test")
        async with other.transaction() as tx:
            await tx.execute(sa.update(schema.dead_letters).values(resolved_at=now(-16 * 86_400)))

        async def undone() -> str:
            (judged,) = await undo(other, [parked.id], who="ada")
            return judged.verdict.kind

        _, verdict = await purge_while(purging, other, undone, before=before)

        left = [(row.id, row.resolution) for row in await rows(other, schema.dead_letters)]
        assert (verdict, left) in [("ok", [(parked.id, None)]), ("not-found", [])]
        messages = [row.id for row in await rows(other, schema.messages)]
        assert messages == ([old.id] if stored_here and verdict == "ok" else [])


async def test_what_a_lost_queue_had_is_not_sent_again_without_its_message(database_url: str) -> None:
    old = aged("old", timedelta(days=16))
    async with two_processes(database_url) as (purging, other):
        async with other.transaction() as tx:
            await sent(tx, old)

        async def sent_again() -> None:
            async with other.transaction() as tx:
                await outbox.again(tx, "pages", [(old.id, 0, 0)])

        await purge_while(purging, other, sent_again, before="DELETE FROM hopline_messages ")

        kept = {row.id for row in await rows(other, schema.messages)}
        assert {row.message_id for row in await rows(other, schema.outbox)} <= kept


async def test_a_send_without_its_message_is_leased_once_and_purged(database_url: str) -> None:
    old = aged("old", timedelta(days=16))
    database = Database(database_url)
    await database.create()
    async with database.transaction() as tx:
        await sent(tx, old)
        await tx.execute(sa.update(schema.outbox).values(next_at=now(), sent_at=None))
        await tx.execute(sa.delete(schema.messages))

    async with database.transaction() as tx:
        assert await outbox.claim(tx, limit=10, lease_seconds=-1) == []
    async with database.transaction() as tx:
        assert await outbox.claim(tx, limit=10, lease_seconds=-1) == []

    (row,) = await rows(database, schema.outbox)
    assert (row.next_at, row.sent_at) == (None, None)
    await purge(database, RETENTION)
    assert await rows(database, schema.outbox) == []
    await database.close()


async def test_what_a_worker_may_still_take_is_remembered_for_a_margin(database_url: str) -> None:
    database = Database(database_url)
    await database.create()
    minute = timedelta(minutes=1)
    within, beyond = aged("within", RETENTION + MARGIN - minute), aged("beyond", RETENTION + MARGIN + minute)
    async with database.transaction() as tx:
        await sent(tx, within, beyond)
        for envelope in (within, beyond):
            await finished(tx, envelope)

    assert await purge(database, RETENTION) == 1

    assert [row.message_id for row in await rows(database, schema.inbox)] == [within.id]
    await database.close()
