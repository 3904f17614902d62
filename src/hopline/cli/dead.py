"""`hopline dead`: see the dead letters (`list`, `groups`, `show`). dead_acts.py and dead_edit.py change them."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.text import Text

from hopline import deadletter_queries
from hopline.app import Hopline
from hopline.auditlog import Recorded, letter_target, recent
from hopline.cli import dead_acts, dead_edit
from hopline.cli.acting import (
    GroupFilter,
    KeyOption,
    QueueOption,
    ReasonFilter,
    SinceFilter,
    TypeOption,
    UntilFilter,
    period,
    repairing,
)
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.output import bar, console, counted, one_line, print_json, shown, table, text_of, time_text
from hopline.deadletter_queries import Filter, Group, Letter, State, WholeLetter
from hopline.errors import UsageError
from hopline.json_text import encoded
from hopline.repair import Verdict, check

ACTS = 20

StateOption = Annotated[
    str, typer.Option("--state", help="parked, replayed, edited, discarded or any.", metavar="STATE")
]


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    group = typer.Typer(
        help="See what is parked, and repair it: replay, edit, discard.",
        no_args_is_help=True,
    )
    group.command("list")(list_letters)
    group.command()(groups)
    group.command()(show)
    dead_acts.add_to(group)
    dead_edit.add_to(group)
    app.add_typer(group, name="dead")


def list_letters(  # noqa: PLR0913 - a command's options
    queue: QueueOption = None,
    type_name: TypeOption = None,
    key: KeyOption = None,
    reason: ReasonFilter = None,
    group: GroupFilter = None,
    since: SinceFilter = None,
    until: UntilFilter = None,
    state: StateOption = "parked",
    limit: Annotated[int, typer.Option(min=1, max=deadletter_queries.PAGE_LETTERS, help="Of one page.")] = 20,
    after: Annotated[str, typer.Option(help="The page after this letter.", show_default=False)] = "",
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """List dead letters, the newest first: when, where, what and why."""
    since_time, until_time = period(since, until)
    which = Filter(queue, type_name, key, reason, group, since_time, until_time, None, _state(state))
    letters, count = asyncio.run(_find(load(app), which, limit, after))
    if as_json:
        print_json({"count": count, "letters": [asdict(letter) for letter in letters]})
        return
    out = console()
    for letter in letters:
        out.print(letter_lines(letter))
    out.print(Text(f"{len(letters):,} of {counted(count, 'letter')}, {state}.", style="dim"))
    if len(letters) == limit and count > limit:
        out.print(Text(f"Older ones: --after {letters[-1].id}", style="dim"))


def groups(  # noqa: PLR0913 - a command's options
    queue: QueueOption = None,
    type_name: TypeOption = None,
    key: KeyOption = None,
    reason: ReasonFilter = None,
    since: SinceFilter = None,
    until: UntilFilter = None,
    state: StateOption = "parked",
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Group dead letters by cause: the exception's type, and where it left the program's own code."""
    since_time, until_time = period(since, until)
    which = Filter(queue, type_name, key, reason, None, since_time, until_time, None, _state(state))
    found, trends = asyncio.run(_groups(load(app), which))
    if as_json:
        print_json({"groups": [{**asdict(one), "trend": trends.get(one.fingerprint, ())} for one in found]})
        return
    out = console()
    for one in found:
        out.print(group_lines(one))
        out.print(Text(f"  24 h  {bar(trends.get(one.fingerprint, ()))}", style="dim"))
    if not found:
        out.print(Text(f"No letter is {state}.", style="green" if state == "parked" else "dim"))


def show(
    letter: Annotated[str, typer.Argument(help="The letter's id.")],
    raw: Annotated[bool, typer.Option("--raw", help="Only the body, byte for byte.")] = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter whole: its story, error, stack, properties and body, and whether it can be replayed.

    Exit status 1 if there is no such letter.
    """
    found = asyncio.run(_show(load(app), letter))
    if found is None:
        typer.echo(f"There is no dead letter {letter}.", err=True)
        raise typer.Exit(1)
    whole, verdict, acts = found
    if raw:
        sys.stdout.buffer.write(whole.body)
    elif as_json:
        print_json(_as_json(whole, verdict, acts))
    else:
        _print_letter(console(), whole, verdict, acts)


def letter_lines(letter: Letter) -> RenderableType:
    """A letter in a list: three lines, and a fourth if something became of it."""
    what = f"{letter.queue or '(no queue)'}  {letter.type or '(no type)'} v{letter.version}"
    first = Text.assemble((letter.id, "bold"), (f"  {time_text(letter.dead_at)}  ", "dim"), what)
    run = f"  run {letter.run}" if letter.run else ""
    second = Text(f"  key {letter.key or '(none)'}  attempt {letter.attempt}{run}  group {letter.fingerprint}", "dim")
    lines = [first, second, Text.assemble("  ", (letter.reason, "red"), ": ", one_line(letter.error))]
    lines[2].no_wrap, lines[2].overflow = True, "ellipsis"
    if letter.resolution:
        lines.append(Text(f"  {_resolution(letter)}", "magenta"))
    return Lines(*lines)


def group_lines(one: Group) -> RenderableType:
    """A group: what failed and where, how often and when, and an example."""
    first = Text.assemble(
        (one.fingerprint, "bold"),
        (f"  {counted(one.count, 'letter')}", "bold red"),
        (f"  {time_text(one.first_at)} to {time_text(one.last_at)}  ", "dim"),
        _several(one.queue or "(no queue)", one.queues),
    )
    if one.error_type:
        cause = Text("  ").append(one.error_type, style="red").append(f" in {one.frame}" if one.frame else "")
    else:
        cause = Text("  ").append(one.reason, style="red").append(f"  {_several(one.type or '(no type)', one.types)}")
    example = Text(f"  {one.sample_id}  {one_line(one.sample_error)}", style="dim", no_wrap=True, overflow="ellipsis")
    return Lines(first, cause, example)


def _several(name: str, number: int) -> str:
    return name if number < 2 else f"{name} and {number - 1} more"


def _resolution(letter: Letter) -> str:
    new = f", now the message {letter.replaced_by}" if letter.replaced_by else ""
    return f"{letter.resolution} {time_text(letter.resolved_at)}{new}"


def _state(text: str) -> State:
    states: tuple[State, ...] = ("parked", "replayed", "edited", "discarded", "any")
    for state in states:
        if text == state:
            return state
    raise UsageError(f"--state is one of {', '.join(states)}, not {text!r}")


async def _find(program: Hopline, which: Filter, limit: int, after: str) -> tuple[list[Letter], int]:
    async with repairing(program) as (database, _), database.reading() as connection:
        last = await deadletter_queries.get(connection, after) if after else None
        if after and last is None:
            raise UsageError(f"there is no dead letter {after} for --after")
        place = last.letter.place if last else None
        letters = await deadletter_queries.find(connection, which, limit=limit, after=place)
        return letters, await deadletter_queries.count(connection, which)


async def _groups(program: Hopline, which: Filter) -> tuple[list[Group], dict[str, tuple[int, ...]]]:
    """The groups, and of each how many letters died in each of the last 24 hours."""
    async with repairing(program) as (database, _), database.reading() as connection:
        found = await deadletter_queries.groups(connection, which)
        return found, await deadletter_queries.trends(connection, [one.fingerprint for one in found])


async def _show(program: Hopline, identifier: str) -> tuple[WholeLetter, Verdict, list[Recorded]] | None:
    async with repairing(program) as (database, code):
        async with database.reading() as connection:
            whole = await deadletter_queries.get(connection, identifier)
            acts = await recent(connection, limit=ACTS, targets=[letter_target(identifier)])
        if whole is None:
            return None
        (judged,) = await check(database, code, [identifier])
        return whole, judged.verdict, acts[::-1]


def _as_json(whole: WholeLetter, verdict: Verdict, acts: list[Recorded]) -> dict[str, Any]:
    text = text_of(whole.body)
    return {
        **asdict(whole.letter),
        "stack": whole.stack,
        "properties": whole.properties,
        "body": whole.body,  # as base64, for it may be anything
        "body_text": text,
        "replay": {"verdict": verdict.kind, "text": verdict.text},
        "acts": [asdict(act) for act in acts],
    }


def _print_letter(out: Console, whole: WholeLetter, verdict: Verdict, acts: list[Recorded]) -> None:
    letter = whole.letter
    facts = table("", "")
    facts.show_header = False
    for name, value in (
        ("letter", letter.id),
        ("message", letter.message_id or "(it has no message id)"),
        ("type", f"{letter.type or '(none)'} v{letter.version}"),
        ("key", letter.key or "(none)"),
        ("queue", letter.queue or "(none: no queue is bound to its type)"),
        ("endpoint", letter.endpoint or "(no handler took it)"),
        ("run, attempt", f"{letter.run}, {letter.attempt}"),
        ("died", f"{time_text(letter.dead_at)} UTC"),
        ("group", f"{letter.fingerprint}  {letter.error_type} {('in ' + letter.frame) if letter.frame else ''}"),
        ("state", _resolution(letter) if letter.resolution else "parked"),
    ):
        facts.add_row(Text(name, style="dim"), value)
    out.print(facts)
    out.print(Text.assemble((f"\n{letter.reason}", "bold red"), ": ", letter.error))
    if whole.stack:
        _print_section(out, "Stack", whole.stack.rstrip())
    _print_section(out, "Properties", shown(encoded(whole.properties)))
    _print_section(out, f"Body, {counted(letter.body_bytes, 'byte')}", shown(whole.body))
    if acts:
        lines = [f"{time_text(act.at)}  {act.action} by {act.who}  {one_line(act.reason)}".rstrip() for act in acts]
        _print_section(out, "What was done", "\n".join(lines))
    answer = ("it can be replayed", "green") if verdict.ok else (verdict.text, "yellow")
    out.print(Text.assemble(("\nReplay: ", "bold"), answer))


def _print_section(out: Console, title: str, body: str) -> None:
    out.print(Text(f"\n{title}", style="bold"))
    out.print(Text(textwrap.indent(body, "  ")))
