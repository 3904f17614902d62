"""What travels between the API, the worker and the mail: one class a message type, each with all its taker needs.

No taker reads another's tables to understand a message. Unknown fields are let through, so that a newer
sender can add one; whatever breaks an older taker is a new version.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated

import msgspec

from hopline import message
from orders.domain import Customer, Line, Reason

Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
"""A UUID as text in lower case: the databases compare it as it is."""
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""A number that the databases can store (BIGINT); a longer one does not decode."""


class ConfirmedLine(msgspec.Struct, frozen=True, gc=False):
    """A line of a confirmed order, as the customer reads it."""

    name: str
    quantity: Whole
    unit_price: Decimal
    cents: Whole


@message("order.placed", key="order_id")
class OrderPlaced(msgspec.Struct, frozen=True):
    """The API has accepted an order; nobody has decided it yet."""

    order_id: Uuid
    customer: Customer
    lines: list[Line]
    total_cents: Whole
    placed_at: datetime


@message("order.confirmed", key="order_id")
class OrderConfirmed(msgspec.Struct, frozen=True):
    """The stock is reserved. Lists the first lines only; `line_count` says how many there are."""

    order_id: Uuid
    customer: Customer
    lines: list[ConfirmedLine]
    line_count: Whole
    total_cents: Whole


@message("order.rejected", key="order_id")
class OrderRejected(msgspec.Struct, frozen=True):
    """The order cannot be had, for these reasons; nothing was reserved."""

    order_id: Uuid
    customer: Customer
    reasons: list[Reason]


@message("user.registered", key="user_id")
class UserRegistered(msgspec.Struct, frozen=True):
    """Somebody asked for an account."""

    user_id: Uuid
    customer: Customer
    registered_at: datetime


@message("user.welcomed", key="user_id")
class UserWelcomed(msgspec.Struct, frozen=True):
    """The account exists."""

    user_id: Uuid
    customer: Customer
