"""No query of the road, nor of a page, reads a large table as a whole: seen by Postgres' own counts of such reads.

The tables are as `./dev bench` fills them, with statistics as autovacuum makes them. Nothing being scheduled or due is
a case of its own: it leaves the planner without statistics of the columns that the due index is about.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hopline import outbox
from hopline.database import Database
from hopline.outbox import Outbox
from hopline.retention import MARGIN, purge
from hopline.status import snapshot
from tests.integration.test_console_pages import page_paths
from tests.support.console import OPERATOR_PASSWORD, console, settings_of, stocked
from tests.support.way import Way, a_shop

ROWS = 60_000
FILLS = [Path(__file__).parents[2] / "bench" / name for name in ("old_rows.sql", "old_letters.sql")]
NOTHING_SCHEDULED = "DELETE FROM hopline_outbox WHERE next_at IS NOT NULL"
LARGE = ("hopline_messages", "hopline_outbox", "hopline_inbox", "hopline_dead_letters")
READS = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname = ANY($1)"


@asynccontextmanager
async def administered(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        yield connection
    finally:
        await connection.close()


async def fill(url: str, *more: str) -> None:
    async with administered(url) as connection:
        for statement in (*(file.read_text().replace(":rows", str(ROWS)) for file in FILLS), *more):
            await connection.execute(statement)
        await connection.execute("VACUUM ANALYZE")


async def whole_reads(url: str) -> dict[str, int]:
    """How often each of the large tables was read from its begin, by those that have disconnected."""
    async with administered(url) as connection:
        return dict(await connection.fetch(READS, LARGE))


@pytest.mark.parametrize("more", [(), (NOTHING_SCHEDULED,)], ids=["some scheduled", "nothing scheduled"])
async def test_the_road_reads_no_table_whole(postgres_database_url: str, more: Sequence[str]) -> None:
    async with a_shop(postgres_database_url):
        await fill(postgres_database_url, *more)
    before = await whole_reads(postgres_database_url)

    async with a_shop(postgres_database_url) as database:
        way = Way(database)
        for _ in range(2):
            await way.handle(await way.handle(await way.place()))
        await sweep(database)
        await snapshot(database, ["orders", "emails"], settings_of(postgres_database_url))
        assert await purge(database, timedelta(days=12, hours=12) - MARGIN) > 0

    assert await whole_reads(postgres_database_url) == before


async def sweep(database: Database) -> None:
    """What a relay asks twice a second, and what it does when something is due."""
    store = Outbox(limit=1_000, lease_seconds=30)
    async with database.reading() as connection:
        await outbox.count_unsent(connection, limit=store.limit)
        await outbox.is_due(connection)
    async with database.transaction() as tx:
        await outbox.claim(tx, limit=250, lease_seconds=30)


@pytest.mark.parametrize("more", [(), (NOTHING_SCHEDULED,)], ids=["some scheduled", "nothing scheduled"])
async def test_no_page_of_the_console_reads_a_table_whole(postgres_database_url: str, more: Sequence[str]) -> None:
    async with console(postgres_database_url):
        await fill(postgres_database_url, *more)
    before = await whole_reads(postgres_database_url)

    async with stocked(postgres_database_url) as made:
        paths = [*page_paths(made), "/search?q=noop-1", "/search?q=4711"]
        async with made.person(OPERATOR_PASSWORD) as ann:
            for path in paths:
                assert (await ann.get(path)).status_code in (200, 303), path

    assert await whole_reads(postgres_database_url) == before
