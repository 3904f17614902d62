"""HTTP by uvicorn on httptools, with the bounds that uvicorn lacks: for `uvicorn.Config(http=…, ws="none")`.

Whatever a client sends, and however slowly it sends or reads, its connection holds a bounded number of bytes and
ends within a deadline; docs/decisions/0009-uvicorn-with-limits.md says why no other server is used. The keep-alive
deadline is uvicorn's own, and how long an application may take to answer is the application's matter.

One timer a connection looks a few times within the shortest deadline, so that a request arms and cancels nothing. A
request refused here gets a problem document (RFC 9457) if nothing else is being answered, and the connection ends.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["LimitedProtocol", "Limits"]

PROGRESS_BYTES: Final = 4_096
"""A client that has taken fewer bytes of an answer within `Limits.write_seconds` does not read."""
LOOKS: Final = 4
"""How often a connection is looked at within the shortest deadline: so late, at most, is its end."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take of the server."""

    connections: int = 1_000
    """Further ones get 503; with a few files of its own, a process stays below the usual limit of 1,024 open files."""
    head_bytes: int = 32 * 1024
    """Request line and headers."""
    body_bytes: int = 8 << 20
    """A body as it is sent, also one that the application has refused. A trailer may have `head_bytes`."""
    pipelined: int = 16
    """Requests that wait for the answers to earlier ones."""
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0


IDLE: Final = 0
"""Phase of a connection: a request has arrived whole, and nothing of the next."""
HEAD: Final = 1
BODY: Final = 2

_NOWHERE: Final[deque[tuple[bytes, bytes]]] = deque(maxlen=0)
"""Where trailers go."""


class _Refused(Exception):
    """Passes through httptools, which makes a parser error of it."""


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol within `limits`; a subclass may set others."""

    limits: ClassVar[Limits] = Limits()

    # In slots: with uvicorn's own 26 attributes, these would end the sharing of keys that makes attributes fast.
    __slots__ = (
        "_framing",
        "_in_chunk",
        "_phase",
        "_read",
        "_received",
        "_refusal",
        "_since",
        "_timer",
        "_unsent",
        "_unsent_since",
    )

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._phase = HEAD
        self._since = self.loop.time()
        self._received = self._read = self._framing = 0
        self._in_chunk = True
        self._refusal = HTTPStatus.BAD_REQUEST
        self._unsent, self._unsent_since = 0, 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        if len(self.connections) >= self.limits.connections:
            self.transport = transport
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open; try again in a second")
            return
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. Every request passes here: the usual one, whole in one read, is done with at once."""
        self._read = len(data)
        self._received += self._read
        super().data_received(data)
        if self._phase == IDLE:
            # Either blank lines, which uvicorn's keep-alive timer takes for a request, or the beginning of a head.
            if self._received or isinstance(self.headers, list):
                self._phase, self._since = HEAD, self.loop.time()
        elif self._received > self.limits.head_bytes:
            self._check_size()

    def on_headers_complete(self) -> None:
        """See httptools. A head may be one of several in a read: only then its own size has to be counted."""
        limit = self.limits.head_bytes
        if (self._received > limit or self._read > limit) and self._head_bytes() > limit:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise _Refused
        if len(self.pipeline) >= self.limits.pipelined:
            raise _Refused
        self._phase, self._received, self._since = BODY, 0, self.loop.time()
        self._in_chunk = True
        super().on_headers_complete()
        self.headers = _NOWHERE  # type: ignore[assignment]  # the scope has its list

    def on_chunk_header(self) -> None:
        """See httptools: what comes is a chunk's data."""
        self._in_chunk, self._framing = True, 0

    def on_chunk_complete(self) -> None:
        """See httptools: what comes is a chunk's head, with its extensions, or a trailer."""
        self._in_chunk, self._framing = False, 0

    def on_message_complete(self) -> None:
        """See httptools."""
        self._phase, self._received = IDLE, 0
        super().on_message_complete()

    def resume_writing(self) -> None:
        """See asyncio.Protocol: the client reads."""
        self._unsent = 0
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What the parser does not take: uvicorn calls this."""
        self._refuse(self._refusal, msg)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _check_size(self) -> None:
        limits = self.limits
        if self._phase == HEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head has at most {limits.head_bytes:,} bytes")
            return
        self._framing += 0 if self._in_chunk else self._read
        if self._framing > limits.head_bytes or self._received > limits.body_bytes:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {limits.body_bytes:,} bytes")

    def _look(self) -> None:
        """Ends the connection if a deadline is over."""
        limits, now = self.limits, self.loop.time()
        shortest = min(limits.head_seconds, limits.body_seconds, limits.write_seconds)
        self._timer = self.loop.call_later(shortest / LOOKS, self._look)
        self._look_at_reading(now - self._since)
        self._look_at_writing(now)

    def _look_at_reading(self, seconds: float) -> None:
        if self.flow.read_paused:
            self._since = self.loop.time()  # it waits for us
        elif self._phase == IDLE:
            # uvicorn arms its keep-alive timer with the answer: the rest of a body that came later has cancelled it.
            unwatched = self.cycle.response_complete and self.timeout_keep_alive_task is None
            if unwatched and seconds > self.timeout_keep_alive:
                self.transport.close()
        elif self._phase == HEAD:
            if seconds > self.limits.head_seconds:
                self._refuse_late("head", self.limits.head_seconds)
        elif seconds > self.limits.body_seconds:
            self._refuse_late("body", self.limits.body_seconds)

    def _refuse_late(self, part: str, limit_seconds: float) -> None:
        if self._received or part == "body":
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the {part} did not come within {limit_seconds:g} s")
        else:
            self.transport.close()  # a browser opens connections ahead of need, and expects no answer there

    def _look_at_writing(self, now: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        # A larger amount is a further answer: the application writes no more than the transport's high-water mark.
        if not self._unsent or unsent > self._unsent or unsent <= self._unsent - PROGRESS_BYTES:
            self._unsent, self._unsent_since = unsent, now
        elif unsent and now - self._unsent_since > self.limits.write_seconds:
            self.transport.abort()

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Closes the connection, after an answer where one may stand."""
        if self.transport.is_closing():
            return
        if self._may_answer():
            document = {"type": "about:blank", "title": status.phrase, "status": status, "detail": detail}
            body = json.dumps(document).encode()
            head = (
                f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/problem+json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n"
            )
            retry = "retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
            self.transport.write(f"{head}{retry}\r\n".encode() + body)
        if self.cycle is not None:
            self.cycle.disconnected = True  # what the application would still send has no place
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether the client waits for nothing but the answer to what it is sending."""
        if self.cycle is None:
            return True  # type: ignore[unreachable]  # uvicorn has it so before the first request
        if self._phase != BODY:
            return self.cycle.response_complete
        return not self.pipeline and not self.cycle.response_started
