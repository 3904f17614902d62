"""Products and stock from a file into the database: NDJSON, gzipped or not, one product a line.

A line is `{"sku", "name", "department", "list_price", "on_hand"}`, or one of the shipped data's product lines,
whose `median_unit_price` is the list price (those without a department are in no catalogue, and are left out).
A price that is missing or 0 means: cannot be ordered. Loading is
safe to repeat while orders are decided: a known product gets its new name and price, and keeps its stock
unless `restock` is given.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from hopline import Database, UsageError
from orders.domain import Product, product
from orders.store import load_products

LOAD_ROWS = 1_000
ON_HAND = 1_000
"""Units of a product whose line does not say how many there are."""
DATA = Path(__file__).parent / "data"
SHIPPED = DATA / "products.ndjson.gz"

Entry = tuple[Product, str]
"""A product and its department."""


class _Own(msgspec.Struct, forbid_unknown_fields=True):
    sku: str
    name: str
    department: str = ""
    list_price: Decimal | None = None
    on_hand: int | None = None


class _Journey(msgspec.Struct):
    product_id: str
    department: str | None
    category: str | None
    type: str | None
    package_size: str | None
    median_unit_price: Decimal | None


def read(path: Path = SHIPPED, *, on_hand: int = ON_HAND) -> Iterator[Entry]:
    """The products of a file; `on_hand` is for those that do not say. UsageError names a line that is none."""
    for number, line in enumerate(lines(path), 1):
        try:
            entry = _entry(line, on_hand)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise UsageError(f"{path}, line {number} is no product: {error}") from None
        if entry is not None:
            yield entry


def lines(path: Path) -> Iterator[bytes]:
    """The lines of an NDJSON file, gzipped if its name ends in .gz; blank ones are left out."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield from (line for line in file if not line.isspace())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


async def load(database: Database, entries: Iterable[Entry], *, restock: bool = False) -> int:
    """Stores the products in batches, a transaction each; returns how many there were."""
    remaining = iter(entries)
    count = 0
    while batch := list(islice(remaining, LOAD_ROWS)):
        unique = {entry[0].sku: entry for entry in batch}
        async with database.transaction() as tx:
            await load_products(tx, list(unique.values()), restock=restock)
        count += len(batch)
    return count


def journey_entry(row: dict[str, Any], on_hand: int) -> Entry | None:
    """A product of The Complete Journey; None if it was sold but no catalogue describes it."""
    return _journey(msgspec.convert(row, _Journey), on_hand)


def _entry(line: bytes, on_hand: int) -> Entry | None:
    if b'"product_id"' in line:
        return _journey(msgspec.json.decode(line, type=_Journey), on_hand)
    own = msgspec.json.decode(line, type=_Own)
    units = on_hand if own.on_hand is None else own.on_hand
    return product(own.sku, own.name, own.list_price, units), own.department


def _journey(row: _Journey, on_hand: int) -> Entry | None:
    if row.department is None:
        return None
    words = (row.type or row.category or row.department).title()
    name = f"{words}, {row.package_size.lower()}" if row.package_size else words
    return product(row.product_id, name, row.median_unit_price, on_hand), row.department
