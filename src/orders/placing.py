"""What the API writes: new orders and registrations with the messages that carry them, a group a transaction.

A key that was seen before stores nothing: what it is remembered with is the answer. Nothing here decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

from hopline import (
    ORIGIN_HEADER,
    CommitUnknown,
    Dialect,
    IdempotentRequest,
    Remembered,
    Rows,
    Transaction,
    claim_idempotency,
    utcnow,
)
from orders.domain import Customer, Line, total_cents
from orders.messages import OrderPlaced, UserRegistered
from orders.store import Id, insert_orders, insert_users, orders, users


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
    """Stores orders and sends `order.placed` for each, in three statements."""
    answers = await _claim(tx, new)
    rows = []
    for order, answer in zip(new, answers, strict=True):
        if isinstance(answer, Placed):
            total = total_cents(order.lines)
            lines = msgspec.json.encode(order.lines).decode()
            rows.append(_row(order) | {"lines": lines, "total_cents": total})
            placed = OrderPlaced(order.id, order.customer, order.lines, total, order.placed_at)
            tx.send(placed, headers=_headers(order))
    insert_orders(tx, rows)
    return answers


async def place_users(tx: Transaction, new: list[NewUser]) -> list[Placed | Remembered]:
    """Stores registrations and sends `user.registered` for each."""
    answers = await _claim(tx, new)
    rows = []
    for user, answer in zip(new, answers, strict=True):
        if isinstance(answer, Placed):
            rows.append(_row(user))
            tx.send(UserRegistered(user.id, user.customer, user.registered_at), headers=_headers(user))
    insert_users(tx, rows)
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


async def _read_back(tx: Transaction, table: sa.Table, new: Sequence[New]) -> list[Placed | CommitUnknown]:
    rows = await tx.rows(_known(tx.dialect, table), _IDS.given(tx.dialect, id=[one.id for one in new]))
    known = {row.id for row in rows}
    return [Placed(one.id) if one.id in known else CommitUnknown("not stored as far as can be seen") for one in new]


def _row(new: New) -> dict[str, Any]:
    return {"id": new.id, "email": new.customer.email, "name": new.customer.name}


def _headers(new: New) -> Mapping[str, str]:
    return {ORIGIN_HEADER: new.origin} if new.origin else {}


_IDS = Rows("ids", id=Id)


@cache
def _known(dialect: Dialect, table: sa.Table) -> sa.Executable:
    return sa.select(table.c.id).where(_IDS.among(dialect, table.c.id))
