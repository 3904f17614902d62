"""What a program may give the console in development: the mails that it has sent. Nothing here reads mail itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import msgspec


class Mail(msgspec.Struct, frozen=True):
    """One mail that was sent."""

    id: str
    """Names it in a URL: letters, digits, dots and dashes."""
    message_id: str
    to: tuple[str, ...]
    subject: str
    at: datetime


class WholeMail(msgspec.Struct, frozen=True):
    """One mail with its content, decoded."""

    mail: Mail
    headers: tuple[tuple[str, str], ...]
    text: str
    """Its text part; empty if it has none."""
    html: str
    """Its HTML part, as source text."""
    raw: str


class Mailbox(Protocol):
    """The mails of a development mailbox. May be called from any task; each call is short or runs in a thread."""

    async def page(self, *, limit: int, before: str = "") -> Sequence[Mail]:
        """The latest mails, newest first: at most `limit`, older than the mail `before` if one is named."""
        ...

    async def find(self, identifier: str) -> WholeMail | None:
        """One mail, if it is there."""
        ...
