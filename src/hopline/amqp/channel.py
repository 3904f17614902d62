"""A channel: declarations, publishing with confirms, consuming and settling, and the channel's end.

A Channel is one generation: once it is over it stays over, and its delivery tags mean nothing to any other channel.
Calls that expect an answer are sent in order and answered in order; each has a deadline, after which the channel is
closed, since a late answer could not be told from the next one. A publish never raises for what the broker does:
every message ends as confirmed, returned, refused or unknown (see `confirms.py` for how).

Bounds: UNCONFIRMED_MAX publishes without an answer; BODY_BYTES_MAX a body; deliveries by the prefetch that the caller
sets.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Final, NamedTuple

from hopline.amqp import methods, spec
from hopline.amqp.confirms import Call, Confirms
from hopline.amqp.errors import (
    AMQPError,
    ChannelClosed,
    DecodeError,
    EncodeError,
    ProtocolError,
    ReplyTimeout,
    UsageError,
    channel_closed,
)
from hopline.amqp.messages import Delivery, Outgoing, Published, QueueState, Returned
from hopline.amqp.properties import decode_properties, encode_properties
from hopline.amqp.reader import Consumer, Inlet
from hopline.amqp.transport import Transport
from hopline.amqp.wire import short_string

UNCONFIRMED_MAX: Final = 32_768
"""Publishes of one channel that may wait for their confirm; further ones wait for room, under their deadline."""
_WRITE_BYTES: Final = 256 * 1024
"""Messages are joined up to about this size, then the event loop gets a turn."""
_CONTENT_BYTES: Final = 12
"""What stands before the properties in a content header: class, weight, body size."""
_MESSAGE_BYTES: Final = 80
"""About what a message takes beside its properties and body."""
_PREFIXES_CACHED_MAX: Final = 1024
"""`basic.publish` frames kept for exchange, routing key and mandatory; beyond this many the cache starts anew."""

Arguments = Mapping[str, object] | None


class _Reply(NamedTuple):
    method: int
    fields: bytes
    delivery: Delivery | None = None


class _Waiter(NamedTuple):
    methods: tuple[int, ...]
    reply: "asyncio.Future[_Reply]"
    requeue: bool = False
    """Whether a message that nobody waits for any more goes back to the queue."""


class Channel:
    """Made by `Connection.channel`. To be used from its event loop's thread; its calls may run concurrently."""

    def __init__(self, number: int, transport: Transport, reply_seconds: float) -> None:
        self.number = number
        self.on_return: Callable[[Returned], None] | None = None
        """Called for each message that the server returns, with its reason."""
        self._transport = transport
        self._reply_seconds = reply_seconds
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._reason: AMQPError | None = None
        self._ended = asyncio.Event()
        self._waiters: deque[_Waiter] = deque()
        self._confirms: Confirms | None = None
        self._flowing = True
        self._writing = asyncio.Lock()
        self._gate: asyncio.Future[None] | None = None
        self._prefixes: dict[tuple[str, str, bool], bytes] = {}
        self._tags = count(1)
        self._inlet = Inlet(
            self,
            self._on_method,
            self._on_confirm,
            self._on_content,
            self._on_writable,
            self._on_connection_over,
        )

    def __repr__(self) -> str:
        return f"<Channel {self.number}{' closed' if self._closed else ''}>"

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def close_reason(self) -> AMQPError | None:
        """Why it ended; None while it is open and after an orderly `close`."""
        return self._reason

    async def wait_closed(self) -> AMQPError | None:
        """Ends when the channel is over, and gives the reason. Never raises."""
        await self._ended.wait()
        return self._reason

    # exchanges

    async def declare_exchange(
        self,
        name: str,
        kind: str = "direct",
        *,
        durable: bool = True,
        auto_delete: bool = False,
        internal: bool = False,
        passive: bool = False,
        arguments: Arguments = None,
    ) -> None:
        """Creates the exchange if it is missing. `passive` only checks: NotFound if it is missing."""
        frame = methods.exchange_declare(
            self.number, name, kind, arguments,
            passive=passive, durable=durable, auto_delete=auto_delete, internal=internal,
        )  # fmt: skip
        await self._ask(frame, spec.EXCHANGE_DECLARE_OK)

    async def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        await self._ask(methods.exchange_delete(self.number, name, if_unused=if_unused), spec.EXCHANGE_DELETE_OK)

    async def bind_exchange(
        self, destination: str, source: str, routing_key: str = "", arguments: Arguments = None
    ) -> None:
        """Routes from `source` to `destination`; RabbitMQ's extension."""
        frame = methods.exchange_bind(self.number, destination, source, routing_key, arguments)
        await self._ask(frame, spec.EXCHANGE_BIND_OK)

    async def unbind_exchange(
        self, destination: str, source: str, routing_key: str = "", arguments: Arguments = None
    ) -> None:
        frame = methods.exchange_unbind(self.number, destination, source, routing_key, arguments)
        await self._ask(frame, spec.EXCHANGE_UNBIND_OK)

    # queues

    async def declare_queue(
        self,
        name: str,
        *,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        passive: bool = False,
        arguments: Arguments = None,
    ) -> QueueState:
        """Creates the queue if it is missing; with an empty name the server chooses one.

        `passive` only checks: NotFound if it is missing. PreconditionFailed if it exists with other arguments.
        """
        frame = methods.queue_declare(
            self.number, name, arguments,
            passive=passive, durable=durable, exclusive=exclusive, auto_delete=auto_delete,
        )  # fmt: skip
        reply = await self._ask(frame, spec.QUEUE_DECLARE_OK)
        return QueueState(*methods.decode_queue_declare_ok(reply.fields))

    async def bind_queue(self, queue: str, exchange: str, routing_key: str = "", arguments: Arguments = None) -> None:
        frame = methods.queue_bind(self.number, queue, exchange, routing_key, arguments)
        await self._ask(frame, spec.QUEUE_BIND_OK)

    async def unbind_queue(self, queue: str, exchange: str, routing_key: str = "", arguments: Arguments = None) -> None:
        frame = methods.queue_unbind(self.number, queue, exchange, routing_key, arguments)
        await self._ask(frame, spec.QUEUE_UNBIND_OK)

    async def purge_queue(self, queue: str) -> int:
        """Deletes the messages that are ready, and gives their number."""
        reply = await self._ask(methods.queue_purge(self.number, queue), spec.QUEUE_PURGE_OK)
        return methods.decode_count(reply.fields)

    async def delete_queue(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Deletes the queue, and gives how many messages were in it. Quorum queues do not know the conditions."""
        frame = methods.queue_delete(self.number, queue, if_unused=if_unused, if_empty=if_empty)
        reply = await self._ask(frame, spec.QUEUE_DELETE_OK)
        return methods.decode_count(reply.fields)

    # consuming

    async def qos(self, prefetch: int) -> None:
        """How many unacknowledged messages each consumer that starts from now on may have; 0 is no limit."""
        await self._ask(methods.basic_qos(self.number, prefetch), spec.BASIC_QOS_OK)

    async def consume(
        self,
        queue: str,
        on_deliveries: Callable[[list[Delivery]], None],
        *,
        on_cancel: Callable[[str], None] | None = None,
        consumer_tag: str = "",
        no_ack: bool = False,
        exclusive: bool = False,
        arguments: Arguments = None,
    ) -> str:
        """Starts a consumer and gives its tag.

        `on_deliveries` is called once a read with everything that came for this consumer, possibly before this call
        returns. It must not block. If it raises, the channel is closed, so that its messages return to the queue.
        `on_cancel` is called with the tag if the server ends the consumer: queue deleted, leader moved, or an
        acknowledgement too late on RabbitMQ 4.3. Set a prefetch first: without one, memory is bounded by the queue
        only.
        """
        self._require_open()
        tag = consumer_tag or f"{self.number}.{next(self._tags)}"
        raw_tag = short_string(tag)[1:]
        if raw_tag in self._inlet.consumers:
            raise UsageError(f"the consumer tag {tag!r} is in use on this channel")
        frame = methods.basic_consume(self.number, queue, tag, arguments, no_ack=no_ack, exclusive=exclusive)
        consumer = Consumer(tag, on_deliveries, on_cancel, self._on_callback_error)
        self._inlet.consumers[raw_tag] = consumer
        try:
            await self._ask(frame, spec.BASIC_CONSUME_OK)
        except asyncio.CancelledError:
            self._abandon(consumer, requeue=not no_ack)
            raise
        return tag

    async def cancel(self, consumer_tag: str) -> None:
        """Ends a consumer. What it was delivered before stays to be settled. Unknown tags are no error."""
        await self._ask(methods.basic_cancel(self.number, consumer_tag), spec.BASIC_CANCEL_OK)

    async def get(self, queue: str, *, no_ack: bool = False) -> Delivery | None:
        """One message, or None if the queue is empty. For tools and tests: a consumer is far cheaper."""
        frame = methods.basic_get(self.number, queue, no_ack=no_ack)
        reply = await self._ask(frame, spec.BASIC_GET_OK, spec.BASIC_GET_EMPTY, requeue=not no_ack)
        return reply.delivery

    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        """The message is done with; `multiple` includes all earlier ones. Raises ChannelClosed."""
        if self._closed:
            self._require_open()
        self._transport.send(methods.settlement(self.number, spec.BASIC_ACK, delivery_tag, multiple))

    def nack(self, delivery_tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        """Back to the queue, or dead-lettered. Raises ChannelClosed."""
        self._require_open()
        flags = multiple | requeue << 1
        self._transport.send(methods.settlement(self.number, spec.BASIC_NACK, delivery_tag, flags))

    def reject(self, delivery_tag: int, *, requeue: bool = True) -> None:
        """As `nack`, for one message. Raises ChannelClosed."""
        self._require_open()
        self._transport.send(methods.settlement(self.number, spec.BASIC_REJECT, delivery_tag, requeue))

    # publishing

    async def confirm_select(self) -> None:
        """Has the server confirm every publish from now on; needed before `publish`."""
        await self._ask(methods.confirm_select(self.number), spec.CONFIRM_SELECT_OK)
        if self._confirms is None:
            self._confirms = Confirms()

    async def publish(self, messages: Sequence[Outgoing], *, timeout_seconds: float = 10.0) -> list[Published]:
        """Publishes the messages in order and waits until the server has answered for all of them.

        Gives one outcome for each message. `timeout_seconds` covers everything: waiting while the connection is
        blocked or the peer does not read, and the confirms. What is not written when it passes is never written; it
        is UNKNOWN all the same. On a channel that is over, everything is UNKNOWN. Do not change the messages
        meanwhile.

        Raises EncodeError (nothing was sent) for a message that AMQP cannot carry, UsageError without
        `confirm_select`.
        """
        confirms = self._confirms
        if confirms is None:
            raise UsageError("publish needs confirm_select first: without confirms messages vanish unseen")
        parts, cuts = self._encode(messages)
        call = Call(messages)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                if not self._write_at_once(confirms, call, parts, cuts):
                    async with self._writing:
                        for end in cuts:
                            while call.written < end and not self._closed:
                                await self._write_some(confirms, call, parts, end)
                if call.pending:
                    call.waiter = self._loop.create_future()
                    await call.waiter
        return call.outcomes()

    def _encode(self, messages: Sequence[Outgoing]) -> tuple[list[bytes], list[int]]:
        """Three pieces of bytes for each message, and the indexes at which a write may end."""
        parts: list[bytes] = []
        append = parts.append
        cuts: list[int] = []
        number = self.number
        payload_max = self._transport.reader.frame_max - spec.FRAME_OVERHEAD
        gathered_bytes = 0
        for index, message in enumerate(messages):
            key = (message.exchange, message.routing_key, message.mandatory)
            prefix = self._prefixes.get(key) or self._prefix(key)
            properties = encode_properties(message.properties)
            body = message.body
            body_bytes = len(body)
            if 0 < body_bytes <= payload_max:
                append(methods.publish_head(prefix, number, properties, body_bytes))
                append(body)
                append(b"\xce")
            elif body_bytes <= spec.BODY_BYTES_MAX:
                append(prefix + methods.content_head(number, properties, body_bytes))
                append(methods.split_body(number, body, payload_max))
                append(b"\xce" if body_bytes else b"")
            else:
                raise EncodeError(f"a body of {body_bytes} bytes is above the limit of {spec.BODY_BYTES_MAX}")
            if len(properties) + _CONTENT_BYTES > payload_max:
                raise EncodeError(f"properties of {len(properties)} bytes do not fit into one frame")
            gathered_bytes += body_bytes + len(properties) + _MESSAGE_BYTES
            if gathered_bytes >= _WRITE_BYTES:
                cuts.append(index + 1)
                gathered_bytes = 0
        if gathered_bytes:
            cuts.append(len(messages))
        return parts, cuts

    def _prefix(self, key: tuple[str, str, bool]) -> bytes:
        if len(self._prefixes) >= _PREFIXES_CACHED_MAX:
            self._prefixes.clear()
        exchange, routing_key, mandatory = key
        prefix = methods.basic_publish(self.number, exchange, routing_key, mandatory=mandatory)
        self._prefixes[key] = prefix
        return prefix

    def _room(self, confirms: Confirms) -> int:
        """How many messages may be written now."""
        if self._closed or not self._flowing or not self._transport.writable:
            return 0
        return UNCONFIRMED_MAX - confirms.unconfirmed

    def _write_at_once(self, confirms: Confirms, call: Call, parts: list[bytes], cuts: list[int]) -> bool:
        """The usual case: everything fits into one write, and nobody waits in front."""
        if len(cuts) != 1 or self._writing.locked() or self._room(confirms) < cuts[0]:
            return False
        confirms.wrote(call, cuts[0])
        self._transport.send_content(b"".join(parts))
        return True

    async def _write_some(self, confirms: Confirms, call: Call, parts: list[bytes], end: int) -> None:
        """Waits for room, or writes up to message `end` and gives the event loop a turn."""
        room = self._room(confirms)
        if room <= 0:
            self._gate = self._loop.create_future()
            await self._gate
            return
        start = call.written
        end = min(end, start + room)
        confirms.wrote(call, end - start)
        self._transport.send_content(b"".join(parts[3 * start : 3 * end]))
        await asyncio.sleep(0)

    # the end

    async def close(self, timeout_seconds: float = 5.0) -> None:
        """Closes in order; acknowledgements made before are sent before. Idempotent. Never raises for the broker.

        Wait for publishes first: those without an answer become UNKNOWN.
        """
        if self._closed:
            return
        self._end(None, tell_server=True)
        waiter: asyncio.Future[_Reply] = self._loop.create_future()
        self._waiters.append(_Waiter((spec.CHANNEL_CLOSE_OK,), waiter))
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiter
        except (TimeoutError, AMQPError):
            return

    def _end(self, reason: AMQPError | None, *, tell_server: bool) -> None:
        """The channel is over. If the server does not know yet, the number stays taken until it answers."""
        if self._closed:
            return
        self._closed = True
        self._reason = reason
        for consumer in self._inlet.consumers.values():
            consumer.batch.clear()
        self._inlet.consumers.clear()
        if tell_server:
            self._inlet.discarding = True
            code = spec.INTERNAL_ERROR if reason else spec.REPLY_SUCCESS
            self._transport.send(methods.channel_close(self.number, code, reason.text if reason else ""))
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.reply.done():
                waiter.reply.set_exception(self._closed_error())
        if self._confirms is not None:
            self._confirms.lose()
        self._on_writable()
        self._ended.set()

    def _closed_error(self) -> AMQPError:
        return self._reason.again() if self._reason else ChannelClosed("the channel was closed by this client")

    def _require_open(self) -> None:
        if not self._closed:
            return
        if self._reason is None or isinstance(self._reason, ChannelClosed):
            raise self._closed_error()
        raise ChannelClosed(f"the channel ended with its connection: {self._reason.text}") from self._reason

    def _abandon(self, consumer: Consumer, *, requeue: bool) -> None:
        """Whoever started this consumer is gone: stops it and gives back what still comes."""
        if self._closed:
            return

        def give_back(deliveries: list[Delivery]) -> None:
            if requeue and not self._closed:
                for delivery in deliveries:
                    self.nack(delivery.delivery_tag)

        consumer.on_deliveries = give_back
        consumer.on_cancel = None
        nobody: asyncio.Future[_Reply] = self._loop.create_future()
        nobody.cancel()
        self._waiters.append(_Waiter((spec.BASIC_CANCEL_OK,), nobody))
        self._transport.send(methods.basic_cancel(self.number, consumer.tag))

    # asking and being told

    async def _ask(self, frame: bytes, *expected: int, requeue: bool = False) -> _Reply:
        """Sends a method and waits for its answer. Raises the channel's end, if that is the answer."""
        self._require_open()
        if len(frame) > self._transport.reader.frame_max:
            raise EncodeError(f"a method of {len(frame)} bytes does not fit into one frame")
        waiter = _Waiter(expected, self._loop.create_future(), requeue)
        self._waiters.append(waiter)
        self._transport.send(frame)
        try:
            async with asyncio.timeout(self._reply_seconds):
                return await waiter.reply
        except TimeoutError:
            reason = ReplyTimeout(f"no {spec.method_name(expected[0])} within {self._reply_seconds} seconds")
            self._end(reason, tell_server=True)
            raise reason.again() from None

    def _answer(self, reply: _Reply) -> None:
        if not self._waiters or reply.method not in self._waiters[0].methods:
            name = spec.method_name(reply.method)
            raise ProtocolError(f"the server sent {name}, which nobody asked for", code=503)
        waiter = self._waiters.popleft()
        if not waiter.reply.done():
            waiter.reply.set_result(reply)
        elif reply.delivery is not None and waiter.requeue:
            self.nack(reply.delivery.delivery_tag)

    def _on_method(self, method: int, fields: bytes) -> None:
        if method == spec.CHANNEL_CLOSE:
            close = methods.decode_close(fields)
            self._transport.send(methods.channel_close_ok(self.number))
            if not self._inlet.discarding:
                self._transport.reader.inlets.pop(self.number, None)
                self._end(channel_closed(*close), tell_server=False)
        elif method == spec.CHANNEL_CLOSE_OK and self._inlet.discarding:
            self._transport.reader.inlets.pop(self.number, None)
            if self._waiters:
                self._answer(_Reply(method, fields))
        elif self._inlet.discarding:
            return
        elif method == spec.BASIC_CANCEL:
            self._on_server_cancel(fields)
        elif method == spec.CHANNEL_FLOW:
            self._flowing = fields[0] & 1 == 1
            self._transport.send(methods.channel_flow_ok(self.number, active=self._flowing))
            self._on_writable()
        else:
            if method == spec.BASIC_CANCEL_OK:
                self._inlet.consumers.pop(fields[1 : 1 + fields[0]], None)
            self._answer(_Reply(method, fields))

    def _on_server_cancel(self, fields: bytes) -> None:
        consumer = self._inlet.consumers.pop(fields[1 : 1 + fields[0]], None)
        if consumer is not None and consumer.on_cancel is not None:
            try:
                consumer.on_cancel(consumer.tag)
            except Exception as error:  # noqa: BLE001 - the caller's code; it must not end the connection
                self._on_callback_error(error)

    def _on_confirm(self, tag: int, multiple: bool, refused: bool) -> None:
        if self._closed:
            return
        if self._confirms is None:
            raise ProtocolError("a confirm came on a channel without confirms", code=503)
        self._confirms.settle(tag, multiple=multiple, refused=refused)
        if self._gate is not None:
            self._on_writable()

    def _on_content(self, method: int, fields: bytes, properties: bytes, body: bytes) -> None:
        if method == spec.BASIC_GET_OK:
            got = methods.decode_get_ok(fields)
            delivery = Delivery(self, "", got.delivery_tag, got.redelivered, got.route, properties, body)
            self._answer(_Reply(method, fields, delivery))
            return
        info = methods.decode_return(fields)
        message_id: str | None
        try:
            message_id = decode_properties(properties).message_id
        except DecodeError:
            message_id = None
        message = None
        if self._confirms is not None:
            message = self._confirms.returned(info.exchange, info.routing_key, message_id, body)
        if self.on_return is not None:
            try:
                self.on_return(Returned(*info, message))
            except Exception as error:  # noqa: BLE001 - the caller's code; it must not end the connection
                self._on_callback_error(error)

    def _on_writable(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None and not gate.done():
            gate.set_result(None)

    def _on_connection_over(self, reason: AMQPError | None) -> None:
        self._end(reason, tell_server=False)
        for waiter in self._waiters:
            if not waiter.reply.done():
                waiter.reply.set_exception(self._closed_error())
        self._waiters.clear()

    def _on_callback_error(self, error: Exception) -> None:
        message = f"a callback of AMQP channel {self.number} raised; the channel is closed"
        self._loop.call_exception_handler({"message": message, "exception": error})
        self._end(ChannelClosed(f"a callback raised {type(error).__name__}"), tell_server=True)


async def open_channel(number: int, transport: Transport, reply_seconds: float) -> Channel:
    """Opens a channel under a number that is free."""
    channel = Channel(number, transport, reply_seconds)
    transport.reader.inlets[number] = channel._inlet  # noqa: SLF001 - the two are made together
    try:
        await channel._ask(methods.channel_open(number), spec.CHANNEL_OPEN_OK)  # noqa: SLF001
    except asyncio.CancelledError:
        channel._end(None, tell_server=True)  # noqa: SLF001
        raise
    return channel
