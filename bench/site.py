"""Where all sides of a benchmark run: one RabbitMQ node, one Postgres server and one mail sink, all private.

Each side gets a virtual host, a database and a folder of its own in each round and finds nothing there; what it
leaves behind is removed before the next one starts. The sink is postfix's smtp-sink: it takes a mail in some 20 µs
and throws it away, so that it is nobody's bottleneck.
"""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import psutil
from tests.support.postgres import Postgres, find_postgres

from bench.processes import Group, stop_leftover
from bench.programs import FOLDER, find
from hopline import Node, free_ports
from hopline.amqp import connect

WATERMARK: Final = "4GB"
"""Of the broker's memory: no alarm blocks a publisher in the middle of a run."""
SETTINGS: Final = {"max_wal_size": "4GB", "track_commit_timestamp": "on"}
"""Postgres: no checkpoint that was forced by size, and the time of each commit as the server knows it."""
SINK_BACKLOG: Final = 1000
TAIL_BYTES: Final = 200
SCRIPT_SECONDS: Final = 1800


class Sink:
    """postfix's smtp-sink, and how many mails it has taken."""

    def __init__(self, folder: Path) -> None:
        self.port = free_ports(1)[0]
        self._counters = folder / "sink"
        self._group = Group(self._counters)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._group.roles["smtp"][0]

    @property
    def url(self) -> str:
        """For ORDERS_SMTP_URL."""
        return f"smtp://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it listens."""
        program = find("smtp-sink")
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        command = [program.path, "-c", *user, f"127.0.0.1:{self.port}", SINK_BACKLOG]
        pid = self._group.start("smtp", command, program.environment)
        (self._counters / "pid").write_text(str(pid))  # its change of user takes away that it dies with its parent
        self._group.wait_for(lambda: _listens(pid), "the mail sink listens")

    def stop(self) -> None:
        """Ends it."""
        self._group.stop()

    def mails(self) -> int:
        """How many it has taken since its start: with -c it writes the counters down after each one."""
        with (self._counters / "smtp.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            counters = log.read().decode(errors="replace").split("\r")
        complete = [one for one in counters[1:-1] if "mesg=" in one]
        return int(complete[-1].rpartition("mesg=")[2]) if complete else 0


@dataclass(frozen=True, slots=True)
class Stand:
    """What one side has to itself in one round."""

    name: str
    folder: Path
    broker_url: str
    """AMQP, with its own virtual host."""
    database_url: str
    """SQLAlchemy's, asyncpg or aiosqlite."""
    smtp_url: str
    vhost: str

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file."""
        return self.database_url.startswith("sqlite")

    @property
    def database_file(self) -> Path:
        """SQLite's."""
        return self.folder / "orders.db"


class Site:
    """The running servers. Made by `running()`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = Node(folder / "rabbitmq", management=False)
        self.postgres = Postgres(folder / "postgres")
        self.sink = Sink(folder)

    @property
    def roles(self) -> dict[str, list[int]]:
        """The pids of the servers."""
        assert self.node.pid is not None
        postmaster = int(_postmaster_file(self.folder).read_text().split()[0])
        return {"postgres": [postmaster], "rabbitmq": [self.node.pid], "smtp": [self.sink.pid]}

    @property
    def versions(self) -> dict[str, str]:
        """Of the servers."""
        return {"rabbitmq": self.node.version, "postgres": self.postgres.execute("SHOW server_version").split()[0]}

    @contextmanager
    def stand(self, name: str, *, sqlite: bool = False) -> Iterator[Stand]:
        """An empty virtual host, an empty database and an empty folder; removed at the end."""
        folder = self.folder / "stands" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.node.ctl("add_vhost", name)
        self.node.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        broker_url = self.node.url.replace("%2F", name)
        stand = Stand(name, folder, broker_url, self._database(name, folder, sqlite=sqlite), self.sink.url, name)
        try:
            yield stand
        finally:
            self.node.ctl("delete_vhost", name, timeout_seconds=120)
            if not sqlite:
                self.postgres.drop_database(name)
            shutil.rmtree(folder, ignore_errors=True)

    def _database(self, name: str, folder: Path, *, sqlite: bool) -> str:
        if sqlite:
            return f"sqlite+aiosqlite:///{folder / 'orders.db'}"
        self.postgres.drop_database(name)
        return self.postgres.create_database(name)

    def query(self, stand: Stand, statement: str) -> list[list[str]]:
        """The rows of a query as text, on a connection of its own."""
        if stand.is_sqlite:
            with closing(sqlite3.connect(stand.database_file, timeout=30)) as connection:
                return [[str(value) for value in row] for row in connection.execute(statement)]
        return asyncio.run(_fetch(stand.database_url, statement))

    def script(self, stand: Stand, statements: str) -> None:
        """Runs statements on a Postgres database, in one transaction where that can be."""
        asyncio.run(_execute(stand.database_url, statements))

    def settle(self, stand: Stand) -> None:
        """As a minute later: Postgres has the statistics that autovacuum would have made, and all is written."""
        if not stand.is_sqlite:
            self.script(stand, "VACUUM ANALYZE")
        self.postgres.execute("CHECKPOINT")
        os.sync()

    def waiting(self, stand: Stand, queues: list[str]) -> int:
        """How many messages are ready in the queues of a stand."""
        return asyncio.run(_ready(stand.broker_url, queues))


async def _ready(url: str, queues: list[str]) -> int:
    async with await connect(url, name="bench") as connection:
        channel = await connection.channel()
        return sum([(await channel.declare_queue(queue, passive=True)).messages for queue in queues])


async def _fetch(url: str, statement: str) -> list[list[str]]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return [[str(value) for value in row] for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def _execute(url: str, statements: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        await connection.execute(statements, timeout=SCRIPT_SECONDS)
    finally:
        await connection.close()


@contextmanager
def running() -> Iterator[Site]:
    """Servers with nothing in them, below .hopline/bench; stopped at the end."""
    if find_postgres() is None:
        raise SystemExit("bench: Postgres is not installed: apt-get install postgresql, or brew install postgresql")
    folder = FOLDER / "site"
    _clear(folder)
    folder.mkdir(parents=True)
    site = Site(folder)
    with ExitStack() as stack:
        stack.callback(site.sink.stop)
        site.sink.start()
        stack.callback(site.node.stop)
        site.node.start()
        site.node.ctl("set_vm_memory_high_watermark", "absolute", WATERMARK)
        stack.callback(site.postgres.stop)
        site.postgres.start()
        for name, value in SETTINGS.items():
            site.postgres.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        site.postgres.restart()
        yield site


def _clear(folder: Path) -> None:
    """Removes what an earlier run has left, after stopping what a killed one has left running."""
    if (folder / "rabbitmq").exists():
        Node(folder / "rabbitmq").remove()
    stop_leftover(_postmaster_file(folder), str(folder))
    stop_leftover(folder / "sink" / "pid", "smtp-sink")
    shutil.rmtree(folder, ignore_errors=True)


def _postmaster_file(folder: Path) -> Path:
    return folder / "postgres" / "data" / "postmaster.pid"


def _listens(pid: int) -> bool:
    return any(each.status == psutil.CONN_LISTEN for each in psutil.Process(pid).net_connections())
