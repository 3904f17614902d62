"""The status of a real database, beside a real broker or without one."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from hopline import amqp, outbox, schema
from hopline.audit import Audit, register
from hopline.clock import new_id, utcnow
from hopline.database import Database
from hopline.errors import BrokerUnavailable, DatabaseUnavailable
from hopline.live import declare
from hopline.node import Node
from hopline.rows import insert
from hopline.settings import Settings
from hopline.status import snapshot, troubles
from hopline.topology import build
from tests.support.engine import envelope_for
from tests.support.letters import Packed, dead, finished, handlers, opened, parked

NOBODY = "amqp://guest:guest@127.0.0.1:9/%2F"
HOUR = 3_600.0


async def send(database: Database, one: Packed, *, delay: float = 0.0, queue: str = "parcels", attempt: int = 0) -> str:
    envelope = envelope_for(one, attempt=attempt)
    async with database.transaction() as tx:
        tx.schedule(envelope, queue=queue, delay_seconds=delay)
    return envelope.id


async def confirm_all(database: Database, *, age: timedelta = timedelta(0)) -> None:
    async with database.transaction() as tx:
        claimed = await outbox.claim(tx, limit=100, lease_seconds=30)
        outbox.mark_sent(tx, {one.id: age.total_seconds() for one, _ in claimed})


async def test_without_a_broker_the_rest_is_told(database_url: str) -> None:
    async with opened(database_url) as database:
        await send(database, Packed("p-1"))
        await send(database, Packed("p-2"), delay=HOUR)
        await send(database, Packed("p-3"), delay=HOUR, attempt=2)
        await send(database, Packed("p-4"), delay=HOUR, attempt=1)
        await parked(database, dead(Packed("p-5")), dead(Packed("p-6")))

        found = await snapshot(database, ["parcels"], Settings(broker_url=NOBODY))

    assert "cannot be read" in found.broker_trouble
    (queue,) = found.queues
    assert (queue.name, queue.exists, queue.depth, queue.consumers) == ("parcels", None, None, None)
    assert found.in_flight is None
    assert (found.outbox.unsent, found.outbox.retrying, found.outbox.delayed) == (1, 2, 1)
    assert found.outbox.oldest_seconds is not None
    assert not found.outbox.is_least
    assert (found.parked, [group.count for group in found.parked_groups]) == (2, [2])
    assert abs((found.at - utcnow()).total_seconds()) < 60


async def test_queues_are_told_with_their_consumers_and_the_age_of_their_oldest(
    database_url: str, broker_url: str, rabbitmq: Node
) -> None:
    connection = await amqp.connect(broker_url)
    channel = await connection.channel()
    await declare(channel, build([("parcels", "parcel.packed")]))
    await channel.confirm_select()
    stored = amqp.Outgoing("", "parcels", amqp.Properties(delivery_mode=2), b"{}")
    given_up = amqp.Outgoing("", "parcels.dead", amqp.Properties(delivery_mode=2), b"{}")
    await channel.publish([stored, stored, stored, given_up])
    settings = Settings(broker_url=broker_url, management_url=rabbitmq.management_url)
    async with opened(database_url) as database:
        await register(database, list(handlers))
        async with database.transaction() as tx:
            await tx.execute(sa.update(schema.endpoints).values(since=utcnow() - timedelta(days=1)))
        await send(database, Packed("p-9"), queue="")
        await confirm_all(database, age=timedelta(days=2))  # before the queue was bound: it never was in it
        await send(database, Packed("p-0"), queue="")
        done = await send(database, Packed("p-1"))
        await confirm_all(database, age=timedelta(hours=2))
        await finished(database, done)
        retried = await send(database, Packed("p-2"))
        await confirm_all(database, age=timedelta(hours=3))
        async with database.transaction() as tx:
            tx.schedule(envelope_for(Packed("p-2"), id=retried, attempt=1), queue="parcels", delay_seconds=HOUR)
        died = envelope_for(Packed("p-3"))
        async with database.transaction() as tx:
            tx.schedule(died, queue="parcels", delay_seconds=0)
        await confirm_all(database, age=timedelta(hours=4))
        await parked(database, dead(Packed("p-3"), died))

        found = await snapshot(database, ["parcels", "letters"], settings)

    await connection.close()
    parcels, letters, given_up_queue = found.queues
    assert (parcels.ready, parcels.unacked, parcels.consumers) == (3, 0, 0)
    assert parcels.oldest_seconds is not None
    assert 7_190 < parcels.oldest_seconds < 7_260  # p-0: the others have a result, or a later send
    assert parcels.oldest_is_least  # three are in it, and one is known
    assert (letters.exists, letters.depth) == (False, None)
    assert (given_up_queue.name, given_up_queue.ready) == ("parcels.dead", 1)
    assert "the queue parcels holds 3 messages and has no consumer (`hopline worker`)" in troubles(found)


async def test_processes_tell_of_themselves_and_the_dead_are_not_believed(database_url: str) -> None:
    pause = {"endpoint": "parcels/x", "reason": "the partner is down", "since": utcnow().isoformat(), "probing": False}
    told = {
        "queues": ["parcels"],
        "busy": 3,
        "paused": {"parcels": pause},
        "unknown": {"parcel.packed v2 on parcels": 4},
    }
    async with opened(database_url) as database:
        for instance, age in (("worker-1", 1), ("worker-2", 100), ("worker-3", 200_000)):
            row = {"instance": instance, "role": "worker", "version": "0.1.0", "state": told, "started_at": utcnow()}
            async with database.transaction() as tx:
                at = utcnow() - timedelta(seconds=age)
                await tx.execute(insert(tx.dialect, schema.workers).values(**row, heartbeat_at=at))
        loss = {"id": new_id(), "queue": "parcels", "found_by": "worker-1", "lost_at": utcnow(), "rescheduled": 12}
        async with database.transaction() as tx:
            await tx.execute(sa.insert(schema.queue_losses).values(**loss))
            recovered = {**loss, "id": new_id(), "queue": "letters", "recovered_at": utcnow()}
            await tx.execute(sa.insert(schema.queue_losses).values(**recovered))

        found = await snapshot(database, [], Settings(broker_url=NOBODY))

    assert [(one.instance, one.alive, one.busy) for one in found.workers] == [
        ("worker-1", True, 3), ("worker-2", False, 3),
    ]  # fmt: skip
    assert [(one.queue, one.reason, one.workers) for one in found.paused] == [("parcels", "the partner is down", 1)]
    assert [(one.name, one.deferred, one.workers) for one in found.unknown] == [("parcel.packed v2 on parcels", 4, 1)]
    assert [(one.queue, one.rescheduled) for one in found.losses] == [("parcels", 12)]


async def test_the_account_is_made_when_it_is_asked_for(sqlite_database_url: str) -> None:
    async def account() -> Audit:
        return Audit(())

    async def unreadable() -> Audit:
        raise BrokerUnavailable("the queues cannot be read")

    settings = Settings(broker_url=NOBODY)
    async with opened(sqlite_database_url) as database:
        assert (await snapshot(database, [], settings)).audit is None
        assert (await snapshot(database, [], settings, reconcile=account)).audit == Audit(())
        failed = await snapshot(database, [], settings, reconcile=unreadable)
    assert (failed.audit, failed.audit_trouble) == (None, "the queues cannot be read")


async def test_without_the_database_there_is_no_status() -> None:
    database = Database("postgresql+asyncpg://nobody:nothing@127.0.0.1:9/nowhere")

    with pytest.raises(DatabaseUnavailable):
        await snapshot(database, [], Settings(broker_url=NOBODY))
    await database.close()
