"""Everything that this client raises, as one tree.

    AMQPError
    |- UsageError                 the caller's mistake; nothing was sent
    |  |- InvalidURL
    |  `- EncodeError             a value that AMQP cannot carry
    |- DecodeError                one message's properties are malformed; connection and channel are unharmed
    |- ConnectionClosed           the connection is over
    |  |- ConnectionLost          TCP ended without a word (kill -9, reset, network)
    |  |  |- HeartbeatTimeout     two heartbeats missed: half-open
    |  |  `- ConnectFailed        no connection was made
    |  |     |- ConnectTimeout
    |  |     `- TLSFailed         no TLS: certificate, host name or protocol
    |  |- ProtocolError           the peer sent something that is not AMQP 0-9-1
    |  `- ConnectionClosedByServer    connection.close
    |     |- AuthenticationFailed 403 during login
    |     |- ConnectionForced     320, an operator or a shutdown
    |     |- InvalidPath          402
    |     |- NotAllowed           530, the virtual host is missing or refused
    |     `- ResourceError        506
    `- ChannelClosed              the channel is over, its connection need not be
       |- ContentTooLarge         311
       |- AccessRefused           403
       |- NotFound                404
       |- ResourceLocked          405
       |- PreconditionFailed      406
       `- ReplyTimeout            no answer within the deadline

Every error has the server's `code` and `text`, the `class_id` and `method_id` that caused it (zeros if unknown), and
`advice`, one sentence on what to do.
"""

from typing import ClassVar, Self

from hopline.amqp.spec import method_name


class AMQPError(Exception):
    """Base of all. `text` is the server's own words where there are any."""

    advice: ClassVar[str] = "See the text."

    def __init__(self, text: str, *, code: int = 0, class_id: int = 0, method_id: int = 0) -> None:
        super().__init__(text, code, class_id, method_id)
        self.text = text
        self.code = code
        self.class_id = class_id
        self.method_id = method_id

    def __str__(self) -> str:
        code = f"{self.code} " if self.code else ""
        where = f" (in {method_name(self.class_id << 16 | self.method_id)})" if self.class_id else ""
        stop = "" if self.text.endswith((".", "!", "?")) and not where else "."
        return f"{code}{self.text}{where}{stop} {self.advice}"

    def again(self) -> Self:
        """A fresh copy to raise once more: an exception raised twice would collect tracebacks without bound."""
        return type(self)(self.text, code=self.code, class_id=self.class_id, method_id=self.method_id)


class UsageError(AMQPError):
    """The caller's mistake. Nothing was sent."""

    advice = "Correct the calling code."


class InvalidURL(UsageError, ValueError):
    """A connection URL that cannot be understood. The text never contains the password."""

    advice = "Write amqp://user:password@host:5672/vhost, percent-encoded."


class EncodeError(UsageError, ValueError):
    """A value that AMQP has no representation for."""

    advice = "Send only what AMQP tables and properties can carry."


class DecodeError(AMQPError):
    """One message's properties are malformed. Its body and delivery tag are usable, and so is the channel."""

    advice = "Park the message: its publisher wrote properties that AMQP does not allow."


class ConnectionClosed(AMQPError):
    """The connection is over."""

    advice = "Connect again."


class ConnectionLost(ConnectionClosed):
    """TCP ended without AMQP's close. What is unconfirmed is unknown, what is unacknowledged will be redelivered."""

    advice = "Connect again after a pause, to the next host if there are several."


class HeartbeatTimeout(ConnectionLost):
    """Nothing arrived for two heartbeat intervals: the connection is half-open or the server is stopped."""


class ConnectFailed(ConnectionLost):
    """No host could be reached."""

    advice = "Check that RabbitMQ runs at this address and that nothing blocks the port, then connect again."


class ConnectTimeout(ConnectFailed):
    """A host did not complete TCP, TLS and login within the deadline."""


class TLSFailed(ConnectFailed):
    """TLS could not be established: the certificate, its host name or its authority, or the port speaks no TLS."""

    advice = (
        "Check the server's certificate, the authority in `cacertfile`, the host name, and that the port is for TLS."
    )


class ProtocolError(ConnectionClosed):
    """The peer sent bytes that are not AMQP 0-9-1, or in an order that it forbids."""

    advice = "Check that the port is RabbitMQ's AMQP port (TLS on amqps only) and that no proxy alters it."


class ConnectionClosedByServer(ConnectionClosed):
    """The server ended the connection and said why."""

    advice = "Read the server's log at this time, then connect again."


class AuthenticationFailed(ConnectionClosedByServer):
    """The server refused the user name, password or certificate."""

    advice = "Check the user name and the password, in the URL and on the server."


class ConnectionForced(ConnectionClosedByServer):
    """An operator closed the connection, or the node is shutting down (320)."""

    advice = "Connect again after a pause, to the next host if there are several."


class InvalidPath(ConnectionClosedByServer):
    """The virtual host's name is not valid (402)."""

    advice = "Correct the virtual host in the URL."


class NotAllowed(ConnectionClosedByServer):
    """The virtual host does not exist, or the user may not use it, or a limit is reached (530)."""

    advice = "Create the virtual host, or grant the user permissions on it, or raise the limit."


class ResourceError(ConnectionClosedByServer):
    """The server lacks a resource (506)."""

    advice = "Free memory, disk or file handles on the server."


class ChannelClosed(AMQPError):
    """The channel is over. Its delivery tags are void; what it had not acknowledged is delivered again."""

    advice = "Open another channel; the connection's other channels go on."


class ContentTooLarge(ChannelClosed):
    """A message is larger than the server accepts (311)."""

    advice = "Send a smaller message, or a reference to a stored document."


class AccessRefused(ChannelClosed):
    """The user may not do this (403), or the queue has an exclusive consumer."""

    advice = "Grant the permission with `rabbitmqctl set_permissions`."


class NotFound(ChannelClosed):
    """The queue or exchange does not exist (404)."""

    advice = "Declare the topology first."


class ResourceLocked(ChannelClosed):
    """The queue belongs exclusively to another connection (405)."""

    advice = "Use another queue name, or wait for the owner's connection to end."


class PreconditionFailed(ChannelClosed):
    """An argument differs from what exists, a delivery tag is unknown, or an acknowledgement came too late (406)."""

    advice = (
        "If arguments differ, change the declaration or migrate the queue by hand; if a delivery tag is "
        "unknown, acknowledge each delivery once, on its own channel, within the server's consumer timeout."
    )


class ReplyTimeout(ChannelClosed):
    """The server did not answer in time; the channel was closed, because a late answer could not be told apart."""

    advice = "Open another channel; if it happens again, look at the server's load and alarms."


_CHANNEL_ERRORS: dict[int, type[ChannelClosed]] = {
    311: ContentTooLarge,
    403: AccessRefused,
    404: NotFound,
    405: ResourceLocked,
    406: PreconditionFailed,
}
_CONNECTION_ERRORS: dict[int, type[ConnectionClosedByServer]] = {
    320: ConnectionForced,
    402: InvalidPath,
    506: ResourceError,
    530: NotAllowed,
}


def channel_closed(code: int, text: str, class_id: int, method_id: int) -> ChannelClosed:
    """The typed error for a `channel.close` from the server."""
    kind = _CHANNEL_ERRORS.get(code, ChannelClosed)
    return kind(text, code=code, class_id=class_id, method_id=method_id)


def connection_closed(code: int, text: str, class_id: int, method_id: int) -> ConnectionClosedByServer:
    """The typed error for a `connection.close` from the server."""
    kind = _CONNECTION_ERRORS.get(code, ConnectionClosedByServer)
    return kind(text, code=code, class_id=class_id, method_id=method_id)
