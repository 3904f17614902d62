from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.cli import output
from hopline.console.bodies import TEXT_CHARACTERS, body_of, pretty
from hopline.console.masking import Mask
from tests.unit.test_json_text import LINES, ODD

DEEP = b"[" * 10_000 + b"]" * 10_000


@given(st.binary(max_size=300) | LINES, st.booleans())
def test_any_bytes_have_a_form_on_a_page(body: bytes, is_masked: bool) -> None:
    shown = body_of(body, Mask({"a"}) if is_masked else None)

    assert shown.bytes == len(body)
    assert all(c.isprintable() or c in "\r\n\t" for c in shown.text)
    pretty(body)
    output.shown(body)


@pytest.mark.parametrize("body", ODD, ids=range(len(ODD)))
def test_an_odd_body_is_cut(body: bytes) -> None:
    for mask in (None, Mask({"a"})):
        assert len(body_of(body, mask).text) <= TEXT_CHARACTERS
    assert len(output.shown(body)) < 2 * (1 << 20)


def test_a_body_that_is_nested_too_deep_is_shown_as_it_is_and_says_so() -> None:
    assert body_of(DEEP, None).is_deep
    assert body_of(DEEP, None).text == DEEP.decode()
    assert not body_of(b'{"a":[1]}', None).is_deep
    assert "nested deeper than 64 levels" in output.shown(DEEP * 2)
    assert output.shown(DEEP * 2).startswith("[[[[")
