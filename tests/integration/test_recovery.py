"""A queue that is gone: what was in it is sent again, once, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import msgspec
import pytest
import sqlalchemy as sa

from hopline import amqp, loss_watch, schema
from hopline.app import Hopline
from hopline.audit import register
from hopline.clock import new_id, utcnow
from hopline.database import Database, Transaction, now
from hopline.handlers import Handlers
from hopline.live import declare, read_queues
from hopline.message import message
from hopline.node import Node
from hopline.outbox import Outbox
from hopline.recovery import found_missing, note_declared, recover
from hopline.settings import Settings
from tests.support.engine import envelope_for, rows
from tests.support.waiting import wait_until


@message("parcel.sent", key="id")
class Parcel(msgspec.Struct):
    id: str


@message("parcel.later", key="id")
class Later(msgspec.Struct):
    """A type that only a later release handles."""

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
    await was_declared(database)


async def was_declared(database: Database) -> None:
    """As if the queues had been declared an hour ago."""
    async with database.transaction() as tx:
        await tx.execute(sa.update(schema.endpoints).values(declared_at=now(-3600)))


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


async def test_a_queue_that_was_never_declared_is_not_lost(database_url: str) -> None:
    database = Database(database_url)
    await database.create()
    await register(database, list(handlers()))

    await found_missing(database, ["parcels", "parcels.dead"], "worker-1")
    await found_missing(database, ["parcels"], "worker-2")

    assert await rows(database, schema.queue_losses) == []
    assert [row.declared_at is not None for row in await rows(database, schema.endpoints)] == [True]
    await database.close()


@pytest.mark.parametrize("sent_at", [-1.0, None])
async def test_a_queue_that_is_missing_right_after_it_was_declared_is_lost_if_anything_was_sent(
    database_url: str, sent_at: float | None
) -> None:
    database = Database(database_url)
    await database.create()
    database.riders.append(Outbox(limit=100, lease_seconds=30))
    await register(database, list(handlers()))
    async with database.transaction() as tx:
        await tx.execute(sa.update(schema.endpoints).values(since=now(-10)))
    await found_missing(database, ["parcels"], "worker-1")
    await send(database, "a")
    async with database.transaction() as tx:
        values = {"next_at": now(30)} if sent_at is None else {"next_at": None, "sent_at": now(sent_at)}
        await tx.execute(sa.update(schema.outbox).values(due_at=now(-1), **values))

    await found_missing(database, ["parcels"], "worker-1")

    assert len(await rows(database, schema.queue_losses)) == 1
    await database.close()


async def test_a_queue_that_exists_already_is_lost_when_it_is_missing_later(database_url: str) -> None:
    database = Database(database_url)
    await database.create()
    await register(database, list(handlers()))
    await note_declared(database, ["parcels"])
    async with database.transaction() as tx:
        await tx.execute(sa.update(schema.endpoints).values(declared_at=now(-60)))

    await found_missing(database, ["parcels"], "worker-1")

    assert len(await rows(database, schema.queue_losses)) == 1
    await database.close()


async def test_an_open_loss_moves_forward_and_covers_what_was_sent_after_it(database_url: str) -> None:
    database = Database(database_url)
    await prepared(database)
    ids = await send(database, "first")
    await mark(database, list(ids.values()), seconds_ago=60)
    await found_missing(database, ["parcels"], "worker-1")
    await recover(database, lease_seconds=30)
    async with database.transaction() as tx:  # the loss was some seconds ago, and everything was sent since
        await tx.execute(sa.update(schema.queue_losses).values(lost_at=now(-3)))
        sent = {"next_at": None, "sent_at": now(-2)}
        await tx.execute(sa.update(schema.outbox).where(schema.outbox.c.sent_at.is_(None)).values(**sent))
    second = await send(database, "second")
    await mark(database, list(second.values()), seconds_ago=1)

    await found_missing(database, ["parcels"], "worker-2")
    await recover(database, lease_seconds=30)

    assert await waiting_for(database, "parcels") == sorted([*ids.values(), *second.values()])
    (loss,) = await rows(database, schema.queue_losses)
    assert (loss.found_by, loss.rescheduled) == ("worker-1", 3)
    await database.close()


async def test_a_deferred_message_of_a_type_that_nobody_handles_yet_is_recovered(database_url: str) -> None:
    database = Database(database_url)
    await prepared(database)
    later = envelope_for(Later("a"))
    async with database.transaction() as tx:
        tx.schedule(later, queue="parcels", delay_seconds=0)
    other = await send(database, "elsewhere")  # to all that are bound, from before the queue was
    await mark(database, [later.id, *other.values()], seconds_ago=7_200)

    await found_missing(database, ["parcels"], "worker-1")
    await recover(database, lease_seconds=30)

    assert await waiting_for(database, "parcels") == [later.id]
    await database.close()


async def test_what_another_endpoint_of_the_queue_has_done_is_not_sent_again(database_url: str) -> None:
    database = Database(database_url)
    await prepared(database)
    async with database.transaction() as tx:  # another name and version for the same type
        row = {"endpoint": "second", "queue": "parcels", "type": "parcel.sent", "version": 2}
        await tx.execute(sa.insert(schema.endpoints).values(**row, since=now(-3600), declared_at=now(-3600)))
    ids = await send(database, "done", "failed")
    await mark(database, list(ids.values()), seconds_ago=60)
    await finish(database, ids["done"])
    await fail(database, ids["failed"])

    await found_missing(database, ["parcels"], "worker-1")
    await recover(database, lease_seconds=30)

    assert await waiting_for(database, "parcels") == []
    await database.close()


async def test_what_was_cancelled_or_replayed_since_is_not_sent_again(database_url: str) -> None:
    database = Database(database_url)
    await prepared(database)
    cancelled, replayed = envelope_for(Parcel("cancelled")), envelope_for(Parcel("replayed"))
    async with database.transaction() as tx:
        tx.schedule(cancelled, queue="parcels", delay_seconds=0)
        tx.schedule(replayed, queue="parcels", delay_seconds=0)
    await mark(database, [cancelled.id, replayed.id], seconds_ago=60)
    async with database.transaction() as tx:
        tx.schedule(cancelled, queue="parcels", delay_seconds=60)
        tx.schedule(replayed.changed(run=1), queue="parcels", delay_seconds=0)
    async with database.transaction() as tx:
        unsent = schema.outbox.c.sent_at.is_(None)
        await tx.execute(sa.update(schema.outbox).where(unsent).values(next_at=None))
        again = schema.outbox.c.run == 1
        await tx.execute(sa.update(schema.outbox).where(again).values(sent_at=now(-30)))
    await finish(database, replayed.id)

    await found_missing(database, ["parcels"], "worker-1")
    await recover(database, lease_seconds=30)

    assert await waiting_for(database, "parcels") == []
    await database.close()


async def test_nothing_is_sent_before_its_endpoint_is_known(database_url: str, broker_url: str, rabbitmq: Node) -> None:
    # Given fresh tables, messages that wait already, and an API that starts alone
    settings = Settings(database_url=database_url, broker_url=broker_url, probe_seconds=2, lease_seconds=20)
    program = Hopline(handlers=[handlers()], settings=settings)
    await program.migrate()
    waiting = Database(database_url)
    waiting.riders.append(Outbox(limit=100, lease_seconds=30))
    await send(waiting, *(f"early {i}" for i in range(10)))
    async with program.producing() as producer:
        assert len(await rows(producer.database, schema.endpoints)) == 1  # before anything is declared
        await wait_until(lambda: producer.publisher.ready)
        await send(producer.database, *(f"before {i}" for i in range(10)))
        await wait_until(lambda: _all_sent(waiting, 20))

        # When its queue is deleted
        connection = await amqp.connect(broker_url)
        await (await connection.channel()).delete_queue("parcels")
        await connection.close(5)

    # Then a worker that starts recovers all
    async with program.working() as working:
        await wait_until(lambda: _done(working.producer.database, 20), 30)
    await waiting.close()


async def test_a_queue_that_somebody_makes_anew_at_once_loses_nothing(
    database_url: str, broker_url: str, rabbitmq: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an idle worker whose queue is deleted and declared in one go: RabbitMQ cancels no consumer
    monkeypatch.setattr(loss_watch, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(loss_watch, "SETTLING_SECONDS", 1.0)
    settings = Settings(
        database_url=database_url, broker_url=broker_url, probe_seconds=0.05, lease_seconds=20, heartbeat_seconds=0.3
    )
    program = Hopline(handlers=[handlers()], settings=settings)
    await program.migrate()
    async with program.working() as working:
        database = working.producer.database
        await wait_until(lambda: working.consumer.ready)
        await send(database, *(f"before {i}" for i in range(10)))
        await wait_until(lambda: _done(database, 10))
        connection = await amqp.connect(broker_url)
        channel = await connection.channel()
        await channel.delete_queue("parcels")
        await declare(channel, program.topology)
        await connection.close(5)

        # When messages are sent, which RabbitMQ holds for a consumer that does not get them
        await send(database, *(f"after {i}" for i in range(10)))

        # Then the worker proves that nobody has them, says so, and all are done
        await wait_until(lambda: _done(database, 20), 60)
        (loss,) = await rows(database, schema.queue_losses)
        assert (loss.queue, loss.found_by) == ("parcels", working.producer.instance)
        await wait_until(lambda: working.consumer.remade >= 1)


async def test_a_message_that_a_slow_handler_has_is_not_lost(
    database_url: str, broker_url: str, rabbitmq: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker with a message in its hand, of which the database knows the send only, and one that is idle
    monkeypatch.setattr(loss_watch, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(loss_watch, "SETTLING_SECONDS", 0.0)
    settings = Settings(
        database_url=database_url, broker_url=broker_url, probe_seconds=0.05, lease_seconds=20, heartbeat_seconds=0.1
    )
    finish_it, registry = asyncio.Event(), Handlers()

    @registry.on("parcels")
    async def handle(parcel: Parcel) -> None:
        await finish_it.wait()

    program = Hopline(handlers=[registry], settings=settings)
    await program.migrate()
    async with program.working() as slow, program.working() as idle:
        await wait_until(lambda: slow.consumer.ready and idle.consumer.ready)
        await send(slow.producer.database, "slow")
        await wait_until(lambda: slow.worker.busy + idle.worker.busy == 1)
        holder = slow if slow.worker.busy else idle
        await wait_until(lambda: _says_it_holds(holder.producer.database, holder.producer.instance))
        watch = loss_watch.LossWatch(
            slow.producer.database,
            (idle if holder is slow else slow).consumer,
            lambda names: read_queues(broker_url, "", names),
            program.handlers,
            ["parcels"],
            instance="watch",
            heartbeat_seconds=0.1,
        )

        await wait_until(lambda: _all_sent(slow.producer.database, 1))
        assert await watch._has_unanswered("parcels", utcnow() + timedelta(seconds=5))

        # When the idle one looks, again and again
        for _ in range(3):
            await watch._look("parcels")

        # Then nothing was lost, and nothing is sent again
        assert await rows(slow.producer.database, schema.queue_losses) == []
        finish_it.set()
        await wait_until(lambda: _done(slow.producer.database, 1))
        assert len(await rows(slow.producer.database, schema.outbox)) == 1


async def _says_it_holds(database: Database, instance: str) -> bool:
    said = {row.instance: row.state for row in await rows(database, schema.workers)}
    holding = said[instance]["links"].get("consume", {}).get("holding", {})
    return bool(holding.get("parcels", {}).get("unsettled") == 1)


async def _registered(database: Database) -> bool:
    return len(await rows(database, schema.endpoints)) == 1


async def _losses(database: Database, count: int) -> bool:
    return len(await rows(database, schema.queue_losses)) == count


async def _all_sent(database: Database, count: int) -> bool:
    return sum(row.sent_at is not None for row in await rows(database, schema.outbox)) == count


async def _done(database: Database, count: int) -> bool:
    return len(await rows(database, schema.inbox)) == count
