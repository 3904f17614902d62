"""The inbox: one row per finished (endpoint, message). It is what makes an effect happen once.

A claim inserts the row before the handler runs, in the handler's own transaction: a second delivery of the
same message finds it and is dropped, one that runs at the same time waits on it. Claims are made in sorted
order, so that two workers cannot deadlock. A row whose handler did not end as Done is deleted before COMMIT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from hopline.database import Dialect, Transaction, as_table, insert, now, table_rows
from hopline.message import Envelope
from hopline.schema import Id, inbox, storable

NOTE_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Finished:
    """How a message was done: how long its handler took (for a group: the group's), and a line for the timeline."""

    seconds: float
    note: str = ""


async def claim(tx: Transaction, endpoint: str, envelopes: Sequence[Envelope], worker: str) -> set[str]:
    """Claims messages for an endpoint; returns the ids that were not done before."""
    parameters = {
        "endpoint": endpoint,
        "worker": worker,
        **table_rows([{"id": e.id, "run": e.run, "attempt": e.attempt} for e in envelopes]),
    }
    return {row.message_id for row in await tx.rows(_claim(tx.dialect), parameters)}


async def finish(tx: Transaction, endpoint: str, finished: Mapping[str, Finished]) -> None:
    """Stores for each claimed message when it was done, how long it took, and its note."""
    rows = [
        {"id": identifier, "note": storable(one.note[:NOTE_CHARACTERS]), "seconds": round(one.seconds, 6)}
        for identifier, one in finished.items()
    ]
    await tx.execute(_finish(tx.dialect), {"of_endpoint": endpoint, **table_rows(rows)})


async def release(tx: Transaction, endpoint: str, ids: Sequence[str]) -> None:
    """Takes claims back: these messages are not done."""
    if ids:
        await tx.execute(_release(tx.dialect), {"of_endpoint": endpoint, **table_rows([{"id": i} for i in ids])})


# The statements are built once a dialect: building one costs more than running it.


@cache
def _claim(dialect: Dialect) -> sa.Executable:
    given = as_table(dialect, {"id": Id, "run": sa.Integer(), "attempt": sa.Integer()})
    values: dict[str, sa.ColumnElement[Any]] = {
        "message_id": given.c.id,
        "endpoint": sa.bindparam("endpoint", type_=sa.String),
        "run": given.c.run,
        "attempt": given.c.attempt,
        "outcome": sa.literal("done"),
        "note": sa.literal(""),
        "worker": sa.bindparam("worker", type_=sa.String),
        "started_at": now(),
        "done_at": now(),
    }
    rows = sa.select(*values.values()).where(sa.true()).order_by(given.c.id)  # SQLite's grammar needs the WHERE
    statement = insert(dialect, inbox).from_select(list(values), rows).on_conflict_do_nothing()
    return statement.returning(inbox.c.message_id)


@cache
def _finish(dialect: Dialect) -> sa.Executable:
    given = as_table(dialect, {"id": Id, "note": sa.Text(), "seconds": sa.Float()})
    return (
        sa.update(inbox)
        .where(inbox.c.endpoint == sa.bindparam("of_endpoint"), inbox.c.message_id == given.c.id)
        .values(started_at=now(-given.c.seconds), done_at=now(), note=given.c.note)
    )


@cache
def _release(dialect: Dialect) -> sa.Executable:
    return sa.delete(inbox).where(*_mine(dialect))


@cache
def done(dialect: Dialect) -> sa.Select[Any]:
    """The query for which of the given messages (`table_rows`, `of_endpoint`) the endpoint has finished."""
    return sa.select(inbox.c.message_id).where(*_mine(dialect))


def _mine(dialect: Dialect) -> tuple[sa.ColumnElement[bool], ...]:
    given = as_table(dialect, {"id": Id})
    return inbox.c.endpoint == sa.bindparam("of_endpoint"), inbox.c.message_id.in_(sa.select(given.c.id))
