"""Counting the Python functions that are called: a measure of work that no busy machine changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Calls:
    """How many Python functions were called, C functions not counted."""

    def __init__(self) -> None:
        self.count = 0

    def _note(self, _frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            self.count += 1


@contextmanager
def counted_calls() -> Iterator[Calls]:
    """Counts the calls of this thread until its end; a profiler that was on is off meanwhile."""
    calls = Calls()
    before = sys.getprofile()
    sys.setprofile(calls._note)
    try:
        yield calls
    finally:
        sys.setprofile(before)
    calls.count -= 1  # that of __exit__
