"""Nothing that one message or one answer of a handler can be stops a worker, or touches another message.

A worker with two queues gets three good messages on each and an odd one between them: everything that AMQP admits as
a delivery, everything that a handler can return or raise. Whatever it is, the process lives, the good ones are done,
and the odd one has exactly one visible end: done, parked, or scheduled again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hopline import amqp, schema
from hopline.amqp.properties import encode_properties
from hopline.broker import Delivery
from hopline.clock import new_id
from hopline.database import Database, Transaction
from hopline.errors import CommitUnknown, DatabaseContention, DatabaseUnavailable, Undecodable
from hopline.handlers import Handlers
from hopline.message import Envelope, message
from hopline.outbox import Outbox
from hopline.outcome import Dead, Defer, Done, Retry
from hopline.properties import describe, envelope_of
from hopline.retry import RetryPolicy
from hopline.settings import Settings
from hopline.worker import Worker
from hopline.worker.blame import IN_A_ROW
from tests.support.engine import ScriptedConsumer, delivery_for, envelope_for, rows
from tests.support.waiting import wait_until

ATTEMPTS = 3
POLICY = RetryPolicy(attempts=ATTEMPTS, first_seconds=0, jitter=0, immediate=0)
SETTINGS = Settings(probe_seconds=0.05, heartbeat_seconds=60)
RUNS = ATTEMPTS * 2 * IN_A_ROW
"""Most runs of a handler in a transaction, all of which but the last one of an attempt are undone."""
ROUNDS = 30
"""More than enough rounds of delivery for every retry."""


@message("odd.asked", key="id")
class Asked(msgspec.Struct):
    id: str
    does: str


@message("odd.told", key="key")
class Told(msgspec.Struct):
    key: str
    text: str = ""


class Strange(BaseException):
    """An exception that is no Exception, and has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Foreign(Exception):
    """An error whose chain cannot be shown in full."""


async def swallowing_a_cancelled_task() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task


async def cancelling_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


def chained(depth: int) -> BaseException:
    error: BaseException = Foreign("at the bottom")
    for number in range(depth):
        outer = Foreign(f"{number}")
        outer.__cause__ = error
        error = outer
    return error


def misread(**values: object) -> Told:
    """A message with values that its declared types do not have: a struct's constructor does not look."""
    told = Told("a")
    for name, value in values.items():
        setattr(told, name, value)
    return told


ACTS: dict[str, Callable[[], Any]] = {
    # answers
    "done 5": lambda: Done(cast(Any, 5)),
    "done None": lambda: Done(cast(Any, None)),
    "retry text": lambda: Retry(cast(Any, "60")),
    "retry None": lambda: Retry(cast(Any, None)),
    "retry inf": lambda: Retry(float("inf")),
    "retry nan": lambda: Retry(float("nan")),
    "retry -5": lambda: Retry(-5),
    "retry 1e18": lambda: Retry(1e18),
    "retry 10**400": lambda: Retry(10**400),
    "retry with bytes": lambda: Retry(0, cast(Any, b"x")),
    "defer inf": lambda: Defer(float("inf")),
    "dead None": lambda: Dead(cast(Any, None)),
    "dead exception": lambda: Dead(cast(Any, ValueError("x"))),
    "dead NUL": lambda: Dead("a\x00b", "c\x00d\ud800"),
    "dead long": lambda: Dead("r" * 10_000, "d" * 100_000),
    "dead empty": lambda: Dead(""),
    "note": lambda: Done("n\x00" * 1_000 + "\ud800"),
    "a class": lambda: Done,
    "a mock": lambda: SimpleNamespace(note="", outcome="done"),
    "an int": lambda: 5,
    "a generator": lambda: (one for one in (1, 2)),
    "too large": lambda: Told("a", "x" * (1 << 20)),
    "empty key": lambda: Told(""),
    "long key": lambda: Told("k" * 300),
    "NUL key": lambda: Told("a\x00"),
    "half key": lambda: Told("\ud800"),
    "half text": lambda: Told("a", "\ud800"),
    "wrong type": lambda: misread(text=7),
    "not JSON": lambda: misread(text=object()),
    "nan": lambda: misread(text=float("nan")),
    "nested lists": lambda: [[Told("a")]],
    "two outcomes": lambda: [Done(), Done()],
    "a message": lambda: Told("a"),
    "messages": lambda: [Told("a"), Told("b"), Done("two")],
    # exceptions
    "error": raising(ValueError("x\x00\ud800" * 5_000)),
    "stop iteration": raising(StopIteration()),
    "assertion": raising(AssertionError()),
    "memory": raising(MemoryError()),
    "recursion": raising(RecursionError()),
    "keyboard": raising(KeyboardInterrupt()),
    "exit": raising(SystemExit(3)),
    "generator exit": raising(GeneratorExit()),
    "cancelled": raising(asyncio.CancelledError()),
    "strange": raising(Strange()),
    "group": raising(ExceptionGroup("several", [ValueError("a"), DatabaseUnavailable("b")])),
    "base group": raising(BaseExceptionGroup("several", [SystemExit(1), Strange()])),
    "chain": raising(chained(200)),
    "message error": raising(Undecodable("by a handler")),
    "not our outage": raising(DatabaseUnavailable("of another database")),
    "not our contention": raising(DatabaseContention("of another database")),
    "not our commit": raising(CommitUnknown("of another database")),
    "os error": raising(ConnectionResetError()),
    "awaits a cancelled task": swallowing_a_cancelled_task,
    "cancels itself": cancelling_itself,
}
IN_TRANSACTION: dict[str, Callable[[Transaction], Any]] = {
    "a broken statement": lambda tx: tx.execute(sa.text("SELECT nothing FROM nowhere")),
    "a commit": lambda tx: tx.connection.commit(),
    "a rollback": lambda tx: tx.connection.rollback(),
    "a commit in SQL": lambda tx: tx.execute(sa.text("commit")),
    "a closed connection": lambda tx: tx.connection.close(),
    "a broken row": lambda tx: tx.execute(sa.insert(schema.pauses).values(queue="x", who=None, reason="", since=None)),
}

PAUSES = frozenset({"not our outage"})
"""Acts by which an effect says that what it needs is down: its queue pauses, and its neighbours wait."""


async def swallowing(tx: Transaction) -> None:
    """Meets an error of the database and goes on: on Postgres the transaction is over by then."""
    try:
        await tx.execute(sa.text("SELECT nothing FROM nowhere"))
    except Exception:  # noqa: BLE001 - that is what it does
        return


IN_TRANSACTION["a swallowed error"] = swallowing


@dataclass
class Ran:
    """Which handlers ran, how often, by the message's key."""

    calls: Counter[str] = field(default_factory=Counter)


def program(kind: str, ran: Ran) -> Handlers:
    """Handlers of one kind on the queues `odd` and `other`."""
    handlers = Handlers()

    async def act(asked: Asked, tx: Transaction | None) -> Any:
        ran.calls[asked.id] += 1
        if asked.does in IN_TRANSACTION and tx is not None:
            answer = IN_TRANSACTION[asked.does](tx)
        else:
            answer = ACTS.get(asked.does, lambda: None)()
        if asyncio.iscoroutine(answer):
            await answer
            return None
        return answer

    async def one(asked: Asked, tx: Transaction) -> Any:
        return await act(asked, tx)

    async def several(asked: list[Asked], tx: Transaction) -> Any:
        return [await act(each, tx) for each in asked]

    async def effect(asked: Asked) -> Any:
        return await act(asked, None)

    def blocking(asked: Asked) -> Any:
        ran.calls[asked.id] += 1
        answer = ACTS.get(asked.does, lambda: None)()
        if asyncio.iscoroutine(answer):
            answer.close()
            return None
        return answer

    kinds: dict[str, Callable[..., Any]] = {
        "transaction": one, "list": several, "effect": effect, "blocking": blocking,
    }  # fmt: skip
    for queue in ("odd", "other"):
        handlers.on(queue, retry=POLICY)(kinds[kind])
    return handlers


@dataclass
class Bench:
    """A running worker, and the way from its outbox back to it."""

    database: Database
    worker: Worker
    consumer: ScriptedConsumer
    ran: Ran

    async def deliver(self, deliveries: list[Delivery]) -> None:
        """Has the worker handle deliveries and every retry that follows from them."""
        for _ in range(ROUNDS):
            by_queue: dict[str, list[Delivery]] = {}
            for delivery in deliveries:
                by_queue.setdefault(delivery.queue, []).append(delivery)
            for several in by_queue.values():
                self.worker.receive(several)
            async with asyncio.timeout(60):
                await self.worker.drained()
            assert not self.worker.crashed.done(), self.worker.crashed.exception()
            assert self.worker.busy == 0
            assert set(map(id, deliveries)) <= set(map(id, self.consumer.settled))
            deliveries = await self.due()
            if not deliveries:
                return
        raise AssertionError("it goes round for ever")

    async def worker_receives(self, deliveries: list[Delivery]) -> None:
        """One round, without waiting until acknowledgements are certain."""
        settled = len(self.consumer.settled)
        self.worker.receive(deliveries)
        await wait_until(lambda: len(self.consumer.settled) == settled + len(deliveries))

    async def due(self) -> list[Delivery]:
        """The sends that are due, as deliveries; the rest is left scheduled."""
        found: list[Delivery] = []
        async with self.database.transaction() as tx:
            query = sa.select(schema.outbox, schema.messages).join(
                schema.messages, schema.messages.c.id == schema.outbox.c.message_id
            )
            for row in await tx.rows(query.where(schema.outbox.c.next_at.is_not(None))):
                if row.due_at > datetime.now(UTC) or not row.destination:
                    continue
                await tx.execute(sa.update(schema.outbox).where(schema.outbox.c.id == row.id).values(next_at=None))
                envelope = Envelope(
                    row.message_id, row.type, row.version, row.key, row.correlation_id, row.cause_id, row.created_at,
                    row.body, row.headers, row.run, row.attempt, row.suspect,
                )  # fmt: skip
                found.append(delivery_for(row.destination, envelope))
        return found

    async def ends_of(self, identifier: str) -> list[str]:
        """The visible ends of a message."""
        waits = schema.outbox.c.next_at.is_not(None)
        parts = (("done", schema.inbox, sa.true()), ("parked", schema.dead_letters, sa.true()))
        found: list[str] = []
        for end, table, condition in (*parts, ("scheduled", schema.outbox, waits)):
            query = sa.select(sa.func.count()).where(table.c.message_id == identifier, condition)
            ((count,),) = await self.database.query(query)
            found += [end] * count
        return found

    async def count(self, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
        ((count,),) = await self.database.query(sa.select(sa.func.count()).select_from(table).where(*conditions))
        return int(count)


@asynccontextmanager
async def running(url: str, kind: str) -> AsyncIterator[Bench]:
    ran = Ran()
    handlers = program(kind, ran)
    database = Database(url)
    await database.create()
    database.riders.append(Outbox(limit=100_000, lease_seconds=30))
    worker = Worker(database, handlers, SETTINGS, instance="worker-1")
    consumer = ScriptedConsumer(prefetches=dict.fromkeys(handlers.queues(), 100))
    worker.attach(consumer)
    try:
        yield Bench(database, worker, consumer, ran)
    finally:
        await worker.abandon()
        await database.close()


def neighbours() -> list[Envelope]:
    return [envelope_for(Asked(new_id(), "well")) for _ in range(3)]


async def check_neighbours(bench: Bench, good: list[Envelope]) -> None:
    done = schema.inbox.c.message_id.in_([envelope.id for envelope in good])
    assert await bench.count(schema.inbox, done) == len(good)


@pytest.mark.parametrize("kind", ["transaction", "list", "effect", "blocking"])
async def test_whatever_a_handler_answers_or_raises_is_an_outcome_of_its_message(database_url: str, kind: str) -> None:
    """Every answer and exception, between neighbours, in a group and alone."""
    async with running(database_url, kind) as bench:
        for does in (*ACTS, *IN_TRANSACTION):
            if does in PAUSES and kind in ("effect", "blocking"):
                continue
            odd = envelope_for(Asked(new_id(), does))
            first, second = neighbours(), neighbours()
            group = [*(delivery_for("odd", e) for e in first), delivery_for("odd", odd)]
            await bench.deliver([*group, *(delivery_for("other", e) for e in second)])

            await check_neighbours(bench, first + second)
            ends = await bench.ends_of(odd.id)
            assert len(ends) == 1, (does, ends)
            assert bench.ran.calls[cast(Any, msgspec.json.decode(odd.body))["id"]] <= RUNS, does


@pytest.mark.parametrize("kind", ["effect", "blocking"])
async def test_an_effect_runs_at_most_as_often_as_its_policy_says(database_url: str, kind: str) -> None:
    async with running(database_url, kind) as bench:
        for does in ACTS.keys() - PAUSES:
            odd = envelope_for(Asked(new_id(), does))
            await bench.deliver([delivery_for("odd", odd)])

            assert 1 <= bench.ran.calls[cast(Any, msgspec.json.decode(odd.body))["id"]] <= ATTEMPTS, does


# -- deliveries

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=20),
    st.integers(0, 1 << 33).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    st.decimals(-1000, 1000, places=2, allow_nan=False).map(Decimal),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abx-", max_size=5), inner, max_size=3)
)
names = st.sampled_from(
    ["hopline-version", "hopline-key", "hopline-cause", "hopline-run", "hopline-attempt", "hopline-suspect", "x-death",
     "traceparent", "x-delivery-count", "", "note\x00"]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)  # fmt: skip
ids = st.one_of(
    st.builds(new_id),
    st.sampled_from(
        ["ffffffff-ffff-7fff-bfff-ffffffffffff", "e677d21f-dbff-7fff-bfff-ffffffffffff",
         "00000000-0000-7000-8000-000000000000", "order-1", "", "0199d2f1-0000-7000-8000-00000000000\x00"]
    ),
)  # fmt: skip
short = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
properties = st.builds(
    amqp.Properties,
    content_type=st.none() | short,
    content_encoding=st.none() | short,
    headers=st.none() | st.dictionaries(names, values, max_size=6),
    delivery_mode=st.none() | st.integers(0, 255),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | ids | short,
    reply_to=st.none() | short,
    expiration=st.none() | short,
    message_id=st.none() | ids,
    timestamp=st.none() | st.integers(0, (1 << 64) - 1),
    type=st.none() | st.sampled_from(["odd.asked", "odd.nobody", "x\x00y"]) | short,
    user_id=st.none() | short,
    app_id=st.none() | short,
)
raw_properties = properties.map(encode_properties) | st.binary(max_size=80)
bodies = st.one_of(
    st.binary(max_size=60),
    st.just(b'{"id":"a","does":"well"}'),
    st.just(b"[" * 5_000),
    st.just(b'{"id":"\\ud800","does":"well"}'),
    st.just(b'{"id":' + b"9" * 6_000 + b',"does":"well"}'),
)


strangers = st.tuples(st.sampled_from(["odd", "odd.dead"]), raw_properties, bodies, st.booleans())


def received(queue: str, raw: bytes, body: bytes, redelivered: bool) -> Delivery:
    """A delivery as the consumer makes it of what RabbitMQ sends."""
    got = amqp.Delivery(cast(Any, None), "tag", 1, redelivered, ("", queue), raw, body)
    return Delivery(queue, body, envelope_of(got), redelivered, "channel 1", lambda: describe(got))


async def test_whatever_a_stranger_sends_has_one_end_and_harms_no_neighbour(database_url: str) -> None:
    loop = asyncio.get_running_loop()
    async with running(database_url, "transaction") as bench:

        async def check(strange: list[tuple[str, bytes, bytes, bool]]) -> None:
            first, second = neighbours(), neighbours()
            odd = [received(*each) for each in strange]
            without_id = schema.dead_letters.c.message_id.is_(None)
            before = await bench.count(schema.dead_letters, without_id)
            for several in (
                [*(delivery_for("odd", e) for e in first), *(d for d in odd if d.queue == "odd")],
                [*(delivery_for("other", e) for e in second)],
                [d for d in odd if d.queue == "odd.dead"],
            ):
                if several:
                    await bench.deliver(several)
            await check_neighbours(bench, first + second)
            nameless = [delivery for delivery in odd if delivery.envelope is None]
            parked = await bench.count(schema.dead_letters, without_id) - before
            assert sum(not delivery.redelivered for delivery in nameless) <= parked <= len(nameless)
            for delivery in odd:
                if delivery.envelope is not None:
                    assert await bench.ends_of(delivery.envelope.id), delivery.envelope

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(
            st.lists(
                st.tuples(st.sampled_from(["odd", "odd.dead"]), raw_properties, bodies, st.booleans()),
                min_size=1,
                max_size=4,
            )
        )
        def check_all(strange: list[tuple[str, bytes, bytes, bool]]) -> None:
            asyncio.run_coroutine_threadsafe(check(strange), loop).result(120)

        await asyncio.to_thread(check_all)


async def test_equal_messages_of_strangers_are_as_many_as_were_delivered(database_url: str) -> None:
    raw = encode_properties(amqp.Properties(app_id="stranger"))

    async with running(database_url, "transaction") as bench:
        await bench.deliver([received("odd", raw, b"equal", False) for _ in range(10)])

        assert len(await rows(bench.database, schema.dead_letters)) == 10


async def test_a_strangers_message_that_comes_again_is_one_dead_letter(database_url: str) -> None:
    """Stored, and the channel lost before RabbitMQ had the acknowledgement: it comes again, with a header more."""
    raw = encode_properties(amqp.Properties(app_id="stranger"))
    again = encode_properties(amqp.Properties(app_id="stranger", headers={"x-delivery-count": 1}))

    async with running(database_url, "transaction") as bench:
        await bench.worker_receives([received("odd", raw, b"equal", False) for _ in range(3)])
        bench.consumer.lost.add("channel 1")
        for delivery in [received("odd", again, b"equal", True) for _ in range(3)]:
            await bench.worker_receives([msgspec.structs.replace(delivery, receipt="channel 2")])

        letters = await rows(bench.database, schema.dead_letters)
        assert len(letters) == 3
        assert all("delivered again" in letter.error for letter in letters)

        await bench.worker_receives([msgspec.structs.replace(delivery, receipt="channel 2")])
        assert len(await rows(bench.database, schema.dead_letters)) == 4, "a fourth one is another message"
