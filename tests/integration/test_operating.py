"""What an operator does to running workers: pause a queue, resume it, drain one; and what the workers tell of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from hopline import auditlog, draining, pausing, schema
from hopline.app import Hopline, Producer, Working
from hopline.auditlog import LogFilter
from hopline.cli import roles
from hopline.database import Database
from hopline.errors import UsageError
from hopline.handlers import Handlers
from hopline.live import read_queues
from hopline.message import message
from hopline.node import Node
from hopline.settings import Settings
from tests.support.engine import rows
from tests.support.letters import opened
from tests.support.waiting import wait_until


@message("job.asked", key="id")
class Asked(msgspec.Struct):
    id: str


@message("note.asked", key="id")
class Noted(msgspec.Struct):
    id: str


@dataclass
class Program:
    """A program whose handler on `jobs` waits for `open`, and one on `notes` that does not."""

    app: Hopline
    open: asyncio.Event = field(default_factory=asyncio.Event)
    began: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    async def ask(self, working: Working, *ids: str) -> None:
        async with working.producer.transaction() as tx:
            for identifier in ids:
                tx.send(Asked(identifier))

    async def ready(self, queue: str = "jobs") -> int:
        settings = self.app.settings
        return (await read_queues(settings.broker_url, settings.management_url, [queue]))[queue].ready


@pytest.fixture
async def program(database_url: str, broker_url: str, rabbitmq: Node) -> Program:
    handlers = Handlers()

    @handlers.on("jobs")
    async def work(job: Asked) -> None:
        made.began.append(job.id)
        await made.open.wait()
        made.ended.append(job.id)

    @handlers.on("notes")
    async def note(one: Noted) -> None:
        made.ended.append(one.id)

    settings = Settings(
        database_url=database_url,
        broker_url=broker_url,
        management_url=rabbitmq.management_url,
        probe_seconds=0.05,
        heartbeat_seconds=0.1,
        effect_concurrency=2,
        prefetch=20,
    )
    made = Program(Hopline(handlers=[handlers], settings=settings))
    await made.app.migrate()
    return made


@asynccontextmanager
async def database_of(program: Program) -> AsyncIterator[Database]:
    async with program.app.database() as database:
        yield database


async def held(database: Database, queue: str = "jobs") -> bool:
    """Whether every worker says that it takes nothing of the queue because of an operator."""
    told = [row.state.get("paused_by_operator") for row in await rows(database, schema.workers)]
    return bool(told) and all(paused == [queue] for paused in told)


async def test_a_paused_queue_gives_nothing_to_any_worker_until_it_is_resumed(program: Program) -> None:
    """What runs ends, what waits in memory goes back, other queues go on, and nothing is lost or done twice."""
    async with program.app.working() as working, database_of(program) as database:
        await program.ask(working, *(f"j-{number}" for number in range(6)))
        await wait_until(lambda: len(program.began) == 2)  # as many as may run at once: four wait in memory

        assert await pausing.pause(database, "jobs", who="ann", reason="wrong prices")
        await wait_until(lambda: held(database))
        program.open.set()
        async with working.producer.transaction() as tx:
            tx.send(Asked("late"))
            tx.send(Noted("n-1"))

        await wait_until(lambda: "n-1" in program.ended)
        await wait_until(lambda: _is_ready(program, 5))
        first = sorted(program.ended)
        assert await pausing.resume(database, "jobs", who="bob", reason="right again")
        await wait_until(lambda: len(program.ended) == 8)

        assert len(first) == 3
        assert sorted(program.ended) == sorted([*(f"j-{number}" for number in range(6)), "late", "n-1"])
        assert await rows(database, schema.attempts) == []
        async with database.reading() as connection:
            log = await auditlog.find(connection, LogFilter(target="queue jobs"), limit=10)
    assert [(one.who, one.action, one.reason) for one in log] == [
        ("bob", "resume", "right again"), ("ann", "pause", "wrong prices"),
    ]  # fmt: skip


async def _is_ready(program: Program, count: int) -> bool:
    return await program.ready() == count


async def test_a_worker_that_starts_while_its_queue_is_paused_takes_nothing_from_the_begin(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any heartbeat tells it."""
    monkeypatch.setattr(Producer, "hear", lambda _self, _heard: None)
    program.open.set()
    async with database_of(program) as database:
        await pausing.pause(database, "jobs", who="ann", reason="not yet")
        async with program.app.working() as working:
            await program.ask(working, "j-1")
            async with working.producer.transaction() as tx:
                tx.send(Noted("n-1"))
            await wait_until(lambda: "n-1" in program.ended)
            await wait_until(lambda: _is_ready(program, 1))

    assert program.began == []


async def test_a_pause_is_one_row_whoever_says_it_twice(database_url: str) -> None:
    async with opened(database_url) as database:
        assert await pausing.pause(database, "jobs", who="ann", reason="first")
        assert not await pausing.pause(database, "jobs", who="bob", reason="second")
        async with database.reading() as connection:
            (one,) = await pausing.read(connection)
        assert (one.queue, one.who, one.reason) == ("jobs", "ann", "first")
        assert await pausing.resume(database, "jobs", who="bob")
        assert not await pausing.resume(database, "jobs", who="bob")
        with pytest.raises(UsageError, match="say why"):
            await pausing.pause(database, "jobs", who="ann", reason=" ")
        with pytest.raises(UsageError, match="say who"):
            await pausing.resume(database, "jobs", who="")
        assert len(await rows(database, schema.audit_log)) == 2


async def test_a_worker_tells_what_it_is_doing_and_for_how_long(program: Program) -> None:
    async with program.app.working() as working, database_of(program) as database:
        await program.ask(working, "j-1", "j-2", "j-3")
        await wait_until(lambda: _runs(database, 2))

        (row,) = await rows(database, schema.workers)
        program.open.set()
        await wait_until(lambda: _runs(database, 0))

    told = {one["key"]: one for one in row.state["running"]}
    assert set(told) == set(program.began[:2])  # the third waits for a slot
    assert {one["endpoint"] for one in told.values()} == {"jobs/job.asked"}
    assert all(one["message_id"] and one["since"].endswith("+00:00") for one in told.values())


async def _runs(database: Database, count: int) -> bool:
    return [len(row.state.get("running", [])) for row in await rows(database, schema.workers)] == [count]


async def test_a_worker_that_is_asked_to_drain_finishes_and_ends_in_order(program: Program) -> None:
    async with database_of(program) as database:
        role = asyncio.create_task(roles._work(program.app, (), asyncio.Event()))
        await wait_until(lambda: _told(database))
        (row,) = await rows(database, schema.workers)
        async with program.app.producing() as producer:
            async with producer.transaction() as tx:
                tx.send(Asked("j-1"))
            await wait_until(lambda: program.began == ["j-1"])

            assert await draining.drain(database, row.instance, who="ann", reason="too old") == "asked"
            assert await draining.drain(database, row.instance, who="bob") == "asked-before"
            assert await draining.drain(database, "nobody", who="bob") == "unknown"
            assert await draining.drain(database, producer.instance, who="bob") == "wrong-role"
            await wait_until(lambda: _drains(database))
            assert not role.done()
            program.open.set()
            await asyncio.wait_for(role, 10)

        assert program.ended == ["j-1"]
        assert await rows(database, schema.workers) == []
        (entry,) = await rows(database, schema.audit_log)
    assert (entry.who, entry.action, entry.target) == ("ann", "drain", f"worker {row.instance}")


async def _drains(database: Database) -> bool:
    found = await rows(database, schema.workers)
    return any(row.state.get("draining") and row.drain_at for row in found)


async def _told(database: Database) -> bool:
    found = await rows(database, schema.workers)
    return any(row.state.get("queues") for row in found)


async def test_what_processes_did_is_counted_with_their_heartbeat(program: Program) -> None:
    program.open.set()
    async with database_of(program) as database:
        async with program.app.working() as working:
            await program.ask(working, "j-1", "j-2")
            await wait_until(lambda: len(program.ended) == 2)
            await wait_until(lambda: _sent(database))

        found = await rows(database, schema.history)

    for step in (10, 480):
        assert _summed(found, step, "", "accepted", "published") == (2, 2)
        assert _summed(found, step, "jobs/job.asked", "done", "retried", "dead", "deferred") == (2, 0, 0, 0)
        for kind in (schema.ran, schema.aged):
            columns = [kind(slot) for slot in range(schema.HISTORY_SLOTS)]
            assert sum(_summed(found, step, "jobs/job.asked", *columns)) == 2


def _summed(found: Sequence[Any], step: int, endpoint: str, *columns: str) -> tuple[int, ...]:
    mine = [row for row in found if (row.step, row.endpoint) == (step, endpoint)]
    return tuple(sum(getattr(row, column) for row in mine) for column in columns)


async def _sent(database: Database) -> bool:
    return all(row.sent_at for row in await rows(database, schema.outbox))
