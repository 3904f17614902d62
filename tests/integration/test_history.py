"""The history in real databases: written, summed up over processes, read as windows, purged."""

from __future__ import annotations

import time

import pytest

from hopline import history, schema
from hopline.clock import from_epoch
from hopline.database import Database
from hopline.history.recording import Key
from hopline.history.steps import COLUMNS, known_until
from hopline.retention import _purge_history
from tests.support.engine import rows
from tests.support.letters import opened


def row(**given: int) -> list[int]:
    return [given.get(name, 0) for name in COLUMNS]


async def write(database: Database, instance: str, found: dict[Key, list[int]]) -> None:
    async with database.transaction() as tx:
        await history.write(tx, instance, found)


async def test_a_window_is_the_sum_of_all_processes_in_equal_steps(database_url: str) -> None:
    last = known_until(time.time()) - 30  # far enough from the end that this test may take its time
    async with opened(database_url) as database:
        await write(
            database, "w-1", {(10, last, "e"): row(done=2, retried=1, ran_03=3), (10, last, ""): row(accepted=7)}
        )
        await write(database, "w-2", {(10, last, "e"): row(done=3, ran_03=3), (10, last, "f"): row(done=1, dead=1)})
        await write(database, "w-1", {(480, last // 480 * 480, "e"): row(done=99)})

        every = await history.read(database, "15m")
        one = await history.read(database, "15m", "e")
        hour = await history.read(database, "1h", "e")
        day = await history.read(database, "24h")

    assert (every.step_seconds, len(every.points)) == (10, 90)
    busy = [point for point in every.points if point.done]
    assert [(p.done, p.retried, p.dead, p.accepted) for p in busy] == [(6, 1, 1, 7)]
    assert busy[0].at == from_epoch(last)
    assert [(p.done, p.accepted) for p in one.points if p.done] == [(5, 0)]
    assert busy[0].handler_p50 == pytest.approx(0.006)
    assert (hour.step_seconds, len(hour.points)) == (20, 180)
    assert sum(point.done for point in hour.points) == 5
    assert (day.step_seconds, len(day.points)) == (480, 180)
    assert sum(point.done for point in day.points) == 99
    assert all(0 < point.seconds <= 480 for point in day.points)


async def test_a_row_that_is_written_again_has_the_new_numbers(database_url: str) -> None:
    async with opened(database_url) as database:
        await write(database, "w-1", {(480, 960, "e"): row(done=2)})
        await write(database, "w-1", {(480, 960, "e"): row(done=5)})

        (found,) = await rows(database, schema.history)

    assert found.done == 5


async def test_rates_are_of_the_last_minutes_and_of_endpoints_only(database_url: str) -> None:
    last = known_until(time.time()) - 30
    async with opened(database_url) as database:
        await write(database, "w-1", {(10, last, "e"): row(done=30, dead=10), (10, last, ""): row(published=9)})
        await write(database, "w-1", {(10, last - 600, "e"): row(done=500)})

        found = await history.rates(database)

    assert {name: (rate.done, rate.retry_ratio) for name, rate in found.items()} == {"e": (30, 0.25)}


async def test_what_charts_do_not_show_any_more_is_purged(database_url: str) -> None:
    now = time.time()
    fine, coarse = int(now) - 3 * 3_600, int(now) - 26 * 3_600
    async with opened(database_url) as database:
        await write(database, "w-1", {(10, at, "e"): row(done=1) for at in range(fine, fine + 2_000, 10)})
        await write(database, "w-1", {(480, coarse, "e"): row(done=1), (480, fine, "e"): row(done=1)})
        await write(database, "w-1", {(10, int(now) - 3_600, "e"): row(done=1)})

        while (await _purge_history(database, from_epoch(now))).found:
            pass

        kept = [(found.step, found.at) for found in await rows(database, schema.history)]
    assert sorted(kept) == [(10, int(now) - 3_600), (480, fine)]


async def test_a_success_of_another_process_counts_from_the_step_after_the_question(database_url: str) -> None:
    async with opened(database_url) as database:
        await write(database, "w-1", {(10, 1_000, "e"): row(done=2), (10, 1_010, "f"): row(done=1, dead=3)})
        await write(database, "w-2", {(10, 1_010, "g"): row(dead=1), (480, 960, "h"): row(done=9)})

        async def succeeded(since: float, but: str = "w-2") -> set[str]:
            async with database.reading() as connection:
                return set(await history.succeeded(connection, dict.fromkeys("efgh", since), but=but))

        assert await succeeded(999) == {"e", "f"}
        assert await succeeded(1_000) == {"f"}
        assert await succeeded(1_015) == set()
        assert await succeeded(999, but="w-1") == set()
