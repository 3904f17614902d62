"""Stopping a connection to SQLite that is thrown away while a statement of it may still run.

A cancelled `await` leaves its statement running in the driver's thread. Closing waits for the statement; and a
connection of which a cursor is still referenced (a kept traceback is enough) stays open behind its close, with its
transaction: no process could write to the file until this one ends. So the statement is interrupted, the transaction
is rolled back by a statement of its own, and only then the connection is closed.

Refuses to wait for longer than STOP_SECONDS: what does not end then ends in the driver's thread, in the same order.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
import structlog

STOP_SECONDS = 5.0
"""A statement looks for an interrupt every few microseconds; only a disk, or a function in it, can hold it for long."""
INTERRUPT_SECONDS = 0.02
"""Between two interrupts. One alone could come just before the statement begins, and would be lost."""

log = structlog.get_logger("hopline.database")

_stopping: set[asyncio.Task[None]] = set()
"""Whoever waits for a task may be cancelled; the task goes on, and is referenced here meanwhile."""


def stop_when_invalidated(engine: sa.Engine) -> None:
    """Has the connections of an engine stopped when SQLAlchemy throws them away, as it does after a cancellation."""
    sa.event.listen(engine, "invalidate", _stop)


def _stop(connection: Any, _record: object, _error: BaseException | None) -> None:
    connection.run_async(_stopped)


async def _stopped(driver: Any) -> None:
    task = asyncio.create_task(_stop_driver(driver), name="stopping a SQLite connection")
    _stopping.add(task)
    task.add_done_callback(_stopping.discard)
    await asyncio.shield(task)


async def _stop_driver(driver: Any) -> None:
    """Interrupts, rolls back and closes an aiosqlite.Connection. The close that SQLAlchemy adds finds it closed."""
    connection: sqlite3.Connection | None = driver._connection  # noqa: SLF001 - as below
    if connection is None:
        return
    # Each is carried out in the driver's thread, after the statement that runs. The first one may be interrupted too.
    first = asyncio.ensure_future(_rolled_back(driver))
    if await _interrupted_until(first, connection):
        await _rolled_back(driver)
        with suppress(sqlite3.Error, ValueError):
            await driver.close()
        return
    log.error("a statement of SQLite does not end; its transaction ends with it", waited_seconds=STOP_SECONDS)
    # Its `close` would wait for the thread; nothing public leaves work to it. SQLAlchemy's dialect does the same.
    for ending in (connection.rollback, connection.close):
        driver._tx.put_nowait((None, ending))  # noqa: SLF001
    driver._connection = None  # noqa: SLF001
    driver.stop()
    first.cancel()


async def _interrupted_until(done: asyncio.Future[None], connection: sqlite3.Connection) -> bool:
    """Interrupts what runs until a future is done; False if it is not within STOP_SECONDS."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + STOP_SECONDS
    while not done.done() and loop.time() < give_up_at:
        connection.interrupt()
        await asyncio.wait([done], timeout=INTERRUPT_SECONDS)
    return done.done()


async def _rolled_back(driver: Any) -> None:
    with suppress(sqlite3.Error, ValueError):  # interrupted, or closed already
        await driver.rollback()
