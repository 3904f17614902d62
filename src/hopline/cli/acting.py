"""What the commands that change something have in common: who acts, what is chosen, and the question before it.

Nothing acts on more than one thing without `--yes`, or without a yes on a terminal.
"""

from __future__ import annotations

import getpass
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from hopline.app import Hopline
from hopline.clock import utcnow
from hopline.database import Database
from hopline.errors import UsageError
from hopline.outbox import Outbox
from hopline.repair import Code

WhoOption = Annotated[
    str, typer.Option("--who", help="Who acts, for the audit log. Default: login@host.", show_default=False)
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Act on more than one without asking.")]
AllOption = Annotated[bool, typer.Option("--all", help="All that there are, without any filter.")]
QueueOption = Annotated[str | None, typer.Option("--queue", help="Of this queue.", show_default=False)]
TypeOption = Annotated[str | None, typer.Option("--type", help="Of this message type.", show_default=False)]
KeyOption = Annotated[str | None, typer.Option("--key", help="With this business key.", show_default=False)]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit log.", show_default=False)]

IdsArgument = Annotated[list[str] | None, typer.Argument(help="Ids, as a list shows them.")]
ReasonFilter = Annotated[
    str | None, typer.Option("--died-of", help="Parked for this reason, such as exhausted.", show_default=False)
]
GroupFilter = Annotated[
    str | None, typer.Option("--group", help="Of this group (`hopline dead groups`).", show_default=False)
]
SinceFilter = Annotated[
    str | None, typer.Option("--since", help="Died at or after: 2h, 7d, 2026-01-31T10:00.", show_default=False)
]
UntilFilter = Annotated[str | None, typer.Option("--until", help="Died at or before.", show_default=False)]

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def who_acts(given: str) -> str:
    """The given name, else login@host."""
    if given:
        return given
    try:
        login = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        login = "unknown"
    return f"{login}@{socket.gethostname()}"


def parse_time(text: str | None, now: datetime) -> datetime | None:
    """`90s`, `30m`, `2h` or `7d` before now, or a time in ISO 8601, in UTC if it names no zone."""
    if text is None:
        return None
    if ago := re.fullmatch(r"(\d{1,9})([smhd])", text):
        return now - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no time: give 2h, 30m, 7d, or 2026-01-31T10:00 (UTC)") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def period(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """The two ends of a period, by this machine's clock."""
    now = utcnow()
    return parse_time(since, now), parse_time(until, now)


def check_choice(ids: list[str], *, filtered: bool, everything: bool) -> None:
    """UsageError unless something was chosen, in one way."""
    if ids and (filtered or everything):
        raise UsageError("give ids, or a filter: not both")
    if not ids and not filtered and not everything:
        raise UsageError("which? Give ids, or a filter such as --queue or --group, or --all")


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether to go on: with `--yes`, or by the answer on a terminal; without either it says what is missing."""
    if yes:
        return True
    if sys.stdin.isatty() and sys.stdout.isatty():
        return typer.confirm(question)
    typer.echo(f"hopline: {question} Nothing was done: say --yes to do it.", err=True)
    return False


@asynccontextmanager
async def repairing(program: Hopline) -> AsyncIterator[tuple[Database, Code]]:
    """The program's database with an outbox, so that what is sent is due at once for any relay; and today's code."""
    settings = program.settings
    code = Code(program.catalog, program.handlers, timedelta(days=settings.inbox_retention_days))
    async with program.database() as database:
        await database.check()
        database.riders.append(Outbox(limit=settings.outbox_limit, lease_seconds=settings.lease_seconds))
        yield database, code
