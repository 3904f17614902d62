"""The fourteen properties of an AMQP message, and their bytes.

`Properties` is what a publisher fills in and a consumer reads. `encode_properties` gives the flags and values that
end a content header frame (AMQP 0-9-1 section 4.2.6.1: one bit a property, values in the order of the bits).
Invariant: decoding gives back what was encoded, times cut to whole seconds. Every malformed input is a DecodeError.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hopline.amqp.errors import DecodeError, EncodeError
from hopline.amqp.wire import (
    OCTETS,
    ONE_BYTE,
    cached_short_string,
    encode_table,
    read_table,
    seconds_since_epoch,
    short_string,
    time_from_seconds,
)


@dataclass(slots=True, kw_only=True)
class Properties:
    """AMQP's basic properties; None is "not given".

    `delivery_mode` 2 is persistent; `expiration` is a string of milliseconds; `timestamp` is a time with a zone or
    whole seconds since 1970, and comes back as UTC.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Mapping[str, object] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: datetime | int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None


_FLAGS_BYTES: Final = 2
_pack_flags = struct.Struct(">H").pack
_pack_u64 = struct.Struct(">Q").pack
_unpack_u32 = struct.Struct(">I").unpack_from
_unpack_u64 = struct.Struct(">Q").unpack_from


def encode_properties(properties: Properties) -> bytes:  # noqa: C901, PLR0912, PLR0915 - a branch a property
    """Flags and values. Raises EncodeError for what does not fit."""
    flags = 0
    parts = [b""]
    append = parts.append
    try:
        if (content_type := properties.content_type) is not None:
            flags = 0x8000
            append(cached_short_string(content_type))
        if (content_encoding := properties.content_encoding) is not None:
            flags |= 0x4000
            append(cached_short_string(content_encoding))
        if (headers := properties.headers) is not None:
            flags |= 0x2000
            append(encode_table(headers))
        if (delivery_mode := properties.delivery_mode) is not None:
            flags |= 0x1000
            append(OCTETS[delivery_mode])
        if (priority := properties.priority) is not None:
            flags |= 0x0800
            append(OCTETS[priority])
        if (correlation_id := properties.correlation_id) is not None:
            flags |= 0x0400
            raw = correlation_id.encode()
            append(ONE_BYTE[len(raw)])
            append(raw)
        if (reply_to := properties.reply_to) is not None:
            flags |= 0x0200
            append(short_string(reply_to))
        if (expiration := properties.expiration) is not None:
            flags |= 0x0100
            append(short_string(expiration))
        if (message_id := properties.message_id) is not None:
            flags |= 0x0080
            raw = message_id.encode()
            append(ONE_BYTE[len(raw)])
            append(raw)
        if (timestamp := properties.timestamp) is not None:
            flags |= 0x0040
            append(_pack_u64(timestamp if timestamp.__class__ is int else seconds_since_epoch(timestamp)))
        if (type_ := properties.type) is not None:
            flags |= 0x0020
            append(cached_short_string(type_))
        if (user_id := properties.user_id) is not None:
            flags |= 0x0010
            append(short_string(user_id))
        if (app_id := properties.app_id) is not None:
            flags |= 0x0008
            append(cached_short_string(app_id))
        if (cluster_id := properties.cluster_id) is not None:
            flags |= 0x0004
            append(cached_short_string(cluster_id))
    except (struct.error, AttributeError, TypeError, LookupError, UnicodeEncodeError) as error:
        raise EncodeError(f"a property has a value that AMQP cannot carry: {error}") from error
    parts[0] = _pack_flags(flags)
    return b"".join(parts)


def read_message_id(raw: bytes) -> str | None:
    """The message id alone, at a quarter of the cost: lengths say where it is. Raises DecodeError."""
    try:
        flags, at = raw[0] << 8 | raw[1], _FLAGS_BYTES
        if not flags & 0x0080:
            return None
        if flags & 0x8000:
            at += 1 + raw[at]
        if flags & 0x4000:
            at += 1 + raw[at]
        if flags & 0x2000:
            at += 4 + _unpack_u32(raw, at)[0]
        if flags & 0x1000:
            at += 1
        if flags & 0x0F00:
            at += 1 if flags & 0x0800 else 0
            for flag in (0x0400, 0x0200, 0x0100):
                at += 1 + raw[at] if flags & flag else 0
        end = at + 1 + raw[at]
        if end > len(raw):
            raise DecodeError("the message id reaches beyond the properties")
        return raw[at + 1 : end].decode()
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise DecodeError(f"message properties are malformed: {error}") from error


def decode_properties(raw: bytes) -> Properties:  # noqa: C901, PLR0912 - a branch a property
    """The properties in the flags and values of a content header. Raises DecodeError, whatever the bytes."""
    # The outer tests of several flags pass over what is rarely set. A value that reaches beyond the end is found out
    # by where the next one begins, or by where the last one ends.
    try:
        flags, at = int.from_bytes(raw[:_FLAGS_BYTES], "big"), _FLAGS_BYTES
        if len(raw) < _FLAGS_BYTES or flags & 0x0003:
            raise DecodeError("the property flags are truncated, or name properties that AMQP does not have")
        properties = Properties()
        if flags & 0x8000:
            end = at + 1 + raw[at]
            properties.content_type, at = raw[at + 1 : end].decode(), end
        if flags & 0x4000:
            end = at + 1 + raw[at]
            properties.content_encoding, at = raw[at + 1 : end].decode(), end
        if flags & 0x2000:
            properties.headers, at = read_table(raw, at, len(raw))
        if flags & 0x1000:
            properties.delivery_mode, at = raw[at], at + 1
        if flags & 0x0F00:
            if flags & 0x0800:
                properties.priority, at = raw[at], at + 1
            if flags & 0x0400:
                end = at + 1 + raw[at]
                properties.correlation_id, at = raw[at + 1 : end].decode(), end
            if flags & 0x0200:
                end = at + 1 + raw[at]
                properties.reply_to, at = raw[at + 1 : end].decode(), end
            if flags & 0x0100:
                end = at + 1 + raw[at]
                properties.expiration, at = raw[at + 1 : end].decode(), end
        if flags & 0x0080:
            end = at + 1 + raw[at]
            properties.message_id, at = raw[at + 1 : end].decode(), end
        if flags & 0x0040:
            properties.timestamp, at = time_from_seconds(_unpack_u64(raw, at)[0]), at + 8
        if flags & 0x0020:
            end = at + 1 + raw[at]
            properties.type, at = raw[at + 1 : end].decode(), end
        if flags & 0x001C:
            if flags & 0x0010:
                end = at + 1 + raw[at]
                properties.user_id, at = raw[at + 1 : end].decode(), end
            if flags & 0x0008:
                end = at + 1 + raw[at]
                properties.app_id, at = raw[at + 1 : end].decode(), end
            if flags & 0x0004:
                end = at + 1 + raw[at]
                properties.cluster_id, at = raw[at + 1 : end].decode(), end
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise DecodeError(f"message properties are malformed: {error}") from error
    if at != len(raw):
        raise DecodeError(f"message properties end at byte {at} of {len(raw)}")
    return properties
