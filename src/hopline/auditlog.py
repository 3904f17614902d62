"""The audit log: what operators did, to what, when and why. Rows are only ever added.

An entry is written in the transaction of the act itself, so that neither is there without the other. The hashes
are SHA-256 of a message's body before and after, so that the log proves what was sent without keeping it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.clock import first_id, new_id
from hopline.database import Transaction, now
from hopline.errors import UsageError
from hopline.schema import audit_log, check_id, storable

WHO_CHARACTERS = 255
REASON_CHARACTERS = 2_000
ENTRIES = 1_000
"""The most that one call returns."""
MILLISECOND = timedelta(milliseconds=1)
"""As exactly as an id tells its time."""

Action = Literal[
    "replay",
    "replay-as-new",
    "edit",
    "discard",
    "undo",
    "resend",
    "run-now",
    "cancel",
    "pause",
    "resume",
    "drain",
    "reveal",
    "sign-in",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """One act. `target` is made by one of the functions `..._target`."""

    who: str
    action: Action
    target: str
    before_hash: str | None
    after_hash: str | None
    """None: nothing is left of it to be sent."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One act as it was stored."""

    id: str
    at: datetime
    who: str
    action: str
    target: str
    before_hash: str | None
    after_hash: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which entries; each field narrows, None is all."""

    who: str | None = None
    action: str | None = None
    target: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    """Both inclusive."""


def letter_target(identifier: str) -> str:
    """The target of an act on a dead letter."""
    return f"dead-letter {identifier}"


def send_target(identifier: str) -> str:
    """The target of an act on a scheduled send."""
    return f"send {identifier}"


def message_target(identifier: str) -> str:
    """The target of an act on a stored message, such as that somebody looked into it."""
    return f"message {identifier}"


def queue_target(name: str) -> str:
    """The target of an act on a queue."""
    return f"queue {name}"


def worker_target(instance: str) -> str:
    """The target of an act on a running process."""
    return f"worker {instance}"


def hash_of(body: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(body).hexdigest()


def check_who(who: str) -> None:
    """UsageError if nobody is named."""
    if not who.strip():
        raise UsageError("say who acts: every act is written down under a name")


async def append(tx: Transaction, entries: Sequence[Entry]) -> None:
    """Adds entries, at the database's time."""
    if not entries:
        return
    rows = [
        {
            "id": new_id(),
            "who": storable(entry.who.strip()[:WHO_CHARACTERS]),
            "action": entry.action,
            "target": entry.target,
            "before_hash": entry.before_hash,
            "after_hash": entry.after_hash,
            "reason": storable(entry.reason[:REASON_CHARACTERS]),
        }
        for entry in entries
    ]
    await tx.execute(sa.insert(audit_log).values(at=now()), rows)


async def find(
    connection: AsyncConnection, which: LogFilter, *, limit: int, before: str | None = None
) -> list[Recorded]:
    """A page of at most `limit` entries (and never more than ENTRIES), newest first; older than the entry `before`.

    UsageError if `before` is no id.
    """
    if before is not None:
        check_id(before)
    query = _page(limit, before).where(*_conditions(which))
    return [Recorded(**row) for row in (await connection.execute(query)).mappings()]


async def recent(
    connection: AsyncConnection, *, limit: int, before: str | None = None, targets: Sequence[str] | None = None
) -> list[Recorded]:
    """The latest entries, newest first: older than the entry `before`, about the given targets (None: all)."""
    query = _page(limit, before)
    if targets is not None:
        query = query.where(audit_log.c.target.in_(targets))
    return [Recorded(**row) for row in (await connection.execute(query)).mappings()]


def _page(limit: int, before: str | None) -> sa.Select[Any]:
    query = sa.select(audit_log).order_by(audit_log.c.id.desc()).limit(min(limit, ENTRIES))
    return query if before is None else query.where(audit_log.c.id < before)


def _conditions(which: LogFilter) -> list[sa.ColumnElement[bool]]:
    """Periods are asked of the ids, which hold their time, so that one index serves the filter and the order."""
    wanted = {audit_log.c.who: which.who, audit_log.c.action: which.action, audit_log.c.target: which.target}
    conditions = [column == storable(value) for column, value in wanted.items() if value is not None]
    if which.since is not None:
        conditions.append(audit_log.c.id >= first_id(which.since))
    if which.until is not None:
        conditions.append(audit_log.c.id < first_id(which.until + MILLISECOND))
    return conditions
