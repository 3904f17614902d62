"""The parser: any split gives the same, and any damage ends in a typed error."""

import contextlib
import itertools
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body, commands, frame, header, heartbeat

from hopline.amqp import Delivery, ProtocolError, Settler, spec
from hopline.amqp.reader import Consumer, Inlet, Reader


class Record:
    """A reader with channel 0, two channels, and a consumer on each; notes all that it hands on."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.batches: list[int] = []
        self.reader = Reader()
        self.reader.inlets[0] = Inlet(None, lambda method, fields: self.events.append((0, method, fields)))
        for number in (1, 2):
            self.reader.inlets[number] = self.inlet(number)

    def inlet(self, number: Any) -> Any:
        def note(*event: Any) -> None:
            self.events.append((number, *event))

        def deliveries(batch: list[Delivery]) -> None:
            self.batches.append(len(batch))
            for each in batch:
                note(
                    each.delivery_tag,
                    each.redelivered,
                    each.exchange,
                    each.routing_key,
                    each.raw_properties,
                    each.body,
                )

        inlet = Inlet(
            cast("Settler", self),
            note,
            lambda *confirm: note("confirm", *confirm),
            lambda *content: note("content", *content),
        )
        inlet.consumers[b"tag"] = Consumer("tag", deliveries, None, note)
        return inlet

    def feed(self, *pieces: Any) -> Any:
        for piece in pieces:
            self.reader.feed(piece)
        return self.events


def content(channel: int, method: Any, payload: Any, size: Any = 100_000) -> Any:
    raw = frame.marshal(method, channel)
    raw += frame.marshal(header.ContentHeader(0, len(payload), commands.Basic.Properties(message_id="m")), channel)
    for at in range(0, len(payload), size):
        raw += frame.marshal(body.ContentBody(payload[at : at + size]), channel)
    return raw


def delivery(channel: int, tag: Any = 1, payload: Any = b"body", size: Any = 100_000, redelivered: Any = False) -> Any:
    return content(channel, commands.Basic.Deliver("tag", tag, redelivered, "exchange", "key"), payload, size)


def some_of_everything(payload: Any = b"body") -> Any:
    return (
        delivery(1, 1, payload)
        + frame.marshal(commands.Basic.Ack(5, True), 2)
        + delivery(1, 2, b"")
        + delivery(2, 3, payload * 3, size=3, redelivered=True)
        + frame.marshal(commands.Basic.Nack(6, False, False), 1)
        + frame.marshal(heartbeat.Heartbeat(), 0)
        + content(1, commands.Basic.Return(312, "NO_ROUTE", "e", "k"), payload)
        + frame.marshal(commands.Channel.CloseOk(), 2)
        + content(2, commands.Basic.GetOk(7, False, "e", "k", 0), payload)
        + frame.marshal(commands.Connection.Blocked("why"), 0)
    )


PROPERTIES = b"\x00\x80\x01m"


def expected_of_everything(payload: Any = b"body") -> Any:
    delivered = [
        (1, 1, False, "exchange", "key", PROPERTIES, payload),
        (1, 2, False, "exchange", "key", PROPERTIES, b""),
        (2, 3, True, "exchange", "key", PROPERTIES, payload * 3),
    ]
    return delivered, [
        (2, "confirm", 5, True, False),
        (1, "confirm", 6, False, True),
        (1, "content", spec.BASIC_RETURN, b"\x01\x38\x08NO_ROUTE\x01e\x01k", PROPERTIES, payload),
        (2, spec.CHANNEL_CLOSE_OK, b""),
        (2, "content", spec.BASIC_GET_OK, bytes(7) + b"\x07\x00\x01e\x01k" + bytes(4), PROPERTIES, payload),
        (0, spec.CONNECTION_BLOCKED, b"\x03why"),
    ]


def test_everything_is_understood_in_one_read() -> None:
    record = Record()

    events = record.feed(some_of_everything())

    delivered, rest = expected_of_everything()
    assert [event for event in events if event in delivered] == delivered
    assert [event for event in events if event not in delivered] == rest


@given(st.lists(st.integers(0, 1500), max_size=20))
def test_any_split_of_the_bytes_gives_the_same(cuts: Any) -> None:
    raw = some_of_everything(b"x" * 100)
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    record = Record()

    events = record.feed(*(raw[start:end] for start, end in itertools.pairwise(places)))

    delivered, rest = expected_of_everything(b"x" * 100)
    for channel in (0, 1, 2):
        seen = [event for event in events if event[0] == channel and event not in delivered]
        assert seen == [event for event in rest if event[0] == channel]
        assert [event for event in events if event[0] == channel and event in delivered] == [
            event for event in delivered if event[0] == channel
        ]


def test_byte_by_byte_gives_the_same() -> None:
    record = Record()

    events = record.feed(*(bytes((each,)) for each in some_of_everything()))

    delivered, rest = expected_of_everything()
    assert sorted(map(repr, events)) == sorted(map(repr, delivered + rest))


def test_deliveries_of_one_read_come_as_one_list_for_each_consumer() -> None:
    record = Record()

    record.feed(b"".join(delivery(number, tag) for tag in range(1, 51) for number in (1, 2)))

    assert record.batches == [50, 50]


def test_deliveries_come_before_the_method_after_them() -> None:
    record = Record()

    events = record.feed(delivery(1) + frame.marshal(commands.Channel.Close(404, "why", 0, 0), 1))

    assert [event[1] for event in events] == [1, spec.CHANNEL_CLOSE]


def test_nothing_is_handed_on_after_stop() -> None:
    record = Record()
    inlet = record.reader.inlets[1]
    inlet.on_method = lambda *_: record.reader.stop()

    events = record.feed(frame.marshal(commands.Channel.CloseOk(), 1) + delivery(1), delivery(2))

    assert events == []


def test_a_consumer_that_stops_the_reader_gets_nothing_more() -> None:
    record = Record()
    record.reader.inlets[1].consumers[b"tag"].on_deliveries = lambda batch: record.reader.stop()

    events = record.feed(delivery(1) + delivery(2) + frame.marshal(commands.Channel.CloseOk(), 2))

    assert events == []


def test_a_consumer_that_raises_is_told_and_the_others_go_on() -> None:
    record = Record()

    def fail(batch: list[Delivery]) -> None:
        raise KeyError("bug")

    record.reader.inlets[1].consumers[b"tag"].on_deliveries = fail

    events = record.feed(delivery(1) + delivery(2))

    assert [type(event[1]) for event in events] == [KeyError, int]


def test_a_channel_that_is_closing_drops_all_but_the_answer() -> None:
    record = Record()
    inlet = record.reader.inlets[1]
    inlet.discarding = True
    inlet.consumers.clear()

    events = record.feed(delivery(1) + delivery(1, 2, b"long", size=2) + frame.marshal(commands.Channel.CloseOk(), 1))

    assert events == [(1, spec.CHANNEL_CLOSE_OK, b"")]


def bad(kind: Any, channel: int, payload: Any, end: Any = b"\xce") -> Any:
    return bytes((kind,)) + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big") + payload + end


method = frame.marshal(commands.Basic.Deliver("tag", 1, False, "e", "k"), 1)
head = frame.marshal(header.ContentHeader(0, 4, commands.Basic.Properties()), 1)
PROTOCOL_BREACHES = {
    "a wrong end byte": bad(1, 1, b"\x00\x14\x00\x29", b"\xcd"),
    "an unknown kind": bad(4, 1, b""),
    "a frame above frame_max": b"\x01\x00\x01" + (131_072).to_bytes(4, "big") + b"x",
    "text of another protocol": b"HTTP/1.1 400 Bad Request\r\n",
    "short text of another protocol": b"S",
    "another version of AMQP": b"AMQP\x00\x01\x00\x00",
    "a channel that is not open": frame.marshal(commands.Channel.CloseOk(), 9),
    "a method without an id": bad(1, 1, b"\x00"),
    "a delivery to nobody": frame.marshal(commands.Basic.Deliver("nobody", 1, False, "e", "k"), 1),
    "a delivery cut short": bad(1, 1, b"\x00\x3c\x00\x3c\x03tag\x00"),
    "a delivery with a key too long": bad(1, 1, b"\x00\x3c\x00\x3c\x03tag" + bytes(9) + b"\x01e\x09k")
    + head
    + bad(3, 1, b"body"),
    "a delivery with something behind its key": bad(1, 1, b"\x00\x3c\x00\x3c\x03tag" + bytes(9) + b"\x01e\x01k?")
    + head
    + bad(3, 1, b"body"),
    "a delivery on channel 0": frame.marshal(commands.Basic.Deliver("tag", 1, False, "e", "k"), 0),
    "a return on channel 0": frame.marshal(commands.Basic.Return(312, "", "", ""), 0),
    "a confirm on channel 0": frame.marshal(commands.Basic.Ack(1, False), 0),
    "a confirm cut short": bad(1, 1, b"\x00\x3c\x00\x50\x00\x00"),
    "a header without a method": head,
    "two headers": method + head + head,
    "a body without a header": method + bad(3, 1, b"body"),
    "a body without anything": bad(3, 1, b"body"),
    "a method within a message": method + method,
    "a body longer than announced": method + head + bad(3, 1, b"body!"),
    "a long body in parts that is longer than announced": method + head + bad(3, 1, b"bod") + bad(3, 1, b"y!"),
    "a header of another class": method + bad(2, 1, b"\x00\x32\x00\x00" + bytes(10)),
    "a header cut short": method + bad(2, 1, b"\x00\x3c\x00\x00" + bytes(8)),
    "a body above the limit": method
    + bad(2, 1, b"\x00\x3c\x00\x00" + (spec.BODY_BYTES_MAX + 1).to_bytes(8, "big") + b"\x00\x00"),
}


@pytest.mark.parametrize("raw", PROTOCOL_BREACHES.values(), ids=PROTOCOL_BREACHES.keys())
def test_a_breach_of_the_protocol_is_a_typed_error_and_the_end(raw: bytes) -> None:
    record = Record()

    with pytest.raises(ProtocolError):
        record.feed(raw)

    assert record.feed(delivery(1)) == []


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 20))
def test_random_bytes_end_in_a_typed_error_or_are_waited_for(raw: bytes, cut: Any) -> None:
    record = Record()

    try:
        record.feed(raw[:cut], raw[cut:])
    except ProtocolError:
        return
    assert len(b"".join(record.reader._rest)) <= len(raw)


BEAT = bad(8, 0, b"")
frames = st.lists(
    st.sampled_from(
        [
            method,
            head,
            bad(3, 1, b"body"),
            bad(3, 1, b"bo"),
            bad(3, 1, b""),
            delivery(1),
            delivery(2, 1, b"long", 2),
            BEAT,
            frame.marshal(commands.Basic.Ack(1, False), 1),
            frame.marshal(commands.Channel.CloseOk(), 2),
            frame.marshal(commands.Basic.Return(312, "", "e", "k"), 1),
            frame.marshal(commands.Basic.Deliver("tag", 2, True, "e", "k"), 2),
        ]
    ),
    max_size=12,
)


@settings(max_examples=500)
@given(frames, st.data())
def test_random_frame_orders_and_damage_end_in_a_typed_error_or_a_right_answer(parts: Any, data: st.DataObject) -> None:
    raw = bytearray(b"".join(parts))
    for place in data.draw(st.lists(st.integers(0, max(len(raw) - 1, 0)), max_size=2)):
        if raw:
            raw[place] = data.draw(st.integers(0, 255))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=3)))
    record = Record()

    with contextlib.suppress(ProtocolError):
        record.feed(*(bytes(raw[start:end]) for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)))
    for event in record.events:
        if len(event) == 7:
            assert isinstance(event[6], bytes)
            assert len(event[6]) <= len(raw)


@given(frames)
def test_frames_in_any_order_are_read_the_same_whole_and_byte_by_byte(parts: Any) -> None:
    raw = b"".join(parts)

    def run(pieces: Any) -> Any:
        record = Record()
        error = None
        try:
            record.feed(*pieces)
        except ProtocolError as caught:
            error = caught.text
        return [event for event in record.events if len(event) != 7], error

    # Deliveries of a read that ends in an error are dropped with it, so they are left out here.
    assert run([raw]) == run([bytes((each,)) for each in raw])


def test_a_trickle_costs_linear_time() -> None:
    record = Record()
    payload = b"x" * 130_000
    raw = delivery(1, 1, payload, size=131_000)

    joins = 0
    rest = record.reader._rest
    for each in range(0, len(raw), 7):
        record.reader.feed(raw[each : each + 7])
        joins += record.reader._rest is not rest
        rest = record.reader._rest

    assert record.events[0][6] == payload
    assert joins < 40


def test_many_routes_do_not_grow_memory() -> None:
    record = Record()

    for number in range(3000):
        record.feed(content(1, commands.Basic.Deliver("tag", 1, False, "e", f"key-{number}"), b"b"))

    assert len(record.reader._routes) <= 1024
    assert record.events[-1][4] == "key-2999"
