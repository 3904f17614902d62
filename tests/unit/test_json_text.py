from __future__ import annotations

import difflib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline import json_text
from hopline.json_text import COMPARED_LINES, INDENTED_BYTES, LEVELS, compact, difference, encoded, indented, is_deeper

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["[[{", '\\"]', "}]"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)
ODD = [
    b"",
    b"\x00",
    b"\xff",
    b'"\xff"',
    b'"\\ud800"',
    b"NaN",
    b"1e999",
    b"9" * 100_000,
    b'{"a":' + b"1" * 100_000 + b"}",
    b'{"a":1,"a":2}',
    b'"' + b"x" * (1 << 20) + b'"',
    b'"' + b"\\" * (1 << 20),
    b'"\\"' * 300_000,
    b"[" * 20_000,
    b"[" * 20_000 + b"]" * 20_000,
    b"[]" * 500_000,
    b'{"a":' * 200_000,
    b"[" + b"[1]," * 250_000 + b"1]",
]
LINES = st.text(alphabet='[]{}",:\\ab1 \n\u202e', max_size=200).map(str.encode)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(VALUES, st.integers(0, 6))
def test_the_depth_of_json_is_counted_outside_of_strings(value: Any, levels: int) -> None:
    assert is_deeper(json.dumps(value).encode(), levels) == (depth_of(value) > levels)


@pytest.mark.parametrize("body", ODD, ids=range(len(ODD)))
def test_odd_bodies_are_indented_or_left_alone(body: bytes) -> None:
    found = indented(body)

    assert found is None or len(found) <= INDENTED_BYTES


@given(st.binary(max_size=200) | LINES)
def test_any_bytes_are_indented_or_left_alone(body: bytes) -> None:
    found = indented(body)

    if found is not None:
        assert compact(found) == msgspec.json.format(body, indent=-1)


def test_a_body_is_indented_up_to_a_depth() -> None:
    assert indented(b"[" * LEVELS + b"]" * LEVELS) is not None
    assert indented(b"[" * (LEVELS + 1) + b"]" * (LEVELS + 1)) is None


def test_what_would_grow_too_much_is_not_indented(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b"[" * 60 + b",".join([b"1"] * 500_000) + b"]" * 60
    assert indented(deep) is None

    flat = msgspec.json.encode([{"id": number, "tags": ["a", "b"]} for number in range(20_000)])
    assert indented(flat) is not None

    monkeypatch.setattr(json_text, "INDENTED_BYTES", 20)
    assert indented(b'{"a":1}') is not None
    assert indented(b'{"a":[1,2,3,4,5,6,7,8,9]}') is None


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ud800", '{"a":' * 65 + "1" + "}" * 65])
def test_what_cannot_be_made_compact_says_why(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        compact(text)


@given(VALUES | st.text(alphabet=st.characters(categories=["Cs"])) | st.dictionaries(st.integers(), SCALARS))
def test_every_value_has_a_form(value: Any) -> None:
    json.loads(encoded(value))


def test_a_value_that_has_no_end_has_a_form_too() -> None:
    endless: list[Any] = ["\ud800"]
    endless.append(endless)

    assert b"cannot be shown" in encoded(endless)


LINE_LISTS = st.lists(st.sampled_from(["a", "b", "c", "--", "++x", "@@"]), max_size=30).map("\n".join)


@given(LINE_LISTS, LINE_LISTS, LINE_LISTS, LINE_LISTS)
def test_a_difference_leads_from_one_text_to_the_other(head: str, old: str, new: str, tail: str) -> None:
    before, after = (f"{head}\n{middle}\n{tail}".splitlines() for middle in (old, new))
    made: list[str] = []
    place = 0
    for line in difference(*("".join(f"{line}\n" for line in lines) for lines in (before, after))):
        if hunk := json_text._HUNK.fullmatch(line):
            start = int(hunk[1]) - (0 if hunk[2] == ",0" else 1)
            made += before[place:start]
            place = start
        else:
            assert line[:1] == "+" or before[place] == line[1:]
            place += line[:1] != "+"
            made += [line[1:]] if line[:1] in "+ " else []

    assert made + before[place:] == after


def test_a_small_difference_of_long_texts_is_told_as_difflib_does() -> None:
    before = [str(number) for number in range(50_000)]
    after = [*before[:30_000], "new", *before[30_002:]]

    expected = [*difflib.unified_diff(before, after, lineterm="")][2:]
    assert [*difference("\n".join(before), "\n".join(after))] == expected


def test_a_long_difference_is_not_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(difflib, "unified_diff")

    lines = [*difference("\n".join(map(str, range(200_000))), "\n".join(map(str, range(200_000, 0, -1))))]

    assert lines[0] == "@@ -1,200000 +1,200000 @@"
    assert len(lines) == 1 + 2 * COMPARED_LINES
