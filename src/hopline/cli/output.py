"""How the commands print: JSON for programs, and for people text that is read at 100 columns and in a pipe."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

HEX_BYTES = 512
"""As much of a body that is no text is shown."""
PIPE_COLUMNS = 160
"""Nobody sees the width of a pipe: rather long lines than folded ones."""


def print_json(value: Any) -> None:
    """One JSON value, indented."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def console() -> Console:
    """A console on stdout; in a pipe it has no colours, and COLUMNS columns if that is set."""
    found = Console(soft_wrap=False, highlight=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found = Console(width=PIPE_COLUMNS, highlight=False)
    return found


def table(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """A table without lines; the columns in `right` are of numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def time_text(time: datetime | None) -> str:
    """A time in UTC, to the second."""
    return f"{time:%Y-%m-%d %H:%M:%S}" if time else ""


def age_text(seconds: float) -> str:
    """A duration in its largest unit: 0.4 s, 12 s, 5 min, 3 h, 2 d."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, size, until in (("s", 1, 120), ("min", 60, 7_200), ("h", 3_600, 172_800)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{timedelta(seconds=seconds).days} d"


def one_line(text: str) -> str:
    """Text without line breaks, as an error's first look."""
    return " ".join(text.split())


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 letter, 1,204 letters."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def text_of(body: bytes) -> str | None:
    """A body as text: JSON indented; None if it is no text."""
    try:
        return msgspec.json.format(body, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() or "\n" in text else None


def shown(body: bytes) -> str:
    """A body for a person: as text, else the beginning of its bytes in hexadecimal."""
    text = text_of(body)
    if text is not None:
        return text
    more = " …" if len(body) > HEX_BYTES else ""
    return f"(no text) {body[:HEX_BYTES].hex(' ')}{more}"
