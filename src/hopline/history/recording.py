"""Counting what a process does, and writing it down.

`Recorder` counts in the process's loop, without looking at the clock; `write` stores rows that hold whole numbers and
not differences, so that writing one twice does no harm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Final

import sqlalchemy as sa

from hopline.database import Transaction
from hopline.history.steps import (
    AGED,
    COARSE_SECONDS,
    COLUMNS,
    COUNTS,
    KEPT_SECONDS,
    RAN,
    SENDING,
    STEP_SECONDS,
    slot_of,
)
from hopline.rows import Dialect, insert
from hopline.schema import history

BACKLOG_ROWS: Final = 2_000
"""Rows that wait for the database; then the oldest are dropped."""
PURGED_SECONDS: Final = 600
"""Of the history that is too old, so much is deleted at a time."""

OUTCOMES: Final = {"done": 0, "retry": 1, "dead": 2, "defer": 3}
ACCEPTED, PUBLISHED = COUNTS.index("accepted"), COUNTS.index("published")

Key = tuple[int, int, str]
"""Step, its first second, endpoint."""


class Recorder:
    """The counts of one process. `take` and `put_back` are for any thread, all else is for its loop."""

    def __init__(self, published_total: Callable[[], int] = lambda: 0) -> None:
        """`published_total` says how many messages RabbitMQ has confirmed to this process since it started."""
        self._published_total = published_total
        self._published_before = 0
        self._step = 0
        self._fine: dict[str, list[int]] = {}
        self._coarse_step = 0
        self._coarse: dict[str, list[int]] = {}
        self._waiting: dict[Key, list[int]] = {}
        self._lock = threading.Lock()

    def handled(self, endpoint: str, outcome: str, ran_seconds: float, age_seconds: float) -> None:
        """A message was handled in so many seconds, at that age: done, retry, dead or defer, and committed."""
        counts = self._fine.get(endpoint)
        if counts is None:
            counts = self._fine[endpoint] = [0] * len(COLUMNS)
        place = OUTCOMES[outcome]
        counts[place] += 1
        counts[RAN + slot_of(ran_seconds)] += 1
        if place == 0:
            counts[AGED + slot_of(age_seconds)] += 1

    async def board(self, tx: Transaction) -> Callable[[bool], None] | None:
        """See database.Rider: counts the new messages that were committed."""
        accepted = sum(send.new for send in tx.sends)
        if not accepted:
            return None

        def land(committed: bool) -> None:
            if committed:
                self._sending()[ACCEPTED] += accepted

        return land

    def roll(self, epoch_seconds: float, *, ending: bool = False) -> None:
        """Ends the steps that are over at that time, so that their rows can be taken; called twice a second."""
        step = int(epoch_seconds) // STEP_SECONDS * STEP_SECONDS
        if step == self._step and not ending:
            return
        if published := self._published_total() - self._published_before:
            self._sending()[PUBLISHED] += published
            self._published_before += published
        if self._fine and self._step:
            self._end_step()
        self._fine, self._step = {}, step

    def take(self) -> dict[Key, list[int]]:
        """The rows that are to be written."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
        return taken

    def put_back(self, rows: Mapping[Key, list[int]]) -> None:
        """Rows that could not be written, for the next time."""
        with self._lock:
            kept = {**rows, **self._waiting}
            self._waiting = {key: kept[key] for key in sorted(kept, key=lambda key: key[1])[-BACKLOG_ROWS:]}

    def _sending(self) -> list[int]:
        return self._fine.setdefault(SENDING, [0] * len(COLUMNS))

    def _end_step(self) -> None:
        coarse_step = self._step // COARSE_SECONDS * COARSE_SECONDS
        if coarse_step != self._coarse_step:
            self._coarse, self._coarse_step = {}, coarse_step
        rows: dict[Key, list[int]] = {}
        for endpoint, counts in self._fine.items():
            before = self._coarse.get(endpoint)
            summed = counts if before is None else [a + b for a, b in zip(before, counts, strict=True)]
            self._coarse[endpoint] = summed
            rows[STEP_SECONDS, self._step, endpoint] = counts
            rows[COARSE_SECONDS, coarse_step, endpoint] = summed
        with self._lock:
            self._waiting |= rows


async def write(tx: Transaction, instance: str, rows: Mapping[Key, Sequence[int]]) -> None:
    """Stores a process's rows; one that is there already gets the new numbers."""
    if rows:
        values = [
            {
                "step": step,
                "at": at,
                "instance": instance,
                "endpoint": endpoint,
                **dict(zip(COLUMNS, counts, strict=True)),
            }
            for (step, at, endpoint), counts in rows.items()
        ]
        await tx.execute(_writing(tx.dialect), values)


async def purge(tx: Transaction, epoch_seconds: float) -> int:
    """Deletes some of what is older than it is kept, the oldest first; returns how many rows."""
    count = 0
    for step, kept in KEPT_SECONDS.items():
        oldest = sa.select(sa.func.min(history.c.at)).where(history.c.step == step)
        first = (await tx.rows(oldest))[0][0]
        before = int(epoch_seconds) - kept
        if first is not None and first < before:
            until = min(before, first + PURGED_SECONDS)
            gone = await tx.execute(sa.delete(history).where(history.c.step == step, history.c.at < until))
            count += gone.rowcount
    return count


@cache
def _writing(dialect: Dialect) -> sa.Executable:
    statement = insert(dialect, history)
    keys = [history.c[name] for name in ("step", "at", "instance", "endpoint")]
    return statement.on_conflict_do_update(
        index_elements=keys, set_={name: statement.excluded[name] for name in COLUMNS}
    )
