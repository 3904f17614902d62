"""What a no-op handler leaves behind: how many ran, and how long after its sending each began. Standard library only.

A file that the worker maps and the benchmark reads: counting costs the handler less than a microsecond, in every side
the same. Times are CLOCK_MONOTONIC's, which all processes of a machine share.
"""

import mmap
import os
import struct
import threading
import time
from pathlib import Path

SLOTS = 2_000_000
FILE = "BENCH_TALLY"
"""The environment variable with the file's path."""


class Tally:
    """The mapped file. One process writes it."""

    def __init__(self, file: Path) -> None:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(handle, 8 * (SLOTS + 1))
        self._map = mmap.mmap(handle, 8 * (SLOTS + 1))
        os.close(handle)
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls) -> "Tally":
        """The worker's."""
        return cls(Path(os.environ[FILE]))

    def hit(self, sent_at: float) -> None:
        """A handler begins whose message was sent at a time of time.monotonic."""
        with self._lock:
            count = self.count
            struct.pack_into("d", self._map, 8 * (1 + count % SLOTS), time.monotonic() - sent_at)
            struct.pack_into("Q", self._map, 0, count + 1)

    @property
    def count(self) -> int:
        """How many handlers have begun."""
        found: int = struct.unpack_from("Q", self._map)[0]
        return found

    def seconds(self, first: int = 0) -> list[float]:
        """How long each message, from the given number on, took to its handler."""
        return list(struct.unpack_from(f"{self.count - first}d", self._map, 8 * (1 + first)))
