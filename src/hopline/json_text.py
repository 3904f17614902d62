"""JSON of strangers as text for people: total for any bytes and values, in bounded time and space. Pure.

Indenting costs a body's size times its depth, and a parser that recurses as deep as a body is nested may take all
memory. So the depth is counted before anything parses, and what is nested too deep stays as it is.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

LEVELS: Final = 64
"""A body that is nested deeper is neither indented nor edited as JSON."""
INDENT: Final = 2
INDENTED_BYTES: Final = 8 << 20
"""A body that would be larger when indented is not."""

COMPARED_LINES: Final = 2_000
"""Comparing lines takes up to the square of their number: longer differences are told as all removed, all added."""
CONTEXT_LINES: Final = 3

_HUNK: Final = re.compile(r"@@ -([0-9]+)(.*) \+([0-9]+)(.*) @@")
_AS_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_OTHERS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def is_deeper(body: bytes, levels: int = LEVELS) -> bool:
    """Whether a body is nested deeper than some levels, if it is JSON at all. Takes no more than `levels` passes."""
    if body.count(b"[") + body.count(b"{") <= levels:
        return False
    brackets = _outside_strings(body).translate(_AS_BRACKETS, _OTHERS)
    if b"[" * (levels + 1) in brackets:
        return True
    for _ in range(levels):  # each pass takes the innermost level away
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def indented(body: bytes) -> str | None:
    """A body as indented JSON; None if it is none, is nested deeper than LEVELS, or would be over INDENTED_BYTES."""
    if is_deeper(body) or _indented_bytes_at_most(body) > INDENTED_BYTES:
        return None
    try:
        return msgspec.json.format(body, indent=INDENT).decode()
    except ValueError:  # msgspec.DecodeError and UnicodeDecodeError are
        return None


def compact(text: str) -> bytes:
    """JSON without the blanks that made it readable. ValueError says why it is none, or that it is nested too deep."""
    body = text.encode()
    if is_deeper(body):
        raise ValueError(f"it is nested deeper than {LEVELS} levels")
    return msgspec.json.format(body, indent=-1)


def encoded(value: Any) -> bytes:
    """A value that was read from the database as JSON; what JSON has no form for is written as Python shows it."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass
    try:
        plain = msgspec.to_builtins(value, str_keys=True)
        return json.dumps(plain, default=repr, ensure_ascii=False).encode(errors="replace")  # lone surrogates
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return msgspec.json.encode(f"(this cannot be shown: {type(error).__name__})")


def difference(before: str, after: str) -> Iterator[str]:
    """The lines of a unified diff without its two heads; where it is long, `COMPARED_LINES` removed and added ones."""
    old, new = before.splitlines(), after.splitlines()
    first = _common(old, new)
    last = _common(old[first:][::-1], new[first:][::-1])
    first, last = max(0, first - CONTEXT_LINES), max(0, last - CONTEXT_LINES)
    old, new = old[first : len(old) - last], new[first : len(new) - last]
    if max(len(old), len(new)) > COMPARED_LINES:
        yield f"@@ -{first + 1},{len(old)} +{first + 1},{len(new)} @@"
        yield from (f"-{line}" for line in old[:COMPARED_LINES])
        yield from (f"+{line}" for line in new[:COMPARED_LINES])
        return
    for line in islice(difflib.unified_diff(old, new, lineterm="", n=CONTEXT_LINES), 2, None):
        yield _moved(line, first) if line.startswith("@") else line


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many lines both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _moved(hunk: str, lines: int) -> str:
    return _HUNK.sub(lambda found: f"@@ -{int(found[1]) + lines}{found[2]} +{int(found[3]) + lines}{found[4]} @@", hunk)


def _outside_strings(body: bytes) -> bytes:
    return b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _indented_bytes_at_most(body: bytes) -> int:
    """A bound: each comma and bracket begins a line, and no line is indented by more than the nesting of all."""
    structure = _outside_strings(body)
    lines = sum(structure.count(mark) for mark in (b",", b"[", b"]", b"{", b"}"))
    depth = min(LEVELS, structure.count(b"[") + structure.count(b"{"))
    if len(body) + lines * (depth * INDENT + 2) <= INDENTED_BYTES:
        return len(body) + lines * (depth * INDENT + 2)
    depth = next((levels for levels in (4, 8, 16, 32) if not is_deeper(body, levels)), LEVELS)
    return len(body) + lines * (depth * INDENT + 2)
