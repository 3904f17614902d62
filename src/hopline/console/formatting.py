"""Figures, times and bodies as people read them: the filters of the templates, and the texts of the pages. Pure."""

from __future__ import annotations

import struct
from datetime import datetime
from urllib.parse import quote

from markupsafe import Markup

from hopline.clock import utcnow
from hopline.json_text import indented

THIN = "\u202f"
"""A narrow no-break space, between thousands and before a unit."""
_LAYOUT = dict.fromkeys(map(ord, "\r\n\t"))
HEX_BYTES = 512
"""As much of a body that is no text is shown."""


def number(value: float | None, digits: int = 0) -> str:
    """1 234 567; a question mark for what is not known."""
    if value is None:
        return "?"
    return f"{value:,.{digits}f}".replace(",", THIN)


def duration(seconds: float | None) -> str:
    """A time span in its largest unit: 0.8 ms, 120 ms, 1.2 s, 12 s, 5 min, 3 h, 2 d."""
    if seconds is None:
        return "?"
    if seconds < 0.01:
        return f"{seconds * 1000:.1f}{THIN}ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f}{THIN}ms"
    if seconds < 10:
        return f"{seconds:.1f}{THIN}s"
    for unit, size, until in (("s", 1, 120), ("min", 60, 7_200), ("h", 3_600, 172_800)):
        if seconds < until:
            return f"{seconds / size:.0f}{THIN}{unit}"
    return f"{seconds / 86_400:,.0f}{THIN}d".replace(",", THIN)


def size(count: int) -> str:
    """Bytes: 812 B, 4.2 kB, 1.0 MB (powers of 1000)."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f}{THIN}{unit}" if unit == "B" else f"{value:.1f}{THIN}{unit}"
        value /= 1000
    return f"{value:.1f}{THIN}GB"


def moment(time: datetime | None) -> str:
    """A time in UTC, to the second."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time else ""


def ago(time: datetime | None) -> Markup:
    """A <time> element: how long ago, with the absolute time in UTC for who hovers, and for programs."""
    if time is None:
        return Markup("")
    seconds = (utcnow() - time).total_seconds()
    text = f"in {duration(-seconds)}" if seconds < -0.5 else "just now" if seconds < 1 else f"{duration(seconds)} ago"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(time.isoformat(), moment(time), text)


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 letter, 1 204 letters."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def one_line(text: str, characters: int = 300) -> str:
    """Text without line breaks, cut: an error's first look."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def text_of(body: bytes) -> str | None:
    """A body as text: JSON indented, and written so that no control character acts or hides; None if it is no text.

    JSON that is nested too deep to be indented is text as it is.
    """
    laid_out = indented(body)
    if laid_out is not None:
        return visible(laid_out)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return text if _is_visible(text) else None


def visible(text: str) -> str:
    """Text with its control characters made visible, so that none of them acts or hides.

    They are written as JSON writes them (RFC 8259, section 7), so that JSON stays the same JSON.
    """
    if _is_visible(text):
        return text
    return "".join(c if c.isprintable() or c in "\r\n\t" else _escaped(c) for c in text)


def _is_visible(text: str) -> bool:
    """Whether no character has to be escaped; not by each character, because a body may have a million."""
    return text.translate(_LAYOUT).isprintable()


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{unit:04x}" for (unit,) in struct.iter_unpack(">H", units))


def path_part(text: str) -> str:
    """A text as one part of a path."""
    return quote(text, safe="")
