"""What the console is given in development: the mails of the ledger, newest first.

A mail is named by the place of its line in the file, so that a page is read from the file's end and never all of it.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import os
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path

import msgspec

from hopline import UsageError
from hopline.console import Mail, WholeMail
from orders.mailbox import LIMIT_BYTES
from orders.mailbox import Mail as Line
from orders.settings import OrdersSettings

LEDGER = "ORDERS_MAIL_LEDGER"
CHUNK_BYTES = 1 << 18
LINE_BYTES = 8 * LIMIT_BYTES
"""No line is longer: a mail whose every byte is escaped."""

_decoder = msgspec.json.Decoder(Line)


class LedgerMailbox:
    """The Mailbox of one ledger, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def page(self, *, limit: int, before: str = "") -> Sequence[Mail]:
        """See hopline.console.Mailbox."""
        return await asyncio.to_thread(self._page, limit, int(before) if before.isdecimal() else None)

    async def find(self, identifier: str) -> WholeMail | None:
        """See hopline.console.Mailbox."""
        return await asyncio.to_thread(self._find, int(identifier)) if identifier.isdecimal() else None

    def _page(self, limit: int, before: int | None) -> list[Mail]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            end = size if before is None else min(before, size)
            start, data = end, b""
            while start > 0 and data.count(b"\n") <= limit and end - start < LINE_BYTES:
                step = min(CHUNK_BYTES, start)
                start -= step
                file.seek(start)
                data = file.read(step) + data
        places = _places(data, start)
        return [mail for place, line in reversed(places) if (mail := _mail(place, line)) is not None][:limit]

    def _find(self, place: int) -> WholeMail | None:
        if not self._path.exists():
            return None
        with self._path.open("rb") as file:
            file.seek(max(0, place - 1))
            if place and file.read(1) != b"\n":
                return None
            line = file.readline(LINE_BYTES)
        mail = _mail(place, line)
        return None if mail is None else _whole(mail, _decoder.decode(line).raw)


def _places(data: bytes, start: int) -> list[tuple[int, bytes]]:
    """The whole lines of a part of the file, each with its place; the first may be the end of one, and is left out."""
    lines = data.split(b"\n")
    place = start
    found = []
    for number, line in enumerate(lines):
        if line and (number or start == 0):
            found.append((place, line))
        place += len(line) + 1
    return found


def _mail(place: int, line: bytes) -> Mail | None:
    try:
        read = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # torn by a crash: it was never answered
    return Mail(str(place), read.message_id, tuple(read.to), read.subject, read.at)


def _whole(mail: Mail, raw: str) -> WholeMail:
    parsed = email.message_from_string(raw, _class=EmailMessage, policy=email.policy.default)
    parts = {part.get_content_type(): part for part in parsed.walk() if not part.is_multipart()}
    return WholeMail(
        mail,
        headers=tuple((name, str(value)) for name, value in parsed.items()),
        text=_content(parts.get("text/plain")),
        html=_content(parts.get("text/html")),
        raw=raw,
    )


def _content(part: EmailMessage | None) -> str:
    if part is None:
        return ""
    payload = part.get_payload(decode=True)
    return payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""


def mailbox() -> LedgerMailbox:
    """The mailbox whose ledger ORDERS_MAIL_LEDGER names: for `hopline console --mailbox orders.console:mailbox`."""
    path = OrdersSettings.from_environment().mail_ledger
    if not path:
        raise UsageError(f"{LEDGER} is not set: the file that `orders mailbox --ledger` writes")
    return LedgerMailbox(Path(path))
