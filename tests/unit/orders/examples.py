"""Orders and users for tests."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from hopline import new_id, utcnow
from orders.domain import Customer, Line, total_cents
from orders.messages import OrderPlaced
from orders.placing import NewOrder, NewUser

CUSTOMER = Customer("ann@example.com", "Ann Müller")


def line(sku: str = "apple", quantity: int = 1, price: str = "1.00") -> Line:
    return Line(sku, quantity, Decimal(price))


def placed(lines: Sequence[Line], *, order_id: str = "", customer: Customer = CUSTOMER) -> OrderPlaced:
    return OrderPlaced(order_id or new_id(), customer, list(lines), total_cents_or_zero(lines), utcnow())


def total_cents_or_zero(lines: Sequence[Line]) -> int:
    """Prices that are no money have no total."""
    finite = [one for one in lines if one.unit_price.is_finite() and abs(one.unit_price.adjusted()) < 20]
    return total_cents(finite)


def new_order(lines: Sequence[Line] = (), **changes: Any) -> NewOrder:
    return NewOrder(**{"id": new_id(), "customer": CUSTOMER, "lines": list(lines or [line()]), **changes})


def new_user(email: str = "ann@example.com", name: str = "Ann", **changes: Any) -> NewUser:
    return NewUser(**{"id": new_id(), "customer": Customer(email, name), **changes})


def as_placed(order: NewOrder) -> OrderPlaced:
    return placed(order.lines, order_id=order.id, customer=order.customer)
