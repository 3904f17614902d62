"""What tells deliveries apart is (id, run, attempt): an earlier attempt at hand never passes for a later one."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from hopline import schema
from hopline.database import Database, Transaction
from hopline.handlers import Handlers
from hopline.message import Envelope, message
from hopline.outcome import Retry
from hopline.retry import RetryPolicy
from tests.integration.test_worker_failures import handle_all, working
from tests.support.engine import delivery_for, envelope_for, rows
from tests.support.waiting import wait_until

POLICY = RetryPolicy(attempts=5, first_seconds=600, cap_seconds=600, immediate=0)


@message("try.asked", key="id")
class Asked(msgspec.Struct):
    id: str


class Recorded:
    """Handlers of both kinds that record which attempts ran; `fails` names attempts that do not succeed."""

    def __init__(self, *, tx: bool, fails: frozenset[int] = frozenset()) -> None:
        self.ran: list[int] = []
        self.handlers = Handlers()
        self.hold: asyncio.Event | None = None

        async def run(envelope: Envelope) -> Any:
            self.ran.append(envelope.attempt)
            if self.hold is not None and envelope.attempt == 0:
                await self.hold.wait()
            return Retry(600, "not yet") if envelope.attempt in fails else None

        if tx:

            @self.handlers.on("tries", retry=POLICY)
            async def in_transaction(asked: Asked, envelope: Envelope, tx: Transaction) -> Any:
                return await run(envelope)

        else:

            @self.handlers.on("tries", retry=POLICY)
            async def as_effect(asked: Asked, envelope: Envelope) -> Any:
                return await run(envelope)


def attempts_of(count: int, **changes: Any) -> list[Envelope]:
    """One message, as it is delivered in several attempts."""
    first = envelope_for(Asked("a"), **changes)
    return [first.changed(attempt=attempt) for attempt in range(count)]


async def fail_first(database: Database, envelope: Envelope) -> None:
    """What the failure of the first attempt has left: its row."""
    async with database.transaction() as tx:
        row = {
            "endpoint": "tries/try.asked", "message_id": envelope.id, "run": 0, "attempt": 0, "outcome": "retry",
            "error": "x", "stack": "", "worker": "w", "started_at": envelope.created_at,
            "finished_at": envelope.created_at,
        }  # fmt: skip
        await tx.execute(sa.insert(schema.attempts), [row])


@pytest.mark.parametrize("tx", [True, False])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 0, 1, 0)])
async def test_a_retry_beside_a_late_duplicate_of_the_failed_attempt_runs(
    database_url: str, tx: bool, order: tuple[int, ...]
) -> None:
    recorded = Recorded(tx=tx)
    envelopes = attempts_of(2)

    async with working(database_url, recorded.handlers) as (database, worker, consumer):
        await fail_first(database, envelopes[0])
        await handle_all(worker, [delivery_for("tries", envelopes[attempt]) for attempt in order])

        (done,) = await rows(database, schema.inbox)
    assert recorded.ran == [1]
    assert (done.run, done.attempt) == (0, 1)
    assert len(consumer.settled) == len(order)


@pytest.mark.parametrize("tx", [True, False])
async def test_a_retry_that_comes_as_a_suspect_beside_its_failed_attempt_runs(database_url: str, tx: bool) -> None:
    """A worker died while both were in its hands: the failed attempt, committed, and its retry."""
    recorded = Recorded(tx=tx)
    envelopes = attempts_of(2)

    async with working(database_url, recorded.handlers) as (database, worker, consumer):
        await fail_first(database, envelopes[0])
        await handle_all(worker, [delivery_for("tries", envelope, redelivered=True) for envelope in envelopes])

        (done,) = await rows(database, schema.inbox)
    assert recorded.ran == [1]
    assert done.attempt == 1
    assert len(consumer.settled) == 2


@pytest.mark.parametrize("fails", [frozenset(), frozenset({0})])
async def test_a_retry_does_not_join_a_running_effect_of_another_attempt(
    database_url: str, fails: frozenset[int]
) -> None:
    recorded = Recorded(tx=False, fails=fails)
    recorded.hold = asyncio.Event()
    envelopes = attempts_of(2)

    async with working(database_url, recorded.handlers) as (database, worker, consumer):
        worker.receive([delivery_for("tries", envelopes[0])])
        await wait_until(lambda: recorded.ran == [0])
        worker.receive([delivery_for("tries", envelopes[1]), delivery_for("tries", envelopes[0])])
        await wait_until(lambda: worker.busy == 3 and not consumer.settled)
        recorded.hold.set()
        async with asyncio.timeout(20):
            await worker.drained()

        (done,) = await rows(database, schema.inbox)
    assert len(consumer.settled) == 3
    assert worker.busy == 0
    if fails:  # the retry ran, once its message was known to be not done
        assert (recorded.ran, done.attempt) == ([0, 1], 1)
    else:
        assert (recorded.ran, done.attempt) == ([0], 0)


@pytest.mark.parametrize("tx", [True, False])
async def test_a_later_run_beside_an_earlier_one_runs(database_url: str, tx: bool) -> None:
    recorded = Recorded(tx=tx, fails=frozenset({3}))
    first = envelope_for(Asked("a"), attempt=3)
    replayed = first.changed(run=1, attempt=0)

    async with working(database_url, recorded.handlers) as (database, worker, consumer):
        await handle_all(worker, [delivery_for("tries", replayed), delivery_for("tries", first)])

        (done,) = await rows(database, schema.inbox)
    assert 0 in recorded.ran
    assert len(consumer.settled) == 2
    assert (done.run, done.attempt) == (1, 0)


async def test_the_deferral_of_one_attempt_is_none_of_another(database_url: str) -> None:
    """Two attempts of a type that is not known yet: each is deferred, whether or not the other one is already."""
    recorded = Recorded(tx=True)
    envelopes = attempts_of(2, type="try.later")

    async with working(database_url, recorded.handlers) as (database, worker, consumer):
        await handle_all(worker, [delivery_for("tries", envelopes[0])])
        await handle_all(worker, [delivery_for("tries", envelope) for envelope in envelopes])

        deferred = await rows(database, schema.outbox)
    assert sorted(row.attempt for row in deferred) == [0, 1]
    assert len(consumer.settled) == 3
