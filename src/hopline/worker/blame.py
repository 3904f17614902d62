"""Whose fault it is that a group's transaction failed after its claim: the database's, or that of a handler in it.

The claim is the first statement of the transaction, and it writes. So each time that it works, a fresh connection has
worked, and what fails afterwards is judged here:

- A limit of the database that was exceeded, or a transaction that cannot go on because a statement in it has failed, is
  the handlers' doing. So is whatever the COMMIT refuses, such as a deferred constraint.
- A connection that dies once is the database's doing. It is the handlers' if they had it for longer than Postgres lets
  a transaction be idle, or if this happens IN_A_ROW times in a row.
- A lock, a deadlock, a full disk pass. They are the handlers' doing after IN_A_ROW times in a row too, because each
  time the claim of the same transaction has worked.
- A full outbox is nobody's doing.

What is the handlers' doing raises MemberFailed: the members run again alone, and the one that does it alone has failed
an attempt. Everything else passes through and runs the same group again, which spends no attempt.
"""

from __future__ import annotations

import time
from types import TracebackType

from hopline.errors import DatabaseError, DatabaseUnavailable, OutsideError, TransactionAborted
from hopline.worker.calling import MemberFailed

IN_A_ROW = 6
"""As many failures in a row under the same handlers, each after a claim that worked, are no chance."""


class Blame:
    """Judges the failures of one group's transactions: `with blame:` around each, `claimed()` after its claim."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._claimed_at: float | None = None
        self._failures = 0

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
            case DatabaseError():
                self._failures += 1
                died = isinstance(error, DatabaseUnavailable) and not error.exhausted
                return self._failures >= IN_A_ROW or (died and seconds >= self._idle_seconds)
            case OutsideError():
                return False
        return True
