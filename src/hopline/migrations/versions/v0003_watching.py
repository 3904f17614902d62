"""0003: pauses, requests to drain, the history of rates and latencies, indexes and storage for tables of any size.

Tables that were made at 0002 before versions were kept may lack what came last with it: it is made here too.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hopline.migrations import append_only, storage
from hopline.migrations.columns import Time

revision = "0003"
down_revision = "0002"

SLOTS = 23


def upgrade() -> None:
    """From 0002."""
    op.add_column("hopline_workers", sa.Column("drain_at", Time))
    op.create_table(
        "hopline_pauses",
        sa.Column("queue", sa.String(255), primary_key=True),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since", Time, nullable=False),
    )
    _history()
    _indexes()
    append_only.enforce(op.get_bind())
    storage.set_options(op.get_bind())


def _history() -> None:
    counts = ("done", "retried", "dead", "deferred", "accepted", "published")
    slots = [f"{kind}_{slot:02}" for kind in ("ran", "aged") for slot in range(SLOTS)]
    op.create_table(
        "hopline_history",
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("instance", sa.String(255), primary_key=True),
        sa.Column("endpoint", sa.String(255), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in (*counts, *slots)),
    )


def _indexes() -> None:
    letters, log = "hopline_dead_letters", "hopline_audit_log"
    op.create_index("hopline_dead_letters_causes", letters, ["resolution", "fingerprint", "dead_at"])
    op.create_index("hopline_dead_letters_latest", letters, ["dead_at", "id"])
    is_resolved = sa.text("resolved_at IS NOT NULL")
    op.create_index(
        "hopline_dead_letters_resolved",
        letters,
        ["resolved_at"],
        postgresql_where=is_resolved,
        sqlite_where=is_resolved,
    )
    op.create_index("hopline_audit_log_who", log, ["who", "id"])
    op.create_index("hopline_audit_log_action", log, ["action", "id"])
    op.create_index("ix_hopline_idempotency_created_at", "hopline_idempotency", ["created_at"], if_not_exists=True)
    op.create_index("ix_hopline_audit_log_target", log, ["target"], if_not_exists=True)
