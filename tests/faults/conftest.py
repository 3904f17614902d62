"""The system under faults: one stack a database, started once for all tests, and anew after one that failed.

Every test leaves the stack healed, so the account of the next one covers everything that was ever accepted. How
hard a fault is tried, and on which databases, says forms.py.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import AsyncExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from orders import stack
from tests.faults.forms import scale
from tests.support.postgres import Postgres, find_postgres
from tests.support.system import Scale, System, system

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Lets a fixture see whether its test has failed."""
    report = yield
    if call.when == "call":
        item.stash[_failed] = report.failed
    return report


@pytest.fixture(scope="session")
def fault_postgres() -> Iterator[Postgres]:
    """A running Postgres server of these tests alone, to be killed and restarted."""
    if find_postgres() is None:
        pytest.skip("Postgres is not installed (./dev test installs it where it may)")
    folder = Path(tempfile.mkdtemp(prefix="hopline-postgres-"))  # pytest's own folders are closed to other users
    try:
        with Postgres(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def quick_restarts() -> Iterator[None]:
    """A role that has died is started again at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "RESTART_SECONDS", 0.05)
        yield


class Systems:
    """Gives the running system, and a new one when the last one is in an unknown state."""

    def __init__(self, folder: Path, scale: Scale, postgres: Postgres | None) -> None:
        self._folder = folder
        self._scale = scale
        self._postgres = postgres
        self._numbers = count(1)
        self._exits = AsyncExitStack()
        self._system: System | None = None

    async def get(self, *, healthy: bool = True) -> System:
        """The system; unless it has to be `healthy`, also one that is spoiled."""
        if self._system is None or (healthy and self._system.spoiled):
            await self.close()
            self._exits.enter_context(quick_restarts())
            number = next(self._numbers)
            url = self._postgres.create_database(f"faults_{number}") if self._postgres else ""
            started = system(self._folder / str(number), url, scale=self._scale)
            self._system = await self._exits.enter_async_context(started)
        return self._system

    async def close(self) -> None:
        """Stops it."""
        self._system = None
        await self._exits.aclose()


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["sqlite", "postgres"])
async def systems(
    request: pytest.FixtureRequest, rabbitmq_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Systems]:
    """The systems on one database."""
    postgres = request.getfixturevalue("fault_postgres") if request.param == "postgres" else None
    folder: Path = tmp_path_factory.mktemp(f"faults-{request.param}")
    made = Systems(folder, scale(), postgres)
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="session")
async def running(request: pytest.FixtureRequest, systems: Systems) -> AsyncIterator[System]:
    """The running system, on SQLite and on Postgres."""
    found = await systems.get()
    yield found
    if request.node.stash.get(_failed, True):
        found.spoiled = True
    elif not found.spoiled:
        await found.reset()


@pytest_asyncio.fixture(loop_scope="session")
async def spoiled(systems: Systems) -> System:
    """A running system that is for mutants, and is what nobody else uses afterwards."""
    found = await systems.get(healthy=False)
    found.spoiled = True
    return found
