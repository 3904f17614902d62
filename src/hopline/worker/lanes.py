"""A lane handles the deliveries of one endpoint: in transactions of groups, or as effects.

A transactional lane handles what has gathered as one group in one transaction: claims, handler, outcomes and
what they send commit together, then the group is acknowledged. If a member raises, the group rolls back and
runs again with a savepoint a member, so that the failing one fails alone. An effect lane runs its handler
concurrently without a transaction and settles the results in groups afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from hopline import attempts, inbox
from hopline.batching import Groups
from hopline.broker import Delivery
from hopline.database import Dialect
from hopline.handlers import Endpoint
from hopline.worker.calling import Handled, Member, MemberFailed, call_apart, call_effect, call_group
from hopline.worker.desk import Desk

SAVEPOINT_MEMBERS = 50


class Lane:
    """Deliveries of one endpoint."""

    def __init__(self, desk: Desk, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._desk = desk
        self._groups: Groups[Member, None] = Groups(
            self._run, max_members=desk.group_members, name=f"lane {endpoint.name}", on_error=desk.crash
        )

    @property
    def busy(self) -> int:
        """Deliveries that are not settled yet."""
        return self._groups.busy

    def add(self, members: Sequence[Member]) -> None:
        """Takes members; returns at once."""
        self._groups.put(members)

    async def drained(self) -> None:
        """Returns when all is settled."""
        await self._groups.drained()

    async def abandon(self) -> None:
        """Cancels the work."""
        await self._groups.abandon()

    async def over(self, members: Sequence[Member]) -> set[str]:
        """The ids that are done, or whose very attempt has failed already."""
        found: set[str] = set()
        database = self._desk.database
        parameters = {"of_endpoint": self.endpoint.name, **attempts.given([member.envelope for member in members])}

        async def look() -> None:
            found.update(row.message_id for row in await database.query(_over(database.dialect), parameters))

        await self._desk.persist(look, self.endpoint.name)
        return found

    async def _run(self, members: list[Member]) -> list[None]:
        await self._handle(members)
        return [None] * len(members)

    async def _handle(self, members: list[Member]) -> None:
        raise NotImplementedError


class TransactionLane(Lane):
    """Handles groups in one transaction each."""

    async def _handle(self, members: list[Member]) -> None:
        unique = list({member.envelope.id: member for member in members}.values())

        async def together() -> None:
            owned = self._desk.owned(unique)
            if owned:
                await self._together(owned)

        failed: MemberFailed | None = None
        try:
            await self._desk.persist(together, self.endpoint.name)
        except MemberFailed as error:
            failed = error
        if failed is not None:  # outside of the except, or each stored stack would begin with this one
            size = 1 if failed.alone else SAVEPOINT_MEMBERS
            for start in range(0, len(unique), size):
                await self._apart(unique[start : start + size])
        self._desk.settle([member.delivery for member in members])

    async def _together(self, members: list[Member]) -> None:
        """The usual way: all in one transaction, without savepoints."""
        async with self._desk.database.transaction() as tx:
            claimed = await self._desk.claim(tx, self.endpoint.name, members)
            if not claimed:
                return
            if self._desk.pauses.is_open(self.endpoint):
                results = [(member, self._desk.deferred(self.endpoint)) for member in claimed]
            else:
                results = await call_group(self.endpoint, tx, claimed)
                self._desk.pauses.found_up(self.endpoint, results[0][1].seconds)
            await self._desk.conclude(tx, self.endpoint, results)
        self._desk.count(self.endpoint, results)

    async def _apart(self, members: list[Member]) -> None:
        """One transaction, a savepoint a member; a member that runs into its deadline makes all of them go alone."""
        timed_out: dict[str, Handled] = {}

        async def each() -> None:
            owned = self._desk.owned(members)
            if not owned:
                return
            results: list[tuple[Member, Handled]] = []
            async with self._desk.database.transaction() as tx:
                for member in await self._desk.claim(tx, self.endpoint.name, owned):
                    if self._desk.pauses.is_open(self.endpoint):
                        results.append((member, self._desk.deferred(self.endpoint)))
                        continue
                    known = timed_out.get(member.envelope.id)
                    handled = known or self._desk.judged(self.endpoint, await call_apart(self.endpoint, tx, member))
                    if isinstance(handled.error, TimeoutError) and known is None:
                        timed_out[member.envelope.id] = handled
                        raise MemberFailed(alone=True)
                    results.append((member, handled))
                await self._desk.conclude(tx, self.endpoint, results)
            self._desk.count(self.endpoint, results)

        ran_late = False
        try:
            await self._desk.persist(each, self.endpoint.name)
        except MemberFailed:
            ran_late = True
        if ran_late and len(members) == 1:
            await self._desk.persist(each, self.endpoint.name)  # its failure is known now, and is stored
        elif ran_late:
            for member in members:
                await self._apart([member])


@dataclass(slots=True, eq=False)
class Effect:
    """A message whose effect handler waits or runs in this process, with every delivery of it that came."""

    member: Member
    deliveries: list[Delivery]
    handled: Handled | None = None
    """None until the handler has run."""


class EffectLane(Lane):
    """Runs effect handlers concurrently, then settles their results in groups."""

    def __init__(self, desk: Desk, endpoint: Endpoint) -> None:
        super().__init__(desk, endpoint)
        self._slots = asyncio.Semaphore(desk.settings.effect_concurrency)
        self._effects: dict[str, Effect] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._settlement: Groups[Effect, None] = Groups(
            self._settle, max_members=desk.group_members, name=f"settlement {endpoint.name}"
        )

    @property
    def busy(self) -> int:
        """Deliveries that are not settled yet."""
        return self._groups.busy + len(self._effects)

    async def drained(self) -> None:
        """Returns when all is settled."""
        await super().drained()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def abandon(self) -> None:
        """Cancels the work."""
        await super().abandon()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._settlement.abandon()

    async def _handle(self, members: list[Member]) -> None:
        over = await self.over(members)
        for member in members:
            running = self._effects.get(member.envelope.id)
            if member.envelope.id in over:
                self._desk.settle([member.delivery])
            elif running is not None:
                running.deliveries.append(member.delivery)  # settled with it: its own channel may be gone
            else:
                self._launch(Effect(member, [member.delivery]))

    def _launch(self, effect: Effect) -> None:
        self._effects[effect.member.envelope.id] = effect
        task = asyncio.create_task(self._perform(effect), name=f"effect {self.endpoint.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _perform(self, effect: Effect) -> None:
        try:
            async with self._slots:
                if not self._desk.owns_any(effect.deliveries):
                    return  # the channel died while it waited: it is somebody else's by now
                effect.handled = await self._run_unless_paused(effect.member)
            await self._settlement.submit(effect)
        except Exception as error:  # noqa: BLE001 - handed to the process, which stops
            self._desk.crash(error)
        finally:
            self._effects.pop(effect.member.envelope.id, None)

    async def _run_unless_paused(self, member: Member) -> Handled:
        if self._desk.pauses.is_open(self.endpoint):
            return self._desk.deferred(self.endpoint)
        return self._desk.judged(self.endpoint, await call_effect(self.endpoint, member))

    async def _settle(self, effects: list[Effect]) -> list[None]:
        """Stores results, then acknowledges. Claims first: what another worker finished meanwhile is not failed."""
        results = {e.member.envelope.id: (e.member, e.handled) for e in effects if e.handled is not None}

        async def store() -> None:
            async with self._desk.database.transaction() as tx:
                claimed = await self._desk.claim(tx, self.endpoint.name, [effect.member for effect in effects])
                concluded = [results[member.envelope.id] for member in claimed]
                await self._desk.conclude(tx, self.endpoint, concluded)
            self._desk.count(self.endpoint, concluded)

        await self._desk.persist(store, f"settlement {self.endpoint.name}")
        self._desk.settle([delivery for effect in effects for delivery in effect.deliveries])
        return [None] * len(effects)


@cache
def _over(dialect: Dialect) -> sa.CompoundSelect[Any]:
    return sa.union_all(inbox.done(dialect), attempts.recorded(dialect))
