"""The numbers of AMQP 0-9-1 that this client speaks: frame kinds, method ids, reply codes and their names.

A method id is `class << 16 | method`, the four bytes with which a method frame's payload begins, so that one 32-bit
read tells which method it is. Only what RabbitMQ implements is here: no `basic.recover`, no transactions, no
`immediate`. The numbers come from the AMQP 0-9-1 specification and RabbitMQ's extensions to it (`connection.blocked`,
`basic.nack`, `confirm.select`).
"""

from typing import Final

PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"

FRAME_METHOD: Final = 1
FRAME_HEADER: Final = 2
FRAME_BODY: Final = 3
FRAME_HEARTBEAT: Final = 8
FRAME_END: Final = 0xCE
FRAME_OVERHEAD: Final = 8
"""Bytes of a frame that are not payload: kind, channel, size, end."""

FRAME_MAX_LOWEST: Final = 4096
"""The specification's frame-min-size: a peer may not negotiate less."""
FRAME_MAX: Final = 131_072
"""What this client asks for; RabbitMQ's own default. RabbitMQ 4.1 refuses clients that ask for less than 8192."""
CHANNEL_MAX: Final = 2047
"""What this client asks for; RabbitMQ's own default."""

BODY_BYTES_MAX: Final = 134_217_728
"""Largest body sent or accepted: RabbitMQ 3.x's own limit (4.x: 16 MiB by default). It bounds what one peer can make
this process hold for one message."""

CLASS_BASIC: Final = 60

CONNECTION_START: Final = 10 << 16 | 10
CONNECTION_START_OK: Final = 10 << 16 | 11
CONNECTION_SECURE: Final = 10 << 16 | 20
CONNECTION_TUNE: Final = 10 << 16 | 30
CONNECTION_TUNE_OK: Final = 10 << 16 | 31
CONNECTION_OPEN: Final = 10 << 16 | 40
CONNECTION_OPEN_OK: Final = 10 << 16 | 41
CONNECTION_CLOSE: Final = 10 << 16 | 50
CONNECTION_CLOSE_OK: Final = 10 << 16 | 51
CONNECTION_BLOCKED: Final = 10 << 16 | 60
CONNECTION_UNBLOCKED: Final = 10 << 16 | 61

CHANNEL_OPEN: Final = 20 << 16 | 10
CHANNEL_OPEN_OK: Final = 20 << 16 | 11
CHANNEL_FLOW: Final = 20 << 16 | 20
CHANNEL_FLOW_OK: Final = 20 << 16 | 21
CHANNEL_CLOSE: Final = 20 << 16 | 40
CHANNEL_CLOSE_OK: Final = 20 << 16 | 41

EXCHANGE_DECLARE: Final = 40 << 16 | 10
EXCHANGE_DECLARE_OK: Final = 40 << 16 | 11
EXCHANGE_DELETE: Final = 40 << 16 | 20
EXCHANGE_DELETE_OK: Final = 40 << 16 | 21
EXCHANGE_BIND: Final = 40 << 16 | 30
EXCHANGE_BIND_OK: Final = 40 << 16 | 31
EXCHANGE_UNBIND: Final = 40 << 16 | 40
EXCHANGE_UNBIND_OK: Final = 40 << 16 | 51

QUEUE_DECLARE: Final = 50 << 16 | 10
QUEUE_DECLARE_OK: Final = 50 << 16 | 11
QUEUE_BIND: Final = 50 << 16 | 20
QUEUE_BIND_OK: Final = 50 << 16 | 21
QUEUE_PURGE: Final = 50 << 16 | 30
QUEUE_PURGE_OK: Final = 50 << 16 | 31
QUEUE_DELETE: Final = 50 << 16 | 40
QUEUE_DELETE_OK: Final = 50 << 16 | 41
QUEUE_UNBIND: Final = 50 << 16 | 50
QUEUE_UNBIND_OK: Final = 50 << 16 | 51

BASIC_QOS: Final = 60 << 16 | 10
BASIC_QOS_OK: Final = 60 << 16 | 11
BASIC_CONSUME: Final = 60 << 16 | 20
BASIC_CONSUME_OK: Final = 60 << 16 | 21
BASIC_CANCEL: Final = 60 << 16 | 30
BASIC_CANCEL_OK: Final = 60 << 16 | 31
BASIC_PUBLISH: Final = 60 << 16 | 40
BASIC_RETURN: Final = 60 << 16 | 50
BASIC_DELIVER: Final = 60 << 16 | 60
BASIC_GET: Final = 60 << 16 | 70
BASIC_GET_OK: Final = 60 << 16 | 71
BASIC_GET_EMPTY: Final = 60 << 16 | 72
BASIC_ACK: Final = 60 << 16 | 80
BASIC_REJECT: Final = 60 << 16 | 90
BASIC_NACK: Final = 60 << 16 | 120

CONFIRM_SELECT: Final = 85 << 16 | 10
CONFIRM_SELECT_OK: Final = 85 << 16 | 11

METHOD_NAMES: Final[dict[int, str]] = {
    value: name.lower().replace("_", ".", 1).replace("_", "-")
    for name, value in dict(globals()).items()
    if isinstance(value, int)
    and name.startswith(("CONNECTION_", "EXCHANGE_", "QUEUE_", "BASIC_", "CONFIRM_", "CHANNEL_"))
    and name != "CHANNEL_MAX"
}
"""`BASIC_GET_OK` as `basic.get-ok`, the way RabbitMQ's own log and documentation write it."""

REPLY_SUCCESS: Final = 200
SYNTAX_ERROR: Final = 502
FRAME_ERROR: Final = 501
UNEXPECTED_FRAME: Final = 505
INTERNAL_ERROR: Final = 541
ACCESS_REFUSED: Final = 403

SHORT_STRING_BYTES_MAX: Final = 255
OCTET_MAX: Final = 255
SHORT_MAX: Final = 65_535
PORT_MAX: Final = 65_535


def method_name(method: int) -> str:
    """The name of a method id, or its two numbers when this client does not know it."""
    return METHOD_NAMES.get(method) or f"class {method >> 16} method {method & 0xFFFF}"
