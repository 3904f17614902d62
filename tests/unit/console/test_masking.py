from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.console.masking import DEPTH, KNOWN_TEXTS, MASK, Mask

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@pytest.fixture
def mask() -> Mask:
    return Mask(frozenset({"email", "name"}))


def masked(mask: Mask, value: Any) -> Any:
    return msgspec.json.decode(mask.body(msgspec.json.encode(value)))


def test_personal_fields_are_masked_wherever_they_stand(mask: Mask) -> None:
    given = {"id": 7, "customer": {"Email": "a@b.example", "name": {"first": "Ann"}}, "all": [{"NAME": ["Bo", 1]}]}

    assert masked(mask, given) == {"id": 7, "customer": {"Email": MASK, "name": MASK}, "all": [{"NAME": MASK}]}
    assert masked(mask, {"name": None}) == {"name": None}
    assert masked(Mask(frozenset({"iban"})), {"iban": "DE1", "name": "Ann"}) == {"iban": MASK, "name": "Ann"}


def test_what_was_masked_in_a_body_is_masked_where_it_is_quoted(mask: Mask) -> None:
    mask.body(b'{"name": "Ann Lee", "sku": "x"}')

    assert mask.text("no stock for Ann Lee") == f"no stock for {MASK}"


def test_a_body_quotes_itself_masked_also_before_the_field(mask: Mask) -> None:
    assert masked(mask, {"note": "for Ann Lee", "name": "Ann Lee"}) == {"note": f"for {MASK}", "name": MASK}


def test_a_short_name_is_not_looked_for_in_words(mask: Mask) -> None:
    mask.body(b'{"name": "Al"}')

    assert mask.text("All gone") == "All gone"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("250 to ann.lee+x@mail.example.com <id>", f"250 to {MASK} <id>"),
        ("no address at all", "no address at all"),
        ("a@b, c@d", f"{MASK}, {MASK}"),
    ],
)
def test_what_looks_like_an_address_is_masked_in_every_text(mask: Mask, text: str, shown: str) -> None:
    assert mask.text(text) == shown


@pytest.mark.parametrize("body", [b"mail ann@example.com", b'{"email": "ann@example.com"', b"\xff ann@example.com"])
def test_a_body_that_is_no_json_is_masked_as_text(mask: Mask, body: bytes) -> None:
    assert b"ann@example.com" not in mask.body(body)


def test_what_is_nested_too_deep_to_be_looked_at_is_masked_as_a_whole(mask: Mask) -> None:
    value: Any = "secret"
    for _ in range(DEPTH + 2):
        value = [value]

    assert b"secret" not in mask.body(msgspec.json.encode(value))


def people(count: int) -> bytes:
    return msgspec.json.encode([{"name": f"person {number}", "note": f"for {number}"} for number in range(count)])


class Searched(str):
    """A text that counts how often something is searched in it, and in how many characters."""

    characters = 0

    def replace(self, old: str, new: str, /, count: Any = -1) -> Searched:
        Searched.characters += len(self)
        return Searched(super().replace(old, new))


def test_the_work_grows_as_the_body_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given that every text that is searched is counted
    search = Mask.text
    monkeypatch.setattr(Mask, "text", lambda mask, text: search(mask, Searched(text)))

    def characters(count: int) -> int:
        Searched.characters = 0
        Mask({"name"}).body(people(count))
        return Searched.characters

    # When bodies of any size are masked
    counts = {count: characters(count) for count in (10, 100, 1_000, 4_000)}

    # Then each character is looked at for a bounded number of personal texts
    for count, searched in counts.items():
        assert searched <= KNOWN_TEXTS * len(people(count)), counts


def test_more_personal_texts_than_can_be_searched_for_hide_every_text(mask: Mask) -> None:
    shown = mask.body(people(KNOWN_TEXTS + 1))

    assert b"person 7" not in shown
    assert b"for 1" not in shown
    assert "person 7" not in mask.text("for person 7")
    assert mask.text("") == ""


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "Ann Lee", "total": 1e999}',
        b'{"NAME" : {"first": "Ann Lee"}, "\\ud800": 1}',
        b'{"id": ' + b"9" * 5_000 + b', "name": ["Ann Lee"]}',
        b'{"name": "Ann Lee"',
        b'{"name": "Ann Lee", "deep": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'\xff{"name": "Ann Lee"}',
    ],
)
def test_json_that_cannot_be_decoded_shows_no_personal_field(mask: Mask, body: bytes) -> None:
    assert b"Ann Lee" not in mask.body(body)


def test_a_nul_neither_hides_nor_moves_a_text(mask: Mask) -> None:
    given = {"name": "Ann\0Lee", "notes": ["a\0b", "for Ann\0Lee", "", "c"]}

    assert masked(mask, given) == {"name": MASK, "notes": ["a\ufffdb", f"for {MASK}", "", "c"]}


def test_long_runs_of_the_characters_of_addresses_are_searched_once(mask: Mask) -> None:
    assert mask.text("x" * 300_000) == "x" * 300_000
    assert mask.text("x" * 300_000 + "@y") == MASK
    assert "a" not in mask.text("a@" * 100_000)


@given(st.binary(max_size=300) | st.text(alphabet='[]{}",:\\1 \0nameAnLe', max_size=300).map(str.encode))
def test_any_bytes_can_be_masked(body: bytes) -> None:
    Mask({"name"}).body(body)


@given(JSON)
def test_any_json_is_masked_to_json_of_the_same_shape(value: Any) -> None:
    found = masked(Mask({"name"}), {"it": value, "name": "Ann Lee"})

    assert found["name"] == MASK
    assert shape(found["it"]) == shape(msgspec.json.decode(msgspec.json.encode(value)))


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: None if name.casefold() == "name" else shape(held) for name, held in value.items()}
    return [shape(held) for held in value] if isinstance(value, list) else type(value)
