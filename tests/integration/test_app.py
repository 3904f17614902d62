"""A whole program on a real broker and real databases: what a team writes, and what it can rely on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import msgspec
import pytest
import sqlalchemy as sa

from hopline import amqp, repair, schema
from hopline import database as module
from hopline.app import Hopline, Producer
from hopline.clock import utcnow
from hopline.database import Transaction
from hopline.errors import CommitUnknown, UsageError
from hopline.handlers import Handlers
from hopline.live import read_queues
from hopline.message import Envelope, message
from hopline.node import Node
from hopline.outcome import Done
from hopline.retry import RetryPolicy
from hopline.settings import Settings
from hopline.timeline import ORIGIN_HEADER
from hopline.worker import Worker
from tests.support.engine import rows
from tests.support.waiting import wait_until

metadata = sa.MetaData()
counted = sa.Table("counted", metadata, sa.Column("id", sa.String(64), primary_key=True))


@message("thing.made", key="id")
class Made(msgspec.Struct):
    id: str


@message("thing.counted", key="id")
class Counted(msgspec.Struct):
    id: str


def program(database_url: str, broker_url: str, node: Node) -> Hopline:
    handlers = Handlers()
    failed: set[str] = set()

    @handlers.on("things")
    async def count(made: list[Made], tx: Transaction) -> list[Counted]:
        await tx.execute(sa.insert(counted), [{"id": one.id} for one in made])
        return [Counted(one.id) for one in made]

    @handlers.on("letters", retry=RetryPolicy(first_seconds=0.05, immediate=0))
    async def write(one: Counted, envelope: Envelope) -> Done:
        if one.id == "unlucky" and one.id not in failed:
            failed.add(one.id)
            raise ConnectionError("the post office is closed")
        return Done(f"sent {envelope.id}")

    settings = Settings(
        database_url=database_url, broker_url=broker_url, management_url=node.management_url, probe_seconds=0.1
    )
    return Hopline(handlers=[handlers], tables=[metadata], settings=settings)


async def make(producer: Producer, *ids: str) -> None:
    async with producer.transaction() as tx:
        for identifier in ids:
            tx.send(Made(identifier), headers={ORIGIN_HEADER: "test"})


async def done(producer: Producer, wanted: int) -> bool:
    return len(await rows(producer.database, schema.inbox)) == wanted


async def test_a_worker_starts_with_the_clock_of_the_database(
    sqlite_database_url: str, broker_url: str, rabbitmq: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = program(sqlite_database_url, broker_url, rabbitmq)
    await app.migrate()
    monkeypatch.setattr(module, "utcnow", lambda: utcnow() - timedelta(days=3))
    set_to: list[timedelta] = []
    monkeypatch.setattr(Worker, "set_clock", lambda _, ahead: set_to.append(ahead))

    async with app.working():
        pass

    assert abs(set_to[0] - timedelta(days=3)) < timedelta(minutes=1)


async def test_a_message_goes_all_the_way_and_its_story_can_be_told(
    database_url: str, broker_url: str, rabbitmq: Node
) -> None:
    app = program(database_url, broker_url, rabbitmq)
    await app.migrate()
    async with app.working() as working:
        await make(working.producer, "lucky", "unlucky")
        await wait_until(lambda: done(working.producer, 4))
        instance = working.producer.instance

    steps = await app.timeline("unlucky")

    assert [step.what for step in steps if step.what != "confirm"] == [
        "request", "message", "outbox", "message", "outbox", "done", "attempt", "outbox", "done",
    ]  # fmt: skip
    assert sum(step.what == "confirm" for step in steps) == 3
    (failure,) = [step for step in steps if step.what == "attempt"]
    assert "the post office is closed" in failure.text
    assert failure.worker == instance
    (letter,) = [step for step in steps if step.text.startswith("letters/") and step.what == "done"]
    assert letter.text.startswith("letters/thing.counted: attempt 1 done: sent ")
    audit = await app.audit()
    assert {(one.endpoint, one.created, one.done) for one in audit.endpoints} == {
        ("things/thing.made", 2, 2), ("letters/thing.counted", 2, 2),
    }  # fmt: skip
    assert (audit.missing, audit.pending, audit.unproven) == (0, 0, 0)


async def test_the_audit_names_what_the_broker_lost(database_url: str, broker_url: str, rabbitmq: Node) -> None:
    app = program(database_url, broker_url, rabbitmq)
    await app.migrate()
    async with app.producing() as producer:
        await wait_until(lambda: producer.publisher.ready)
        await wait_until(lambda: _registered(producer))
        await make(producer, "kept", "lost")
        await wait_until(lambda: _sent(producer, 2))
        (lost,) = [row.id for row in await rows(producer.database, schema.messages) if row.key == "lost"]
        async with producer.transaction() as tx:  # long enough ago for the queue's figures to be true
            earlier = utcnow() - timedelta(seconds=60)
            await tx.execute(sa.update(schema.outbox).values(sent_at=earlier))
            await tx.execute(sa.update(schema.endpoints).values(since=earlier - timedelta(seconds=60)))
    await wait_until(lambda: _ready(app, 2), 15)
    assert (await app.audit()).missing == 0  # both are in the queue

    connection = await amqp.connect(broker_url)
    channel = await connection.channel()
    first = await channel.get("things")
    assert first is not None
    await channel.purge_queue("things")
    channel.ack(first.delivery_tag)
    await connection.close()
    await wait_until(lambda: _missing(app, 2), 15)
    async with app.producing() as producer, producer.transaction() as tx:
        kept = sa.select(schema.messages.c.id).where(schema.messages.c.key == "kept").scalar_subquery()
        await tx.execute(
            sa.insert(schema.inbox).values(
                message_id=kept,
                endpoint="things/thing.made",
                run=0,
                attempt=0,
                outcome="done",
                note="",
                worker="w",
                started_at=utcnow(),
                done_at=utcnow(),
            )
        )

    audit = await app.audit()

    (things,) = [one for one in audit.endpoints if one.queue == "things"]
    assert (things.created, things.done, things.missing, things.missing_ids) == (2, 1, 1, (lost,))

    async with app.producing() as producer:
        parts = repair.resend(producer.database, list(app.handlers), audit, who="ann", reason="purged")
        assert [one.message_id async for part in parts for one in part] == [lost]
        await wait_until(lambda: _ready(app, 1), 15)
    assert (await app.audit()).missing == 0  # it is in the queue


async def _registered(producer: Producer) -> bool:
    return len(await rows(producer.database, schema.endpoints)) == 2


async def _sent(producer: Producer, wanted: int) -> bool:
    return sum(row.sent_at is not None for row in await rows(producer.database, schema.outbox)) == wanted


async def _ready(app: Hopline, wanted: int) -> bool:
    readings = await read_queues(app.settings.broker_url, app.settings.management_url, ["things"])
    return readings["things"].ready == wanted


async def _missing(app: Hopline, wanted: int) -> bool:
    return (await app.audit()).missing == wanted


async def test_callers_of_a_group_share_transactions_and_a_failing_one_fails_alone(
    database_url: str, broker_url: str, rabbitmq: Node
) -> None:
    app = program(database_url, broker_url, rabbitmq)
    await app.migrate()
    groups: list[int] = []

    async def insert(tx: Transaction, ids: list[str]) -> Sequence[str]:
        groups.append(len(ids))
        await tx.execute(sa.insert(counted), [{"id": identifier} for identifier in ids])
        return ids

    async with app.producing() as producer:
        put = producer.group(insert)
        assert await put("taken") == "taken"
        results = await asyncio.gather(*(put(identifier) for identifier in ("a", "taken", "b")), return_exceptions=True)

        assert results[0] == "a"
        assert isinstance(results[1], sa.exc.IntegrityError)
        assert results[2] == "b"
        assert [row.id for row in await rows(producer.database, counted)] == ["a", "b", "taken"]
        many = await asyncio.gather(*(put(f"n{number}") for number in range(100)))
    assert len(many) == 100
    assert len(groups) < 20


async def test_after_an_unknown_commit_the_group_reads_back(database_url: str, broker_url: str, rabbitmq: Node) -> None:
    app = program(database_url, broker_url, rabbitmq)
    await app.migrate()

    async def lost(tx: Transaction, ids: list[str]) -> Sequence[str]:
        raise CommitUnknown("the connection died during COMMIT")

    async def read_back(tx: Transaction, ids: list[str]) -> Sequence[str | Exception]:
        return [identifier if identifier == "stored" else CommitUnknown("not found") for identifier in ids]

    async with app.producing() as producer:
        put = producer.group(lost, read_back=read_back)
        results = await asyncio.gather(put("stored"), put("gone"), return_exceptions=True)
        assert results[0] == "stored"
        assert isinstance(results[1], CommitUnknown)
        with pytest.raises(CommitUnknown):
            await producer.group(lost)("stored")


async def test_without_its_tables_a_role_does_not_start(database_url: str, broker_url: str, rabbitmq: Node) -> None:
    app = program(database_url, broker_url, rabbitmq)

    with pytest.raises(UsageError, match="hopline migrate"):
        async with app.producing():
            pass


async def test_a_queue_that_nobody_handles_is_refused(
    sqlite_database_url: str, broker_url: str, rabbitmq: Node
) -> None:
    app = program(sqlite_database_url, broker_url, rabbitmq)
    await app.migrate()

    with pytest.raises(UsageError, match="letters, things"):
        async with app.working(queues=["orders"]):
            pass
