"""What travels through a channel, as its caller sees it: Outgoing, Published, Returned, Delivery, QueueState.

Nothing here does I/O. A Delivery keeps its properties as bytes until somebody asks for them, so that a message that
is only counted or passed on costs nothing to decode, and a malformed one harms nobody but its reader.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from hopline.amqp.properties import Properties, decode_properties, read_message_id


class Published(Enum):
    """How one publish ended. There is nothing in between."""

    CONFIRMED = "confirmed"
    """The server took responsibility: on disk on a majority for a quorum queue."""
    RETURNED = "returned"
    """Unroutable: no queue got it. Not sent."""
    REFUSED = "refused"
    """Nacked: a full queue with `reject-publish`, or an error inside of the server. Not (entirely) sent."""
    UNKNOWN = "unknown"
    """The deadline passed, or channel or connection ended, before an answer. It may or may not have been sent."""


@dataclass(slots=True)
class Outgoing:
    """One message to publish. `mandatory` makes an unroutable message come back instead of vanishing."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    mandatory: bool = True


class Returned(NamedTuple):
    """Why the server returned a message. `message` is the one that was published, None if it cannot be matched."""

    reply_code: int
    reply_text: str
    exchange: str
    routing_key: str
    message: Outgoing | None


class QueueState(NamedTuple):
    """The server's answer to a queue declaration."""

    name: str
    messages: int
    """Ready to be delivered; unacknowledged ones are not counted."""
    consumers: int


class Settler(Protocol):
    """The channel that a delivery came from, and the only one on which its tag means anything.

    The calls do not block; they are joined with others of the same turn of the event loop. On a channel that is over
    they raise ChannelClosed.
    """

    @property
    def closed(self) -> bool: ...
    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None: ...
    def nack(self, delivery_tag: int, *, multiple: bool = False, requeue: bool = True) -> None: ...
    def reject(self, delivery_tag: int, *, requeue: bool = True) -> None: ...


class Delivery:
    """One message from a queue. Settle it once, through `channel`, with `delivery_tag`."""

    __slots__ = (
        "_properties",
        "body",
        "channel",
        "consumer_tag",
        "delivery_tag",
        "exchange",
        "raw_properties",
        "redelivered",
        "routing_key",
    )

    def __init__(
        self,
        channel: Settler,
        consumer_tag: str,
        delivery_tag: int,
        redelivered: bool,
        route: tuple[str, str],
        raw_properties: bytes,
        body: bytes,
    ) -> None:
        self.channel = channel
        self.consumer_tag = consumer_tag
        self.delivery_tag = delivery_tag
        self.redelivered = redelivered
        self.exchange, self.routing_key = route
        self.raw_properties = raw_properties
        self.body = body
        self._properties: Properties | None = None

    @property
    def properties(self) -> Properties:
        """Decoded at the first access. Raises DecodeError if the publisher wrote malformed ones."""
        if self._properties is None:
            self._properties = decode_properties(self.raw_properties)
        return self._properties

    @property
    def message_id(self) -> str | None:
        """The message id, without decoding the rest: enough to recognise a duplicate. Raises DecodeError."""
        if self._properties is not None:
            return self._properties.message_id
        return read_message_id(self.raw_properties)

    def __repr__(self) -> str:
        return (
            f"<Delivery {self.delivery_tag} of {self.consumer_tag!r} from {self.exchange!r} "
            f"with {self.routing_key!r}, {len(self.body)} bytes>"
        )
