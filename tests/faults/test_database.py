"""The database that goes away, is locked, is full, and whose answer to a COMMIT is lost."""

from __future__ import annotations

import asyncio
import json
import resource
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial

import pytest

from hopline import new_id
from orders.dataset import Basket
from tests.faults.commits import CommitProxy
from tests.faults.forms import on_postgres, on_sqlite, shortly_on
from tests.support import oracle
from tests.support.postgres import Postgres
from tests.support.system import DEADLINE_SECONDS, Load, System
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

CUTS = 4
FILLER_ROWS = 11_000
FILLER_BODY_BYTES = 1_600
"""Below 2 kB, so that it stays in the table itself (Postgres documentation, TOAST)."""
PAGE_BYTES = 8_192
WAL_SEGMENT_BYTES = 16 << 20


@on_postgres
async def test_a_postgres_that_is_restarted(running: System, fault_postgres: Postgres) -> None:
    """Every session ends at once; what was not committed is done again, what was is not."""
    async with running.loading() as load:
        await load.more(20)
        await asyncio.to_thread(fault_postgres.quit)
        await asyncio.to_thread(fault_postgres.start)
        await load.more(20, "answers after the restart")

    await running.assert_nothing_lost_nothing_twice(load)


@on_postgres
async def test_connections_that_die_in_the_middle_of_a_commit(running: System) -> None:
    """Whether it was carried out is not known, and is found out: the API reads back, a worker claims again."""
    url = running.database_url
    async with CommitProxy(url, every=5) as api_proxy, CommitProxy(url, every=5) as worker_proxy:
        async with running.loading() as load:
            await running.restart("api", HOPLINE_DATABASE_URL=api_proxy.url)
            await running.restart("worker-1", HOPLINE_DATABASE_URL=worker_proxy.url)
            for proxy in (api_proxy, worker_proxy):
                await wait_until(partial(_has_cut, proxy), DEADLINE_SECONDS, f"{CUTS} cuts")
                proxy.every = 0
        await running.assert_nothing_lost_nothing_twice(load)
        await running.reset()

    assert {"before", "after"} == set(api_proxy.done) == set(worker_proxy.done)


@on_postgres
async def test_a_postgres_that_is_restarted_in_the_middle_of_a_commit(
    running: System, fault_postgres: Postgres
) -> None:
    """As above, and the server itself goes down at that moment."""
    committing = asyncio.Event()
    async with CommitProxy(running.database_url, every=10, cuts=["after"], on_commit=committing.set) as proxy:
        async with running.loading() as load:
            for role in ("api", "worker-1"):
                await running.restart(role, HOPLINE_DATABASE_URL=proxy.url)
            async with asyncio.timeout(DEADLINE_SECONDS):
                await committing.wait()
            await asyncio.to_thread(fault_postgres.quit)
            proxy.every = 0
            await asyncio.to_thread(fault_postgres.start)
        await running.assert_nothing_lost_nothing_twice(load)
        await running.reset()


@on_sqlite
async def test_a_sqlite_file_that_another_process_has_locked(running: System) -> None:
    """Whoever wants to write waits, and after 5 s is told of contention: 409 or 503, never a false 2xx."""
    async with running.loading() as load:
        await load.more(20)
        with locked(running):
            held_since = time.monotonic()
            asking = (running.post(basket, f"locked-{new_id()}") for basket in running.take_clean(3))
            statuses = await asyncio.gather(*asking)
            remaining = running.scale.seconds - (time.monotonic() - held_since)
            await asyncio.sleep(max(0, remaining))  # the length of the fault, not a wait for anything
            stored = await oracle.states(running.database_url)
            assert load.accepted <= stored.keys()

    assert {status for status, _ in statuses} <= {409, 503}, statuses
    await running.assert_nothing_lost_nothing_twice(load)


@on_sqlite
async def test_a_full_disk_under_sqlite(running: System) -> None:
    """The API answers 503 and never a false 2xx; when there is room again, all goes on where it was."""
    async with running.loading() as load:
        await load.more(20)
        with no_file_may_grow(running, "api", "worker-1"):
            await _refused(running, load)

    await running.assert_nothing_lost_nothing_twice(load)


@on_postgres
async def test_a_full_disk_under_postgres(running: System, fault_postgres: Postgres) -> None:
    """The same: Postgres refuses to grow a table (SQLSTATE 53100) and lives on."""
    async with running.loading() as load:
        await load.more(20)
        async with no_table_may_grow(running, fault_postgres):
            await _refused(running, load)

    await running.assert_nothing_lost_nothing_twice(load)


@shortly_on("sqlite")
async def test_stock_that_runs_out_half_way_is_never_oversold(running: System) -> None:
    """Of 50 orders for two of the last 60 exactly 30 are confirmed, whichever of three workers decides them."""
    for name in ("worker-2", "worker-3"):
        await running.add_worker(name)
    await _add_product(running, "scarce", on_hand=60)
    body = (
        b'{"customer": {"email": "ann@example.com"}, "lines": [{"sku": "scarce", "quantity": 2, "unit_price": 1.00}]}'
    )

    load = await running.send([Basket(f"scarce-{number}", body) for number in range(50)])

    account = await running.assert_nothing_lost_nothing_twice(load)
    assert Counter(account.states[order] for order in load.accepted) == {"confirmed": 30, "rejected": 20}
    assert await oracle.query(running.database_url, "SELECT on_hand FROM products WHERE sku = 'scarce'") == [(0,)]


def _has_cut(proxy: CommitProxy) -> bool:
    return len(proxy.done) >= CUTS


async def _add_product(running: System, sku: str, *, on_hand: int) -> None:
    entry = {"sku": sku, "name": "Last chance", "department": "Test", "list_price": "1.00", "on_hand": on_hand}
    path = running.stack.folder / "more.ndjson"
    path.write_text(json.dumps(entry) + "\n")
    loaded = await oracle.command(running.environment, "load-catalogue", "--file", str(path), module="orders.cli")
    assert loaded.returncode == 0, loaded.stderr


async def _refused(running: System, load: Load) -> None:
    """Waits for a 503, for as long as the fault is to last; whatever was accepted meanwhile is stored."""
    since = time.monotonic()
    await wait_until(lambda: _answers_503(running), DEADLINE_SECONDS, "the API answers 503")
    await asyncio.sleep(max(0, running.scale.seconds - (time.monotonic() - since)))  # the length of the fault
    accepted = load.accepted
    stored = await oracle.states(running.database_url)
    assert accepted <= stored.keys(), "a 2xx for what is not stored"


async def _answers_503(running: System) -> bool:
    (basket,) = running.take_clean(1)
    status, _ = await running.post(basket, f"full-{new_id()}")
    return status == 503


@contextmanager
def locked(running: System) -> Iterator[None]:
    """Another process, this one, holds SQLite's write lock."""
    path = running.database_url.partition("///")[2]
    with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def no_file_may_grow(running: System, *roles: str) -> Iterator[None]:
    """To these processes the disk is full: they can write no file (RLIMIT_FSIZE, setrlimit(2)).

    Needs no root and no mount; what SQLite says of it is SQLITE_IOERR_WRITE, and SQLITE_FULL if a part was written.
    """
    pids = [running.stack.roles[role].pid for role in roles]
    before = [resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)) for pid in pids]
    try:
        yield
    finally:
        for pid, limits in zip(pids, before, strict=True):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@asynccontextmanager
async def no_table_may_grow(running: System, postgres: Postgres) -> AsyncIterator[None]:
    """The table of messages is as large as the server's files may get (RLIMIT_FSIZE), but for half a page.

    The half page is what makes Postgres see a short write, which it calls a full disk. The table is made larger
    than a segment of the write-ahead log first, which must still have room.
    """
    await oracle.execute(running.database_url, _FILL)
    ((path,),) = await oracle.query(running.database_url, "SELECT pg_relation_filepath('hopline_messages')")
    await asyncio.to_thread(postgres.stop)
    size = (postgres.folder / "data" / path).stat().st_size
    assert size > WAL_SEGMENT_BYTES
    await asyncio.to_thread(partial(postgres.start, file_bytes=size + PAGE_BYTES // 2))
    try:
        yield
    finally:
        await asyncio.to_thread(postgres.restart)
        await oracle.execute(running.database_url, "DELETE FROM hopline_messages WHERE type = 'filler'")


_FILL = f"""
    INSERT INTO hopline_messages (id, type, version, key, correlation_id, headers, body, created_at)
    SELECT id, 'filler', 1, 'filler', id, '{{}}', body, now() FROM (
        SELECT gen_random_uuid() AS id, convert_to(string_agg(md5(random()::text || a || b), ''), 'UTF8') AS body
        FROM generate_series(1, {FILLER_ROWS}) AS a, generate_series(1, {FILLER_BODY_BYTES} / 32) AS b GROUP BY a
    ) AS filler
"""
