"""The inbox: one row per finished (endpoint, message). It is what makes an effect happen once.

A claim inserts the row before the handler runs, in the handler's own transaction: a second delivery of the
same message finds it and is dropped, one that runs at the same time waits on it. Claims are made in sorted
order, so that two workers cannot deadlock. A row whose handler did not end as Done is deleted before COMMIT.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hopline.database import Transaction, Write, now
from hopline.message import Envelope
from hopline.rows import Dialect, Rows, insert
from hopline.schema import Id, inbox, storable

NOTE_CHARACTERS = 500


class Finished(msgspec.Struct, frozen=True, gc=False):
    """How a message was done: how long its handler took (for a group: the group's), and a line for the timeline."""

    envelope: Envelope
    seconds: float
    note: str = ""


async def claim(tx: Transaction, endpoint: str, envelopes: Sequence[Envelope], worker: str) -> set[str]:
    """Claims messages for an endpoint; returns the ids that were not done before."""
    given = _CLAIMED.given(
        tx.dialect,
        id=[envelope.id for envelope in envelopes],
        run=[envelope.run for envelope in envelopes],
        attempt=[envelope.attempt for envelope in envelopes],
    )
    parameters = {"claimed_endpoint": endpoint, "claimed_worker": worker, **given}
    return {row.message_id for row in await tx.rows(_claim(tx.dialect), parameters)}


def finish(tx: Transaction, endpoint: str, finished: Sequence[Finished]) -> None:
    """Has stored for each claimed message when it was done, how long it took, and its note."""
    given = _FINISHED.given(
        tx.dialect,
        id=[one.envelope.id for one in finished],
        endpoint=[endpoint] * len(finished),
        note=[storable(one.note[:NOTE_CHARACTERS]) for one in finished],
        seconds=[one.seconds for one in finished],
    )
    tx.defer(_finish(tx.dialect), given)


def record(tx: Transaction, endpoint: str, finished: Sequence[Finished], worker: str) -> None:
    """Has messages stored as done that were not claimed: an effect that happened needs no claim, and sends nothing.

    Of two workers that did the same one, the first is remembered. Whatever an attempt of it came to elsewhere: it
    is done.
    """
    given = _RECORDED.given(
        tx.dialect,
        id=[one.envelope.id for one in finished],
        run=[one.envelope.run for one in finished],
        attempt=[one.envelope.attempt for one in finished],
        note=[storable(one.note[:NOTE_CHARACTERS]) for one in finished],
        seconds=[one.seconds for one in finished],
    )
    tx.defer(_record(tx.dialect), {"recorded_endpoint": endpoint, "recorded_worker": worker, **given})


async def release(tx: Transaction, endpoint: str, ids: Sequence[str]) -> None:
    """Takes claims back: these messages are not done."""
    if ids:
        await tx.execute(_release(tx.dialect), {"of_endpoint": endpoint, **_OF_MESSAGES.given(tx.dialect, id=ids)})


_OF_MESSAGES = Rows("of_messages", id=Id)
_CLAIMED = Rows("claimed", id=Id, run=sa.Integer(), attempt=sa.Integer())
# With its endpoint in each row. Compared with one value, an endpoint that Postgres has no statistics of yet looks rare
# to its planner, which then pairs every row of the inbox with every given one.
_FINISHED = Rows("finished", id=Id, endpoint=sa.Text(), note=sa.Text(), seconds=sa.Float())
_RECORDED = Rows("recorded", id=Id, run=sa.Integer(), attempt=sa.Integer(), note=sa.Text(), seconds=sa.Float())


# The statements are built once a dialect: building one costs more than running it.


@cache
def _claim(dialect: Dialect) -> sa.Executable:
    """The times, and the note, are those of a message that is done at once; `finish` stores the true ones."""
    given = _CLAIMED.table(dialect)
    return _insertion(dialect, "claimed", given, note=sa.literal(""), started_at=now()).returning(inbox.c.message_id)


@cache
def _record(dialect: Dialect) -> Write:
    given = _RECORDED.table(dialect)
    return _insertion(dialect, "recorded", given, note=given.c.note, started_at=now(-given.c.seconds))


def _insertion(
    dialect: Dialect,
    prefix: str,
    given: sa.FromClause,
    *,
    note: sa.ColumnElement[str],
    started_at: sa.ColumnElement[Any],
) -> sqlite.Insert | postgresql.Insert:
    """Rows of messages as far as there are none, in the order of their ids: so two workers cannot deadlock."""
    values: dict[str, sa.ColumnElement[Any]] = {
        "message_id": given.c.id,
        "endpoint": sa.bindparam(f"{prefix}_endpoint", type_=sa.String),
        "run": given.c.run,
        "attempt": given.c.attempt,
        "outcome": sa.literal("done"),
        "note": note,
        "worker": sa.bindparam(f"{prefix}_worker", type_=sa.String),
        "started_at": started_at,
        "done_at": now(),
    }
    rows = sa.select(*values.values()).where(sa.true()).order_by(given.c.id)  # SQLite's grammar needs the WHERE
    return insert(dialect, inbox).from_select(list(values), rows).on_conflict_do_nothing()


@cache
def _finish(dialect: Dialect) -> Write:
    given = _FINISHED.table(dialect)
    return (
        sa.update(inbox)
        .where(inbox.c.message_id == given.c.id, inbox.c.endpoint == given.c.endpoint)
        .values(started_at=now(-given.c.seconds), done_at=now(), note=given.c.note)
    )


@cache
def _release(dialect: Dialect) -> sa.Executable:
    return sa.delete(inbox).where(*_mine(dialect, _OF_MESSAGES))


def done(dialect: Dialect, messages: Rows) -> sa.Select[Any]:
    """The query for which of the given messages (`of_endpoint`, the `id` of the rows) the endpoint has finished.

    A message that is done is done in every run and attempt of it: their columns are NULL.
    """
    every = sa.null().label("run"), sa.null().label("attempt")
    return sa.select(inbox.c.message_id, *every).where(*_mine(dialect, messages))


def _mine(dialect: Dialect, messages: Rows) -> tuple[sa.ColumnElement[bool], ...]:
    return inbox.c.endpoint == sa.bindparam("of_endpoint"), messages.among(dialect, inbox.c.message_id)
