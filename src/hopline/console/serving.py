"""The console as a process of its own: uvicorn around it, until it is told to stop.

Event streams never end by themselves, so they are ended first: then the server has nothing to wait for.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from litestar import Litestar

from hopline.app import Hopline
from hopline.console.application import create_console
from hopline.console.config import ConsoleSettings
from hopline.console.desk import Desk
from hopline.console.mailbox import Mailbox
from hopline.console.signing_in import LINK_PATH
from hopline.errors import UsageError
from hopline.http_limits import LimitedProtocol

STOP_SECONDS = 5
KEEP_ALIVE_SECONDS = 75

log = structlog.get_logger("hopline.console")


async def serve(
    app: Hopline, settings: ConsoleSettings, stop: asyncio.Event, *, mailbox: Mailbox | None = None
) -> None:
    """Serves until `stop` is set. UsageError if the settings are unsafe or the address cannot be had."""
    settings.check_listening()
    console = create_console(app, settings, mailbox=mailbox)
    server = _Server(_config(console, settings), console, settings)
    serving = asyncio.create_task(server.serve(), name="console")
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    await end_streams(console)
    server.should_exit = True
    stopping.cancel()
    await serving
    if not server.started:
        raise UsageError(f"the console could not start on {settings.host}:{settings.port}; the log above says why")
    log.info("console stopped")


async def end_streams(console: Litestar) -> None:
    """Ends the event streams at once: for a server that waits for its open answers before it stops."""
    desk: Desk = console.state.desk
    await desk.live.close()


def _config(console: Litestar, settings: ConsoleSettings) -> uvicorn.Config:
    return uvicorn.Config(
        console,
        host=settings.host,
        port=settings.port,
        loop="none",
        http=LimitedProtocol,
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=settings.proxies or None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


class _Server(uvicorn.Server):
    """Says where it is, once it is there; the signals are for whoever runs it."""

    def __init__(self, config: uvicorn.Config, console: Litestar, settings: ConsoleSettings) -> None:
        super().__init__(config)
        self._console = console
        self._settings = settings

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the process's signals as they are."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens; in development the log has the link that signs in."""
        await super().startup(sockets)
        if not self.servers:
            return
        port = self.servers[0].sockets[0].getsockname()[1]
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        url = f"http://{host}:{port}{self._settings.path}"
        desk: Desk = self._console.state.desk
        log.info("console started", url=f"{url}{LINK_PATH}{desk.link.token}" if desk.link is not None else url)
