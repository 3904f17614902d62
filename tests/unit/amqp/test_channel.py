"""Channels to a server that a script plays: order of answers, deadlines, back-pressure, cancellation."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pamqp import commands, header

from hopline.amqp import (
    ChannelClosed,
    DecodeError,
    Delivery,
    EncodeError,
    NotFound,
    Outgoing,
    Properties,
    ProtocolError,
    Published,
    ReplyTimeout,
    UsageError,
    connect,
)
from hopline.amqp import channel as channel_module

from .scripted_server import Peer, scripted


@asynccontextmanager
async def open_channel(script: Any, *, confirms: bool = False, timeout_seconds: Any = 10.0) -> AsyncIterator[Any]:
    """A channel 1 whose server goes on with `script`, and hangs up when it ends."""

    async def whole(peer: Peer) -> None:
        await peer.handshake()
        await peer.open_channel(confirms=confirms)
        await script(peer)

    async with scripted(whole) as url:
        connection = await connect(url, timeout_seconds=timeout_seconds)
        channel = await connection.channel()
        if confirms:
            await channel.confirm_select()
        yield channel
        await asyncio.wait_for(connection.wait_closed(), 10)


def message(body: Any = b"body", key: Any = "key", **properties: Any) -> Any:
    return Outgoing("exchange", key, Properties(**properties), body)


async def hang_until_end(peer: Peer) -> None:
    with contextlib.suppress(ConnectionResetError):
        await peer.wait_for_end()


async def test_answers_come_to_their_questions_in_order() -> None:
    async def script(peer: Peer) -> None:
        for _ in range(3):
            await peer.expect(commands.Queue.Declare)
        for number in range(3):
            peer.send(commands.Queue.DeclareOk(f"q{number}", number, 0), 1)

    async with open_channel(script) as channel:
        states = await asyncio.gather(*(channel.declare_queue(f"q{number}") for number in range(3)))

    assert [state.messages for state in states] == [0, 1, 2]


async def test_what_is_declared_is_durable_and_plain_unless_said_otherwise() -> None:
    async def script(peer: Peer) -> None:
        exchange = await peer.expect(commands.Exchange.Declare)
        assert (exchange.exchange_type, exchange.durable) == ("direct", True)
        assert (exchange.passive, exchange.auto_delete, exchange.internal, exchange.nowait) == (False,) * 4
        peer.send(commands.Exchange.DeclareOk(), 1)
        queue = await peer.expect(commands.Queue.Declare)
        assert queue.durable
        assert (queue.passive, queue.auto_delete, queue.exclusive, queue.nowait) == (False,) * 4
        peer.send(commands.Queue.DeclareOk("q", 0, 0), 1)
        consume = await peer.expect(commands.Basic.Consume)
        assert (consume.no_ack, consume.exclusive, consume.no_local, consume.nowait) == (False,) * 4
        peer.send(commands.Basic.ConsumeOk(consume.consumer_tag), 1)

    async with open_channel(script) as channel:
        await channel.declare_exchange("e")
        await channel.declare_queue("q")
        await channel.consume("q", lambda deliveries: None)


async def test_a_wrong_answer_is_a_protocol_error() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(commands.Queue.Declare)
        peer.send(commands.Queue.BindOk(), 1)
        await peer.expect(commands.Connection.Close)

    async with open_channel(script) as channel:
        with pytest.raises(ProtocolError):
            await channel.declare_queue("q")


async def test_no_answer_within_the_deadline_closes_the_channel() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(commands.Queue.Declare)
        await peer.expect(commands.Channel.Close)
        peer.send(commands.Queue.DeclareOk("q", 0, 0), 1)
        peer.send(commands.Channel.CloseOk(), 1)

    async with open_channel(script, timeout_seconds=0.2) as channel:
        with pytest.raises(ReplyTimeout):
            await channel.declare_queue("q")
        assert isinstance(channel.close_reason, ReplyTimeout)
        with pytest.raises(ReplyTimeout):
            await channel.declare_queue("q")


async def test_a_cancelled_question_leaves_the_answers_in_step() -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.expect(commands.Queue.Declare)
        asked.set()
        await peer.expect(commands.Queue.Declare)
        peer.send(commands.Queue.DeclareOk("first", 1, 0), 1)
        peer.send(commands.Queue.DeclareOk("second", 2, 0), 1)

    async with open_channel(script) as channel:
        first = asyncio.create_task(channel.declare_queue("first"))
        await asyncio.wait_for(asked.wait(), 10)
        first.cancel()
        second = await channel.declare_queue("second")

    assert second.name == "second"


async def test_an_abandoned_consumer_is_cancelled_and_its_messages_go_back() -> None:
    asked = asyncio.Event()
    received: list[Delivery] = []

    async def script(peer: Peer) -> None:
        consume = await peer.expect(commands.Basic.Consume)
        asked.set()
        await peer.expect(commands.Basic.Cancel)
        peer.send(commands.Basic.ConsumeOk(consume.consumer_tag), 1)
        peer.deliver(1, b"body", consume.consumer_tag)
        nack = await peer.expect(commands.Basic.Nack)
        assert (nack.delivery_tag, nack.requeue) == (1, True)
        peer.send(commands.Basic.CancelOk(consume.consumer_tag), 1)

    async with open_channel(script) as channel:
        task = asyncio.create_task(channel.consume("q", received.extend))
        await asyncio.wait_for(asked.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert received == []


@pytest.mark.parametrize("no_ack", [False, True])
async def test_the_message_of_an_abandoned_get_goes_back_unless_it_was_automatic(no_ack: bool) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.expect(commands.Basic.Get)
        asked.set()
        await peer.expect(commands.Basic.Qos)
        peer.send(commands.Basic.GetOk(5, False, "e", "k", 0), 1)
        peer.content(b"body")
        if not no_ack:
            assert (await peer.expect(commands.Basic.Nack)).delivery_tag == 5
        peer.send(commands.Basic.QosOk(), 1)

    async with open_channel(script) as channel:
        task = asyncio.create_task(channel.get("q", no_ack=no_ack))
        await asyncio.wait_for(asked.wait(), 10)
        task.cancel()
        await channel.qos(1)


async def test_deliveries_right_behind_the_answer_are_not_lost() -> None:
    received: list[Delivery] = []

    async def script(peer: Peer) -> None:
        consume = await peer.expect(commands.Basic.Consume)
        peer.send(commands.Basic.ConsumeOk(consume.consumer_tag), 1)
        for tag in range(1, 4):
            peer.deliver(tag, b"body", consume.consumer_tag)
        await peer.expect(commands.Basic.Ack)

    async with open_channel(script) as channel:

        def on_deliveries(deliveries: list[Delivery]) -> None:
            received.extend(deliveries)
            if len(received) == 3:
                channel.ack(3, multiple=True)

        await channel.consume("q", on_deliveries)

    assert [delivery.delivery_tag for delivery in received] == [1, 2, 3]


async def test_acknowledgements_of_one_turn_are_one_write() -> None:
    async def script(peer: Peer) -> None:
        data = await peer.reader.read(65536)
        assert len(data) == 21 * 50

    async with open_channel(script) as channel:
        for tag in range(50):
            channel.ack(tag)


async def test_malformed_properties_harm_only_their_reader() -> None:
    received: list[Delivery] = []
    both = asyncio.Event()

    def on_deliveries(deliveries: list[Delivery]) -> None:
        received.extend(deliveries)
        if len(received) == 2:
            both.set()

    async def script(peer: Peer) -> None:
        consume = await peer.expect(commands.Basic.Consume)
        peer.send(commands.Basic.ConsumeOk(consume.consumer_tag), 1)
        peer.send(commands.Basic.Deliver(consume.consumer_tag, 1, False, "e", "k"), 1)
        bad_headers = b"\x00\x3c\x00\x00" + (4).to_bytes(8, "big") + b"\x20\x00" + b"\x00\x00\x00\x09\x01a?"
        peer.send_raw(b"\x02\x00\x01" + len(bad_headers).to_bytes(4, "big") + bad_headers + b"\xce")
        peer.send_raw(b"\x03\x00\x01\x00\x00\x00\x04body\xce")
        peer.deliver(2, b"good", consume.consumer_tag)
        await peer.expect(commands.Basic.Reject)
        await peer.expect(commands.Basic.Ack)

    async with open_channel(script) as channel:
        await channel.consume("q", on_deliveries)
        await asyncio.wait_for(both.wait(), 10)

        with pytest.raises(DecodeError):
            _ = received[0].properties
        assert received[0].body == b"body"
        channel.reject(1, requeue=False)
        channel.ack(2)


async def test_a_callback_that_raises_is_reported_and_closes_its_channel_only() -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))

    async def script(peer: Peer) -> None:
        consume = await peer.expect(commands.Basic.Consume)
        peer.send(commands.Basic.ConsumeOk(consume.consumer_tag), 1)
        peer.deliver(1, b"body", consume.consumer_tag)
        await peer.expect(commands.Channel.Close)
        peer.send(commands.Channel.CloseOk(), 1)

    def on_deliveries(deliveries: list[Delivery]) -> None:
        raise KeyError("bug")

    async with open_channel(script) as channel:
        await channel.consume("q", on_deliveries)
        reason = await asyncio.wait_for(channel.wait_closed(), 10)

    assert isinstance(reason, ChannelClosed)
    assert [type(error) for error in reported] == [KeyError]


async def test_a_callback_that_raises_ends_its_channels_other_consumers_too() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    received: list[Delivery] = []

    async def script(peer: Peer) -> None:
        for tag in ("bad", "other"):
            await peer.expect(commands.Basic.Consume)
            peer.send(commands.Basic.ConsumeOk(tag), 1)
        await peer.expect(commands.Basic.Qos)
        peer.send(commands.Basic.QosOk(), 1)
        peer.deliver(1, b"body", "bad", "other")
        await peer.expect(commands.Channel.Close)
        peer.send(commands.Channel.CloseOk(), 1)

    def on_deliveries(deliveries: list[Delivery]) -> None:
        raise KeyError("bug")

    async with open_channel(script) as channel:
        await channel.consume("q", on_deliveries, consumer_tag="bad")
        await channel.consume("q", received.extend, consumer_tag="other")
        await channel.qos(1)
        await asyncio.wait_for(channel.wait_closed(), 10)

    assert received == []


async def test_an_argument_table_that_does_not_fit_into_a_frame_is_refused() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(commands.Queue.Declare)
        peer.send(commands.Queue.DeclareOk("q", 0, 0), 1)

    async with open_channel(script) as channel:
        with pytest.raises(EncodeError):
            await channel.declare_queue("q", arguments={"x": "y" * 200_000})
        await channel.declare_queue("q")


async def test_a_cancel_by_the_server_is_told_once() -> None:
    told: list[str] = []

    async def script(peer: Peer) -> None:
        consume = await peer.expect(commands.Basic.Consume)
        peer.send(commands.Basic.ConsumeOk(consume.consumer_tag), 1)
        peer.send(commands.Basic.Cancel(consume.consumer_tag, True), 1)
        peer.send(commands.Basic.Cancel(consume.consumer_tag, True), 1)

    async with open_channel(script) as channel:
        tag = await channel.consume("q", lambda deliveries: None, on_cancel=told.append)

    assert told == [tag]


async def test_a_cancel_by_the_server_needs_nobody_who_listens() -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    async def script(peer: Peer) -> None:
        consume = await peer.expect(commands.Basic.Consume)
        peer.send(commands.Basic.ConsumeOk(consume.consumer_tag), 1)
        peer.send(commands.Basic.Cancel(consume.consumer_tag, True), 1)
        await peer.expect(commands.Basic.Qos)
        peer.send(commands.Basic.QosOk(), 1)

    async with open_channel(script) as channel:
        await channel.consume("q", lambda deliveries: None)
        await channel.qos(1)
        assert not channel.closed

    assert reported == []


async def test_a_consumer_tag_in_use_is_a_mistake() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(commands.Basic.Consume)
        peer.send(commands.Basic.ConsumeOk("tag"), 1)

    async with open_channel(script) as channel:
        await channel.consume("q", lambda deliveries: None, consumer_tag="tag")
        with pytest.raises(UsageError):
            await channel.consume("q", lambda deliveries: None, consumer_tag="tag")


async def test_every_publish_of_a_call_gets_its_own_outcome() -> None:
    async def script(peer: Peer) -> None:
        assert await peer.expect_publishes(5) == [b"0", b"1", b"2", b"3", b"4"]
        peer.send(commands.Basic.Nack(4, False, False), 1)
        peer.send(commands.Basic.Return(312, "NO_ROUTE", "exchange", "key"), 1)
        peer.content(b"2", properties=commands.Basic.Properties(message_id="2"))
        peer.send(commands.Basic.Ack(3, True), 1)
        peer.send(commands.Basic.Ack(5, False), 1)

    async with open_channel(script, confirms=True) as channel:
        outcomes = await channel.publish([message(str(number).encode(), message_id=str(number)) for number in range(5)])

    confirmed = Published.CONFIRMED
    assert outcomes == [confirmed, confirmed, Published.RETURNED, Published.REFUSED, confirmed]


async def test_no_confirm_within_the_deadline_is_unknown_and_a_late_one_harms_nothing() -> None:
    first_is_over = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.expect_publishes(2)
        peer.send(commands.Basic.Ack(1, False), 1)
        await asyncio.wait_for(first_is_over.wait(), 10)
        await peer.expect_publishes(1)
        peer.send(commands.Basic.Ack(3, True), 1)

    async with open_channel(script, confirms=True) as channel:
        first = await channel.publish([message(), message()], timeout_seconds=0.2)
        first_is_over.set()
        second = await channel.publish([message()])

    assert first == [Published.CONFIRMED, Published.UNKNOWN]
    assert second == [Published.CONFIRMED]


@pytest.mark.parametrize("how", ["channel", "connection", "hang up"])
async def test_whatever_ends_the_channel_makes_the_rest_unknown(how: Any) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect_publishes(3)
        peer.send(commands.Basic.Ack(1, False), 1)
        if how == "channel":
            peer.send(commands.Channel.Close(404, "NOT_FOUND - no exchange", 60, 40), 1)
            await peer.expect(commands.Channel.CloseOk)
        elif how == "connection":
            peer.send(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0))
            await peer.expect(commands.Connection.CloseOk)

    async with open_channel(script, confirms=True) as channel:
        outcomes = await channel.publish([message()] * 3)
        assert channel.closed
        assert await channel.publish([message()]) == [Published.UNKNOWN]
        for settle in (channel.ack, channel.nack, channel.reject):
            with pytest.raises(ChannelClosed):
                settle(1)
        await asyncio.wait_for(channel.close(), 1)
        if how == "channel":
            assert isinstance(channel.close_reason, NotFound)

    assert outcomes == [Published.CONFIRMED, Published.UNKNOWN, Published.UNKNOWN]


async def test_a_blocked_connection_holds_publishes_back_until_it_is_unblocked() -> None:
    async def script(peer: Peer) -> None:
        peer.send(commands.Connection.Blocked("low on memory"))
        await peer.expect(commands.Queue.Declare)
        peer.send(commands.Queue.DeclareOk("q", 0, 0), 1)
        await peer.expect(commands.Queue.Purge)
        peer.send(commands.Connection.Unblocked())
        await peer.expect_publishes(1)
        peer.send(commands.Basic.Ack(1, False), 1)
        peer.send(commands.Queue.PurgeOk(0), 1)

    async with open_channel(script, confirms=True) as channel:
        await channel.declare_queue("q")
        publish = asyncio.create_task(channel.publish([message()]))
        await channel.purge_queue("q")

        assert await publish == [Published.CONFIRMED]


async def test_what_a_block_held_back_past_its_deadline_is_never_written() -> None:
    async def script(peer: Peer) -> None:
        peer.send(commands.Connection.Blocked("low on memory"))
        await peer.expect(commands.Queue.Declare)
        peer.send(commands.Queue.DeclareOk("q", 0, 0), 1)
        await peer.expect(commands.Queue.Purge)
        peer.send(commands.Connection.Unblocked())
        peer.send(commands.Queue.PurgeOk(0), 1)
        assert await peer.expect_publishes(1) == [b"later"]
        peer.send(commands.Basic.Ack(1, False), 1)

    async with open_channel(script, confirms=True) as channel:
        await channel.declare_queue("q")
        held = await channel.publish([message(b"held")] * 2, timeout_seconds=0.05)
        await channel.purge_queue("q")
        later = await channel.publish([message(b"later")])

    assert held == [Published.UNKNOWN] * 2
    assert later == [Published.CONFIRMED]


async def test_channel_flow_holds_publishes_back() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(commands.Queue.Declare)
        peer.send(commands.Channel.Flow(False), 1)
        peer.send(commands.Queue.DeclareOk("q", 0, 0), 1)
        assert (await peer.expect(commands.Channel.FlowOk)).active is False
        await peer.expect(commands.Queue.Purge)
        peer.send(commands.Channel.Flow(True), 1)
        peer.send(commands.Queue.PurgeOk(0), 1)
        assert (await peer.expect(commands.Channel.FlowOk)).active is True
        await peer.expect_publishes(1)
        peer.send(commands.Basic.Ack(1, False), 1)

    async with open_channel(script, confirms=True) as channel:
        await channel.declare_queue("q")
        publish = asyncio.create_task(channel.publish([message()]))
        await channel.purge_queue("q")

        assert await publish == [Published.CONFIRMED]


async def test_a_peer_that_does_not_read_bounds_our_memory() -> None:
    async def script(peer: Peer) -> None:
        peer.pause_reading()
        async with asyncio.timeout(10):
            await enough.wait()
        peer.writer.transport.abort()

    enough = asyncio.Event()
    body = b"x" * 100_000

    async with open_channel(script, confirms=True) as channel:
        outcomes = await channel.publish([message(body)] * 400, timeout_seconds=1)
        written = channel._confirms.last
        more = await channel.publish([message(body)] * 400, timeout_seconds=0.2)
        assert channel._transport._transport.get_write_buffer_size() < 2 << 20
        assert channel._confirms.last == written < 400
        enough.set()

    assert outcomes == more == [Published.UNKNOWN] * 400


async def test_calls_beyond_the_window_wait_for_room_and_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "UNCONFIRMED_MAX", 10)

    async def script(peer: Peer) -> None:
        for start in range(0, 50, 5):
            bodies = await peer.expect_publishes(5)
            assert bodies == [str(number).encode() for number in range(start, start + 5)]
            peer.send(commands.Basic.Ack(start + 5, True), 1)

    async with open_channel(script, confirms=True) as channel:
        calls = [channel.publish([message(str(first + number).encode()) for number in range(25)]) for first in (0, 25)]
        outcomes = await asyncio.gather(*calls)

    assert outcomes == [[Published.CONFIRMED] * 25] * 2


async def test_one_message_beyond_the_limits_and_nothing_of_its_call_is_sent() -> None:
    async def script(peer: Peer) -> None:
        assert await peer.expect_publishes(1) == [b"good"]
        peer.send(commands.Basic.Ack(1, False), 1)

    async with open_channel(script, confirms=True) as channel:
        for bad in (
            message(headers={"a": object()}),
            message(headers={"a": "x" * 200_000}),
            message(key="k" * 256),
        ):
            with pytest.raises(EncodeError):
                await channel.publish([message(), bad])

        assert await channel.publish([message(b"good")]) == [Published.CONFIRMED]
        assert await channel.publish([]) == []


async def test_publishing_without_confirms_is_a_mistake() -> None:
    async def script(peer: Peer) -> None:
        pass

    async with open_channel(script) as channel:
        with pytest.raises(UsageError):
            await channel.publish([message()])


async def test_a_confirm_of_nothing_is_a_protocol_error() -> None:
    async def script(peer: Peer) -> None:
        peer.send(commands.Basic.Ack(1, False), 1)
        await peer.expect(commands.Connection.Close)

    async with open_channel(script, confirms=True) as channel:
        assert isinstance(await asyncio.wait_for(channel.wait_closed(), 10), ProtocolError)


async def test_close_sends_earlier_acknowledgements_first_and_ignores_what_still_comes() -> None:
    received: list[Delivery] = []

    async def script(peer: Peer) -> None:
        consume = await peer.expect(commands.Basic.Consume)
        peer.send(commands.Basic.ConsumeOk(consume.consumer_tag), 1)
        await peer.expect(commands.Basic.Ack)
        await peer.expect(commands.Channel.Close)
        peer.deliver(1, b"late", consume.consumer_tag)
        peer.send(commands.Channel.CloseOk(), 1)

    async with open_channel(script) as channel:
        await channel.consume("q", received.extend)
        channel.ack(1)
        await asyncio.wait_for(channel.close(), 3)
        assert await channel.wait_closed() is None

    assert received == []


async def test_both_sides_closing_at_once_is_an_orderly_close() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(commands.Channel.Close)
        peer.send(commands.Channel.Close(406, "PRECONDITION_FAILED", 60, 80), 1)
        await peer.expect(commands.Channel.CloseOk)
        peer.send(commands.Channel.CloseOk(), 1)

    async with open_channel(script) as channel:
        await channel.close()

    assert channel.close_reason is None


async def test_close_against_a_silent_server_ends_at_its_deadline() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(commands.Channel.Close)
        await done.wait()

    done = asyncio.Event()
    async with open_channel(script) as channel:
        await asyncio.wait_for(channel.close(timeout_seconds=0.05), 5)
        done.set()

    assert channel.closed


async def test_a_cancelled_opening_closes_the_channel() -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.expect(commands.Channel.Open)
        asked.set()
        await peer.expect(commands.Channel.Close)
        peer.send(commands.Channel.OpenOk(), 1)
        peer.send(commands.Channel.CloseOk(), 1)

    async with scripted(script) as url:
        connection = await connect(url)
        task = asyncio.create_task(connection.channel())
        await asyncio.wait_for(asked.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(connection.wait_closed(), 10)


async def test_large_bodies_are_cut_at_the_agreed_frame_size() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake(frame_max=8192)
        await peer.open_channel(confirms=True)
        await peer.expect(commands.Basic.Publish)
        await peer.expect(header.ContentHeader)
        sizes = [len((await peer.next_frame())[1].value) for _ in range(3)]
        assert sizes == [8184, 8184, 20_000 - 2 * 8184]
        peer.send(commands.Basic.Ack(1, False), 1)

    async with scripted(script) as url:
        connection = await connect(url)
        channel = await connection.channel()
        await channel.confirm_select()
        assert await channel.publish([message(b"x" * 20_000)]) == [Published.CONFIRMED]
        await connection.wait_closed()
