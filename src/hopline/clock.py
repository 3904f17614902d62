"""Time and identity: timezone-aware UTC now, and UUIDv7 identifiers that sort by the time they were made.

Due times and leases never use this clock: only the database's clock counts there (see database.now).
"""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime

_TAIL_BYTES = 8
_POOL_BYTES = 256 * _TAIL_BYTES
"""Random bytes are taken from the kernel for so many ids at a time."""


def utcnow() -> datetime:
    """The current time, timezone-aware, in UTC."""
    return datetime.now(UTC)


class _Ids:
    """Makes UUIDv7 that are strictly increasing within the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_tick = 0
        self._pool = b""
        self._offset = 0

    def new(self) -> str:
        with self._lock:
            milliseconds, rest = divmod(time.time_ns(), 1_000_000)
            self._last_tick = tick = max(self._last_tick + 1, (milliseconds << 12) | (rest * 4096 // 1_000_000))
            tail = self._tail()
        value = (tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0b10 << 62 | tail
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def _tail(self) -> int:
        """62 random bits."""
        if self._offset >= len(self._pool):
            self._pool, self._offset = os.urandom(_POOL_BYTES), 0
        taken = self._pool[self._offset : self._offset + _TAIL_BYTES]
        self._offset += _TAIL_BYTES
        return int.from_bytes(taken, "big") >> 2


_ids = _Ids()


def new_id() -> str:
    """A new UUIDv7 (RFC 9562, section 5.7) as 36 characters.

    Ids made by one process are strictly increasing: the 12 bits after the millisecond hold its fraction
    (method 3 of section 6.2), and a tie or a clock that steps back takes the next free value.
    """
    return _ids.new()


def id_time(identifier: str) -> datetime:
    """When a UUIDv7 was made, to the millisecond (RFC 9562, section 5.7)."""
    milliseconds = int(identifier[:8] + identifier[9:13], 16)
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def first_id(moment: datetime) -> str:
    """The lowest UUIDv7 that can be made at a moment or after it: every id below is older."""
    text = f"{int(moment.timestamp() * 1000):012x}"
    return f"{text[:8]}-{text[8:12]}-7000-8000-000000000000"
