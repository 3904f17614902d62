"""What an SMTP reply says: is it about this mail, about the session, or not for now. Pure; total over all bytes.

`judge` reads replies that are no success. The first row of `_TABLE` that fits decides; the last rows fit everything.
A reply about the session, the server or us pauses the queue, because every other mail would meet it too. A reply about
this mail parks this mail. When in doubt a 5xx to MAIL is about the session, because the server knows nothing of
this mail yet (its sender is the same for all); a 5xx to RCPT, DATA or the content is about this mail.

The basic code has three digits (RFC 5321, section 4.2). The enhanced code behind it is optional (RFC 2034); its middle
number names the subject: 1 address, 2 mailbox, 3 system, 4 network, 5 protocol, 6 content, 7 security (RFC 3463,
section 3; the register of RFC 5248 has the later ones). Servers disagree about 5.7.1, so its text is read as well.
A wrong reading cannot do much: see evidence.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

TEXT_CHARACTERS: Final = 1_000
"""Kept of the text of a reply: it goes into logs, attempts and dead letters."""


class Step(IntEnum):
    """What a reply answers, in the order of a mail. Until EHLO is answered there is no mail: see mailer.py."""

    MAIL = 0
    RCPT = 1
    DATA = 2
    CONTENT = 3


class Verdict(Enum):
    """What a reply that is no success says."""

    REFUSED = "this mail, for good"
    UNCLEAR = "this mail, for good; but a server that refuses every mail would say the same"
    LATER = "this mail, not now; or nothing that can be understood"
    DOWN = "the session, the server or us: no mail goes through now"


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply in its parts."""

    code: int
    """0 if there is none, or if the lines of the reply disagree (RFC 5321, section 4.2.1 wants one code)."""
    enhanced: str
    """Such as `5.1.1`; empty if there is none."""
    text: str
    """The code and what all lines say after it, on one line, printable, with at most TEXT_CHARACTERS."""


def parse(raw: bytes) -> Reply:
    """Reads the lines of one reply, whatever bytes they are."""
    lines = raw.rstrip(b"\r\n").split(b"\n")
    codes = {_code(line) for line in lines}
    code = codes.pop() if len(codes) == 1 else 0
    found = _ENHANCED.match(lines[0])
    first = lines[0][:3].decode(errors="replace")
    said = " ".join(line[4:].decode(errors="replace").strip() for line in lines)
    return Reply(code, found[1].decode() if found else "", printable(f"{first} {said}"))


def printable(text: str) -> str:
    """What a server said as it may be logged and stored: one line without control characters, bounded."""
    return "".join(one if one.isprintable() else " " for one in text[:TEXT_CHARACTERS])


def judge(step: Step, reply: Reply) -> Verdict:
    """What a reply that is no success says; see `_TABLE`."""
    enhanced = reply.enhanced if reply.enhanced[:1] == f"{reply.code}"[0] else ""  # RFC 2034: both of one class
    words = _ADDRESS.sub(" ", reply.text[4:])
    return next(row.verdict for row in _TABLE if row.fits(step, f"{reply.code:03}", enhanced, words))


def _code(line: bytes) -> int:
    """RFC 5321, section 4.2: three digits, then a blank, a hyphen or the end of the line."""
    return int(line[:3]) if line[:3].isdigit() and line[3:4] in (b"", b" ", b"-", b"\r") and len(line) >= 3 else 0


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of the table. Patterns are of the whole code and the whole enhanced code, and of any part of the text."""

    verdict: Verdict
    code: str = "..."
    enhanced: str = ".*"
    says: str = ""
    steps: frozenset[Step] = frozenset(Step)

    def fits(self, step: Step, code: str, enhanced: str, words: str) -> bool:
        return (
            step in self.steps
            and re.fullmatch(self.code, code) is not None
            and re.fullmatch(self.enhanced, enhanced) is not None
            and (not self.says or re.search(self.says, words, re.IGNORECASE) is not None)
        )


_ENHANCED = re.compile(rb"[0-9]{3}[ -]([245]\.[0-9]{1,3}\.[0-9]{1,3})(?![0-9.])")  # RFC 3463, section 2
_ADDRESS = re.compile(r"<[^>]*>|\S*@\S*")
"""What a reply repeats of the mail's addresses: `relay@example.com` says nothing of relaying."""

_OF_SESSION = (
    r"authenticat|\bauth\b|log ?in\b|starttls|\btls\b|encryption (is )?(required|needed)|relay"
    r"|client (host|ip|address|was not)|\byour (ip|host|server|network|domain|account)|\bip\b|black ?list|block ?list"
    r"|deny ?list|blocked (using|by)|dnsbl|\brbl\b|spamhaus|reputation|send(ing)? as\b|sender|reverse dns|\bptr\b"
    r"|\bhelo\b|\behlo\b|\bspf\b|\bdkim\b|\bdmarc\b|(rate|sending|hourly|daily) (limit|quota)"
    r"|too many (connections|messages|e?-?mails)"
)
_OF_RECIPIENT = r"recipient|mailbox|no such|unknown user|user unknown|does not exist"
_GREYLISTED = r"gr[ae]y.?list"

_MAIL = frozenset({Step.MAIL})
_RCPT = frozenset({Step.RCPT})
_CONTENT = frozenset({Step.CONTENT})

_TABLE: Final = (
    # Not this mail, at any step. 421: closing (RFC 5321, 3.8). 432, 454, 530, 534, 535, 538: no authentication or no
    # encryption (RFC 4954, sections 4 and 6; RFC 3207, 4), 523 to 525 likewise (RFC 5248). 500, 502 to 504, 555: the
    # dialogue itself (RFC 5321, 4.2.2). 521: a host that takes no mail (RFC 7504, section 3).
    _Row(
        Verdict.DOWN, code="421|432|454|500|502|503|504|521|523|524|525|530|534|535|538|555", enhanced=r"(?!5\.6\.).*"
    ),
    # Addresses outside ASCII, and content that cannot be taken as it is (RFC 3463, 3.7; RFC 6531, 3.5: 5.6.7, 5.6.9).
    _Row(Verdict.REFUSED, code="5..", enhanced=r"5\.6\..*"),
    _Row(Verdict.DOWN, code="5..", steps=_MAIL),
    # Bad sender: 5.1.7 syntax, 5.1.8 system (RFC 3463, 3.2). All other 1s and 2s are about the recipient (3.2, 3.3).
    _Row(Verdict.DOWN, enhanced=r"[45]\.1\.[78]"),
    _Row(Verdict.REFUSED, code="5..", enhanced=r"5\.[12]\..*"),
    # 5.3.4: too large for the system; the other 3s are the system's own state (RFC 3463, 3.4).
    _Row(Verdict.REFUSED, code="5..", enhanced=r"5\.3\.4"),
    _Row(Verdict.DOWN, enhanced=r"[45]\.3\..*"),
    _Row(Verdict.DOWN, code="5..", enhanced=r"5\.5\..*"),  # protocol (RFC 3463, 3.6)
    # Security (RFC 3463, 3.8, and the register of RFC 5248). 15 to 19: priority and owner of the mailbox. 100 to 199:
    # Exchange's restricted recipients. 8 to 14: authentication. 20 to 30: DKIM, SPF, reverse DNS, DMARC. 50 and above:
    # Exchange's refusals of clients and senders, such as 5.7.57, 5.7.60 and 5.7.606.
    _Row(Verdict.REFUSED, code="5..", enhanced=r"5\.7\.(1[5-9]|1..)"),
    _Row(Verdict.DOWN, code="5..", enhanced=r"5\.7\.([89]|1[0-4]|2.|30|[5-9].|[5-9]..)"),
    _Row(Verdict.DOWN, code="5..", enhanced=r"(5\.[07]\..*)?", says=_OF_SESSION),
    _Row(Verdict.UNCLEAR, code="5..", enhanced=r"5\.7\..*", says=_OF_RECIPIENT),
    _Row(Verdict.UNCLEAR, code="5..", enhanced=r"5\.7\..*", steps=_CONTENT),
    _Row(Verdict.DOWN, code="5..", enhanced=r"5\.7\..*"),
    _Row(Verdict.REFUSED, code="5..", enhanced=r"", says=_OF_RECIPIENT, steps=_RCPT),
    _Row(Verdict.UNCLEAR, code="5.."),
    # 4xx: a policy against us is met by every mail; greylisting is about one recipient (RFC 6647, section 2).
    _Row(Verdict.LATER, code="4..", enhanced=r"4\.7\..*", says=_GREYLISTED),
    _Row(Verdict.DOWN, code="4..", enhanced=r"4\.7\..*"),
    _Row(Verdict.LATER),
)
