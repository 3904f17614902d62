"""Which published message has which confirm: the bookkeeping of one channel in confirm mode, without I/O.

RabbitMQ numbers the publishes of a channel from 1. A `Call` is one call of `Channel.publish`; each piece of it that
was written in one go is a `Span` of consecutive numbers. A confirm with `multiple` settles whole spans by comparing
two numbers, whatever their length; only confirms out of order, refusals and returns cost something for each message.

Returns: RabbitMQ sends `basic.return` before the message's own ack, and in the order of the publishes, but it does
not say which publish it was. A return is matched with the first message after the previous return that is unsettled,
has the same exchange and routing key, and the same message id and body if there are several.

Invariant: a message leaves exactly once, as confirmed, returned, refused or unknown; whatever a message was first
found to be (a return before its ack) it stays.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from hopline.amqp.errors import ProtocolError
from hopline.amqp.messages import Outgoing, Published

_SETTLED_KEPT_MAX: Final = 256
"""Settled spans at the front of the list before it is cut: not one by one, since cutting moves all the others."""


class Waiter(Protocol):
    """What a call is told with, such as an `asyncio.Future`."""

    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...


class Call:
    """One call of `publish`: how many of its messages are written and unsettled, and what is not simply confirmed."""

    __slots__ = ("exceptions", "messages", "pending", "spans", "waiter", "written")

    def __init__(self, messages: Sequence[Outgoing]) -> None:
        self.messages = messages
        self.written = 0
        self.pending = 0
        self.exceptions: dict[int, Published] = {}
        self.spans: list[Span] = []
        self.waiter: Waiter | None = None

    def settled(self, count: int) -> None:
        self.pending -= count
        if not self.pending and self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def outcomes(self) -> list[Published]:
        """One for each message, as things stand: what is unsettled or was never written is unknown."""
        outcomes = [Published.CONFIRMED] * len(self.messages)
        if self.pending:
            for span in self.spans:
                for tag in span.unsettled():
                    outcomes[span.offset + tag - span.first] = Published.UNKNOWN
        for index, outcome in self.exceptions.items():
            outcomes[index] = outcome
        for index in range(self.written, len(outcomes)):
            outcomes[index] = Published.UNKNOWN
        return outcomes


class Span:
    """Consecutive publishes of one call. Everything below `low` is settled, and so is what `early` holds."""

    __slots__ = ("call", "early", "first", "last", "low", "offset")

    def __init__(self, call: Call, offset: int, first: int, count: int) -> None:
        self.call = call
        self.offset = offset
        self.first = self.low = first
        self.last = first + count - 1
        self.early: set[int] = set()

    def unsettled(self) -> Iterator[int]:
        return (tag for tag in range(self.low, self.last + 1) if tag not in self.early)

    def settle_up_to(self, tag: int, exception: Published | None) -> int:
        """Settles all from `low` to `tag`, which is at least `low`; gives how many were still unsettled."""
        count = tag + 1 - self.low
        if exception is not None:
            for each in range(self.low, tag + 1):
                if each not in self.early:
                    self.note(each, exception)
        if self.early:
            before = len(self.early)
            self.early = {each for each in self.early if each > tag}
            count -= before - len(self.early)
        self.low = tag + 1
        self._close_up()
        self.call.settled(count)
        return count

    def settle_one(self, tag: int, exception: Published | None) -> int:
        if tag < self.low or tag in self.early:
            return 0
        if exception is not None:
            self.note(tag, exception)
        if tag == self.low:
            self.low += 1
            self._close_up()
        else:
            self.early.add(tag)
        self.call.settled(1)
        return 1

    def note(self, tag: int, exception: Published) -> None:
        self.call.exceptions.setdefault(self.offset + tag - self.first, exception)

    def message(self, tag: int) -> Outgoing:
        return self.call.messages[self.offset + tag - self.first]

    def _close_up(self) -> None:
        while self.low in self.early:
            self.early.remove(self.low)
            self.low += 1


def _first(span: Span) -> int:
    return span.first


class Confirms:
    """The unsettled publishes of one channel, in order."""

    __slots__ = ("_head", "_spans", "last", "last_returned", "unconfirmed")

    def __init__(self) -> None:
        self.last = 0
        """Number of the last publish written."""
        self.unconfirmed = 0
        self.last_returned = 0
        self._spans: list[Span] = []
        self._head = 0

    def wrote(self, call: Call, count: int) -> None:
        """The next `count` messages of `call` have been written just now."""
        span = Span(call, call.written, self.last + 1, count)
        call.spans.append(span)
        call.written += count
        call.pending += count
        self._spans.append(span)
        self.last += count
        self.unconfirmed += count

    def settle(self, tag: int, *, multiple: bool, refused: bool) -> None:
        """A `basic.ack` or `basic.nack` arrived. Tag 0 with `multiple` means all (section 1.8.3.13)."""
        exception = Published.REFUSED if refused else None
        if tag == 0 and multiple:
            tag = self.last
        if not 0 < tag <= self.last:
            raise ProtocolError(f"the server confirmed publish {tag}, of {self.last} published")
        if multiple:
            self._settle_up_to(tag, exception)
        else:
            self._settle_one(tag, exception)

    def _settle_up_to(self, tag: int, exception: Published | None) -> None:
        spans = self._spans
        head = self._head
        count = 0
        while head < len(spans) and spans[head].first <= tag:
            span = spans[head]
            until = min(span.last, tag)
            if until >= span.low:
                count += span.settle_up_to(until, exception)
            if span.low <= span.last:
                break
            head += 1
        self._advance(head)
        self.unconfirmed -= count

    def _settle_one(self, tag: int, exception: Published | None) -> None:
        spans = self._spans
        head = self._head
        at = head
        if head < len(spans) and not spans[head].first <= tag <= spans[head].last:
            at = bisect_right(spans, tag, lo=head, key=_first) - 1
        if at < head or at >= len(spans):
            return
        self.unconfirmed -= spans[at].settle_one(tag, exception)
        while head < len(spans) and spans[head].low > spans[head].last:
            head += 1
        self._advance(head)

    def _advance(self, head: int) -> None:
        if head == len(self._spans):
            self._spans.clear()
            head = 0
        elif head > _SETTLED_KEPT_MAX and head * 2 > len(self._spans):
            del self._spans[:head]
            head = 0
        self._head = head

    def returned(self, exchange: str, routing_key: str, message_id: str | None, body: bytes) -> Outgoing | None:
        """A `basic.return` arrived; gives the message that it belongs to, now noted as returned."""
        found = self._match(exchange, routing_key, message_id, body)
        if found is None:
            return None
        span, tag = found
        self.last_returned = tag
        span.note(tag, Published.RETURNED)
        return span.message(tag)

    def _match(self, exchange: str, routing_key: str, message_id: str | None, body: bytes) -> tuple[Span, int] | None:
        nearest: tuple[Span, int] | None = None
        for span in self._spans[self._head :]:
            if span.last <= self.last_returned:
                continue
            for tag in span.unsettled():
                message = span.message(tag)
                if tag <= self.last_returned or not message.mandatory:
                    continue
                if message.exchange != exchange or message.routing_key != routing_key:
                    continue
                if message.properties.message_id == message_id and message.body == body:
                    return span, tag
                nearest = nearest or (span, tag)
        return nearest

    def lose(self) -> None:
        """Channel or connection are over: whatever is unsettled is unknown."""
        for span in self._spans[self._head :]:
            if span.low <= span.last:
                span.settle_up_to(span.last, Published.UNKNOWN)
        self._spans.clear()
        self._head = 0
        self.unconfirmed = 0
