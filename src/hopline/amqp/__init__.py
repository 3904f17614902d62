"""An asyncio client of AMQP 0-9-1, made for RabbitMQ. Standard library only; it knows nothing of the rest of Hopline.

    connection = await connect("amqp://guest:guest@localhost/", name="orders")
    channel = await connection.channel()
    await channel.confirm_select()
    outcomes = await channel.publish([Outgoing("", "orders", Properties(delivery_mode=2), b"{}")])

Modules, lower ones first: `spec` (numbers), `errors`, `wire` (tables), `properties`, `messages`, `methods` (frames),
`confirms`, `reader` (incoming bytes), `transport` (the socket), `url`, `channel`, `connection`.

What it promises: every publish ends as confirmed, returned, refused or unknown, within its deadline; every delivery
tag belongs to one channel's life; every end of a channel or connection has a typed reason. It does not reconnect:
that is its owner's decision.
"""

from hopline.amqp.channel import UNCONFIRMED_MAX, Channel
from hopline.amqp.connection import Connection, connect
from hopline.amqp.errors import (
    AccessRefused,
    AMQPError,
    AuthenticationFailed,
    ChannelClosed,
    ConnectFailed,
    ConnectionClosed,
    ConnectionClosedByServer,
    ConnectionForced,
    ConnectionLost,
    ConnectTimeout,
    ContentTooLarge,
    DecodeError,
    EncodeError,
    HeartbeatTimeout,
    InvalidPath,
    InvalidURL,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    ProtocolError,
    ReplyTimeout,
    ResourceError,
    ResourceLocked,
    TLSFailed,
    UsageError,
)
from hopline.amqp.messages import Delivery, Outgoing, Published, QueueState, Returned, Settler
from hopline.amqp.properties import Properties
from hopline.amqp.spec import BODY_BYTES_MAX
from hopline.amqp.url import Address, parse_url
from hopline.amqp.wire import Exact

__all__ = [
    "BODY_BYTES_MAX",
    "UNCONFIRMED_MAX",
    "AMQPError",
    "AccessRefused",
    "Address",
    "AuthenticationFailed",
    "Channel",
    "ChannelClosed",
    "ConnectFailed",
    "ConnectTimeout",
    "Connection",
    "ConnectionClosed",
    "ConnectionClosedByServer",
    "ConnectionForced",
    "ConnectionLost",
    "ContentTooLarge",
    "DecodeError",
    "Delivery",
    "EncodeError",
    "Exact",
    "HeartbeatTimeout",
    "InvalidPath",
    "InvalidURL",
    "NotAllowed",
    "NotFound",
    "Outgoing",
    "PreconditionFailed",
    "Properties",
    "ProtocolError",
    "Published",
    "QueueState",
    "ReplyTimeout",
    "ResourceError",
    "ResourceLocked",
    "Returned",
    "Settler",
    "TLSFailed",
    "UsageError",
    "connect",
    "parse_url",
]
