"""The engine's tables (SQLAlchemy Core), the same on SQLite and Postgres. docs/reference/tables.md tells their story.

`messages` never change. `outbox` has one thin row per send, so that marking never rewrites a body: `next_at`
is due time and lease in one, NULL once sent or cancelled. `inbox` holds only what is finished. Keys begin with
the message id: it serves the trace too, and keeps SQLite's planner from walking all of an endpoint's rows.
Ids are UUIDv7 and times UTC; on SQLite both are text that sorts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import functions

from hopline.errors import UsageError

metadata = sa.MetaData()

Id = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
"""A UUIDv7, always 36 characters in Python."""


def is_id(text: str) -> bool:
    """Whether a text is an id in its one spelling: Postgres would refuse a whole statement for any other."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def check_id(identifier: str) -> None:
    """UsageError if it is no id."""
    if not is_id(identifier):
        raise UsageError(f"{identifier[:50]!r} is no id; give all 36 characters, as the lists show them")


Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

SQLITE_TIME = "%Y-%m-%d %H:%M:%f"
"""SQLite's strftime format of a stored time: UTC to the millisecond."""


LAST_TIME = "9999-12-31 00:00:00+00"
"""Every later time is read as this one."""


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A timezone-aware UTC time: timestamptz on Postgres, sortable text in UTC on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Text on SQLite, whose DateTime forgets the zone."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(sa.String(27))
        return dialect.type_descriptor(sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        """Refuses naive times: they would be read in whatever zone the server has."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        if dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 - its interface
        """Always timezone-aware, in UTC."""
        if value is None:
            return None
        if isinstance(value, str):
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        aware: datetime = value
        return aware.astimezone(UTC)


class readable(functions.GenericFunction[Any]):  # noqa: N801 - an SQL function, spelled like one
    """A time as Python can hold it: Postgres knows years beyond 9999, and infinity."""

    type = UtcTime()
    name = "hopline_readable"
    inherit_cache = True


@compiles(readable)
def _readable(element: readable, compiler: Any, **options: Any) -> str:
    text: str = compiler.process(element.clauses, **options)
    return text


@compiles(readable, "postgresql")
def _readable_postgresql(element: readable, compiler: Any, **options: Any) -> str:
    text = compiler.process(element.clauses, **options)
    return f"CASE WHEN {text} > '{LAST_TIME}' THEN '{LAST_TIME}' ELSE {text} END"  # LEAST would ignore a NULL


class DueTime(UtcTime):
    """A UtcTime that is the database's clock and a delay, so that rows of a far future may exist. Read as LAST_TIME."""

    cache_ok = True

    def column_expression(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """What a query reads in place of the column."""
        return readable(column)


ERROR_CHARACTERS = 2_000
STACK_CHARACTERS = 16_000
"""As much of an error and of its stack is kept."""


def storable(text: str) -> str:
    """Text as every database can hold it: Postgres knows no NUL, and UTF-8 no half of a surrogate pair.

    Errors, notes and strangers' properties may hold anything, and must not be what a transaction fails at.
    """
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def storable_json(value: object) -> object:
    """A JSON-able value as every database can hold it; what JSON has no number for (NaN) becomes text."""
    match value:
        case str():
            return storable(value)
        case Mapping():
            return {storable(str(key)): storable_json(item) for key, item in value.items()}
        case list() | tuple():
            return [storable_json(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value


messages = sa.Table(
    "hopline_messages",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("type", sa.String(255), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("key", sa.String(255), nullable=False, index=True),
    sa.Column("correlation_id", Id, nullable=False, index=True),
    sa.Column("cause_id", Id),
    sa.Column("headers", Json, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
)

outbox = sa.Table(
    "hopline_outbox",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("message_id", Id, nullable=False, index=True),
    sa.Column("destination", sa.String(255), nullable=False, doc="a queue's name; empty: all that are bound"),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("sends", sa.Integer, nullable=False, doc="how often RabbitMQ returned it, as no queue took it"),
    sa.Column("suspect", sa.Boolean, nullable=False, server_default=sa.false(), doc="may kill its worker: runs alone"),
    sa.Column("due_at", DueTime, nullable=False, doc="when it was to be sent; later than now: scheduled"),
    sa.Column("next_at", DueTime, doc="due time and lease in one; NULL: sent or cancelled"),
    sa.Column("sent_at", UtcTime, doc="when the confirm came; NULL with next_at NULL: cancelled"),
)
sa.Index(
    "hopline_outbox_due",
    outbox.c.next_at,
    outbox.c.id,
    postgresql_where=outbox.c.next_at.is_not(None),
    sqlite_where=outbox.c.next_at.is_not(None),
)

inbox = sa.Table(
    "hopline_inbox",
    metadata,
    sa.Column("message_id", Id, primary_key=True),
    sa.Column("endpoint", sa.String(255), primary_key=True),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("note", sa.String(500), nullable=False),
    sa.Column("worker", sa.String(255), nullable=False),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("done_at", UtcTime, nullable=False),
)

attempts = sa.Table(
    "hopline_attempts",
    metadata,
    sa.Column("message_id", Id, primary_key=True),
    sa.Column("endpoint", sa.String(255), primary_key=True),
    sa.Column("run", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.String(16), nullable=False, doc="retry, defer or dead"),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("stack", sa.Text, nullable=False),
    sa.Column("worker", sa.String(255), nullable=False),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("finished_at", UtcTime, nullable=False),
)

dead_letters = sa.Table(
    "hopline_dead_letters",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("identity", sa.String(255), nullable=False, unique=True, doc="one row per thing that died"),
    sa.Column("queue", sa.String(255), nullable=False),
    sa.Column("endpoint", sa.String(255), doc="NULL when no handler of this program was found"),
    sa.Column("message_id", Id, index=True),
    sa.Column("type", sa.String(255), nullable=False, doc="empty when the properties name none"),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("key", sa.String(255), index=True),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("stack", sa.Text, nullable=False),
    sa.Column("error_type", sa.String(255), nullable=False, doc="the exception's class; empty without one"),
    sa.Column("frame", sa.String(255), nullable=False, doc="the first frame of the program's own code"),
    sa.Column("fingerprint", sa.String(12), nullable=False, doc="what died of the same cause has the same"),
    sa.Column("properties", Json, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("dead_at", UtcTime, nullable=False),
    sa.Column("resolution", sa.String(16), doc="NULL while parked; then replayed, edited or discarded"),
    sa.Column("resolved_at", UtcTime),
    sa.Column("replaced_by", Id, doc="the new message that was made from it"),
    sa.Column("unsettled", sa.String(64), doc="without an id: a hash of the content until it is acknowledged"),
)
sa.Index(
    "hopline_dead_letters_unsettled",
    dead_letters.c.unsettled,
    postgresql_where=dead_letters.c.unsettled.is_not(None),
    sqlite_where=dead_letters.c.unsettled.is_not(None),
)
sa.Index("hopline_dead_letters_parked", dead_letters.c.resolution, dead_letters.c.dead_at)
sa.Index("hopline_dead_letters_causes", dead_letters.c.resolution, dead_letters.c.fingerprint, dead_letters.c.dead_at)
sa.Index("hopline_dead_letters_latest", dead_letters.c.dead_at, dead_letters.c.id)
sa.Index(
    "hopline_dead_letters_resolved",
    dead_letters.c.resolved_at,
    postgresql_where=dead_letters.c.resolved_at.is_not(None),
    sqlite_where=dead_letters.c.resolved_at.is_not(None),
)
sa.Index("hopline_dead_letters_group", dead_letters.c.fingerprint, dead_letters.c.dead_at)

suspects = sa.Table(
    "hopline_suspects",
    metadata,
    sa.Column("message_id", Id, primary_key=True),
    sa.Column("endpoint", sa.String(255), primary_key=True),
    sa.Column("worker", sa.String(255), primary_key=True, doc="the instance that began to run it"),
    sa.Column("started_at", UtcTime, nullable=False),
)

workers = sa.Table(
    "hopline_workers",
    metadata,
    sa.Column("instance", sa.String(255), primary_key=True),
    sa.Column("role", sa.String(32), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("state", Json, nullable=False, doc="what it says of itself: queues, links, pauses, work in hand"),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("heartbeat_at", UtcTime, nullable=False),
    sa.Column("drain_at", UtcTime, doc="when an operator asked it to drain and stop"),
)

pauses = sa.Table(
    "hopline_pauses",
    metadata,
    sa.Column("queue", sa.String(255), primary_key=True),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since", UtcTime, nullable=False),
)

HISTORY_SLOTS = 23
"""Slots of a latency histogram: below 1 ms, below 2 ms, 4 ms, ..., and from 35 minutes on."""


def ran(slot: int) -> str:
    """The column of handler runs whose time is in a slot."""
    return f"ran_{slot:02}"


def aged(slot: int) -> str:
    """The column of messages that were done at an age in a slot."""
    return f"aged_{slot:02}"


history = sa.Table(
    "hopline_history",
    metadata,
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False, doc="how many seconds the row is about"),
    sa.Column("at", sa.BigInteger, primary_key=True, autoincrement=False, doc="their first, in seconds since 1970"),
    sa.Column("instance", sa.String(255), primary_key=True),
    sa.Column("endpoint", sa.String(255), primary_key=True, doc="empty: what the process sent"),
    *(
        sa.Column(name, sa.BigInteger, nullable=False)
        for name in ("done", "retried", "dead", "deferred", "accepted", "published")
    ),
    *(sa.Column(ran(slot), sa.BigInteger, nullable=False) for slot in range(HISTORY_SLOTS)),
    *(sa.Column(aged(slot), sa.BigInteger, nullable=False) for slot in range(HISTORY_SLOTS)),
)

endpoints = sa.Table(
    "hopline_endpoints",
    metadata,
    sa.Column("endpoint", sa.String(255), primary_key=True),
    sa.Column("queue", sa.String(255), primary_key=True),
    sa.Column("type", sa.String(255), primary_key=True),
    sa.Column(
        "version",
        sa.Integer,
        primary_key=True,
        autoincrement=False,
        server_default=sa.text("0"),
        doc="0: registered before versions were kept",
    ),
    sa.Column("since", UtcTime, nullable=False, doc="when it was registered, before anything was bound to its queue"),
    sa.Column("declared_at", UtcTime, doc="when its queue was first declared; NULL: not known to exist yet"),
)

queue_losses = sa.Table(
    "hopline_queue_losses",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("queue", sa.String(255), nullable=False),
    sa.Column("found_by", sa.String(255), nullable=False),
    sa.Column("lost_at", UtcTime, nullable=False, doc="when it was found missing or made anew"),
    sa.Column("rescheduled", sa.Integer, nullable=False, doc="sends that were in it and are scheduled again"),
    sa.Column("recovered_at", UtcTime, doc="NULL while sends from before may still turn up"),
)

idempotency = sa.Table(
    "hopline_idempotency",
    metadata,
    sa.Column("scope", sa.String(255), primary_key=True, doc="caller and route"),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False, index=True),
)

audit_log = sa.Table(
    "hopline_audit_log",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("target", sa.String(255), nullable=False, index=True, doc="what it was done to: dead-letter ID, send ID"),
    sa.Column("before_hash", sa.String(64)),
    sa.Column("after_hash", sa.String(64)),
    sa.Column("reason", sa.Text, nullable=False),
)
sa.Index("hopline_audit_log_who", audit_log.c.who, audit_log.c.id)
sa.Index("hopline_audit_log_action", audit_log.c.action, audit_log.c.id)
