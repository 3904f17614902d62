"""From whatever version a database is at to today's, in the caller's transaction.

Alembic is imported only when there is an old database to be altered: it costs 0.1 s, which is much for a role's start.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from hopline import schema
from hopline.errors import UsageError
from hopline.migrations import append_only, storage
from hopline.migrations.state import HEAD, check_known, read, versions

ONE_AT_A_TIME = 7072276701
"""The key of the Postgres advisory lock that a migration holds: two at once would race on the catalog."""

_alembic_is_busy = threading.Lock()
"""Alembic's context is one per process."""


@dataclass(frozen=True, slots=True)
class Migration:
    """What was done to a database."""

    before: str | None
    """The version that it had; None: it had no tables of the engine."""
    after: str
    tables: tuple[str, ...] = ()
    """The program's own tables that were made."""


def migrate(connection: sa.Connection, *programs: sa.MetaData) -> Migration:
    """Brings the engine's tables to today's version, and makes the programs' tables that are missing.

    UsageError if the database is of a later version than this code; nothing is changed then.
    """
    state = read(connection)
    check_known(state)
    if state.version is None:
        _make(connection)
    elif state.version != HEAD:
        _upgrade(connection, state.version, stamped=state.stamped)
    made = tuple(sorted(name for program in programs for name in program.tables if name not in state.tables))
    if made:
        for program in programs:
            program.create_all(connection)
    return Migration(state.version, HEAD, made)


def _make(connection: sa.Connection) -> None:
    """All tables of today, at once."""
    schema.metadata.create_all(connection)
    append_only.enforce(connection)
    storage.set_options(connection)
    versions.create(connection, checkfirst=True)
    connection.execute(sa.insert(versions).values(version_num=HEAD))


def _upgrade(connection: sa.Connection, before: str, *, stamped: bool) -> None:
    """Walks through versions/ from the database's version on."""
    from alembic import command  # noqa: PLC0415 - see this module's docstring
    from alembic.config import Config  # noqa: PLC0415

    if not _alembic_is_busy.acquire(blocking=False):
        raise UsageError("this process is migrating another database; migrate one after the other")
    try:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        config.attributes["connection"] = connection
        if not stamped:
            command.stamp(config, before)
        command.upgrade(config, HEAD)
    finally:
        _alembic_is_busy.release()
