from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from orders.domain import Customer
from orders.messages import OrderConfirmed, OrderPlaced, UserRegistered
from tests.unit.orders.examples import line, placed


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    body = msgspec.json.decode(msgspec.json.encode(placed([line()])))
    change(body)
    return msgspec.json.encode(body)


def test_an_order_survives_the_wire() -> None:
    order = placed([line("apple", 2, "0.495"), line("bread")])

    assert msgspec.json.decode(msgspec.json.encode(order), type=OrderPlaced) == order


def test_an_address_outside_ascii_survives_the_wire() -> None:
    order = placed([line()], customer=Customer("j\u00f6rg@m\u00fcnchen.de"))

    assert msgspec.json.decode(msgspec.json.encode(order), type=OrderPlaced) == order


def test_a_field_that_is_not_known_yet_does_no_harm() -> None:
    msgspec.json.decode(changed(lambda body: body.update(gift_wrap=True)), type=OrderPlaced)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(order_id="1"),
        lambda body: body.update(order_id=body["order_id"].upper()),
        lambda body: body["customer"].update(name="Ann\r\nBcc: b@example.com"),
        lambda body: body["customer"].update(name="Ann\n"),
        lambda body: body["customer"].update(name="Ann\x00"),
        lambda body: body["customer"].update(name="x" * 101),
        lambda body: body["customer"].update(email="a@example.com\r\n"),
        lambda body: body["customer"].update(email="a@example.com\n"),
        lambda body: body["customer"].update(email="a@example.com> <b@example.com"),
        lambda body: body["customer"].update(email="nobody"),
        lambda body: body["customer"].update(email="\u00fc\u2028@example.com"),
        lambda body: body["customer"].update(email="\u00fc @example.com"),
        lambda body: body["customer"].update(email="\u00fc@ex\x85ample.com"),
        lambda body: body["lines"][0].update(sku="apple\x00"),
        lambda body: body["lines"][0].update(sku="apple\n"),
        lambda body: body["lines"][0].update(quantity="1"),
        lambda body: body["lines"][0].update(unit_price="cheap"),
        lambda body: body.pop("lines"),
        lambda body: body.update(total_cents=2**63),
        lambda body: body.update(total_cents=-(10**4_000)),
    ],
)
def test_what_could_hurt_a_taker_does_not_decode(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(changed(change), type=OrderPlaced)


def test_the_key_of_a_user_is_a_uuid() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(
            b'{"user_id":"x","customer":{"email":"a@b.de"},"registered_at":"2026-01-01T00:00:00Z"}', type=UserRegistered
        )


@pytest.mark.parametrize("field", ["line_count", "total_cents"])
@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 1 - 10**4_300])
def test_a_number_that_no_letter_could_show_does_not_decode(field: str, number: int) -> None:
    numbers = {"line_count": 1, "total_cents": 1, field: number}
    order = OrderConfirmed(placed([]).order_id, Customer("a@b.de"), [], **numbers)

    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(order), type=OrderConfirmed)
