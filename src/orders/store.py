"""The tables of the orders system, and the set-based work on them: a handful of statements a group, never one a line.

Invariants: on_hand never goes below zero, whatever runs at once; an order is decided once; an e-mail address
has one account. Locks are taken in one order everywhere: the engine's inbox claims, then orders (or e-mail
addresses) by key, then products by SKU, last because they are contended.

Prices are exact: whole hundred-millionths in a 64-bit integer. Real unit prices need that (2 for 0.99, fuel
at 0.0024 a unit), SQLite has no decimal type, and an integer compares and sorts in SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from hopline import (
    ORIGIN_HEADER,
    CommitUnknown,
    Database,
    IdempotentRequest,
    Remembered,
    Transaction,
    UtcTime,
    as_table,
    claim_idempotency,
    insert,
    now,
    table_rows,
    utcnow,
)
from orders.domain import PRICE_PLACES, Customer, Line, Product, Reason, reserve, total_cents
from orders.messages import ConfirmedLine, OrderConfirmed, OrderPlaced, OrderRejected, UserRegistered, UserWelcomed

ACCEPTED, CONFIRMED, REJECTED = "accepted", "confirmed", "rejected"
REGISTERED, REFUSED = "registered", "refused"
LISTED_LINES = 50
"""As many lines an email lists; the rest is a number."""
LOAD_ROWS = 1_000
_SCALE = Decimal(10) ** PRICE_PLACES


class ExactPrice(sa.types.TypeDecorator[Decimal]):
    """A Decimal with up to 8 places, stored as a whole number of hundred-millionths."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> int | None:
        """To hundred-millionths; a price that needs more places is a programming error."""
        return None if value is None else price_to_units(value)

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> Decimal | None:
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
    if units % 1_000_000 == 0:  # whole cents: nearly always
        return Decimal(units // 1_000_000).scaleb(-2)
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

user_emails = sa.Table(
    "user_emails",
    metadata,
    sa.Column("email", sa.String(254), primary_key=True, doc="in lower case: one account an address"),
    sa.Column("user_id", Id, nullable=False),
)


@dataclass(frozen=True, slots=True)
class NewOrder:
    """A checked order on its way into the database."""

    id: str
    customer: Customer
    lines: list[Line]
    origin: str = ""
    """The request that brought it, for the trace."""
    idempotency: IdempotentRequest | None = None
    """Its `response` is the order's id."""
    placed_at: datetime = field(default_factory=utcnow)


@dataclass(frozen=True, slots=True)
class NewUser:
    """A checked registration on its way into the database."""

    id: str
    customer: Customer
    origin: str = ""
    idempotency: IdempotentRequest | None = None
    registered_at: datetime = field(default_factory=utcnow)


@dataclass(frozen=True, slots=True)
class Placed:
    """Stored: it will be decided."""

    id: str


New = NewOrder | NewUser


async def place_orders(tx: Transaction, new: list[NewOrder]) -> list[Placed | Remembered]:
    """Stores orders and sends `order.placed` for each, in one group; what a key remembers is not stored again."""
    answers = await _claim(tx, new)
    rows = []
    for order, answer in zip(new, answers, strict=True):
        if isinstance(answer, Placed):
            total = total_cents(order.lines)
            lines = msgspec.json.encode(order.lines).decode()
            rows.append(_row(order) | {"lines": lines, "total_cents": total})
            placed = OrderPlaced(order.id, order.customer, order.lines, total, order.placed_at)
            tx.send(placed, headers=_headers(order))
    await _insert(tx, orders, rows, {"lines": sa.Text(), "total_cents": sa.BigInteger()})
    return answers


async def place_users(tx: Transaction, new: list[NewUser]) -> list[Placed | Remembered]:
    """Stores registrations and sends `user.registered` for each."""
    answers = await _claim(tx, new)
    rows = []
    for user, answer in zip(new, answers, strict=True):
        if isinstance(answer, Placed):
            rows.append(_row(user))
            tx.send(UserRegistered(user.id, user.customer, user.registered_at), headers=_headers(user))
    await _insert(tx, users, rows, {})
    return answers


async def read_back_orders(tx: Transaction, new: list[NewOrder]) -> list[Placed | CommitUnknown]:
    """After a commit with an unknown end: what is there was stored; of the rest nothing is known yet."""
    return await _read_back(tx, orders, new)


async def read_back_users(tx: Transaction, new: list[NewUser]) -> list[Placed | CommitUnknown]:
    """As read_back_orders."""
    return await _read_back(tx, users, new)


async def _claim(tx: Transaction, new: Sequence[New]) -> list[Placed | Remembered]:
    requests = [one.idempotency for one in new if one.idempotency is not None]
    claims = iter(await claim_idempotency(tx, requests) if requests else [])
    answers: list[Placed | Remembered] = []
    for one in new:
        remembered = next(claims) if one.idempotency is not None else None
        answers.append(remembered or Placed(one.id))
    return answers


def _row(new: New) -> dict[str, Any]:
    return {"id": new.id, "email": new.customer.email, "name": new.customer.name}


def _headers(new: New) -> Mapping[str, str]:
    return {ORIGIN_HEADER: new.origin} if new.origin else {}


async def _insert(
    tx: Transaction, table: sa.Table, rows: Sequence[Mapping[str, Any]], more: Mapping[str, sa.types.TypeEngine[Any]]
) -> None:
    """Inserts accepted rows of `orders` or `users`; existing ids are left alone."""
    if not rows:
        return
    given = as_table(tx.dialect, {"id": Id, "email": sa.Text(), "name": sa.Text(), **more})
    names = ["id", "email", "name", "state", "reasons", "accepted_at", *more]
    values = [
        given.c.id,
        given.c.email,
        given.c.name,
        sa.literal(ACCEPTED),
        sa.literal_column("CAST('[]' AS JSON)" if tx.dialect == "postgresql" else "'[]'", sa.JSON),
        now(),
        *(_json(tx.dialect, given.c[name]) if name == "lines" else given.c[name] for name in more),
    ]
    chosen = sa.select(*values).where(sa.true()).order_by(given.c.id)
    statement = insert(tx.dialect, table).from_select(names, chosen).on_conflict_do_nothing()
    await tx.execute(statement, table_rows(rows))


async def _read_back(tx: Transaction, table: sa.Table, new: Sequence[New]) -> list[Placed | CommitUnknown]:
    given = as_table(tx.dialect, {"id": Id})
    query = sa.select(table.c.id).where(table.c.id.in_(sa.select(given.c.id)))
    stored = {row.id for row in await tx.rows(query, table_rows([{"id": one.id} for one in new]))}
    return [Placed(one.id) if one.id in stored else CommitUnknown("not stored as far as can be seen") for one in new]


async def decide(tx: Transaction, placed: Sequence[OrderPlaced]) -> list[OrderConfirmed | OrderRejected | str]:
    """Decides a group of orders and reserves their stock; for an order that was decided before, its state.

    Five statements, whatever the number of orders and lines.
    """
    states = await _lock_orders(tx, placed)
    open_orders = list({o.order_id: o for o in placed if states[o.order_id] == ACCEPTED}.values())
    shelf = await _lock_products(tx, {line.sku for order in open_orders for line in order.lines})
    reservation = reserve(open_orders, shelf)
    reasons = {order.order_id: why for order, why in zip(open_orders, reservation.reasons, strict=True)}
    await _take(tx, reservation.taken)
    await _set_states(tx, orders, reasons, CONFIRMED, REJECTED)
    return [
        _decided(order, reasons[order.order_id], shelf) if order.order_id in reasons else states[order.order_id]
        for order in placed
    ]


def _decided(
    order: OrderPlaced, against: list[Reason], shelf: Mapping[str, Product]
) -> OrderConfirmed | OrderRejected:
    return OrderRejected(order.order_id, order.customer, against) if against else _confirmed(order, shelf)


def _confirmed(order: OrderPlaced, shelf: Mapping[str, Product]) -> OrderConfirmed:
    listed = [
        ConfirmedLine(shelf[line.sku].name, line.quantity, line.unit_price, line.cents)
        for line in order.lines[:LISTED_LINES]
    ]
    return OrderConfirmed(order.order_id, order.customer, listed, len(order.lines), total_cents(order.lines))


async def _lock_orders(tx: Transaction, placed: Sequence[OrderPlaced]) -> dict[str, str]:
    """The orders' states by id. One that came by another way than the API is stored first."""
    given = as_table(tx.dialect, {"id": Id})
    query = (
        sa.select(orders.c.id, orders.c.state)
        .where(orders.c.id.in_(sa.select(given.c.id)))
        .order_by(orders.c.id)
        .with_for_update(of=orders)
    )
    parameters = table_rows([{"id": order.order_id} for order in placed])
    states = {row.id: row.state for row in await tx.rows(query, parameters)}
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
        await _insert(tx, orders, rows, {"lines": sa.Text(), "total_cents": sa.BigInteger()})
        states = {row.id: row.state for row in await tx.rows(query, parameters)}
    return states


async def _lock_products(tx: Transaction, skus: Iterable[str]) -> dict[str, Product]:
    """The products by SKU, locked in SKU order so that two groups cannot wait for each other (SQLite has one writer)."""
    given = as_table(tx.dialect, {"sku": sa.Text()})
    query = (
        sa.select(products.c.sku, products.c.name, products.c.list_price, products.c.on_hand)
        .where(products.c.sku.in_(sa.select(given.c.sku)))
        .order_by(products.c.sku)
        .with_for_update(of=products)
    )
    rows = await tx.rows(query, table_rows([{"sku": sku} for sku in skus]))
    return {row[0]: Product(row[0], row[1], row[2], row[3]) for row in rows}


async def _take(tx: Transaction, taken: Mapping[str, int]) -> None:
    if taken:
        given = as_table(tx.dialect, {"sku": sa.Text(), "units": sa.BigInteger()})
        statement = (
            sa.update(products)
            .where(products.c.sku == given.c.sku)
            .values(on_hand=products.c.on_hand - given.c.units)
        )
        await tx.execute(statement, table_rows([{"sku": sku, "units": units} for sku, units in taken.items()]))


async def _set_states(
    tx: Transaction, table: sa.Table, reasons: Mapping[str, Sequence[Reason]], good: str, bad: str
) -> set[str]:
    """Decides rows by id, `bad` where there are reasons, else `good`; the ids of those that were not decided before."""
    if not reasons:
        return set()
    given = as_table(tx.dialect, {"id": Id, "state": sa.Text(), "reasons": sa.Text()})
    statement = (
        sa.update(table)
        .where(table.c.id == given.c.id, table.c.state == ACCEPTED)
        .values(state=given.c.state, reasons=_json(tx.dialect, given.c.reasons), decided_at=now())
    )
    rows = [
        {"id": identifier, "state": bad if why else good, "reasons": msgspec.json.encode(why).decode()}
        for identifier, why in sorted(reasons.items())
    ]
    return {row.id for row in await tx.rows(statement.returning(table.c.id), table_rows(rows))}


def _json(dialect: str, text: sa.ColumnElement[str]) -> sa.ColumnElement[Any]:
    """JSON text as a JSON column's value: on SQLite it is text anyway."""
    return sa.cast(text, sa.JSON) if dialect == "postgresql" else sa.type_coerce(text, sa.JSON)


async def register(tx: Transaction, registered: Sequence[UserRegistered]) -> list[UserWelcomed | str]:
    """Decides a group of registrations: the first for an address gets the account; for the others, why nothing is done.

    An address that has an account is left as it is and gets no mail: else anybody could make this program write
    to anybody, by registering them again and again. The refused registration says why at its own URL.
    """
    await _insert(tx, users, [{"id": u.user_id, "email": u.customer.email, "name": u.customer.name} for u in registered], {})
    owners = await _claim_emails(tx, registered)
    taken = Reason("already-registered", "this e-mail address already has an account; nothing was changed")
    mine = {user.user_id: owners[user.customer.email.lower()] == user.user_id for user in registered}
    reasons: dict[str, list[Reason]] = {user: [] if is_mine else [taken] for user, is_mine in mine.items()}
    decided = await _set_states(tx, users, reasons, REGISTERED, REFUSED)
    return [
        UserWelcomed(user.user_id, user.customer)
        if mine[user.user_id] and user.user_id in decided
        else "registered before" if mine[user.user_id] else "refused: the address has an account"
        for user in registered
    ]


async def _claim_emails(tx: Transaction, registered: Sequence[UserRegistered]) -> dict[str, str]:
    """Whose account each address is, in lower case; claimed in sorted order for those that had none."""
    claims: dict[str, str] = {}
    for user in registered:
        claims.setdefault(user.customer.email.lower(), user.user_id)
    given = as_table(tx.dialect, {"email": sa.Text(), "user_id": Id})
    chosen = sa.select(given.c.email, given.c.user_id).where(sa.true()).order_by(given.c.email)
    parameters = table_rows([{"email": email, "user_id": user_id} for email, user_id in claims.items()])
    await tx.execute(
        insert(tx.dialect, user_emails).from_select(["email", "user_id"], chosen).on_conflict_do_nothing(), parameters
    )
    query = sa.select(user_emails).where(user_emails.c.email.in_(sa.select(given.c.email)))
    return {row.email: row.user_id for row in await tx.rows(query, parameters)}


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
    """DatabaseError if no query can be run."""
    async with database.reading() as connection:
        await connection.execute(sa.select(1))


@dataclass(frozen=True, slots=True)
class Decision:
    """An order's way through the states, for a report."""

    id: str
    state: str
    accepted_at: datetime
    decided_at: datetime | None


async def decisions(database: Database) -> list[Decision]:
    """All orders, oldest first, as far as they are decided."""
    query = sa.select(orders.c.id, orders.c.state, orders.c.accepted_at, orders.c.decided_at).order_by(orders.c.id)
    async with database.reading() as connection:
        return [Decision(*row) for row in await connection.execute(query)]


async def count_states(database: Database) -> dict[str, int]:
    """How many orders are in each state."""
    query = sa.select(orders.c.state, sa.func.count()).group_by(orders.c.state)
    async with database.reading() as connection:
        counted = {state: count for state, count in await connection.execute(query)}
    return {state: counted.get(state, 0) for state in (ACCEPTED, CONFIRMED, REJECTED)}


async def stock(database: Database) -> dict[str, int]:
    """Units on hand by SKU."""
    async with database.reading() as connection:
        return {sku: on_hand for sku, on_hand in await connection.execute(sa.select(products.c.sku, products.c.on_hand))}


async def load_products(tx: Transaction, batch: Sequence[tuple[Product, str]], *, restock: bool) -> None:
    """Stores products with their departments. A known one gets its new name and price; its stock only on `restock`."""
    columns = {"sku": sa.Text(), "name": sa.Text(), "department": sa.Text(), "list_price": sa.BigInteger(), "on_hand": sa.BigInteger()}
    given = as_table(tx.dialect, columns)
    chosen = sa.select(*(given.c[name] for name in columns)).where(sa.true()).order_by(given.c.sku)
    statement = insert(tx.dialect, products).from_select(list(columns), chosen)
    updated = [name for name in columns if name != "sku" and (restock or name != "on_hand")]
    upsert = statement.on_conflict_do_update(
        index_elements=["sku"], set_={name: statement.excluded[name] for name in updated}
    )
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
    await tx.execute(upsert, table_rows(rows))
