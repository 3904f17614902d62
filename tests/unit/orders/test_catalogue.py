from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from hopline import UsageError
from orders import catalogue
from orders.domain import Product


def test_the_shipped_catalogue() -> None:
    entries = list(catalogue.read(on_hand=7))

    products = {product.sku: product for product, _ in entries}
    assert len(products) == len(entries) == 12_042 - 4
    assert entries[0] == (Product("27334", "Diet Cntrl Liqs Nutritional", Decimal("4.04"), 7), "DRUG GM")
    assert products["6534178"].list_price is None  # fuel


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.ndjson"
    path.write_text(
        '{"sku": "a", "name": "Apple", "department": "Fruit", "list_price": "0.55", "on_hand": 3}\n'
        '{"sku": "b", "name": "Bread", "list_price": 1.10}\n'
        '{"sku": "c", "name": "Coupon", "list_price": "0.00"}\n'
    )

    assert list(catalogue.read(path, on_hand=9)) == [
        (Product("a", "Apple", Decimal("0.55"), 3), "Fruit"),
        (Product("b", "Bread", Decimal("1.10"), 9), ""),
        (Product("c", "Coupon", None, 9), ""),
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"sku": "a"}',
        '{"sku": "a", "name": "A", "colour": "red"}',
        '{"sku": "a", "name": "A", "on_hand": -1}',
        '{"sku": "a b", "name": "A"}',
        '{"sku": "a", "name": "A", "list_price": "-1"}',
        '{"sku": "a", "name": "A", "list_price": "NaN"}',
        '{"sku": "a", "name": "A", "list_price": "0.123456789"}',
        '{"sku": "a", "name": "A", "list_price": "1000000"}',
        "nonsense",
    ],
)
def test_a_line_that_is_no_product_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "own.ndjson"
    path.write_text('{"sku": "a", "name": "A"}\n' + line + "\n")

    with pytest.raises(UsageError, match=r"own\.ndjson, line 2 is no product"):
        list(catalogue.read(path))
