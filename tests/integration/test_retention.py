"""Retention: what is old and finished goes, in batches; what is on its way or parked stays."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec
import sqlalchemy as sa

from hopline import attempts, deadletters, inbox, schema
from hopline.attempts import Attempt
from hopline.clock import first_id, utcnow
from hopline.database import Database, Send, Transaction, now
from hopline.deadletters import DeadLetter
from hopline.message import Envelope, message
from hopline.outbox import store
from hopline.retention import BATCH_MESSAGES, purge
from tests.support.engine import envelope_for, rows

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
    old, young = aged("old", timedelta(days=15)), aged("young", timedelta(days=13))
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
        for key, age in (("old", 15), ("young", 1)):
            answer = {"scope": "POST /orders", "key": key, "request_hash": "", "response": ""}
            process = {"instance": key, "role": "worker", "version": "1", "state": {}, "started_at": now()}
            moment = now(-age * 86_400)
            await tx.execute(sa.insert(schema.idempotency).values(**answer, created_at=moment))
            await tx.execute(sa.insert(schema.workers).values(**process, heartbeat_at=moment))

    await purge(database, RETENTION)

    assert [row.key for row in await rows(database, schema.idempotency)] == ["young"]
    assert [row.instance for row in await rows(database, schema.workers)] == ["young"]
    await database.close()
