"""The bytes that arrive, cut into frames and handed on: one loop a read, no object a frame.

Most of what arrives is deliveries and confirms, so these two are decoded right in the loop; a delivery whose three
frames are all there takes one pass. Deliveries are handed over once a read, as a list for each consumer. Every other
method goes to its channel's inlet, after the deliveries before it, so that the order of the wire is kept.

Invariants: bytes that are not AMQP end in ProtocolError, never in a hang; memory is bounded by one frame and, for
each channel, one body of at most BODY_BYTES_MAX; a trickle of tiny reads costs linear time.
"""

import struct
from collections.abc import Callable
from typing import Final

from hopline.amqp import spec
from hopline.amqp.errors import AMQPError, ProtocolError
from hopline.amqp.messages import Delivery, Settler
from hopline.amqp.methods import decode_route
from hopline.amqp.spec import (
    BASIC_ACK,
    BASIC_DELIVER,
    BASIC_GET_OK,
    BASIC_NACK,
    BASIC_RETURN,
    CLASS_BASIC,
    FRAME_BODY,
    FRAME_END,
    FRAME_HEADER,
    FRAME_HEARTBEAT,
    FRAME_METHOD,
    FRAME_OVERHEAD,
)

_frame = struct.Struct(">BHI").unpack_from
_end_and_frame = struct.Struct(">BBHI").unpack_from
_u32 = struct.Struct(">I").unpack_from
_tag_and_flag = struct.Struct(">QB").unpack_from
_content = struct.Struct(">HHQ").unpack_from
_frame_and_content = struct.Struct(">BHIHHQ").unpack_from
_ROUTES_CACHED_MAX: Final = 1024
"""Exchange and routing key pairs kept decoded; beyond this many the cache starts anew."""
_METHOD_ID_BYTES: Final = 4
_CONFIRM_BYTES: Final = 13
"""Method id, delivery tag and flags of `basic.ack` and `basic.nack`."""
_CONTENT_BYTES: Final = 14
"""Class, weight, body size and at least the property flags of a content header."""
_HEAD_BYTES: Final = 19
"""A content header frame up to its property flags."""
_KINDS: Final = frozenset((FRAME_METHOD, FRAME_HEADER, FRAME_BODY, FRAME_HEARTBEAT))


class Consumer:
    """Where one consumer's deliveries go, and those of the current read."""

    __slots__ = ("batch", "on_cancel", "on_deliveries", "on_error", "tag")

    def __init__(
        self,
        tag: str,
        on_deliveries: Callable[[list[Delivery]], None],
        on_cancel: Callable[[str], None] | None,
        on_error: Callable[[Exception], None],
    ) -> None:
        self.tag = tag
        self.on_deliveries = on_deliveries
        self.on_cancel = on_cancel
        self.on_error = on_error
        self.batch: list[Delivery] = []


class Content:
    """A message whose header or body has not arrived completely."""

    __slots__ = ("body", "body_bytes", "fields", "method", "missing_bytes", "properties")

    def __init__(self, method: int, fields: bytes) -> None:
        self.method = method
        self.fields = fields
        self.properties: bytes | None = None
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.missing_bytes = 0


class Inlet:
    """What the reader needs to know of one channel.

    `on_method(method, fields)` gets every method but deliveries and confirms, `on_confirm(tag, multiple, refused)`
    the confirms, `on_content(method, fields, properties, body)` complete returns and answers to `basic.get`,
    `on_writable()` is called when writing may go on, `on_over(reason)` when the connection is over.
    """

    __slots__ = (
        "channel",
        "consumers",
        "content",
        "discarding",
        "on_confirm",
        "on_content",
        "on_method",
        "on_over",
        "on_writable",
    )

    def __init__(
        self,
        channel: Settler | None,
        on_method: Callable[[int, bytes], None],
        on_confirm: Callable[[int, bool, bool], None] | None = None,
        on_content: Callable[[int, bytes, bytes, bytes], None] | None = None,
        on_writable: Callable[[], None] | None = None,
        on_over: Callable[[AMQPError | None], None] | None = None,
    ) -> None:
        self.channel = channel
        self.on_writable = on_writable
        self.on_over = on_over
        self.on_method = on_method
        self.on_confirm = on_confirm
        self.on_content = on_content
        self.consumers: dict[bytes, Consumer] = {}
        self.content: Content | None = None
        self.discarding = False
        """After our own `channel.close`: only its answer matters, the rest is dropped (section 1.5.2.5)."""


class Reader:
    """Feed it what the socket gives. After an error, or `stop`, it takes nothing more."""

    def __init__(self) -> None:
        self.frame_max = spec.FRAME_MAX
        self.inlets: dict[int, Inlet] = {}
        self._stopped = False
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._wanted_bytes = 0
        self._touched: list[Consumer] = []
        self._routes: dict[bytes, tuple[str, str]] = {}

    def stop(self) -> None:
        self._stopped = True
        self._rest = []

    def feed(self, data: bytes) -> None:
        """Handles every complete frame. Raises ProtocolError."""
        if self._stopped:
            return
        if self._rest:
            self._rest.append(data)
            self._rest_bytes += len(data)
            if self._rest_bytes < self._wanted_bytes:
                return
            data = b"".join(self._rest)
            self._rest = []
        try:
            at = self._frames(data)
            self._hand_over()
            if at < len(data) and not self._stopped:
                self._keep(data, at)
        except (struct.error, IndexError, AMQPError) as error:
            self.stop()
            if isinstance(error, ProtocolError):
                raise
            reason = error.text if isinstance(error, AMQPError) else str(error)
            raise ProtocolError(f"a frame is malformed: {reason}", code=spec.FRAME_ERROR) from error

    def _keep(self, data: bytes, at: int) -> None:
        """Remembers an incomplete frame, and how long it will be. A wrong first byte is found out at once."""
        if data[at] not in _KINDS:
            raise _not_amqp(data, at)
        rest = data[at:] if at else data
        self._rest = [rest]
        self._rest_bytes = len(rest)
        self._wanted_bytes = FRAME_OVERHEAD
        if len(rest) >= FRAME_OVERHEAD:
            self._wanted_bytes += int(_frame(rest, 0)[2])

    def _frames(self, buf: bytes) -> int:  # noqa: C901, PLR0912, PLR0915 - the hot loop: a call a frame is what it avoids
        """Handles the complete frames and gives where the incomplete rest begins."""
        at = 0
        size_max = self.frame_max - FRAME_OVERHEAD
        total = len(buf)
        inlets = self.inlets
        routes = self._routes
        number = -1
        inlet: Inlet | None = None
        while total - at >= FRAME_OVERHEAD:
            kind, channel, size = _frame(buf, at)
            end = at + 7 + size
            if size > size_max or kind not in _KINDS:
                raise _not_amqp(buf, at)
            if end >= total:
                break
            if buf[end] != FRAME_END:
                raise ProtocolError("a frame does not end with its end byte", code=spec.FRAME_ERROR)
            if channel != number:
                number = channel
                inlet = inlets.get(channel)
            if kind == FRAME_HEARTBEAT:
                at = end + 1
                continue
            if inlet is None:
                raise ProtocolError(f"a frame came for channel {channel}, which is not open", code=504)
            if kind == FRAME_METHOD:
                if inlet.content is not None:
                    raise ProtocolError("a method came in the middle of a message", code=spec.UNEXPECTED_FRAME)
                if size < _METHOD_ID_BYTES:
                    raise ProtocolError("a method frame is too short", code=spec.FRAME_ERROR)
                method = _u32(buf, at + 7)[0]
                if method == BASIC_DELIVER and not inlet.discarding:
                    tag_end = at + 12 + buf[at + 11]
                    consumer = inlet.consumers.get(buf[at + 12 : tag_end])
                    if consumer is None or tag_end + 11 > end:
                        raise ProtocolError("a delivery came for a consumer that does not exist", code=503)
                    next_at = end + 1
                    if total - next_at >= _HEAD_BYTES:
                        # Header and body are usually here too: take all three frames in one pass.
                        h_kind, h_channel, h_size, class_id, _, body_bytes = _frame_and_content(buf, next_at)
                        h_end = next_at + 7 + h_size
                        b_at = h_end + 8
                        b_end = b_at + body_bytes
                        if (
                            b_end < total
                            and h_kind == FRAME_HEADER
                            and h_channel == channel
                            and class_id == CLASS_BASIC
                            and _CONTENT_BYTES <= h_size <= size_max
                            and 0 < body_bytes <= size_max
                            and _end_and_frame(buf, h_end) == (FRAME_END, FRAME_BODY, channel, body_bytes)
                            and buf[b_end] == FRAME_END
                        ):
                            delivery_tag, redelivered = _tag_and_flag(buf, tag_end)
                            route_raw = buf[tag_end + 9 : end]
                            route = routes.get(route_raw) or self._route(route_raw)
                            batch = consumer.batch
                            if not batch:
                                self._touched.append(consumer)
                            batch.append(
                                Delivery(
                                    inlet.channel,  # type: ignore[arg-type]  # those with consumers have one
                                    consumer.tag,
                                    delivery_tag,
                                    redelivered != 0,
                                    route,
                                    buf[next_at + 19 : h_end],
                                    buf[b_at:b_end],
                                )
                            )
                            at = b_end + 1
                            continue
                    inlet.content = Content(method, buf[at + 11 : end])
                elif method in (BASIC_ACK, BASIC_NACK):
                    if inlet.on_confirm is None or size < _CONFIRM_BYTES:
                        raise ProtocolError("a confirm is malformed or came on channel 0", code=503)
                    tag, flags = _tag_and_flag(buf, at + 11)
                    inlet.on_confirm(tag, flags & 1 == 1, method == BASIC_NACK)
                elif method in (BASIC_DELIVER, BASIC_RETURN, BASIC_GET_OK):
                    if inlet.on_content is None:
                        raise ProtocolError("a message came on channel 0", code=503)
                    inlet.content = Content(method, buf[at + 11 : end])
                else:
                    if self._touched:
                        self._hand_over()
                    if not self._stopped:
                        inlet.on_method(method, buf[at + 11 : end])
                        number = -1
                    if self._stopped:
                        return total
                    size_max = self.frame_max - FRAME_OVERHEAD
            elif kind == FRAME_HEADER:
                self._content_head(inlet, buf, at + 7, end)
            else:
                self._content_body(inlet, buf, at + 7, end)
            at = end + 1
        return at

    def _route(self, raw: bytes) -> tuple[str, str]:
        if len(self._routes) >= _ROUTES_CACHED_MAX:
            self._routes.clear()
        route = self._routes[raw] = decode_route(raw)
        return route

    def _content_head(self, inlet: Inlet, buf: bytes, at: int, end: int) -> None:
        content = inlet.content
        if content is None or content.properties is not None:
            raise ProtocolError("a content header came without its method", code=spec.UNEXPECTED_FRAME)
        class_id, _, body_bytes = _content(buf, at)
        if class_id != CLASS_BASIC or at + _CONTENT_BYTES > end:
            raise ProtocolError("a content header is malformed", code=spec.SYNTAX_ERROR)
        if body_bytes > spec.BODY_BYTES_MAX:
            raise ProtocolError(f"a body of {body_bytes} bytes is above the limit of {spec.BODY_BYTES_MAX}")
        content.properties = buf[at + 12 : end]
        content.body_bytes = content.missing_bytes = body_bytes
        if not body_bytes:
            self._complete(inlet, content)

    def _content_body(self, inlet: Inlet, buf: bytes, at: int, end: int) -> None:
        content = inlet.content
        if content is None or content.properties is None:
            raise ProtocolError("a body came without its header", code=spec.UNEXPECTED_FRAME)
        content.missing_bytes -= end - at
        if content.missing_bytes < 0:
            raise ProtocolError("a body is longer than its header says", code=spec.FRAME_ERROR)
        if end > at:
            content.body.append(buf[at:end])
        if not content.missing_bytes:
            self._complete(inlet, content)

    def _complete(self, inlet: Inlet, content: Content) -> None:
        inlet.content = None
        properties = content.properties or b""
        body = content.body[0] if len(content.body) == 1 else b"".join(content.body)
        if inlet.discarding:
            return
        if content.method != BASIC_DELIVER:
            self._hand_over()
            if inlet.on_content is not None and not self._stopped:
                inlet.on_content(content.method, content.fields, properties, body)
            return
        fields = content.fields
        tag_end = 1 + fields[0]
        consumer = inlet.consumers.get(fields[1:tag_end])
        if consumer is None or inlet.channel is None:
            raise ProtocolError("a delivery came for a consumer that does not exist", code=503)
        tag, redelivered = _tag_and_flag(fields, tag_end)
        route = self._route(fields[tag_end + 9 :])
        if not consumer.batch:
            self._touched.append(consumer)
        consumer.batch.append(Delivery(inlet.channel, consumer.tag, tag, redelivered != 0, route, properties, body))

    def _hand_over(self) -> None:
        touched, self._touched = self._touched, []
        for consumer in touched:
            batch, consumer.batch = consumer.batch, []
            if self._stopped or not batch:
                continue
            try:
                consumer.on_deliveries(batch)
            except Exception as error:  # noqa: BLE001 - the caller's code; it must not end the connection
                consumer.on_error(error)


def _not_amqp(buf: bytes, at: int) -> ProtocolError:
    if buf[at : at + 4] == b"AMQP":
        return ProtocolError(f"the server speaks another version of AMQP: {buf[at : at + 8]!r}")
    return ProtocolError(f"this is not an AMQP frame: {buf[at : at + 16]!r}", code=spec.FRAME_ERROR)
