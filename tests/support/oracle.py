"""The oracle: what the outside world shows, read without any code of the system.

It compares what clients were answered (ids on the disk before they count) with the database by its plain driver,
the mail server's ledger as plain JSON, RabbitMQ's queues by its management API, and the verdict of the `hopline
audit` command.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from hopline import Node
from tests.support.vhosts import queue_messages

ORDER_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
TERMINAL = {"confirmed", "rejected"}
HEALING_SECONDS = 60.0
"""From the end of a fault until nothing is on its way any more."""
STILL_SECONDS = 3.0
"""Of nothing unsent, empty queues and no change: then nothing more will come. Longer than any lag of a figure."""
POLL_SECONDS = 0.1


async def query(database_url: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query, by sqlite3 or asyncpg alone."""
    if database_url.startswith("sqlite"):
        return await asyncio.to_thread(_query_sqlite, database_url.partition("///")[2], sql)
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""), timeout=10)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


def _query_sqlite(path: str, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        return connection.execute(sql).fetchall()


async def execute(database_url: str, sql: str) -> None:
    """Runs a statement, by sqlite3 or asyncpg alone."""
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.partition("///")[2], timeout=30)) as connection, connection:
            connection.execute(sql)
        return
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""), timeout=10)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def states(database_url: str) -> dict[str, str]:
    """The state of every order by its id."""
    return {str(identifier): state for identifier, state in await query(database_url, "SELECT id, state FROM orders")}


async def unsent(database_url: str) -> int:
    """The sends that are not confirmed, parked or cancelled."""
    return int((await query(database_url, "SELECT count(*) FROM hopline_outbox WHERE next_at IS NOT NULL"))[0][0])


def mails(ledger: Path) -> list[dict[str, Any]]:
    """Every mail that the mail server took; a last line that is still being written is left out."""
    if not ledger.exists():
        return []
    return [json.loads(line) for line in ledger.read_bytes().split(b"\n")[:-1]]


class Ledger:
    """The mail server's ledger, read as it grows; a last line that is still being written waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0
        self._mails: dict[str, list[str]] = defaultdict(list)

    def mails(self) -> Mapping[str, list[str]]:
        """The Message-IDs of the mails about each order."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                complete, _, _ = file.read().rpartition(b"\n")
            for line in complete.split(b"\n") if complete else []:
                self._add(json.loads(line))
            self._read_bytes += len(complete) + bool(complete)
        return self._mails

    def _add(self, mail: dict[str, Any]) -> None:
        found = ORDER_ID.search(mail["subject"])
        if found:
            self._mails[found[0]].append(mail["message_id"])


async def command(
    environment: Mapping[str, str], *words: str, module: str = "hopline.cli"
) -> subprocess.CompletedProcess[str]:
    """Runs a command of the system as an operator would."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", module, *words],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def audit(environment: Mapping[str, str]) -> dict[str, Any]:
    """The verdict of `hopline audit`."""
    done = await command(environment, "audit", "--json")
    assert done.stdout, done.stderr
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


@dataclass(frozen=True)
class Account:
    """What must hold after any fault that has healed, and what was found."""

    accepted: frozenset[str]
    """The ids that clients were told, all of them."""
    states: Mapping[str, str]
    mails: Mapping[str, list[str]]
    unsent: int
    queued: Mapping[str, int | None]
    """What the queues hold."""
    decisions: Mapping[str, int]
    """How many messages say what was decided, by order: each is sent in the handler's transaction."""
    repeated: list[tuple[Any, ...]]
    """(message, endpoint) with more than one row of the inbox."""
    stock: list[tuple[str, int, int]]
    """SKU, units that left the stock, units in confirmed orders; where they differ."""
    parked: list[tuple[Any, ...]]
    """Reason and error of what is parked."""
    audit: Mapping[str, Any] = field(default_factory=dict)

    def lost(self, accepted: Collection[str]) -> set[str]:
        """Of these, the ones in no terminal state or without a mail."""
        return {one for one in accepted if self.states.get(one) not in TERMINAL or not self.mails.get(one)}

    def violations(self, accepted: Collection[str]) -> list[str]:
        """What does not hold, in words. `accepted` are the ids that this very fault was about."""
        lost = self.lost(accepted)
        twice = {one: count for one, count in self.decisions.items() if count > 1}
        renamed = {one for one, found in self.mails.items() if len(set(found)) > 1}
        found = {
            "nothing was accepted, so nothing was proven": not accepted,
            f"{len(lost)} of {len(accepted)} accepted orders are not decided and mailed: {_some(lost)}": lost,
            f"orders that no client was told of: {_some(self.states.keys() - self.accepted)}": (
                self.states.keys() - self.accepted
            ),
            f"mails about orders that no client was told of: {_some(self.mails.keys() - self.accepted)}": (
                self.mails.keys() - self.accepted
            ),
            f"orders that were decided more than once: {_some(twice)}": twice,
            f"mails about one thing under different Message-IDs: {_some(renamed)}": renamed,
            f"effects that are committed more than once: {self.repeated[:3]}": self.repeated,
            f"stock moved more or less than once (SKU, moved, confirmed): {self.stock[:3]}": self.stock,
            f"{self.unsent} sends are pending": self.unsent,
            f"queues are not empty: {self.queued}": any(self.queued.values()),
            f"parked: {self.parked[:3]}": self.parked,
            f"the audit: {self.audit}": self.audit["missing"] or self.audit["pending"] or self.audit["unproven"],
        }
        return [text for text, wrong in found.items() if wrong]


def _some(ids: Collection[str]) -> list[str]:
    return sorted(ids)[:3]


class Oracle:
    """Watches one stack from outside, over its whole life."""

    def __init__(self, environment: Mapping[str, str], node: Node, ledger: Path, stock: Mapping[str, int]) -> None:
        self.ledger = Ledger(ledger)
        self._environment = environment
        self._url = environment["HOPLINE_DATABASE_URL"]
        self._node = node
        self._stock = stock
        """Units of each product at the begin."""

    async def account(self, known: Collection[str], accepted: Collection[str]) -> Account:
        """Waits until everything is settled, or nothing moves any more; then reads all evidence.

        `known` are all ids that clients were ever told, `accepted` those that have to be settled now.
        """
        await self._settled(set(accepted))
        return Account(
            accepted=frozenset(known),
            states=await states(self._url),
            mails=self.ledger.mails(),
            unsent=await unsent(self._url),
            queued=await self._queued(),
            decisions={str(key): count for key, count in await query(self._url, _DECISIONS)},
            repeated=await query(self._url, _REPEATED),
            stock=await self._moved(),
            parked=await query(self._url, _PARKED),
            audit=await audit(self._environment),
        )

    async def _settled(self, wanted: set[str]) -> None:
        give_up_at = time.monotonic() + HEALING_SECONDS
        still_since, before = time.monotonic(), 0
        while time.monotonic() < give_up_at and time.monotonic() - still_since < STILL_SECONDS:
            mailed = wanted <= self.ledger.mails().keys()
            sends, on_the_way = await self._on_the_way()
            if mailed and not on_the_way:
                return
            if on_the_way or sends != before:
                still_since, before = time.monotonic(), sends
            await asyncio.sleep(POLL_SECONDS)

    async def _on_the_way(self) -> tuple[int, bool]:
        """How many sends there ever were, and whether something is unsent, undecided or in a queue."""
        (row,) = await query(self._url, "SELECT count(*), count(next_at) FROM hopline_outbox")
        sends, waiting = int(row[0]), int(row[1])
        try:
            queued = await self._queued()
        except OSError:
            return sends, True  # RabbitMQ does not answer
        return sends, waiting > 0 or not queued or any(count is None or count > 0 for count in queued.values())

    async def _queued(self) -> dict[str, int | None]:
        return await asyncio.to_thread(queue_messages, self._node)

    async def _moved(self) -> list[tuple[str, int, int]]:
        taken: Counter[str] = Counter()
        for (lines,) in await query(self._url, "SELECT lines FROM orders WHERE state = 'confirmed'"):
            for line in json.loads(lines):
                taken[line["sku"]] += line["quantity"]
        left = dict(await query(self._url, "SELECT sku, on_hand FROM products"))
        moved = [(sku, had - int(left[sku]), taken[sku]) for sku, had in self._stock.items()]
        return [one for one in moved if one[1] != one[2]]


_DECISIONS = """
    SELECT key, count(*) FROM hopline_messages WHERE type IN ('order.confirmed', 'order.rejected') GROUP BY key
"""
_REPEATED = "SELECT message_id, endpoint FROM hopline_inbox GROUP BY message_id, endpoint HAVING count(*) > 1"
_PARKED = "SELECT reason, error FROM hopline_dead_letters WHERE resolution IS NULL"
