from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orders.demo import Report, percentile_ms, repeated

CLEAN = Report(
    sent=10, accepted=9, refused_at_the_edge=1, failed=0, confirmed=8, rejected=1, emails_delivered=9, missing=0,
    duplicated=0, orders_per_second=500.0, post_p50_ms=1.0, post_p99_ms=2.0, confirmed_p50_ms=3.0, confirmed_p99_ms=4.0,
)  # fmt: skip


@pytest.mark.parametrize("flaw", [{"missing": 1}, {"duplicated": 1}, {"failed": 1}, {"accepted": 0}])
def test_a_report_is_clean_only_without_any_flaw(flaw: dict[str, int]) -> None:
    assert CLEAN.is_clean
    assert not replace(CLEAN, **flaw).is_clean  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1000), min_size=1), st.floats(0, 1, exclude_max=True))
def test_a_percentile_is_one_of_the_values_and_enough_are_not_above_it(seconds: list[float], part: float) -> None:
    value = percentile_ms(seconds, part)

    assert value in {round(one * 1000, 1) for one in seconds}
    assert sum(round(one * 1000, 1) <= value for one in seconds) > len(seconds) * part - 1e-9


def test_a_percentile_of_nothing_is_zero() -> None:
    assert percentile_ms([], 0.99) == 0.0


def test_repeated_baskets_have_keys_of_their_own() -> None:
    baskets = list(islice(repeated(), 3_005))

    assert len({basket.id for basket in baskets}) == 3_005
    assert baskets[3_000].body == baskets[0].body
