"""AMQP's elementary types as bytes: short strings, long strings, field tables and arrays.

Python values choose their field type: bool `t`, int `l`, float `d`, str `S`, bytes `x`, datetime `T`, Decimal `D`,
dict `F`, list or tuple `A`, None `V`; `Exact` names any other. All field types that RabbitMQ documents are decoded
(https://www.rabbitmq.com/amqp-0-9-1-errata.html, section 3). Invariant: `decode_table(encode_table(t)) == t` for
every table made of these values. A long string that is not UTF-8 is decoded as bytes, since AMQP allows any bytes in
it.

Refused, always with a typed error: integers beyond 64 bits, names beyond 255 bytes, naive datetimes, nesting deeper
than `DEPTH_MAX`, and lengths that point outside of the bytes at hand.
"""

import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple

from hopline.amqp.errors import DecodeError, EncodeError
from hopline.amqp.spec import OCTET_MAX, SHORT_STRING_BYTES_MAX

DEPTH_MAX: Final = 32
"""Tables within tables: deeper ones are an attack on the stack rather than data."""
_NAMES_CACHED_MAX: Final = 1024
"""Header names and content types come from a small set; beyond this many the cache starts anew."""

_ARRAY, _DECIMAL, _TABLE, _TEXT, _TIME, _VOID, _DOUBLE, _INT64, _BOOLEAN, _BYTES = b"ADFSTVdltx"
_TIMES_CACHED_MAX: Final = 1024
"""Messages that arrive together were mostly sent within a few seconds; beyond this many the cache starts anew."""

ONE_BYTE: Final = tuple(bytes((value,)) for value in range(256))
OCTETS: Final = dict(enumerate(ONE_BYTE))
_pack_u32 = struct.Struct(">I").pack
_pack_u64 = struct.Struct(">Q").pack
_pack_int = struct.Struct(">Bq").pack
_pack_float = struct.Struct(">Bd").pack
_u32 = struct.Struct(">I").unpack_from
_i64 = struct.Struct(">q").unpack_from
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_FIXED: Final[dict[int, struct.Struct]] = {
    ord(kind): struct.Struct(">" + form)
    for kind, form in {
        "b": "b", "B": "B", "s": "h", "u": "H", "I": "i", "i": "I", "l": "q", "L": "q", "f": "f", "d": "d",
    }.items()
}  # fmt: skip
"""Numeric field types. `L` is read as signed, as RabbitMQ's own clients do."""


class Exact(NamedTuple):
    """A number with its AMQP field type spelled out, for peers that insist: `Exact("B", 200)`.

    Kinds: `b B` 8 bits, `s u` 16, `I i` 32, `l` 64 (lower and upper case as RabbitMQ reads them: `b s I l` signed, `B
    u i` unsigned), `f` single and `d` double precision.
    """

    kind: str
    value: float


_short_cache: dict[str, bytes] = {}
_text_heads: dict[str, bytes] = {}
_time_cache: dict[int, datetime] = {}


def short_string(text: str) -> bytes:
    """A length byte and up to 255 bytes of UTF-8. Bytes that came in undecodable go out as they came."""
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) > SHORT_STRING_BYTES_MAX:
        raise EncodeError(f"a short string has {len(raw)} bytes, of at most 255: {text[:40]!r}...")
    return ONE_BYTE[len(raw)] + raw


def cached_short_string(text: str) -> bytes:
    """`short_string` for names that recur: header names, types, content types."""
    found = _short_cache.get(text)
    if found is None:
        if len(_short_cache) >= _NAMES_CACHED_MAX:
            _short_cache.clear()
        found = _short_cache[text] = short_string(text)
    return found


def long_string(raw: bytes) -> bytes:
    """A 32-bit length and that many bytes."""
    return _pack_u32(len(raw)) + raw


def seconds_since_epoch(when: datetime | int) -> int:
    """AMQP's timestamp: whole seconds since 1970 in UTC."""
    if not isinstance(when, datetime):
        return when
    if when.tzinfo is None:
        raise EncodeError(f"the time {when} has no time zone")
    return (when - _EPOCH) // timedelta(seconds=1)


def time_from_seconds(seconds: int) -> datetime | int:
    """The UTC time, or the number itself where it lies beyond the year 9999 (some publishers send milliseconds)."""
    found = _time_cache.get(seconds)
    if found is None:
        try:
            found = datetime.fromtimestamp(seconds, UTC)
        except (ValueError, OverflowError, OSError):
            return seconds
        if len(_time_cache) >= _TIMES_CACHED_MAX:
            _time_cache.clear()
        _time_cache[seconds] = found
    return found


def encode_table(table: Mapping[str, object], depth: int = 0) -> bytes:
    """A field table, with its length in front."""
    body = b""
    for name, value in table.items():
        if value.__class__ is str:
            raw = value.encode()
            body += (_text_heads.get(name) or _text_head(name)) + _pack_u32(len(raw)) + raw
        elif value.__class__ is int:
            body += cached_short_string(name) + _pack_int(_INT64, value)
        else:
            body += cached_short_string(name) + _encode_value(value, depth)
    return _pack_u32(len(body)) + body


def _text_head(name: str) -> bytes:
    """A name and the field type of a string, which most header values are."""
    if len(_text_heads) >= _NAMES_CACHED_MAX:
        _text_heads.clear()
    head = _text_heads[name] = short_string(name) + b"S"
    return head


def _encode_value(value: object, depth: int) -> bytes:  # noqa: C901, PLR0911, PLR0912 - a branch a type
    try:
        if isinstance(value, bool):
            return b"t\x01" if value else b"t\x00"
        if isinstance(value, int):
            return _pack_int(_INT64, value)
        if value is None:
            return b"V"
        if isinstance(value, str):
            return b"S" + long_string(value.encode())
        if isinstance(value, float):
            return _pack_float(_DOUBLE, value)
        if isinstance(value, bytes | bytearray):
            return b"x" + long_string(bytes(value))
        if isinstance(value, datetime):
            return b"T" + _pack_u64(seconds_since_epoch(value))
        if isinstance(value, Decimal):
            return _encode_decimal(value)
        if isinstance(value, Exact):
            return _encode_exact(value)
        if depth >= DEPTH_MAX:
            raise EncodeError(f"a table is nested deeper than {DEPTH_MAX}")
        if isinstance(value, Mapping):
            return b"F" + encode_table(value, depth + 1)
        if isinstance(value, Sequence):
            return b"A" + long_string(b"".join([_encode_value(item, depth + 1) for item in value]))
    except (struct.error, UnicodeEncodeError) as error:
        raise EncodeError(f"AMQP cannot carry {str(value)[:40]!r}: {error}") from error
    raise EncodeError(f"AMQP tables cannot carry a {type(value).__name__}")


def _encode_decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise EncodeError(f"AMQP cannot carry the decimal {value}")
    unscaled = int("".join(map(str, digits))) * (10 ** max(exponent, 0))
    if not (unscaled < 2**31 and exponent >= -OCTET_MAX):
        raise EncodeError(f"the decimal {value} does not fit into 32 bits and 255 places")
    return b"D" + ONE_BYTE[max(-exponent, 0)] + struct.pack(">i", -unscaled if sign else unscaled)


def _encode_exact(exact: Exact) -> bytes:
    form = _FIXED.get(ord(exact.kind)) if len(exact.kind) == 1 else None
    if form is None:
        raise EncodeError(f"no numeric field type {exact.kind!r}")
    return exact.kind.encode() + form.pack(exact.value)


def decode_short_string(raw: bytes, at: int) -> tuple[str, int]:
    """The text at `at`, and where it ends. For names in methods: undecodable bytes survive as surrogates."""
    end = at + 1 + raw[at]
    if end > len(raw):
        raise DecodeError("a short string reaches beyond its frame")
    return raw[at + 1 : end].decode("utf-8", "surrogateescape"), end


def decode_table(raw: bytes, at: int = 0) -> tuple[dict[str, object], int]:
    """The table at `at`, and where it ends. Raises DecodeError, whatever the bytes."""
    try:
        return read_table(raw, at, len(raw))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise DecodeError(f"a field table is malformed: {error}") from error


def _block(raw: bytes, at: int, limit: int) -> tuple[int, int]:
    """Where the block with a 32-bit length at `at` begins and ends."""
    start = at + 4
    end = start + int(_u32(raw, at)[0])
    if end > limit:
        raise DecodeError("a length in a field table reaches beyond it")
    return start, end


def read_table(raw: bytes, at: int, limit: int, depth: int = 0) -> tuple[dict[str, object], int]:
    """`decode_table` for those who translate struct.error, IndexError and UnicodeDecodeError themselves."""
    end = at + 4 + _u32(raw, at)[0]
    if end > limit:
        raise DecodeError("a length in a field table reaches beyond it")
    at += 4
    table: dict[str, object] = {}
    while at < end:
        kind_at = at + 1 + raw[at]
        name = raw[at + 1 : kind_at].decode()
        kind = raw[kind_at]
        if kind == _TEXT:
            start = kind_at + 5
            at = start + _u32(raw, kind_at + 1)[0]
            try:
                table[name] = raw[start:at].decode()
            except UnicodeDecodeError:
                table[name] = raw[start:at]
        elif kind == _INT64:
            table[name], at = _i64(raw, kind_at + 1)[0], kind_at + 9
        else:
            table[name], at = _decode_value(raw, kind_at, end, depth)
    if at != end:  # whatever reached too far, reached beyond the end
        raise DecodeError("a name or value in a field table reaches beyond it")
    return table, end


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _decode_value(raw: bytes, at: int, limit: int, depth: int) -> tuple[object, int]:  # noqa: C901 - a branch a type
    kind = raw[at]
    at += 1
    fixed = _FIXED.get(kind)
    value: object
    if fixed is not None:
        value, end = fixed.unpack_from(raw, at)[0], at + fixed.size
    elif kind == _BOOLEAN:
        value, end = raw[at] != 0, at + 1
    elif kind == _VOID:
        value, end = None, at
    elif kind == _TIME:
        value, end = time_from_seconds(int.from_bytes(raw[at : at + 8], "big")), at + 8
    elif kind == _DECIMAL:
        scale, unscaled = struct.unpack_from(">Bi", raw, at)
        value, end = Decimal(unscaled).scaleb(-scale), at + 5
    elif kind in (_TEXT, _BYTES):
        start, end = _block(raw, at, limit)
        value = _text(raw[start:end]) if kind == _TEXT else raw[start:end]
    elif depth >= DEPTH_MAX:
        raise DecodeError(f"a table is nested deeper than {DEPTH_MAX}")
    elif kind == _TABLE:
        value, end = read_table(raw, at, limit, depth + 1)
    elif kind == _ARRAY:
        value, end = _decode_array(raw, at, limit, depth + 1)
    else:
        raise DecodeError(f"no field type {chr(kind)!r}")
    if end > limit:
        raise DecodeError("a value in a field table reaches beyond it")
    return value, end


def _decode_array(raw: bytes, at: int, limit: int, depth: int) -> tuple[list[object], int]:
    at, end = _block(raw, at, limit)
    items: list[object] = []
    while at < end:
        item, at = _decode_value(raw, at, end, depth)
        items.append(item)
    return items, end
