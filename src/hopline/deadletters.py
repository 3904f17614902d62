"""The dead letters: messages that are given up, parked whole where a person can see, mend and replay them.

Invariants: what cannot be handled is here, committed under a unique identity, before it is acknowledged; a letter
is resolved once, by whoever comes first, and stays. deadletter_queries.py reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import sqlalchemy as sa

from hopline.clock import new_id
from hopline.database import Transaction, now
from hopline.fingerprint import NO_CAUSE, Cause, fingerprint
from hopline.holding import hold
from hopline.message import Envelope
from hopline.rows import Dialect, Rows, insert
from hopline.schema import ERROR_CHARACTERS, STACK_CHARACTERS, Id, dead_letters, storable, storable_json

NAME_CHARACTERS = 255
REASON_CHARACTERS = 64
BODY_DIGITS = 16
"""Of a body's hash in a letter's identity: a stranger may use one id for several messages."""
DELIVERED_AGAIN = "; delivered again before its acknowledgement was certain"
BROKER_HEADERS = frozenset({"x-delivery-count", "x-acquired-count"})
"""What RabbitMQ adds to a message of a quorum queue that it delivers again."""

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

    def identity(self, row_id: str) -> str:
        """Equal for two deliveries of the same message and run; without an envelope each delivery is its own."""
        if self.envelope is not None:
            digest = hashlib.sha256(self.body).hexdigest()[:BODY_DIGITS]
            identity = f"{self.queue}/{self.envelope.id}/{self.envelope.run}/{digest}"
            if len(identity) <= NAME_CHARACTERS:
                return identity
            return hashlib.sha256(identity.encode()).hexdigest()  # of a queue whose name leaves too little room
        return row_id

    def content(self) -> str:
        """A hash of what a message without an envelope is: equal for all deliveries of it, and for equal messages.

        What RabbitMQ writes into a message that it delivers again is left out.
        """
        headers = self.properties.get("headers")
        own = {**self.properties, "headers": _own(headers) if isinstance(headers, Mapping) else headers or {}}
        text = json.dumps([self.queue, own], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode("utf-8", "replace") + self.body).hexdigest()

    @property
    def type_name(self) -> str:
        """The message type that the properties name, empty if none."""
        named = self.envelope.type if self.envelope else str(self.properties.get("type", ""))
        return storable(named[:NAME_CHARACTERS])


async def park(tx: Transaction, letters: Sequence[DeadLetter]) -> None:
    """Stores dead letters; one that is parked already stays as it is."""
    await _insert(tx, [_row(letter) for letter in letters])


async def park_delivered(
    tx: Transaction, deliveries: Sequence[tuple[DeadLetter, bool]], *, mine: Collection[str] = ()
) -> list[str | None]:
    """Stores dead letters of deliveries, each with whether RabbitMQ delivered it before.

    Returns for each the id by which `settled` is to be told of its acknowledgement; None if it has an envelope, which
    tells it from others. Without one, two first deliveries are two messages, however equal. One that comes again is
    the message of a letter that is stored and was not acknowledged for certain, if there is such a letter of the same
    content: each letter stands for one of them. `mine` are letters that the caller acknowledged on a channel that is
    open: nothing comes again for these.
    """
    rows: list[dict[str, object]] = []
    ids: list[str | None] = []
    taken = set(mine)
    for letter, redelivered in deliveries:
        row = _row(letter)
        if letter.envelope is None:
            row["unsettled"] = content = letter.content()
            known = await _again(tx, content, taken) if redelivered else None
            ids.append(known or str(row["id"]))
            if known is not None:
                taken.add(known)
                continue
        else:
            ids.append(None)
        rows.append(row)
    await _insert(tx, rows)
    return ids


async def settled(tx: Transaction, ids: Sequence[str]) -> None:
    """The deliveries of these letters are acknowledged for certain: whatever comes again is another message."""
    if ids:
        mine = _SETTLED.among(tx.dialect, dead_letters.c.id)
        given = _SETTLED.given(tx.dialect, id=sorted(ids))
        await tx.execute(sa.update(dead_letters).where(mine).values(unsettled=None), given)


async def _again(tx: Transaction, content: str, taken: Collection[str]) -> str | None:
    """The id of a letter of this content that is not settled and not taken; the letter says that it came again."""
    unsettled = sa.select(dead_letters.c.id).where(
        dead_letters.c.unsettled == content, ~_TAKEN.among(tx.dialect, dead_letters.c.id)
    )
    first = unsettled.order_by(dead_letters.c.id).limit(1).with_for_update(skip_locked=True)
    rows = await tx.rows(first, _TAKEN.given(tx.dialect, id=sorted(taken)))
    if not rows:
        return None
    again = sa.func.substr(dead_letters.c.error + DELIVERED_AGAIN, 1, ERROR_CHARACTERS)
    await tx.execute(sa.update(dead_letters).where(dead_letters.c.id == rows[0].id).values(error=again))
    return str(rows[0].id)


async def _insert(tx: Transaction, rows: Sequence[dict[str, object]]) -> None:
    if rows:
        await hold(tx, [str(row["message_id"]) for row in rows if row["message_id"] is not None])
        statement = insert(tx.dialect, dead_letters).values(dead_at=now()).on_conflict_do_nothing()
        await tx.execute(statement, rows)


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
# As many ids as a worker has in hand, which may be more than a statement may have parameters.
_SETTLED = Rows("settled", id=Id)
_TAKEN = Rows("taken", id=Id)


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
    row_id = new_id()
    return {
        "id": row_id,
        "identity": letter.identity(row_id),
        "unsettled": None,
        "queue": storable(letter.queue[:NAME_CHARACTERS]),
        "endpoint": letter.endpoint,
        "message_id": envelope.id if envelope else None,
        "type": letter.type_name,
        "version": envelope.version if envelope else 0,
        "run": envelope.run if envelope else 0,
        "attempt": envelope.attempt if envelope else 0,
        "key": storable(envelope.key) if envelope else None,
        "reason": storable(letter.reason[:REASON_CHARACTERS]),
        "error": storable(letter.error[:ERROR_CHARACTERS]),
        "stack": storable(letter.stack[-STACK_CHARACTERS:]),
        "error_type": storable(letter.cause.error_type),
        "frame": storable(letter.cause.frame),
        "fingerprint": fingerprint(letter.cause, letter.reason[:REASON_CHARACTERS], letter.type_name),
        "properties": storable_json(letter.properties),
        "body": letter.body,
    }


def _own(headers: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in headers.items() if name not in BROKER_HEADERS}
