"""A TCP proxy between client and node that cuts, delays, garbles and resets.

async with Proxy(node.url) as proxy:
    connection = await connect(proxy.url)
    proxy.reset()
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

Change = Callable[[bytes], bytes]


class Proxy:
    """`to_client` and `to_server` change what passes; `piece_bytes` cuts it into small writes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 0)
        self._url = url.replace(parts.netloc, "{}")
        self._login = parts.netloc.rpartition("@")[0]
        self.to_client: Change = bytes
        self.to_server: Change = bytes
        self.piece_bytes = 1 << 16
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = self._url.format(f"{self._login}@127.0.0.1:{port}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stall(self) -> None:
        """Nothing passes any more; both ends stay connected: a half-open connection."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def hang_up(self) -> None:
        """An orderly end of TCP (FIN) to both ends."""
        for writer in self._writers:
            writer.close()

    def reset(self) -> None:
        """RST to both ends."""
        for writer in self._writers:
            wrapped = writer.get_extra_info("socket")
            wrapped.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        self._writers += (writer, server_writer)
        for source, target, direction in ((reader, server_writer, "to_server"), (server_reader, writer, "to_client")):
            self._tasks.add(asyncio.create_task(self._pump(source, target, direction)))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, direction: str) -> None:
        try:
            while data := await source.read(1 << 16):
                await self._flowing.wait()
                change: Change = getattr(self, direction)
                changed = change(data)
                for at in range(0, len(changed), self.piece_bytes):
                    target.write(changed[at : at + self.piece_bytes])
                    await target.drain()
        except ConnectionError:
            return
        finally:
            target.close()
