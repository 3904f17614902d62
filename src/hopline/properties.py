"""An envelope as AMQP properties, and back (docs/reference/message-format.md).

What comes from a queue may be anybody's. Reading it is total: properties that are not those of a message of Hopline
give no envelope, never an exception, and are kept for a dead letter. What an envelope holds can be stored by every
database and be published again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

from hopline import amqp
from hopline.clock import has_id_time, id_time
from hopline.codec import CONTENT_TYPE
from hopline.message import HEADER_NAME_BYTES, HEADERS_BYTES, KEY_CHARACTERS, TRACE_HEADERS, Envelope
from hopline.schema import storable

VERSION_HEADER = "hopline-version"
KEY_HEADER = "hopline-key"
CAUSE_HEADER = "hopline-cause"
RUN_HEADER = "hopline-run"
ATTEMPT_HEADER = "hopline-attempt"
SUSPECT_HEADER = "hopline-suspect"
_OWN_HEADERS = frozenset({VERSION_HEADER, KEY_HEADER, CAUSE_HEADER, RUN_HEADER, ATTEMPT_HEADER, SUSPECT_HEADER})
COUNT_MAX = 1 << 30
"""Highest version, run and attempt that is believed: far above any real one, and a database can store many more."""

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

_PROPERTIES = (
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to", "expiration",
    "message_id", "timestamp", "type", "user_id", "app_id", "headers",
)  # fmt: skip


def properties_of(envelope: Envelope) -> amqp.Properties:
    """The AMQP properties of an envelope (docs/reference/message-format.md)."""
    headers: dict[str, Any] = {
        **envelope.headers,
        VERSION_HEADER: envelope.version,
        KEY_HEADER: envelope.key,
        RUN_HEADER: envelope.run,
        ATTEMPT_HEADER: envelope.attempt,
    }
    if envelope.cause_id is not None:
        headers[CAUSE_HEADER] = envelope.cause_id
    if envelope.suspect:
        headers[SUSPECT_HEADER] = True
    return amqp.Properties(
        content_type=CONTENT_TYPE,
        headers=headers,
        delivery_mode=2,
        correlation_id=envelope.correlation_id,
        message_id=envelope.id,
        timestamp=int(envelope.created_at.timestamp()),
        type=envelope.type,
    )


def envelope_of(delivery: amqp.Delivery) -> Envelope | None:
    """The envelope in a delivery's properties, None if they lack an id or a type or have wrong kinds of values."""
    try:
        properties = delivery.properties
    except amqp.AMQPError:
        return None
    identifier, type_name = properties.message_id, properties.type
    headers: Mapping[str, Any] = properties.headers or {}
    get = headers.get
    cause = get(CAUSE_HEADER)
    version, run, attempt = get(VERSION_HEADER, 1), get(RUN_HEADER, 0), get(ATTEMPT_HEADER, 0)
    if not type_name or not is_id(identifier) or (cause is not None and not is_id(cause)):
        return None
    if not (_is_count(version) and _is_count(run) and _is_count(attempt)):
        return None
    correlation = properties.correlation_id
    return Envelope(
        id=identifier,
        type=type_name,
        version=version,
        key=_key(get(KEY_HEADER, "")),
        correlation_id=correlation if correlation == identifier or is_id(correlation) else identifier,
        cause_id=cause,
        created_at=id_time(identifier),
        body=delivery.body,
        headers=free_headers(headers) if len(headers) > len(_OWN_HEADERS) or headers.keys() - _OWN_HEADERS else {},
        run=run,
        attempt=attempt,
        suspect=get(SUSPECT_HEADER) is True,
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= COUNT_MAX


def _key(value: object) -> str:
    return storable(value[:KEY_CHARACTERS]) if isinstance(value, str) else ""


def free_headers(headers: Mapping[str, Any]) -> dict[str, str]:
    """A delivery's headers that are text and not Hopline's own, as far as they fit into HEADERS_BYTES.

    A message of Hopline has no more than that. Of a stranger's, the traces come first and what is too much stays with
    the delivery: kept, it could not be published again in one frame.
    """
    kept: dict[str, str] = {}
    room = HEADERS_BYTES
    names = sorted((name for name in headers if name not in _OWN_HEADERS), key=lambda name: name not in TRACE_HEADERS)
    for name in names:
        value = headers[name]
        if isinstance(value, str):
            text_name, text = storable(name), storable(value)
            name_bytes = len(text_name.encode())
            size = name_bytes + len(text.encode())
            if 0 < name_bytes <= HEADER_NAME_BYTES and size <= room:
                kept[text_name] = text
                room -= size
    return kept


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value is a UUIDv7 in its canonical form of 36 characters, with a time before the year 10000."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None and has_id_time(value)


def describe(delivery: amqp.Delivery) -> dict[str, object]:
    """The raw properties of a delivery as JSON-able values, for a dead letter."""
    try:
        properties = delivery.properties
    except amqp.AMQPError as error:
        return {"unreadable": str(error), "exchange": delivery.exchange, "routing_key": delivery.routing_key}
    return {**described(properties), "exchange": delivery.exchange, "routing_key": delivery.routing_key}


def described(properties: amqp.Properties) -> dict[str, object]:
    """Those that are set, as JSON-able values."""
    return {name: _jsonable(getattr(properties, name)) for name in _PROPERTIES if getattr(properties, name) is not None}


def _jsonable(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, bytes | bytearray):
        return value.hex()
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
