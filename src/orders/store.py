"""The tables of the orders system, and what is read from them. `placing` and `deciding` write.

Invariants that hold whatever runs at once: on_hand never goes below zero, an order is decided once, an e-mail
address has one account. Locks are taken in one order everywhere: the engine's inbox claims, then orders (or
e-mail addresses) by key, then products by SKU, last because they are contended.

Prices are exact: whole hundred-millionths in a 64-bit integer. Real unit prices need that (2 for 0.99, fuel
at 0.0024 a unit), SQLite has no decimal type, and an integer compares and sorts in SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from hopline import Database, Dialect, Made, Rows, Transaction, UtcTime, Write, as_json, now
from orders.domain import PRICE_PLACES, Product

ACCEPTED, CONFIRMED, REJECTED = "accepted", "confirmed", "rejected"
"""The states of an order; a registration is accepted, then one of the next two."""
REGISTERED, REFUSED = "registered", "refused"
_SCALE = Decimal(10) ** PRICE_PLACES
_UNITS_OF_A_CENT = 10 ** (PRICE_PLACES - 2)


class ExactPrice(sa.types.TypeDecorator[Decimal]):
    """A Decimal with up to 8 places, stored as a whole number of hundred-millionths."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> int | None:  # noqa: ARG002 - SQLAlchemy's signature
        """To hundred-millionths; a price that needs more places is a programming error."""
        return None if value is None else price_to_units(value)

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> Decimal | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Exact, with at least the two places that people expect."""
        return None if value is None else price_from_units(value)


def price_to_units(price: Decimal) -> int:
    """Hundred-millionths; ValueError if that is not exact."""
    units = price * _SCALE
    if units != int(units):
        raise ValueError(f"the price {price} has more than {PRICE_PLACES} places")
    return int(units)


def price_from_units(units: int) -> Decimal:
    """The price, with two places or as many as it needs."""
    if units % _UNITS_OF_A_CENT == 0:  # nearly always
        return Decimal(units // _UNITS_OF_A_CENT).scaleb(-2)
    return (Decimal(units) / _SCALE).normalize()


metadata = sa.MetaData()

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")

products = sa.Table(
    "products",
    metadata,
    sa.Column("sku", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("department", sa.String(64), nullable=False),
    sa.Column("list_price", ExactPrice, doc="NULL: cannot be ordered"),
    sa.Column("on_hand", sa.BigInteger, nullable=False),
    sa.CheckConstraint("on_hand >= 0", name="products_on_hand_not_negative"),
)

orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", Id, primary_key=True, doc="UUIDv7"),
    sa.Column("email", sa.String(254), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("lines", sa.JSON, nullable=False),
    sa.Column("total_cents", sa.BigInteger, nullable=False),
    sa.Column("accepted_at", UtcTime, nullable=False),
    sa.Column("decided_at", UtcTime),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", Id, primary_key=True, doc="UUIDv7"),
    sa.Column("email", sa.String(254), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("accepted_at", UtcTime, nullable=False),
    sa.Column("decided_at", UtcTime),
)

sa.Index("orders_email", sa.func.lower(orders.c.email))

user_emails = sa.Table(
    "user_emails",
    metadata,
    sa.Column("email", sa.String(254), primary_key=True, doc="in lower case: one account an address"),
    sa.Column("user_id", Id, nullable=False),
)


def insert_orders(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """Has accepted orders inserted (id, email, name, lines as JSON text, total_cents); known ids are left alone."""
    _insert(tx, _insert_orders(tx.dialect), _ORDERS, rows)


def insert_users(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """Has accepted registrations inserted (id, email, name); known ids are left alone."""
    _insert(tx, _insert_users(tx.dialect), _USERS, rows)


def _insert(tx: Transaction, statement: Write, columns: Rows, rows: Sequence[Mapping[str, Any]]) -> None:
    """In the order of their ids, so that two that know the same ones cannot deadlock."""
    if rows:
        in_order = sorted(rows, key=lambda row: str(row["id"]))
        tx.defer(statement, columns.inserted(tx.dialect, **_by_column(in_order)))


def _by_column(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


async def load_products(tx: Transaction, batch: Sequence[tuple[Product, str]], *, restock: bool) -> None:
    """Stores products with their departments. A known one gets its new name and price; its stock only on `restock`."""
    rows = [
        {
            "sku": product.sku,
            "name": product.name,
            "department": department,
            "list_price": None if product.list_price is None else price_to_units(product.list_price),
            "on_hand": product.on_hand,
        }
        for product, department in batch
    ]
    rows.sort(key=lambda row: str(row["sku"]))  # as the worker locks them: the two cannot deadlock
    if rows:
        await tx.execute(
            _upsert_products(tx.dialect, restock=restock), _PRODUCTS.inserted(tx.dialect, **_by_column(rows))
        )


async def find_order(database: Database, order_id: str) -> sa.Row[Any] | None:
    """An order's row."""
    return await _find(database, orders, order_id)


async def find_user(database: Database, user_id: str) -> sa.Row[Any] | None:
    """A user's row."""
    return await _find(database, users, user_id)


async def _find(database: Database, table: sa.Table, identifier: str) -> sa.Row[Any] | None:
    async with database.reading() as connection:
        return (await connection.execute(sa.select(table).where(table.c.id == identifier))).first()


async def ping(database: Database) -> None:
    """DatabaseError if no query can be run, or the database can only be read (Database.check_writable)."""
    await database.check_writable()


@dataclass(frozen=True, slots=True)
class Decision:
    """An order's way through the states, for a report."""

    id: str
    state: str
    accepted_at: datetime
    decided_at: datetime | None


async def decisions(database: Database) -> list[Decision]:
    """All orders, oldest first."""
    query = sa.select(orders.c.id, orders.c.state, orders.c.accepted_at, orders.c.decided_at).order_by(orders.c.id)
    async with database.reading() as connection:
        return [Decision(*row) for row in await connection.execute(query)]


async def count_states(database: Database) -> dict[str, int]:
    """How many orders are in each state."""
    query = sa.select(orders.c.state, sa.func.count()).group_by(orders.c.state)
    async with database.reading() as connection:
        counted = {row[0]: row[1] for row in await connection.execute(query)}
    return {state: counted.get(state, 0) for state in (ACCEPTED, CONFIRMED, REJECTED)}


async def stock(database: Database) -> dict[str, int]:
    """Units on hand by SKU."""
    async with database.reading() as connection:
        rows = await connection.execute(sa.select(products.c.sku, products.c.on_hand))
        return {row[0]: row[1] for row in rows}


_ORDERS = Rows("placed", id=Id, email=sa.Text(), name=sa.Text(), lines=sa.Text(), total_cents=sa.BigInteger())
_USERS = Rows("registered", id=Id, email=sa.Text(), name=sa.Text())
_PRODUCTS = Rows(
    "products_given",
    sku=sa.Text(),
    name=sa.Text(),
    department=sa.Text(),
    list_price=sa.BigInteger(),
    on_hand=sa.BigInteger(),
)


# Statements that run often are built once a dialect: building one costs more than running it.


@cache
def _insert_orders(dialect: Dialect) -> Write:
    made: Made = {"lines": lambda given: as_json(dialect, given["lines"], sa.JSON())}
    return _ORDERS.insertion(dialect, orders, {**_accepted(dialect), **made}).on_conflict_do_nothing()


@cache
def _insert_users(dialect: Dialect) -> Write:
    return _USERS.insertion(dialect, users, _accepted(dialect)).on_conflict_do_nothing()


def _accepted(dialect: Dialect) -> Made:
    return {
        "state": lambda _: sa.literal(ACCEPTED),
        "reasons": lambda _: as_json(dialect, sa.literal("[]"), sa.JSON()),
        "accepted_at": lambda _: now(),
    }


@cache
def _upsert_products(dialect: Dialect, *, restock: bool) -> sa.Executable:
    statement = _PRODUCTS.insertion(dialect, products)
    updated = ("name", "department", "list_price", *(("on_hand",) if restock else ()))
    return statement.on_conflict_do_update(
        index_elements=["sku"], set_={name: statement.excluded[name] for name in updated}
    )
