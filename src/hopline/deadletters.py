"""The dead letters: messages that are given up, parked whole where a person can see, mend and replay them.

Invariants: what cannot be handled is here, committed under a unique identity, before it is acknowledged; a letter
is resolved once, by whoever comes first, and stays. deadletter_queries.py reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import sqlalchemy as sa

from hopline.clock import new_id
from hopline.database import Transaction, now
from hopline.fingerprint import NO_CAUSE, Cause, fingerprint
from hopline.message import Envelope
from hopline.rows import Dialect, Rows, insert
from hopline.schema import ERROR_CHARACTERS, STACK_CHARACTERS, Id, dead_letters, storable, storable_json

NAME_CHARACTERS = 255

Resolution = Literal["replayed", "edited", "discarded"]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One parked message with its whole story; `envelope` is None when its properties were not ours."""

    queue: str
    endpoint: str | None
    envelope: Envelope | None
    reason: str
    error: str
    stack: str
    properties: Mapping[str, object]
    body: bytes
    cause: Cause = NO_CAUSE

    @property
    def identity(self) -> str:
        """Equal for two deliveries of the same message and run; by content when it has no id."""
        if self.envelope is not None:
            return f"{self.queue}/{self.envelope.id}/{self.envelope.run}"
        return f"{self.queue}/{hashlib.sha256(repr(sorted(self.properties.items())).encode() + self.body).hexdigest()}"

    @property
    def type_name(self) -> str:
        """The message type that the properties name, empty if none."""
        named = self.envelope.type if self.envelope else str(self.properties.get("type", ""))
        return storable(named[:NAME_CHARACTERS])


async def park(tx: Transaction, letters: Sequence[DeadLetter]) -> None:
    """Stores dead letters; one that is parked already stays as it is."""
    if not letters:
        return
    statement = insert(tx.dialect, dead_letters).values(dead_at=now()).on_conflict_do_nothing()
    await tx.execute(statement, [_row(letter) for letter in letters])


async def resolve(tx: Transaction, letters: Mapping[str, str | None], resolution: Resolution) -> set[str]:
    """Resolves letters, given as {id: the new message that replaces it}; returns the ids that were parked till now.

    Of two who act on a letter at once, one gets its id.
    """
    ids = sorted(letters)
    given = _RESOLVED.given(tx.dialect, id=ids, by=[letters[identifier] for identifier in ids])
    resolved = await tx.rows(_resolving(tx.dialect), {"as": resolution, **given})
    return {row.id for row in resolved}


async def reopen(tx: Transaction, ids: Sequence[str]) -> None:
    """Letters are parked again; whoever calls holds them locked and has made sure that nothing of them was sent."""
    if ids:
        again = {"resolution": None, "resolved_at": None, "replaced_by": None}
        await tx.execute(sa.update(dead_letters).where(dead_letters.c.id.in_(ids)).values(**again))


_RESOLVED = Rows("resolved", id=Id, by=Id)


@cache
def _resolving(dialect: Dialect) -> sa.Executable:
    given = _RESOLVED.table(dialect)
    # As a function of the column, so that SQLite looks the ids up instead of walking all that is parked.
    parked = sa.func.coalesce(dead_letters.c.resolution, "") == ""
    return (
        sa.update(dead_letters)
        .where(dead_letters.c.id == given.c.id, parked)
        .values(resolution=sa.bindparam("as"), resolved_at=now(), replaced_by=given.c.by)
        .returning(dead_letters.c.id)
    )


def _row(letter: DeadLetter) -> dict[str, object]:
    envelope = letter.envelope
    return {
        "id": new_id(),
        "identity": letter.identity,
        "queue": letter.queue,
        "endpoint": letter.endpoint,
        "message_id": envelope.id if envelope else None,
        "type": letter.type_name,
        "version": envelope.version if envelope else 0,
        "run": envelope.run if envelope else 0,
        "attempt": envelope.attempt if envelope else 0,
        "key": storable(envelope.key) if envelope else None,
        "reason": letter.reason,
        "error": storable(letter.error[:ERROR_CHARACTERS]),
        "stack": storable(letter.stack[-STACK_CHARACTERS:]),
        "error_type": storable(letter.cause.error_type),
        "frame": storable(letter.cause.frame),
        "fingerprint": fingerprint(letter.cause, letter.reason, letter.type_name),
        "properties": storable_json(letter.properties),
        "body": letter.body,
    }
