from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orders.store import price_from_units, price_to_units


@given(st.decimals(0, 999_999, places=8))
def test_a_price_survives_the_database_exactly(price: Decimal) -> None:
    assert price_from_units(price_to_units(price)) == price


@pytest.mark.parametrize("text", ["0.00", "1.00", "1.10", "52.32", "0.495", "0.0024", "0.00000001", "100000.00"])
def test_a_price_comes_back_as_it_is_written(text: str) -> None:
    assert str(price_from_units(price_to_units(Decimal(text)))) == (text if text != "0.00000001" else "1E-8")


def test_a_price_that_cannot_be_stored_exactly_is_refused() -> None:
    with pytest.raises(ValueError, match="8 places"):
        price_to_units(Decimal("0.000000001"))
