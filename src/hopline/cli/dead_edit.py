"""`hopline dead edit`: a new body for one parked message, from an editor or a file, sent as a new message."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from hopline import deadletter_queries, json_text, repair
from hopline.app import Hopline
from hopline.cli.acting import ReasonOption, WhoOption, YesOption, confirmed, repairing, who_acts
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.output import print_json, shown, text_of
from hopline.database import Database
from hopline.deadletter_queries import WholeLetter
from hopline.errors import MessageError, UsageError
from hopline.json_text import compact
from hopline.repair import Code, Judged


def add_to(group: typer.Typer) -> None:
    """Adds this module's command."""
    group.command()(edit)


def edit(  # noqa: PLR0913 - a command's options
    letter: Annotated[str, typer.Argument(help="The letter's id.")],
    body_file: Annotated[
        Path | None, typer.Option("--body-file", help="The new body, instead of an editor; - is stdin.")
    ] = None,
    type_name: Annotated[str | None, typer.Option("--type", help="Another type for it.", show_default=False)] = None,
    version: Annotated[int | None, typer.Option(help="Another version for it.", show_default=False)] = None,
    reason: ReasonOption = "",
    who: WhoOption = "",
    yes: YesOption = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Mend a parked message's body in $VISUAL or $EDITOR, see the difference, and send it as a new message.

    The body is checked by today's code before anything is stored. Exit status 1 if the letter is not parked or the
    body was left as it was; 2 if the body is refused, or without --yes where nobody can be asked.
    """
    job = _Editing(load(app), letter, type_name, version, who_acts(who), reason)
    raise typer.Exit(asyncio.run(job.run(body_file, yes=yes, as_json=as_json)))


@dataclass
class _Editing:
    """One call of `hopline dead edit`."""

    program: Hopline
    letter_id: str
    type_name: str | None
    version: int | None
    who: str
    reason: str

    async def run(self, body_file: Path | None, *, yes: bool, as_json: bool) -> int:
        async with repairing(self.program) as (database, code):
            async with database.reading() as connection:
                whole = await deadletter_queries.get(connection, self.letter_id)
            if whole is None or whole.letter.resolution is not None:
                state = "there is no such dead letter" if whole is None else f"{whole.letter.resolution} already"
                typer.echo(f"hopline: {self.letter_id}: {state}", err=True)
                return 1
            body = await asyncio.to_thread(self._new_body, database, code, whole, body_file)
            if body is None:
                typer.echo("The body is as it was: nothing was done.", err=True)
                return 1
            self._show(database, code, whole, body, quiet=as_json)
            if not confirmed("Send it as a new message?", yes=yes):
                return 2
            judged = await repair.edit(
                database, code, self.letter_id, body, who=self.who, reason=self.reason, new_type=self._new_type(whole)
            )
        return _print_edited(judged, as_json=as_json)

    def _new_type(self, whole: WholeLetter) -> tuple[str, int] | None:
        if self.type_name is None and self.version is None:
            return None
        return self.type_name or whole.letter.type, self.version or whole.letter.version or 1

    def _new_body(self, database: Database, code: Code, whole: WholeLetter, body_file: Path | None) -> bytes | None:
        """The new body, from the file or an editor; None if it is the old one, under the old type."""
        if body_file is not None:
            body = sys.stdin.buffer.read() if str(body_file) == "-" else _read(body_file)
            return body if body != whole.body or self._new_type(whole) else None
        text = text_of(whole.body)
        if text is None:
            raise UsageError("its body is no text that an editor could show: give the new one with --body-file")
        while True:
            edited = _in_editor(text)
            if edited == text and not self._new_type(whole):
                return None
            try:
                body = compact(edited)
                repair.validate(whole, body, code, database.message_limit_bytes, self._new_type(whole))
            except (MessageError, UsageError, ValueError) as error:
                typer.echo(f"hopline: {error}", err=True)
                if not sys.stdin.isatty() or not typer.confirm("Edit it again?", default=True):
                    raise UsageError("the new body is refused by today's code; nothing was stored") from error
                text = edited
            else:
                return body

    def _show(self, database: Database, code: Code, whole: WholeLetter, body: bytes, *, quiet: bool) -> None:
        """The difference, and what today's code would not see in the new body."""
        edited = repair.validate(whole, body, code, database.message_limit_bytes, self._new_type(whole))
        out = Console(stderr=True, highlight=False)
        if not quiet:
            for line in difference(whole.body, body):
                out.print(line)
        if edited.left_out:
            out.print(f"{edited.type.name} v{edited.type.version} has no {', '.join(edited.left_out)}", style="yellow")


def difference(old: bytes, new: bytes) -> Iterator[Text]:
    """The lines in which two bodies differ, as a unified diff."""
    colours = {"+": "green", "-": "red", "@": "cyan"}
    lines = [*json_text.difference(shown(old), shown(new))]
    if lines:
        yield from (Text(head, style="bold") for head in ("--- parked", "+++ edited"))
    for line in lines:
        yield Text(line, style=colours.get(line[:1], ""))


def _print_edited(judged: Judged, *, as_json: bool) -> int:
    envelope = judged.verdict.envelope
    if as_json:
        print_json(
            {
                "letter_id": judged.letter_id,
                "verdict": judged.verdict.kind,
                "text": judged.verdict.text,
                "message_id": envelope.id if envelope else None,
            }
        )
    elif envelope is not None:
        typer.echo(f"Sent as the new message {envelope.id}, key {envelope.key}: hopline trace {envelope.key}")
    else:
        typer.echo(f"hopline: {judged.letter_id}: {judged.verdict.text}", err=True)
    return 0 if judged.verdict.ok else 1


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"the new body cannot be read: {error}") from error


def _in_editor(text: str) -> str:
    """The text as it is after $VISUAL, $EDITOR or vi has been closed."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="hopline-edit-") as folder:
        path = Path(folder) / "body.json"
        path.write_text(text + "\n", encoding="utf-8")
        try:
            done = subprocess.run([*shlex.split(editor), str(path)], check=False)
        except OSError as error:
            raise UsageError(f"the editor {editor!r} cannot be started: {error}; set EDITOR") from error
        if done.returncode:
            raise UsageError(f"the editor {editor!r} ended with status {done.returncode}; nothing was done")
        try:
            return path.read_text(encoding="utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"the editor {editor!r} did not save UTF-8: {error}; nothing was done") from error
