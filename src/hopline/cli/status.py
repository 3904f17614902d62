"""`hopline status`: the whole on one screen, once or live."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hopline.app import Hopline
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.dead import group_lines
from hopline.cli.inspect import audit_table
from hopline.cli.output import console, counted, one_line, print_json, table, time_text
from hopline.clock import age_text
from hopline.database import Database
from hopline.status import HeldQueue, PausedQueue, QueueStatus, Status, WorkerStatus, checks, snapshot, troubles

WATCH_SECONDS = 2.0
WATCH_AUDIT_SECONDS = 30.0
"""Between two audits while watching: an audit reads every message."""


def add_to(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command()(status)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Again every 2 seconds, until Ctrl-C.")] = False,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Without the account of every message.")] = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show the whole on one screen: queues, outbox, what waits, what is parked, who works, and the account.

    Exit status 1 if something needs a person; it is listed at the end. 3 if RabbitMQ or the database does not
    answer. With --watch and --json: one line of JSON each time, and the account every 30 seconds.
    """
    program = load(app)
    if not watch:
        found = asyncio.run(_once(program, with_audit=not no_audit))
        print_json(as_json_value(found)) if as_json else console().print(screen(found))
        raise typer.Exit(3 if found.broker_trouble else 1 if troubles(found) else 0)
    try:
        asyncio.run(_watch(program, with_audit=not no_audit, as_json=as_json))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


async def _once(program: Hopline, *, with_audit: bool) -> Status:
    async with program.database() as database:
        await database.check()
        return await _look(program, database, with_audit=with_audit)


async def _look(program: Hopline, database: Database, *, with_audit: bool) -> Status:
    queues = program.handlers.queues()
    reconcile = partial(program.audit, patient=False) if with_audit else None
    return await snapshot(database, queues, program.settings, reconcile=reconcile)


async def _watch(program: Hopline, *, with_audit: bool, as_json: bool) -> None:
    out = console()
    live = Live(console=out, screen=True, auto_refresh=False) if out.is_terminal and not as_json else None
    audited: Status | None = None
    audit_at = time.monotonic()
    async with program.database() as database:
        await database.check()
        with live or nullcontext():
            while True:
                audit_now = with_audit and time.monotonic() >= audit_at
                found = await _look(program, database, with_audit=audit_now)
                if audit_now:
                    audited, audit_at = found, time.monotonic() + WATCH_AUDIT_SECONDS
                elif audited is not None:
                    found = replace(found, audit=audited.audit, audit_trouble=audited.audit_trouble)
                if as_json:
                    sys.stdout.write(msgspec.json.encode(as_json_value(found)).decode() + "\n")
                    sys.stdout.flush()
                elif live:
                    live.update(screen(found), refresh=True)
                else:
                    out.print(screen(found))
                await asyncio.sleep(WATCH_SECONDS)


def as_json_value(found: Status) -> dict[str, Any]:
    """A status as one JSON-able value, with what needs a person."""
    judged = {"troubles": troubles(found), "checks": checks(found)}
    return {**asdict(found), "in_flight": found.in_flight, **judged}


def screen(found: Status) -> RenderableType:
    """A status as one screen of about 100 columns."""
    wrong = troubles(found)
    title = Text("Hopline  ", style="bold").append(f"{time_text(found.at)} UTC", style="dim")
    verdict = f"{counted(len(wrong), 'thing')} to look at" if wrong else "all is well"
    title.append(f"   {verdict}", "bold red" if wrong else "green")
    parts: list[RenderableType] = [title, Text(), _queues(found), Text(), _flow(found)]
    for more in (_parked(found), _workers(found), _paused(found), _unknown(found), _losses(found), _account(found)):
        lines = list(more)
        if lines:
            parts += [Text(), *lines]
    if wrong:
        parts += [Text(), Text("To look at", style="bold"), *(Text(f"  {one_line(line)}", "red") for line in wrong)]
    return Lines(*parts)


def _queues(found: Status) -> Table:
    figures = ("ready", "in flight", "consumers", "oldest")
    made = table("queue", *figures, right=figures)
    for queue in found.queues:
        made.add_row(queue.name, *_queue_figures(queue), style=_queue_style(queue))
    return made


def _queue_figures(queue: QueueStatus) -> Iterator[str]:
    if queue.exists is False:
        yield from ("missing", "", "", "")
        return
    yield from ("?" if number is None else f"{number:,}" for number in (queue.ready, queue.unacked, queue.consumers))
    sign = "over" if queue.oldest_is_least else "about"
    yield "" if queue.oldest_seconds is None else f"{sign} {age_text(queue.oldest_seconds)}"


def _queue_style(queue: QueueStatus) -> str:
    bad = queue.exists is False or (queue.depth and queue.consumers == 0)
    return "bold red" if bad else ""


def _flow(found: Status) -> Table:
    outbox = found.outbox
    more = "+" if outbox.is_least else ""
    made = Table.grid(padding=(0, 3))
    oldest = f" (oldest {age_text(outbox.oldest_seconds)})" if outbox.oldest_seconds is not None else ""
    flight = "?" if found.in_flight is None else f"{found.in_flight:,}"
    made.add_row(
        _figure("outbox unsent", f"{outbox.unsent:,}{more}{oldest}"),
        _figure("in flight", flight),
        _figure("retrying", f"{outbox.retrying:,}{more}"),
        _figure("delayed", f"{outbox.delayed:,}{more}"),
        _figure("parked", f"{found.parked:,}{'+' * found.parked_is_least}", "bold red" if found.parked else ""),
        _figure("dead today", f"{found.dead_today:,}{'+' * found.dead_today_is_least}"),
    )
    return made


def _figure(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style))


def _parked(found: Status) -> Iterator[RenderableType]:
    if found.parked_groups:
        yield Text("Parked, by cause", style="bold")
        yield from (group_lines(group) for group in found.parked_groups)


def _workers(found: Status) -> Iterator[RenderableType]:
    if not found.workers:
        yield Text("No process is known: none runs, or none of this version.", style="yellow")
        return
    made = table("process", "role", "version", "heartbeat", "busy", "queues", right=("heartbeat", "busy"))
    for worker in found.workers:
        made.add_row(*_worker_cells(worker), style="" if worker.alive else "red")
    yield made


def _worker_cells(worker: WorkerStatus) -> Iterator[str]:
    yield worker.instance
    yield worker.role
    yield worker.version
    yield age_text(worker.age_seconds) if worker.alive else f"dead, {age_text(worker.age_seconds)}"
    yield f"{worker.busy:,}"
    yield ", ".join(worker.queues)


def _paused(found: Status) -> Iterator[RenderableType]:
    if found.held:
        yield Text("Paused by a person", style="bold")
        yield from (_held_line(found, held) for held in found.held)
    if found.paused:
        yield Text("Paused", style="bold")
        yield from (_pause_line(found, pause) for pause in found.paused)


def _held_line(found: Status, held: HeldQueue) -> Text:
    since = age_text(max(0.0, (found.at - held.since).total_seconds()))
    obeyed = f"{held.workers} of {held.of_workers} workers obey"
    return Text(f"  {held.queue} for {since} by {held.who}, {obeyed}: {one_line(held.reason)}", style="cyan")


def _pause_line(found: Status, pause: PausedQueue) -> Text:
    since = f" for {age_text(max(0.0, (found.at - pause.since).total_seconds()))}" if pause.since else ""
    wait = max(0.0, (pause.until - found.at).total_seconds()) if pause.until else 0.0
    then = "one message is tried now" if pause.probing or not wait else f"tried again in {age_text(wait)}"
    return Text(f"  {pause.queue}{since}, {then}: {one_line(pause.reason)}", style="yellow")


def _unknown(found: Status) -> Iterator[RenderableType]:
    if found.unknown:
        alive = sum(worker.alive and bool(worker.queues) for worker in found.workers)
        yield Text("Unknown to workers (a deploy that is not over?)", style="bold")
        for one in found.unknown:
            yield Text(
                f"  {one.name}: deferred {counted(one.deferred, 'time')} by {one.workers} of {alive} workers", "yellow"
            )


def _losses(found: Status) -> Iterator[RenderableType]:
    if found.losses:
        yield Text("Queues that were lost", style="bold")
        for loss in found.losses:
            again = f"{counted(loss.rescheduled, 'message')} sent again"
            yield Text(f"  {loss.queue} at {time_text(loss.lost_at)}, found by {loss.found_by}: {again}", "yellow")


def _account(found: Status) -> Iterator[RenderableType]:
    if found.audit is not None:
        yield audit_table(found.audit)
