"""Outages of one Postgres database that an operator or a failover makes, with a role of its own that they shut out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from tests.support.postgres import Postgres

STATES = {
    "read-only": "ALTER DATABASE {name} SET default_transaction_read_only = on",  # 25006, as after a failover
    "no login": "ALTER ROLE {name} NOLOGIN",  # 28000
    "closed": "ALTER DATABASE {name} ALLOW_CONNECTIONS false",  # 55000
    "no connections": "ALTER ROLE {name} CONNECTION LIMIT 0",  # 53300
    "gone": "ALTER DATABASE {name} RENAME TO {name}_moved",  # 3D000
}
_ENDS = {
    "read-only": "ALTER DATABASE {name} RESET default_transaction_read_only",
    "no login": "ALTER ROLE {name} LOGIN",
    "closed": "ALTER DATABASE {name} ALLOW_CONNECTIONS true",
    "no connections": "ALTER ROLE {name} CONNECTION LIMIT -1",
    "gone": "ALTER DATABASE {name}_moved RENAME TO {name}",
}


class Outage:
    """A database whose outages `begin` and `end`."""

    def __init__(self, server: Postgres, name: str, state: str) -> None:
        self._server, self._name, self._state = server, name, state
        self.url = sa.make_url(server.url_of(name)).set(username=name).render_as_string()

    def begin(self) -> None:
        """From now on, also for those who are connected: their sessions end."""
        if self._state == "gone":
            self._end_sessions()
        self._server.execute(STATES[self._state].format(name=self._name))
        self._end_sessions()

    def end(self) -> None:
        """It works again."""
        self._server.execute(_ENDS[self._state].format(name=self._name))

    def _end_sessions(self) -> None:
        self._server.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
            f"WHERE datname LIKE '{self._name}%' AND pid <> pg_backend_pid()"
        )


@contextmanager
def outage(server: Postgres, url: str, state: str) -> Iterator[Outage]:
    """For the database of a URL, which gets a role of the same name."""
    name = str(sa.make_url(url).database)
    server.execute(f"CREATE ROLE {name} LOGIN")
    server.execute(f"ALTER DATABASE {name} OWNER TO {name}")
    try:
        yield Outage(server, name, state)
    finally:
        server.execute(f"ALTER DATABASE {name} OWNER TO postgres")
        server.drop_database(name)
        server.execute(f"DROP ROLE {name}")
