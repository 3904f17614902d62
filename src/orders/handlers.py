"""What a worker does with orders and registrations: database effects only, a group at a time.

Every order ends here as confirmed or rejected, in the same transaction that says so to the queue `emails`.
"""

from __future__ import annotations

from hopline import Done, Handlers, Transaction
from orders import deciding
from orders.messages import OrderConfirmed, OrderPlaced, OrderRejected, UserRegistered, UserWelcomed

DEADLINE_SECONDS = 10.0
"""A group takes a fraction of a second. Postgres lets a frozen worker keep its locks for this long and 10 s more."""

handlers = Handlers()


@handlers.on("orders", deadline_seconds=DEADLINE_SECONDS)
async def decide(orders: list[OrderPlaced], tx: Transaction) -> list[OrderConfirmed | OrderRejected | Done]:
    """Confirms each order and reserves its stock, or rejects it with reasons."""
    return [
        Done(f"was {result} already") if isinstance(result, str) else result
        for result in await deciding.decide(tx, orders)
    ]


@handlers.on("users", deadline_seconds=DEADLINE_SECONDS)
async def register(users: list[UserRegistered], tx: Transaction) -> list[UserWelcomed | Done]:
    """Opens an account for each address that has none."""
    return [Done(result) if isinstance(result, str) else result for result in await deciding.register(tx, users)]
