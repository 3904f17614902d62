"""The database edge: outside failures have one name each, and times mean the same on both databases."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa

from hopline import database as module
from hopline.clock import utcnow
from hopline.database import Database, now, retried
from hopline.errors import CommitUnknown, DatabaseContention, DatabaseUnavailable, UsageError
from hopline.rows import Rows
from hopline.schema import UtcTime
from tests.support.engine import rows

metadata = sa.MetaData()
things = sa.Table(
    "things",
    metadata,
    sa.Column("id", sa.String(20), primary_key=True),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("at", UtcTime),
)


async def test_what_a_transaction_does_is_stored_whole_or_not_at_all(database_url: str) -> None:
    database = Database(database_url)
    await database.create(metadata)

    async def insert_twice() -> None:
        async with database.transaction() as tx:
            await tx.execute(sa.insert(things), [{"id": "a", "n": 1}])
            await tx.execute(sa.insert(things), [{"id": "a", "n": 2}])

    with pytest.raises(sa.exc.IntegrityError):  # a statement's own fault stays what it is
        await insert_twice()
    async with database.transaction() as tx:
        await tx.execute(sa.insert(things), [{"id": "b", "n": 1}])

    assert [row.id for row in await rows(database, things)] == ["b"]
    await database.close()


async def test_a_deadlock_or_a_lock_that_is_held_is_contention(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SQLITE_BUSY_SECONDS", 0.2)
    first, second = Database(database_url), Database(database_url)
    await first.create(metadata)
    async with first.transaction() as tx:
        await tx.execute(sa.insert(things), [{"id": "a", "n": 1}])

    async def take(database: Database) -> None:
        async with database.transaction() as tx:
            await tx.execute(sa.select(things).with_for_update())

    async with first.transaction() as tx:
        await tx.execute(sa.update(things).values(n=2))
        with pytest.raises(DatabaseContention):
            await take(second)

    await take(second)
    await first.close()
    await second.close()


async def test_contention_is_retried_a_bounded_number_of_times() -> None:
    tries = 0

    async def work() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise DatabaseContention("deadlock")
        return tries

    assert await retried(work) == 3
    tries = -10
    with pytest.raises(DatabaseContention):
        await retried(work, attempts=3)
    assert tries == -7


async def test_a_connection_that_dies_is_unavailable_and_at_commit_unknown(postgres_database_url: str) -> None:
    database, killer = Database(postgres_database_url), Database(postgres_database_url)
    await database.create(metadata)
    kill = sa.text("SELECT pg_terminate_backend(:pid)")

    async def die(*, at_commit: bool) -> None:
        async with database.transaction() as tx:
            (row,) = await tx.rows(sa.text("SELECT pg_backend_pid() AS pid"))
            async with killer.transaction() as other:
                await other.execute(kill, {"pid": row.pid})
            if not at_commit:
                await tx.execute(sa.insert(things), [{"id": "a", "n": 1}])

    with pytest.raises(DatabaseUnavailable):
        await die(at_commit=False)
    with pytest.raises(CommitUnknown):
        await die(at_commit=True)
    assert await rows(database, things) == []
    await database.close()
    await killer.close()


async def test_a_connection_that_dies_at_a_transaction_of_one_statement_leaves_it_unknown(
    postgres_database_url: str,
) -> None:
    database, killer = Database(postgres_database_url), Database(postgres_database_url)
    await database.create(metadata)

    async def die() -> None:
        async with database.transaction() as tx:
            tx.defer(sa.insert(things), {"id": "a", "n": 1})
            driver: Any = (await tx.connection.get_raw_connection()).driver_connection
            async with killer.transaction() as other:
                await other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": driver.get_server_pid()})

    with pytest.raises(CommitUnknown):
        await die()
    assert await rows(database, things) == []
    await database.close()
    await killer.close()


async def test_what_is_deferred_is_stored_with_the_transaction_and_only_then(database_url: str) -> None:
    database = Database(database_url)
    await database.create(metadata)
    given = Rows("some", id=sa.Text(), n=sa.Integer())
    insertion = given.insertion(database.dialect, things)
    update = sa.update(things).where(things.c.id == "c").values(n=9)

    async with database.transaction() as tx:
        await tx.execute(sa.insert(things), {"id": "c", "n": 1})
        tx.defer(insertion, given.inserted(database.dialect, id=["a", "b"], n=[1, 2]))
        tx.defer(insertion, given.inserted(database.dialect, id=["d"], n=[4]))  # the same names of parameters
        tx.defer(update, {})
        before = await tx.rows(sa.select(things.c.id))

    async def fail() -> None:
        async with database.transaction() as tx:
            tx.defer(insertion, given.inserted(database.dialect, id=["e"], n=[5]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert [row.id for row in before] == ["c"]
    assert {row.id: row.n for row in await rows(database, things)} == {"a": 1, "b": 2, "c": 9, "d": 4}
    await database.close()


async def test_a_savepoint_that_is_undone_takes_back_what_was_deferred_in_it(database_url: str) -> None:
    database = Database(database_url)
    await database.create(metadata)
    insertion = sa.insert(things)

    async with database.transaction() as tx:
        tx.defer(insertion, {"id": "before", "n": 1})
        async with tx.savepoint() as savepoint:
            tx.defer(insertion, {"id": "undone", "n": 1})
            await savepoint.undo()
        with pytest.raises(sa.exc.IntegrityError):
            async with tx.savepoint():
                tx.defer(insertion, {"id": "before", "n": 2})
        async with tx.savepoint():
            tx.defer(insertion, {"id": "kept", "n": 1})

    assert {row.id for row in await rows(database, things)} == {"before", "kept"}
    await database.close()


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    database = Database("postgresql+asyncpg://nobody@127.0.0.1:9/none")

    with pytest.raises(DatabaseUnavailable, match="no connection"):
        await rows(database, things)
    await database.close()


@pytest.mark.parametrize("url", ["mysql://x", "sqlite:///x.db", "postgresql+psycopg://x", "no url"])
def test_another_database_is_refused_with_the_urls_that_work(url: str) -> None:
    with pytest.raises(UsageError, match=r"sqlite\+aiosqlite:///FILE or postgresql\+asyncpg"):
        Database(url)


async def test_times_come_back_as_they_were_in_utc(database_url: str) -> None:
    database = Database(database_url)
    await database.create(metadata)
    elsewhere = datetime(2026, 3, 29, 1, 30, 0, 123000, tzinfo=timezone(timedelta(hours=5)))
    async with database.transaction() as tx:
        await tx.execute(sa.insert(things), [{"id": "a", "n": 1, "at": elsewhere}])

    (row,) = await rows(database, things)
    assert row.at == elsewhere
    assert row.at.tzinfo is UTC
    with pytest.raises(sa.exc.StatementError, match="no time zone"):
        async with database.transaction() as tx:
            await tx.execute(sa.insert(things), [{"id": "b", "n": 1, "at": datetime(2026, 1, 1)}])  # noqa: DTZ001
    await database.close()


async def test_the_databases_clock_takes_an_offset_and_compares_with_stored_times(database_url: str) -> None:
    database = Database(database_url)
    await database.create(metadata)
    async with database.transaction() as tx:
        for name, offset in (("past", -5.5), ("future", 60.0)):
            values = {"id": name, "n": 1, "at": now(sa.bindparam("offset", offset, type_=sa.Float))}
            await tx.execute(sa.insert(things).values(**values))

    async with database.reading() as connection:
        due = (await connection.execute(sa.select(things.c.id).where(things.c.at <= now()))).scalars().all()
        clock = (await connection.execute(sa.select(now()))).scalar_one()
    assert due == ["past"]
    assert abs(clock - utcnow()) < timedelta(seconds=5)
    await database.close()


async def test_rows_can_be_given_as_one_parameter(database_url: str) -> None:
    database = Database(database_url)
    await database.create(metadata)
    rows = Rows("some", id=sa.Text(), n=sa.Integer())
    given = rows.table(database.dialect)
    text = "quotes ' \" and ünïcode"
    async with database.transaction() as tx:
        query = sa.select(given.c.id, given.c.n).order_by(given.c.n)
        found = await tx.rows(query, rows.given(database.dialect, id=[text, ""], n=[2, 1]))

    assert [tuple(row) for row in found] == [("", 1), (text, 2)]
    await database.close()


async def test_a_cancelled_transaction_stores_nothing_and_gives_its_connection_back(database_url: str) -> None:
    database = Database(database_url)
    await database.create(metadata)
    entered = asyncio.Event()

    async def hang() -> None:
        async with database.transaction() as tx:
            await tx.execute(sa.insert(things), [{"id": "a", "n": 1}])
            entered.set()
            await asyncio.Event().wait()

    for _ in range(module.POOL_CONNECTIONS + 2):
        task = asyncio.create_task(hang())
        await entered.wait()
        entered.clear()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert await rows(database, things) == []
    await database.close()
