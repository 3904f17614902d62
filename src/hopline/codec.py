"""Bytes to messages and back: JSON by msgspec, by declared type only. Bad bytes raise Undecodable.

Nothing here imports a class from a name on the wire: the catalog is the allowlist. Decoders are made once
per type. Money and other decimals travel as strings, times as RFC 3339 in UTC (msgspec's defaults).
"""

from __future__ import annotations

from functools import cache

import msgspec

from hopline.errors import MessageTooLarge, Undecodable
from hopline.message import MessageType, type_of

CONTENT_TYPE = "application/json"

_encoder = msgspec.json.Encoder()


@cache
def _decoder(cls: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct]:
    return msgspec.json.Decoder(cls)


def encode(message: msgspec.Struct, *, limit_bytes: int) -> bytes:
    """The JSON body of a message; MessageTooLarge when it is over the limit."""
    body = _encoder.encode(message)
    if len(body) > limit_bytes:
        raise MessageTooLarge(type_of(message).name, len(body), limit_bytes)
    return body


def decode(declared: MessageType, body: bytes) -> msgspec.Struct:
    """The message in a body of the declared type; Undecodable says where the body is wrong."""
    try:
        return _decoder(declared.cls).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(f"the body is no {declared.name!r} version {declared.version}: {error}") from error
