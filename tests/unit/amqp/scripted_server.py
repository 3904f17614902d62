"""A server that does what a test tells it to: frames by pamqp, raw bytes, silence or a hang-up.

    async with scripted(script) as url: ...

`script` is a coroutine function that gets a Peer for each connection. What it raises, the test raises.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from pamqp import commands, frame, header
from pamqp.body import ContentBody

DEADLINE_SECONDS = 10.0
Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = b""

    def send(self, method: Any, channel: int = 0) -> None:
        self.send_raw(frame.marshal(method, channel))

    def send_raw(self, data: bytes) -> None:
        self.writer.write(data)

    async def next_frame(self) -> tuple[int, Any]:
        """The next frame of the client but heartbeats, as (channel, pamqp's object)."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                head = await self.reader.readexactly(7)
                rest = await self.reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
                if head[0] != 8:
                    _, channel, value = frame.unmarshal(head + rest)
                    return channel, value

    async def expect(self, kind: type) -> Any:
        """The next frame of this kind; whatever comes before it is an error."""
        _, value = await self.next_frame()
        assert isinstance(value, kind), f"expected {kind}, got {value.name}"
        return value

    async def handshake(self, *, frame_max: int = 131_072, channel_max: int = 2047, heartbeat: int = 0) -> None:
        """Login, as RabbitMQ does it."""
        await self.start()
        await self.expect(commands.Connection.StartOk)
        self.send(commands.Connection.Tune(channel_max, frame_max, heartbeat))
        await self.expect(commands.Connection.TuneOk)
        await self.expect(commands.Connection.Open)
        self.send(commands.Connection.OpenOk())

    async def start(self, mechanisms: str = "PLAIN AMQPLAIN") -> None:
        assert await self.reader.readexactly(8) == b"AMQP\x00\x00\x09\x01"
        self.send(commands.Connection.Start(0, 9, {"product": "scripted"}, mechanisms))

    async def open_channel(self, *, confirms: bool = False) -> None:
        await self.expect(commands.Channel.Open)
        self.send(commands.Channel.OpenOk(), 1)
        if confirms:
            await self.expect(commands.Confirm.Select)
            self.send(commands.Confirm.SelectOk(), 1)

    async def expect_publishes(self, count: int) -> list[bytes]:
        """Bodies of the next `count` publishes."""
        bodies = []
        for _ in range(count):
            await self.expect(commands.Basic.Publish)
            head = await self.expect(header.ContentHeader)
            body = b""
            while len(body) < head.body_size:
                _, piece = await self.next_frame()
                body += piece.value
            bodies.append(body)
        return bodies

    def deliver(self, tag: int, body: bytes, *consumer_tags: str) -> None:
        """A delivery on channel 1 for each consumer, in one write, with tags from `tag` on."""
        self.send_raw(
            b"".join(
                frame.marshal(commands.Basic.Deliver(consumer_tag, tag + index, False, "exchange", "key"), 1)
                + frame.marshal(header.ContentHeader(0, len(body), commands.Basic.Properties()), 1)
                + frame.marshal(ContentBody(body), 1)
                for index, consumer_tag in enumerate(consumer_tags)
            )
        )

    def content(self, body: bytes, channel: int = 1, properties: commands.Basic.Properties | None = None) -> None:
        self.send(header.ContentHeader(0, len(body), properties or commands.Basic.Properties()), channel)
        if body:
            self.send(ContentBody(body), channel)

    def pause_reading(self) -> None:
        """From now on the client's bytes stay in the kernel, and then in the client."""
        cast("asyncio.Transport", self.writer.transport).pause_reading()

    async def wait_for_end(self) -> bytes:
        """Everything until the client closes."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.reader.read()


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """Runs the script for each connection; gives the URL. At the end the script must have ended, without an error."""
    tasks: list[asyncio.Task[None]] = []

    async def run(peer: Peer) -> None:
        try:
            await script(peer)
        finally:
            peer.writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(run(Peer(reader, writer))))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"amqp://guest:guest@127.0.0.1:{port}/"
        async with asyncio.timeout(DEADLINE_SECONDS):
            for task in tasks:
                await task
    finally:
        for task in tasks:
            task.cancel()
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)
