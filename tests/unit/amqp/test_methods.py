"""Every method that this client sends is what pamqp reads, and every one that it receives is what pamqp writes."""

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, frame, header

from hopline.amqp import methods, spec
from hopline.amqp.errors import EncodeError

ARGUMENTS: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 20}


def unmarshal(raw: bytes) -> tuple[int, int, Any]:
    return frame.unmarshal(raw)


SENT: list[tuple[bytes, int, Any]] = [
    (methods.connection_start_ok({"product": "p"}, "PLAIN", b"\0u\0p"), 0,
     commands.Connection.StartOk({"product": "p"}, "PLAIN", "\0u\0p", "en_US")),
    (methods.connection_tune_ok(7, 8192, 5), 0, commands.Connection.TuneOk(7, 8192, 5)),
    (methods.connection_open("/v"), 0, commands.Connection.Open("/v")),
    (methods.connection_close(501, "why"), 0, commands.Connection.Close(501, "why", 0, 0)),
    (methods.connection_close_ok(), 0, commands.Connection.CloseOk()),
    (methods.channel_open(3), 3, commands.Channel.Open()),
    (methods.channel_close(3, 200, "bye"), 3, commands.Channel.Close(200, "bye", 0, 0)),
    (methods.channel_close_ok(3), 3, commands.Channel.CloseOk()),
    (methods.channel_flow_ok(3, active=True), 3, commands.Channel.FlowOk(True)),
    (methods.exchange_declare(3, "e", "topic", {"a": "b"},
                              passive=True, durable=True, auto_delete=False, internal=True), 3,
     commands.Exchange.Declare(0, "e", "topic", True, True, False, True, False, {"a": "b"})),
    (methods.exchange_declare(3, "e", "topic", None, passive=False, durable=False, auto_delete=True, internal=False),
     3,
     commands.Exchange.Declare(0, "e", "topic", False, False, True, False, False, {})),
    (methods.exchange_delete(3, "e", if_unused=True), 3, commands.Exchange.Delete(0, "e", True, False)),
    (methods.exchange_bind(3, "d", "s", "k", None), 3, commands.Exchange.Bind(0, "d", "s", "k", False, {})),
    (methods.exchange_unbind(3, "d", "s", "k", None), 3, commands.Exchange.Unbind(0, "d", "s", "k", False, {})),
    (methods.queue_declare(3, "q", ARGUMENTS, passive=False, durable=True, exclusive=False, auto_delete=True),
     3,
     commands.Queue.Declare(0, "q", False, True, False, True, False, ARGUMENTS)),
    (methods.queue_declare(3, "q", None, passive=True, durable=False, exclusive=True, auto_delete=False), 3,
     commands.Queue.Declare(0, "q", True, False, True, False, False, {})),
    (methods.queue_bind(3, "q", "e", "k", {"x": 1}), 3, commands.Queue.Bind(0, "q", "e", "k", False, {"x": 1})),
    (methods.queue_unbind(3, "q", "e", "k", {"x": 1}), 3, commands.Queue.Unbind(0, "q", "e", "k", {"x": 1})),
    (methods.queue_purge(3, "q"), 3, commands.Queue.Purge(0, "q", False)),
    (methods.queue_delete(3, "q", if_unused=True, if_empty=False), 3,
     commands.Queue.Delete(0, "q", True, False, False)),
    (methods.queue_delete(3, "q", if_unused=False, if_empty=True), 3,
     commands.Queue.Delete(0, "q", False, True, False)),
    (methods.basic_qos(3, 300), 3, commands.Basic.Qos(0, 300, False)),
    (methods.basic_consume(3, "q", "tag", {"x-priority": 1}, no_ack=True, exclusive=False), 3,
     commands.Basic.Consume(0, "q", "tag", False, True, False, False, {"x-priority": 1})),
    (methods.basic_consume(3, "q", "tag", None, no_ack=False, exclusive=True), 3,
     commands.Basic.Consume(0, "q", "tag", False, False, True, False, {})),
    (methods.basic_cancel(3, "tag"), 3, commands.Basic.Cancel("tag", False)),
    (methods.basic_get(3, "q", no_ack=True), 3, commands.Basic.Get(0, "q", True)),
    (methods.basic_publish(3, "e", "k", mandatory=True), 3, commands.Basic.Publish(0, "e", "k", True, False)),
    (methods.settlement(3, spec.BASIC_ACK, 9, flags=1), 3, commands.Basic.Ack(9, True)),
    (methods.settlement(3, spec.BASIC_NACK, 9, flags=2), 3, commands.Basic.Nack(9, False, True)),
    (methods.settlement(3, spec.BASIC_NACK, 9, flags=1), 3, commands.Basic.Nack(9, True, False)),
    (methods.settlement(3, spec.BASIC_REJECT, 9, flags=1), 3, commands.Basic.Reject(9, True)),
    (methods.confirm_select(3), 3, commands.Confirm.Select(False)),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "channel", "theirs"), SENT, ids=[theirs.name for _, _, theirs in SENT])
def test_pamqp_reads_what_we_send(sent: Any, channel: int, theirs: Any) -> None:
    consumed, their_channel, read = unmarshal(sent)

    assert (consumed, their_channel) == (len(sent), channel)
    assert type(read) is type(theirs)
    # The reserved field of channel.open: the specification leaves its value open, pamqp insists on "0".
    assert {**dict(read), "out_of_band": ""} == {**dict(theirs), "out_of_band": ""}


RECEIVED: list[tuple[Any, Any, Any]] = [
    (commands.Connection.Start(0, 9, {"version": "3"}, "PLAIN EXTERNAL"), methods.decode_start,
     (0, 9, {"version": "3"}, ["PLAIN", "EXTERNAL"])),
    (commands.Connection.Tune(7, 8192, 60), methods.decode_tune, (7, 8192, 60)),
    (commands.Connection.Close(320, "why", 50, 10), methods.decode_close, (320, "why", 50, 10)),
    (commands.Channel.Close(404, "why", 50, 10), methods.decode_close, (404, "why", 50, 10)),
    (commands.Queue.DeclareOk("q", 5, 6), methods.decode_queue_declare_ok, ("q", 5, 6)),
    (commands.Queue.PurgeOk(5), methods.decode_count, 5),
    (commands.Queue.DeleteOk(5), methods.decode_count, 5),
    (commands.Connection.Blocked("low on memory"), methods.decode_text, "low on memory"),
    (commands.Basic.Cancel("tag", True), methods.decode_text, "tag"),
    (commands.Basic.Return(312, "NO_ROUTE", "e", "k"), methods.decode_return, (312, "NO_ROUTE", "e", "k")),
    (commands.Basic.GetOk(5, True, "e", "k", 0), methods.decode_get_ok, (5, True, ("e", "k"))),
]  # fmt: skip


@pytest.mark.parametrize(("theirs", "decode", "fields"), RECEIVED, ids=[theirs.name for theirs, _, _ in RECEIVED])
def test_we_read_what_pamqp_sends(theirs: Any, decode: Any, fields: Any) -> None:
    raw = frame.marshal(theirs, 1)

    assert (
        spec.method_name(int.from_bytes(raw[7:11], "big")).replace("-", "").replace(".", "")
        == theirs.name.replace(".", "").lower()
    )
    assert decode(raw[11:-1]) == fields


def test_every_method_id_is_pamqps() -> None:
    named = {name: value for name, value in vars(spec).items() if type(value) is int and value in spec.METHOD_NAMES}

    for name, value in named.items():
        class_name, _, method_name = name.partition("_")
        theirs = getattr(getattr(commands, class_name.title()), method_name.title().replace("_", ""))
        assert theirs.index == value
    assert len(named) == 52


@given(st.binary(max_size=5000), st.integers(1, 1000))
def test_pamqp_reads_our_bodies_in_frames(content: Any, payload_max: Any) -> None:
    raw = methods.split_body(5, content, payload_max) + (b"\xce" if content else b"")

    pieces = []
    while raw:
        consumed, channel, read = unmarshal(raw)
        assert channel == 5
        assert isinstance(read, body.ContentBody)
        assert len(read.value) <= payload_max
        pieces.append(read.value)
        raw = raw[consumed:]
    assert b"".join(pieces) == content


def test_pamqp_reads_a_whole_publish() -> None:
    raw = methods.publish_head(methods.basic_publish(2, "e", "k", mandatory=True), 2, b"\x10\x00\x02", 4) + b"body\xce"

    first, channel, publish = unmarshal(raw)
    second, _, head = unmarshal(raw[first:])
    _, _, content = unmarshal(raw[first + second :])

    assert channel == 2
    assert (publish.exchange, publish.routing_key, publish.mandatory) == ("e", "k", True)
    assert isinstance(head, header.ContentHeader)
    assert (head.body_size, head.properties.delivery_mode) == (4, 2)
    assert content.value == b"body"


@pytest.mark.parametrize("prefetch", [-1, 65_536])
def test_a_prefetch_out_of_range_is_refused(prefetch: Any) -> None:
    with pytest.raises(EncodeError):
        methods.basic_qos(1, prefetch)


def test_a_table_of_nonsense_is_refused() -> None:
    with pytest.raises(EncodeError):
        methods.table(cast("dict[str, object]", {1: 2}))
