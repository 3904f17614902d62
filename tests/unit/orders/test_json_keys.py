from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orders.json_keys import key_twice

KEYS = st.text(max_size=3) | st.sampled_from(["a", "a/b", "~", ":", '":', "\\"])
VALUES = st.recursive(
    st.none() | st.integers() | KEYS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=20
)


def keys_of(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(keys_of, value.values()))
    return sum(map(keys_of, value)) if isinstance(value, list) else 0


@given(VALUES, st.booleans())
def test_json_whose_keys_are_different_has_none_twice(value: Any, is_ascii: bool) -> None:
    assert key_twice(json.dumps(value, ensure_ascii=is_ascii).encode(), keys_of(value)) is None


@pytest.mark.parametrize(
    ("body", "keys", "pointer"),
    [
        ('{"a":1,"a":1}', 1, "/a"),
        ('{"a" : 1, "\\u0061"\n:2}', 1, "/a"),
        ('{"a":{"b":1,"c":[{},{"d":1,"d":2}]}}', 4, "/a/c/1/d"),
        ('{"a":{"b":{"c":1}},"a":{"b":{"c":1}}}', 3, "/a"),
        ('[{"x/y":1,"x/y":1}]', 1, "/0/x~1y"),
        ('{"~":1,"~":1}', 1, "/~0"),
        ('{"":1,"":1}', 1, "/"),
        ('{"a":":::","b":1,"a":1}', 2, "/a"),
        ('{"n":' + "9" * 10_000 + ',"n":1e999}', 1, "/n"),
    ],
)
def test_a_key_that_stands_twice_is_named(body: str, keys: int, pointer: str) -> None:
    assert key_twice(body.encode(), keys) == pointer


def test_a_body_with_no_more_colons_than_keys_is_not_read_again() -> None:
    assert key_twice(b'{"a":1 and no JSON at all', 1) is None
