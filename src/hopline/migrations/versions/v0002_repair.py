"""0002: due times, suspects, causes of dead letters, what processes say of themselves, lost queues, a closed log.

Values for the rows that are there: a send was due when it is due now, or else was sent, or else was made. A letter
has its message's type, or the one that its properties name, and is of the same cause as all others of its reason
and type, as it is without an exception. A process has said nothing of itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from hopline.clock import id_time
from hopline.migrations import append_only
from hopline.migrations.columns import Id, Json, Time

revision = "0002"
down_revision = "0001"

BATCH_ROWS = 1_000
NO_ID = "00000000-0000-0000-0000-000000000000"

outbox = sa.table(
    "hopline_outbox", sa.column("id", Id), *(sa.column(name, Time) for name in ("due_at", "next_at", "sent_at"))
)
messages = sa.table("hopline_messages", sa.column("id", Id), sa.column("type"), sa.column("version"))
dead_letters = sa.table(
    "hopline_dead_letters",
    sa.column("id", Id),
    sa.column("message_id", Id),
    sa.column("properties", Json),
    *(sa.column(name, sa.String) for name in ("type", "reason", "error_type", "frame", "fingerprint")),
    sa.column("version", sa.Integer),
)
workers = sa.table("hopline_workers", sa.column("version", sa.String), sa.column("state", Json))


def upgrade() -> None:
    """From 0001."""
    _outbox()
    _dead_letters()
    _suspects()
    _workers()
    _queue_losses()
    op.create_index("ix_hopline_idempotency_created_at", "hopline_idempotency", ["created_at"])
    op.create_index("ix_hopline_audit_log_target", "hopline_audit_log", ["target"])
    append_only.enforce(op.get_bind())


def _outbox() -> None:
    op.add_column("hopline_outbox", sa.Column("suspect", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("hopline_outbox", sa.Column("due_at", Time))
    op.execute(sa.update(outbox).values(due_at=sa.func.coalesce(outbox.c.next_at, outbox.c.sent_at)))
    _fill(outbox, "due_at", _made_at, where=outbox.c.due_at.is_(None))
    _require("hopline_outbox", "due_at")


def _made_at(row: sa.Row[Any]) -> object:
    moment = id_time(row.id)
    if op.get_context().dialect.name == "postgresql":
        return moment
    return moment.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")


def _dead_letters() -> None:
    name = "hopline_dead_letters"
    op.execute(f"ALTER TABLE {name} RENAME COLUMN fingerprint TO identity")
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE {name} RENAME CONSTRAINT {name}_fingerprint_key TO {name}_identity_key")
    op.add_column(name, sa.Column("type", sa.String(255)))
    op.add_column(name, sa.Column("version", sa.Integer))
    op.add_column(name, sa.Column("error_type", sa.String(255)))
    op.add_column(name, sa.Column("frame", sa.String(255)))
    op.add_column(name, sa.Column("fingerprint", sa.String(12)))
    op.add_column(name, sa.Column("replaced_by", Id))
    _fill_dead_letters()
    _require(name, "type", "version", "error_type", "frame", "fingerprint")
    op.create_index("hopline_dead_letters_parked", name, ["resolution", "dead_at"])
    op.create_index("hopline_dead_letters_group", name, ["fingerprint", "dead_at"])


def _fill_dead_letters() -> None:
    def of_message(column: str) -> sa.ScalarSelect[Any]:
        return sa.select(messages.c[column]).where(messages.c.id == dead_letters.c.message_id).scalar_subquery()

    named = sa.func.substr(dead_letters.c.properties["type"].as_string(), 1, 255)
    op.execute(
        sa.update(dead_letters).values(
            type=sa.func.coalesce(of_message("type"), named, ""),
            version=sa.func.coalesce(of_message("version"), 0),
            error_type="",
            frame="",
        )
    )
    _fill(dead_letters, "fingerprint", _fingerprint, "reason", "type")


def _fingerprint(row: sa.Row[Any]) -> object:
    return hashlib.sha256(f"{row.reason}\n{row.type}".encode()).hexdigest()[:12]


def _suspects() -> None:
    """The key begins with the message id: SQLite cannot change a key, so there the table is made anew."""
    name, key = "hopline_suspects", ("message_id", "endpoint", "worker")
    if op.get_context().dialect.name == "postgresql":
        op.drop_constraint(f"{name}_pkey", name)
        op.create_primary_key(f"{name}_pkey", name, list(key))
        return
    kinds = (Id, sa.String(255), sa.String(255))
    columns = [sa.Column(column, kind, primary_key=True) for column, kind in zip(key, kinds, strict=True)]
    wanted = sa.Table(name, sa.MetaData(), *columns, sa.Column("started_at", Time, nullable=False))
    with op.batch_alter_table(name, recreate="always", copy_from=wanted):
        pass


def _workers() -> None:
    name = "hopline_workers"
    op.add_column(name, sa.Column("version", sa.String(64)))
    op.add_column(name, sa.Column("state", Json))
    op.execute(sa.update(workers).values(version="", state={}))
    _require(name, "version", "state")
    op.drop_column(name, "queues")


def _queue_losses() -> None:
    op.create_table(
        "hopline_queue_losses",
        sa.Column("id", Id, primary_key=True),
        sa.Column("queue", sa.String(255), nullable=False),
        sa.Column("found_by", sa.String(255), nullable=False),
        sa.Column("lost_at", Time, nullable=False),
        sa.Column("rescheduled", sa.Integer, nullable=False),
        sa.Column("recovered_at", Time),
    )


def _require(table: str, *columns: str) -> None:
    """Columns that are filled become NOT NULL; on SQLite that makes the table anew."""
    with op.batch_alter_table(table) as batch:
        for column in columns:
            batch.alter_column(column, nullable=False)


def _fill(
    table: sa.TableClause,
    column: str,
    value: Callable[[sa.Row[Any]], object],
    *given: str,
    where: sa.ColumnElement[bool] | None = None,
) -> None:
    """Fills a column with what Python makes of a row's id and `given`, in batches along the ids."""
    connection, last = op.get_bind(), NO_ID
    names = ("id", *given)
    query = sa.select(*(table.c[name] for name in names)).order_by(table.c.id).limit(BATCH_ROWS)
    if where is not None:
        query = query.where(where)
    update = sa.update(table).where(table.c.id == sa.bindparam("of")).values({column: sa.bindparam("to")})
    while rows := _all(connection, query.where(table.c.id > last)):
        connection.execute(update, [{"of": row.id, "to": value(row)} for row in rows])
        last = rows[-1].id


def _all(connection: sa.Connection, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
    return connection.execute(query).fetchall()
