"""What the audit names as missing is sent again: once, with the audit log, and only while it is missing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta

import pytest
import sqlalchemy as sa

from hopline import audit as auditing
from hopline import outbox, repair, schema
from hopline.audit import Audit, audit, register
from hopline.clock import new_id, utcnow
from hopline.database import Database
from hopline.errors import BrokerUnavailable, OutboxFull, UsageError
from hopline.live import QueueReading
from hopline.message import Envelope
from hopline.outbox import Outbox
from hopline.repair import resending
from tests.support.engine import envelope_for, rows
from tests.support.letters import Packed, finished, handlers, opened

ENDPOINTS = list(handlers)


@pytest.fixture
async def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    monkeypatch.setattr(auditing, "SECOND_LOOK_SECONDS", 0.0)
    async with opened(database_url) as database:
        await register(database, ENDPOINTS)
        async with database.transaction() as tx:
            await tx.execute(sa.update(schema.endpoints).values(since=utcnow() - timedelta(days=1)))
        yield database


async def sent(database: Database, count: int, *, run: int = 0, attempt: int = 0) -> list[Envelope]:
    """Sent and confirmed an hour ago."""
    envelopes = [envelope_for(Packed(f"p-{number}")).changed(run=run, attempt=attempt) for number in range(count)]
    async with database.transaction() as tx:
        for envelope in envelopes:
            tx.schedule(envelope, queue="parcels", delay_seconds=0)
    await confirmed(database)
    return envelopes


async def confirmed(database: Database) -> None:
    async with database.transaction() as tx:
        claimed = await outbox.claim(tx, limit=1_000, lease_seconds=30)
        outbox.mark_sent(tx, {one.id: 3_600.0 for one, _ in claimed})


async def account(database: Database, queues: Mapping[str, QueueReading] | None = None) -> Audit:
    """The account; without queues none exists, so nothing is held."""

    async def read(_names: Sequence[str]) -> Mapping[str, QueueReading]:
        return queues or {}

    return await audit(database, ENDPOINTS, read)


async def resent(
    database: Database, found: Audit, *, who: str = "ann", reason: str = "purged", ids: Sequence[str] | None = None
) -> list[str]:
    parts = repair.resend(database, ENDPOINTS, found, who=who, reason=reason, ids=ids)
    return [one.message_id async for part in parts for one in part]


async def test_the_missing_ones_are_sent_again_in_their_run_and_attempt_until_none_is_missing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resending, "RESEND_MESSAGES", 2)
    envelopes = await sent(database, 5, run=1, attempt=2)
    found = await account(database)
    assert found.missing == 5

    ids = await resent(database, found)

    assert sorted(ids) == sorted(envelope.id for envelope in envelopes)
    due = [row for row in await rows(database, schema.outbox) if row.next_at is not None]
    assert {(row.destination, row.run, row.attempt) for row in due} == {("parcels", 1, 2)}
    assert len(due) == 5
    now = await account(database)
    assert (now.missing, now.endpoints[0].open) == (0, 5)
    log = await rows(database, schema.audit_log)
    assert {(row.who, row.action, row.reason) for row in log} == {("ann", "resend", "to parcels: purged")}
    assert {row.target for row in log} == {f"message {identifier}" for identifier in ids}
    assert all(row.before_hash == row.after_hash for row in log)


async def test_what_was_settled_or_sent_again_meanwhile_is_left_alone(database: Database) -> None:
    done, lost = await sent(database, 2)
    found = await account(database)
    await finished(database, done.id)

    assert await resent(database, found) == [lost.id]
    assert await resent(database, found, ids=[done.id, lost.id]) == []
    assert len(await rows(database, schema.audit_log)) == 1


async def test_only_the_given_ones_are_sent_again(database: Database) -> None:
    first, _ = await sent(database, 2)
    found = await account(database)

    assert await resent(database, found, ids=[first.id, first.id, new_id()]) == [first.id]
    assert (await account(database)).missing == 1


@pytest.mark.parametrize("queue", ["parcels", "parcels.dead"])
async def test_nothing_is_sent_again_while_its_queue_holds_something(database: Database, queue: str) -> None:
    await sent(database, 3)

    found = await account(database, {queue: QueueReading(1, 0)})

    assert (found.missing, found.missing_is_least) == (2, True)
    assert await resent(database, found) == []


async def test_nothing_is_sent_again_while_its_queue_cannot_be_read(database: Database) -> None:
    (one,) = await sent(database, 1)

    async def unreadable(_names: Sequence[str]) -> Mapping[str, QueueReading]:
        raise BrokerUnavailable("connection refused")

    found = await audit(database, ENDPOINTS, unreadable)
    unknown = await account(database, {"parcels": QueueReading(0, None)})

    with pytest.raises(BrokerUnavailable, match=r"nothing was sent again.*connection refused"):
        await resent(database, found)
    assert unknown.unproven == 1
    assert await resent(database, unknown, ids=[one.id]) == []


async def test_it_needs_a_name_a_reason_and_ids(database: Database) -> None:
    await sent(database, 1)
    found = await account(database)

    with pytest.raises(UsageError, match="say who"):
        await resent(database, found, who=" ")
    with pytest.raises(UsageError, match="say why"):
        await resent(database, found, reason=" ")
    with pytest.raises(UsageError, match="is no id"):
        await resent(database, found, ids=["p-1"])
    assert await rows(database, schema.audit_log) == []


async def test_an_outbox_that_is_full_takes_none(database: Database) -> None:
    await sent(database, 3)
    found = await account(database)
    database.riders[:] = [Outbox(limit=2, lease_seconds=30)]

    with pytest.raises(OutboxFull):
        await resent(database, found)
    assert (await account(database)).missing == 3
