"""Personal data, masked for those who may look and not act: in bodies, properties and texts. Pure.

A field is known by its name, wherever it stands in a JSON value; its text is replaced, and wherever the same text
stands elsewhere in what is shown (an error that quotes an address) it is replaced too. What looks like an email
address is masked in every text, whatever its field is called. A body that cannot be decoded is masked as text, with
whatever follows the name of a personal field.

The work grows with the size of what is masked and not with its square: all texts of a value are searched at once, for
a bounded number of personal texts. A value with more of them shows no text at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from typing import Any

import msgspec

from hopline.json_text import is_deeper

MASK = "•••"
DEPTH = 50
"""A value that is nested deeper is masked as a whole."""
QUOTED_CHARACTERS = 3
"""A shorter personal text is masked in its field only: it would be found in any word."""
KNOWN_TEXTS = 100
"""Each text is searched for so many personal texts at most."""
HIDDEN = f"{MASK} (not shown: there is too much personal data here)"

# Possessive, and begun only where a run of these characters begins: so each character is looked at once.
_EMAIL = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@[A-Za-z0-9.-]++")
_BETWEEN = "\0"
"""Separates the texts that are searched at once; in them it is replaced."""


class Mask:
    """Masks the named fields, for one answer: it remembers the texts that it has masked."""

    def __init__(self, fields: Set[str]) -> None:
        self._fields = {field.casefold() for field in fields}
        self._texts: set[str] = set()

    def learn(self, value: Any) -> None:
        """Remembers the personal texts of a JSON value, to mask them where they are quoted."""
        found: list[str] = []
        _collect(value, self._fields, found)
        self._texts.update(_joinable(text) for text in found if len(text) >= QUOTED_CHARACTERS)

    def text(self, text: str) -> str:
        """A text without what was learned, and without email addresses."""
        if len(self._texts) > KNOWN_TEXTS:
            return HIDDEN if text else ""
        for known in sorted(self._texts, key=len, reverse=True):
            text = text.replace(known, MASK)
        return _EMAIL.sub(MASK, text)

    def value(self, value: Any) -> Any:
        """A JSON value with its personal fields masked."""
        shown: list[str] = []
        _collect(value, set(), shown, every=True)
        return self._masked(value, self._all_at_once(list(dict.fromkeys(shown))), 0)

    def body(self, body: bytes) -> bytes:
        """A body with its personal fields masked; one that cannot be decoded as text."""
        try:
            value = msgspec.json.decode(b"" if is_deeper(body) else body)
        except ValueError:  # msgspec.DecodeError and UnicodeDecodeError are
            return self._undecoded(body.decode("utf-8", "replace")).encode()
        self.learn(value)
        return msgspec.json.encode(self.value(value))

    def _all_at_once(self, texts: Sequence[str]) -> dict[str, str]:
        """Each text, masked."""
        if len(self._texts) > KNOWN_TEXTS:
            return {text: self.text(text) for text in texts}
        joined = self.text(_BETWEEN.join(map(_joinable, texts)))
        return dict(zip(texts, joined.split(_BETWEEN), strict=True)) if texts else {}

    def _masked(self, value: Any, texts: dict[str, str], depth: int) -> Any:
        if depth > DEPTH:
            return MASK
        match value:
            case dict():
                return {
                    name: MASK if self._is_personal(name) and held is not None else self._masked(held, texts, depth + 1)
                    for name, held in value.items()
                }
            case list():
                return [self._masked(held, texts, depth + 1) for held in value]
            case str():
                return texts[value]
        return value

    def _undecoded(self, text: str) -> str:
        """A text that looks like JSON may have personal fields: the rest after the first one's name is masked."""
        names = "|".join(map(re.escape, sorted(self._fields)))
        found = re.search(rf'"(?:{names})"\s*+:', text, re.IGNORECASE) if names else None
        return self.text(text) if found is None else self.text(text[: found.end()]) + MASK

    def _is_personal(self, name: object) -> bool:
        return isinstance(name, str) and name.casefold() in self._fields


def _joinable(text: str) -> str:
    return text.replace(_BETWEEN, "\ufffd")


def _collect(value: Any, fields: Set[str], found: list[str], *, every: bool = False, depth: int = 0) -> None:
    """Adds the texts of the fields, or every text."""
    if depth > DEPTH:
        return
    match value:
        case dict():
            for name, held in value.items():
                mine = every or (isinstance(name, str) and name.casefold() in fields)
                _collect(held, fields, found, every=mine, depth=depth + 1)
        case list():
            for held in value:
                _collect(held, fields, found, every=every, depth=depth + 1)
        case str() if every:
            found.append(value)
