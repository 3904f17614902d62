"""Charts as SVG, made by hand: horizontal bars in groups, and lines over a logarithmic axis. Pure; text in, text out.

Readable on light and dark pages. A group of bars has a scale of its own; the thin line at a bar's end goes from the
lowest to the highest of the rounds.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from bench.figures import Spread

WIDTH: Final = 820
BAR_LEFT, BAR_WIDTH, BAR_HEIGHT = 264, 400, 16
LINE, GAP = 22, 20
PLOT_LEFT, PLOT_WIDTH, PLOT_HEIGHT = 70, 540, 260
COLOURS: Final = ("#2f81f7", "#54aeff", "#c69026", "#a475f9", "#8c959f", "#e5534b", "#57ab5a", "#768390")
STYLE: Final = """
text { font: 13px system-ui, sans-serif; fill: #424a53 }
.title { font-size: 16px; font-weight: 600 } .head { font-weight: 600 } .small { font-size: 11px }
.number { font-variant-numeric: tabular-nums } .ours { font-weight: 600 }
.range { stroke: #1f2328; stroke-width: 1.2; fill: none } .grid { stroke: #d0d7de; stroke-width: 1 }
.curve { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #adbac7 } .range { stroke: #f0f6fc } .grid { stroke: #444c56 } }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its label, what the rounds gave, and how the figure is written."""

    label: str
    value: Spread
    text: str
    colour: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot: points of (x, y), both above 0."""

    label: str
    points: Sequence[tuple[float, float]]


def bars(title: str, subtitle: str, groups: Mapping[str, Sequence[Bar]]) -> str:
    """Groups of bars, each under its head."""
    parts = [_text(8, 24, title, "title"), _text(8, 43, subtitle, "small")]
    y = 76
    for head, group in groups.items():
        parts.append(_text(8, y, head, "head"))
        largest = max((bar.value.high for bar in group), default=0) or 1
        for place, bar in enumerate(group):
            parts += _bar(bar, y + 8 + place * LINE, BAR_WIDTH / largest)
        y += LINE * (len(group) + 1) + GAP
    return _svg(parts, y - GAP)


def _bar(bar: Bar, top: float, scale: float) -> Iterator[str]:
    median, low, high = (value * scale for value in bar.value)
    middle, base = top + BAR_HEIGHT / 2, top + 13
    ours = "ours" if bar.ours else ""
    yield _text(8, base, bar.label, ours)
    yield (
        f'<rect x="{BAR_LEFT}" y="{top:.1f}" width="{median:.1f}" height="{BAR_HEIGHT}" rx="2" fill="{bar.colour}"/>'
    )
    if high > low:
        yield (
            f'<path class="range" d="M{BAR_LEFT + low:.1f} {middle:.1f}H{BAR_LEFT + high:.1f}'
            f'M{BAR_LEFT + low:.1f} {top + 4:.1f}v8M{BAR_LEFT + high:.1f} {top + 4:.1f}v8"/>'
        )
    yield _text(WIDTH - 8, base, bar.text, f"number {ours}", anchor="end")


def lines(title: str, subtitle: str, axes: tuple[str, str], curves: Sequence[Curve]) -> str:
    """Curves over a logarithmic x and a logarithmic y axis: a flat cost is a level line, a linear one climbs."""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    to_x, to_y = _scale(xs, PLOT_LEFT, PLOT_WIDTH), _scale(ys, 80 + PLOT_HEIGHT, -PLOT_HEIGHT)
    parts = [_text(8, 24, title, "title"), _text(8, 43, subtitle, "small"), _text(8, 66, axes[1], "small")]
    for tick in _decades(ys):
        parts.append(f'<path class="grid" d="M{PLOT_LEFT} {to_y(tick):.1f}h{PLOT_WIDTH}"/>')
        parts.append(_text(PLOT_LEFT - 6, to_y(tick) + 4, _short(tick), "small number", anchor="end"))
    for tick in _decades(xs):
        parts.append(f'<path class="grid" d="M{to_x(tick):.1f} 80v{PLOT_HEIGHT}"/>')
        parts.append(_text(to_x(tick), 80 + PLOT_HEIGHT + 16, _short(tick), "small number", anchor="middle"))
    parts.append(_text(PLOT_LEFT + PLOT_WIDTH / 2, 80 + PLOT_HEIGHT + 36, axes[0], "small", anchor="middle"))
    labels = _apart([to_y(curve.points[-1][1]) for curve in curves])
    for curve, colour, label_y in zip(curves, COLOURS, labels, strict=False):
        path = "L".join(f"{to_x(x):.1f} {to_y(y):.1f}" for x, y in curve.points)
        parts.append(f'<path class="curve" stroke="{colour}" d="M{path}"/>')
        parts += [f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="3" fill="{colour}"/>' for x, y in curve.points]
        parts.append(_text(PLOT_LEFT + PLOT_WIDTH + 12, label_y + 4, curve.label, "small"))
    return _svg(parts, 80 + PLOT_HEIGHT + 48)


class _scale:  # noqa: N801 - a function with two numbers bound to it
    """From a value to its place on a logarithmic axis."""

    def __init__(self, values: Sequence[float], start: float, length: float) -> None:
        decades = _decades(values)
        self._low = math.log10(decades[0])
        self._start, self._factor = start, length / (math.log10(decades[-1]) - self._low)

    def __call__(self, value: float) -> float:
        return self._start + (math.log10(value) - self._low) * self._factor


def _decades(values: Sequence[float]) -> list[float]:
    """The powers of ten around the values, at least two."""
    first = math.floor(math.log10(min(values)) + 1e-9)
    last = max(first + 1, math.ceil(math.log10(max(values)) - 1e-9))
    return [10.0**exponent for exponent in range(first, last + 1)]


def _apart(heights: Sequence[float], least: float = 14) -> list[float]:
    """Where labels go that want to be at these heights, none on another."""
    placed = dict.fromkeys(range(len(heights)), 0.0)
    last = -math.inf
    for index in sorted(placed, key=lambda each: heights[each]):
        last = placed[index] = max(heights[index], last + least)
    return list(placed.values())


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _svg(parts: Sequence[str], height: float) -> str:
    body = "\n".join(parts)
    box = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">\n<style>{STYLE}</style>\n{body}\n</svg>\n'


def _text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind.strip()}" text-anchor="{anchor}">{escape(words)}</text>'
