"""The same random operations by pika and by this client leave two virtual hosts in the same state.

Each operation is one tuple; both sides answer it with one value, an outcome or the code of the error, and go on
with a new channel after an error, as AMQP demands. At the end everything that the broker holds is compared.
"""

import asyncio
import random
from typing import Any
from uuid import uuid4

import pika
import pika.exceptions
import pytest

from hopline import Node
from hopline.amqp import AMQPError, Channel, Connection, Outgoing, Properties, Published, connect
from tests.support.vhosts import create_vhost, delete_vhost

OPERATIONS = 200
Operation = tuple[Any, ...]
EXCHANGES = ("", "e1", "e2", "amq.topic", "missing")
QUEUES = ("q1", "q2", "q3", "quorum1", "missing")
KEYS = ("a", "a.b", "*.b", "#", "q1", "quorum1")
KINDS = ("direct", "topic", "fanout", "headers")


def random_properties(chance: random.Random) -> dict[str, Any]:
    possible: dict[str, Any] = {
        "content_type": "text/plain",
        "content_encoding": "identity",
        "headers": {
            "n": chance.randrange(-(2**40), 2**40),
            "s": "ü" * chance.randrange(9),
            "l": [1, "a", None],
            "t": {"x": True},
        },
        "delivery_mode": chance.choice((1, 2)),
        "priority": chance.randrange(10),
        "correlation_id": "c",
        "reply_to": "r",
        "expiration": "3600000",
        "message_id": f"m{chance.randrange(1000)}",
        "timestamp": chance.randrange(2**31),
        "type": "order.placed",
        "app_id": "tests",
    }
    return {name: value for name, value in possible.items() if chance.random() < 0.5}


def random_operation(chance: random.Random) -> Operation:
    exchange, queue, key = chance.choice(EXCHANGES), chance.choice(QUEUES), chance.choice(KEYS)
    body = bytes((chance.randrange(256),)) * chance.choice((0, 1, 100, 200_000))
    classic = chance.choice(QUEUES[:3])
    arguments = chance.choice(({}, {"x-max-length": 3, "x-overflow": "reject-publish"}, {"x-message-ttl": 3_600_000}))
    choices: list[tuple[int, Operation]] = [
        (2, ("declare_exchange", chance.choice(("e1", "e2")), chance.choice(KINDS), chance.random() < 0.8)),
        (1, ("delete_exchange", chance.choice(EXCHANGES[1:3]), chance.random() < 0.5)),
        (2, ("bind_exchange", chance.choice(EXCHANGES[1:]), chance.choice(EXCHANGES[1:]), key)),
        (1, ("unbind_exchange", chance.choice(EXCHANGES[1:]), chance.choice(EXCHANGES[1:]), key)),
        (3, ("declare_queue", classic, chance.random() < 0.8, arguments)),
        (2, ("declare_queue", "quorum1", True, {"x-queue-type": "quorum", "x-delivery-limit": 20})),
        (1, ("check_queue", queue)),
        (4, ("bind_queue", queue, exchange, key)),
        (1, ("unbind_queue", queue, exchange, key)),
        (1, ("purge_queue", classic)),
        (1, ("delete_queue", classic, chance.random() < 0.5)),
        (8, ("publish", exchange, key, random_properties(chance), body)),
        (8, ("publish", "", queue, random_properties(chance), body)),
        (4, ("take", queue, chance.choice(("ack", "requeue", "drop", "automatic")))),
    ]
    weights = [weight for weight, _ in choices]
    return chance.choices([operation for _, operation in choices], weights)[0]


class Ours:
    """The operations by this client."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: Channel | None = None

    async def run(self, operation: Operation) -> object:
        if self._channel is None or self._channel.closed:
            self._channel = await self._connection.channel()
            await self._channel.confirm_select()
        try:
            return await getattr(self, operation[0])(self._channel, *operation[1:])
        except AMQPError as error:
            return error.code

    async def declare_exchange(self, channel: Channel, name: str, kind: str, durable: bool) -> None:
        await channel.declare_exchange(name, kind, durable=durable)

    async def delete_exchange(self, channel: Channel, name: str, if_unused: bool) -> None:
        await channel.delete_exchange(name, if_unused=if_unused)

    async def bind_exchange(self, channel: Channel, destination: str, source: str, key: str) -> None:
        await channel.bind_exchange(destination, source, key)

    async def unbind_exchange(self, channel: Channel, destination: str, source: str, key: str) -> None:
        await channel.unbind_exchange(destination, source, key)

    async def declare_queue(self, channel: Channel, name: str, durable: bool, arguments: dict[str, Any]) -> str:
        return (await channel.declare_queue(name, durable=durable, arguments=arguments)).name

    async def check_queue(self, channel: Channel, name: str) -> str:
        return (await channel.declare_queue(name, passive=True)).name

    async def bind_queue(self, channel: Channel, queue: str, exchange: str, key: str) -> None:
        await channel.bind_queue(queue, exchange, key, {"x-match": "any"})

    async def unbind_queue(self, channel: Channel, queue: str, exchange: str, key: str) -> None:
        await channel.unbind_queue(queue, exchange, key, {"x-match": "any"})

    async def purge_queue(self, channel: Channel, queue: str) -> int:
        return await channel.purge_queue(queue)

    async def delete_queue(self, channel: Channel, queue: str, if_empty: bool) -> int:
        return await channel.delete_queue(queue, if_empty=if_empty)

    async def publish(
        self, channel: Channel, exchange: str, key: str, properties: dict[str, Any], body: bytes
    ) -> object:
        [outcome] = await channel.publish([Outgoing(exchange, key, Properties(**properties), body)])
        if outcome is Published.UNKNOWN:
            assert channel.close_reason is not None
            return channel.close_reason.code
        return outcome.value

    async def take(self, channel: Channel, queue: str, how: str) -> object:
        delivery = await channel.get(queue, no_ack=how == "automatic")
        if delivery is None:
            return None
        if how == "ack":
            channel.ack(delivery.delivery_tag)
        elif how == "requeue":
            channel.nack(delivery.delivery_tag, requeue=True)
        elif how == "drop":
            channel.reject(delivery.delivery_tag, requeue=False)
        fields = {name: getattr(delivery.properties, name) for name in ("message_id", "type", "priority", "headers")}
        return delivery.body, delivery.exchange, delivery.routing_key, delivery.redelivered, fields


class Pikas:
    """The operations by pika."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel: Any = None

    def run_all(self, operations: list[Operation]) -> list[object]:
        answers = [self.run(operation) for operation in operations]
        self._connection.close()
        return answers

    def run(self, operation: Operation) -> object:
        if self._channel is None or self._channel.is_closed:
            self._channel = self._connection.channel()
            self._channel.confirm_delivery()
        try:
            return getattr(self, operation[0])(self._channel, *operation[1:])
        except pika.exceptions.ChannelClosedByBroker as error:
            return error.reply_code

    def declare_exchange(self, channel: Any, name: str, kind: str, durable: bool) -> None:
        channel.exchange_declare(name, kind, durable=durable)

    def delete_exchange(self, channel: Any, name: str, if_unused: bool) -> None:
        channel.exchange_delete(name, if_unused=if_unused)

    def bind_exchange(self, channel: Any, destination: str, source: str, key: str) -> None:
        channel.exchange_bind(destination, source, key)

    def unbind_exchange(self, channel: Any, destination: str, source: str, key: str) -> None:
        channel.exchange_unbind(destination, source, key)

    def declare_queue(self, channel: Any, name: str, durable: bool, arguments: dict[str, Any]) -> object:
        return channel.queue_declare(name, durable=durable, arguments=arguments).method.queue

    def check_queue(self, channel: Any, name: str) -> object:
        return channel.queue_declare(name, passive=True).method.queue

    def bind_queue(self, channel: Any, queue: str, exchange: str, key: str) -> None:
        channel.queue_bind(queue, exchange, key, {"x-match": "any"})

    def unbind_queue(self, channel: Any, queue: str, exchange: str, key: str) -> None:
        channel.queue_unbind(queue, exchange, key, {"x-match": "any"})

    def purge_queue(self, channel: Any, queue: str) -> object:
        return channel.queue_purge(queue).method.message_count

    def delete_queue(self, channel: Any, queue: str, if_empty: bool) -> object:
        return channel.queue_delete(queue, if_empty=if_empty).method.message_count

    def publish(self, channel: Any, exchange: str, key: str, properties: dict[str, Any], body: bytes) -> object:
        try:
            channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties), mandatory=True)
        except pika.exceptions.UnroutableError:
            return "returned"
        except pika.exceptions.NackError:
            return "refused"
        return "confirmed"

    def take(self, channel: Any, queue: str, how: str) -> object:
        method, properties, body = channel.basic_get(queue, auto_ack=how == "automatic")
        if method is None:
            return None
        if how == "ack":
            channel.basic_ack(method.delivery_tag)
        elif how == "requeue":
            channel.basic_nack(method.delivery_tag, requeue=True)
        elif how == "drop":
            channel.basic_reject(method.delivery_tag, requeue=False)
        fields = {name: getattr(properties, name) for name in ("message_id", "type", "priority", "headers")}
        return body, method.exchange, method.routing_key, method.redelivered, fields


async def state_of(node: Node, vhost: str, url: str) -> dict[str, object]:
    """Exchanges, queues and bindings as rabbitmqctl lists them, and every message in order."""
    lists = {
        "exchanges": ("list_exchanges", "name", "type", "durable", "auto_delete", "internal", "arguments"),
        "queues": ("list_queues", "name", "durable", "auto_delete", "exclusive", "arguments"),
        "bindings": (
            "list_bindings",
            "source_name",
            "destination_name",
            "destination_kind",
            "routing_key",
            "arguments",
        ),
    }
    state: dict[str, object] = {}
    for name, (command, *columns) in lists.items():
        state[name] = sorted((await asyncio.to_thread(node.ctl, command, "-p", vhost, *columns)).splitlines())
    connection = await connect(url)
    for queue in QUEUES[:-1]:
        channel = await connection.channel()
        messages = []
        try:
            while (delivery := await channel.get(queue, no_ack=True)) is not None:
                messages.append((delivery.body, delivery.exchange, delivery.routing_key, delivery.properties))
        except AMQPError:
            continue
        state[f"messages in {queue}"] = messages
    await connection.close()
    return state


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_pika_and_this_client_leave_the_broker_in_the_same_state(rabbitmq: Node, seed: int) -> None:
    chance = random.Random(seed)
    operations = [random_operation(chance) for _ in range(OPERATIONS)]
    vhosts = [f"{name}-{uuid4().hex[:8]}" for name in ("ours", "pikas")]
    our_url, pikas_url = [create_vhost(rabbitmq, name) for name in vhosts]

    connection = await connect(our_url)
    ours = Ours(connection)
    our_answers = [await ours.run(operation) for operation in operations]
    await connection.close()
    pikas_answers = await asyncio.to_thread(lambda: Pikas(pikas_url).run_all(operations))

    for operation, our_answer, pikas_answer in zip(operations, our_answers, pikas_answers, strict=True):
        assert our_answer == pikas_answer, operation
    our_state = await state_of(rabbitmq, vhosts[0], our_url)
    assert our_state == await state_of(rabbitmq, vhosts[1], pikas_url)
    assert any(value for name, value in our_state.items() if name.startswith("messages"))
    assert {"confirmed", "returned", 404, 406} <= {answer for answer in our_answers if isinstance(answer, str | int)}
    for name in vhosts:
        delete_vhost(rabbitmq, name)
