"""The tree of errors, and what each says."""

from collections.abc import Iterator
from typing import Any

import pytest

from hopline.amqp import (
    AccessRefused,
    AMQPError,
    ChannelClosed,
    ConnectionClosedByServer,
    ConnectionForced,
    ContentTooLarge,
    InvalidPath,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    ResourceError,
    ResourceLocked,
)
from hopline.amqp.errors import channel_closed, connection_closed


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (311, ContentTooLarge),
        (403, AccessRefused),
        (404, NotFound),
        (405, ResourceLocked),
        (406, PreconditionFailed),
        (540, ChannelClosed),
    ],
)
def test_each_code_that_closes_a_channel_has_its_type(code: Any, kind: Any) -> None:
    error = channel_closed(code, "WORDS", 50, 10)

    assert type(error) is kind
    assert (error.code, error.text, error.class_id, error.method_id) == (code, "WORDS", 50, 10)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (320, ConnectionForced),
        (402, InvalidPath),
        (506, ResourceError),
        (530, NotAllowed),
        (541, ConnectionClosedByServer),
    ],
)
def test_each_code_that_closes_a_connection_has_its_type(code: Any, kind: Any) -> None:
    assert type(connection_closed(code, "WORDS", 0, 0)) is kind


def test_an_error_says_what_happened_where_and_what_to_do() -> None:
    error = channel_closed(404, "NOT_FOUND - no queue 'q'", 50, 10)

    assert str(error) == "404 NOT_FOUND - no queue 'q' (in queue.declare). Declare the topology first."


def _kinds(kind: type[AMQPError]) -> Iterator[type[AMQPError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def test_every_kind_of_error_has_advice_and_can_be_raised_again() -> None:
    for kind in _kinds(AMQPError):
        error = kind("WORDS", code=1, class_id=2, method_id=3)
        again = error.again()

        assert kind.advice.endswith(".")
        assert kind.__doc__
        assert type(again) is kind
        assert again is not error
        assert (again.text, again.code, again.class_id, again.method_id) == ("WORDS", 1, 2, 3)
