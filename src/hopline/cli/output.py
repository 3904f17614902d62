"""How the commands print: JSON for programs, and for people text that is read at 100 columns and in a pipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from hopline.json_text import LEVELS, encoded, indented, is_deeper

HEX_BYTES = 512
"""As much of a body that is no text is shown."""
DEEP_CHARACTERS = 20_000
"""As much is shown of a body that is nested too deep to be indented."""
BLOCKS = " ▁▂▃▄▅▆▇█"
PIPE_COLUMNS = 160
"""Nobody sees the width of a pipe: rather long lines than folded ones."""


def print_json(value: Any) -> None:
    """One JSON value, indented unless it is nested too deep."""
    body = encoded(value)
    typer.echo(indented(body) or body.decode())


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


def one_line(text: str) -> str:
    """Text without line breaks, as an error's first look."""
    return " ".join(text.split())


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 letter, 1,204 letters."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def text_of(body: bytes) -> str | None:
    """A body as text: JSON indented, unless it is nested too deep; None if it is no text."""
    laid_out = indented(body)
    if laid_out is not None:
        return laid_out
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() or "\n" in text else None


def shown(body: bytes) -> str:
    """A body for a person: as text, else the beginning of its bytes in hexadecimal."""
    text = text_of(body)
    if is_deeper(body) and text is not None and len(text) > DEEP_CHARACTERS:
        return f"{text[:DEEP_CHARACTERS]}\n… (cut: it is nested deeper than {LEVELS} levels; --raw shows all of it)"
    if text is not None:
        return text
    more = " …" if len(body) > HEX_BYTES else ""
    return f"(no text) {body[:HEX_BYTES].hex(' ')}{more}"


def bar(values: Sequence[float], columns: int = 90) -> str:
    """Values as one line of blocks; several values a column if there are more: the largest of them."""
    size = max(1, -(-len(values) // columns))
    shown = [max(values[start : start + size]) for start in range(0, len(values), size)]
    most = max(shown, default=0.0)
    if not most:
        return BLOCKS[0] * len(shown)
    return "".join(BLOCKS[-(-int(value / most * 1000) * (len(BLOCKS) - 1) // 1000)] for value in shown)
