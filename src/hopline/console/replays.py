"""Replays that run in the console's process: started by an action, watched by a page, stopped by another action.

A job is the ramp of hopline.repair with its progress kept. Jobs are bounded in number, the oldest finished ones are
forgotten, and those that run when the console stops are stopped: what they have not sent stays parked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import structlog

from hopline import repair
from hopline.clock import new_id, utcnow
from hopline.database import Database
from hopline.deadletter_queries import Filter
from hopline.errors import HoplineError, UsageError
from hopline.repair import Code, Failure, Judged, Plan, Tally

RUNNING = 4
"""So many replays at once."""
KEPT = 50
"""So many are remembered."""
NAMED = 100
"""So many refused letters and failures of one replay are named."""

Tone = Literal["ok", "busy", "warn", "bad"]

WORDS: dict[str, tuple[str, Tone]] = {
    "": ("running", "busy"),
    "finished": ("finished", "ok"),
    "failed-again": ("stopped: one failed again", "bad"),
    "no-result": ("stopped: no result in time", "warn"),
    "stopped": ("stopped by hand", "warn"),
    "broken": ("broken off", "bad"),
}
"""How a replay that ended so, or runs, is told in a word, and its tone."""

log = structlog.get_logger("hopline.console")


@dataclass
class Job:
    """One replay, and how far it is."""

    id: str
    title: str
    who: str
    plan: Plan
    started_at: datetime
    tally: Tally
    ended: str = ""
    """Empty while it runs; then finished, failed-again, no-result, stopped or broken."""
    trouble: str = ""
    """Why it is broken."""
    ended_at: datetime | None = None
    refused: list[Judged] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    waiting: tuple[str, ...] = ()

    def add(self, step: repair.Progress) -> None:
        """Takes what has happened since."""
        self.tally = step.tally
        self.refused += [one for one in step.judged if not one.verdict.ok][: NAMED - len(self.refused)]
        self.failures += step.failures[: NAMED - len(self.failures)]
        self.waiting = step.waiting
        if step.ended:
            self.ended = step.ended


class Replays:
    """The jobs of one console. `close()` stops those that run."""

    def __init__(self, database: Database, code: Code) -> None:
        self._database = database
        self._code = code
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, which: Filter, plan: Plan, *, title: str, who: str, reason: str, as_new: bool = False) -> Job:
        """Begins to replay what the filter chooses now. UsageError if too many run already."""
        self._check_room()
        selection = await repair.select(self._database, which)
        self._check_room()
        job = Job(new_id(), title, who, plan, utcnow(), Tally(selection.count))
        self._remember(job)

        async def run() -> None:
            steps = repair.ramp(self._database, self._code, selection, plan, who=who, reason=reason, as_new=as_new)
            async for step in steps:
                job.add(step)

        self._tasks[job.id] = asyncio.create_task(self._guarded(job, run), name=f"replay {job.id}")
        return job

    def find(self, identifier: str) -> Job | None:
        """A job that is remembered."""
        return self._jobs.get(identifier)

    def all(self) -> list[Job]:
        """The jobs, newest first."""
        return list(self._jobs.values())[::-1]

    async def stop(self, identifier: str) -> bool:
        """Stops a job; False if it does not run. What was not sent stays parked."""
        task = self._tasks.get(identifier)
        if task is None:
            return False
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return True

    async def close(self) -> None:
        """Stops all that run."""
        for identifier in list(self._tasks):
            await self.stop(identifier)

    async def _guarded(self, job: Job, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
        except asyncio.CancelledError:
            job.ended = "stopped"
        except HoplineError as error:
            job.ended, job.trouble = "broken", str(error)
        except Exception as error:
            log.exception("a replay broke", job=job.id)
            job.ended, job.trouble = "broken", f"{type(error).__name__}; the console's log tells more"
        finally:
            job.ended_at = utcnow()
            self._tasks.pop(job.id, None)

    def _check_room(self) -> None:
        if len(self._tasks) >= RUNNING:
            raise UsageError(f"{RUNNING} replays run already; wait for one to end, or stop it")

    def _remember(self, job: Job) -> None:
        self._jobs[job.id] = job
        done = [identifier for identifier, one in self._jobs.items() if one.ended]
        for identifier in done[: max(0, len(self._jobs) - KEPT)]:
            del self._jobs[identifier]
