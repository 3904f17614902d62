"""A TCP proxy to Postgres that acts in the middle of a COMMIT: at the very message, or after it was carried out.

asyncpg commits by a simple query (Postgres documentation, "Message Formats", Query): `Q`, a length, `COMMIT;`, NUL.
A statement that writes and runs outside of a transaction block commits by itself: it is bound by its name (Bind)
while the server was last ready and idle (ReadyForQuery, `I`), and was prepared with its text before (Parse).
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Sequence
from itertools import cycle
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

COMMIT = b"COMMIT;\x00"
IDLE = b"Z\x00\x00\x00\x05I"
BUSY = b"Z\x00\x00\x00\x05T"
PREPARED = re.compile(rb"P.{4}(__asyncpg_stmt_\w+__)\x00\s*(?:WITH write_|INSERT|UPDATE|DELETE)", re.DOTALL)
BOUND = re.compile(rb"B.{4}\x00(__asyncpg_stmt_\w+__)\x00", re.DOTALL)
CHUNK_BYTES = 1 << 16

Cut = Literal["before", "after"]
"""The COMMIT never arrives, or it is carried out and its answer never arrives."""


class Session:
    """What is known of one connection."""

    def __init__(self) -> None:
        self.answer_is_cut = asyncio.Event()
        self._idle = False
        self._writes: set[bytes] = set()

    def commits(self, data: bytes) -> bool:
        """Whether the client ends a transaction with these messages."""
        self._writes.update(PREPARED.findall(data))
        return COMMIT in data or (self._idle and not self._writes.isdisjoint(BOUND.findall(data)))

    def answered(self, data: bytes) -> None:
        """The server's messages."""
        if data.endswith((IDLE, BUSY)):
            self._idle = data.endswith(IDLE)


class CommitProxy:
    """Lets everything pass but each `every`-th COMMIT: there both ends are reset, by turns as `cuts` says.

    `on_commit` is called for that COMMIT after it was passed on. Set `every` to 0 to let all pass.
    """

    def __init__(
        self,
        url: str,
        *,
        every: int,
        cuts: Sequence[Cut] = ("before", "after"),
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 0)
        self._url = url.replace(f":{parts.port}/", ":{}/")
        self.every = every
        self.done: list[Cut] = []
        """The cuts so far."""
        self._cuts = cycle(cuts)
        self._on_commit = on_commit
        self._commits = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = self._url.format(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="commit proxy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        session = Session()
        pumps = [
            asyncio.create_task(self._to_server(reader, server_writer, session)),
            asyncio.create_task(_to_client(server_reader, writer, session)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            _reset(writer)
            _reset(server_writer)

    async def _to_server(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, session: Session) -> None:
        while data := await source.read(CHUNK_BYTES):
            cut = self._decide() if session.commits(data) else None
            if cut == "before":
                return
            if cut == "after":
                session.answer_is_cut.set()
            target.write(data)
            await target.drain()
            if cut == "after":
                self._on_commit()

    def _decide(self) -> Cut | None:
        self._commits += 1
        if not self.every or self._commits % self.every:
            return None
        cut = next(self._cuts)
        self.done.append(cut)
        return cut


async def _to_client(source: asyncio.StreamReader, target: asyncio.StreamWriter, session: Session) -> None:
    while data := await source.read(CHUNK_BYTES):
        if session.answer_is_cut.is_set():
            return  # the answer to the COMMIT: Postgres has carried it out
        session.answered(data)
        target.write(data)
        await target.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST, as from a machine that went away."""
    wrapped = writer.get_extra_info("socket")
    if wrapped is not None and not writer.transport.is_closing():
        wrapped.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
