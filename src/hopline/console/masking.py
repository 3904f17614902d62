"""Personal data, masked for those who may look and not act: in bodies, properties and texts. Pure.

A field is known by its name, wherever it stands in a JSON value; its text is replaced, and wherever the same text
stands elsewhere in what is shown (an error that quotes an address) it is replaced too. What looks like an email
address is masked in every text, whatever its field is called. A body that is no JSON is masked as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from typing import Any

import msgspec

MASK = "•••"
DEPTH = 50
"""A value that is nested deeper is masked as a whole."""
QUOTED_CHARACTERS = 3
"""A shorter personal text is masked in its field only: it would be found in any word."""

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,255}")


class Mask:
    """Masks the named fields, for one answer: it remembers the texts that it has masked."""

    def __init__(self, fields: Set[str]) -> None:
        self._fields = {field.casefold() for field in fields}
        self._texts: set[str] = set()

    def learn(self, value: Any) -> None:
        """Remembers the personal texts of a JSON value, to mask them where they are quoted."""
        self._texts.update(text for text in _texts(value, self._fields) if len(text) >= QUOTED_CHARACTERS)

    def text(self, text: str) -> str:
        """A text without what was learned, and without email addresses."""
        for known in sorted(self._texts, key=len, reverse=True):
            text = text.replace(known, MASK)
        return _EMAIL.sub(MASK, text)

    def value(self, value: Any, depth: int = 0) -> Any:
        """A JSON value with its personal fields masked."""
        if depth > DEPTH:
            return MASK
        match value:
            case dict():
                return {
                    name: MASK if self._is_personal(name) and held is not None else self.value(held, depth + 1)
                    for name, held in value.items()
                }
            case list():
                return [self.value(held, depth + 1) for held in value]
            case str():
                return self.text(value)
        return value

    def body(self, body: bytes) -> bytes:
        """A body with its personal fields masked; one that is no JSON as text, and what is no text not at all."""
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self.text(body.decode("utf-8", "replace")).encode()
        self.learn(value)
        return msgspec.json.encode(self.value(value))

    def _is_personal(self, name: object) -> bool:
        return isinstance(name, str) and name.casefold() in self._fields


def _texts(value: Any, fields: Set[str], *, personal: bool = False, depth: int = 0) -> Iterator[str]:
    if depth > DEPTH:
        return
    match value:
        case dict():
            for name, held in value.items():
                mine = personal or (isinstance(name, str) and name.casefold() in fields)
                yield from _texts(held, fields, personal=mine, depth=depth + 1)
        case list():
            for held in value:
                yield from _texts(held, fields, personal=personal, depth=depth + 1)
        case str() if personal:
            yield value
