"""A message on its way out: its envelope, with everything checked that a database or RabbitMQ could refuse later.

`Transaction.send` and what a handler returns come through here, so a message that is accepted can be stored, be
published and be read. UsageError or MessageTooLarge is raised where the message is given, before anything is stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hopline import codec, schema
from hopline.clock import new_id, utcnow
from hopline.errors import UsageError
from hopline.message import (
    HEADER_NAME_BYTES,
    HEADERS_BYTES,
    KEY_CHARACTERS,
    TRACE_HEADERS,
    Envelope,
    type_of,
)


def envelope_of_message(
    message: msgspec.Struct,
    *,
    cause: Envelope | None,
    limit_bytes: int,
    headers: Mapping[str, str] | None = None,
) -> Envelope:
    """Returns a new envelope around a message; `cause` is the message whose handler sends it.

    MessageTooLarge if the body has more than `limit_bytes`; UsageError for a message that cannot be encoded or read
    back, for a key or headers that cannot be stored, and for a class that is no declared message type.
    """
    declared = type_of(message)
    identifier = new_id()
    return Envelope(
        id=identifier,
        type=declared.name,
        version=declared.version,
        key=checked_key(declared.key_of(message), declared.name),
        correlation_id=cause.correlation_id if cause else identifier,
        cause_id=cause.id if cause else None,
        created_at=utcnow(),
        body=codec.encode(message, declared, limit_bytes=limit_bytes),
        headers=_with_inherited(_checked_headers(headers) if headers else {}, cause) if headers or cause else {},
    )


def checked_key(key: str, type_name: str) -> str:
    """Returns a business key that every column and header can hold; UsageError for any other."""
    storable = (key.isascii() and "\x00" not in key) or schema.storable(key) == key
    if not 0 < len(key) <= KEY_CHARACTERS or not storable:
        raise UsageError(
            f"the key of a {type_name!r} must have 1 to {KEY_CHARACTERS} characters and no NUL: {key[:50]!r}"
        )
    return key


def _checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    if not _are_texts(headers):
        raise UsageError("headers are a mapping of text to text, without NUL and without half characters")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
    if size > HEADERS_BYTES or any(not 0 < len(name.encode()) <= HEADER_NAME_BYTES for name in headers):
        raise UsageError(
            f"headers have names of 1 to {HEADER_NAME_BYTES} bytes and at most {HEADERS_BYTES} bytes in all"
        )
    return headers


def _are_texts(headers: object) -> bool:
    return isinstance(headers, Mapping) and all(
        isinstance(text, str) and schema.storable(text) == text for pair in headers.items() for text in pair
    )


def _with_inherited(headers: Mapping[str, str], cause: Envelope | None) -> Mapping[str, str]:
    """With the headers that go on along a flow."""
    if cause is None or not cause.headers:
        return headers
    return {**{name: cause.headers[name] for name in TRACE_HEADERS if name in cause.headers}, **headers}
