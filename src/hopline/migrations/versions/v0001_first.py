"""0001: messages, outbox, inbox, attempts, dead letters, and what the audit and idempotent requests need."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hopline.migrations.columns import Id, Json, Time

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    _messages()
    _outbox()
    _results()
    _dead_letters()
    _processes()
    _records()


def _messages() -> None:
    op.create_table(
        "hopline_messages",
        sa.Column("id", Id, primary_key=True),
        sa.Column("type", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("key", sa.String(255), nullable=False, index=True),
        sa.Column("correlation_id", Id, nullable=False, index=True),
        sa.Column("cause_id", Id),
        sa.Column("headers", Json, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("created_at", Time, nullable=False),
    )


def _outbox() -> None:
    op.create_table(
        "hopline_outbox",
        sa.Column("id", Id, primary_key=True),
        sa.Column("message_id", Id, nullable=False, index=True),
        sa.Column("destination", sa.String(255), nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("sends", sa.Integer, nullable=False),
        sa.Column("next_at", Time),
        sa.Column("sent_at", Time),
    )
    unsent = sa.text("next_at IS NOT NULL")
    op.create_index(
        "hopline_outbox_due", "hopline_outbox", ["next_at", "id"], postgresql_where=unsent, sqlite_where=unsent
    )


def _results() -> None:
    op.create_table(
        "hopline_inbox",
        sa.Column("message_id", Id, primary_key=True),
        sa.Column("endpoint", sa.String(255), primary_key=True),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("note", sa.String(500), nullable=False),
        sa.Column("worker", sa.String(255), nullable=False),
        sa.Column("started_at", Time, nullable=False),
        sa.Column("done_at", Time, nullable=False),
    )
    op.create_table(
        "hopline_attempts",
        sa.Column("message_id", Id, primary_key=True),
        sa.Column("endpoint", sa.String(255), primary_key=True),
        sa.Column("run", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("stack", sa.Text, nullable=False),
        sa.Column("worker", sa.String(255), nullable=False),
        sa.Column("started_at", Time, nullable=False),
        sa.Column("finished_at", Time, nullable=False),
    )


def _dead_letters() -> None:
    op.create_table(
        "hopline_dead_letters",
        sa.Column("id", Id, primary_key=True),
        sa.Column("fingerprint", sa.String(255), nullable=False, unique=True),
        sa.Column("queue", sa.String(255), nullable=False),
        sa.Column("endpoint", sa.String(255)),
        sa.Column("message_id", Id, index=True),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("key", sa.String(255), index=True),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("stack", sa.Text, nullable=False),
        sa.Column("properties", Json, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("dead_at", Time, nullable=False),
        sa.Column("resolution", sa.String(16)),
        sa.Column("resolved_at", Time),
    )


def _processes() -> None:
    op.create_table(
        "hopline_suspects",
        sa.Column("endpoint", sa.String(255), primary_key=True),
        sa.Column("message_id", Id, primary_key=True),
        sa.Column("worker", sa.String(255), primary_key=True),
        sa.Column("started_at", Time, nullable=False),
    )
    op.create_table(
        "hopline_workers",
        sa.Column("instance", sa.String(255), primary_key=True),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("queues", sa.Text, nullable=False),
        sa.Column("started_at", Time, nullable=False),
        sa.Column("heartbeat_at", Time, nullable=False),
    )


def _records() -> None:
    op.create_table(
        "hopline_endpoints",
        sa.Column("endpoint", sa.String(255), primary_key=True),
        sa.Column("queue", sa.String(255), nullable=False),
        sa.Column("type", sa.String(255), nullable=False),
        sa.Column("since", Time, nullable=False),
    )
    op.create_table(
        "hopline_idempotency",
        sa.Column("scope", sa.String(255), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("response", sa.Text, nullable=False),
        sa.Column("created_at", Time, nullable=False),
    )
    op.create_table(
        "hopline_audit_log",
        sa.Column("id", Id, primary_key=True),
        sa.Column("at", Time, nullable=False),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(255), nullable=False),
        sa.Column("before_hash", sa.String(64)),
        sa.Column("after_hash", sa.String(64)),
        sa.Column("reason", sa.Text, nullable=False),
    )
