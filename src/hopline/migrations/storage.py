"""How Postgres keeps the tables whose rows are written twice within a moment.

Part of version 0003. An inbox row is claimed, and finished in the same transaction: with room left on its page the
second one needs no new entries in the index (heap-only tuples, Postgres documentation 73.7). A send leaves the index
of what is due when it is confirmed: its dead entries stand where every look begins, so they go after each fiftieth of
the table, not after each fifth.
"""

from __future__ import annotations

import sqlalchemy as sa

OPTIONS = {
    "hopline_inbox": {"fillfactor": "60"},
    "hopline_outbox": {"autovacuum_vacuum_scale_factor": "0.02", "autovacuum_analyze_scale_factor": "0.02"},
}


def set_options(connection: sa.Connection) -> None:
    """On Postgres; SQLite has no such thing."""
    if connection.dialect.name == "postgresql":
        for table, options in OPTIONS.items():
            given = ", ".join(f"{name} = {value}" for name, value in options.items())
            connection.exec_driver_sql(f"ALTER TABLE {table} SET ({given})")
