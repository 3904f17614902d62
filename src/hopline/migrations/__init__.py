"""The engine's tables from version to version, on SQLite and Postgres. Database.create runs them.

versions/ holds one file per version, written once and never changed: it takes a database from the version before,
rows included. A database without tables does not walk that road: it gets today's tables (schema.py) at once, and a
test proves both ways equal. Everything happens in the caller's transaction, under the caller's lock. A program's
own tables are not known here.
"""

from hopline.migrations.migrating import ONE_AT_A_TIME, Migration, migrate
from hopline.migrations.state import HEAD, VERSION_TABLE, VERSIONS, State, check, read

__all__ = [
    "HEAD",
    "ONE_AT_A_TIME",
    "VERSIONS",
    "VERSION_TABLE",
    "Migration",
    "State",
    "check",
    "migrate",
    "read",
]
