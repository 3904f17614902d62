"""`hopline topology plan` shows what the declared topology would change on the live broker; `apply` adds.

Nothing here deletes or replaces: what differs or is left over may hold messages, so `apply` names the steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from hopline import live
from hopline.app import Hopline
from hopline.cli.context import AppOption, JsonOption, load
from hopline.topology import Change, Plan

DIFFERENCES = 4
"""Exit status: the broker is not as declared. 1 to 3 have their meanings for every command."""

AlsoOption = Annotated[
    list[str] | None,
    typer.Option("--also", help="Another program on the same broker, as module:attribute; repeat for more."),
]

_SIGNS = {"missing": ("+", "green"), "different": ("~", "yellow"), "extra": ("-", "red")}


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    group = typer.Typer(
        help="Compare the declared exchanges, queues and bindings with the live broker, and add what is missing.",
        no_args_is_help=True,
    )
    group.command()(plan)
    group.command()(apply)
    app.add_typer(group, name="topology")


def plan(app: AppOption = "", also: AlsoOption = None, as_json: JsonOption = False) -> None:
    """Show what the declared topology would change on the live broker: + missing, ~ different, - extra.

    Reads through RabbitMQ's management API (HOPLINE_MANAGEMENT_URL) and changes nothing. Extra is said only of
    Hopline's own: exchanges hopline*, queues and bindings on them.

    Exit status 0 if the broker is as declared, 4 if there are differences (2: usage, 3: no answer from RabbitMQ).
    """
    found = asyncio.run(load(app).plan([load(other) for other in also or ()]))
    if as_json:
        _print_json(found)
    else:
        _print_plan(found)
    raise typer.Exit(0 if found.in_sync else DIFFERENCES)


def apply(app: AppOption = "", also: AlsoOption = None, as_json: JsonOption = False) -> None:
    """Declare what is missing; refuse the rest and name the steps to take. Deletes nothing, ever.

    Exit status 0 if the broker is now as declared, 4 if something was refused (2: usage, 3: no answer from
    RabbitMQ).
    """
    before, after = asyncio.run(_apply(load(app), [load(other) for other in also or ()]))
    if as_json:
        _print_json(after, added=_added(before, after))
    else:
        _print_applied(before, after)
    raise typer.Exit(0 if after.in_sync else DIFFERENCES)


async def _apply(program: Hopline, also: Sequence[Hopline]) -> tuple[Plan, Plan]:
    before = await program.plan(also)
    if before.count("missing"):
        await live.add(program.settings.broker_url, before.additions)
    return before, await program.plan(also)


def _added(before: Plan, after: Plan) -> list[Change]:
    """What was missing and is there now."""
    missing = {(change.kind, change.name) for change in after.changes if change.state == "missing"}
    return [
        change for change in before.changes if change.state == "missing" and (change.kind, change.name) not in missing
    ]


def _print_plan(found: Plan) -> None:
    console = Console(soft_wrap=True)
    if found.in_sync:
        console.print("The broker is as declared.", style="green")
        return
    for change in found.changes:
        console.print(_line(change))
        for difference in change.differences:
            console.print(f"      {difference.trait}: {_value(difference.live)} -> {_value(difference.declared)}")
    console.print(
        f"\n{found.count('missing')} missing, {found.count('different')} different, {found.count('extra')} extra. "
        "`hopline topology apply` adds what is missing and names the steps for the rest."
    )


def _print_applied(before: Plan, after: Plan) -> None:
    console = Console(soft_wrap=True)
    for change in _added(before, after):
        console.print(Text("added    ", style="green").append(_line(change).plain.strip()))
    for change in after.changes:
        console.print(Text("refused  ", style="bold red").append(_line(change).plain.strip()))
        for difference in change.differences:
            console.print(f"      {difference.trait}: {_value(difference.live)} -> {_value(difference.declared)}")
        for step in change.steps:
            console.print(Text(f"      {step}", style="dim"))
    if after.in_sync:
        console.print("The broker is as declared.", style="green")
    else:
        console.print("\nNothing that exists was changed or deleted.")


def _line(change: Change) -> Text:
    sign, colour = _SIGNS[change.state]
    text = Text(f"  {sign} {change.kind:<9}{change.name}", style=colour)
    if change.kind == "queue" and change.state != "missing":
        held = "an unknown number of" if change.messages is None else f"{change.messages:,}"
        text.append(f"  ({held} message{'' if change.messages == 1 else 's'})")
    return text


def _value(value: object) -> str:
    return "(none)" if value is None else msgspec.json.encode(value).decode()


def _print_json(found: Plan, **more: Any) -> None:
    answer = {"in_sync": found.in_sync, "changes": [asdict(change) for change in found.changes], **more}
    typer.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
