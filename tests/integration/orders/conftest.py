"""A database with the tables of the engine and of the orders system, and a small catalogue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from hopline import Database
from orders import store
from orders.domain import Product

ON_HAND = 100


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """apple, bread, cheese and dates cost 1.00, 100 of each; fuel has no list price."""
    opened = Database(database_url)
    await opened.create(store.metadata)
    products = [
        (Product(sku, sku.title(), Decimal("1.00"), ON_HAND), "Food") for sku in ("apple", "bread", "cheese", "dates")
    ]
    products.append((Product("fuel", "Fuel", None, 1_000_000), "Fuel"))
    async with opened.transaction() as tx:
        await store.load_products(tx, products, restock=True)
    yield opened
    await opened.close()
