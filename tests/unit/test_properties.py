from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline import amqp
from hopline.clock import id_time, new_id
from hopline.message import Envelope
from hopline.properties import envelope_of, is_id, properties_of


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
