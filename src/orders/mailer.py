"""A pool of SMTP connections: opened when first needed, kept, thrown away after any failure.

Invariant: a connection in the pool has no mail half sent; whoever had a failure on it has closed it. A
connection that the server closed while it was idle is replaced once, silently, as long as it died before the
mail's content was sent: that cannot make a second copy. Every wait has a deadline.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import parseaddr
from types import TracebackType
from urllib.parse import unquote, urlsplit

import aiosmtplib

from hopline import UsageError
from orders.domain import normalise_email

CONNECTIONS = 8
CHECKOUT_SECONDS = 10.0
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
"""For one answer of the server. With the two above it stays below a handler's deadline of 30 s, mostly."""

SHUTTING_DOWN = 421
"""Service not available, closing transmission channel (RFC 5321, 4.2.3)."""

DEFAULT_URL = "smtp://127.0.0.1:1025"
DEFAULT_FROM = "Orders <orders@example.com>"


class MailRefused(Exception):
    """The server refuses this mail for good (5xx): sending it again is pointless."""


class MailUnavailable(Exception):
    """No connection, a broken one, or a 4xx: the same mail may go through later."""


class MailServerDown(MailUnavailable):
    """No connection can be made, no answer comes, or the server is not available (421): no mail goes through now."""


class Mailer:
    """Sends finished mails. An async context manager: leaving it closes the connections.

    Safe for many tasks of one loop at once; at most `connections` mails are on their way at a time.
    """

    def __init__(self, url: str = DEFAULT_URL, sender: str = DEFAULT_FROM, *, connections: int = CONNECTIONS) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("smtp", "smtp+starttls", "smtps") or not parts.hostname:
            raise UsageError(
                f"ORDERS_SMTP_URL is smtp://, smtp+starttls:// or smtps://[USER:PASSWORD@]HOST[:PORT], not {url!r}"
            )
        self._host = parts.hostname
        self._port = parts.port or {"smtp": 25, "smtp+starttls": 587, "smtps": 465}[parts.scheme]
        self._scheme = parts.scheme
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self.sender, self._envelope_sender = _sender(sender)
        self.domain = self._envelope_sender.rpartition("@")[2]
        """The right-hand side of every Message-ID."""
        self._idle: list[aiosmtplib.SMTP] = []
        self._slots = asyncio.Semaphore(connections)
        self._closed = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Mailer:
        """Reads ORDERS_SMTP_URL and ORDERS_MAIL_FROM."""
        environment = os.environ if environment is None else environment
        return cls(environment.get("ORDERS_SMTP_URL", DEFAULT_URL), environment.get("ORDERS_MAIL_FROM", DEFAULT_FROM))

    async def __aenter__(self) -> Mailer:
        self._closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_quit(connection) for connection in idle))

    async def send(self, to: str, mail: bytes) -> str:
        """Sends one mail to one recipient; returns the server's answer, such as `250 OK`.

        MailRefused or MailUnavailable if it was not accepted. After a MailUnavailable the server may have it
        all the same (the connection died before its answer came): hence the stable Message-ID.
        """
        try:
            async with self._slot():
                return await self._send(to, mail)
        except TimeoutError as error:
            raise MailServerDown(self._told(error)) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailUnavailable(self._told(error)) from error

    def _told(self, error: Exception) -> str:
        return f"{self._host}:{self._port}: {str(error) or type(error).__name__}"

    async def _send(self, to: str, mail: bytes) -> str:
        while self._idle:
            connection = self._idle.pop()
            try:
                await self._begin(connection, to)
            except (aiosmtplib.SMTPServerDisconnected, OSError):
                connection.close()  # closed by the server while it was idle; nothing was sent on it
                continue
            return await self._finish(connection, mail)
        connection = await self._connect()
        await self._begin(connection, to)
        return await self._finish(connection, mail)

    async def _begin(self, connection: aiosmtplib.SMTP, to: str) -> None:
        with _closing_on_error(connection):
            await self._command(connection, b"MAIL", b"FROM:<%b>" % self._envelope_sender.encode("ascii"))
            await self._command(connection, b"RCPT", b"TO:<%b>" % to.encode("ascii"))

    async def _finish(self, connection: aiosmtplib.SMTP, mail: bytes) -> str:
        with _closing_on_error(connection):
            try:
                answer = await connection.data(mail)
            except aiosmtplib.SMTPDataError as error:
                raise _refusal("DATA", error.code, error.message) from error
        if self._closed:
            await _quit(connection)
        else:
            self._idle.append(connection)
        return f"{answer.code} {answer.message}"

    async def _command(self, connection: aiosmtplib.SMTP, *words: bytes) -> None:
        answer = await connection.execute_command(*words)
        if not 200 <= answer.code < 300:
            raise _refusal(words[0].decode(), answer.code, answer.message)

    async def _connect(self) -> aiosmtplib.SMTP:
        connection = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            timeout=ANSWER_SECONDS,
            username=self._user,
            password=self._password,
            use_tls=self._scheme == "smtps",
            start_tls=self._scheme == "smtp+starttls",
            tls_context=None if self._scheme == "smtp" else ssl.create_default_context(),
            local_hostname="localhost" if self._host in ("localhost", "127.0.0.1", "::1") else None,
        )
        try:
            with _closing_on_error(connection):
                async with asyncio.timeout(CONNECT_SECONDS):
                    await connection.connect()
                    await connection.ehlo()
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            raise MailServerDown(self._told(error)) from error
        return connection

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(CHECKOUT_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise TimeoutError(f"no free connection within {CHECKOUT_SECONDS:g} s") from None
        try:
            yield
        finally:
            self._slots.release()


class _closing_on_error:  # noqa: N801 - a context manager, spelled like a function
    """Closes the connection on any exception, cancellation included: nothing half done goes back to the pool."""

    def __init__(self, connection: aiosmtplib.SMTP) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._connection.close()


def _refusal(command: str, code: int, message: str) -> Exception:
    """5xx is for good, except 5xx that say 'not now' in disguise: there are none that we know (RFC 5321, 4.2.1)."""
    text = f"{command} was answered {code} {message}"
    if code == SHUTTING_DOWN:
        return MailServerDown(text)
    return MailRefused(text) if 500 <= code < 600 else MailUnavailable(text)


async def _quit(connection: aiosmtplib.SMTP) -> None:
    try:
        async with asyncio.timeout(1.0):
            await connection.quit()
    except (aiosmtplib.SMTPException, OSError, TimeoutError):
        connection.close()


def _sender(text: str) -> tuple[str, str]:
    """The From header's value and its bare address."""
    name, address = parseaddr(text)
    try:
        address = normalise_email(address)
    except ValueError as error:
        raise UsageError(f"ORDERS_MAIL_FROM={text!r} is no e-mail address: {error}") from None
    if not (name.isascii() and name.isprintable()):
        raise UsageError(f"ORDERS_MAIL_FROM={text!r}: the name must be plain ASCII")
    return (f"{name} <{address}>" if name else address), address
