"""What every test can ask for: a RabbitMQ node, a Postgres server, a fresh database, a fresh virtual host.

Each is private to the test run and is stopped at its end. What is not installed is a skip with its reason; where
the environment says CI, a run with a skip fails, and so does a run in which no test ran.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest
import structlog

from hopline import Node, find_sbin
from tests.support.postgres import Postgres, find_postgres
from tests.support.vhosts import create_vhost, delete_vhost

_numbers = count(1)

# structlog's own tracebacks show every frame's locals: a second each, which a test on a busy machine does not have.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


class NodeFactory(Protocol):
    """Makes a node of the test's own, started unless `start=False`; it is stopped after the test."""

    def __call__(self, *, start: bool = True, port: int | None = None, management: bool = True) -> Node: ...


@pytest.fixture(scope="session")
def rabbitmq_installed() -> None:
    """For a test that starts nodes by itself."""
    if find_sbin() is None:
        pytest.skip("RabbitMQ is not installed (./dev test installs it where it may)")


@pytest.fixture(scope="session")
def rabbitmq(rabbitmq_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A running node that all tests share: use fresh names on it, or `broker_url`; never stop it."""
    node = Node(tmp_path_factory.mktemp("rabbitmq"))
    node.start()
    yield node
    _discard(node)


@pytest.fixture
def rabbitmq_node(rabbitmq_installed: None, tmp_path: Path) -> Iterator[NodeFactory]:
    """Makes nodes of the test's own, to kill, pause and restart (about 2.5 s each)."""
    nodes: list[Node] = []

    def make(*, start: bool = True, port: int | None = None, management: bool = True) -> Node:
        node = Node(tmp_path / f"rabbitmq-{len(nodes) + 1}", port=port, management=management)
        nodes.append(node)
        if start:
            node.start()
        return node

    yield make
    for node in nodes:
        _discard(node)


@pytest.fixture
def broker_url(rabbitmq: Node) -> Iterator[str]:
    """The AMQP URL of a virtual host of the test's own, empty at its start."""
    name = f"test-{next(_numbers)}-{uuid4().hex[:8]}"
    yield create_vhost(rabbitmq, name)
    delete_vhost(rabbitmq, name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running Postgres server that all tests share: use a database of your own on it; never stop it."""
    if find_postgres() is None:
        pytest.skip("Postgres is not installed (./dev test installs it where it may)")
    folder = Path(tempfile.mkdtemp(prefix="hopline-postgres-"))  # pytest's own folders are closed to other users
    try:
        with Postgres(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    """The URL of the shared server's own database."""
    return postgres.url


@pytest.fixture
def postgres_database_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh, empty Postgres database."""
    name = f"test_{next(_numbers)}_{uuid4().hex[:8]}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture
def sqlite_database_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh, empty database: the test runs once on SQLite and once on Postgres."""
    url: str = request.getfixturevalue(f"{request.param}_database_url")
    return url


def _discard(node: Node) -> None:
    """Nobody reads the data again, so there is no need for an orderly end."""
    node.kill()
    node.stop()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run is no success if nothing ran, nor, in CI, if something was skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or session.config.option.collectonly or exitstatus != pytest.ExitCode.OK:
        return
    skipped = len(reporter.stats.get("skipped", []))
    if not any(reporter.stats.get(outcome) for outcome in ("passed", "failed", "error", "xfailed")):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        reporter.write_line("\nNo test ran: this run is not a success.", red=True)
    elif skipped and os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(f"\n{skipped} skipped, and CI allows none: this run has failed.", red=True)
