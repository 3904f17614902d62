from __future__ import annotations

import re
from xml.etree import ElementTree

from bench.chart import BAR_WIDTH, PLOT_HEIGHT, Bar, Curve, bars, lines
from bench.figures import Spread

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return ["".join(each.itertext()) for each in parsed(svg).iter(f"{SVG}text")]


def a_bar(median: float, low: float, high: float, label: str = "a") -> Bar:
    return Bar(label, Spread(median, low, high), f"{median:g}/s", "#2f81f7")


def test_the_widest_bar_of_a_group_with_its_range_fills_the_width() -> None:
    svg = bars("title", "subtitle", {"one": [a_bar(50, 40, 100), a_bar(25, 25, 25)], "two": [a_bar(3, 3, 3)]})

    widths = [float(each.attrib["width"]) for each in parsed(svg).iter(f"{SVG}rect")]
    assert widths == [BAR_WIDTH / 2, BAR_WIDTH / 4, BAR_WIDTH]


def test_one_round_has_no_range() -> None:
    ranged = bars("", "", {"one": [a_bar(50, 40, 60)]})
    single = bars("", "", {"one": [a_bar(50, 50, 50)]})

    assert len(list(parsed(ranged).iter(f"{SVG}path"))) == 1
    assert list(parsed(single).iter(f"{SVG}path")) == []


def test_labels_are_text_whatever_they_hold() -> None:
    svg = bars("<&>", "", {"": [a_bar(1, 1, 1, label='"<b>"')]})

    assert {"<&>", '"<b>"'} <= set(texts(svg))


def test_a_chart_without_anything_is_still_one() -> None:
    assert texts(bars("nothing", "", {"empty": [], "zero": [a_bar(0, 0, 0)]}))[0] == "nothing"


def test_a_flat_cost_is_a_level_line() -> None:
    svg = lines("", "", ("x", "y"), [Curve("flat", [(10, 5.0), (1000, 5.0), (100_000, 5.0)])])

    heights = {each.attrib["cy"] for each in parsed(svg).iter(f"{SVG}circle")}
    assert len(heights) == 1


def test_a_tenfold_cost_is_one_step_of_the_axis() -> None:
    svg = lines("", "", ("x", "y"), [Curve("linear", [(1, 1.0), (10, 10.0), (100, 100.0)])])

    first, second, third = (float(each.attrib["cy"]) for each in parsed(svg).iter(f"{SVG}circle"))
    assert first - second == second - third == PLOT_HEIGHT / 2


def test_the_axes_say_powers_of_ten() -> None:
    svg = lines("", "", ("rows", "cost"), [Curve("a", [(1, 90.0), (2_000_000, 110.0)])])

    assert {"1", "10 k", "1 M", "10 M"} <= set(texts(svg))


def test_labels_of_curves_that_end_together_do_not_cover_each_other() -> None:
    curves = [Curve(name, [(1, 5.0), (10, 5.0)]) for name in ("one", "two", "three")]

    svg = lines("", "", ("x", "y"), curves)

    places = [float(y) for y in re.findall(r'<text x="622.0" y="([\d.]+)"', svg)]
    assert len(places) == 3
    assert min(b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)) >= 14
