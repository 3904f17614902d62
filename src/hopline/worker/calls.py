"""The handler calls of this process that have not ended, for the watch over those that never do (watch/).

A call is open from the moment at which a handler's function gets control until it gives control back for good: a
deadline that its coroutine swallows does not end it, and a thread ends it only when the function has returned.

Ages are measured in seconds that the process was awake, which the watch counts: a process that was frozen (SIGSTOP, a
suspended machine) has had no time, and neither have its handlers. Without a watch no time passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from hopline.handlers import Endpoint
from hopline.message import Envelope


class HasEnvelope(Protocol):
    """A message in a worker's hands."""

    @property
    def envelope(self) -> Envelope:
        """What it came in."""


class Calls:
    """The open calls. Loop and threads may add and remove; `overdue` may be asked from any thread."""

    def __init__(self) -> None:
        self.awake_seconds = 0.0
        """Written by the watch alone."""
        self.open: set[Call] = set()

    def overdue(self, overrun_seconds: float) -> list[Call]:
        """The calls that have gone on for longer than that after their deadline."""
        now = self.awake_seconds
        return [call for call in self.open.copy() if now - call.began > call.deadline_seconds + overrun_seconds]


class Call:
    """One call of a handler: a context manager around its function."""

    __slots__ = ("_calls", "began", "deadline_seconds", "endpoint", "in_thread", "members")

    def __init__(
        self, endpoint: Endpoint, members: Sequence[HasEnvelope], *, in_thread: bool = False, calls: Calls | None = None
    ) -> None:
        self._calls = CALLS if calls is None else calls
        self.endpoint = endpoint.name
        self.deadline_seconds = endpoint.deadline_seconds
        self.members = members
        self.in_thread = in_thread
        """Whether it runs in a thread, beside the loop: then its message has its outcome when the deadline is over."""
        self.began = 0.0

    @property
    def message_ids(self) -> list[str]:
        """The messages that it handles."""
        return [member.envelope.id for member in self.members]

    def __enter__(self) -> Call:
        self.began = self._calls.awake_seconds
        self._calls.open.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.open.discard(self)


CALLS = Calls()
"""Those of this process: what a call that never ends brings to an end is the process."""
