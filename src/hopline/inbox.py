"""The inbox: one row per finished (endpoint, message). It is what makes an effect happen once.

A claim inserts the row before the handler runs, in the handler's own transaction: a second delivery of the
same message finds it and is dropped, one that runs at the same time waits on it. Claims are made in sorted
order, so that two workers cannot deadlock. A row whose handler did not end as Done is deleted before COMMIT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.database import Transaction, as_table, insert, now, table_rows
from hopline.message import Envelope
from hopline.schema import Id, inbox

NOTE_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Finished:
    """How a message was done: how long its handler took (for a group: the group's), and a line for the timeline."""

    seconds: float
    note: str = ""


async def claim(tx: Transaction, endpoint: str, envelopes: Sequence[Envelope], worker: str) -> set[str]:
    """Claims messages for an endpoint; returns the ids that were not done before."""
    given = as_table(tx.dialect, {"id": Id, "run": sa.Integer(), "attempt": sa.Integer()})
    rows = (
        sa.select(
            given.c.id,
            sa.literal(endpoint),
            given.c.run,
            given.c.attempt,
            sa.literal("done"),
            sa.literal(""),
            sa.literal(worker),
            now(),
            now(),
        )
        .where(sa.true())  # SQLite's grammar needs it between FROM and ON CONFLICT
        .order_by(given.c.id)
    )
    columns = [column.name for column in inbox.columns]
    statement = insert(tx.dialect, inbox).from_select(columns, rows).on_conflict_do_nothing()
    parameters = table_rows([{"id": e.id, "run": e.run, "attempt": e.attempt} for e in envelopes])
    return {row.message_id for row in await tx.rows(statement.returning(inbox.c.message_id), parameters)}


async def finish(tx: Transaction, endpoint: str, finished: Mapping[str, Finished]) -> None:
    """Stores for each claimed message when it was done, how long it took, and its note."""
    given = as_table(tx.dialect, {"id": Id, "note": sa.Text(), "seconds": sa.Float()})
    statement = (
        sa.update(inbox)
        .where(inbox.c.endpoint == endpoint, inbox.c.message_id == given.c.id)
        .values(started_at=now(-given.c.seconds), done_at=now(), note=given.c.note)
    )
    rows = [
        {"id": identifier, "note": one.note[:NOTE_CHARACTERS], "seconds": round(one.seconds, 6)}
        for identifier, one in finished.items()
    ]
    await tx.execute(statement, table_rows(rows))


async def release(tx: Transaction, endpoint: str, ids: Sequence[str]) -> None:
    """Takes claims back: these messages are not done."""
    if ids:
        given = as_table(tx.dialect, {"id": Id})
        statement = sa.delete(inbox).where(inbox.c.endpoint == endpoint, inbox.c.message_id.in_(sa.select(given.c.id)))
        await tx.execute(statement, table_rows([{"id": i} for i in ids]))


async def done(connection: AsyncConnection, dialect: str, endpoint: str, ids: Sequence[str]) -> set[str]:
    """Which of the messages the endpoint has finished."""
    given = as_table(dialect, {"id": Id})
    query = sa.select(inbox.c.message_id).where(
        inbox.c.endpoint == endpoint, inbox.c.message_id.in_(sa.select(given.c.id))
    )
    rows = await connection.execute(query, table_rows([{"id": i} for i in ids]))
    return {row.message_id for row in rows}
