from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.codec import decode, encode
from hopline.errors import MessageTooLarge, Undecodable
from hopline.message import message, type_of


@message("thing.made", key="name")
class Made(msgspec.Struct):
    name: str
    price: Decimal
    parts: list[int] = []


@given(
    st.builds(
        Made,
        name=st.text(),
        price=st.decimals(allow_nan=False, allow_infinity=False),
        parts=st.lists(st.integers(-(2**63), 2**63 - 1)),
    )
)
def test_what_is_encoded_decodes_to_the_same(made: Made) -> None:
    assert decode(type_of(Made), encode(made, limit_bytes=1 << 20)) == made


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_undecodable(body: bytes) -> None:
    try:
        decoded = decode(type_of(Made), body)
    except Undecodable:
        return
    assert isinstance(decoded, Made)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"name": 5, "price": "1"}', b'{"name": "\xff", "price": "1"}', b"[" * 100_000]
)
def test_bad_bytes_are_undecodable(body: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(type_of(Made), body)


def test_a_body_over_the_limit_is_refused_before_it_is_stored() -> None:
    made = Made("x" * 100, Decimal(1))

    with pytest.raises(MessageTooLarge, match="over the limit of 50"):
        encode(made, limit_bytes=50)
