"""What the worker writes: decisions, set-based. A handful of statements a group, never one an order or a line.

Order of locks: orders (or e-mail addresses) by key, then products by SKU. Between lock and update everything is
decided in memory, by `domain.reserve`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

from hopline import Dialect, Rows, Transaction, as_json, insert, now
from orders.domain import Product, Reason, account_key, reserve
from orders.messages import ConfirmedLine, OrderConfirmed, OrderPlaced, OrderRejected, UserRegistered, UserWelcomed
from orders.store import (
    ACCEPTED,
    CONFIRMED,
    REFUSED,
    REGISTERED,
    REJECTED,
    Id,
    insert_orders,
    insert_users,
    orders,
    products,
    user_emails,
    users,
)

LISTED_LINES = 50
"""As many lines an email lists; the rest is a number."""


async def decide(tx: Transaction, placed: Sequence[OrderPlaced]) -> list[OrderConfirmed | OrderRejected | str]:
    """Decides a group of orders and reserves their stock; for an order that was decided before, its state.

    One statement to lock and to read, and two that wait for COMMIT, whatever the number of orders and lines (two more
    if some came by another way than the API).
    """
    states, shelf = await _lock(tx, placed)
    first = {order.order_id: order for order in reversed(placed) if states[order.order_id] == ACCEPTED}
    still_open = list(reversed(first.values()))
    reservation = reserve(still_open, shelf)
    reasons = {order.order_id: why for order, why in zip(still_open, reservation.reasons, strict=True)}
    _take(tx, reservation.taken)
    if reasons:
        tx.defer(_deciding(tx.dialect, orders), _decided(tx.dialect, reasons, CONFIRMED, REJECTED))
    results: list[OrderConfirmed | OrderRejected | str] = []
    for order in placed:
        if states[order.order_id] == ACCEPTED:  # the first message of an order that was not decided before
            against = reasons[order.order_id]
            results.append(answer_to(order, against, shelf))
            states[order.order_id] = REJECTED if against else CONFIRMED
        else:
            results.append(states[order.order_id])
    return results


async def register(tx: Transaction, registered: Sequence[UserRegistered]) -> list[UserWelcomed | str]:
    """Decides a group of registrations: the first for an address gets the account; for the others, why nothing is done.

    An address that has an account is left as it is and gets no mail: else anybody could make this program write
    to anybody, by registering them again and again. The refused registration says why at its own URL.
    """
    rows = [{"id": user.user_id, "email": user.customer.email, "name": user.customer.name} for user in registered]
    insert_users(tx, rows)
    await tx.flush()
    owners = await _claim_emails(tx, registered)
    taken = Reason("already-registered", "this e-mail address already has an account; nothing was changed")
    reasons: dict[str, list[Reason]] = {
        user.user_id: [] if owners[account_key(user.customer.email)] == user.user_id else [taken] for user in registered
    }
    statement = _deciding(tx.dialect, users).returning(users.c.id)
    decided = {row.id for row in await tx.rows(statement, _decided(tx.dialect, reasons, REGISTERED, REFUSED))}
    return [_welcomed(user, reasons[user.user_id], user.user_id in decided) for user in registered]


def answer_to(
    order: OrderPlaced, against: list[Reason], shelf: Mapping[str, Product]
) -> OrderConfirmed | OrderRejected:
    """What is said of a decided order: confirmed with its lines as they are priced, or rejected with the reasons."""
    if against:
        return OrderRejected(order.order_id, order.customer, against)
    cents = [line.cents for line in order.lines]
    listed = [
        ConfirmedLine(shelf[line.sku].name, line.quantity, line.unit_price, its_cents)
        for line, its_cents in zip(order.lines[:LISTED_LINES], cents, strict=False)
    ]
    return OrderConfirmed(order.order_id, order.customer, listed, len(order.lines), sum(cents))


def _welcomed(user: UserRegistered, against: list[Reason], decided_now: bool) -> UserWelcomed | str:
    if against:
        return "refused: the address has an account"
    return UserWelcomed(user.user_id, user.customer) if decided_now else "was registered already"


async def _lock(tx: Transaction, placed: Sequence[OrderPlaced]) -> tuple[dict[str, str], dict[str, Product]]:
    """The orders' states by id, and their products by SKU. An order that came by another way than the API is stored
    first."""
    states, shelf = await _locked_now(tx, placed)
    missing = {order.order_id: order for order in placed if order.order_id not in states}
    if missing:
        rows = [
            {
                "id": order.order_id,
                "email": order.customer.email,
                "name": order.customer.name,
                "lines": msgspec.json.encode(order.lines).decode(),
                "total_cents": order.total_cents,
            }
            for order in missing.values()
        ]
        insert_orders(tx, rows)
        await tx.flush()
        states, shelf = await _locked_now(tx, placed)
    return states, shelf


async def _locked_now(tx: Transaction, placed: Sequence[OrderPlaced]) -> tuple[dict[str, str], dict[str, Product]]:
    given = {
        **_IDS.given(tx.dialect, id=[order.order_id for order in placed]),
        **_SKUS.given(tx.dialect, sku=list({line.sku for order in placed for line in order.lines})),
    }
    states: dict[str, str] = {}
    shelf: dict[str, Product] = {}
    for is_order, key, text, price, on_hand in map(tuple, await tx.rows(_locking(tx.dialect), given)):
        if is_order:
            states[key] = text
        else:
            shelf[key] = Product(key, text, price, on_hand)
    return states, shelf


def _take(tx: Transaction, taken: Mapping[str, int]) -> None:
    if taken:
        tx.defer(_taking(tx.dialect), _TAKEN.given(tx.dialect, sku=list(taken), units=list(taken.values())))


def _decided(dialect: Dialect, reasons: Mapping[str, Sequence[Reason]], good: str, bad: str) -> dict[str, Any]:
    """The parameters of `_deciding`: rows by id, `bad` where there are reasons, else `good`."""
    ids = sorted(reasons)
    return _DECIDED.given(
        dialect,
        id=ids,
        before=[ACCEPTED] * len(ids),
        state=[bad if reasons[identifier] else good for identifier in ids],
        reasons=[_as_text(reasons[identifier]) for identifier in ids],
    )


def _as_text(reasons: Sequence[Reason]) -> str:
    return msgspec.json.encode(reasons).decode() if reasons else "[]"


async def _claim_emails(tx: Transaction, registered: Sequence[UserRegistered]) -> dict[str, str]:
    """Whose account each address is, in lower case; claimed in sorted order for those that had none."""
    claims: dict[str, str] = {}
    for user in registered:
        claims.setdefault(account_key(user.customer.email), user.user_id)
    parameters = _CLAIMED.given(tx.dialect, email=list(claims), user_id=list(claims.values()))
    await tx.execute(_claiming(tx.dialect), parameters)
    return {row.email: row.user_id for row in await tx.rows(_owners(tx.dialect), parameters)}


_IDS = Rows("ids", id=Id)
_SKUS = Rows("skus", sku=sa.Text())
_TAKEN = Rows("taken", sku=sa.Text(), units=sa.BigInteger())
_DECIDED = Rows("decided", id=Id, before=sa.Text(), state=sa.Text(), reasons=sa.Text())
_CLAIMED = Rows("claimed", email=sa.Text(), user_id=Id)


# The statements are built once a dialect: building one costs more than running it. FOR UPDATE is Postgres'; on
# SQLite, whose one writer holds everything from BEGIN IMMEDIATE on, SQLAlchemy leaves it out.


@cache
def _locking(dialect: Dialect) -> sa.Executable:
    """Orders by id, then products by SKU: two groups that share some cannot wait for each other.

    Postgres computes a WITH query that locks when it is first read from, and the parts of a UNION ALL in their order.
    """
    mine = (
        sa.select(orders.c.id, orders.c.state)
        .where(_IDS.among(dialect, orders.c.id))
        .order_by(orders.c.id)
        .with_for_update(of=orders)
        .cte("locked_orders")
    )
    shelf = (
        sa.select(products.c.sku, products.c.name, products.c.list_price, products.c.on_hand)
        .where(_SKUS.among(dialect, products.c.sku, "sku"))
        .order_by(products.c.sku)
        .with_for_update(of=products)
        .cte("locked_products")
    )
    no_number = sa.cast(sa.null(), sa.BigInteger)
    no_price = sa.type_coerce(no_number, products.c.list_price.type)
    return sa.union_all(
        sa.select(sa.true().label("is_order"), sa.cast(mine.c.id, sa.Text), mine.c.state, no_price, no_number),
        sa.select(sa.false(), shelf.c.sku, shelf.c.name, shelf.c.list_price, shelf.c.on_hand),
    )


@cache
def _taking(dialect: Dialect) -> sa.Update:
    given = _TAKEN.table(dialect)
    left = products.c.on_hand - given.c.units
    return sa.update(products).where(products.c.sku == given.c.sku).values(on_hand=left)


@cache
def _deciding(dialect: Dialect, table: sa.Table) -> sa.Update:
    """Of rows that were not decided before."""
    given = _DECIDED.table(dialect)
    return (
        sa.update(table)
        .where(table.c.id == given.c.id, table.c.state == given.c.before)
        .values(state=given.c.state, reasons=as_json(dialect, given.c.reasons, sa.JSON()), decided_at=now())
    )


@cache
def _claiming(dialect: Dialect) -> sa.Executable:
    given = _CLAIMED.table(dialect)
    chosen = sa.select(given.c.email, given.c.user_id).where(sa.true()).order_by(given.c.email)
    return insert(dialect, user_emails).from_select(["email", "user_id"], chosen).on_conflict_do_nothing()


@cache
def _owners(dialect: Dialect) -> sa.Executable:
    return sa.select(user_emails).where(_CLAIMED.among(dialect, user_emails.c.email, "email"))
