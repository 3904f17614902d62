"""Time and identity: timezone-aware UTC now, and UUIDv7 identifiers that sort by the time they were made.

Due times and leases never use this clock: only the database's clock counts there (see database.now).
"""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime

_RANDOM_POOL_BYTES = 8 * 256

_lock = threading.Lock()
_last_tick = 0
_pool = b""
_pool_offset = 0


def utcnow() -> datetime:
    """The current time, timezone-aware, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """A new UUIDv7 (RFC 9562, section 5.7) as 36 characters.

    Ids made by one process are strictly increasing: the 12 bits after the millisecond hold its fraction
    (method 3 of section 6.2), and a tie or a clock that steps back takes the next free value.
    """
    global _last_tick, _pool, _pool_offset
    with _lock:
        nanoseconds = time.time_ns()
        milliseconds, rest = divmod(nanoseconds, 1_000_000)
        tick = (milliseconds << 12) | (rest * 4096 // 1_000_000)
        if tick <= _last_tick:
            tick = _last_tick + 1
        _last_tick = tick
        if _pool_offset >= len(_pool):
            _pool = os.urandom(_RANDOM_POOL_BYTES)
            _pool_offset = 0
        tail = int.from_bytes(_pool[_pool_offset : _pool_offset + 8], "big") & 0x3FFF_FFFF_FFFF_FFFF
        _pool_offset += 8
    value = (tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0b10 << 62 | tail
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def id_time(identifier: str) -> datetime:
    """When a UUIDv7 was made, to the millisecond (RFC 9562, section 5.7)."""
    milliseconds = int(identifier[:8] + identifier[9:13], 16)
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
