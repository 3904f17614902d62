from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hopline.clock import utcnow
from hopline.console import formatting
from hopline.console.formatting import THIN


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(1_234_567, 0, "1 234 567"), (0, 0, "0"), (None, 0, "?"), (12.345, 1, "12.3"), (-1_000, 0, "-1 000")],
)
def test_a_number(value: float | None, digits: int, text: str) -> None:
    assert formatting.number(value, digits) == text.replace(" ", THIN)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0, "0.0 ms"),
        (0.0008, "0.8 ms"),
        (0.12, "120 ms"),
        (1.24, "1.2 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7_200, "2 h"),
        (172_800, "2 d"),
        (86_400 * 12_345, "12 345 d"),
    ],
)
def test_a_duration(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text.replace(" ", THIN)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (4_200, "4.2 kB"), (1_000_000, "1.0 MB"), (5 * 10**12, "5000.0 GB")]
)
def test_a_size(count: int, text: str) -> None:
    assert formatting.size(count) == text.replace(" ", THIN)


def test_a_time_is_relative_with_the_absolute_one_for_who_hovers_and_for_programs() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    element = formatting.ago(at)

    assert 'datetime="2026-01-02T03:04:05+00:00" title="2026-01-02 03:04:05 UTC"' in element
    assert element.endswith(" ago</time>")
    assert f">in 2{THIN}h<" in formatting.ago(utcnow() + timedelta(hours=2, seconds=1))
    assert ">just now<" in formatting.ago(utcnow())
    assert formatting.ago(None) == ""


def test_a_noun_with_its_number() -> None:
    assert formatting.counted(1, "letter") == "1 letter"
    assert formatting.counted(0, "letter") == "0 letters"
    assert formatting.counted(2, "delivery", "deliveries") == "2 deliveries"


def test_an_error_in_one_line() -> None:
    assert formatting.one_line(" a\n\tb  c ") == "a b c"
    assert formatting.one_line("x" * 400) == "x" * 299 + "…"


def test_a_body_as_text() -> None:
    assert formatting.text_of(b'{"a":[1]}') == '{\n  "a": [\n    1\n  ]\n}'
    assert formatting.text_of(b"plain\ntext") == "plain\ntext"
    assert formatting.text_of('"\u202e\U000e0001"'.encode()) == '"\\u202e\\udb40\\udc01"'
    for no_text in (b"\xff\xfe", b"bell \x07", "turned \u202e".encode()):
        assert formatting.text_of(no_text) is None, no_text
    assert formatting.text_of(b"[" * 100_000) == "[" * 100_000


def test_no_control_character_acts_or_hides() -> None:
    assert formatting.visible("a\x1b[31m\u202eb\r\n\tc") == "a\\u001b[31m\\u202eb\r\n\tc"


def test_a_text_as_a_part_of_a_path() -> None:
    assert formatting.path_part("a/b?c#d e%\u00fc") == "a%2Fb%3Fc%23d%20e%25%C3%BC"
