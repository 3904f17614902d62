"""A program beside the stack: on its broker, with a virtual host, a database and supervised workers of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hopline import new_id
from orders.stack import Role
from tests.support import oracle
from tests.support.system import WORKER, System
from tests.support.vhosts import create_vhost, delete_vhost, queue_messages


@dataclass
class Program:
    """A program that `start_worker` runs."""

    running: System
    vhost: str
    environment: dict[str, str]
    log: list[str] = field(default_factory=list)
    workers: list[Role] = field(default_factory=list)

    @property
    def database_url(self) -> str:
        return self.environment["HOPLINE_DATABASE_URL"]

    async def hopline(self, *words: str) -> str:
        """Runs a `hopline` command, which has to succeed; what it printed."""
        done = await oracle.command(self.environment, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    async def run(self, module: str, *words: str) -> None:
        """Runs a module, which has to succeed."""
        done = await oracle.command(self.environment, *words, module=module)
        assert done.returncode == 0, done.stdout + done.stderr

    async def start_worker(self) -> Role:
        """A worker that is started again when it dies."""
        role = Role(f"program-{len(self.workers) + 1}", WORKER, self.environment, lambda _, line: self.log.append(line))
        self.workers.append(role)
        await role.start()
        return role

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query on the program's database."""
        return await oracle.query(self.database_url, sql)

    async def is_quiet(self) -> bool:
        """Whether nothing is unsent and the queues are empty."""
        held = await asyncio.to_thread(queue_messages, self.running.node, self.vhost)
        return await oracle.unsent(self.database_url) == 0 and not any(
            count is None or count for count in held.values()
        )


@asynccontextmanager
async def program(running: System, module: str, **variables: str) -> AsyncIterator[Program]:
    """Makes what `module:app` needs; at the end its workers are stopped and its virtual host is removed."""
    name = f"program_{new_id().replace('-', '')}"
    url = f"sqlite+aiosqlite:///{running.stack.folder / name}.db"
    if running.is_postgres:
        await oracle.execute(running.database_url, f"CREATE DATABASE {name}")
        url = f"{running.database_url.rpartition('/')[0]}/{name}"
    environment = {
        **running.environment,
        "HOPLINE_APP": f"{module}:app",
        "HOPLINE_DATABASE_URL": url,
        "HOPLINE_BROKER_URL": await asyncio.to_thread(create_vhost, running.node, name),
        "PYTHONPATH": ":".join(sys.path),
        **variables,
    }
    made = Program(running, name, environment)
    try:
        await made.hopline("migrate")
        yield made
    finally:
        await asyncio.gather(*(role.stop() for role in made.workers))
        await asyncio.to_thread(delete_vhost, running.node, name)
