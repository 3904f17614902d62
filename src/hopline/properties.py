"""An envelope as AMQP properties, and back (docs/reference/message-format.md).

What comes from a queue may be anybody's: properties that are not those of a message of Hopline give no
envelope, never an exception, and are kept raw for a dead letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

from hopline import amqp
from hopline.clock import id_time
from hopline.codec import CONTENT_TYPE
from hopline.message import Envelope
from hopline.schema import storable

VERSION_HEADER = "hopline-version"
KEY_HEADER = "hopline-key"
CAUSE_HEADER = "hopline-cause"
RUN_HEADER = "hopline-run"
ATTEMPT_HEADER = "hopline-attempt"
SUSPECT_HEADER = "hopline-suspect"
_OWN_HEADERS = frozenset({VERSION_HEADER, KEY_HEADER, CAUSE_HEADER, RUN_HEADER, ATTEMPT_HEADER, SUSPECT_HEADER})
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
        key=storable(str(get(KEY_HEADER, ""))[:255]),
        correlation_id=correlation if correlation == identifier or is_id(correlation) else identifier,
        cause_id=cause,
        created_at=id_time(identifier),
        body=delivery.body,
        headers=free_headers(headers),
        run=run,
        attempt=attempt,
        suspect=get(SUSPECT_HEADER) is True,
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 31


def free_headers(headers: Mapping[str, Any]) -> dict[str, str]:
    """Those of a delivery's headers that are text and not Hopline's own."""
    return {
        storable(name): storable(value)
        for name, value in headers.items()
        if name not in _OWN_HEADERS and isinstance(value, str)
    }


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value is a UUIDv7 in its canonical form of 36 characters."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


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
