"""One TCP or TLS connection: bytes in to the Reader, bytes out in as few writes as possible, and proof of life.

What is sent within one turn of the event loop is joined into one write. `writable` is false while the peer does not
read (more than WRITE_BUFFER_BYTES are waiting) or has asked to be spared (`connection.blocked`): publishing waits for
it, so that memory stays bounded; acknowledgements do not wait, since they are bounded by what was delivered.

Heartbeats: every half interval something is sent if nothing else was, and reading is checked. The check counts its
own ticks instead of reading a clock, so that an event loop that stood still for long does not mistake its own absence
for the server's.

Invariant: `on_over` is called exactly once, with the reason, or None after `close`.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

from hopline.amqp.errors import AMQPError, ConnectionLost, HeartbeatTimeout, ProtocolError
from hopline.amqp.methods import HEARTBEAT, connection_close
from hopline.amqp.reader import Reader

WRITE_BUFFER_BYTES: Final = 1 << 20
"""Beyond this many unsent bytes publishing pauses; it goes on below a quarter."""
_GATHER_BYTES: Final = 128 * 1024
"""Messages of one turn of the event loop are joined up to about this size."""
_LINGER_SECONDS: Final = 1.0
"""How long a closed connection may take to send its last bytes."""
_TICKS_MISSED_MAX: Final = 4
"""Half intervals without a byte: two heartbeats."""


class Transport(asyncio.Protocol):
    """Owned by one Connection. Nothing here blocks or awaits."""

    def __init__(self, on_over: Callable[[AMQPError | None], None], on_writable: Callable[[], None]) -> None:
        self.reader = Reader()
        self.blocked = False
        self._loop = asyncio.get_running_loop()
        self._on_over: Callable[[AMQPError | None], None] | None = on_over
        self._on_writable = on_writable
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._has_read = self._has_written = False
        self._ticks_missed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._gone = asyncio.Event()

    @property
    def writable(self) -> bool:
        return not (self._paused or self.blocked)

    # sending

    def send(self, data: bytes) -> None:
        """Sends at the end of this turn of the event loop, together with what else is sent. Never blocks."""
        self._out.append(data)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def send_content(self, data: bytes) -> None:
        """As `send`, for messages: when enough is gathered it is sent at once, so that `writable` is true news."""
        self._out_bytes += len(data)
        if self._out_bytes < _GATHER_BYTES:
            self.send(data)
        else:
            self._out.append(data)
            self._write()

    def _flush(self) -> None:
        self._flushing = False
        if self._out:
            self._write()

    def _write(self) -> None:
        out, self._out = self._out, []
        self._out_bytes = 0
        if self._transport is not None and not self._transport.is_closing():
            self._has_written = True
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES, WRITE_BUFFER_BYTES // 4)
        self._set_socket_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._set_socket_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._on_over is None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._has_read = True
        try:
            self.reader.feed(data)
        except ProtocolError as error:
            self.refuse(error)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        words = f"the connection was lost: {exc}" if exc else "the server hung up without a word"
        self._finish(ConnectionLost(words))

    # proof of life

    def watch(self, heartbeat_seconds: int) -> None:
        """Starts heartbeats in both directions, and has the kernel give up on unacknowledged bytes just as fast."""
        if heartbeat_seconds <= 0:
            return
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self._set_socket_option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, heartbeat_seconds * 2000)
        self._tick(heartbeat_seconds)

    def _tick(self, heartbeat_seconds: int) -> None:
        self._ticks_missed = 0 if self._has_read else self._ticks_missed + 1
        if self._ticks_missed >= _TICKS_MISSED_MAX:
            self.fail(HeartbeatTimeout(f"nothing arrived for {2 * heartbeat_seconds} seconds"))
            return
        if not self._has_written and not self._paused:
            self.send(HEARTBEAT)
        self._has_read = self._has_written = False
        self._timer = self._loop.call_later(heartbeat_seconds / 2, self._tick, heartbeat_seconds)

    def _set_socket_option(self, level: int, option: int, value: int) -> None:
        wrapped = self._transport.get_extra_info("socket") if self._transport else None
        if wrapped is None or wrapped.family not in (socket.AF_INET, socket.AF_INET6):
            return
        # Event loops hand out a restricted view of the socket; options are set through a duplicate of it.
        with suppress(OSError), socket.fromfd(wrapped.fileno(), wrapped.family, wrapped.type) as duplicate:
            duplicate.setsockopt(level, option, value)

    # the end

    def refuse(self, error: ProtocolError) -> None:
        """The peer broke the protocol: says so, as section 4.2.2 asks, and ends."""
        self.send(connection_close(error.code or 501, "the client could not read this"))
        self._finish(error)
        self._linger()

    def fail(self, reason: AMQPError | None) -> None:
        """Ends at once, unsent bytes included."""
        self._finish(reason)
        if self._transport is not None:
            self._transport.abort()

    def close(self, reason: AMQPError | None) -> None:
        """Ends after the last bytes are sent."""
        self._finish(reason)
        self._linger()

    async def wait_gone(self) -> None:
        """After `close` or `fail`: until the socket is closed, which takes a moment, and at most the linger."""
        if self._transport is not None:
            await self._gone.wait()

    def _linger(self) -> None:
        self._flush()
        if self._transport is not None and not self._gone.is_set():
            self._transport.close()
            self._timer = self._loop.call_later(_LINGER_SECONDS, self._transport.abort)

    def _finish(self, reason: AMQPError | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.reader.stop()
        on_over, self._on_over = self._on_over, None
        if on_over is not None:
            on_over(reason)
