"""What an operator can find by an e-mail address: the orders and the account that belong to it."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline import LookedUp, Lookup
from orders.domain import account_key, normalise_email
from orders.store import orders, user_emails, users

FOUND = 50
"""The latest orders of an address, and no more."""


async def by_email(connection: AsyncConnection, text: str) -> Sequence[LookedUp]:
    """The latest orders of an address, and its account; in upper or lower case."""
    if "@" not in text:
        return ()
    text = _as_kept(text)
    same = sa.func.lower(orders.c.email) == sa.func.lower(text)  # both by the database: SQLite's knows ASCII only
    mine = sa.select(orders.c.id, orders.c.state, orders.c.accepted_at).where(same)
    found = [
        LookedUp(row.id, f"an order, {row.state}", row.accepted_at)
        for row in await connection.execute(mine.order_by(orders.c.id.desc()).limit(FOUND))
    ]
    joined = user_emails.join(users, users.c.id == user_emails.c.user_id)
    account = sa.select(users.c.id, users.c.state, users.c.accepted_at).select_from(joined)
    found += [
        LookedUp(row.id, f"a registration, {row.state}", row.accepted_at)
        for row in await connection.execute(account.where(user_emails.c.email == account_key(text)))
    ]
    return found


def _as_kept(text: str) -> str:
    """An international domain may be typed in either form. What is no address here may be another program's."""
    try:
        return normalise_email(text)
    except ValueError:
        return text


LOOKUPS = (Lookup("e-mail address", by_email),)
