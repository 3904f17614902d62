"""AMQP's types: what goes in comes out, and pamqp agrees."""

import contextlib
import struct
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode, encode

from hopline.amqp import DecodeError, EncodeError, Exact
from hopline.amqp.wire import decode_table, encode_table, long_string, short_string

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - what is to be refused

names = st.text(st.characters(codec="utf-8"), max_size=60)
times = st.integers(0, 253_402_300_799).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
decimals = st.builds(
    lambda number, places: Decimal(number).scaleb(-places),
    st.integers(-(2**31) + 1, 2**31 - 1),
    st.integers(0, 20),
)
plain = (
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(codec="utf-8"), max_size=300),
    st.binary(max_size=300),
    decimals,
)


def tables_of(names: Any, *scalars: Any) -> Any:
    values = st.recursive(
        st.one_of(*scalars),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=5),
        max_leaves=20,
    )
    return st.dictionaries(names, values, max_size=8)


tables = tables_of(names, *plain, st.floats(allow_nan=False), times)
# pamqp cuts names at 128 bytes, writes floats in 32 bits, and takes times after 2106 for milliseconds.
names_for_pamqp = st.text(st.characters(codec="utf-8"), max_size=30)
times_for_pamqp = st.integers(0, 2**32 - 1).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
tables_for_pamqp = tables_of(names_for_pamqp, *plain, st.floats(allow_nan=False, width=32), times_for_pamqp)


@given(tables)
def test_a_table_comes_out_as_it_went_in(table: Any) -> None:
    encoded = encode_table(table)

    decoded, end = decode_table(b"before" + encoded + b"after", 6)

    assert decoded == table
    assert end == 6 + len(encoded)


@given(tables_for_pamqp)
def test_pamqp_reads_our_tables(table: Any) -> None:
    _, decoded = decode.field_table(encode_table(table))

    assert decoded == table


def _without_bytes(value: Any) -> Any:
    """pamqp writes bytes only as a bytearray, and an integer as the shortest type."""
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, dict):
        return {name: _without_bytes(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_bytes(item) for item in value]
    return value


@given(tables_for_pamqp)
def test_we_read_the_tables_of_pamqp(table: Any) -> None:
    encoded = encode.field_table(_without_bytes(table))

    decoded, end = decode_table(encoded)

    assert decoded == table
    assert end == len(encoded)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"t\x01", True),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xfe", -2),
        (b"u\xff\xfe", 65534),
        (b"I\xff\xff\xff\xfd", -3),
        (b"i\xff\xff\xff\xfd", 4294967293),
        (b"l" + b"\xff" * 8, -1),
        (b"f" + struct.pack(">f", 0.5), 0.5),
        (b"d" + struct.pack(">d", 0.1), 0.1),
        (b"D\x02" + struct.pack(">i", -314), Decimal("-3.14")),
        (b"S\x00\x00\x00\x02hi", "hi"),
        (b"S\x00\x00\x00\x02\xff\xfe", b"\xff\xfe"),
        (b"x\x00\x00\x00\x02hi", b"hi"),
        (b"A\x00\x00\x00\x04t\x01t\x00", [True, False]),
        (b"A\x00\x00\x00\x00", []),
        (b"F\x00\x00\x00\x04\x01kt\x01", {"k": True}),
        (b"T" + struct.pack(">Q", 86400), datetime(1970, 1, 2, tzinfo=UTC)),
        (b"T" + b"\xff" * 8, 2**64 - 1),
        (b"V", None),
    ],
)
def test_every_field_type_is_read(field: Any, value: Any) -> None:
    decoded, _ = decode_table(long_string(b"\x03key" + field))

    assert decoded == {"key": value}
    assert type(decoded["key"]) is type(value)


@pytest.mark.parametrize(
    "exact",
    [
        Exact("b", -1),
        Exact("B", 255),
        Exact("s", -300),
        Exact("u", 65535),
        Exact("I", -70000),
        Exact("i", 2**32 - 1),
        Exact("l", 2**40),
        Exact("f", 0.5),
        Exact("d", 0.1),
    ],
)
def test_an_exact_number_is_written_as_its_type(exact: Any) -> None:
    encoded = encode_table({"key": exact})

    assert encoded[8:9] == exact.kind.encode()
    assert decode_table(encoded)[0] == {"key": exact.value}


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**63) - 1,
        object(),
        {1, 2},
        NAIVE,
        Decimal("1e40"),
        Decimal("NaN"),
        Exact("q", 1),
        Exact("B", 256),
        Exact("", 0),
        "\ud800",
        {"\ud800": [1j]},
    ],
)
def test_what_amqp_cannot_carry_is_refused(value: Any) -> None:
    with pytest.raises(EncodeError):
        encode_table({"list": [value]})


def test_times_of_other_zones_are_the_same_moment() -> None:
    local = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))

    decoded, _ = decode_table(encode_table({"at": local}))

    assert decoded == {"at": datetime(2026, 1, 1, 10, tzinfo=UTC)}


def test_deep_nesting_is_refused_both_ways() -> None:
    deep: object = 1
    encoded = b"t\x01"
    for _ in range(100):
        deep = [deep]
        encoded = b"A" + long_string(encoded)

    with pytest.raises(EncodeError):
        encode_table({"deep": deep})
    with pytest.raises(DecodeError):
        decode_table(long_string(b"\x04deep" + encoded))


@given(tables)
def test_every_cut_of_a_table_is_found_out(table: Any) -> None:
    encoded = encode_table(table)

    for cut in range(len(encoded)):
        with pytest.raises(DecodeError):
            decode_table(encoded[:cut])


def test_a_name_of_256_bytes_is_refused() -> None:
    assert short_string("x" * 255)[0] == 255
    with pytest.raises(EncodeError):
        short_string("ü" * 128)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_table_or_a_typed_error(raw: bytes) -> None:
    for data in (raw, long_string(raw)):
        try:
            _, end = decode_table(data)
        except DecodeError:
            continue
        assert end <= len(data)


@given(tables, st.data())
def test_a_damaged_table_is_a_table_or_a_typed_error(table: Any, data: st.DataObject) -> None:
    encoded = bytearray(encode_table(table))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))

    with contextlib.suppress(DecodeError):
        decode_table(bytes(encoded[:cut]))
