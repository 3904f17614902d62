"""A queue that is gone: what was in it is sent again, once, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from hopline import amqp, schema
from hopline.app import Hopline
from hopline.audit import register
from hopline.clock import new_id
from hopline.database import Database, Transaction, now
from hopline.handlers import Handlers
from hopline.message import message
from hopline.node import Node
from hopline.outbox import Outbox
from hopline.recovery import found_missing, recover
from hopline.settings import Settings
from tests.support.engine import rows
from tests.support.waiting import wait_until


@message("parcel.sent", key="id")
class Parcel(msgspec.Struct):
    id: str


def handlers() -> Handlers:
    registry = Handlers()

    @registry.on("parcels")
    async def handle(parcel: Parcel, tx: Transaction) -> None:
        pass

    return registry


async def prepared(database: Database) -> None:
    await database.create()
    database.riders.append(Outbox(limit=100, lease_seconds=30))
    await register(database, list(handlers()))


async def send(database: Database, *names: str) -> dict[str, str]:
    """Sends parcels; returns their message ids."""
    async with database.transaction() as tx:
        return {name: tx.send(Parcel(name)).id for name in names}


async def mark(database: Database, ids: Sequence[str], *, seconds_ago: float) -> None:
    """As if RabbitMQ had confirmed the messages so long ago."""
    async with database.transaction() as tx:
        confirmed = {"next_at": None, "sent_at": now(-seconds_ago)}
        await tx.execute(sa.update(schema.outbox).where(schema.outbox.c.message_id.in_(ids)).values(**confirmed))
        await tx.execute(sa.update(schema.endpoints).values(since=now(-3600)))


async def waiting_for(database: Database, queue: str) -> list[str]:
    found = await rows(database, schema.outbox)
    return sorted(row.message_id for row in found if row.destination == queue and row.next_at is not None)


async def finish(database: Database, identifier: str) -> None:
    row = {"message_id": identifier, "endpoint": "parcels/parcel.sent", "run": 0, "attempt": 0, "outcome": "done"}
    async with database.transaction() as tx:
        times = {"started_at": now(), "done_at": now()}
        await tx.execute(sa.insert(schema.inbox).values(**row, note="", worker="w", **times))


async def fail(database: Database, identifier: str) -> None:
    row = {"message_id": identifier, "endpoint": "parcels/parcel.sent", "run": 0, "attempt": 0, "outcome": "retry"}
    async with database.transaction() as tx:
        times = {"started_at": now(), "finished_at": now()}
        await tx.execute(sa.insert(schema.attempts).values(**row, error="", stack="", worker="w", **times))


async def test_what_has_no_result_is_sent_to_its_queue_again_once(database_url: str) -> None:
    database = Database(database_url)
    await prepared(database)
    ids = await send(database, "lost", "lost too", "done", "failed", "unsent")
    await mark(database, [ids[name] for name in ids if name != "unsent"], seconds_ago=60)
    await finish(database, ids["done"])
    await fail(database, ids["failed"])

    await found_missing(database, ["parcels", "parcels.dead", "unheard-of"], "worker-1")
    await found_missing(database, ["parcels"], "worker-2")
    for _ in range(3):
        assert not await recover(database, lease_seconds=30)

    assert await waiting_for(database, "parcels") == sorted([ids["lost"], ids["lost too"]])
    (loss,) = await rows(database, schema.queue_losses)
    assert (loss.queue, loss.found_by, loss.rescheduled, loss.recovered_at) == ("parcels", "worker-1", 2, None)
    await database.close()


async def test_a_confirm_from_before_that_is_marked_late_is_recovered_too(database_url: str) -> None:
    database = Database(database_url)
    await prepared(database)
    ids = await send(database, "late")
    await mark(database, [], seconds_ago=0)
    await found_missing(database, ["parcels"], "worker-1")
    await recover(database, lease_seconds=30)
    assert await waiting_for(database, "parcels") == []

    await mark(database, list(ids.values()), seconds_ago=60)
    await recover(database, lease_seconds=30)

    assert await waiting_for(database, "parcels") == [ids["late"]]
    await database.close()


async def test_a_loss_is_closed_after_twice_the_lease(database_url: str) -> None:
    database = Database(database_url)
    await prepared(database)
    async with database.transaction() as tx:
        row = {"id": new_id(), "queue": "parcels", "found_by": "w", "rescheduled": 3}
        await tx.execute(sa.insert(schema.queue_losses).values(**row, lost_at=now(-61)))

    await recover(database, lease_seconds=30)

    (loss,) = await rows(database, schema.queue_losses)
    assert loss.recovered_at is not None
    assert loss.rescheduled == 3
    await database.close()


async def test_a_queue_that_is_deleted_with_messages_in_it_loses_none(
    database_url: str, broker_url: str, rabbitmq: Node
) -> None:
    # Given messages in a queue that no worker consumes, and a process that goes on sending
    settings = Settings(database_url=database_url, broker_url=broker_url, probe_seconds=0.05, lease_seconds=20)
    program = Hopline(handlers=[handlers()], settings=settings)
    await program.migrate()
    async with program.producing() as producer:
        await wait_until(lambda: producer.publisher.ready)
        await wait_until(lambda: _registered(producer.database))
        await send(producer.database, *(f"before {i}" for i in range(20)))
        await wait_until(lambda: _all_sent(producer.database, 20))

        # When somebody deletes the queue, and another message comes back as unroutable
        connection = await amqp.connect(broker_url)
        await (await connection.channel()).delete_queue("parcels")
        await connection.close(5)
        await send(producer.database, "after")

        # Then the queue is there again with everything in it
        await wait_until(lambda: _losses(producer.database, 1))
        await wait_until(lambda: _all_sent(producer.database, 41), 30)
    async with program.working() as working:
        await wait_until(lambda: _done(working.producer.database, 21), 30)
    assert (await program.audit()).missing == 0


async def _registered(database: Database) -> bool:
    return len(await rows(database, schema.endpoints)) == 1


async def _losses(database: Database, count: int) -> bool:
    return len(await rows(database, schema.queue_losses)) == count


async def _all_sent(database: Database, count: int) -> bool:
    return sum(row.sent_at is not None for row in await rows(database, schema.outbox)) == count


async def _done(database: Database, count: int) -> bool:
    return len(await rows(database, schema.inbox)) == count
