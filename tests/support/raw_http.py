"""An HTTP server for a test, and clients that write raw bytes to it and wait for the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

from hopline.http_limits import LimitedProtocol, Limits
from tests.support.waiting import wait_until

DEADLINE_SECONDS = 20


class Listening(uvicorn.Server):
    """uvicorn, which leaves the signals of the test's process alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @property
    def port(self) -> int:
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port


@asynccontextmanager
async def listening(config: uvicorn.Config) -> AsyncIterator[Listening]:
    """A server to the end of the block, on a free port."""
    config.port, config.timeout_graceful_shutdown = 0, 1
    server = Listening(config)
    task = asyncio.create_task(server.serve())
    try:
        await wait_until(lambda: server.started or task.done())
        yield server
    finally:
        server.should_exit = True
        await task


def hurried(protocol: type[LimitedProtocol], **limits: Any) -> type[LimitedProtocol]:
    """The protocol with deadlines that a test can wait for."""
    given = Limits(**{"head_seconds": 0.3, "body_seconds": 0.3, "write_seconds": 0.3, **limits})
    return type("Hurried", (protocol,), {"limits": given})


async def answer_to(port: int, first: bytes, again: Callable[[], bytes] = bytes) -> bytes:
    """Everything that the server says until it closes the connection; AssertionError if it does not.

    `again` makes what is sent after `first`, on and on.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def talk() -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(first)
            while again is not bytes:
                writer.write(again())
                await writer.drain()
                await asyncio.sleep(0.005)

    talking = asyncio.create_task(talk())
    said = bytearray()
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65_536):
                    said += data
    except TimeoutError:
        raise AssertionError(f"the connection is open still; the server said {bytes(said[:200])!r}") from None
    finally:
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        writer.transport.abort()
    return bytes(said)
