"""The attempts: one row per failed try of (endpoint, message, run, attempt), with error, stack and times.

The row is also what stops a duplicate delivery of a failed attempt from starting a second chain of retries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from hopline.database import Transaction
from hopline.message import Envelope
from hopline.rows import Dialect, Rows, insert
from hopline.schema import ERROR_CHARACTERS, STACK_CHARACTERS, Id, attempts, storable


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed try, with the outcome that it led to."""

    endpoint: str
    envelope: Envelope
    outcome: str
    error: str
    stack: str
    worker: str
    started_at: datetime
    finished_at: datetime


RUN = Rows("attempted", id=Id, run=sa.Integer(), attempt=sa.Integer())
"""Of messages: the very run and attempt that they come with."""


def given(dialect: Dialect, envelopes: Sequence[Envelope]) -> dict[str, Any]:
    """The parameters of RUN."""
    return RUN.given(
        dialect,
        id=[envelope.id for envelope in envelopes],
        run=[envelope.run for envelope in envelopes],
        attempt=[envelope.attempt for envelope in envelopes],
    )


@cache
def recorded(dialect: Dialect) -> sa.Select[Any]:
    """The query for which of the given messages (`given`, `of_endpoint`) failed in this very (run, attempt)."""
    rows = RUN.table(dialect)
    return sa.select(attempts.c.message_id, attempts.c.run, attempts.c.attempt).where(
        attempts.c.endpoint == sa.bindparam("of_endpoint"),
        attempts.c.message_id == rows.c.id,
        attempts.c.run == rows.c.run,
        attempts.c.attempt == rows.c.attempt,
    )


async def record(tx: Transaction, failed: Sequence[Attempt]) -> None:
    """Stores failed tries; one that is stored already stays as it is."""
    if failed:
        await tx.execute(insert(tx.dialect, attempts).on_conflict_do_nothing(), [_row(attempt) for attempt in failed])


def _row(attempt: Attempt) -> dict[str, object]:
    return {
        "endpoint": attempt.endpoint,
        "message_id": attempt.envelope.id,
        "run": attempt.envelope.run,
        "attempt": attempt.envelope.attempt,
        "outcome": attempt.outcome,
        "error": storable(attempt.error[:ERROR_CHARACTERS]),
        "stack": storable(attempt.stack[-STACK_CHARACTERS:]),
        "worker": attempt.worker,
        "started_at": attempt.started_at,
        "finished_at": attempt.finished_at,
    }
