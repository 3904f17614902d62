"""Keys that a JSON object has twice: a decoder takes the last one, and another program may take the first. Pure.

Whoever has decoded a body knows how many keys it used at least. A body with no more colons than that has no key twice,
and nearly every body is done with by counting them; the others are read once more, with all of their keys.
"""

from __future__ import annotations

import json
from typing import Any


class _Object(list[tuple[str, Any]]):
    """The keys and values of one object, as they stand."""


def key_twice(body: bytes, keys: int) -> str | None:
    """The RFC 6901 pointer of the first key that its object has twice, in JSON that was decoded into `keys` keys."""
    if body.count(b":") <= keys:
        return None
    return _find(json.loads(body, object_pairs_hook=_Object, parse_int=str, parse_float=str), "")


def _find(value: Any, place: str) -> str | None:
    inner: list[tuple[str, Any]] = []
    if isinstance(value, _Object):
        seen = set()
        for name, held in value:
            pointer = f"{place}/{name.replace('~', '~0').replace('/', '~1')}"
            if name in seen:
                return pointer
            seen.add(name)
            inner.append((pointer, held))
    elif isinstance(value, list):
        inner = [(f"{place}/{number}", held) for number, held in enumerate(value)]
    return next((found for pointer, held in inner if (found := _find(held, pointer)) is not None), None)
