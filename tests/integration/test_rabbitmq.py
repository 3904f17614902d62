"""The broker protocols on a real RabbitMQ node."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import msgspec
import pytest

from hopline import amqp
from hopline.broker import Delivery, Publish, Published
from hopline.errors import BrokerUnavailable, TopologyMismatch
from hopline.live import read_queues
from hopline.message import message
from hopline.node import Node
from hopline.rabbitmq import REBUILDS_BEFORE_TROUBLE, RabbitConsumer, RabbitPublisher, Receipt, Subscription
from hopline.topology import Topology, build
from tests.conftest import NodeFactory
from tests.support.engine import envelope_for
from tests.support.vhosts import create_vhost, delete_vhost
from tests.support.waiting import wait_until

TOPOLOGY = build([("apples", "fruit.picked"), ("pears", "fruit.picked")])


@message("fruit.picked", key="name")
class Picked(msgspec.Struct):
    name: str


@asynccontextmanager
async def publishing(url: str, topology: Topology = TOPOLOGY) -> AsyncIterator[RabbitPublisher]:
    publisher = RabbitPublisher(url, topology, name="test publish")
    publisher.start()
    try:
        await wait_until(lambda: publisher.ready)
        yield publisher
    finally:
        await publisher.stop()


@asynccontextmanager
async def consuming(
    url: str,
    receive: Callable[[list[Delivery]], None],
    queues: Sequence[str] = ("apples", "pears"),
    prefetch: int = 100,
) -> AsyncIterator[RabbitConsumer]:
    consumer = RabbitConsumer(
        url, TOPOLOGY, name="test consume", prefetches=dict.fromkeys(queues, prefetch), receive=receive
    )
    consumer.start()
    try:
        await wait_until(lambda: consumer.ready)
        yield consumer
    finally:
        await consumer.stop()


def picked(count: int, *, exchange: str = "hopline", routing_key: str = "fruit.picked") -> list[Publish]:
    return [Publish(exchange, routing_key, envelope_for(Picked(str(number)))) for number in range(count)]


async def unacked(url: str, node: Node, queue: str) -> int | None:
    readings = await read_queues(url, node.management_url, [queue])
    return readings[queue].unacked if queue in readings else None


async def test_a_message_that_amqp_cannot_carry_holds_up_no_other(broker_url: str) -> None:
    batch = picked(7)
    batch[2] = Publish("hopline", "fruit.picked", batch[2].envelope.changed(headers={"note": "n" * 200_000}))
    batch[5] = Publish("hopline", "x" * 300, batch[5].envelope)

    async with publishing(broker_url) as publisher:
        outcomes = await publisher.publish(batch, timeout_seconds=10)

    odd = [number for number, outcome in enumerate(outcomes) if outcome is Published.UNSENDABLE]
    assert odd == [2, 5]
    assert outcomes.count(Published.CONFIRMED) == 5


async def test_a_message_arrives_as_it_was_sent(broker_url: str) -> None:
    received: list[Delivery] = []
    (sent,) = picked(1)

    async with publishing(broker_url) as publisher, consuming(broker_url, received.extend, ["apples"]):
        outcomes = await publisher.publish([sent], timeout_seconds=10)
        await wait_until(lambda: bool(received))

    assert outcomes == [Published.CONFIRMED]
    (delivery,) = received
    assert delivery.envelope is not None
    assert (delivery.envelope.id, delivery.envelope.key, delivery.body) == (sent.envelope.id, "0", sent.envelope.body)
    assert not delivery.redelivered
    assert delivery.describe()["message_id"] == sent.envelope.id


async def test_an_unroutable_message_is_returned_and_the_others_are_not(broker_url: str) -> None:
    batch = picked(2) + picked(1, exchange="hopline.to", routing_key="nowhere") + picked(1)

    async with publishing(broker_url) as publisher:
        outcomes = await publisher.publish(batch, timeout_seconds=10)

    assert outcomes == [Published.CONFIRMED, Published.CONFIRMED, Published.RETURNED, Published.CONFIRMED]


async def test_two_queues_settle_in_any_order(broker_url: str, rabbitmq: Node) -> None:
    waiting: list[Delivery] = []
    handled = 0

    async with publishing(broker_url) as publisher, consuming(broker_url, waiting.extend) as consumer:
        await publisher.publish(picked(300), timeout_seconds=10)
        while handled < 600:
            await wait_until(partial(_at_least, waiting, min(150, 600 - handled)))
            batch = [one for one in waiting if one.queue == "pears"][::-1] + [
                one for one in waiting if one.queue == "apples"
            ]
            waiting.clear()
            handled += len(batch)
            for start in range(0, len(batch), 7):
                consumer.settle(batch[start : start + 7])
        await wait_until(lambda: _empty(broker_url, rabbitmq), 15)

        assert consumer.reconnects == 0


def _at_least(items: list[Delivery], count: int) -> bool:
    return len(items) >= count


async def _empty(url: str, node: Node) -> bool:
    readings = await read_queues(url, node.management_url, ["apples", "pears"])
    return all(reading.is_empty for reading in readings.values())


async def test_what_was_not_settled_is_delivered_again(broker_url: str) -> None:
    first: list[Delivery] = []
    again: list[Delivery] = []

    async with publishing(broker_url) as publisher:
        async with consuming(broker_url, first.extend, ["apples"]) as consumer:
            await publisher.publish(picked(2), timeout_seconds=10)
            await wait_until(lambda: len(first) == 2)
            consumer.settle(first[1:])
        assert not consumer.owns(first[0])
        async with consuming(broker_url, again.extend, ["apples"]):
            await wait_until(lambda: bool(again))

    assert [one.envelope and one.envelope.key for one in again] == ["0"]
    assert again[0].redelivered


async def test_a_queue_with_other_arguments_stops_with_an_explanation(broker_url: str) -> None:
    connection = await amqp.connect(broker_url)
    channel = await connection.channel()
    await channel.declare_queue("apples", arguments={"x-queue-type": "quorum"})
    await connection.close()

    publisher = RabbitPublisher(broker_url, TOPOLOGY, name="test")
    publisher.start()
    try:
        with pytest.raises(TopologyMismatch, match="delete_queue apples") as mismatch:
            await asyncio.wait_for(publisher.failed, 10)
    finally:
        await publisher.stop()
    assert mismatch.value.name == "apples"


async def test_a_queue_deleted_under_a_consumer_is_made_and_consumed_again(broker_url: str) -> None:
    received: list[Delivery] = []

    async with publishing(broker_url) as publisher, consuming(broker_url, received.extend, ["apples"]) as consumer:
        connection = await amqp.connect(broker_url)
        await (await connection.channel()).delete_queue("apples")
        await connection.close()
        await wait_until(lambda: consumer.remade == 1 and consumer.ready)

        await publisher.publish(picked(1), timeout_seconds=10)
        await wait_until(lambda: bool(received))
        assert consumer.reconnects == 0


async def test_after_the_loss_of_the_broker_publishes_are_unknown_and_everything_comes_back(
    rabbitmq_node: NodeFactory,
) -> None:
    node = rabbitmq_node()
    received: list[Delivery] = []

    async with publishing(node.url) as publisher, consuming(node.url, received.extend, ["apples"]) as consumer:
        await publisher.publish(picked(1), timeout_seconds=10)
        await wait_until(lambda: len(received) == 1)
        await asyncio.to_thread(node.kill)
        outcomes = await publisher.publish(picked(3), timeout_seconds=5)
        assert not publisher.ready
        assert publisher.trouble
        assert not consumer.owns(received[0])

        await asyncio.to_thread(node.start)
        await wait_until(lambda: publisher.ready and consumer.ready, 30)
        assert await publisher.publish(picked(1), timeout_seconds=10) == [Published.CONFIRMED]
        await wait_until(lambda: len(received) >= 3)  # the unsettled one again, and the new one

    assert outcomes == [Published.UNKNOWN] * 3


async def test_queues_are_read_with_and_without_the_management_api(broker_url: str, rabbitmq: Node) -> None:
    received: list[Delivery] = []

    async with publishing(broker_url) as publisher, consuming(broker_url, received.extend, ["apples"]):
        await publisher.publish(picked(2), timeout_seconds=10)
        await wait_until(lambda: len(received) == 2)
        await wait_until(lambda: _unacked_is(broker_url, rabbitmq, 2), 15)

        by_amqp = await read_queues(broker_url, "", ["apples", "pears", "absent"])

    assert set(by_amqp) == {"apples", "pears"}
    assert by_amqp["apples"].is_empty is None  # two deliveries are out, and AMQP cannot say so
    assert (by_amqp["pears"].ready, by_amqp["pears"].unacked) == (2, 0)


async def _unacked_is(url: str, node: Node, wanted: int) -> bool:
    return await unacked(url, node, "apples") == wanted


async def test_a_broker_that_does_not_answer_is_said_so() -> None:
    with pytest.raises(BrokerUnavailable, match="cannot be read"):
        await read_queues("amqp://guest:guest@127.0.0.1:9/", "", ["apples"])
    with pytest.raises(BrokerUnavailable, match="cannot be read"):
        await read_queues("amqp://guest:guest@127.0.0.1:9/", "http://guest:guest@127.0.0.1:9", ["apples"])


class Forgetful:
    """RabbitMQ knows no consumer of ours, though it said nothing, while `forget` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forget = True
        adjust = Subscription._adjust

        async def forgotten(subscription: Subscription, channel: amqp.Channel) -> None:
            if not self.forget:
                await adjust(subscription, channel)

        monkeypatch.setattr(Subscription, "_adjust", forgotten)


def watched(url: str, receive: Callable[[list[Delivery]], None], watchdog_seconds: float = 0.1) -> RabbitConsumer:
    return RabbitConsumer(
        url,
        TOPOLOGY,
        name="test consume",
        prefetches={"apples": 100, "pears": 100},
        receive=receive,
        watchdog_seconds=watchdog_seconds,
    )


async def test_a_consumer_that_the_broker_has_forgotten_is_made_again(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Delivery] = []
    memory = Forgetful(monkeypatch)
    consumer = watched(broker_url, received.extend)
    consumer.start()
    try:
        async with publishing(broker_url) as publisher:
            await wait_until(lambda: consumer.ready)
            memory.forget = False
            await publisher.publish(picked(1), timeout_seconds=10)

            await wait_until(lambda: len(received) == 2)  # one of each queue
    finally:
        await consumer.stop()

    assert consumer.rebuilds == 2  # one of each queue
    assert consumer.reconnects == 0


async def test_a_consumer_that_stays_forgotten_is_not_ready_until_it_is_well(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Delivery] = []
    memory = Forgetful(monkeypatch)
    consumer = watched(broker_url, received.extend)
    consumer.start()
    try:
        async with publishing(broker_url) as publisher:
            await wait_until(lambda: consumer.ready)
            await publisher.publish(picked(1), timeout_seconds=10)
            await wait_until(lambda: "delivers none" in consumer.trouble)
            rebuilds, ready = consumer.rebuilds, consumer.ready
            memory.forget = False

            await wait_until(lambda: consumer.ready and len(received) == 2)
    finally:
        await consumer.stop()

    assert rebuilds >= REBUILDS_BEFORE_TROUBLE
    assert not ready


async def test_a_consumer_that_is_busy_or_has_nothing_to_do_is_left_alone(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Delivery] = []
    looks: Counter[str] = Counter()
    given_nothing = Subscription._given_nothing

    async def counted(subscription: Subscription, connection: amqp.Connection, seconds: float) -> bool:
        looks[subscription.queue] += 1
        return await given_nothing(subscription, connection, seconds)

    monkeypatch.setattr(Subscription, "_given_nothing", counted)
    consumer = RabbitConsumer(
        broker_url,
        TOPOLOGY,
        name="test consume",
        prefetches={"apples": 1, "pears": 1},
        receive=received.extend,
        watchdog_seconds=0.05,
    )
    consumer.start()
    try:
        async with publishing(broker_url) as publisher:
            await wait_until(lambda: consumer.ready)
            await publisher.publish(picked(3, exchange="hopline.to", routing_key="apples"), timeout_seconds=10)
            await wait_until(lambda: len(received) == 1)  # the other two are ready, and it is busy with this one

            before = looks.copy()
            await wait_until(lambda: all(looks[queue] >= before[queue] + 5 for queue in ("apples", "pears")))
    finally:
        await consumer.stop()

    assert (consumer.rebuilds, consumer.reconnects) == (0, 0)


async def test_a_limit_stops_one_queue_probes_it_and_lets_it_flow_again(broker_url: str) -> None:
    received: list[Delivery] = []
    async with publishing(broker_url) as publisher, consuming(broker_url, received.extend) as consumer:
        consumer.limit("apples", 0)
        await wait_until(lambda: _consumers(broker_url, "apples", 0))
        await publisher.publish(picked(3, exchange="hopline.to", routing_key="apples"), timeout_seconds=10)
        await publisher.publish(picked(1, exchange="hopline.to", routing_key="pears"), timeout_seconds=10)
        await wait_until(lambda: [one.queue for one in received] == ["pears"])

        consumer.limit("apples", 1)
        await wait_until(lambda: len(received) == 2)
        probed = [one.queue for one in received]
        consumer.limit("apples", None)
        await wait_until(lambda: len(received) == 4)

    assert probed == ["pears", "apples"]


async def _consumers(broker_url: str, queue: str, count: int) -> bool:
    connection = await amqp.connect(broker_url)
    try:
        return (await (await connection.channel()).declare_queue(queue, passive=True)).consumers == count
    finally:
        await connection.close(5)


@asynccontextmanager
async def a_user(broker_url: str, node: Node, password: str = "s3cret") -> AsyncIterator[tuple[str, str]]:
    """A user with all rights on the virtual host: its name, and its URL with the password `s3cret`."""
    user = f"user-{uuid4().hex[:8]}"
    await asyncio.to_thread(node.ctl, "add_user", user, password)
    await allow(broker_url, node, user, read=".*")
    try:
        yield user, broker_url.replace("guest:guest", f"{user}:s3cret")
    finally:
        await asyncio.to_thread(node.ctl, "delete_user", user)


async def allow(broker_url: str, node: Node, user: str, *, read: str) -> None:
    vhost = amqp.parse_url(broker_url).vhost
    await asyncio.to_thread(node.ctl, "set_permissions", "-p", vhost, user, ".*", ".*", read)


async def test_a_queue_that_cannot_be_consumed_leaves_the_other_alone_and_is_consumed_when_it_can_be(
    broker_url: str, rabbitmq: Node
) -> None:
    # Given a user who may read every queue but one
    received: list[Delivery] = []
    async with publishing(broker_url) as publisher, a_user(broker_url, rabbitmq) as (user, url):
        await allow(broker_url, rabbitmq, user, read="^(?!apples$).*")
        consumer = watched(url, received.extend, watchdog_seconds=30)
        consumer.start()
        try:
            # When both queues have messages
            await publisher.publish(picked(1), timeout_seconds=10)

            # Then the other is handled, and this one is told with its reason
            await wait_until(lambda: [one.queue for one in received] == ["pears"])
            await wait_until(lambda: "the queue apples cannot be used: 403" in consumer.trouble)
            assert not consumer.ready
            assert list(consumer.queue_troubles()) == ["apples"]

            # And it is consumed when it may be, without a new connection
            await allow(broker_url, rabbitmq, user, read=".*")
            await wait_until(lambda: [one.queue for one in received] == ["pears", "apples"], 60)
            await wait_until(lambda: consumer.ready and not consumer.trouble)
            assert consumer.reconnects == 0
        finally:
            await consumer.stop()


async def test_a_channel_that_rabbitmq_closes_costs_one_queue_its_deliveries(broker_url: str) -> None:
    received: list[Delivery] = []
    async with publishing(broker_url) as publisher, consuming(broker_url, received.extend) as consumer:
        await publisher.publish(picked(1), timeout_seconds=10)
        await wait_until(lambda: len(received) == 2)
        of = {one.queue: one for one in received}
        receipt = of["apples"].receipt
        assert isinstance(receipt, Receipt)

        receipt.settlement.channel.ack(99)  # 406, unknown delivery tag
        await wait_until(lambda: not consumer.owns(of["apples"]))

        assert consumer.owns(of["pears"])
        await wait_until(lambda: [one.queue for one in received[2:]] == ["apples"])
        assert received[2].redelivered
        assert consumer.reconnects == 0


async def test_a_wrong_password_is_told_and_tried_again_until_it_is_right(broker_url: str, rabbitmq: Node) -> None:
    async with a_user(broker_url, rabbitmq, password="another") as (user, url):
        publisher = RabbitPublisher(url, TOPOLOGY, name="test")
        publisher.start()
        try:
            await wait_until(lambda: "refuses the login" in publisher.trouble)
            assert not publisher.ready
            assert "s3cret" not in publisher.trouble
            assert "does not help" not in publisher.trouble

            await asyncio.to_thread(rabbitmq.ctl, "change_password", user, "s3cret")

            await wait_until(lambda: publisher.ready, 30)
        finally:
            await publisher.stop()


async def test_a_virtual_host_that_is_missing_is_told_and_used_when_it_is_made(rabbitmq: Node) -> None:
    name = f"later-{uuid4().hex[:8]}"
    publisher = RabbitPublisher(rabbitmq.url.replace("%2F", name), TOPOLOGY, name="test")
    publisher.start()
    try:
        await wait_until(lambda: "refuses the virtual host" in publisher.trouble)

        await asyncio.to_thread(create_vhost, rabbitmq, name)

        await wait_until(lambda: publisher.ready, 30)
    finally:
        await publisher.stop()
        await asyncio.to_thread(delete_vhost, rabbitmq, name)
