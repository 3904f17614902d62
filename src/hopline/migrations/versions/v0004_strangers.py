"""0004: dead letters of messages without an id are told apart by their deliveries, not by their content."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """From 0003."""
    op.add_column("hopline_dead_letters", sa.Column("unsettled", sa.String(64)))
    is_unsettled = sa.text("unsettled IS NOT NULL")
    op.create_index(
        "hopline_dead_letters_unsettled",
        "hopline_dead_letters",
        ["unsettled"],
        postgresql_where=is_unsettled,
        sqlite_where=is_unsettled,
    )
