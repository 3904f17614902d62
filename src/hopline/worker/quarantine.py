"""The quarantine: a delivery that came before may have killed its worker, so it runs with nothing beside it.

While suspects run, everything else that is delivered is held back (the prefetch bounds it). Each suspect is
marked, committed, before it runs; suspects.py says when such a mark counts. A message that has killed too many
workers is parked; one whose evidence is not clear yet waits, without holding the others back.

Most suspects are innocent neighbours of a broken connection, and many are done already: those are acknowledged
after one look at the inbox.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from functools import partial

import structlog

from hopline import suspects
from hopline.deadletters import park
from hopline.suspects import Look, Mark, judge
from hopline.worker.calling import Member
from hopline.worker.desk import Desk, dead_letter
from hopline.worker.lanes import Lane

SUSPECTS_A_ROUND = 50
"""Then what is held back has its turn."""

log = structlog.get_logger("hopline.worker")

Entry = tuple[Lane, Member]


class Quarantine:
    """Runs suspects one by one, given by `add`. While it is `closed` everything else is given by `hold`."""

    def __init__(self, desk: Desk, lanes: Collection[Lane]) -> None:
        self.closed = False
        self._desk = desk
        self._lanes = lanes
        self._waiting: list[Entry] = []
        self._held: list[Entry] = []
        self._in_hand = 0
        self._looks: dict[tuple[str, str], dict[str, Look]] = {}
        """At the instances that have marked a message, for (endpoint, message id)."""
        self._task: asyncio.Task[None] | None = None
        self._draining = False

    @property
    def busy(self) -> int:
        """Deliveries that are waiting or held; those that run are in their lanes."""
        return len(self._waiting) + len(self._held) + self._in_hand

    def add(self, lane: Lane, member: Member) -> None:
        """Takes a suspect."""
        self._waiting.append((lane, member))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="quarantine")

    def hold(self, lane: Lane, members: Sequence[Member]) -> None:
        """Takes what has to wait until no suspect runs."""
        self._held += [(lane, member) for member in members]

    async def drained(self) -> None:
        """Returns when no suspect can be run any more; what is undecided is left to another worker."""
        self._draining = True
        while self._task is not None:
            await asyncio.wait([self._task])

    async def abandon(self) -> None:
        """Stops at once. This instance's marks are cleared when it says that it stops (heartbeat.py)."""
        self._waiting.clear()
        self._held.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        try:
            while self._waiting:
                entries, self._waiting = self._waiting, []
                self._in_hand = len(entries)
                runnable, undecided = await self._judged(entries)
                for start in range(0, len(runnable), SUSPECTS_A_ROUND):
                    await self._run_alone(runnable[start : start + SUSPECTS_A_ROUND])
                self._in_hand = 0
                if self._draining:
                    return
                self._waiting += undecided
                if undecided and not runnable:
                    await asyncio.sleep(self._desk.settings.heartbeat_seconds / 2)
        except Exception as error:  # noqa: BLE001 - handed to the process, which stops
            self._desk.crash(error)
        finally:
            self._task = None

    async def _judged(self, entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
        """Settles what is over, parks the killers; returns (what can run, what is not decided yet)."""
        runnable: list[Entry] = []
        undecided: list[Entry] = []
        for lane in {lane for lane, _ in entries}:
            members = self._desk.owned([member for its_lane, member in entries if its_lane is lane])
            over = await lane.over(members) if members else set()
            self._desk.settle([member.delivery for member in members if member.attempt_id in over])
            open_members = [member for member in members if member.attempt_id not in over]
            marks = await self._marks(lane, open_members)
            for member in open_members:
                verdict = self._verdict(lane, member, marks.get(member.envelope.id, []))
                if verdict.killer:
                    await self._park(lane, member, verdict.counted)
                elif verdict.undecided:
                    undecided.append((lane, member))
                else:
                    runnable.append((lane, member))
        waiting = {(lane.endpoint.name, member.envelope.id) for lane, member in undecided}
        self._looks = {key: looks for key, looks in self._looks.items() if key in waiting}
        return runnable, undecided

    async def _marks(self, lane: Lane, members: Sequence[Member]) -> dict[str, list[Mark]]:
        found: dict[str, list[Mark]] = {}
        ids = [member.envelope.id for member in members]

        async def look() -> None:
            async with self._desk.database.reading() as connection:
                found.update(await suspects.read(connection, lane.endpoint.name, ids, self._desk.instance))

        if ids:
            await self._desk.persist(look, "quarantine")
        return found

    def _verdict(self, lane: Lane, member: Member, marks: Sequence[Mark]) -> suspects.Verdict:
        looks = self._looks.setdefault((lane.endpoint.name, member.envelope.id), {})
        now = time.monotonic()
        for mark in marks:
            looks.setdefault(mark.worker, Look(mark.heartbeat_at, now))
        return judge(marks, looks, now, self._desk.settings.heartbeat_seconds)

    async def _park(self, lane: Lane, member: Member, counted: int) -> None:
        text = f"it has killed {counted + 1} workers; its neighbours were handled without it"
        letter = dead_letter(member.delivery, lane.endpoint.name, "killed-workers", text)

        async def store() -> None:
            async with self._desk.database.transaction() as tx:
                await park(tx, [letter])
                await suspects.clear(tx, lane.endpoint.name, [member.envelope.id])

        await self._desk.persist(store, "quarantine")
        log.error("message parked", endpoint=lane.endpoint.name, message_id=member.envelope.id, reason=text)
        self._desk.settle([member.delivery])

    async def _run_alone(self, entries: Sequence[Entry]) -> None:
        self.closed = True
        try:
            for lane in self._lanes:
                await lane.drained()
            for lane, member in entries:
                await self._desk.persist(partial(self._mark, lane, member), "quarantine")
                lane.add([member])
                await lane.drained()
                self._in_hand -= 1
            await self._desk.persist(self._clear, "quarantine")
        finally:
            self.closed = False
            held, self._held = self._held, []
            for lane in {lane for lane, _ in held}:
                lane.add([member for its_lane, member in held if its_lane is lane])

    async def _mark(self, lane: Lane, member: Member) -> None:
        async with self._desk.database.transaction() as tx:
            await suspects.mark(tx, lane.endpoint.name, member.envelope.id, self._desk.instance)

    async def _clear(self) -> None:
        async with self._desk.database.transaction() as tx:
            await suspects.clear_worker(tx, self._desk.instance)
