from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hopline.console.masking import DEPTH, MASK, Mask


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
