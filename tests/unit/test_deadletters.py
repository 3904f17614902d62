from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hopline.deadletters import DeadLetter
from hopline.message import Envelope
from tests.support.engine import send_of


def letter(properties: dict[str, Any], *, envelope: Envelope | None = None, body: bytes = b"raw") -> DeadLetter:
    return DeadLetter("things", None, envelope, "undecodable", "", "", properties, body)


def test_what_rabbitmq_adds_to_a_message_that_comes_again_does_not_change_its_content() -> None:
    first = letter({"app_id": "stranger"})

    assert letter({"app_id": "stranger", "headers": {"x-delivery-count": 1}}).content() == first.content()
    assert letter({"app_id": "stranger", "headers": {"x-acquired-count": 2}}).content() == first.content()
    assert letter({"app_id": "stranger", "headers": {"note": 1}}).content() != first.content()
    assert letter({"app_id": "stranger"}, body=b"other").content() != first.content()


def test_each_delivery_of_a_message_without_an_envelope_is_its_own() -> None:
    assert letter({}).identity("row 1") != letter({}).identity("row 2")


def test_one_id_with_two_bodies_is_two_messages() -> None:
    envelope = send_of().envelope

    same = letter({}, envelope=envelope).identity("row 1")
    assert letter({}, envelope=envelope).identity("row 2") == same
    assert letter({}, envelope=envelope, body=b"other").identity("row 3") != same


def test_an_identity_fits_its_column_however_long_the_name_of_its_queue_is() -> None:
    envelope = send_of().envelope
    queue = "q" * 250
    first, other = (DeadLetter(queue, None, envelope, "x", "", "", {}, body) for body in (b"raw", b"other"))

    assert len(first.identity("row 1")) <= 255
    assert first.identity("row 1") == first.identity("row 2")
    assert first.identity("row 1") != other.identity("row 1")


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text(), json_like, max_size=4), st.binary())
def test_any_properties_have_a_content(properties: dict[str, Any], body: bytes) -> None:
    assert len(letter(properties, body=body).content()) == 64
