"""Publisher and consumer links on a scripted broker: what fails, what is told, and what goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from hopline import amqp
from hopline.broker import Publish, Published
from hopline.errors import BrokerUnavailable, TopologyMismatch, UsageError
from hopline.message import message
from hopline.rabbitmq import Link, RabbitConsumer, RabbitPublisher, link, subscription, waiting
from hopline.topology import build
from tests.support.engine import envelope_for
from tests.support.waiting import wait_until
from tests.unit.rabbitmq.broker import ScriptedBroker, ScriptedQueue

TOPOLOGY = build([("apples", "fruit.picked"), ("pears", "fruit.picked"), ("cores", "core.left")])
QUEUES = ("apples", "apples.dead", "pears", "pears.dead", "cores", "cores.dead")


@message("fruit.picked", key="name")
class Picked(msgspec.Struct):
    name: str


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> ScriptedBroker:
    for name in ("BACKOFF_FIRST_SECONDS", "REFUSED_FIRST_SECONDS"):
        monkeypatch.setattr(waiting, name, 0.001)
    monkeypatch.setattr(subscription, "SECOND_LOOK_SECONDS", 0.001)
    return ScriptedBroker(monkeypatch)


def consumer_of(
    url: str = "amqp://one/", queues: Sequence[str] = QUEUES, on_missing: link.OnMissing = link.unheard
) -> RabbitConsumer:
    return RabbitConsumer(
        url,
        TOPOLOGY,
        name="test",
        prefetches=dict.fromkeys(queues, 10),
        receive=lambda _: None,
        watchdog_seconds=30,
        on_missing=on_missing,
    )


@asynccontextmanager
async def running(*links: Link) -> AsyncIterator[None]:
    for one in links:
        one.start()
    try:
        yield
    finally:
        for one in links:
            await one.stop()


FAILURES = [
    amqp.ReplyTimeout("no answer within 10 seconds"),
    amqp.AccessRefused("ACCESS_REFUSED", code=403),
    amqp.NotFound("NOT_FOUND", code=404),
    amqp.ResourceLocked("RESOURCE_LOCKED", code=405),
    amqp.ChannelClosed("INTERNAL_ERROR", code=541),
    amqp.ContentTooLarge("too large", code=311),
    TimeoutError("slow"),
]


STEPS = [
    (operation, error)
    for operation in ("look", "declare", "bind", "consume")
    for error in FAILURES
    if not (operation == "look" and isinstance(error, amqp.NotFound))  # that is how a missing queue is found
]


@pytest.mark.parametrize(
    ("operation", "error"), STEPS, ids=lambda one: one if isinstance(one, str) else type(one).__name__
)
@pytest.mark.parametrize("queue", ["apples", "apples.dead"])
async def test_a_queue_that_fails_leaves_the_others_alone_and_is_used_when_it_works(
    broker: ScriptedBroker, operation: str, queue: str, error: Exception
) -> None:
    broker.fail(operation, queue, error)
    consumer = consumer_of()
    others = set(QUEUES) - {queue}

    async with running(consumer):
        await wait_until(lambda: all(broker.queues.get(one, ScriptedQueue()).consumers for one in others))
        await wait_until(lambda: broker.calls[operation, queue] > 2)
        await wait_until(lambda: set(consumer.queue_troubles()) == {queue})
        await wait_until(lambda: f"the queue {queue} cannot be used: " in consumer.trouble)  # the link is open
        assert str(error)[:20] in consumer.trouble
        assert not consumer.ready
        assert consumer.state()["connected"]

        broker.fail(operation, queue, None)
        await wait_until(lambda: consumer.ready)
        assert consumer.trouble == ""
        assert len(broker.logins) == 1


async def test_a_message_of_a_queue_that_is_not_declared_is_held_back_and_others_are_sent(
    broker: ScriptedBroker,
) -> None:
    # Given a queue that cannot be made, and another one of the same type that is there
    broker.fail("declare", "pears", amqp.AccessRefused("no", code=403))
    publisher = RabbitPublisher("amqp://one/", TOPOLOGY, name="test")
    batch = [
        Publish("hopline", "fruit.picked", envelope_for(Picked("1"))),
        Publish("hopline", "core.left", envelope_for(Picked("2"))),
        Publish("hopline.to", "pears", envelope_for(Picked("3"))),
        Publish("hopline.to", "apples", envelope_for(Picked("4"))),
    ]

    async with running(publisher):
        # When messages are published
        await wait_until(lambda: publisher.ready)
        outcomes = await publisher.publish(batch, timeout_seconds=1)

        # Then what it would not get is not sent to the other either
        assert outcomes == [Published.REFUSED, Published.CONFIRMED, Published.REFUSED, Published.CONFIRMED]
        assert [one.routing_key for one in broker.published] == ["core.left", "apples"]
        assert "the queue pears cannot be used" in publisher.trouble

        # And it is sent when the queue is made
        broker.fail("declare", "pears", None)
        await wait_until(lambda: not publisher.trouble)
        assert await publisher.publish(batch, timeout_seconds=1) == [Published.CONFIRMED] * 4


async def test_nothing_is_published_before_confirms_are_selected(broker: ScriptedBroker) -> None:
    broker.gate.clear()
    publisher = RabbitPublisher("amqp://one/", TOPOLOGY, name="test")
    batch = [Publish("hopline", "core.left", envelope_for(Picked("1")))]

    async with running(publisher):
        await wait_until(
            lambda: broker.calls["bind", "pears"] > 0 and len(broker.connections[0].channels) > len(QUEUES)
        )
        assert not publisher.ready
        assert await publisher.publish(batch, timeout_seconds=1) == [Published.UNKNOWN]

        broker.gate.set()
        await wait_until(lambda: publisher.ready)
        assert await publisher.publish(batch, timeout_seconds=1) == [Published.CONFIRMED]


REFUSALS = [
    (amqp.AuthenticationFailed("ACCESS_REFUSED - Login was refused", code=403), "refuses the login"),
    (amqp.NotAllowed("NOT_ALLOWED - vhost x not found", code=530), "refuses the virtual host"),
    (amqp.InvalidPath("bad path", code=402), "refuses the virtual host"),
    (amqp.TLSFailed("certificate verify failed"), "no TLS connection"),
    (amqp.ConnectFailed("one:5672 cannot be reached"), "cannot connect to RabbitMQ"),
    (amqp.ConnectTimeout("one:5672 did not answer"), "cannot connect to RabbitMQ"),
    (amqp.ProtocolError("no AMQP"), "cannot connect to RabbitMQ"),
    (amqp.ConnectionClosedByServer("INTERNAL_ERROR", code=541), "cannot connect to RabbitMQ"),
    (amqp.UsageError("the certificate files cannot be used"), "cannot connect to RabbitMQ"),
    (OSError("unreachable"), "cannot connect to RabbitMQ"),
    (TimeoutError("slow"), "cannot connect to RabbitMQ"),
]


@pytest.mark.parametrize(("error", "told"), REFUSALS, ids=lambda value: type(value).__name__)
async def test_a_login_that_fails_is_told_and_tried_again(broker: ScriptedBroker, error: Exception, told: str) -> None:
    broker.refused["one"] = error
    publisher = RabbitPublisher("amqp://app:s3cret@one/", TOPOLOGY, name="test")

    async with running(publisher):
        await wait_until(lambda: len(broker.logins) > 2)
        assert told in publisher.trouble
        assert "does not help" not in publisher.trouble
        assert "s3cret" not in publisher.trouble
        assert (publisher.ready, publisher.failed.done(), publisher.reconnects) == (False, False, 0)

        del broker.refused["one"]
        await wait_until(lambda: publisher.ready)
        assert publisher.trouble == ""


@pytest.mark.parametrize("operation", ["exchange", "look", "declare", "bind", "consume"])
async def test_a_connection_that_ends_at_any_step_is_made_again(broker: ScriptedBroker, operation: str) -> None:
    name = "hopline" if operation == "exchange" else "pears"
    broker.fail(operation, name, amqp.ConnectionClosedByServer("INTERNAL_ERROR", code=541))
    consumer = consumer_of()

    async with running(consumer):
        await wait_until(lambda: len(broker.logins) > 2)
        assert not consumer.failed.done()
        assert "INTERNAL_ERROR" in consumer.trouble

        broker.fail(operation, name, None)
        await wait_until(lambda: consumer.ready)


async def test_other_arguments_stop_the_link_with_the_explanation(broker: ScriptedBroker) -> None:
    broker.fail("declare", "pears", amqp.PreconditionFailed("inequivalent arg", code=406))
    consumer = consumer_of()

    async with running(consumer):
        with pytest.raises(TopologyMismatch, match="delete_queue pears"):
            await asyncio.wait_for(asyncio.shield(consumer.failed), 10)
        assert "pears" in consumer.trouble
        assert not consumer.ready


@pytest.mark.parametrize("fault", [ValueError("a fault"), asyncio.CancelledError(), KeyError("x")])
async def test_a_fault_of_ours_is_seen(broker: ScriptedBroker, fault: BaseException) -> None:
    assert not broker.queues

    async def on_missing(_queues: Sequence[str]) -> None:
        raise fault

    consumer = consumer_of(on_missing=on_missing)

    async with running(consumer):
        with pytest.raises(RuntimeError, match="has a fault and has ended"):
            await asyncio.wait_for(asyncio.shield(consumer.failed), 10)
        assert not consumer.ready
        assert "has a fault" in consumer.trouble


# several hosts


async def test_a_host_without_a_quorum_is_left_for_the_next_and_not_begun_with_again(broker: ScriptedBroker) -> None:
    broker.queues = {name: ScriptedQueue() for name in QUEUES}
    broker.without_quorum = {"one"}
    consumers = [consumer_of("amqp://one,two,three/") for _ in range(5)]

    async with running(*consumers):
        await wait_until(lambda: all(one.ready for one in consumers))

    assert broker.logins.count("one") <= len(consumers)


@pytest.mark.parametrize("first", ["one", "two", "three"])
async def test_a_link_begins_after_the_host_that_failed_last(broker: ScriptedBroker, first: str) -> None:
    consumer = consumer_of("amqp://one,two,three/")
    while consumer._hosts.current[0] != first:
        consumer._hosts.failed()

    async with running(consumer):
        await wait_until(lambda: consumer.ready)
        broker.connections[-1].end(amqp.ConnectionLost("gone"))
        await wait_until(lambda: consumer.reconnects == 1 and consumer.ready)

    assert broker.logins[0] == first
    assert broker.logins[1] != first


async def test_when_no_queue_works_any_more_another_host_is_tried(broker: ScriptedBroker) -> None:
    consumer = consumer_of("amqp://one,two/")

    async with running(consumer):
        await wait_until(lambda: consumer.ready)
        broken = broker.connections[-1].host
        broker.without_quorum = {broken}
        for queue in QUEUES:
            broker.cancel(queue)

        await wait_until(lambda: consumer.ready and broker.connections[-1].host != broken)
        assert consumer.reconnects == 1


async def test_publishes_without_any_confirm_give_the_host_up_and_one_bad_queue_does_not(
    broker: ScriptedBroker,
) -> None:
    publisher = RabbitPublisher("amqp://one,two/", TOPOLOGY, name="test")
    batch = [
        Publish("hopline", "core.left", envelope_for(Picked("1"))),
        Publish("hopline.to", "apples", envelope_for(Picked("2"))),
    ]
    unknown_to = {"apples"}
    broker.answer = lambda one: amqp.Published.UNKNOWN if one.routing_key in unknown_to else amqp.Published.CONFIRMED

    async with running(publisher):
        await wait_until(lambda: publisher.ready)
        outcomes = await publisher.publish(batch, timeout_seconds=1)
        assert outcomes == [Published.CONFIRMED, Published.UNKNOWN]
        assert publisher.state()["ready"] is True

        unknown_to.add("core.left")
        assert await publisher.publish(batch, timeout_seconds=1) == [Published.UNKNOWN] * 2
        assert publisher.state()["ready"] is False
        await wait_until(lambda: publisher.ready)

    assert sorted(broker.logins) == ["one", "two"]


# queues that are cancelled, missing, or made anew


class Told:
    def __init__(self) -> None:
        self.queues: list[str] = []

    async def __call__(self, queues: Sequence[str]) -> None:
        self.queues += queues


async def cancelled(
    broker: ScriptedBroker, *, exists: bool = True, messages: int = 0, others: int = 0
) -> tuple[list[str], RabbitConsumer]:
    """What is told as lost after RabbitMQ has cancelled the consumer of `apples`."""
    broker.queues = {name: ScriptedQueue(messages=1) for name in QUEUES}
    told = Told()
    consumer = consumer_of(on_missing=told)
    async with running(consumer):
        await wait_until(lambda: consumer.ready)
        there = broker.queues["apples"]
        broker.cancel("apples")
        if not exists:
            del broker.queues["apples"]
        there.messages, there.others = messages, others
        await wait_until(lambda: consumer.remade == 1 and consumer.ready)
        apples = consumer._subscriptions["apples"]
        await wait_until(lambda: not apples._doubtful)
    assert (len(broker.logins), consumer.reconnects) == (1, 0)
    return told.queues, consumer


async def test_a_cancelled_consumer_alone_is_made_again(broker: ScriptedBroker) -> None:
    await cancelled(broker, messages=3)

    assert {queue: broker.calls["consume", queue] for queue in QUEUES} == {
        queue: 2 if queue == "apples" else 1 for queue in QUEUES
    }


@pytest.mark.parametrize(("messages", "others"), [(3, 0), (0, 1), (3, 2)])
async def test_a_queue_that_holds_messages_or_that_others_consume_is_not_told_as_lost(
    broker: ScriptedBroker, messages: int, others: int
) -> None:
    told, _ = await cancelled(broker, messages=messages, others=others)

    assert told == []


async def test_a_queue_that_is_empty_and_that_nobody_consumes_was_made_anew(broker: ScriptedBroker) -> None:
    told, _ = await cancelled(broker)

    assert told == ["apples"]


async def test_a_queue_that_is_missing_is_told_once(broker: ScriptedBroker) -> None:
    told, _ = await cancelled(broker, exists=False)

    assert told == ["apples"]


async def test_a_queue_without_a_leader_says_that_it_is_empty_and_is_not_told_as_lost(broker: ScriptedBroker) -> None:
    broker.queues = {name: ScriptedQueue(messages=1) for name in QUEUES}
    told = Told()
    consumer = consumer_of(on_missing=told)

    async with running(consumer):
        await wait_until(lambda: consumer.ready)
        broker.queues["apples"].messages = 0
        broker.fail("consume", "apples", amqp.ReplyTimeout("no leader"))
        broker.cancel("apples")
        await wait_until(lambda: broker.calls["consume", "apples"] > 3)
        broker.queues["apples"].messages = 5
        broker.fail("consume", "apples", None)
        await wait_until(lambda: consumer.ready and not consumer._subscriptions["apples"]._doubtful)

    assert told.queues == []


async def test_a_missing_queue_that_cannot_be_told_is_not_declared_and_the_others_are(broker: ScriptedBroker) -> None:
    broker.queues = {name: ScriptedQueue() for name in QUEUES if name != "apples"}
    down = True

    async def on_missing(_queues: Sequence[str]) -> None:
        if down:
            raise BrokerUnavailable("the database is down")

    consumer = consumer_of(on_missing=on_missing)
    async with running(consumer):
        await wait_until(lambda: broker.calls["look", "apples"] > 2)
        assert "apples" not in broker.queues
        await wait_until(lambda: list(consumer.queue_troubles()) == ["apples"])
        await wait_until(lambda: "the database is down" in consumer.trouble)

        down = False
        await wait_until(lambda: consumer.ready)


async def test_a_limit_cancels_one_consumer_and_the_queue_stays_well(broker: ScriptedBroker) -> None:
    consumer = consumer_of()
    async with running(consumer):
        await wait_until(lambda: consumer.ready)
        consumer.limit("apples", 0)
        await wait_until(lambda: not broker.queues["apples"].consumers)
        assert consumer.ready

        consumer.limit("apples", None)
        await wait_until(lambda: len(broker.queues["apples"].consumers) == 1)
        await consumer.stop_taking()
        assert not any(broker.queues[queue].consumers for queue in QUEUES)


async def test_an_alarm_blocks_the_link_until_it_is_over(broker: ScriptedBroker) -> None:
    publisher = RabbitPublisher("amqp://one/", TOPOLOGY, name="test")
    async with running(publisher):
        await wait_until(lambda: publisher.ready)
        on_blocked = broker.connections[0].on_blocked
        assert on_blocked is not None

        on_blocked("low on memory")
        assert publisher.state()["ready"] is False
        assert publisher.trouble == f"{link.ALARM}low on memory"
        on_blocked(None)
        assert publisher.state()["ready"] is True
        assert publisher.trouble == ""


async def test_a_url_that_cannot_be_read_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="HOPLINE_BROKER_URL"):
        RabbitPublisher("amqp://app:s3cret/pw@host", TOPOLOGY, name="test")
