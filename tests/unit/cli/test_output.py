from __future__ import annotations

import pytest

from hopline.cli.dead_edit import difference
from hopline.cli.output import counted, one_line, shown, text_of


def test_a_number_comes_with_its_noun() -> None:
    assert (counted(1, "letter"), counted(1_204, "letter"), counted(2, "try", "tries")) == (
        "1 letter", "1,204 letters", "2 tries",
    )  # fmt: skip


def test_an_error_in_a_list_is_one_line() -> None:
    assert one_line("broken:\n  line 2\t!") == "broken: line 2 !"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"a":1}', '{\n  "a": 1\n}'),
        (b"plain text", "plain text"),
        (b"two\nlines", "two\nlines"),
        (b"\xff\x00", None),
        (b"a\x00b", None),
    ],
)
def test_a_body_is_text_if_it_can_be_read(body: bytes, text: str | None) -> None:
    assert text_of(body) == text


def test_other_bytes_are_shown_in_hexadecimal_up_to_a_bound() -> None:
    assert shown(b"\xff\x00") == "(no text) ff 00"
    assert shown(b"\xff" * 5_000).endswith("ff …")
    assert len(shown(b"\xff" * 5_000)) < 2_000


def test_the_difference_of_two_bodies_is_told_line_by_line() -> None:
    lines = [line.plain for line in difference(b'{"id":"p-1","weight":"heavy"}', b'{"id":"p-1","weight":9}')]

    assert lines == [
        "--- parked", "+++ edited", "@@ -1,4 +1,4 @@", " {", '   "id": "p-1",', '-  "weight": "heavy"',
        '+  "weight": 9',
        " }",
    ]  # fmt: skip
