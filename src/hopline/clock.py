"""Time and identity: timezone-aware UTC now, and UUIDv7 identifiers that sort by the time they were made.

Due times and leases never use this clock: only the database's clock counts there (see database.now).
"""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime

_TAIL_CHARACTERS = 16
_TAILS = 256
"""Random tails are made for so many ids at a time."""


def utcnow() -> datetime:
    """The current time, timezone-aware, in UTC."""
    return datetime.now(UTC)


def from_epoch(seconds: float) -> datetime:
    """The time so many seconds after the begin of 1970, in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def age_text(seconds: float) -> str:
    """A duration in its largest unit: 0.4 s, 12 s, 5 min, 3 h, 2 d."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, size, until in (("s", 1, 120), ("min", 60, 7_200), ("h", 3_600, 172_800)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds // 86_400:.0f} d"


class _Ids:
    """Makes UUIDv7 that are strictly increasing within the process.

    An id is the text of its millisecond, which most ids share with the one before, 12 bits of its fraction, and a
    random tail out of a supply: formatting the whole of each costs twice as much.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_tick = 0
        self._millisecond = -1
        self._head = ""
        self._tails: list[str] = []

    def new(self) -> str:
        with self._lock:
            tick = time.time_ns() * 4096 // 1_000_000
            if tick <= self._last_tick:
                tick = self._last_tick + 1
            self._last_tick = tick
            if tick >> 12 != self._millisecond:
                self._millisecond = tick >> 12
                self._head = _head(self._millisecond)
            if not self._tails:
                self._tails = _tails()
            return f"{self._head}-7{tick & 0xFFF:03x}-{self._tails.pop()}"


def _head(millisecond: int) -> str:
    text = f"{millisecond:012x}"
    return f"{text[:8]}-{text[8:]}"


def _tails() -> list[str]:
    """62 random bits each behind the variant, 0b10, as the last two groups of an id."""
    text = os.urandom(_TAILS * _TAIL_CHARACTERS // 2).hex()
    return [
        f"{'89ab'[int(text[at], 16) & 3]}{text[at + 1 : at + 4]}-{text[at + 4 : at + 16]}"
        for at in range(0, len(text), _TAIL_CHARACTERS)
    ]


_ids = _Ids()


def new_id() -> str:
    """A new UUIDv7 (RFC 9562, section 5.7) as 36 characters.

    Ids made by one process are strictly increasing: the 12 bits after the millisecond hold its fraction
    (method 3 of section 6.2), and a tie or a clock that steps back takes the next free value.
    """
    return _ids.new()


ID_TIME_MAX = "e677d21fdbff"
"""First 12 digits of the latest id whose time a datetime can hold: the end of the year 9999."""


def has_id_time(identifier: str) -> bool:
    """Whether the time in an id (36 characters, lower case) is one that `id_time` can give.

    A UUIDv7 has 48 bits of milliseconds, which reach to the year 10889.
    """
    return identifier[:8] + identifier[9:13] <= ID_TIME_MAX


def id_time(identifier: str) -> datetime:
    """When a UUIDv7 was made, to the millisecond (RFC 9562, section 5.7); see `has_id_time` for ids of others."""
    milliseconds = int(identifier[:8] + identifier[9:13], 16)
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def first_id(moment: datetime) -> str:
    """The lowest UUIDv7 that can be made at a moment or after it: every id below is older."""
    return f"{_head(int(moment.timestamp() * 1000))}-7000-8000-000000000000"
