"""A private Postgres server in one folder: own port, own data, TCP on 127.0.0.1 only, fsync on.

    with Postgres(folder) as postgres:
        url = postgres.create_database("orders")

It uses the programs of an installed Postgres and nothing of the machine's own servers. Postgres refuses to run
as root; as root, the server runs as the user `postgres` or `nobody`, who is given the folder.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hopline.node import free_ports

SUPERUSER = "postgres"
POLL_SECONDS = 0.02
_LIMIT_FILES = 'ulimit -f "$0" && exec "$@"'
"""For sh: no file of the program may exceed so many blocks of 512 bytes (POSIX, ulimit)."""
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path may have 107 characters only
    "fsync": "on",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "mmap",  # a container's /dev/shm may be small or missing
    "timezone": "UTC",
}


class PostgresError(Exception):
    """The server did not do what was asked; the text has the end of its log."""


def find_postgres() -> Path | None:
    """The folder of initdb and postgres (Debian's newest, else PATH, else brew), None if not installed."""
    debian = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").is_file()]
    if debian:
        return max(debian, key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0))
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    brew = [Path(prefix) for prefix in ("/opt/homebrew/opt", "/usr/local/opt")]
    found_by_brew = [path for prefix in brew for path in prefix.glob("postgresql*/bin") if (path / "initdb").is_file()]
    return max(found_by_brew, default=None)


class Postgres:
    """A Postgres server. Methods block. The owner calls `stop` (or leaves the `with` block)."""

    def __init__(self, folder: Path, *, programs: Path | None = None) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self._programs = programs or find_postgres()
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the database that every server has."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql+asyncpg://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def start(self, timeout_seconds: float = 60, *, file_bytes: int | None = None) -> None:
        """Returns when a query succeeds; does nothing if it runs. After `kill`, it recovers first.

        `file_bytes`, a multiple of 512, is what no file of the server may exceed (RLIMIT_FSIZE): a full disk to it.
        """
        if self._server is not None and self._server.poll() is None:
            return
        self._make_folder()
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._server = self._launch(file_bytes)
            while self._server.poll() is None and time.monotonic() < deadline:
                if self._answers():
                    return
                time.sleep(POLL_SECONDS)
            if time.monotonic() >= deadline or "still in use" not in self._log_tail():
                self.stop()
                raise PostgresError(f"Postgres did not start.\n{self._log_tail()}")
            # The processes of a server that was killed take a moment to notice.

    def stop(self, timeout_seconds: float = 30) -> None:
        """A fast shutdown: clients are disconnected, data is written. Idempotent."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGCONT)
        self._server.send_signal(signal.SIGINT)
        try:
            self._server.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._server = None

    def kill(self) -> None:
        """SIGKILL, as a crash would. `start` afterwards recovers on the same port."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def quit(self) -> None:
        """An immediate shutdown (`pg_ctl stop -m immediate`): each session ends at once, and `start` recovers."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(30)
            self._server = None

    def restart(self, *, file_bytes: int | None = None) -> None:
        """Stops and starts; see `start`."""
        self.stop()
        self.start(file_bytes=file_bytes)

    def create_database(self, name: str) -> str:
        """A new, empty database; gives its SQLAlchemy URL."""
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Disconnects whoever uses it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str) -> str:
        """Runs one statement as superuser and gives psql's bare output."""
        done = self._psql(statement)
        if done.returncode != 0:
            raise PostgresError(f"{statement}: {done.stderr.strip()}")
        return done.stdout.strip()

    def _psql(self, statement: str) -> subprocess.CompletedProcess[str]:
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", SUPERUSER, "-d", "postgres"]
        return subprocess.run(
            [self._program("psql"), "-XAtq", *address, "-c", statement],
            env={**os.environ, "PGCONNECT_TIMEOUT": "5"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def _answers(self) -> bool:
        return self._psql("SELECT 1").returncode == 0

    def _program(self, name: str) -> str:
        if self._programs is None:
            raise PostgresError("Postgres is not installed: apt-get install postgresql, or brew install postgresql")
        return str(self._programs / name)

    def _make_folder(self) -> None:
        if (self.folder / "data" / "PG_VERSION").exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        other = _other_user()
        if other is not None:
            os.chown(self.folder, other.pw_uid, other.pw_gid)
        options = ["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        done = subprocess.run(
            [self._program("initdb"), "-D", str(self.folder / "data"), *options],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **_as(other),
        )
        if done.returncode != 0:
            raise PostgresError(f"initdb failed: {done.stderr.strip()}")

    def _launch(self, file_bytes: int | None) -> subprocess.Popen[bytes]:
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        limit = [] if file_bytes is None else ["sh", "-c", _LIMIT_FILES, str(file_bytes // 512)]
        with (self.folder / "server.log").open("wb") as log:
            return subprocess.Popen(
                [*limit, self._program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *settings],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_as(_other_user()),
            )

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join((self.folder / "server.log").read_text(errors="replace").splitlines()[-12:])
        return ""


def _other_user() -> pwd.struct_passwd | None:
    """Who runs the server when we are root, None when we are not."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresError("Postgres does not run as root, and there is no user postgres or nobody to run it as")


def _as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    """The arguments of subprocess that make a child run as `user`."""
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
