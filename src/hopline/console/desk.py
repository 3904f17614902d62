"""What the pages of one console work with: the program, its database, today's code, the sampler and the jobs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hopline.app import Hopline
from hopline.audit import Audit
from hopline.console.config import ConsoleSettings
from hopline.console.live import Live
from hopline.console.mailbox import Mailbox
from hopline.console.masking import Mask
from hopline.console.passwords import Failures, OneTimeLink, Passwords
from hopline.console.rendering import Rendering
from hopline.console.replays import Replays
from hopline.console.request import Connection, session_of
from hopline.console.sessions import Sessions
from hopline.database import Database
from hopline.repair import Code


@dataclass(frozen=True, slots=True)
class Account:
    """The latest reconciliation that somebody asked for."""

    at: datetime
    audit: Audit | None
    trouble: str


@dataclass
class Desk:
    """One console's parts."""

    app: Hopline
    settings: ConsoleSettings
    database: Database
    code: Code
    live: Live
    rendering: Rendering
    sessions: Sessions
    passwords: Passwords
    link: OneTimeLink | None
    """None: people sign in with a password."""
    failures: Failures
    replays: Replays
    mailbox: Mailbox | None
    account: Account | None = None
    """The latest one."""
    reconciling: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while one is made: it reads every message."""

    async def close(self) -> None:
        """Ends the streams at once, stops the jobs, and closes the database."""
        await self.live.close()
        await self.replays.close()
        await self.database.close()

    def mask_for(self, connection: Connection) -> Mask | None:
        """The mask for who is signed in; None for operators, who see everything."""
        return None if session_of(connection).is_operator else Mask(self.settings.personal)


def code_of(app: Hopline) -> Code:
    """What today's code of the program knows."""
    return Code(app.catalog, app.handlers, timedelta(days=app.settings.inbox_retention_days))
