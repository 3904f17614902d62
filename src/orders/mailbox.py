"""A mail server for development: takes every mail and writes it to a ledger that a person or a test can read.

The ledger is append-only NDJSON, one line a mail, written with one system call before the mail is answered
250: what was answered is there, also after kill -9 (not after a power cut: there is no fsync). A torn last
line was never answered, and is skipped when reading.

It is aiosmtpd with its three slow places replaced: the content is read in one piece instead of line by line,
plain addresses are not parsed by the email package, and commands are not made safe for a log that is off.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from aiosmtpd.smtp import SMTP, Envelope, Session

LIMIT_BYTES = 1 << 20
IDLE_SECONDS = 300.0
CONNECTIONS = 1_000

_PLAIN = re.compile(r"<([A-Za-z0-9._+-]+@[A-Za-z0-9.-]+)>")
_HEADER = re.compile(rb"(?im)^(message-id|subject):[ \t]*((?:[^\r\n]|\r\n[ \t])*)")
_END = b"\r\n.\r\n"
_STUFFED = re.compile(rb"(^|\r\n)\.")


class Mail(msgspec.Struct, frozen=True):
    """One line of the ledger."""

    message_id: str
    to: list[str]
    subject: str
    at: datetime
    raw: str
    """The mail as it came, UTF-8; other bytes are replaced."""


class Ledger:
    """The open ledger. `close()` it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._encoder = msgspec.json.Encoder()
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # what was torn off stays a line of its own

    def append(self, mail: Mail) -> None:
        """Writes one mail; OSError if the disk does not take it."""
        line = self._encoder.encode(mail) + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError(f"the ledger took only a part of a line of {len(line)} bytes")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def mails(path: Path) -> Iterator[Mail]:
    """The mails of a ledger, oldest first. Lines that are no mail (torn by a crash) are skipped."""
    decoder = msgspec.json.Decoder(Mail)
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                try:
                    yield decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue


def count_by_message_id(path: Path) -> Counter[str]:
    """How often each Message-ID was delivered."""
    return Counter(mail.message_id for mail in mails(path))


async def serve(host: str, port: int, ledger: Path, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then closes all connections. OSError if the port is taken."""
    book = Ledger(ledger)
    loop = asyncio.get_running_loop()
    connected: set[_Server] = set()
    try:
        server = await loop.create_server(lambda: _Server(_Handler(book), connected), host, port)
        try:
            await stop.wait()
        finally:
            server.close()
            for connection in list(connected):
                connection.abort()
            await server.wait_closed()
    finally:
        book.close()


class _Handler:
    """aiosmtpd's hooks: the one that greets and the one that takes a mail."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """Offers pipelining (RFC 2920): commands are taken from the stream one by one, however they came."""
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        content = envelope.content
        assert isinstance(content, bytes)
        headers = _headers(content)
        mail = Mail(
            message_id=headers.get("message-id", ""),
            to=[one.encode(errors="replace").decode() for one in envelope.rcpt_tos],  # aiosmtpd leaves surrogates
            subject=headers.get("subject", ""),
            at=datetime.now(UTC),
            raw=content.decode(errors="replace"),
        )
        try:
            self._ledger.append(mail)
        except OSError as error:
            return f"452 4.3.1 the ledger cannot be written: {error}"
        return f"250 2.0.0 taken {mail.message_id[:200]}"


class _Server(SMTP):
    """aiosmtpd's SMTP, one instance a connection, with its slow places replaced."""

    line_length_limit = LIMIT_BYTES + 1024

    def __init__(self, handler: _Handler, connected: set[_Server]) -> None:
        self._connected = connected
        super().__init__(
            handler,
            data_size_limit=LIMIT_BYTES,
            enable_SMTPUTF8=True,
            hostname="mailbox.localhost",
            ident="Hopline mailbox",
            timeout=IDLE_SECONDS,
            loop=asyncio.get_running_loop(),
        )

    def connection_made(self, transport: Any) -> None:
        """Refuses one connection too many."""
        super().connection_made(transport)
        self._connected.add(self)
        if len(self._connected) > CONNECTIONS:
            transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Forgets the connection."""
        self._connected.discard(self)
        super().connection_lost(error)

    def abort(self) -> None:
        """Closes the connection at once."""
        if self.transport is not None:
            self.transport.abort()  # type: ignore[attr-defined]

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        plain = _PLAIN.fullmatch(arg)
        return (plain[1], "") if plain else super()._getaddr(arg)

    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's name
        """DATA, read in one piece (RFC 5321, section 4.1.1.4)."""
        if await self.check_helo_needed():
            return
        if self.envelope is None or not self.envelope.rcpt_tos:
            await self.push("503 Error: need RCPT command")
            return
        if arg:
            await self.push("501 Syntax: DATA")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        content = await self._content()
        if content is None:
            answer = f"552 5.3.4 a mail has at most {LIMIT_BYTES} bytes"
        else:
            self.envelope.content = self.envelope.original_content = content
            answer = await self._call_handler_hook("DATA")
        self._set_post_data_state()  # type: ignore[no-untyped-call]
        await self.push(answer)

    async def _content(self) -> bytes | None:
        """The mail without its end and the dots stuffed into it; None if it is too large.

        The end is a line that is a dot, its own line break and the one before it CR LF: a bare LF ends nothing.
        """
        mail = bytearray(b"\r\n")  # the end of the line with the command: an empty mail is a dot at once
        too_large = False
        while not mail.endswith(_END):
            try:
                mail += await self._reader.readuntil(b".\r\n")
            except asyncio.LimitOverrunError as error:
                mail += await self._reader.read(error.consumed)
            if len(mail) > LIMIT_BYTES:
                too_large = True
                del mail[: -len(_END)]  # the end may have begun in it
        if too_large:
            return None
        content = bytes(mail[2 : -len(_END) + 2])
        return _STUFFED.sub(rb"\1", content) if b"\r\n." in content or content.startswith(b".") else content


def _headers(content: bytes) -> dict[str, str]:
    head = content.partition(b"\r\n\r\n")[0]
    return {
        name.decode().lower(): re.sub(r"\r\n[ \t]", " ", value.decode(errors="replace")).strip()
        for name, value in _HEADER.findall(head)
    }
