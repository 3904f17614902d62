"""HTTP by uvicorn, within the limits of hopline.http_limits, with every answer in one write.

uvicorn writes an answer's head and its body apart, and uvloop hands each write to the kernel at once: two system
calls, two packets, and a client that is woken for a head without its body. Here what is written in one turn of the
event loop leaves together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import uvicorn

from hopline.http_limits import LimitedProtocol

KEEP_ALIVE_SECONDS: Final = 75


class Joining:
    """A transport whose writes leave at the end of the turn, or when it is closed; in all else the one in it."""

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """See asyncio.WriteTransport."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def is_closing(self) -> bool:
        """See asyncio.BaseTransport."""
        return self._transport.is_closing()

    def close(self) -> None:
        """See asyncio.BaseTransport."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._transport.write(b"".join(held))


class Server(uvicorn.Server):
    """uvicorn's, without its own signal handling, which ends open requests at a second SIGINT."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the process's signals as they are: hopline.run drains."""
        yield


class Protocol(LimitedProtocol):
    """The protocol with limits, on a transport that joins writes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(cast("asyncio.Transport", Joining(transport, self.loop)))


def config(factory: Callable[[], Any], host: str, port: int, *, drain_seconds: float) -> uvicorn.Config:
    """How uvicorn serves an application that `factory` makes."""
    return uvicorn.Config(
        factory,
        factory=True,
        host=host,
        port=port,
        loop="uvloop",
        http=Protocol,
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(drain_seconds),
    )
