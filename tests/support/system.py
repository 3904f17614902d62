"""The whole system for a test: a stack in a folder of its own, and load through its HTTP API."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

from orders import dataset
from orders.catalogue import ON_HAND
from orders.replay import Record, Sent, replay
from orders.stack import Stack, StackOptions, running
from tests.support import oracle
from tests.support.waiting import wait_until


class System:
    """A running stack, and what its clients were answered."""

    def __init__(self, stack: Stack, record: Path) -> None:
        self.stack = stack
        self.answers: list[Sent] = []
        self._record = record

    @property
    def environment(self) -> dict[str, str]:
        """For the commands of the system."""
        return {**os.environ, **self.stack.environment}

    async def load(self, count: int, *, skip: int = 0) -> list[Sent]:
        """Sends real baskets; each answer is on the disk before it counts."""
        baskets = islice(dataset.read(), skip, skip + count)
        async with Record(self._record) as record:
            return await replay(
                self.stack.api_url, baskets, on_progress=self.answers.append, record=record, run_id="test"
            )

    async def load_with(self, count: int, fault: Callable[[], object], *, at: int) -> list[Sent]:
        """Sends baskets, and brings the fault about when `at` of them are answered."""
        loading = asyncio.create_task(self.load(count))
        await wait_until(lambda: len(self.answers) >= at or loading.done(), 60, f"{at} answers")
        assert not loading.done(), "the load was over before the fault"
        result = fault()
        if asyncio.iscoroutine(result):
            await result
        return await loading

    def kill(self, role: str) -> int:
        """SIGKILLs a role's process and says which it was."""
        pid = self.stack.roles[role].pid
        os.kill(pid, signal.SIGKILL)
        return pid

    async def account(self) -> oracle.Account:
        """Waits until everything is settled, then reads all evidence."""
        accepted = {answer.order_id for answer in self.answers if answer.accepted}
        await oracle.settled(self.stack.database_url, self.stack.ledger, accepted)
        return await oracle.account(self.environment, self.stack.ledger, accepted, ON_HAND)


@asynccontextmanager
async def system(folder: Path, database_url: str = "", *, workers: int = 1) -> AsyncIterator[System]:
    """Starts a stack below `folder`, and stops it."""
    lines: list[str] = []
    async with running(
        StackOptions(folder, "test", workers, database_url), lambda role, line: lines.append(line)
    ) as stack:
        yield System(stack, folder / "answers.ndjson")
