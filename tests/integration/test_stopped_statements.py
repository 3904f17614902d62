"""A statement that still runs when its task is cancelled ends, stores nothing, and locks nobody out."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from hopline import schema, sqlite_stopping
from hopline.database import Database, Transaction
from hopline.handlers import Handlers
from hopline.message import message
from hopline.outbox import Outbox
from hopline.retry import RetryPolicy
from hopline.worker import Worker
from tests.support.engine import FAST, ScriptedConsumer, delivery_for, envelope_for, rows
from tests.support.waiting import wait_until

things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.String(64)))

SECONDS_AT_MOST = 30
"""The statements below would take minutes."""


def endless(database: Database) -> sa.TextClause:
    if database.dialect == "postgresql":
        return sa.text("SELECT pg_sleep(600)")
    return sa.text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) SELECT max(i) FROM n"
    )


async def written(database: Database, identifier: str) -> None:
    async with database.transaction() as tx:
        await tx.execute(sa.insert(things), [{"id": identifier}])


async def ids(database: Database) -> list[str]:
    return [row.id for row in await rows(database, things)]


async def test_a_cancelled_statement_ends_and_lets_other_processes_write(database_url: str) -> None:
    database, other = Database(database_url), Database(database_url)
    await database.create(things.metadata)
    kept: list[BaseException] = []

    async def late() -> None:
        async with asyncio.timeout(0.1), database.transaction() as tx:
            await tx.execute(sa.insert(things), [{"id": "undone"}])
            await tx.execute(endless(database))

    began = time.monotonic()
    with pytest.raises(TimeoutError) as raised:
        await late()
    kept.append(raised.value)  # its frames hold the cursor

    await written(other, "from another process")
    await written(database, "from this one")
    assert time.monotonic() - began < SECONDS_AT_MOST
    assert sorted(await ids(other)) == ["from another process", "from this one"]
    await database.close()
    await other.close()


async def test_a_cancelled_query_ends_too(database_url: str) -> None:
    database = Database(database_url)
    await database.create(things.metadata)

    async def late() -> None:
        async with asyncio.timeout(0.1), database.reading() as connection:
            await connection.execute(endless(database))

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await late()

    await written(database, "afterwards")
    assert time.monotonic() - began < SECONDS_AT_MOST
    await database.close()


async def test_one_that_is_cancelled_again_while_it_is_stopped(database_url: str) -> None:
    database, other = Database(database_url), Database(database_url)
    await database.create(things.metadata)
    entered = asyncio.Event()

    async def hang() -> None:
        async with database.transaction() as tx:
            await tx.execute(sa.insert(things), [{"id": "undone"}])
            entered.set()
            await tx.execute(endless(database))

    for _ in range(3):
        entered.clear()
        task = asyncio.create_task(hang())
        await entered.wait()
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(task, return_exceptions=True)

    await written(other, "from another process")
    await written(database, "from this one")
    assert sorted(await ids(other)) == ["from another process", "from this one"]
    await database.close()
    await other.close()


async def test_a_statement_that_no_interrupt_ends_is_left_to_its_thread(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_stopping, "STOP_SECONDS", 0.1)
    database, other = Database(sqlite_database_url), Database(sqlite_database_url)
    await database.create(things.metadata)
    release = threading.Event()
    drivers: list[Any] = []

    async def late() -> None:
        async with asyncio.timeout(0.1), database.transaction() as tx:
            drivers.append((await tx.connection.get_raw_connection()).driver_connection)
            await drivers[0].create_function("hold", 0, lambda: release.wait(60))
            await tx.execute(sa.insert(things), [{"id": "undone"}])
            await tx.execute(sa.text("SELECT hold()"))

    with pytest.raises(TimeoutError):
        await late()

    assert not release.is_set()  # so nobody has waited for it
    release.set()
    await wait_until(lambda: not drivers[0]._thread.is_alive())
    await written(other, "from another process")
    await written(database, "from this one")
    assert sorted(await ids(other)) == ["from another process", "from this one"]
    await database.close()
    await other.close()


@message("thing.counted", key="id")
class Counted(msgspec.Struct):
    id: str


class Held:
    """An object of a handler's frame."""


async def test_a_handler_whose_deadline_passes_in_a_statement_locks_nobody_out(database_url: str) -> None:
    database, other = Database(database_url), Database(database_url)
    await database.create(things.metadata)
    database.riders.append(Outbox(limit=1_000, lease_seconds=30))
    handlers = Handlers()
    held: list[weakref.ref[Held]] = []

    @handlers.on("things", deadline_seconds=0.2, retry=RetryPolicy(attempts=3, first_seconds=60))
    async def handle(counted: Counted, tx: Transaction) -> None:
        mine = Held()
        held.append(weakref.ref(mine))
        await tx.execute(sa.insert(things), [{"id": counted.id}])
        await tx.execute(endless(database))

    worker, consumer = Worker(database, handlers, FAST, instance="worker-1"), ScriptedConsumer()
    worker.attach(consumer)
    delivery = delivery_for("things", envelope_for(Counted("undone")))

    began = time.monotonic()
    worker.receive([delivery])
    async with asyncio.timeout(60):
        await worker.drained()

    await written(other, "from another process")
    assert time.monotonic() - began < SECONDS_AT_MOST
    assert await ids(other) == ["from another process"]
    assert consumer.settled == [delivery]
    (attempt,) = await rows(other, schema.attempts)
    assert "deadline" in attempt.error
    gc.collect()
    assert held
    assert [ref() for ref in held] == [None] * len(held)  # no traceback is kept that would hold a cursor
    await worker.abandon()
    await database.close()
    await other.close()
