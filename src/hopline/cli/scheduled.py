"""`hopline scheduled`: what the outbox will send later (retries, deferrals, delayed messages); hurry or cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from hopline import repair, scheduled
from hopline.app import Hopline
from hopline.cli.acting import (
    AllOption,
    IdsArgument,
    KeyOption,
    QueueOption,
    ReasonOption,
    TypeOption,
    WhoOption,
    YesOption,
    check_choice,
    confirmed,
    repairing,
    who_acts,
)
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.output import console, counted, one_line, print_json, time_text
from hopline.clock import age_text, utcnow
from hopline.database import Database
from hopline.scheduled import ScheduledFilter, ScheduledSend

NAMED = 1_000
"""So many ids are named in an answer."""

Act = Callable[[Database, list[str]], Awaitable[set[str]]]


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    group = typer.Typer(
        help="See what will be sent later (retries, deferrals, delayed messages), hurry it or cancel it.",
        no_args_is_help=True,
    )
    group.command("list")(list_sends)
    group.command("run-now")(run_now)
    group.command()(cancel)
    app.add_typer(group, name="scheduled")


def list_sends(
    queue: QueueOption = None,
    type_name: TypeOption = None,
    key: KeyOption = None,
    limit: Annotated[int, typer.Option(min=1, max=scheduled.PAGE_SENDS, help="At most so many.")] = 20,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """List what is scheduled, the soonest first: when it is due, where it goes, and why it waits."""
    sends, count = asyncio.run(_find(load(app), ScheduledFilter(queue, type_name, key), limit))
    if as_json:
        print_json({"count": count, "sends": [asdict(send) for send in sends]})
        return
    out = console()
    for send in sends:
        out.print(send_lines(send))
    out.print(Text(f"{len(sends):,} of {counted(count, 'scheduled send')}.", style="dim"))


def run_now(  # noqa: PLR0913 - a command's options
    ids: IdsArgument = None,
    queue: QueueOption = None,
    type_name: TypeOption = None,
    key: KeyOption = None,
    everything: AllOption = False,
    reason: ReasonOption = "",
    who: WhoOption = "",
    yes: YesOption = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make scheduled sends due now; a running relay sends them within a second.

    Exit status 1 if one of the given ids was not scheduled any more, 2 if more than one would change without --yes.
    """
    name = who_acts(who)
    which = _which(ids, ScheduledFilter(queue, type_name, key), everything=everything)

    async def act(database: Database, some: list[str]) -> set[str]:
        return await repair.run_now(database, some, who=name, reason=reason)

    raise typer.Exit(asyncio.run(_act(load(app), which, act, ("Send", "now"), yes=yes, as_json=as_json)))


def cancel(  # noqa: PLR0913 - a command's options
    ids: IdsArgument = None,
    queue: QueueOption = None,
    type_name: TypeOption = None,
    key: KeyOption = None,
    everything: AllOption = False,
    reason: ReasonOption = "",
    who: WhoOption = "",
    yes: YesOption = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """See to it that scheduled sends are never sent. `hopline audit` counts their messages as cancelled.

    Exit status 1 if one of the given ids was not scheduled any more, 2 if more than one would change without --yes.
    """
    name = who_acts(who)
    which = _which(ids, ScheduledFilter(queue, type_name, key), everything=everything)

    async def act(database: Database, some: list[str]) -> set[str]:
        return await repair.cancel(database, some, who=name, reason=reason)

    raise typer.Exit(asyncio.run(_act(load(app), which, act, ("Cancel", "for good"), yes=yes, as_json=as_json)))


def send_lines(send: ScheduledSend) -> RenderableType:
    """A send in a list: two lines, and a third if an attempt failed."""
    first = Text.assemble(
        (send.id, "bold"),
        (f"  {time_text(send.due_at)}  ", "dim"),
        (f"in {age_text(max(0.0, (send.due_at - utcnow()).total_seconds()))}  ", "cyan"),
        f"{send.destination or '(all bound queues)'}  {send.type} v{send.version}",
    )
    run = f"run {send.run}  " if send.run else ""
    lines = [
        first,
        Text(f"  {send.kind}  {run}attempt {send.attempt}  key {send.key}", "dim"),
    ]
    if send.error:
        lines.append(Text(f"  {one_line(send.error)}", style="red", no_wrap=True, overflow="ellipsis"))
    return Lines(*lines)


def _which(ids: list[str] | None, chosen: ScheduledFilter, *, everything: bool) -> ScheduledFilter:
    check_choice(ids or [], filtered=chosen != ScheduledFilter(), everything=everything)
    return ScheduledFilter(ids=tuple(dict.fromkeys(ids))) if ids else chosen


async def _find(program: Hopline, which: ScheduledFilter, limit: int) -> tuple[list[ScheduledSend], int]:
    async with repairing(program) as (database, _), database.reading() as connection:
        sends = await scheduled.find(connection, which, limit=limit)
        return sends, await scheduled.count(connection, which)


async def _act(
    program: Hopline, which: ScheduledFilter, act: Act, words: tuple[str, str], *, yes: bool, as_json: bool
) -> int:
    """Acts on all that the filter finds, in small transactions; 1 if a given id was not changed."""
    verb, when = words
    changed: list[str] = []
    async with repairing(program) as (database, _):
        async with database.reading() as connection:
            count = await scheduled.count(connection, which)
        if count > 1 and not confirmed(f"{verb} {counted(count, 'scheduled send')} {when}?", yes=yes):
            return 2
        async for ids in _pages(database, which):
            changed += sorted(await act(database, ids))
    late = [identifier for identifier in which.ids or () if identifier not in changed]
    if as_json:
        print_json({"changed": len(changed), "sends": changed[:NAMED], "not_scheduled": late})
    else:
        out = console()
        for identifier in late:
            out.print(Text.assemble(identifier, ("  is not scheduled: unknown, due or sent", "yellow")))
        done = {"Send": "due now", "Cancel": "cancelled"}[verb]
        out.print(f"{counted(len(changed), 'scheduled send')} {done}.")
    return 1 if late else 0


async def _pages(database: Database, which: ScheduledFilter) -> AsyncIterator[list[str]]:
    """The ids that are scheduled, the soonest first."""
    after: scheduled.Place | None = None
    while True:
        async with database.reading() as connection:
            found = await scheduled.find(connection, which, limit=repair.ACT_LETTERS, after=after)
        if not found:
            return
        yield [send.id for send in found]
        after = found[-1].place
