"""Mail after mail over one SMTP connection, pipelined where the server offers it (RFC 2920).

MAIL, RCPT and DATA of a mail leave in one write; its content leaves, once DATA is answered 354, together with the
next mail's commands, if one waits: RFC 2920, section 3.1 lets a content begin a group. So under load a mail is one
write and one read on either side. Without PIPELINING each command waits for the answer to the one before it.

Invariants: a content is written once, after the 354 for its own mail; a mail whose content was written ends with the
server's answer or with an error, never on another connection. After anything but success the connection is closed:
that also ends, without a mail, the transaction of a DATA that was answered 354 although its recipient was refused.
Nothing here waits without a deadline, and an answer has at most REPLY_BYTES. `replies` says what an answer means.

An address that is not ASCII before its @ needs SMTPUTF8 (RFC 6531). Where the server does not offer it, that mail is
refused before anything is written, and the connection goes on to the next.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final, Protocol

from orders.domain import mail_address
from orders.replies import Step, Verdict, judge, parse

REPLY_BYTES: Final = 32_768
"""Of one answer, all of its lines together."""
START_INPUT: Final = 354
"""The answer to DATA: now the content."""
COMMANDS: Final = ("MAIL", "RCPT", "DATA", "DATA")
"""What is answered, in this order; the second answer to DATA is to the content."""

_LINE_BREAK = re.compile(rb"\r\n|\n|\r")


class MailRefused(Exception):
    """This mail is refused for good: sending it again is pointless."""


class RefusalUnclear(MailRefused):
    """As MailRefused; but a server that refuses every mail would say the same."""


class AddressRefused(MailRefused, ValueError):
    """No server can be given this address, or this one cannot; nothing was sent."""


class MailUnavailable(Exception):
    """A connection that broke after the content, or an answer about this mail for now: it may go through later."""


class MailServerDown(MailUnavailable):
    """No connection, no answer, or a refusal of the session or of us: no mail goes through now."""


class Mail:
    """One mail to one recipient on its way; `answer` ends with what the server said, or with one of the errors above.

    AddressRefused for an address that no mail can carry. The content's line breaks become CR LF.
    """

    __slots__ = ("answer", "begun", "commands", "content", "since", "utf8")

    def __init__(self, sender: bytes, to: str, content: bytes, loop: asyncio.AbstractEventLoop) -> None:
        try:
            address = mail_address(to)
        except ValueError as error:
            raise AddressRefused(str(error)) from None
        self.utf8 = not address.isascii()
        """It goes only to a server that offers SMTPUTF8 (RFC 6531, sections 3.2 and 3.4)."""
        parameters = b" SMTPUTF8 BODY=8BITMIME" if self.utf8 else b""
        recipient = address.encode()
        self.commands = b"MAIL FROM:<%b>%b\r\nRCPT TO:<%b>\r\nDATA\r\n" % (sender, parameters, recipient)
        self.content = transparent(content)
        self.begun = False
        """Its first command was written on a connection."""
        self.answer: asyncio.Future[str] = loop.create_future()
        self.since = loop.time()
        """When it was given to the mailer, by the loop's clock."""

    def fail(self, error: Exception) -> None:
        """Ends it with an error, if somebody still waits for it."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Pool(Protocol):
    """What a connection needs of its owner. The calls return at once."""

    def next_mail(self) -> Mail | None:
        """A mail that waits for a connection; it is this one's from now on."""
        ...

    def idle(self, connection: Connection) -> None:
        """The connection has nothing to do: `send` on it when there is a mail."""
        ...

    def over(self, connection: Connection, unsent: Mail | None) -> None:
        """The connection is gone; `unsent` was begun on it, and its content was not written."""
        ...


class Connection(asyncio.Protocol):
    """Takes over the transport of a connection on which EHLO is answered."""

    def __init__(
        self,
        transport: asyncio.Transport,
        pool: Pool,
        place: str,
        *,
        pipelining: bool,
        answer_seconds: float,
        utf8: bool = False,
    ):
        self._transport = transport
        self._pool = pool
        self._place = place
        self._pipelining = pipelining
        self._utf8 = utf8
        """The server takes addresses outside ASCII."""
        self._answer_seconds = answer_seconds
        self._loop = asyncio.get_running_loop()
        self._mail: Mail | None = None
        """The one whose answers come now."""
        self._step = Step.MAIL
        """What is answered next."""
        self._next: Mail | None = None
        """The one whose commands were written behind the content of `_mail`."""
        self._first = True
        """No mail was taken on this connection yet: one that fails on it is not begun anew on another one."""
        self._rest = b""
        self._answer_by = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._quitting = False
        self._gone = asyncio.Event()
        transport.set_protocol(self)

    def send(self, mail: Mail) -> None:
        """Begins a mail; only when idle. Begins the next one if this server cannot be given it."""
        if not self._can_carry(mail):
            self._go_on()
            return
        self._mail = mail
        self._step = Step.MAIL
        mail.begun = True
        self._expect()
        if self._pipelining:
            self._transport.write(mail.commands)
        else:
            self._transport.write(mail.commands[: mail.commands.index(b"\n") + 1])

    def quit(self) -> None:
        """Ends it in order: now if it is idle, else after its mail."""
        self._quitting = True
        if self._mail is None and not self._gone.is_set():
            self._expect()
            self._transport.write(b"QUIT\r\n")

    def abort(self) -> None:
        """Ends it at once."""
        self._transport.abort()

    async def wait_gone(self) -> None:
        """Until it is closed."""
        await self._gone.wait()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Takes every complete answer."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at = 0
        while at < len(data) and not self._gone.is_set():
            end = _reply_end(data, at)
            if not end:
                self._rest = data[at:]
                if len(self._rest) > REPLY_BYTES:
                    self._end(MailUnavailable(f"{self._place}: an answer has over {REPLY_BYTES:,} bytes"))
                return
            self._answered(data[at:end])
            at = end

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, by the server or by us."""
        self._end(self._lost(exc))

    # the conversation

    def _answered(self, raw: bytes) -> None:
        mail = self._mail
        if mail is None:  # a server that says goodbye by itself, or answers QUIT
            self._end(self._lost(None))
            return
        self._answer_by = self._loop.time() + self._answer_seconds
        step = self._step
        reply = parse(raw)
        positive = 200 <= reply.code < 300
        if positive and step < Step.DATA:
            self._step = Step(step + 1)
            if not self._pipelining:
                self._transport.write(mail.commands.splitlines(keepends=True)[self._step])
        elif step == Step.DATA and reply.code == START_INPUT:
            self._step = Step.CONTENT
            self._write_content(mail)
        elif positive and step == Step.CONTENT:
            self._taken(mail, reply.text)
        else:
            self._refused(mail, _ERRORS[judge(step, reply)](f"{COMMANDS[step]} was answered {reply.text}"))

    def _refused(self, mail: Mail, error: MailRefused | MailUnavailable) -> None:
        if isinstance(error, MailServerDown):
            self._end(error)  # a new session may be better (421 after a time, too many mails in one): see _end
        else:
            mail.fail(error)
            self._end(self._lost(None))

    def _write_content(self, mail: Mail) -> None:
        if mail.answer.done():  # nobody waits for it any more; the only way out of DATA is to hang up
            self._end(self._lost(None))
            return
        self._next = self._next_mail() if self._pipelining else None
        if self._next:
            self._next.begun = True
        self._transport.write(mail.content + self._next.commands if self._next else mail.content)

    def _taken(self, mail: Mail, answer: str) -> None:
        if not mail.answer.done():
            mail.answer.set_result(answer)
        self._first = False
        self._mail, self._next = self._next, None
        self._step = Step.MAIL
        if self._mail is None:
            self._go_on()

    def _go_on(self) -> None:
        """There is no mail on the way: begins the next one, or is idle, or quits."""
        if self._quitting:
            self.quit()
        elif (following := self._next_mail()) is not None:
            self.send(following)
        else:
            self._pool.idle(self)

    def _next_mail(self) -> Mail | None:
        """The next mail that this server can be given; none once it quits."""
        while not self._quitting and (mail := self._pool.next_mail()) is not None:
            if self._can_carry(mail):
                return mail
        return None

    def _can_carry(self, mail: Mail) -> bool:
        """Whether the server can be given the mail; if not, the mail has failed (RFC 6531, section 3.2)."""
        if mail.utf8 and not self._utf8:
            why = "the address has a character outside ASCII before its @, and the server does not offer SMTPUTF8"
            mail.fail(AddressRefused(f"{self._place}: {why}"))
            return False
        return True

    # deadlines and the end

    def _expect(self) -> None:
        self._answer_by = self._loop.time() + self._answer_seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._answer_by, self._check_deadline)

    def _check_deadline(self) -> None:
        """One timer a connection, made again only when it has run out: cheaper than one an answer."""
        self._timer = None
        if self._mail is None and not self._quitting:
            return
        if self._loop.time() < self._answer_by:
            self._timer = self._loop.call_at(self._answer_by, self._check_deadline)
            return
        if self._mail is not None:
            what = COMMANDS[self._step]
            self._mail.fail(MailServerDown(f"{self._place}: no answer to {what} within {self._answer_seconds:g} s"))
        self._end(self._lost(None))

    def _lost(self, exc: Exception | None) -> MailUnavailable:
        """Before the content is written nothing of the mail matters to the server: it is down. After, nobody knows."""
        kind = MailUnavailable if self._step == Step.CONTENT else MailServerDown
        return kind(f"{self._place}: the connection was lost{f': {exc}' if exc else ''}")

    def _end(self, error: MailUnavailable) -> None:
        """Closes; a mail whose content was written fails, any other goes back unless it was the first here."""
        if self._gone.is_set():
            return
        self._gone.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        mail, following, self._mail, self._next = self._mail, self._next, None, None
        if mail is not None and (self._first or self._step == Step.CONTENT):
            mail.fail(error)
            mail = None
        unsent = following or mail
        if unsent is not None and unsent.answer.done():
            unsent = None
        if unsent is not None:
            unsent.begun = False
        self._transport.abort()
        self._pool.over(self, unsent)


def transparent(content: bytes) -> bytes:
    """A content as it goes over the wire, its end included (RFC 5321, sections 2.3.8, 4.1.1.4 and 4.5.2)."""
    breaks = content.count(b"\r\n")
    if content.count(b"\n") != breaks or content.count(b"\r") != breaks:
        content = _LINE_BREAK.sub(b"\r\n", content)
    if b"\r\n." in content:
        content = content.replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    return content + (b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n")


_ERRORS: Final[dict[Verdict, type[MailRefused | MailUnavailable]]] = {
    Verdict.REFUSED: MailRefused,
    Verdict.UNCLEAR: RefusalUnclear,
    Verdict.LATER: MailUnavailable,
    Verdict.DOWN: MailServerDown,
}


def _reply_end(data: bytes, at: int) -> int:
    """Where the answer at `at` ends; 0 if its last line is not all there (RFC 5321, section 4.2.1)."""
    while (end := data.find(b"\n", at)) >= 0:
        if end <= at + 3 or data[at + 3 : at + 4] != b"-":
            return end + 1
        at = end + 1
    return 0
