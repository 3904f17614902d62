from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline import codec
from hopline.errors import MessageTooLarge, UsageError
from hopline.message import Envelope, message, type_of
from hopline.outgoing import envelope_of_message

LIMIT = 1_000


@message("note.taken", key="id")
class Note(msgspec.Struct):
    id: Any
    text: str = ""
    count: int = 0


def envelope(note: Note, headers: Mapping[str, str] | None = None) -> Envelope:
    return envelope_of_message(note, cause=None, limit_bytes=LIMIT, headers=headers)


values: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.builds(object),
    st.lists(st.integers()), st.just(10**5_000), st.text(st.characters(categories=["Cs"])),
)  # fmt: skip


@given(values, values, values)
def test_what_is_accepted_can_be_read_and_stored(identifier: Any, text: Any, count: Any) -> None:
    try:
        sent = envelope(Note(identifier, text, count))
    except (UsageError, MessageTooLarge):
        return

    read = codec.decode(type_of(Note), sent.body)
    assert isinstance(read, Note)
    assert isinstance(read.text, str)
    assert isinstance(read.count, int)
    assert 0 < len(sent.key) <= 255
    assert "\x00" not in sent.key
    sent.key.encode()


def test_a_field_of_another_type_is_refused_where_it_is_sent() -> None:
    with pytest.raises(UsageError, match=r"'note.taken' cannot be sent.*Expected `str`, got `int` - at `\$.text`"):
        envelope(Note("a", 7))  # type: ignore[arg-type]  # a struct's constructor does not look


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be sent"):
        envelope(Note("a", object()))  # type: ignore[arg-type]  # likewise


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {"a": "\x00"}, {"": "a"}, {"a": "b" * 5_000}, ["a"]])
def test_headers_are_few_short_texts(headers: Any) -> None:
    with pytest.raises(UsageError, match="headers"):
        envelope(Note("a"), headers)
