"""Heartbeats: a process that lives is seen to live, also while its loop is blocked."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest

from hopline import heartbeat as module
from hopline import schema, suspects
from hopline.clock import utcnow
from hopline.database import Database
from hopline.errors import UsageError
from hopline.heartbeat import Heard, Heartbeat, Listening
from tests.support.engine import rows
from tests.support.waiting import wait_until


async def test_a_process_is_seen_to_live_and_to_stop_in_order(database_url: str) -> None:
    database = Database(database_url)
    await database.create()
    heartbeat = Heartbeat(database, "worker-1", "worker", 0.05, state=lambda: {"busy": 3})

    heartbeat.start()
    await wait_until(lambda: _says(database, {"busy": 3}))
    (first,) = await rows(database, schema.workers)
    await wait_until(lambda: _beats_after(database, first.heartbeat_at))
    async with database.transaction() as tx:
        await suspects.mark(tx, "jobs/job.asked", "0190163d-8694-739b-aea5-966c26f8ad91", "worker-1")
    await heartbeat.stop()

    assert (first.instance, first.role) == ("worker-1", "worker")
    assert await rows(database, schema.workers) == []
    assert await rows(database, schema.suspects) == []
    await database.close()


async def test_it_hears_how_far_the_database_s_clock_is_ahead(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, heard = Database(database_url), list[Heard]()
    await database.create()
    monkeypatch.setattr(module, "utcnow", lambda: utcnow() - timedelta(days=3))
    heartbeat = Heartbeat(database, "worker-1", "worker", 0.05, state=dict, listening=Listening(heard.append))

    heartbeat.start()
    await wait_until(lambda: bool(heard))
    await heartbeat.stop()

    ahead = heard[0].clock_ahead
    assert ahead is not None
    assert abs(ahead - timedelta(days=3)) < timedelta(minutes=1)
    await database.close()


@pytest.mark.parametrize(
    ("fault", "stays"),
    [
        (RuntimeError("a fault"), True),
        (SystemExit(3), True),
        (UsageError("x"), False),
        (asyncio.CancelledError(), False),
    ],
)
async def test_after_a_fault_its_row_and_its_marks_stay_as_evidence(
    sqlite_database_url: str, fault: BaseException, stays: bool
) -> None:
    database = Database(sqlite_database_url)
    await database.create()
    heartbeat = Heartbeat(database, "worker-1", "worker", 0.05, state=dict)
    heartbeat.start()
    await wait_until(lambda: _says(database, {}))
    async with database.transaction() as tx:
        await suspects.mark(tx, "jobs/job.asked", "0190163d-8694-739b-aea5-966c26f8ad91", "worker-1")

    await heartbeat.stop(fault)

    assert bool(await rows(database, schema.workers)) is stays
    assert bool(await rows(database, schema.suspects)) is stays
    await database.close()


async def test_it_beats_while_the_loop_is_blocked_and_says_so(database_url: str) -> None:
    database = Database(database_url)
    await database.create()
    heartbeat = Heartbeat(database, "worker-1", "worker", 0.05, state=dict)
    heartbeat.start()
    await wait_until(lambda: _says(database, {}))
    (before,) = await rows(database, schema.workers)

    blocked_until = time.monotonic() + 1.5
    while time.monotonic() < blocked_until:  # as a handler that computes and never awaits
        pass
    lag = heartbeat.loop_lag_seconds
    (after,) = await rows(database, schema.workers)
    await heartbeat.stop()

    assert after.heartbeat_at > before.heartbeat_at
    assert lag > 0.5
    await database.close()


async def _says(database: Database, state: dict[str, object]) -> bool:
    found = await rows(database, schema.workers)
    return any(row.state.items() >= state.items() for row in found)


async def _beats_after(database: Database, moment: object) -> bool:
    return any(row.heartbeat_at > moment for row in await rows(database, schema.workers))
