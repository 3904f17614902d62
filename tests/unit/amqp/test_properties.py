"""The properties of a message: round trips, pamqp both ways, and damage."""

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, header

from hopline.amqp import DecodeError, EncodeError, Properties
from hopline.amqp.properties import decode_properties, encode_properties, read_message_id

from .test_wire import NAIVE, names, tables, tables_for_pamqp, times, times_for_pamqp

short = st.none() | names
octet = st.none() | st.integers(0, 255)


def properties_with(headers: Any, timestamps: Any) -> Any:
    return st.builds(
        Properties,
        content_type=short, content_encoding=short, headers=st.none() | headers, delivery_mode=octet, priority=octet,
        correlation_id=short, reply_to=short, expiration=short, message_id=short, timestamp=st.none() | timestamps,
        type=short, user_id=short, app_id=short, cluster_id=short,
    )  # fmt: skip


properties_of_any_kind = properties_with(tables, times)


@given(properties_of_any_kind)
def test_properties_come_out_as_they_went_in(properties: Any) -> None:
    assert decode_properties(encode_properties(properties)) == properties


@given(properties_with(tables_for_pamqp, times_for_pamqp))
def test_pamqp_reads_our_properties(properties: Any) -> None:
    theirs = header.ContentHeader()
    theirs.unmarshal(b"\x00\x3c\x00\x00" + bytes(8) + encode_properties(properties))

    for name in Properties.__dataclass_fields__:
        their_name = "message_type" if name == "type" else name
        assert getattr(theirs.properties, their_name) == getattr(properties, name) or name == "cluster_id"


def test_we_read_the_properties_of_pamqp() -> None:
    at = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    theirs = commands.Basic.Properties(
        "application/json", "gzip", {"a": 1}, 2, 9, "c", "r", "60000", "m", at, "t", "u", "a"
    )

    ours = decode_properties(header.ContentHeader(0, 0, theirs).marshal()[12:])

    assert ours == Properties(
        content_type="application/json",
        content_encoding="gzip",
        headers={"a": 1},
        delivery_mode=2,
        priority=9,
        correlation_id="c",
        reply_to="r",
        expiration="60000",
        message_id="m",
        timestamp=at,
        type="t",
        user_id="u",
        app_id="a",
    )


def test_a_time_may_be_given_in_seconds_and_an_impossible_one_stays_a_number() -> None:
    seconds = decode_properties(encode_properties(Properties(timestamp=86_400)))
    milliseconds = decode_properties(encode_properties(Properties(timestamp=1_764_000_000_000)))

    assert seconds.timestamp == datetime(1970, 1, 2, tzinfo=UTC)
    assert milliseconds.timestamp == 1_764_000_000_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", 256),
        ("priority", -1),
        ("message_id", "x" * 256),
        ("message_id", "\ud800"),
        ("correlation_id", "x" * 256),
        ("timestamp", -1),
        ("timestamp", NAIVE),
        ("headers", {1: 2}),
        ("headers", [1]),
        ("headers", {"a": "\ud800"}),
        ("headers", {"a": 2**63}),
        ("type", 5),
        ("expiration", 60_000),
    ],
)
def test_what_does_not_fit_is_refused(name: str, value: Any) -> None:
    with pytest.raises(EncodeError):
        encode_properties(Properties(**{name: value}))


@given(properties_of_any_kind)
def test_the_message_id_can_be_read_alone(properties: Properties) -> None:
    assert read_message_id(encode_properties(properties)) == properties.message_id


@given(st.binary(max_size=100))
def test_a_message_id_is_read_alone_from_random_bytes_or_a_typed_error(raw: bytes) -> None:
    """Whatever decodes as a whole gives the same id; it may be found in what is damaged elsewhere."""
    try:
        found = read_message_id(raw)
        assert found == decode_properties(raw).message_id
    except DecodeError:
        return


@given(properties_of_any_kind)
def test_every_cut_of_properties_is_found_out(properties: Properties) -> None:
    encoded = encode_properties(properties)

    for cut in range(len(encoded)):
        with pytest.raises(DecodeError):
            decode_properties(encoded[:cut])


@given(st.binary(max_size=100))
def test_random_bytes_are_properties_or_a_typed_error(raw: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode_properties(raw)


@given(properties_of_any_kind, st.data())
def test_damaged_properties_are_properties_or_a_typed_error(properties: Any, data: st.DataObject) -> None:
    encoded = bytearray(encode_properties(properties))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(DecodeError):
        decode_properties(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))
