"""`hopline worker`: run a worker; list the processes with what each is doing; have one drain and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from hopline import draining
from hopline.app import Hopline
from hopline.cli import roles
from hopline.cli.acting import ReasonOption, WhoOption, YesOption, confirmed, who_acts
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.output import console, print_json, table
from hopline.clock import age_text, utcnow
from hopline.draining import Asked
from hopline.status import Running, WorkerStatus, processes

_ANSWERS = {
    "asked": "is asked to drain; it does with its next heartbeat",
    "asked-before": "was asked to drain already",
    "unknown": "is no process that is known: `hopline worker list`",
    "wrong-role": f"is of a role that nobody can ask to drain, only {' and '.join(draining.ROLES)} can be",
}


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    group = typer.Typer(help="Run a worker; see the processes, and drain one.", invoke_without_command=True)
    group.callback()(worker)
    group.command("list")(list_workers)
    group.command()(drain)
    app.add_typer(group, name="worker")


def worker(
    context: typer.Context,
    app: AppOption = "",
    queue: Annotated[list[str] | None, typer.Option(help="Only this queue; repeat for more. Default: all.")] = None,
) -> None:
    """Handle messages until told to stop. SIGTERM drains: stop taking, finish, acknowledge, close."""
    if context.invoked_subcommand is None:
        roles.worker(app, queue)


def list_workers(app: AppOption = "", as_json: JsonOption = False) -> None:
    """List the processes of the last day, with what each is doing now and for how long."""
    found = asyncio.run(_list(load(app)))
    if as_json:
        print_json({"workers": [asdict(one) for one in found]})
        return
    out = console()
    if not found:
        out.print("No process is known: none runs, or none of this version.", style="yellow")
        return
    made = table("process", "role", "version", "heartbeat", "busy", "queues", "", right=("heartbeat", "busy"))
    for one in found:
        heartbeat = age_text(one.age_seconds) if one.alive else f"dead, {age_text(one.age_seconds)}"
        state = "drains" if one.draining else "; ".join(one.troubles)
        cells = (one.instance, one.role, one.version, heartbeat, f"{one.busy:,}", ", ".join(one.queues), state)
        made.add_row(*cells, style="" if one.alive else "red")
    out.print(made)
    for one in found:
        _print_running(out, one)


def drain(
    instance: Annotated[str, typer.Argument(help="The process, as `hopline worker list` names it.")],
    reason: ReasonOption = "",
    who: WhoOption = "",
    yes: YesOption = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Have one worker or relay stop taking, finish, acknowledge and end, as SIGTERM does.

    Whatever supervises it may start a new one. Exit status 1 if it was not asked: it is unknown, of another role, or
    was asked before.
    """
    program = load(app)
    if not confirmed(f"Drain {instance}?", yes=yes):
        raise typer.Exit(2)
    asked = asyncio.run(_drain(program, instance, who_acts(who), reason))
    if as_json:
        print_json({"instance": instance, "answer": asked})
    else:
        console().print(f"{instance} {_ANSWERS[asked]}.")
    raise typer.Exit(0 if asked == "asked" else 1)


async def _list(program: Hopline) -> list[WorkerStatus]:
    async with program.database() as database:
        await database.check()
        return await processes(database, program.settings)


async def _drain(program: Hopline, instance: str, who: str, reason: str) -> Asked:
    async with program.database() as database:
        await database.check()
        return await draining.drain(database, instance, who=who, reason=reason)


def _print_running(out: Console, one: WorkerStatus) -> None:
    if one.alive and one.running:
        out.print(Text(f"\n{one.instance} is handling", style="bold"))
        for line in _lines(one.running):
            out.print(line)


def _lines(running: tuple[Running, ...]) -> Iterator[Text]:
    now = utcnow()
    for one in running:
        since = age_text(max(0.0, (now - one.since).total_seconds())) if one.since else "?"
        yield Text.assemble(f"  {since:>8}  {one.endpoint}  ", (f"{one.key}  {one.message_id}", "dim"))
