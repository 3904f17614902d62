from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline import amqp
from hopline.clock import id_time, new_id
from hopline.message import Envelope
from hopline.properties import describe, envelope_of, is_id, properties_of
from hopline.schema import storable_json


def envelope(**changes: Any) -> Envelope:
    identifier = new_id()
    values: dict[str, Any] = {
        "id": identifier,
        "type": "order.placed",
        "version": 1,
        "key": "order-1",
        "correlation_id": new_id(),
        "cause_id": None,
        "created_at": id_time(identifier),
        "body": b"{}",
        "headers": {"origin": "POST /orders"},
    }
    return Envelope(**{**values, **changes})


sendable_text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=60)
"""What `Transaction.send` lets through as a key or a header."""


@given(
    st.integers(0, 1 << 30),
    st.integers(0, 1 << 30),
    sendable_text,
    st.booleans(),
    st.dictionaries(st.sampled_from("abc"), sendable_text),
)
def test_an_envelope_survives_its_amqp_properties(
    run: int, attempt: int, key: str, caused: bool, headers: dict[str, str]
) -> None:
    sent = envelope(run=run, attempt=attempt, key=key, cause_id=new_id() if caused else None, headers=headers)

    received = envelope_of(cast(Any, SimpleNamespace(properties=properties_of(sent), body=b"{}")))

    assert received == sent


@pytest.mark.parametrize(
    "properties",
    [
        amqp.Properties(type="order.placed"),
        amqp.Properties(message_id="order-1", type="order.placed"),
        amqp.Properties(message_id="017f22e2-79b0-4cc3-98c4-dc0c0c07398f", type="order.placed"),
        amqp.Properties(message_id="017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
        amqp.Properties(message_id="017f22e2-79b0-7cc3-98c4-dc0c0c07398f", type="x", headers={"hopline-attempt": -1}),
        amqp.Properties(message_id="017f22e2-79b0-7cc3-98c4-dc0c0c07398f", type="x", headers={"hopline-version": "1"}),
        amqp.Properties(message_id="017f22e2-79b0-7cc3-98c4-dc0c0c07398f", type="x", headers={"hopline-cause": "me"}),
    ],
)
def test_properties_that_are_not_ours_make_no_envelope(properties: amqp.Properties) -> None:
    assert envelope_of(cast(Any, SimpleNamespace(properties=properties, body=b""))) is None


def test_ids_are_uuids_of_version_7_in_their_canonical_form() -> None:
    identifier = new_id()

    assert is_id(identifier)
    assert not is_id(identifier.upper()) or identifier == identifier.upper()
    assert not is_id(identifier.replace("-", ""))
    assert not is_id(identifier + "\n")
    assert not is_id(None)


def test_a_strangers_key_and_headers_become_text_that_can_be_stored() -> None:
    headers = {"hopline-key": "nul \x00", "note \x00": "half \ud800"}
    properties = amqp.Properties(message_id=new_id(), type="order.placed", headers=headers)

    received = envelope_of(cast(Any, SimpleNamespace(properties=properties, body=b"{}")))

    assert received is not None
    assert received.key == "nul \ufffd"
    assert received.headers == {"note \ufffd": "half ?"}


@pytest.mark.parametrize("identifier", ["ffffffff-ffff-7fff-bfff-ffffffffffff", "e677d21f-dc00-7000-8000-000000000000"])
def test_an_id_of_a_time_that_no_clock_has_makes_no_envelope(identifier: str) -> None:
    properties = amqp.Properties(message_id=identifier, type="order.placed")

    assert not is_id(identifier)
    assert envelope_of(cast(Any, SimpleNamespace(properties=properties, body=b""))) is None


def test_the_last_id_that_has_a_time() -> None:
    assert id_time("e677d21f-dbff-7fff-bfff-ffffffffffff").year == 9999
    assert is_id("e677d21f-dbff-7fff-bfff-ffffffffffff")


def test_of_a_strangers_headers_those_are_kept_that_can_be_sent_again() -> None:
    headers = {"note": "n" * 5_000, "long " * 40: "x", "a": "b", "traceparent": "t" * 55, "": "x", "number": 7}
    properties = amqp.Properties(message_id=new_id(), type="order.placed", headers=headers)

    received = envelope_of(cast(Any, SimpleNamespace(properties=properties, body=b"{}")))

    assert received is not None
    assert received.headers == {"a": "b", "traceparent": "t" * 55}
    properties_of(received)


@given(st.binary(max_size=200))
def test_any_bytes_in_place_of_properties_give_an_envelope_or_none(raw: bytes) -> None:
    delivery = amqp.Delivery(cast(Any, None), "tag", 1, False, ("", "q"), raw, b"")

    received = envelope_of(delivery)

    assert received is None or is_id(received.id)
    json.dumps(storable_json(describe(delivery)))
