from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.errors import UsageError
from hopline.outcome import LONGEST_DELAY_SECONDS, Dead, Defer, Done, Retry, checked_delay

anything: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.builds(object),
    st.just(timedelta(seconds=1)),
    st.just(Decimal(1)),
    st.just(ValueError("x")),
    st.just(10**400),
)


@given(anything)
def test_a_delay_is_a_finite_number_within_a_year_or_an_error_that_says_so(value: Any) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST_DELAY_SECONDS

    if good:
        assert math.isfinite(checked_delay("Retry(delay_seconds)", value))
    else:
        with pytest.raises(UsageError, match="a number of seconds from 0 to") as refused:
            checked_delay("Retry(delay_seconds)", value)
        assert len(str(refused.value)) < 300


@given(anything)
def test_texts_of_outcomes_are_texts(value: Any) -> None:
    for make in (Done, lambda text: Retry(0, text), lambda text: Defer(0, text), lambda text: Dead("reason", text)):
        if isinstance(value, str):
            make(value)
        else:
            with pytest.raises(UsageError, match="is a text, not"):
                make(value)


def test_a_dead_letter_needs_a_reason() -> None:
    with pytest.raises(UsageError, match="says why"):
        Dead(" ")


def test_a_pause_is_yes_or_no() -> None:
    with pytest.raises(UsageError, match="True or False"):
        Defer(1, "later", "yes")  # type: ignore[arg-type]  # what a program without types may write
