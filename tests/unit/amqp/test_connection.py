"""Connections to a server that a script plays: what a real one rarely does, or never."""

import asyncio
import contextlib
import socket
import ssl
from typing import Any

import pytest
from pamqp import commands
from pamqp import exceptions as pamqp_exceptions

from hopline.amqp import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionClosed,
    ConnectionClosedByServer,
    ConnectionForced,
    ConnectionLost,
    ConnectTimeout,
    HeartbeatTimeout,
    ProtocolError,
    UsageError,
    connect,
)

from .scripted_server import Peer, scripted


async def serve_until_closed(peer: Peer) -> None:
    """After login: answers connection.close."""
    await peer.expect(commands.Connection.Close)
    peer.send(commands.Connection.CloseOk())


async def test_login_says_who_we_are_and_takes_the_smaller_limits() -> None:
    seen = {}

    async def script(peer: Peer) -> None:
        await peer.start()
        seen["start"] = await peer.expect(commands.Connection.StartOk)
        peer.send(commands.Connection.Tune(100, 8192, 60))
        seen["tune"] = await peer.expect(commands.Connection.TuneOk)
        seen["open"] = await peer.expect(commands.Connection.Open)
        peer.send(commands.Connection.OpenOk())
        await serve_until_closed(peer)

    async with scripted(script) as url:
        connection = await connect(url + "v%2F1", name="orders relay", client_properties={"version": "1.2"})
        await connection.close()

    start, tune = seen["start"], seen["tune"]
    assert (start.mechanism, start.response) == ("PLAIN", "\0guest\0guest")
    assert start.client_properties["connection_name"] == "orders relay"
    assert start.client_properties["version"] == "1.2"
    assert start.client_properties["capabilities"]["consumer_cancel_notify"] is True
    assert (tune.channel_max, tune.frame_max, tune.heartbeat) == (100, 8192, 10)
    assert seen["open"].virtual_host == "v/1"
    assert connection.server_properties == {"product": "scripted"}
    assert connection.frame_max == 8192


@pytest.mark.parametrize(("ours", "theirs", "agreed"), [(10, 60, 10), (10, 5, 5), (10, 0, 10), (0, 60, 0)])
async def test_the_heartbeat_is_ours_unless_theirs_is_shorter(ours: Any, theirs: Any, agreed: Any) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake(heartbeat=theirs)
        await serve_until_closed(peer)

    async with scripted(script) as url:
        connection = await connect(url, heartbeat_seconds=ours)
        assert connection.heartbeat_seconds == agreed
        assert (connection._transport._timer is not None) == (agreed > 0)
        await connection.close()


async def test_the_kernel_watches_the_connection_too() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await serve_until_closed(peer)

    async with scripted(script) as url:
        connection = await connect(url, heartbeat_seconds=10)
        wrapped = connection._transport._transport.get_extra_info("socket")  # type: ignore[union-attr]  # it is open
        with socket.fromfd(wrapped.fileno(), wrapped.family, wrapped.type) as opened:
            keep_alive = opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            no_delay = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            timeout_ms = opened.getsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", socket.TCP_NODELAY))
        await connection.close()

    assert (bool(keep_alive), bool(no_delay)) == (True, True)
    assert timeout_ms == 20_000 or not hasattr(socket, "TCP_USER_TIMEOUT")


async def test_the_urls_values_win() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await serve_until_closed(peer)

    async with scripted(script) as url:
        connection = await connect(url + "?heartbeat=7&channel_max=3&frame_max=9000", heartbeat_seconds=30)
        assert (connection.heartbeat_seconds, connection.channel_max, connection.frame_max) == (7, 3, 9000)
        await connection.close()


async def test_a_server_that_never_answers_is_a_timeout() -> None:
    async def script(peer: Peer) -> None:
        await peer.wait_for_end()

    async with scripted(script) as url:
        with pytest.raises(ConnectTimeout):
            await connect(url, timeout_seconds=0.1)


async def test_a_server_that_falls_silent_during_login_is_a_timeout() -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.wait_for_end()

    async with scripted(script) as url:
        with pytest.raises(ConnectTimeout):
            await connect(url + "?connection_timeout=100")


async def test_nobody_at_the_port_is_connect_failed() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

        with pytest.raises(ConnectFailed) as caught:
            await connect(f"amqp://127.0.0.1:{port}/")

    assert str(port) in caught.value.text


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH",
        b"AMQP\x00\x01\x00\x00",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x01" * 20,
    ],
)
async def test_a_peer_that_is_not_amqp_091_is_a_protocol_error(greeting: Any) -> None:
    async def script(peer: Peer) -> None:
        peer.send_raw(greeting)
        await peer.wait_for_end()

    async with scripted(script) as url:
        with pytest.raises(ProtocolError):
            await connect(url)


async def test_a_refused_login_is_an_authentication_failure_and_no_other_host_is_asked() -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.start()
        await peer.expect(commands.Connection.StartOk)
        peer.send(commands.Connection.Close(403, "ACCESS_REFUSED", 0, 0))
        await peer.expect(commands.Connection.CloseOk)

    async with scripted(script) as url:
        host = url.removeprefix("amqp://guest:guest@").removesuffix("/")
        with pytest.raises(AuthenticationFailed):
            await connect(f"amqp://guest:guest@{host},{host}/")

    assert connections == 1


async def test_a_server_without_our_mechanism_is_an_authentication_failure() -> None:
    async def script(peer: Peer) -> None:
        await peer.start("EXTERNAL")
        await peer.wait_for_end()

    async with scripted(script) as url:
        with pytest.raises(AuthenticationFailed, match="EXTERNAL"):
            await connect(url)


async def test_a_second_step_of_login_is_an_authentication_failure() -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect(commands.Connection.StartOk)
        peer.send(commands.Connection.Secure("more"))
        await peer.wait_for_end()

    async with scripted(script) as url:
        with pytest.raises(AuthenticationFailed):
            await connect(url)


async def test_hosts_are_tried_in_turn() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await serve_until_closed(peer)

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{unused.getsockname()[1]}"
        async with scripted(script) as url:
            connection = await connect(url.replace("@", f"@{dead},"))
            await connection.close()

        with pytest.raises(ConnectFailed) as caught:
            await connect(f"amqp://{dead},{dead}/")
    assert caught.value.text.count(dead) == 2


async def test_a_host_of_the_urls_own_can_be_chosen() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.expect(commands.Connection.Close)
        peer.send(commands.Connection.CloseOk())

    async with scripted(script) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        connection = await connect(f"amqp://127.0.0.1:1,127.0.0.1:{port}/", host=("127.0.0.1", port))
        await connection.close()


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
@pytest.mark.parametrize("host", ["a" * 64, "a..b", "%00", "%C3%A9" * 64, ".a", "x" * 300])
async def test_a_host_name_that_no_dns_can_carry_is_connect_failed(scheme: str, host: str) -> None:
    with pytest.raises(ConnectFailed):
        await connect(f"{scheme}://{host}/")


async def test_cancelling_connect_leaves_nothing_open() -> None:
    connected = asyncio.Event()
    ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.start()
        connected.set()
        with contextlib.suppress(ConnectionResetError):
            await peer.wait_for_end()
        ended.set()

    async with scripted(script) as url:
        task = asyncio.create_task(connect(url))
        await asyncio.wait_for(connected.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 10)


async def test_the_servers_close_is_answered_and_typed() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        peer.send(commands.Connection.Close(320, "CONNECTION_FORCED - broker forced connection closure", 0, 0))
        await peer.expect(commands.Connection.CloseOk)

    async with scripted(script) as url:
        connection = await connect(url)
        reason = await asyncio.wait_for(connection.wait_closed(), 10)

    assert isinstance(reason, ConnectionForced)
    assert isinstance(reason, ConnectionClosedByServer)
    assert connection.close_reason is reason
    with pytest.raises(ConnectionForced):
        await connection.channel()


async def test_a_hang_up_is_a_lost_connection_and_fails_what_waits() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.expect(commands.Channel.Open)

    async with scripted(script) as url:
        connection = await connect(url)
        with pytest.raises(ConnectionLost):
            await connection.channel()

    assert connection.closed


async def test_two_missed_heartbeats_end_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake(heartbeat=1)
        await peer.wait_for_end()

    async with scripted(script) as url:
        connection = await connect(url)
        reason = await asyncio.wait_for(connection.wait_closed(), 10)

    assert isinstance(reason, HeartbeatTimeout)


async def test_heartbeats_are_sent_and_keep_the_connection() -> None:
    kept_up = asyncio.Event()
    beat = b"\x08" + bytes(6) + b"\xce"

    async def script(peer: Peer) -> None:
        await peer.handshake(heartbeat=1)
        async with asyncio.timeout(10):
            for _ in range(4):
                assert await peer.reader.readexactly(8) == beat
                peer.send_raw(beat)
        kept_up.set()
        await serve_until_closed(peer)

    async with scripted(script) as url:
        connection = await connect(url)
        await asyncio.wait_for(kept_up.wait(), 10)
        assert not connection.closed
        await connection.close()


async def test_blocked_and_unblocked_are_told() -> None:
    seen = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.open_channel()
        peer.send(commands.Connection.Blocked("low on memory"))
        peer.send(commands.Connection.Unblocked())
        await serve_until_closed(peer)

    async with scripted(script) as url:
        connection = await connect(url)
        done = asyncio.Event()

        def on_blocked(reason: Any) -> None:
            seen.append((reason, connection.blocked))
            if reason is None:
                done.set()

        connection.on_blocked = on_blocked
        await connection.channel()
        await asyncio.wait_for(done.wait(), 10)
        await connection.close()

    assert seen == [("low on memory", "low on memory"), (None, None)]


@pytest.mark.parametrize(
    "breach",
    [b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x29\xcd", b"garbage!", b"\x02\x00\x00\x00\x00\x00\x00\xce"],
)
async def test_a_breach_is_answered_with_close_and_typed(breach: Any) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        peer.send_raw(breach)
        close = await peer.expect(commands.Connection.Close)
        assert close.reply_code in (501, 504, 505)

    async with scripted(script) as url:
        connection = await connect(url)
        reason = await asyncio.wait_for(connection.wait_closed(), 10)

    assert isinstance(reason, ProtocolError)


async def test_an_answer_that_nobody_asked_for_is_a_protocol_error() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        peer.send(commands.Connection.OpenOk())
        await peer.expect(commands.Connection.Close)

    async with scripted(script) as url:
        connection = await connect(url)

        assert isinstance(await asyncio.wait_for(connection.wait_closed(), 10), ProtocolError)


async def test_a_login_out_of_order_is_a_protocol_error() -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect(commands.Connection.StartOk)
        peer.send(commands.Connection.OpenOk())
        await peer.expect(commands.Connection.Close)

    async with scripted(script) as url:
        with pytest.raises(ProtocolError, match="out of turn"):
            await connect(url)


async def test_a_frame_max_below_amqps_least_is_a_protocol_error() -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect(commands.Connection.StartOk)
        peer.send(commands.Connection.Tune(0, 1000, 0))
        await peer.wait_for_end()

    async with scripted(script) as url:
        with pytest.raises(ProtocolError):
            await connect(url)


async def test_close_against_a_silent_server_ends_at_its_deadline() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        with contextlib.suppress(ConnectionResetError):
            await peer.wait_for_end()

    async with scripted(script) as url:
        connection = await connect(url)
        await asyncio.wait_for(connection.close(timeout_seconds=0.05), 5)

    assert connection.closed
    assert connection.close_reason is None


async def test_abort_ends_at_once() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        with contextlib.suppress(ConnectionResetError):
            await peer.wait_for_end()

    async with scripted(script) as url:
        connection = await connect(url)
        connection.abort()
        connection.abort()
        await asyncio.wait_for(connection.wait_closed(), 1)
        with pytest.raises(ConnectionClosed):
            await connection.channel()


async def test_when_all_channels_are_open_another_is_refused_and_a_closed_ones_number_is_free() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake(channel_max=2)
        with contextlib.suppress(pamqp_exceptions.PAMQPException, asyncio.IncompleteReadError):
            while True:
                channel, method = await peer.next_frame()
                if isinstance(method, commands.Channel.Open):
                    peer.send(commands.Channel.OpenOk(), channel)
                elif isinstance(method, commands.Channel.Close):
                    peer.send(commands.Channel.CloseOk(), channel)
                else:
                    peer.send(commands.Connection.CloseOk())

    async with scripted(script) as url:
        connection = await connect(url)
        first, second = await connection.channel(), await connection.channel()
        with pytest.raises(UsageError):
            await connection.channel()

        await first.close()
        third = await connection.channel()

        assert (first.number, second.number, third.number) == (1, 2, 1)
        await connection.close()


async def test_an_ssl_context_without_amqps_is_a_mistake() -> None:
    with pytest.raises(UsageError):
        await connect("amqp://localhost/", ssl_context=ssl.create_default_context())
