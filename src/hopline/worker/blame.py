"""Whose fault it is that a group's transaction failed after its claim: the database's, or that of a handler in it.

The claim is the first statement of the transaction, and it writes. So each time that it works, a fresh connection has
worked, and what fails afterwards is judged here:

- A limit of the database that was exceeded, or a transaction that cannot go on because a statement in it has failed, is
  the handlers' doing. So is whatever the COMMIT refuses, such as a deferred constraint.
- A connection that dies once is the database's doing. It is the handlers' if they had it for longer than Postgres lets
  a transaction be idle, or if this happens LOST_CONNECTIONS times in a row.
- A lock or a deadlock passes. It is the handlers' doing after CONTENTIONS times in a row.
- A database without disk, memory or connections tells nothing about who used them up: the group runs again.

What is the handlers' doing raises MemberFailed: the members run again alone, and the one that does it alone has failed
an attempt. Everything else passes through and runs the same group again, which spends no attempt.
"""

from __future__ import annotations

import time
from types import TracebackType

from hopline.errors import (
    CommitUnknown,
    DatabaseContention,
    DatabaseError,
    DatabaseUnavailable,
    OutsideError,
    TransactionAborted,
)
from hopline.worker.calling import MemberFailed

LOST_CONNECTIONS = 5
"""As many connections in a row that die under the same handlers are no chance."""
CONTENTIONS = 10
"""As many times in a row that the same handlers wait for a lock in vain are no chance; about half a minute."""


class Blame:
    """Judges the failures of one group's transactions: `with blame:` around each, `claimed()` after its claim."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._claimed_at: float | None = None
        self._lost = 0
        self._contentions = 0

    def __enter__(self) -> None:
        self._claimed_at = None

    def claimed(self) -> None:
        """The claim has worked: the handlers begin."""
        self._claimed_at = time.monotonic()

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._claimed_at is None or not isinstance(error, Exception) or isinstance(error, MemberFailed):
            return
        if self._is_handlers(error, time.monotonic() - self._claimed_at):
            raise MemberFailed(alone=True, error=error) from error

    def _is_handlers(self, error: Exception, seconds: float) -> bool:
        match error:
            case TransactionAborted():
                return True
            case DatabaseContention():
                self._contentions += 1
                return self._contentions >= CONTENTIONS
            case DatabaseUnavailable(exhausted=True) | CommitUnknown():
                return False
            case DatabaseUnavailable():
                self._lost += 1
                return self._lost >= LOST_CONNECTIONS or seconds >= self._idle_seconds
            case DatabaseError() | OutsideError():
                return False
        return True
