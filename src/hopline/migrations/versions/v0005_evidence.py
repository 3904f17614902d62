"""0005: endpoints know the versions they handle, and since when their queue exists.

One endpoint may handle several versions of a type, and may have moved from one queue or type to another: each is a
row of its own. The rows that are there were written when their queue was declared. Their version is not known: it is 0.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hopline.migrations.columns import Time

revision = "0005"
down_revision = "0004"

NAME = "hopline_endpoints"
KEY = ("endpoint", "queue", "type", "version")


def upgrade() -> None:
    """From 0004."""
    op.add_column(NAME, sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column(NAME, sa.Column("declared_at", Time))
    _key()
    table = sa.table(NAME, sa.column("since", Time), sa.column("declared_at", Time))
    op.execute(sa.update(table).values(declared_at=table.c.since))


def _key() -> None:
    """SQLite cannot change a key, so there the table is made anew."""
    if op.get_context().dialect.name == "postgresql":
        op.drop_constraint(f"{NAME}_pkey", NAME)
        op.create_primary_key(f"{NAME}_pkey", NAME, list(KEY))
        return
    wanted = sa.Table(
        NAME,
        sa.MetaData(),
        *(sa.Column(column, sa.String(255), primary_key=True) for column in KEY[:3]),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False, server_default=sa.text("0")),
        sa.Column("since", Time, nullable=False),
        sa.Column("declared_at", Time),
    )
    with op.batch_alter_table(NAME, recreate="always", copy_from=wanted):
        pass
