"""Triggers that let nobody change or delete a row of the audit log, on either database.

Part of version 0002. What they do is never changed here: that would be a new version.
"""

from __future__ import annotations

import sqlalchemy as sa

# INSERT OR REPLACE deletes without asking the trigger on DELETE (sqlite.org/lang_conflict.html).
_SQLITE = (
    """
    CREATE TRIGGER IF NOT EXISTS hopline_audit_log_update BEFORE UPDATE ON hopline_audit_log
    BEGIN SELECT RAISE(ABORT, 'hopline_audit_log: rows are only ever added'); END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS hopline_audit_log_delete BEFORE DELETE ON hopline_audit_log
    BEGIN SELECT RAISE(ABORT, 'hopline_audit_log: rows are only ever added'); END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS hopline_audit_log_replace BEFORE INSERT ON hopline_audit_log
    WHEN EXISTS (SELECT 1 FROM hopline_audit_log WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'hopline_audit_log: rows are only ever added'); END
    """,
)
_POSTGRESQL = (
    """
    CREATE OR REPLACE FUNCTION hopline_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'hopline_audit_log: rows are only ever added' USING ERRCODE = 'restrict_violation';
    END $$
    """,
    "DROP TRIGGER IF EXISTS hopline_audit_log_append_only ON hopline_audit_log",
    """
    CREATE TRIGGER hopline_audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON hopline_audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION hopline_refuse()
    """,
)


def enforce(connection: sa.Connection) -> None:
    """Makes the triggers, or makes them again."""
    for statement in _POSTGRESQL if connection.dialect.name == "postgresql" else _SQLITE:
        connection.exec_driver_sql(statement)
