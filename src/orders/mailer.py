"""A pool of SMTP connections: opened when first needed, kept, thrown away after any failure.

aiosmtplib connects, encrypts and logs in; then `smtp.Connection` takes the connection over and sends mail after mail.
A mail goes to a connection that is idle, to a new one while there are fewer than the limit, else it waits for the
first that can take it.

Invariant: a connection in the pool has no mail half sent; whoever had a failure on it has closed it. A
connection that the server closed while it was idle is replaced once, silently, as long as it died before the
mail's content was sent: that cannot make a second copy. Every wait has a deadline.

Whatever goes wrong before EHLO is answered on the encrypted and authenticated connection is MailServerDown, because no
mail had a part in it: the greeting (554, RFC 5321, 3.1), EHLO (4.1.1.1), STARTTLS (RFC 3207), AUTH (RFC 4954), or an
answer that cannot be read. After that replies.py reads each answer, and evidence.py bounds what a wrong reading does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from email.utils import parseaddr
from types import TracebackType
from typing import cast

import aiosmtplib

from hopline import UsageError
from orders.domain import normalise_email
from orders.evidence import Evidence
from orders.replies import printable
from orders.settings import OrdersSettings, smtp_server
from orders.smtp import Connection, Mail, MailServerDown, MailUnavailable, RefusalUnclear

CONNECTIONS = 8
CHECKOUT_SECONDS = 10.0
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
"""For one answer of the server. With the two above it stays below a handler's deadline of 30 s, mostly."""
QUIT_SECONDS = 1.0

_DEFAULTS = OrdersSettings()


class Mailer:
    """Sends finished mails. An async context manager: leaving it closes the connections.

    Safe for many tasks of one loop at once; at most `connections` mails are on their way at a time.
    """

    def __init__(
        self, url: str = _DEFAULTS.smtp_url, sender: str = _DEFAULTS.mail_from, *, connections: int = CONNECTIONS
    ) -> None:
        server = smtp_server(url)
        self._host, self._port, self._scheme = server.host, server.port, server.scheme
        self._user, self._password = server.user, server.password
        self.sender, address = _sender(sender)
        self._envelope_sender = address.encode("ascii")
        self.domain = address.rpartition("@")[2]
        """The right-hand side of every Message-ID."""
        self._evidence = Evidence()
        self._limit = connections
        self._busy = 0
        """Connections that there are or that are being made."""
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._opening: dict[asyncio.Task[None], Mail] = {}
        self._waiting: deque[Mail] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Mailer:
        """Reads ORDERS_SMTP_URL and ORDERS_MAIL_FROM."""
        settings = OrdersSettings.from_environment(environment)
        return cls(settings.smtp_url, settings.mail_from)

    async def __aenter__(self) -> Mailer:
        self._closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Connections that have a mail on its way finish it; mails that wait for one fail."""
        self._closed = True
        opening = dict(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for mail in (*opening.values(), *self._waiting):
            mail.fail(MailUnavailable("the mailer is closed"))
        self._waiting.clear()
        for connection in self._connections:
            connection.quit()
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_gone(connection) for connection in idle))

    async def send(self, to: str, mail: bytes) -> str:
        """Sends one mail to one recipient; returns the server's answer, such as `250 OK`.

        MailRefused, MailUnavailable or MailServerDown if it was not accepted. After a MailUnavailable the server may
        have it all the same (the connection died before its answer came): hence the stable Message-ID.
        """
        one = Mail(self._envelope_sender, to, mail, asyncio.get_running_loop())
        if self._idle:
            self._idle.pop().send(one)
        elif self._busy < self._limit:
            self._open_for(one)
        else:
            self._waiting.append(one)
            self._watch_waiting()
        try:
            answer = await one.answer
        except RefusalUnclear as refusal:
            if self._evidence.blames_server(to):
                raise MailServerDown(f"{refusal} (as for all mails before it: it may be the server's fault)") from None
            raise
        except MailServerDown as down:
            if one.begun and self._evidence.blames_mail(to):
                raise MailUnavailable(f"{down} (other mails go through: it may be this mail's fault)") from None
            raise
        self._evidence.taken(to)
        return answer

    # smtp.Pool

    def next_mail(self) -> Mail | None:
        """See smtp.Pool."""
        while self._waiting:
            mail = self._waiting.popleft()
            if not mail.answer.done():
                return mail
        return None

    def idle(self, connection: Connection) -> None:
        """See smtp.Pool."""
        self._idle.append(connection)

    def over(self, connection: Connection, unsent: Mail | None) -> None:
        """See smtp.Pool. Its place goes to the mail that it leaves unsent, or to one that waits."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._freed(unsent)

    # connections

    def _freed(self, unsent: Mail | None = None) -> None:
        self._busy -= 1
        mail = unsent or self.next_mail()
        if mail is None:
            return
        if self._closed:
            mail.fail(MailUnavailable("the mailer is closed"))
        else:
            self._open_for(mail)

    def _open_for(self, mail: Mail) -> None:
        self._busy += 1
        task = asyncio.create_task(self._open(mail), name="mail connection")
        self._opening[task] = mail
        task.add_done_callback(self._opening.pop)

    async def _open(self, mail: Mail) -> None:
        try:
            connection = await self._connect()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the sender gets
            mail.fail(error)
            self._freed()
        else:
            self._connections.add(connection)
            connection.send(mail)

    async def _connect(self) -> Connection:
        client = aiosmtplib.SMTP(
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
        place = f"{self._host}:{self._port}"
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await client.connect()
                await client.ehlo()
        except Exception as error:  # a library's UnicodeError or binascii.Error is no mail's fault either
            client.close()
            raise MailServerDown(f"{place}: {printable(str(error)) or type(error).__name__}") from error
        except BaseException:
            client.close()
            raise
        if client.transport is None:
            raise MailServerDown(f"{place}: the connection was lost")
        transport = cast("asyncio.Transport", client.transport)
        pipelining = client.supports_extension("pipelining")
        utf8 = client.supports_extension("smtputf8") and client.supports_extension("8bitmime")  # RFC 6531, 3.1, item 8
        return Connection(transport, self, place, pipelining=pipelining, utf8=utf8, answer_seconds=ANSWER_SECONDS)

    # mails that wait for a connection

    def _watch_waiting(self) -> None:
        """One timer for all that wait, since the first of them has waited longest."""
        if self._timer is None and self._waiting:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._waiting[0].since + CHECKOUT_SECONDS, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._waiting and self._waiting[0].since + CHECKOUT_SECONDS <= now:
            down = f"{self._host}:{self._port}: no free connection within {CHECKOUT_SECONDS:g} s"
            self._waiting.popleft().fail(MailServerDown(down))
        self._watch_waiting()


async def _gone(connection: Connection) -> None:
    try:
        async with asyncio.timeout(QUIT_SECONDS):
            await connection.wait_gone()
    except TimeoutError:
        connection.abort()


def _sender(text: str) -> tuple[str, str]:
    """The From header's value and its bare address."""
    name, address = parseaddr(text)
    try:
        address = normalise_email(address)
    except ValueError as error:
        raise UsageError(f"ORDERS_MAIL_FROM={text!r} is no e-mail address: {error}") from None
    if not address.isascii():
        raise UsageError(f"ORDERS_MAIL_FROM={text!r}: the part before the @ must be plain ASCII")
    if not (name.isascii() and name.isprintable()):
        raise UsageError(f"ORDERS_MAIL_FROM={text!r}: the name must be plain ASCII")
    return (f"{name} <{address}>" if name else address), address
