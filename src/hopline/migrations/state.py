"""Which version a database is at, and what that means for a program that wants to use it.

Alembic keeps the version in a table of one row. Tables that were made before there was that table are recognised
by what they have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version

import sqlalchemy as sa

from hopline.errors import UsageError

VERSIONS = ("0001", "0002", "0003", "0004", "0005")
"""All that this code knows, oldest first: the revisions of the files in versions/."""
HEAD = VERSIONS[-1]
VERSION_TABLE = "hopline_alembic_version"

versions = sa.Table(
    VERSION_TABLE,
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)
"""As Alembic makes it."""

_TELLING = "hopline_outbox"
"""A table that every version has, and its column `due_at` that came with 0002."""


@dataclass(frozen=True, slots=True)
class State:
    """What a database has."""

    tables: frozenset[str]
    version: str | None
    """None: it has no tables of the engine."""
    stamped: bool
    """Whether the database says so itself; else it was recognised."""


def read(connection: sa.Connection) -> State:
    """The state of a database."""
    inspector = sa.inspect(connection)
    tables = frozenset(inspector.get_table_names())
    stamp = connection.scalar(sa.select(versions.c.version_num)) if VERSION_TABLE in tables else None
    if stamp is not None or _TELLING not in tables:
        return State(tables, stamp, stamped=stamp is not None)
    columns = {column["name"] for column in inspector.get_columns(_TELLING)}
    return State(tables, "0002" if "due_at" in columns else "0001", stamped=False)


def check(state: State, wanted: Iterable[str]) -> None:
    """UsageError if a program that also needs the tables `wanted` cannot use this database as it is."""
    check_known(state)
    if state.version is None:
        raise UsageError(f"the database has no tables of Hopline; {_ADVICE}")
    if state.version != HEAD:
        raise UsageError(f"the database's tables are of version {state.version}, and {HEAD} is needed; {_ADVICE}")
    if not state.stamped:
        raise UsageError(f"the database's tables were made before versions of them were kept; {_ADVICE}")
    missing = [table for table in wanted if table not in state.tables]
    if missing:
        raise UsageError(f"the database has no table {missing[0]!r}; {_ADVICE}")


def check_known(state: State) -> None:
    """UsageError if the database was migrated by a later Hopline."""
    if state.version not in (None, *VERSIONS):
        raise UsageError(
            f"the database's tables are of version {state.version}, which this Hopline ({version('hopline')}) does not "
            f"know: it knows {HEAD} and older. Run the Hopline that migrated it or a later one, or restore the backup "
            "from before; there is no other way back"
        )


_ADVICE = "run `hopline migrate` with the same HOPLINE_DATABASE_URL first"
