"""A handler that exceeds a limit of the database, breaks its transaction or loses its connection has failed an attempt.

The database works meanwhile: neighbours are handled, and each such message ends as one failed attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from hopline import database as module
from hopline import schema
from hopline.broker import Delivery
from hopline.database import Database, Transaction
from hopline.errors import CommitUnknown, DatabaseContention, DatabaseError, DatabaseUnavailable
from hopline.handlers import Handlers
from hopline.message import message
from hopline.outbox import Outbox
from hopline.retry import RetryPolicy
from hopline.settings import Settings
from hopline.worker import Worker, blame
from tests.support.engine import ScriptedConsumer, delivery_for, envelope_for, rows
from tests.support.waiting import wait_until

POLICY = RetryPolicy(attempts=3, first_seconds=60, immediate=1)

tables = sa.MetaData()
parents = sa.Table("parents", tables, sa.Column("id", sa.Integer, primary_key=True))
children = sa.Table(
    "children",
    tables,
    sa.Column("id", sa.String(20), primary_key=True),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("parent", sa.ForeignKey("parents.id", deferrable=True, initially="DEFERRED")),
)


@message("child.born", key="id")
class Born(msgspec.Struct):
    id: str
    does: str = "well"


Act = Callable[[Transaction], Awaitable[None]]


async def _driver(tx: Transaction) -> Any:
    return (await tx.connection.get_raw_connection()).driver_connection


async def exceeds_a_statement_timeout(tx: Transaction) -> None:
    await tx.execute(sa.text("SET LOCAL statement_timeout = 20"))
    await tx.execute(sa.text("SELECT pg_sleep(20)"))


async def is_idle_too_long(tx: Transaction) -> None:
    await tx.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 20"))
    driver = await _driver(tx)
    await wait_until(driver.is_closed)


async def is_idle_too_long_and_goes_on(tx: Transaction) -> None:
    await is_idle_too_long(tx)
    await tx.execute(sa.select(1))


async def blocks_the_loop_too_long(tx: Transaction) -> None:
    await tx.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 20"))
    give_up_at = time.monotonic() + 0.2
    while time.monotonic() < give_up_at:  # as a breakpoint does
        pass
    await tx.execute(sa.select(1))


async def swallows_a_failed_statement(tx: Transaction) -> None:
    try:
        await tx.execute(sa.text("SELECT 1 / 0"))
    except exc.DBAPIError:
        return
    raise AssertionError


async def swallows_a_limit(tx: Transaction) -> None:
    try:
        await exceeds_a_statement_timeout(tx)
    except DatabaseError:
        return
    raise AssertionError


async def swallows_a_lost_connection(tx: Transaction) -> None:
    try:
        await is_idle_too_long_and_goes_on(tx)
    except DatabaseError:
        return
    raise AssertionError


async def hides_a_lost_connection(tx: Transaction) -> None:
    try:
        await is_idle_too_long_and_goes_on(tx)
    except DatabaseError as error:
        raise RuntimeError("it did not work") from error


async def ends_its_own_session(tx: Transaction) -> None:
    await tx.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))


async def writes_in_a_transaction_that_it_made_read_only(tx: Transaction) -> None:
    await tx.execute(sa.text("SET TRANSACTION READ ONLY"))
    await tx.execute(sa.insert(parents), {"id": 1})


async def breaks_a_deferred_constraint(tx: Transaction) -> None:
    await tx.execute(sa.insert(children), {"id": "orphan", "n": 1, "parent": 7})


async def gives_a_wrong_parameter(tx: Transaction) -> None:
    await tx.execute(sa.insert(children), {"id": "x", "n": object()})


ON_POSTGRES: list[Act] = [
    exceeds_a_statement_timeout,
    is_idle_too_long,
    is_idle_too_long_and_goes_on,
    blocks_the_loop_too_long,
    swallows_a_failed_statement,
    swallows_a_limit,
    swallows_a_lost_connection,
    hides_a_lost_connection,
    ends_its_own_session,
    writes_in_a_transaction_that_it_made_read_only,
]
EVERYWHERE: list[Act] = [breaks_a_deferred_constraint, gives_a_wrong_parameter]


def one_by_one(act: Act) -> Handlers:
    handlers = Handlers()

    @handlers.on("things", retry=POLICY)
    async def handle(born: Born, tx: Transaction) -> None:
        await tx.execute(sa.insert(children), {"id": born.id, "n": 1})
        if born.does == "act":
            await act(tx)

    return handlers


def as_lists(act: Act) -> Handlers:
    handlers = Handlers()

    @handlers.on("things", retry=POLICY)
    async def handle(born: list[Born], tx: Transaction) -> None:
        await tx.execute(sa.insert(children), [{"id": one.id, "n": 1} for one in born])
        if any(one.does == "act" for one in born):
            await act(tx)

    return handlers


@asynccontextmanager
async def working(url: str, handlers: Handlers) -> AsyncIterator[tuple[Database, Worker, ScriptedConsumer]]:
    database = Database(url)
    await database.create(tables)
    database.riders.append(Outbox(limit=1_000, lease_seconds=30))
    worker = Worker(database, handlers, Settings(), instance="worker-1")
    consumer = ScriptedConsumer()
    worker.attach(consumer)
    try:
        yield database, worker, consumer
    finally:
        await worker.abandon()
        await database.close()


async def handle_all(worker: Worker, deliveries: list[Delivery]) -> None:
    worker.receive(deliveries)
    async with asyncio.timeout(30):
        await worker.drained()
    assert not worker.crashed.done()
    assert worker.busy == 0


async def it_is_one_failed_attempt(url: str, handlers: Handlers) -> ScriptedConsumer:
    """The odd one between three good ones."""
    envelopes = [envelope_for(Born(name, does)) for name, does in (("a", ""), ("odd", "act"), ("b", ""), ("c", ""))]
    odd = envelopes[1]
    async with working(url, handlers) as (database, worker, consumer):
        await handle_all(worker, [delivery_for("things", envelope) for envelope in envelopes])

        done = {row.message_id for row in await rows(database, schema.inbox)}
        attempts = await rows(database, schema.attempts)
        again = await rows(database, schema.outbox)
        assert done == {envelope.id for envelope in envelopes if envelope is not odd}
        assert [(row.message_id, row.attempt, row.outcome) for row in attempts] == [(odd.id, 0, "retry")]
        assert [(row.message_id, row.attempt) for row in again] == [(odd.id, 1)]
        assert [row.id for row in await rows(database, children)] == ["a", "b", "c"]
    assert len(consumer.settled) == 4
    return consumer


@pytest.mark.parametrize("kind", [one_by_one, as_lists])
@pytest.mark.parametrize("act", ON_POSTGRES)
async def test_the_handler_that_breaks_its_transaction_fails_alone(
    postgres_database_url: str, act: Act, kind: Callable[[Act], Handlers]
) -> None:
    await it_is_one_failed_attempt(postgres_database_url, kind(act))


@pytest.mark.parametrize("kind", [one_by_one, as_lists])
@pytest.mark.parametrize("act", EVERYWHERE)
async def test_what_the_commit_refuses_is_a_failed_attempt(
    database_url: str, act: Act, kind: Callable[[Act], Handlers]
) -> None:
    await it_is_one_failed_attempt(database_url, kind(act))


@pytest.mark.parametrize("act", [exceeds_a_statement_timeout, swallows_a_failed_statement, swallows_a_limit])
async def test_no_queue_pauses_for_a_limit_that_a_handler_exceeds(postgres_database_url: str, act: Act) -> None:
    consumer = await it_is_one_failed_attempt(postgres_database_url, one_by_one(act))

    assert consumer.limits == []


async def test_a_row_that_stays_locked_is_a_failed_attempt_in_the_end(
    postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blame, "IN_A_ROW", 2)
    other = Database(postgres_database_url)
    await other.create(tables)
    async with other.transaction() as tx:
        await tx.execute(sa.insert(parents), {"id": 1})

    async def wants_the_row(tx: Transaction) -> None:
        await tx.execute(sa.text("SET LOCAL lock_timeout = 20"))
        await tx.execute(sa.update(parents).values(id=2))

    async with other.transaction() as tx:
        await tx.execute(sa.update(parents).values(id=3))
        consumer = await it_is_one_failed_attempt(postgres_database_url, one_by_one(wants_the_row))

    assert consumer.limits == []
    await other.close()


async def test_a_connection_that_dies_by_chance_spends_no_attempt(postgres_database_url: str) -> None:
    kills = [1] * (blame.IN_A_ROW - 1)

    async def is_killed_at_first(tx: Transaction) -> None:
        if kills:
            kills.pop()
            await ends_its_own_session(tx)

    async with working(postgres_database_url, one_by_one(is_killed_at_first)) as (database, worker, _):
        await handle_all(worker, [delivery_for("things", envelope_for(Born("a", "act")))])

        assert len(await rows(database, schema.inbox)) == 1
        assert await rows(database, schema.attempts) == []


@pytest.mark.parametrize("error", [DatabaseUnavailable("no"), DatabaseContention("no"), CommitUnknown("no")])
async def test_an_effect_whose_own_database_fails_does_not_end_the_worker(
    sqlite_database_url: str, error: DatabaseError
) -> None:
    handlers = Handlers()

    @handlers.on("things", retry=RetryPolicy(first_seconds=60, immediate=0))
    async def handle(_born: Born) -> None:
        raise error

    async with working(sqlite_database_url, handlers) as (database, worker, _):
        await handle_all(worker, [delivery_for("things", envelope_for(Born("a")))])

        (again,) = await rows(database, schema.outbox)
        paused = worker.state()["paused"]
    is_down = isinstance(error, DatabaseUnavailable)
    assert again.attempt == (0 if is_down else 1)
    assert bool(paused) is is_down


async def test_a_slow_handler_may_take_its_deadline(
    postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits are far below a second here, and the handler takes longer than them, with a statement and without."""
    monkeypatch.setattr(module, "IDLE_IN_TRANSACTION_SECONDS", 0.1)
    monkeypatch.setattr(module, "STATEMENT_TIMEOUT_SECONDS", 0.1)
    database = Database(postgres_database_url, statement_seconds=0.1, handler_seconds=1.0)

    async with database.transaction() as tx:
        started = time.monotonic()
        await tx.execute(sa.text("SELECT pg_sleep(0.4)"))
        other = await database.query(sa.text("SHOW idle_in_transaction_session_timeout"))

    assert time.monotonic() - started > 0.3
    assert other[0][0] == "1100ms"
    await database.close()


async def test_waits_of_a_groups_members_do_not_add_up(
    postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STAY_AWAKE_SECONDS", 0.0)
    statements: list[str] = []
    handlers = Handlers()

    @handlers.on("things", retry=POLICY)
    async def handle(born: Born, tx: Transaction) -> None:
        (row,) = await tx.rows(sa.text("SELECT query FROM pg_stat_activity WHERE false UNION ALL SELECT 'mine'"))
        statements.append(row.query)

    async with working(postgres_database_url, handlers) as (database, worker, _):
        seen: list[str] = []
        sa.event.listen(
            database._writer.sync_engine, "before_cursor_execute", lambda *given: seen.append(given[2].strip())
        )
        await handle_all(worker, [delivery_for("things", envelope_for(Born(name))) for name in "abc"])

    assert len(statements) == 3
    assert seen.count("SELECT 1") == 3
