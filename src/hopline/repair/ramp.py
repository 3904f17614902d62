"""Replaying many letters: at a rate, and with `canary` in stages of 1, 10, 100 and the rest, stopping by itself.

After each stage of a canary its messages must have a result in the database: an inbox row at every endpoint that
they go to is a success; a failed attempt or a dead letter of the new run is a failure, and ends the ramp. What was
not sent then stays parked. `decide` is pure; the rest looks and acts.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline.database import Database
from hopline.errors import UsageError
from hopline.outcome import checked_delay
from hopline.repair.actions import ACT_LETTERS, Judged, Selection, pages, replay
from hopline.repair.verdicts import Code
from hopline.rows import Dialect, Rows
from hopline.schema import Id, attempts, dead_letters, inbox

STAGES = (1, 10, 100)
"""Messages of the stages before the last one, which has all the rest."""
IN_FLIGHT = 1_000
"""The most messages that a canary waits for at once."""
RATE = 50.0
DEADLINE_SECONDS = 60.0
BATCHES_A_SECOND = 4
POLL_SECONDS = 0.25

Ended = Literal["finished", "failed-again", "no-result"]

Run = tuple[str, int]
"""Message id and run: what one replay sends. A message has several letters, if it died at several endpoints."""
_Found = dict[Run, dict[str, str]]
"""Run → where → text."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to replay. UsageError if the rate or the deadline is not above 0, or the delay does not fit."""

    canary: bool = False
    rate: float = RATE
    """Messages a second."""
    deadline_seconds: float = DEADLINE_SECONDS
    """How long a canary waits without any news."""
    delay_seconds: float = 0.0
    """How long each message waits before it is sent, and can be taken back (`undo`)."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf or not 0 < self.deadline_seconds < math.inf:
            raise UsageError("the rate and the deadline must be above 0, and finite")
        checked_delay("delay_seconds", self.delay_seconds)
        if self.canary and self.delay_seconds:
            raise UsageError("a canary has no delay, because it waits for results")

    @property
    def batch(self) -> int:
        """Letters of one transaction, so that the rate is even."""
        return max(1, min(ACT_LETTERS, int(self.rate / BATCHES_A_SECOND)))


@dataclass(frozen=True, slots=True)
class Tally:
    """How far a ramp is."""

    chosen: int
    refused: int = 0
    sent: int = 0
    done: int = 0
    failed: int = 0
    exhausted: bool = False
    """Whether no letter is left to be sent."""

    @property
    def pending(self) -> int:
        """Sent, and without a result yet."""
        return self.sent - self.done - self.failed

    @property
    def stage(self) -> int:
        """The stage of a canary, from 0: a stage is over when all that was sent so far is done."""
        ends = _stage_ends()
        return next((number for number, end in enumerate(ends) if self.done < end), len(ends))


def _stage_ends() -> list[int]:
    return [sum(STAGES[: number + 1]) for number in range(len(STAGES))]


def decide(plan: Plan, tally: Tally, idle_seconds: float) -> int | Ended:
    """What to do next: send so many letters (0: wait), or end. `idle_seconds` is the time without any news."""
    if not plan.canary:
        return "finished" if tally.exhausted else plan.batch
    if tally.failed:
        return "failed-again"
    ends = _stage_ends()
    room = ends[tally.stage] - tally.sent if tally.stage < len(ends) else IN_FLIGHT - tally.pending
    if room > 0 and not tally.exhausted:
        return min(room, plan.batch)
    if tally.pending == 0:
        return "finished"
    return "no-result" if idle_seconds >= plan.deadline_seconds else 0


@dataclass(frozen=True, slots=True)
class Failure:
    """A replay that failed again."""

    letter_id: str
    message_id: str
    where: str
    """The endpoint, or the queue if no handler took it."""
    error: str
    parked: bool
    """Whether it is parked again; else its handler will be tried again by its own retries."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What has happened since the last one."""

    tally: Tally
    judged: tuple[Judged, ...] = ()
    failures: tuple[Failure, ...] = ()
    ended: Ended | None = None
    waiting: tuple[str, ...] = ()
    """At the end: messages without a result, some of them."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A replay that was sent."""

    letter_id: str
    message_id: str
    run: int
    queue: str
    endpoints: frozenset[str]

    @property
    def id_and_run(self) -> Run:
        """The run that it was sent as."""
        return self.message_id, self.run


@dataclass(frozen=True, slots=True)
class Seen:
    """What the database shows of one message in its new run."""

    done_at: frozenset[str] = frozenset()
    tried: Mapping[str, str] = field(default_factory=dict)
    """Endpoint → error."""
    parked: Mapping[str, str] = field(default_factory=dict)
    """Queue → reason and error."""


async def ramp(
    database: Database,
    code: Code,
    selection: Selection,
    plan: Plan,
    *,
    who: str,
    reason: str = "",
    as_new: bool = False,
) -> AsyncIterator[Progress]:
    """Replays a selection, the oldest letters first; the last Progress says how it ended.

    Whoever stops to iterate stops the ramp: what was not sent stays parked. Raises as `replay` does.
    """
    loop = asyncio.get_running_loop()
    waiting = _Letters(database, selection)
    pending: dict[str, Sent] = {}  # by letter
    tally = Tally(selection.count, exhausted=not await waiting.any())
    last_news = send_at = loop.time()
    while not isinstance(decision := decide(plan, tally, loop.time() - last_news), str):
        judged: Sequence[Judged] = ()
        if decision:
            await asyncio.sleep(send_at - loop.time())
            ids = await waiting.take(decision)
            delay = plan.delay_seconds
            judged = await replay(database, code, ids, who=who, reason=reason, as_new=as_new, delay_seconds=delay)
            sent = [_sent(one) for one in judged if one.verdict.ok]
            send_at = max(send_at, loop.time()) + len(sent) / plan.rate
            pending.update({one.letter_id: one for one in sent})
            tally = replace(
                tally,
                sent=tally.sent + len(sent),
                refused=tally.refused + len(judged) - len(sent),
                exhausted=not await waiting.any(),
            )
        else:
            await asyncio.sleep(POLL_SECONDS)
        failures, done = await _results(database, pending) if plan.canary else ([], 0)
        tally = replace(tally, done=tally.done + done, failed=tally.failed + len(failures))
        if judged or failures or done:
            last_news = loop.time()
            yield Progress(tally, tuple(judged), tuple(failures))
    waits = sorted({one.message_id for one in pending.values()})[:10] if plan.canary else ()
    yield Progress(tally, ended=decision, waiting=tuple(waits))


class _Letters:
    """The ids of a selection, one page in memory."""

    def __init__(self, database: Database, selection: Selection) -> None:
        self._pages = pages(database, selection)
        self._ids: deque[str] = deque()

    async def any(self) -> bool:
        """Whether there is another one."""
        if not self._ids:
            self._ids.extend(await anext(self._pages, []))
        return bool(self._ids)

    async def take(self, count: int) -> list[str]:
        """The next ones, at most so many."""
        taken: list[str] = []
        while len(taken) < count and await self.any():
            taken.append(self._ids.popleft())
        return taken


def _sent(judged: Judged) -> Sent:
    letter, envelope = judged.letter, judged.verdict.envelope
    assert letter is not None
    assert envelope is not None
    return Sent(letter.id, envelope.id, envelope.run, letter.queue, judged.verdict.endpoints)


async def _results(database: Database, pending: dict[str, Sent]) -> tuple[list[Failure], int]:
    """Takes what has a result out of `pending`: (the failures, how many are done)."""
    if not pending:
        return [], 0
    async with database.reading() as connection:
        seen = await look(connection, {one.id_and_run for one in pending.values()})
    failures, done = [], 0
    for one in list(pending.values()):
        result = result_of(one, seen[one.id_and_run])
        if result is None:
            continue
        del pending[one.letter_id]
        if isinstance(result, Failure):
            failures.append(result)
        else:
            done += 1
    return failures, done


def result_of(sent: Sent, seen: Seen) -> Failure | Literal["done"] | None:
    """What became of a replay; None while that is not known."""
    if seen.done_at and sent.endpoints <= seen.done_at:
        return "done"
    for queue, error in seen.parked.items():
        if sent.queue in ("", queue):
            return Failure(sent.letter_id, sent.message_id, queue or "the outbox", error, parked=True)
    for endpoint, error in seen.tried.items():
        if endpoint in sent.endpoints or not sent.endpoints:
            return Failure(sent.letter_id, sent.message_id, endpoint, error, parked=False)
    return None


_RUNS = Rows("runs", id=Id, run=sa.Integer())


async def look(connection: AsyncConnection, runs: Collection[Run]) -> dict[Run, Seen]:
    """What the database shows of messages, each in a run."""
    dialect: Dialect = "sqlite" if connection.dialect.name == "sqlite" else "postgresql"
    given = _RUNS.table(dialect)
    in_order = sorted(runs)
    rows = _RUNS.given(dialect, id=[one for one, _ in in_order], run=[run for _, run in in_order])

    async def found(table: sa.Table, place: sa.ColumnElement[str], text: sa.ColumnElement[str], *of_run: Any) -> _Found:
        query = sa.select(table.c.message_id, given.c.run, place.label("place"), text.label("text"))
        texts: _Found = {}
        for row in await connection.execute(query.where(table.c.message_id == given.c.id, *of_run), rows):
            texts.setdefault((row.message_id, row.run), {})[row.place] = row.text
        return texts

    done = await found(inbox, inbox.c.endpoint, inbox.c.note)
    tried = await found(attempts, attempts.c.endpoint, attempts.c.error, attempts.c.run == given.c.run)
    story = dead_letters.c.reason + ": " + dead_letters.c.error
    parked = await found(dead_letters, dead_letters.c.queue, story, dead_letters.c.run == given.c.run)
    return {one: Seen(frozenset(done.get(one, ())), tried.get(one, {}), parked.get(one, {})) for one in runs}
