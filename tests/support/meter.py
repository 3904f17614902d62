"""A TCP proxy that counts what passes through it: bytes each way, and the protocol's own messages.

    async with Meter(host, port, postgres_messages) as meter:
        ...  # connect to 127.0.0.1, meter.port
        meter.received.messages["Z"]

It changes nothing. Counts are exact however TCP cuts the stream.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

CHUNK_BYTES = 1 << 16
AMQP_HEADER = b"AMQP\x00\x00\x09\x01"

Parser = Callable[[bytearray], Iterator[str]]
"""Takes whole messages off a stream's buffer and gives the kind of each; called again when there is more."""


def amqp_frames(buffer: bytearray) -> Iterator[str]:
    """AMQP 0-9-1, 2.3.5: type, channel, size, payload, end. The kinds are 1 method, 2 header, 3 body, 8 heartbeat."""
    if buffer.startswith(AMQP_HEADER):
        del buffer[: len(AMQP_HEADER)]
    while len(buffer) >= 7:
        whole = 8 + int.from_bytes(buffer[3:7], "big")
        if len(buffer) < whole:
            return
        yield str(buffer[0])
        del buffer[:whole]


def postgres_answers(buffer: bytearray) -> Iterator[str]:
    """What Postgres sends ("Message Formats" in its documentation): a letter, a length that counts itself, contents.

    Each Z (ReadyForQuery) ends a round trip. A lone N, first of all, refuses TLS.
    """
    while len(buffer) >= 5 or buffer == b"N":
        whole = 1 if buffer == b"N" else 1 + int.from_bytes(buffer[1:5], "big")
        if len(buffer) < whole:
            return
        yield chr(buffer[0])
        del buffer[:whole]


def uncounted(buffer: bytearray) -> Iterator[str]:
    """Bytes only."""
    buffer.clear()
    return iter(())


class Traffic:
    """What passed in one direction."""

    def __init__(self) -> None:
        self.bytes = 0
        self.messages: Counter[str] = Counter()


class Meter:
    """The proxy. `sent` goes to the server, `received` comes from it."""

    def __init__(self, host: str, port: int, received: Parser, sent: Parser = uncounted) -> None:
        self._target = (host, port)
        self._parsers = (sent, received)
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent, self.received = Traffic(), Traffic()

    def reset(self) -> tuple[Traffic, Traffic]:
        """Counts from nothing again; gives what was counted till now. A message counts when it has come whole."""
        counted = self.sent, self.received
        self.sent, self.received = Traffic(), Traffic()
        return counted

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="meter")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        pumps = [
            asyncio.create_task(self._pump(reader, server_writer, "sent", self._parsers[0])),
            asyncio.create_task(self._pump(server_reader, writer, "received", self._parsers[1])),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, server_writer):
                end.close()

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, direction: str, parser: Parser
    ) -> None:
        buffer = bytearray()
        while data := await source.read(CHUNK_BYTES):
            traffic: Traffic = getattr(self, direction)
            traffic.bytes += len(data)
            buffer += data
            traffic.messages.update(parser(buffer))
            target.write(data)
            await target.drain()
