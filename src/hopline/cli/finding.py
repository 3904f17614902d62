"""Find something: `hopline search TEXT`, `hopline message show ID`; and what operators did: `hopline log`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from hopline import auditlog, messages
from hopline.app import Hopline
from hopline.auditlog import LogFilter, Recorded
from hopline.cli.acting import period
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.output import console, counted, one_line, print_json, shown, table, text_of, time_text
from hopline.messages import WholeMessage
from hopline.search import Found, Hit


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command()(search)
    group = typer.Typer(help="Look into a stored message.", no_args_is_help=True)
    group.command("show")(show_message)
    app.add_typer(group, name="message")
    app.command()(log)


def search(
    text: Annotated[str, typer.Argument(help="An order id, message id, idempotency key, e-mail address, …")],
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Find whatever has the text as its name: a business key, any id, and what the program itself can look up.

    Each hit names its flow, for `hopline trace`. Exit status 1 if nothing was found.
    """
    found = asyncio.run(_search(load(app), text))
    if as_json:
        print_json(found)
    elif found.hits:
        for hit in found.hits:
            console().print(_hit_line(hit))
        if found.more:
            console().print(Text("There are more: be more exact.", style="dim"))
    else:
        typer.echo(_nothing(found), err=True)
    raise typer.Exit(0 if found.hits else 1)


def show_message(
    message: Annotated[str, typer.Argument(help="The message's id.")], app: AppOption = "", as_json: JsonOption = False
) -> None:
    """Show one message whole: its body, headers and properties, its sends, and what each endpoint made of it.

    Exit status 1 if there is no such message.
    """
    found = asyncio.run(_message(load(app), message))
    if found is None:
        typer.echo(f"There is no message {message} here: another database's, or purged after its retention.", err=True)
        raise typer.Exit(1)
    if as_json:
        print_json({**msgspec.structs.asdict(found), "body_text": text_of(found.body)})
    else:
        _print_message(console(), found)


def log(  # noqa: PLR0913 - a command's options
    by: Annotated[str | None, typer.Option("--by", help="Acts of this person.", show_default=False)] = None,
    action: Annotated[str | None, typer.Option(help="Acts of this kind, such as replay.", show_default=False)] = None,
    target: Annotated[
        str | None, typer.Option(help="Acts on this, such as 'queue emails'.", show_default=False)
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="At or after: 2h, 7d, 2026-01-31T10:00.", show_default=False)
    ] = None,
    until: Annotated[str | None, typer.Option(help="At or before.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=auditlog.ENTRIES, help="Of one page.")] = 20,
    before: Annotated[str | None, typer.Option(help="The page before this entry.", show_default=False)] = None,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show who did what, to what, when and why, the latest first."""
    which = LogFilter(by, action, target, *period(since, until))
    found = asyncio.run(_log(load(app), which, limit, before))
    if as_json:
        print_json({"entries": [asdict(one) for one in found]})
        return
    out = console()
    for one in found:
        out.print(_log_line(one))
    if len(found) == limit:
        out.print(Text(f"Older ones: --before {found[-1].id}", style="dim"))
    if not found:
        out.print(Text("Nothing was done.", style="dim"))


async def _search(program: Hopline, text: str) -> Found:
    async with program.database() as database:
        await database.check()
        return await program.search(database, text)


async def _message(program: Hopline, identifier: str) -> WholeMessage | None:
    async with program.database() as database:
        await database.check()
        return await messages.read(database, identifier)


async def _log(program: Hopline, which: LogFilter, limit: int, before: str | None) -> list[Recorded]:
    async with program.database() as database:
        await database.check()
        async with database.reading() as connection:
            return await auditlog.find(connection, which, limit=limit, before=before)


def _hit_line(hit: Hit) -> Text:
    about = f"  {hit.type} of {hit.key}" if hit.type and hit.key else ""
    return Text.assemble(
        (f"{hit.kind:<12}", "cyan"), (f"{time_text(hit.at)}  ", "dim"), one_line(hit.text), (f"{about}\n", "dim"),
        (f"            hopline trace {hit.flow}", "dim"),
    )  # fmt: skip


def _nothing(found: Found) -> str:
    looked = ", ".join(found.looked_for) or "nothing"
    if found.purged:
        return f"{found.text} was purged: it is older than what is kept. Looked for as: {looked}."
    return f"Nothing is known of {found.text!r}. Looked for as: {looked}."


def _log_line(one: Recorded) -> Text:
    reason = f": {one_line(one.reason)}" if one.reason else ""
    return Text.assemble(
        (f"{time_text(one.at)}  ", "dim"), (one.action, "bold"), f"  {one.target}  by {one.who}{reason}"
    )


def _print_message(out: Console, found: WholeMessage) -> None:
    facts = table("", "")
    facts.show_header = False
    for name, value in (
        ("message", found.id),
        ("type", f"{found.type} v{found.version}"),
        ("key", found.key),
        ("flow", found.correlation_id),
        ("caused by", found.cause_id or "(it is the first of its flow)"),
        ("made", f"{time_text(found.created_at)} UTC"),
    ):
        facts.add_row(Text(name, style="dim"), value)
    out.print(facts)
    for title, lines in _story(found):
        out.print(Text(f"\n{title}", style="bold"))
        out.print(Text("\n".join(f"  {line}" for line in lines)))
    out.print(Text("\nProperties", style="bold"))
    out.print(Text(msgspec.json.format(msgspec.json.encode(found.properties)).decode()))
    out.print(Text(f"\nBody, {counted(len(found.body), 'byte')}", style="bold"))
    out.print(Text(shown(found.body)))


def _story(found: WholeMessage) -> Iterator[tuple[str, list[str]]]:
    if found.sends:
        yield (
            "Sends",
            [
                f"{one.id}  {one.state}  run {one.run} attempt {one.attempt} to {one.destination or 'all'}"
                for one in found.sends
            ],
        )
    if found.attempts:
        yield (
            "Failed attempts",
            [
                f"{time_text(one.finished_at)}  {one.endpoint}  run {one.run} attempt {one.attempt}, {one.outcome}: "
                f"{one_line(one.error)}"
                for one in found.attempts
            ],
        )
    if found.done:
        yield (
            "Done by",
            [
                f"{time_text(one.done_at)}  {one.endpoint}  attempt {one.attempt} on {one.worker}  {one.note}".rstrip()
                for one in found.done
            ],
        )
    if found.letters:
        yield "Dead letters", [f"{one.id}  {one.reason}  {one.resolution or 'parked'}" for one in found.letters]
    if found.caused:
        yield "Caused", [f"{one.id}  {one.type} of {one.key}" for one in found.caused]
