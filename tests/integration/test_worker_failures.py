"""The worker when things go wrong: what its handlers need is down, a message kills, a type is unknown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import prometheus_client
import pytest
import sqlalchemy as sa

from hopline import schema, suspects
from hopline.broker import Delivery
from hopline.database import Database, Transaction, now
from hopline.errors import DatabaseUnavailable, DependencyDown
from hopline.handlers import Handlers
from hopline.heartbeat import Heard
from hopline.message import Envelope, message
from hopline.outbox import Outbox
from hopline.retry import RetryPolicy
from hopline.settings import Settings
from hopline.worker import Worker, pauses
from tests.support.engine import ScriptedConsumer, delivery_for, envelope_for, rows
from tests.support.waiting import wait_until

QUICK = Settings(pause_first_seconds=0.05, pause_cap_seconds=0.2, heartbeat_seconds=0.1)
PATIENT = Settings(pause_first_seconds=60, pause_cap_seconds=60, heartbeat_seconds=60)


@message("job.asked", key="id")
class Job(msgspec.Struct):
    id: str


@message("job.renamed", key="id")
class Other(msgspec.Struct):
    id: str


@asynccontextmanager
async def working(
    url: str, handlers: Handlers, settings: Settings = QUICK, *, instance: str = "worker-1"
) -> AsyncIterator[tuple[Database, Worker, ScriptedConsumer]]:
    database = Database(url)
    await database.create()
    database.riders.append(Outbox(limit=1_000, lease_seconds=30))
    worker = Worker(database, handlers, settings, instance=instance)
    consumer = ScriptedConsumer(prefetches=dict.fromkeys(handlers.queues(), 100))
    worker.attach(consumer)
    try:
        yield database, worker, consumer
    finally:
        await worker.abandon()
        await database.close()


async def handle_all(worker: Worker, deliveries: list[Delivery]) -> None:
    worker.receive(deliveries)
    async with asyncio.timeout(20):
        await worker.drained()
    assert not worker.crashed.done()
    assert worker.busy == 0


def handling(function: Callable[[str], None], *, tx: bool, retry: RetryPolicy | None = None) -> Handlers:
    """A program with the queue `jobs`, whose handler calls the function with the job's id."""
    handlers = Handlers()
    if tx:

        @handlers.on("jobs", retry=retry)
        async def in_transaction(job: Job, tx: Transaction) -> None:
            function(job.id)

    else:

        @handlers.on("jobs", retry=retry)
        async def as_effect(job: Job) -> None:
            function(job.id)

    return handlers


def job(identifier: str, **changes: Any) -> Envelope:
    return envelope_for(Job(identifier), **changes)


# -- tries at once


async def test_what_passes_by_itself_is_tried_again_at_once_and_spends_no_attempt(database_url: str) -> None:
    calls: list[str] = []

    def flaky(identifier: str) -> None:
        calls.append(identifier)
        if calls.count(identifier) == 1:
            raise RuntimeError("a hiccup")

    async with working(database_url, handling(flaky, tx=False)) as (database, worker, consumer):
        await handle_all(worker, [delivery_for("jobs", job("a"))])

        assert calls == ["a", "a"]
        assert len(await rows(database, schema.inbox)) == 1
        assert await rows(database, schema.attempts) == []
    assert len(consumer.settled) == 1


async def test_an_attempt_that_fails_at_every_try_is_one_attempt(database_url: str) -> None:
    calls: list[str] = []

    def broken(identifier: str) -> None:
        calls.append(identifier)
        raise RuntimeError("broken")

    policy = RetryPolicy(immediate=3, first_seconds=60)
    async with working(database_url, handling(broken, tx=False, retry=policy)) as (database, worker, _):
        await handle_all(worker, [delivery_for("jobs", job("a"))])

        (attempt,) = await rows(database, schema.attempts)
    assert len(calls) == 4
    assert (attempt.attempt, attempt.outcome) == (0, "retry")


async def test_a_blocking_handler_runs_in_a_thread(database_url: str) -> None:
    handlers, seen = Handlers(), []

    @handlers.on("jobs")
    def handle(asked: Job) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            seen.append(asked.id)

    async with working(database_url, handlers) as (database, worker, _):
        await handle_all(worker, [delivery_for("jobs", job("a"))])

        assert len(await rows(database, schema.inbox)) == 1
    assert seen == ["a"]


# -- pauses


async def pausing(url: str, *, tx: bool) -> None:
    calls: list[str] = []

    def down(identifier: str) -> None:
        calls.append(identifier)
        raise DependencyDown("no mail server")

    async with working(url, handling(down, tx=tx), PATIENT) as (database, worker, consumer):
        await handle_all(worker, [delivery_for("jobs", job("a"))])
        await handle_all(worker, [delivery_for("jobs", job(name)) for name in ("b", "c")])

        waiting = await rows(database, schema.outbox)
        assert await rows(database, schema.attempts) == []
        assert await rows(database, schema.inbox) == []
        (pause,) = worker.state()["paused"].items()  # type: ignore[attr-defined]
    assert calls[-1] == "a"
    assert consumer.limits == [("jobs", 0)]
    assert [(row.destination, row.attempt, row.sent_at) for row in waiting] == [("jobs", 0, None)] * 3
    assert pause[0] == "jobs"
    assert "no mail server" in pause[1]["reason"]
    assert len(consumer.settled) == 3


async def test_a_dependency_that_is_down_pauses_the_queue_and_defers_what_is_buffered(database_url: str) -> None:
    await pausing(database_url, tx=False)


async def test_a_group_pauses_too(database_url: str) -> None:
    await pausing(database_url, tx=True)


def down(_: str) -> None:
    raise DependencyDown("no mail server")


async def test_what_came_by_a_send_that_is_not_marked_yet_is_deferred_all_the_same(database_url: str) -> None:
    """A process publishes, RabbitMQ delivers, and only then the mark of the confirm is stored: the row of this very
    delivery is no deferral of it. Taken for one, the message would be acknowledged and gone."""
    async with working(database_url, handling(down, tx=False), PATIENT) as (database, worker, _):
        async with database.transaction() as tx:
            tx.schedule(job("a", run=1), queue="jobs", delay_seconds=0)
        (own,) = await rows(database, schema.outbox)

        await handle_all(worker, [delivery_for("jobs", job("a", run=1, id=own.message_id))])

        deferred = [row for row in await rows(database, schema.outbox) if row.id != own.id]
    assert [(row.message_id, row.run, row.destination) for row in deferred] == [(own.message_id, 1, "jobs")]
    assert deferred[0].due_at > own.due_at


async def test_a_duplicate_of_what_is_deferred_already_is_dropped(database_url: str) -> None:
    async with working(database_url, handling(down, tx=False), PATIENT) as (database, worker, consumer):
        one = job("a")
        await handle_all(worker, [delivery_for("jobs", one)])
        await handle_all(worker, [delivery_for("jobs", one)])

        assert len(await rows(database, schema.outbox)) == 1
    assert len(consumer.settled) == 2


async def test_a_paused_queue_is_probed_with_one_message_and_resumed(database_url: str) -> None:
    down = True

    def handle(_identifier: str) -> None:
        if down:
            raise ConnectionRefusedError("no mail server")

    policy = RetryPolicy(pause=(ConnectionRefusedError,))
    async with working(database_url, handling(handle, tx=False, retry=policy)) as (_, worker, consumer):
        await handle_all(worker, [delivery_for("jobs", job("a"))])
        await wait_until(lambda: consumer.limits[-1] == ("jobs", 1))
        await handle_all(worker, [delivery_for("jobs", job("a"))])
        await wait_until(lambda: consumer.limits[-1] == ("jobs", 1) and len(consumer.limits) == 4)
        down = False
        await handle_all(worker, [delivery_for("jobs", job("a"))])

        assert worker.state()["paused"] == {}
    assert consumer.limits == [("jobs", 0), ("jobs", 1), ("jobs", 0), ("jobs", 1), ("jobs", None)]


def two_handlers(first: Callable[[], None]) -> Handlers:
    """Two handlers on one queue, of which the first may find its dependency down."""
    handlers = Handlers()

    @handlers.on("jobs")
    async def handle(asked: Job) -> None:
        first()

    @handlers.on("jobs")
    async def handle_other(asked: Other) -> None:
        return

    return handlers


async def test_a_pause_ends_when_no_message_of_its_handler_comes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue goes on with the messages of another handler, which prove nothing of what the first one needs."""
    monkeypatch.setattr(pauses, "PROBE_WAIT_SECONDS", 0.05)

    async with working(database_url, two_handlers(lambda: down(""))) as (_, worker, consumer):
        await handle_all(worker, [delivery_for("jobs", job("a"))])
        await wait_until(lambda: ("jobs", 1) in consumer.limits)
        await handle_all(worker, [delivery_for("jobs", envelope_for(Other("b")))])

        await wait_until(lambda: consumer.limits[-1] == ("jobs", None))
        assert worker.state()["paused"] == {}


async def test_a_pause_ends_when_another_worker_has_handled_a_message(database_url: str) -> None:
    async with working(database_url, handling(down, tx=False), PATIENT) as (_, worker, consumer):
        await handle_all(worker, [delivery_for("jobs", job("a"))])
        assert list(worker.found_down_at()) == ["jobs/job.asked"]

        worker.hear(Heard((), drain=False, succeeded=frozenset({"jobs/job.asked", "jobs/unknown"})))

        assert worker.state()["paused"] == {}
        assert worker.found_down_at() == {}
    assert consumer.limits == [("jobs", 0), ("jobs", None)]


async def test_a_probe_that_runs_is_waited_for(sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "PROBE_WAIT_SECONDS", 1.0)
    hold = asyncio.Event()
    calls: list[str] = []
    handlers = Handlers()

    @handlers.on("jobs")
    async def handle(asked: Job) -> None:
        calls.append(asked.id)
        if len(calls) == 1:
            raise DependencyDown("no mail server")
        await hold.wait()

    async with working(sqlite_database_url, handlers) as (_, worker, consumer):
        await handle_all(worker, [delivery_for("jobs", job("a"))])
        await wait_until(lambda: consumer.limits[-1] == ("jobs", 1))
        worker.receive([delivery_for("jobs", job("b"))])
        await wait_until(lambda: calls == ["a", "b"])
        loop = asyncio.get_running_loop()
        later = loop.time() + 1.2
        await wait_until(lambda: loop.time() > later)

        assert consumer.limits[-1] == ("jobs", 1)
        hold.set()
        await wait_until(lambda: consumer.limits[-1] == ("jobs", None))


async def test_a_duplicate_of_a_deferred_message_is_not_scheduled_twice(database_url: str) -> None:
    def down(_identifier: str) -> None:
        raise DependencyDown("no mail server")

    asked = job("a")
    async with working(database_url, handling(down, tx=False), PATIENT) as (database, worker, _):
        for _ in range(3):
            await handle_all(worker, [delivery_for("jobs", asked)])

        assert len(await rows(database, schema.outbox)) == 1


async def test_while_the_database_is_down_no_queue_is_consumed(sqlite_database_url: str) -> None:
    failures = [DatabaseUnavailable("gone"), DatabaseUnavailable("gone")]

    class Rider:
        async def board(self, _tx: Transaction) -> None:
            if failures:
                raise failures.pop()

    async with working(sqlite_database_url, handling(lambda _: None, tx=True)) as (database, worker, consumer):
        database.riders.append(Rider())
        await handle_all(worker, [delivery_for("jobs", job("a"))])

        assert len(await rows(database, schema.inbox)) == 1
        assert await rows(database, schema.attempts) == []
    assert consumer.limits == [("jobs", 0), ("jobs", None)]
    assert len(consumer.settled) == 1


# -- unknown types and versions


async def test_an_unknown_type_is_deferred_without_an_attempt_until_its_time_is_over(database_url: str) -> None:
    unknown = envelope_for(Other("a"), version=7)
    handlers = handling(lambda _: None, tx=True)

    async with working(database_url, handlers) as (database, worker, consumer):
        await handle_all(worker, [delivery_for("jobs", unknown)])
        (deferred,) = await rows(database, schema.outbox)
        stored = await rows(database, schema.messages)
        told = worker.state()["unknown"]
    async with working(database_url, handlers, msgspec.structs.replace(QUICK, unknown_type_seconds=1e-6)) as (
        database,
        worker,
        _,
    ):
        await handle_all(worker, [delivery_for("jobs", unknown)])
        (letter,) = await rows(database, schema.dead_letters)

    assert (deferred.destination, deferred.attempt, deferred.message_id) == ("jobs", 0, unknown.id)
    assert [row.body for row in stored] == [unknown.body]
    assert told == {"job.renamed v7 on jobs": 1}
    assert (letter.reason, letter.type, letter.version) == ("unknown-type", "job.renamed", 7)
    assert len(consumer.settled) == 1


# -- what RabbitMQ dead-letters


def died(envelope: Envelope, reason: str) -> Delivery:
    properties = {"message_id": envelope.id, "headers": {"x-death": [{"reason": reason, "queue": "jobs"}]}}
    return Delivery("jobs.dead", envelope.body, envelope, False, "channel 1", lambda: properties)


async def test_what_rabbitmq_dead_letters_is_parked_under_its_own_queue(database_url: str) -> None:
    expired = job("a")

    async with working(database_url, handling(lambda _: None, tx=True)) as (database, worker, consumer):
        await handle_all(worker, [died(expired, "expired"), died(expired, "expired")])

        (letter,) = await rows(database, schema.dead_letters)
    assert (letter.queue, letter.reason, letter.message_id) == ("jobs", "expired", expired.id)
    assert letter.properties["headers"]["x-death"][0]["reason"] == "expired"
    assert len(consumer.settled) == 2


async def test_what_was_delivered_too_often_is_tried_once_more_as_a_suspect(database_url: str) -> None:
    killer = job("a")

    async with working(database_url, handling(lambda _: None, tx=True)) as (database, worker, consumer):
        await handle_all(worker, [died(killer, "delivery_limit")])
        (again,) = await rows(database, schema.outbox)
        await handle_all(worker, [died(killer.changed(suspect=True), "delivery_limit")])

        (letter,) = await rows(database, schema.dead_letters)
    assert (again.destination, again.suspect) == ("jobs", True)
    assert (letter.queue, letter.reason) == ("jobs", "delivery-limit")
    assert len(consumer.settled) == 2


# -- suspects


async def marked(database: Database, envelope: Envelope, *instances: str) -> None:
    async with database.transaction() as tx:
        for instance in instances:
            await suspects.mark(tx, "jobs/job.asked", envelope.id, instance)


async def alive(database: Database, instance: str, *, seconds_ago: float) -> None:
    row = {"instance": instance, "role": "worker", "version": "1", "state": {}}
    async with database.transaction() as tx:
        await tx.execute(sa.delete(schema.workers).where(schema.workers.c.instance == instance))
        beat = {"started_at": now(-seconds_ago), "heartbeat_at": now(-seconds_ago)}
        await tx.execute(sa.insert(schema.workers).values(**row, **beat))


def again(envelope: Envelope) -> Delivery:
    return delivery_for("jobs", envelope, redelivered=True)


async def settled(worker: Worker, deliveries: list[Delivery]) -> None:
    worker.receive(deliveries)
    await wait_until(lambda: worker.busy == 0, 20, "all is settled")
    assert not worker.crashed.done()


async def test_a_suspect_runs_with_nothing_beside_it_and_leaves_no_mark(database_url: str) -> None:
    running: set[str] = set()
    beside: dict[str, set[str]] = {}
    marks: dict[str, int] = {}
    handlers = Handlers()
    late = [delivery_for("jobs", job(f"late {number}")) for number in range(5)]

    @handlers.on("jobs")
    async def handle(asked: Job) -> None:
        running.add(asked.id)
        beside[asked.id] = running - {asked.id}
        if asked.id == "s1":
            worker.receive(late)
        for _ in range(5):  # time for others to begin beside it
            marks[asked.id] = len(await rows(database, schema.suspects))
        running.discard(asked.id)

    deliveries = [
        again(job("s1")),
        *(delivery_for("jobs", job(f"n{number}")) for number in range(10)),
        again(job("s2")),
    ]
    async with working(database_url, handlers) as (database, worker, consumer):
        await settled(worker, deliveries)

        assert await rows(database, schema.suspects) == []
        assert len(await rows(database, schema.inbox)) == 17
    assert beside["s1"] == beside["s2"] == set()
    assert not any({"s1", "s2"} & others for others in beside.values())
    assert marks["s1"] == marks["s2"] == 1
    assert len(consumer.settled) == 17


async def test_a_message_that_has_killed_three_workers_is_parked_and_not_run(database_url: str) -> None:
    calls: list[str] = []
    killer, neighbour = job("killer"), job("neighbour")

    async with working(database_url, handling(calls.append, tx=True), instance="worker-9") as (database, worker, _):
        for instance in ("worker-2", "worker-3"):
            await alive(database, instance, seconds_ago=60)
        await marked(database, killer, "worker-2", "worker-3")
        await settled(worker, [again(killer), again(neighbour)])

        (letter,) = await rows(database, schema.dead_letters)
        assert await rows(database, schema.suspects) == []
    assert calls == ["neighbour"]
    assert (letter.reason, letter.message_id) == ("killed-workers", killer.id)
    assert "3 workers" in letter.error


async def test_marks_of_instances_that_live_or_stopped_in_order_do_not_count(database_url: str) -> None:
    calls: list[str] = []
    asked = job("a")

    async with working(database_url, handling(calls.append, tx=True), instance="worker-9") as (database, worker, _):
        await alive(database, "worker-2", seconds_ago=0)
        await marked(database, asked, "worker-2", "worker-3", "worker-4")
        worker.receive([again(asked)])
        await wait_until(lambda: worker.busy == 1)
        await alive(database, "worker-2", seconds_ago=-0.1)  # it beats again
        await wait_until(lambda: worker.busy == 0)

        assert len(await rows(database, schema.inbox)) == 1
        assert await rows(database, schema.dead_letters) == []
        assert await rows(database, schema.suspects) == []
    assert calls == ["a"]


async def test_a_suspect_that_is_done_already_is_only_acknowledged(database_url: str) -> None:
    calls: list[str] = []
    asked = job("a")

    async with working(database_url, handling(calls.append, tx=True)) as (_, worker, consumer):
        await handle_all(worker, [delivery_for("jobs", asked)])
        await settled(worker, [again(asked)])

    assert calls == ["a"]
    assert len(consumer.settled) == 2


async def test_an_undecided_suspect_is_left_to_another_worker_by_one_that_drains(database_url: str) -> None:
    asked = job("a")

    async with working(database_url, handling(lambda _: None, tx=True), PATIENT) as (database, worker, consumer):
        await alive(database, "worker-2", seconds_ago=0)
        await marked(database, asked, "worker-2")
        worker.receive([again(asked)])
        async with asyncio.timeout(20):
            await worker.drained()

        assert await rows(database, schema.inbox) == []
    assert consumer.settled == []


# -- what is counted


async def test_committed_outcomes_are_counted_for_the_metrics(sqlite_database_url: str) -> None:
    def handle(identifier: str) -> None:
        if identifier == "bad":
            raise RuntimeError("broken")

    policy = RetryPolicy(attempts=1, immediate=0)
    before = {outcome: counted(outcome) for outcome in ("done", "dead")}
    async with working(sqlite_database_url, handling(handle, tx=True, retry=policy)) as (_, worker, _):
        await handle_all(worker, [delivery_for("jobs", job(name)) for name in ("good", "bad", "fine")])

    assert counted("done") - before["done"] == 2
    assert counted("dead") - before["dead"] == 1


def counted(outcome: str) -> float:
    labels = {"endpoint": "jobs/job.asked", "outcome": outcome}
    return prometheus_client.REGISTRY.get_sample_value("hopline_handled_total", labels) or 0.0
