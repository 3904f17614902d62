from __future__ import annotations

import math

import pytest
from bench.figures import Spread, paired_ratio, percentile, significant, slope, spread


def test_a_spread_is_the_median_and_the_range() -> None:
    assert spread([30.0, 10.0, 20.0]) == Spread(20.0, 10.0, 30.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine was three times as slow in the second round: the ratios do not mind.
    ours, theirs = [100.0, 33.0, 90.0], [10.0, 3.0, 9.0]

    assert paired_ratio(ours, theirs) == Spread(10.0, 10.0, 11.0)


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (1, 1.0), (50, 50.0), (50.1, 51.0), (99, 99.0), (99.9, 100.0), (100, 100.0)]
)
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(1, 101)], percent) == expected


def test_one_value_is_every_percentile_and_none_is_none() -> None:
    assert percentile([5.0], 1) == percentile([5.0], 99.9) == 5.0
    assert math.isnan(percentile([], 50))


@pytest.mark.parametrize(("exponent", "factor"), [(0.0, 3.0), (1.0, 0.1), (0.5, 7.0), (2.0, 1.0)])
def test_the_slope_is_the_exponent_of_the_growth(exponent: float, factor: float) -> None:
    sizes = [10.0, 100.0, 1000.0]

    assert slope(sizes, [factor * size**exponent for size in sizes]) == pytest.approx(exponent)


def test_a_size_of_zero_does_not_count_for_the_slope() -> None:
    assert slope([0, 10, 100], [999.0, 5.0, 5.0]) == pytest.approx(0.0)


def test_one_point_has_no_slope() -> None:
    assert math.isnan(slope([0, 10], [1.0, 2.0]))
    assert math.isnan(slope([10, 10], [1.0, 2.0]))


@pytest.mark.parametrize(
    ("value", "shown"), [(1234.5, 1234.0), (12.345, 12.3), (0.012345, 0.0123), (0.0, 0.0), (99.96, 100.0)]
)
def test_figures_are_rounded_to_what_means_something(value: float, shown: float) -> None:
    assert significant(value) == shown


def test_what_never_ended_stays_infinite() -> None:
    assert significant(math.inf) == math.inf
