"""An operator finds a customer's orders and account by the e-mail address."""

from __future__ import annotations

from datetime import timedelta

from hopline import Database
from hopline.clock import new_id, utcnow
from hopline.search import find
from orders import lookups, store
from orders.deciding import register
from orders.domain import Customer
from orders.messages import UserRegistered


async def test_an_address_finds_its_orders_and_its_account_in_any_case(database: Database) -> None:
    order, other, user = new_id(), new_id(), new_id()
    row = {"name": "Ann", "lines": "[]", "total_cents": 100}
    async with database.transaction() as tx:
        store.insert_orders(
            tx, [{"id": order, "email": "Ann@Example.com", **row}, {"id": other, "email": "bob@example.com", **row}]
        )
        await register(tx, [UserRegistered(user, Customer("ann@example.com", "Ann"), utcnow())])

    found = await find(database, "ANN@example.COM ", lookups.LOOKUPS, retention=timedelta(days=14))
    nobody = await find(database, "nobody@example.com", lookups.LOOKUPS, retention=timedelta(days=14))
    no_address = await find(database, "Ann", lookups.LOOKUPS, retention=timedelta(days=14))

    assert [(hit.kind, hit.flow, hit.text) for hit in found.hits] == [
        ("lookup", order, "an order, accepted"),
        ("lookup", user, "a registration, registered"),
    ]
    assert "e-mail address" in nobody.looked_for
    assert (nobody.hits, no_address.hits) == ((), ())
