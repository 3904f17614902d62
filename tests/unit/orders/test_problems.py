from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orders import problems
from orders.api import OrderBody
from orders.problems import BadRequest

GOOD: dict[str, Any] = {"customer": {"email": "a@b.de"}, "lines": [{"sku": "a", "quantity": 1, "unit_price": "1"}]}


def refusal_of(body: bytes) -> BadRequest:
    try:
        msgspec.json.decode(body, type=OrderBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return problems.unreadable(error)
    raise AssertionError("it decodes")


@pytest.mark.parametrize(
    ("change", "code", "pointer", "line"),
    [
        ({"lines": 1}, "type-wrong", "/lines", None),
        ({"lines": [{"sku": "a", "quantity": "1", "unit_price": "1"}]}, "type-wrong", "/lines/0/quantity", 1),
        ({"lines": [{"sku": "a", "quantity": 1.5, "unit_price": "1"}]}, "type-wrong", "/lines/0/quantity", 1),
        ({"lines": [{"sku": "a", "quantity": True, "unit_price": "1"}]}, "type-wrong", "/lines/0/quantity", 1),
        ({"lines": [{"sku": None, "quantity": 1, "unit_price": "1"}]}, "type-wrong", "/lines/0/sku", 1),
        ({"lines": [*GOOD["lines"], {"sku": "a", "quantity": 1}]}, "field-missing", "/lines/1/unit_price", 2),
        ({"lines": [{**GOOD["lines"][0], "colour": "red"}]}, "field-unknown", "/lines/0/colour", 1),
        ({"customer": {"email": "a@b.de", "bcc": "c@d.de"}}, "field-unknown", "/customer/bcc", None),
        ({"customer": {}}, "field-missing", "/customer/email", None),
        ({"coupon": "x"}, "field-unknown", "/coupon", None),
    ],
)
def test_a_wrong_body_is_refused_with_its_place(
    change: dict[str, Any], code: str, pointer: str, line: int | None
) -> None:
    refusal = refusal_of(msgspec.json.encode(GOOD | change))

    assert refusal.status == 422
    assert [(error.code, error.pointer, error.line) for error in refusal.errors] == [(code, pointer, line)]
    assert pointer in str(refusal)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"lines": NaN}', b"\xff\xfe", b'{"customer": {"email": "\xff"}}', b"\xef\xbb\xbf{}"],
)
def test_what_is_no_json_is_400(body: bytes) -> None:
    assert (refusal_of(body).status, refusal_of(body).code) == (400, "json-malformed")


@pytest.mark.parametrize("body", [b"[" * 1_000_000, b'{"lines":' * 100_000, b'{"a":' + b"[" * 500_000])
def test_deep_nesting_is_an_answer_not_a_crash(body: bytes) -> None:
    assert refusal_of(body).status in (400, 422)


def test_what_is_repeated_back_is_short() -> None:
    refusal = refusal_of(msgspec.json.encode(GOOD | {"x" * 100_000: 1}))

    assert len(str(refusal)) <= problems.DETAIL_CHARACTERS
    assert refusal.errors[0].pointer is not None
    assert len(refusal.errors[0].pointer) <= problems.DETAIL_CHARACTERS + 1
