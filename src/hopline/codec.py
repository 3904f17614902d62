"""Bytes to messages and back: JSON by msgspec, by declared type only. Bad bytes raise Undecodable.

What cannot be read back is not sent: a struct's constructor does not check its fields, so `encode` reads what it
wrote. Both ways are total: every message and every body gives a result or one of the errors named here.

Nothing here imports a class from a name on the wire: the catalog is the allowlist. Decoders are made once
per type. Money and other decimals travel as strings, times as RFC 3339 in UTC (msgspec's defaults).
"""

from __future__ import annotations

from functools import cache

import msgspec

from hopline.errors import MessageTooLarge, Undecodable, UsageError, text_of
from hopline.message import MessageType, type_of

CONTENT_TYPE = "application/json"

_encoder = msgspec.json.Encoder()


@cache
def _decoder(cls: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct]:
    return msgspec.json.Decoder(cls)


def encode(message: msgspec.Struct, declared: MessageType | None = None, *, limit_bytes: int) -> bytes:
    """The JSON body of a message; `declared` is its type, if the caller knows it.

    MessageTooLarge when it is over the limit, UsageError when the message cannot be encoded, or not be read back.
    """
    declared = declared or type_of(message)
    try:
        body = _encoder.encode(message)
    except Exception as error:
        raise UsageError(f"the {declared.name!r} cannot be sent: {type(error).__name__}: {text_of(error)}") from error
    if len(body) > limit_bytes:
        raise MessageTooLarge(declared.name, len(body), limit_bytes)
    try:
        _decoder(declared.cls).decode(body)
    except Exception as error:
        raise UsageError(
            f"the {declared.name!r} cannot be sent, because a handler could not read it: {text_of(error)}; "
            f"give {declared.cls.__name__} values of its declared types"
        ) from error
    return body


def decode(declared: MessageType, body: bytes) -> msgspec.Struct:
    """The message in a body of the declared type; Undecodable says where the body is wrong."""
    try:
        return _decoder(declared.cls).decode(body)
    except Exception as error:  # msgspec's, UnicodeDecodeError, RecursionError, or whatever a __post_init__ raises
        raise Undecodable(f"the body is no {declared.name!r} version {declared.version}: {text_of(error)}") from error
