"""The arithmetic of the benchmarks: medians with their spread, ratios of paired rounds, percentiles, slopes. Pure."""

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple


class Spread(NamedTuple):
    """What several rounds of one measurement gave."""

    median: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """For a JSON report."""
        return {name: significant(value) for name, value in self._asdict().items()}


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest and largest of at least one value."""
    return Spread(median(values), min(values), max(values))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of rounds that ran one after the other, each side once: the ratio is taken within a round, then its spread.

    The machine drifts from round to round; what is close in time drifts together.
    """
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of sorted values: a value that was measured, never one between two."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """How a cost grows: the exponent k of cost ~ size^k, by least squares on the logarithms. 0 is flat, 1 is linear.

    Sizes of 0 have no logarithm and are left out; with fewer than two others there is no slope (NaN).
    """
    points = [(math.log(x), math.log(y)) for x, y in zip(sizes, costs, strict=True) if x > 0 and y > 0]
    if len(points) < 2:
        return math.nan
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread_x = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread_x if spread_x else math.nan


def significant(value: float, digits: int = 3) -> float:
    """Rounded to so many digits that mean something; whole numbers keep all of theirs."""
    if not math.isfinite(value) or value == 0:
        return value
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return round(value, max(0, places))
