"""Methods as frames: one function for each that this client sends, and the fields of those that it receives.

An encoder returns the complete frame, ready to be written. A decoder takes the payload after its four bytes of method
id. The layouts are those of the AMQP 0-9-1 specification, reserved fields as zeros, and of RabbitMQ's extensions. Hot
methods (`basic.publish`, `basic.ack`, `basic.deliver`) avoid everything but one precompiled struct.
"""

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from hopline.amqp import spec
from hopline.amqp.errors import DecodeError, EncodeError
from hopline.amqp.wire import (
    decode_short_string,
    decode_table,
    encode_table,
    long_string,
    short_string,
)

HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
FRAME_END: Final = b"\xce"

_pack_head = struct.Struct(">BHII").pack
_pack_settle = struct.Struct(">BHIIQBB").pack
_pack_content = struct.Struct(">BHIHHQ").pack
_pack_end_and_body = struct.Struct(">BBHI").pack
_pack_frame = struct.Struct(">BHI").pack
_ZERO_TICKET: Final = b"\x00\x00"


def method(channel: int, method_id: int, arguments: bytes = b"") -> bytes:
    """A method frame."""
    return _pack_head(spec.FRAME_METHOD, channel, 4 + len(arguments), method_id) + arguments + FRAME_END


def table(arguments: Mapping[str, object] | None) -> bytes:
    """A field table; None is an empty one."""
    if not arguments:
        return b"\x00\x00\x00\x00"
    try:
        return encode_table(arguments)
    except (AttributeError, TypeError, UnicodeEncodeError, struct.error) as error:
        raise EncodeError(f"an argument table has a value that AMQP cannot carry: {error}") from error


def _bits(*flags: bool) -> bytes:
    """Consecutive bits share bytes, the first in the lowest (section 4.2.5.2)."""
    return bytes((sum(1 << place for place, flag in enumerate(flags) if flag),))


# connection


def connection_start_ok(properties: Mapping[str, object], mechanism: str, response: bytes) -> bytes:
    arguments = table(properties) + short_string(mechanism) + long_string(response) + short_string("en_US")
    return method(0, spec.CONNECTION_START_OK, arguments)


def connection_tune_ok(channel_max: int, frame_max: int, heartbeat_seconds: int) -> bytes:
    return method(0, spec.CONNECTION_TUNE_OK, struct.pack(">HIH", channel_max, frame_max, heartbeat_seconds))


def connection_open(vhost: str) -> bytes:
    return method(0, spec.CONNECTION_OPEN, short_string(vhost) + b"\x00\x00")


def connection_close(code: int, text: str) -> bytes:
    return method(0, spec.CONNECTION_CLOSE, _close(code, text))


def connection_close_ok() -> bytes:
    return method(0, spec.CONNECTION_CLOSE_OK)


def _close(code: int, text: str) -> bytes:
    return struct.pack(">H", code) + short_string(text[:60]) + b"\x00\x00\x00\x00"


# channel


def channel_open(channel: int) -> bytes:
    return method(channel, spec.CHANNEL_OPEN, b"\x00")


def channel_close(channel: int, code: int, text: str) -> bytes:
    return method(channel, spec.CHANNEL_CLOSE, _close(code, text))


def channel_close_ok(channel: int) -> bytes:
    return method(channel, spec.CHANNEL_CLOSE_OK)


def channel_flow_ok(channel: int, *, active: bool) -> bytes:
    return method(channel, spec.CHANNEL_FLOW_OK, _bits(active))


# exchange


def exchange_declare(
    channel: int,
    name: str,
    kind: str,
    arguments: Mapping[str, object] | None,
    *,
    passive: bool,
    durable: bool,
    auto_delete: bool,
    internal: bool,
) -> bytes:
    flags = _bits(passive, durable, auto_delete, internal, False)
    fields = _ZERO_TICKET + short_string(name) + short_string(kind) + flags + table(arguments)
    return method(channel, spec.EXCHANGE_DECLARE, fields)


def exchange_delete(channel: int, name: str, *, if_unused: bool) -> bytes:
    return method(channel, spec.EXCHANGE_DELETE, _ZERO_TICKET + short_string(name) + _bits(if_unused))


def exchange_bind(
    channel: int, destination: str, source: str, routing_key: str, arguments: Mapping[str, object] | None
) -> bytes:
    names = short_string(destination) + short_string(source) + short_string(routing_key)
    return method(channel, spec.EXCHANGE_BIND, _ZERO_TICKET + names + b"\x00" + table(arguments))


def exchange_unbind(
    channel: int, destination: str, source: str, routing_key: str, arguments: Mapping[str, object] | None
) -> bytes:
    names = short_string(destination) + short_string(source) + short_string(routing_key)
    return method(channel, spec.EXCHANGE_UNBIND, _ZERO_TICKET + names + b"\x00" + table(arguments))


# queue


def queue_declare(
    channel: int,
    name: str,
    arguments: Mapping[str, object] | None,
    *,
    passive: bool,
    durable: bool,
    exclusive: bool,
    auto_delete: bool,
) -> bytes:
    flags = _bits(passive, durable, exclusive, auto_delete, False)
    return method(channel, spec.QUEUE_DECLARE, _ZERO_TICKET + short_string(name) + flags + table(arguments))


def queue_bind(
    channel: int, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, object] | None
) -> bytes:
    names = short_string(queue) + short_string(exchange) + short_string(routing_key)
    return method(channel, spec.QUEUE_BIND, _ZERO_TICKET + names + b"\x00" + table(arguments))


def queue_unbind(
    channel: int, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, object] | None
) -> bytes:
    names = short_string(queue) + short_string(exchange) + short_string(routing_key)
    return method(channel, spec.QUEUE_UNBIND, _ZERO_TICKET + names + table(arguments))


def queue_purge(channel: int, queue: str) -> bytes:
    return method(channel, spec.QUEUE_PURGE, _ZERO_TICKET + short_string(queue) + b"\x00")


def queue_delete(channel: int, queue: str, *, if_unused: bool, if_empty: bool) -> bytes:
    fields = _ZERO_TICKET + short_string(queue) + _bits(if_unused, if_empty)
    return method(channel, spec.QUEUE_DELETE, fields)


# basic and confirm


def basic_qos(channel: int, prefetch: int) -> bytes:
    """Per consumer; global prefetch is refused by quorum queues and by RabbitMQ 4.3."""
    if not 0 <= prefetch <= spec.SHORT_MAX:
        raise EncodeError(f"a prefetch of {prefetch} does not fit into 16 bits")
    return method(channel, spec.BASIC_QOS, struct.pack(">IHB", 0, prefetch, 0))


def basic_consume(
    channel: int,
    queue: str,
    consumer_tag: str,
    arguments: Mapping[str, object] | None,
    *,
    no_ack: bool,
    exclusive: bool,
) -> bytes:
    flags = _bits(False, no_ack, exclusive, False)
    fields = _ZERO_TICKET + short_string(queue) + short_string(consumer_tag) + flags + table(arguments)
    return method(channel, spec.BASIC_CONSUME, fields)


def basic_cancel(channel: int, consumer_tag: str) -> bytes:
    return method(channel, spec.BASIC_CANCEL, short_string(consumer_tag) + b"\x00")


def basic_get(channel: int, queue: str, *, no_ack: bool) -> bytes:
    return method(channel, spec.BASIC_GET, _ZERO_TICKET + short_string(queue) + _bits(no_ack))


def basic_publish(channel: int, exchange: str, routing_key: str, *, mandatory: bool) -> bytes:
    names = short_string(exchange) + short_string(routing_key)
    return method(channel, spec.BASIC_PUBLISH, _ZERO_TICKET + names + _bits(mandatory))


def settlement(channel: int, method_id: int, delivery_tag: int, flags: int) -> bytes:
    """`basic.ack`, `basic.nack` or `basic.reject`: the three have one layout."""
    return _pack_settle(spec.FRAME_METHOD, channel, 13, method_id, delivery_tag, flags, spec.FRAME_END)


def confirm_select(channel: int) -> bytes:
    return method(channel, spec.CONFIRM_SELECT, b"\x00")


def content_head(channel: int, properties: bytes, body_bytes: int) -> bytes:
    """The content header frame."""
    head = _pack_content(spec.FRAME_HEADER, channel, 12 + len(properties), spec.CLASS_BASIC, 0, body_bytes)
    return head + properties + FRAME_END


def publish_head(publish: bytes, channel: int, properties: bytes, body_bytes: int) -> bytes:
    """`basic.publish`, its content header, and the head of its only body frame."""
    return (
        publish
        + _pack_content(spec.FRAME_HEADER, channel, 12 + len(properties), spec.CLASS_BASIC, 0, body_bytes)
        + properties
        + _pack_end_and_body(spec.FRAME_END, spec.FRAME_BODY, channel, body_bytes)
    )


def body_head(channel: int, payload_bytes: int) -> bytes:
    """What stands before a body frame's payload."""
    return _pack_frame(spec.FRAME_BODY, channel, payload_bytes)


def split_body(channel: int, body: bytes, payload_max: int) -> bytes:
    """A long body as its frames, without the last frame's end byte."""
    parts: list[bytes] = []
    for at in range(0, len(body), payload_max):
        piece = body[at : at + payload_max]
        parts += (body_head(channel, len(piece)), piece, FRAME_END)
    return b"".join(parts[:-1])


# what the server sends


class Close(NamedTuple):
    """`connection.close` and `channel.close`."""

    code: int
    text: str
    class_id: int
    method_id: int


class Start(NamedTuple):
    """`connection.start`."""

    major: int
    minor: int
    server_properties: dict[str, object]
    mechanisms: list[str]


class Tune(NamedTuple):
    """`connection.tune`; zero is "no limit"."""

    channel_max: int
    frame_max: int
    heartbeat_seconds: int


class Return(NamedTuple):
    """`basic.return`."""

    code: int
    text: str
    exchange: str
    routing_key: str


class GetOk(NamedTuple):
    """`basic.get-ok`."""

    delivery_tag: int
    redelivered: bool
    route: tuple[str, str]


def decode_close(fields: bytes) -> Close:
    code, at = _u16(fields, 0)
    text, at = decode_short_string(fields, at)
    class_id, at = _u16(fields, at)
    method_id, _ = _u16(fields, at)
    return Close(code, text, class_id, method_id)


def decode_start(fields: bytes) -> Start:
    properties, at = decode_table(fields, 2)
    size = int.from_bytes(fields[at : at + 4], "big")
    mechanisms = fields[at + 4 : at + 4 + size].decode("ascii", "replace").split()
    return Start(fields[0], fields[1], properties, mechanisms)


def decode_tune(fields: bytes) -> Tune:
    return Tune(*struct.unpack_from(">HIH", fields))


def decode_return(fields: bytes) -> Return:
    code, at = _u16(fields, 0)
    text, at = decode_short_string(fields, at)
    exchange, at = decode_short_string(fields, at)
    routing_key, _ = decode_short_string(fields, at)
    return Return(code, text, exchange, routing_key)


def decode_get_ok(fields: bytes) -> GetOk:
    delivery_tag, redelivered = struct.unpack_from(">QB", fields)
    exchange, at = decode_short_string(fields, 9)
    routing_key, _ = decode_short_string(fields, at)
    return GetOk(delivery_tag, bool(redelivered), (exchange, routing_key))


def decode_route(fields: bytes) -> tuple[str, str]:
    """Exchange and routing key, the two short strings at the end of `basic.deliver`."""
    exchange, at = decode_short_string(fields, 0)
    routing_key, end = decode_short_string(fields, at)
    if end != len(fields):
        raise DecodeError("basic.deliver does not end with its routing key")
    return exchange, routing_key


def decode_queue_declare_ok(fields: bytes) -> tuple[str, int, int]:
    name, at = decode_short_string(fields, 0)
    messages, consumers = struct.unpack_from(">II", fields, at)
    return name, messages, consumers


def decode_count(fields: bytes) -> int:
    """`queue.purge-ok` and `queue.delete-ok`."""
    return int(struct.unpack_from(">I", fields)[0])


def decode_text(fields: bytes) -> str:
    """`connection.blocked`, `basic.cancel`, `basic.consume-ok`, `basic.cancel-ok`: one short string."""
    return decode_short_string(fields, 0)[0]


def _u16(fields: bytes, at: int) -> tuple[int, int]:
    return int(struct.unpack_from(">H", fields, at)[0]), at + 2
