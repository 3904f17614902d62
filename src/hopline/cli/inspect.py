"""See what happened: `hopline trace KEY` tells one order's whole story, `hopline audit` accounts for every message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hopline import repair
from hopline.accounting import explained
from hopline.app import Hopline
from hopline.audit import Audit
from hopline.cli.acting import ReasonOption, WhoOption, YesOption, confirmed, repairing, who_acts
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.output import console, counted, print_json, table
from hopline.errors import UsageError
from hopline.timeline import Step

_COLOURS = {
    "request": "bold cyan",
    "message": "cyan",
    "outbox": "blue",
    "confirm": "green",
    "attempt": "yellow",
    "done": "bold green",
    "dead-letter": "bold red",
    "repair": "bold magenta",
}


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command()(trace)
    app.command()(audit)


def trace(
    key: Annotated[str, typer.Argument(help="A business key, such as an order id.")],
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Tell one business key's whole story, from the HTTP request to the email, in time order.

    Exit status 1 if nothing is known of the key.
    """
    steps = asyncio.run(load(app).timeline(key))
    if as_json:
        print_json({"key": key, "steps": [asdict(step) for step in steps]})
    elif steps:
        console().print(_story(key, steps))
    else:
        typer.echo(f"Nothing is known of {key!r}: no message with that key, or purged after its retention.", err=True)
    raise typer.Exit(0 if steps else 1)


def audit(
    resend: Annotated[bool, typer.Option("--resend", help="Send what is missing again, to its queue.")] = False,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", help="Only this missing message; repeatable.", show_default=False),
    ] = None,
    reason: ReasonOption = "",
    who: WhoOption = "",
    yes: YesOption = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Account for every message at every endpoint, by evidence, and name the ids that are missing.

    While a queue holds something, `missing` is a lower bound, and no id can be told. With --resend the named ones are
    sent again, in the same run and attempt: a copy that turns up after all is absorbed.

    Exit status 1 if any message is missing (with --resend: and was not sent again); 2 if more than one would be sent
    without --yes; 3 if the broker could not be asked about some.
    """
    program = load(app)
    if resend:
        raise typer.Exit(asyncio.run(_resend(program, ids, who_acts(who), reason, yes=yes, as_json=as_json)))
    if ids:
        raise UsageError("--id says what to send again: give --resend too")
    result = asyncio.run(program.audit())
    if as_json:
        print_json(_as_json(result))
    else:
        _print_audit(result)
    raise typer.Exit(_status(result))


def _status(result: Audit) -> int:
    return 1 if result.missing else 3 if result.unproven else 0


def _as_json(result: Audit) -> dict[str, Any]:
    return {
        **asdict(result),
        "missing": result.missing,
        "missing_is_least": result.missing_is_least,
        "pending": result.pending,
        "unproven": result.unproven,
        "is_fine": result.is_fine,
    }


async def _resend(program: Hopline, ids: list[str] | None, who: str, reason: str, *, yes: bool, as_json: bool) -> int:
    repair.check_act(who, reason)
    result = await program.audit()
    if not as_json:
        _print_audit(result)
    repair.check_evidence(result)
    count = len(set(ids)) if ids else sum(one.missing for one in repair.named(result))
    sent: list[repair.Resent] = []
    if count and repair.named(result):
        if count > 1 and not confirmed(f"Send {counted(count, 'message')} again?", yes=yes):
            return 2
        async with repairing(program) as (database, _):
            parts = repair.resend(database, list(program.handlers), result, who=who, reason=reason, ids=ids or None)
            async for part in parts:
                sent += part
    done = {one.message_id for one in sent}
    refused = sorted(set(ids or ()) - done)
    left = 0 if ids else max(0, result.missing - len(sent))
    if as_json:
        told = [asdict(one) for one in sent]
        print_json({"sent": told, "not_missing": refused, "left": left, "audit": _as_json(result)})
    else:
        _print_resent(sent, refused, left)
    return 1 if refused or left else 3 if result.unproven and not ids else 0


def _print_resent(sent: Sequence[repair.Resent], refused: Sequence[str], left: int) -> None:
    out = console()
    for identifier in refused:
        out.print(Text.assemble(identifier, ("  is not missing by name: settled, on its way or unknown", "yellow")))
    out.print(f"{counted(len(sent), 'message')} sent again. `hopline audit` tells what became of them.")
    if left:
        out.print(f"{counted(left, 'missing message')} not named yet, and not sent again.", style="yellow")


def _story(key: str, steps: list[Step]) -> Table:
    told = table("time (UTC)", "+ms", "", "took", " ", right=("+ms", "took"), title=f"{key}: {len(steps)} steps")
    first = steps[0].at
    for step in steps:
        took = f"{step.seconds * 1000:.0f} ms" if step.seconds is not None else ""
        text = Text(
            step.text if step.what in ("message", "request", "done", "attempt") else f"{step.type}: {step.text}"
        )
        if step.worker:
            text.append(f"  [{step.worker}]", style="dim")
        since = f"{(step.at - first).total_seconds() * 1000:.0f}"
        label = Text(step.what, style=_COLOURS[step.what])
        told.add_row(f"{step.at:%Y-%m-%d %H:%M:%S.%f}"[:-3], since, label, took, text)
    return told


def audit_table(result: Audit) -> Table:
    """The account of each endpoint, one a row."""
    unproven = ("unproven",) if result.unproven else ()
    names = ("created", "done", "open", "in broker", "parked", "discarded", "cancelled", *unproven, "missing")
    made = table("endpoint", *names, right=names)
    for one in result.endpoints:
        figures = [f"{getattr(one, name.replace(' ', '_')):,}" for name in names]
        if one.missing and not one.missing_ids:
            figures[-1] = f"at least {figures[-1]}"
        made.add_row(one.endpoint, *figures, style="bold red" if one.missing else None)
    return made


def _print_audit(result: Audit) -> None:
    out = console()
    out.print(audit_table(result))
    for one in result.endpoints:
        for identifier in one.missing_ids:
            out.print(f"missing: {identifier} at {one.endpoint}", style="red")
    for text in explained(result):
        out.print(text, style="yellow", soft_wrap=True)
    if result.is_fine:
        out.print("Every message is accounted for.", style="green")
