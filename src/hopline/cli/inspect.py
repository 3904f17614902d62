"""See what happened: `hopline trace KEY` tells one order's whole story, `hopline audit` accounts for every message."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from hopline.audit import METRICS_LAG_SECONDS, Audit, QueueAudit
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.output import console, counted, print_json, table
from hopline.timeline import Step
from hopline.topology import dead_queue

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


def audit(app: AppOption = "", as_json: JsonOption = False) -> None:
    """Account for every message at every endpoint, by evidence, and name the ids that are missing.

    While a queue holds something, `missing` is a lower bound, and no id can be told.

    Exit status 1 if any message is missing; 3 if the broker could not be asked about some.
    """
    result = asyncio.run(load(app).audit())
    if as_json:
        print_json(
            {
                **asdict(result),
                "missing": result.missing,
                "missing_is_least": result.missing_is_least,
                "pending": result.pending,
                "unproven": result.unproven,
                "is_fine": result.is_fine,
            }
        )
    else:
        _print_audit(result)
    raise typer.Exit(1 if result.missing else 3 if result.unproven else 0)


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
    for text, style in notes(result):
        out.print(text, style=style, soft_wrap=True)
    if result.is_fine:
        out.print("Every message is accounted for.", style="green")


def notes(result: Audit) -> Iterator[tuple[str, str]]:
    """What the figures of an account mean, and what to do: (sentence, style)."""
    for one in result.queues:
        if one.missing and not one.is_named:
            yield _least(one), "red"
        elif one.dead:
            dead = counted(one.dead, "message")
            yield f"{dead} lie in {dead_queue(one.queue)}: a running worker fetches and parks them.", "yellow"
    if result.unproven:
        yield _unproven(result), "yellow"


def _least(one: QueueAudit) -> str:
    dead = f", {one.dead:,} of them in {dead_queue(one.queue)}" if one.dead else ""
    return (
        f"At least {one.missing:,} of {counted(one.unsettled, 'message')} sent to the queue {one.queue} are missing: "
        f"it holds {one.held:,}{dead}. Let the workers empty it and ask again: then the missing ones are named."
    )


def _unproven(result: Audit) -> str:
    text = f"{counted(result.unproven, 'message')} are sent and not settled, and nothing proves where they are: "
    if result.trouble:
        return f"{text}{result.trouble}. Ask again when RabbitMQ answers."
    if result.recent >= result.unproven:
        return f"{text}RabbitMQ's figures may not show them yet. Ask again in {METRICS_LAG_SECONDS:g} s."
    return (
        f"{text}workers hold deliveries that cannot be counted. Set HOPLINE_MANAGEMENT_URL, or stop the workers and "
        "ask again."
    )
