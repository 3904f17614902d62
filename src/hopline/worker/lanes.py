"""A lane handles the deliveries of one endpoint: in transactions of groups, or as effects.

A transactional lane handles what has gathered as one group in one transaction: claims, handler, outcomes and
what they send commit together, then the group is acknowledged. If a member raises, the group rolls back and
runs again with a savepoint a member, so that the failing one fails alone. If the transaction itself fails, blame.py
says whether to run it again, or its members alone. An effect lane runs its handler
concurrently without a transaction and settles the results in groups afterwards.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from hopline import attempts, inbox
from hopline.batching import Groups
from hopline.broker import Delivery
from hopline.database import Transaction
from hopline.handlers import Endpoint
from hopline.message import AttemptId
from hopline.outcome import Done
from hopline.rows import Dialect
from hopline.worker.blame import Blame
from hopline.worker.calling import Handled, HandlerCall, Member, MemberFailed
from hopline.worker.desk import Desk

SAVEPOINT_MEMBERS = 50


class Running(NamedTuple):
    """A message that is being handled."""

    endpoint: str
    member: Member
    since: float
    """Seconds since 1970, by the clock of this process."""


class Lane:
    """Deliveries of one endpoint."""

    def __init__(self, desk: Desk, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._desk = desk
        self._call = HandlerCall(
            endpoint, abandoned=lambda: desk.abandoned, limit_bytes=desk.database.message_limit_bytes
        )
        self._groups: Groups[Member, None] = Groups(
            self._run, max_members=desk.group_members, name=f"lane {endpoint.name}", on_error=desk.crash
        )

    @property
    def busy(self) -> int:
        """Deliveries that are not settled yet."""
        return self._groups.busy

    def add(self, members: Sequence[Member]) -> None:
        """Takes members; returns at once."""
        if members:
            self._groups.put(members)

    async def drained(self) -> None:
        """Returns when all is settled."""
        await self._groups.drained()

    async def abandon(self) -> None:
        """Cancels the work."""
        await self._groups.abandon()

    def running(self, most: int) -> Sequence[Running]:
        """At most so many of the messages that are being handled now, those that began first."""
        raise NotImplementedError

    async def over(self, members: Sequence[Member]) -> set[AttemptId]:
        """The attempts that need not run: their message is done, or they themselves have failed already."""
        found: list[sa.Row[Any]] = []
        database = self._desk.database
        given = attempts.given(database.dialect, [member.envelope for member in members])
        parameters = {"of_endpoint": self.endpoint.name, **given}

        async def look() -> None:
            found[:] = await database.query(_over(database.dialect), parameters)

        await self._desk.persist(look, self.endpoint.name)
        done = {row.message_id for row in found if row.run is None}
        failed = {(row.message_id, row.run, row.attempt) for row in found if row.run is not None}
        return {m.attempt_id for m in members if m.envelope.id in done or m.attempt_id in failed}

    async def _run(self, members: list[Member]) -> list[None]:
        await self._handle(members)
        return [None] * len(members)

    async def _handle(self, members: list[Member]) -> None:
        raise NotImplementedError


def latest(members: Sequence[Member]) -> dict[str, Member]:
    """One member a message: that of its latest run and attempt. The claim of a message is one row, so the others wait.

    If the latest is done, the others find it; if it fails, each has to be looked at for itself.
    """
    chosen: dict[str, Member] = {}
    for member in members:
        known = chosen.setdefault(member.envelope.id, member)
        if member.attempt_id > known.attempt_id:
            chosen[member.envelope.id] = member
    return chosen


class TransactionLane(Lane):
    """Handles groups in one transaction each."""

    def __init__(self, desk: Desk, endpoint: Endpoint) -> None:
        super().__init__(desk, endpoint)
        self._group: Sequence[Member] = ()
        self._since = 0.0

    def running(self, most: int) -> Sequence[Running]:
        """All of a group run since it began."""
        return [Running(self.endpoint.name, member, self._since) for member in self._group[:most]]

    async def _handle(self, members: list[Member]) -> None:
        chosen = latest(members)
        now = [member for member in members if member.attempt_id == chosen[member.envelope.id].attempt_id]
        self._group, self._since = list(chosen.values()), time.time()
        try:
            await self._handle_group(list(chosen.values()))
        finally:
            self._group = ()
        self._desk.settle([member.delivery for member in now])
        if len(now) < len(members):
            self.add([member for member in members if member.attempt_id != chosen[member.envelope.id].attempt_id])

    async def _handle_group(self, unique: list[Member]) -> None:
        blame = self._blame()

        async def together() -> None:
            owned = self._desk.owned(unique)
            if owned:
                with blame:
                    await self._together(owned, blame)

        size = 0
        try:
            await self._desk.persist(together, self.endpoint.name)
        except MemberFailed as error:
            size = 1 if error.alone else SAVEPOINT_MEMBERS
        for start in range(0, len(unique) if size else 0, size or 1):
            await self._apart(unique[start : start + size], {})

    def _blame(self) -> Blame:
        return Blame(self._desk.database.idle_seconds)

    async def _together(self, members: list[Member], blame: Blame) -> None:
        """The usual way: all in one transaction, without savepoints."""
        async with self._desk.database.transaction() as tx:
            claimed = await self._desk.claim(tx, self.endpoint.name, members)
            if not claimed:
                return
            blame.claimed()
            if self._desk.pauses.is_open(self.endpoint):
                results = [(member, self._desk.deferred(self.endpoint)) for member in claimed]
            else:
                with tx.only_inside():
                    results = await self._call.group(tx, claimed)
                self._desk.pauses.found_up(self.endpoint, results[0][1].seconds)
            await self._desk.conclude(tx, self.endpoint, results)
        self._desk.count(self.endpoint, results)

    async def _apart(self, members: list[Member], known: dict[AttemptId, Handled]) -> None:
        """One transaction, a savepoint a member; `known` are failures that their transaction could not store.

        A member that ends the transaction makes all of them go alone. Alone, its failure is stored in another
        transaction, without running it again.
        """
        blame = self._blame()

        async def judged() -> None:
            with blame:
                await self._each(members, known, blame)

        started = time.perf_counter()
        handled: Handled | None = None
        try:
            await self._desk.persist(judged, self.endpoint.name)
        except MemberFailed as failed:
            if failed.error is not None:
                handled = self._call.failed(members[0], failed.error, time.perf_counter() - started)
        else:
            return
        if len(members) > 1:
            for member in members:
                await self._apart([member], known)
            return
        if handled is not None:
            known[members[0].attempt_id] = self._desk.judged(self.endpoint, handled)
        await self._desk.persist(lambda: self._each(members, known, blame), self.endpoint.name)

    async def _each(self, members: list[Member], known: dict[AttemptId, Handled], blame: Blame) -> None:
        """One try of `_apart`."""
        owned = self._desk.owned(members)
        if not owned:
            return
        async with self._desk.database.transaction() as tx:
            claimed = await self._desk.claim(tx, self.endpoint.name, owned)
            blame.claimed()
            results = [(member, await self._one_apart(tx, member, known)) for member in claimed]
            await self._desk.conclude(tx, self.endpoint, results)
        self._desk.count(self.endpoint, results)

    async def _one_apart(self, tx: Transaction, member: Member, known: dict[AttemptId, Handled]) -> Handled:
        """Runs one member in a savepoint, unless its failure is known; MemberFailed if the transaction is lost."""
        if member.attempt_id in known:
            return known[member.attempt_id]
        if self._desk.pauses.is_open(self.endpoint):
            return self._desk.deferred(self.endpoint)
        with tx.only_inside():
            handled = self._desk.judged(self.endpoint, await self._call.apart(tx, member))
            if handled.transaction_lost:
                known[member.attempt_id] = handled
                raise MemberFailed(alone=True)
        return handled


@dataclass(slots=True, eq=False)
class Effect:
    """An attempt whose effect handler waits or runs in this process, with every delivery of this attempt that came."""

    member: Member
    deliveries: list[Delivery]
    others: list[Member] = field(default_factory=list)
    """Other attempts of the same message that came meanwhile: over if this one is done, else they have their turn."""
    since: float = 0.0
    """When its handler began, in seconds since 1970; 0 while it waits."""
    handled: Handled | None = None
    """None until the handler has run."""


class EffectLane(Lane):
    """Runs effect handlers concurrently, then settles their results in groups."""

    def __init__(self, desk: Desk, endpoint: Endpoint) -> None:
        super().__init__(desk, endpoint)
        self._concurrency = desk.settings.effect_concurrency
        self._effects: dict[str, Effect] = {}
        """All that are not settled yet."""
        self._waiting: deque[Effect] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._task_name = f"effect {endpoint.name}"
        self._settlement: Groups[Effect, None] = Groups(
            self._settle, max_members=desk.group_members, name=f"settlement {endpoint.name}", on_error=desk.crash
        )

    @property
    def busy(self) -> int:
        """Deliveries that are not settled yet."""
        return self._groups.busy + sum(1 + len(effect.others) for effect in self._effects.values())

    def running(self, most: int) -> Sequence[Running]:
        """Those that have a slot and no result yet."""
        began = [e for e in self._effects.values() if e.since and e.handled is None]
        first = heapq.nsmallest(most, began, key=lambda effect: effect.since)
        return [Running(self.endpoint.name, effect.member, effect.since) for effect in first]

    async def drained(self) -> None:
        """Returns when all is settled."""
        while self._groups.busy or self._tasks or self._settlement.busy:  # settling may bring others their turn
            await super().drained()
            while self._tasks:
                await asyncio.wait(self._tasks)
            await self._settlement.drained()

    async def abandon(self) -> None:
        """Cancels the work."""
        await super().abandon()
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._settlement.abandon()
        self._effects.clear()

    async def _handle(self, members: list[Member]) -> None:
        over = await self.over(members)
        for member in members:
            running = self._effects.get(member.envelope.id)
            if member.attempt_id in over:
                self._desk.settle([member.delivery])
            elif running is not None and running.member.attempt_id == member.attempt_id:
                running.deliveries.append(member.delivery)  # settled with it: its own channel may be gone
            elif running is not None:
                running.others.append(member)
            else:
                effect = self._effects[member.envelope.id] = Effect(member, [member.delivery])
                self._waiting.append(effect)
        self._begin()

    def _begin(self) -> None:
        """Runs as many of those that wait as may run at once, each in a task of its own."""
        while self._waiting and len(self._tasks) < self._concurrency:
            effect = self._waiting.popleft()
            if self._desk.owns_any(effect.deliveries):
                task = asyncio.create_task(self._perform(effect), name=self._task_name)
                self._tasks.add(task)
                task.add_done_callback(self._ended)
            else:  # the channel died while it waited: it is somebody else's by now
                del self._effects[effect.member.envelope.id]
                self.add(effect.others)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._begin()

    async def _perform(self, effect: Effect) -> None:
        try:
            effect.since = time.time()
            effect.handled = await self._run_unless_paused(effect.member)
            self._settlement.put([effect])
        except BaseException as error:  # whatever it is: handed to the process, which stops
            if isinstance(error, asyncio.CancelledError) and self._desk.abandoned:
                raise
            self._desk.crash(error)

    async def _run_unless_paused(self, member: Member) -> Handled:
        if self._desk.pauses.is_open(self.endpoint):
            return self._desk.deferred(self.endpoint)
        return self._desk.judged(self.endpoint, await self._call.effect(member))

    async def _settle(self, effects: list[Effect]) -> list[None]:
        """Stores results, then acknowledges."""
        results = [(effect.member, effect.handled) for effect in effects if effect.handled is not None]
        happened = [result for result in results if _only_happened(result[1])]
        others = [result for result in results if not _only_happened(result[1])]
        if happened:
            await self._store(happened, claiming=False)
        if others:
            await self._store(others, claiming=True)
        self._desk.settle([delivery for effect in effects for delivery in effect.deliveries])
        for effect in effects:  # at once, so that no duplicate joins one that is settled
            del self._effects[effect.member.envelope.id]
        self.add([other for effect in effects for other in effect.others])
        return [None] * len(effects)

    async def _store(self, results: list[tuple[Member, Handled]], *, claiming: bool) -> None:
        """One transaction. What another worker finished meanwhile has not failed, and sends nothing: so claim first."""

        async def store() -> None:
            stored = results
            async with self._desk.database.transaction() as tx:
                if claiming:
                    claimed = await self._desk.claim(tx, self.endpoint.name, [member for member, _ in results])
                    ours = {member.envelope.id for member in claimed}
                    stored = [result for result in results if result[0].envelope.id in ours]
                await self._desk.conclude(tx, self.endpoint, stored, claimed=claiming)
            self._desk.count(self.endpoint, stored)

        await self._desk.persist(store, f"settlement {self.endpoint.name}")


def _only_happened(handled: Handled) -> bool:
    """Whether the effect is done and nothing follows from it: then it is true whoever else did it."""
    return isinstance(handled.outcome, Done) and not handled.sends


@cache
def _over(dialect: Dialect) -> sa.CompoundSelect[Any]:
    return sa.union_all(inbox.done(dialect, attempts.RUN), attempts.recorded(dialect))
