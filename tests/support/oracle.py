"""The oracle: what the outside world shows, read without any code of the system.

It compares what clients were answered (ids written down as the answers came) with the database by its plain
driver, the mail server's ledger as plain JSON, and the verdict of the `hopline audit` command.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.waiting import wait_until

ORDER_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
TERMINAL = {"confirmed", "rejected"}


async def query(database_url: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query, by sqlite3 or asyncpg alone."""
    if database_url.startswith("sqlite"):
        path = database_url.partition("///")[2]
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as connection:
            rows = connection.execute(sql).fetchall()
        connection.close()
        return rows
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def states(database_url: str) -> dict[str, str]:
    """The state of every order by its id."""
    return {str(identifier): state for identifier, state in await query(database_url, "SELECT id, state FROM orders")}


def mails(ledger: Path) -> list[dict[str, Any]]:
    """Every mail that the mail server took; a last line that is still being written is left out."""
    if not ledger.exists():
        return []
    return [json.loads(line) for line in ledger.read_bytes().split(b"\n")[:-1]]


def mailed_orders(ledger: Path) -> Counter[str]:
    """How many mails there are about each order."""
    found = (ORDER_ID.search(mail["subject"]) for mail in mails(ledger))
    return Counter(match[0] for match in found if match)


async def settled(database_url: str, ledger: Path, accepted: Iterable[str], deadline_seconds: float = 60) -> None:
    """Waits until every accepted order is in a terminal state and has its mail."""
    wanted = set(accepted)

    async def all_there() -> bool:
        mailed = mailed_orders(ledger)
        if not wanted <= mailed.keys():
            return False
        known = await states(database_url)
        return all(known.get(identifier) in TERMINAL for identifier in wanted)

    await wait_until(all_there, deadline_seconds, "every accepted order is decided and mailed")


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


@dataclass(frozen=True)
class Account:
    """What must hold after any fault that has healed."""

    accepted: set[str]
    states: dict[str, str]
    mails: Counter[str]
    audit: dict[str, Any]
    stock: list[tuple[str, int, int]]
    """SKU, units that left the stock, units in confirmed orders."""

    def assert_nothing_lost_nothing_twice(self) -> None:
        """Each accepted order in exactly one terminal state with a mail; no other orders; stock moved once."""
        assert self.accepted, "nothing was accepted, so nothing was proven"
        undecided = {identifier for identifier in self.accepted if self.states.get(identifier) not in TERMINAL}
        assert not undecided, f"{len(undecided)} accepted orders are not decided, such as {sorted(undecided)[:3]}"
        assert not self.accepted - self.mails.keys(), "accepted orders without a mail"
        assert not self.states.keys() - self.accepted, "orders that no client was told of"
        assert self.audit["missing"] == 0
        assert self.audit["pending"] == 0
        wrong = [entry for entry in self.stock if entry[1] != entry[2]]
        assert not wrong, f"stock moved more or less than once: {wrong[:3]}"


async def account(environment: Mapping[str, str], ledger: Path, accepted: set[str], on_hand: int) -> Account:
    """Reads everything; `on_hand` is the stock that each product began with."""
    url = environment["HOPLINE_DATABASE_URL"]

    async def nothing_pending() -> bool:
        audit = json.loads((await command(environment, "audit", "--json")).stdout)
        return bool(audit["pending"] == 0 and audit["unproven"] == 0)

    await wait_until(nothing_pending, 60, "nothing is on its way any more")
    audited = await command(environment, "audit", "--json")
    assert audited.returncode == 0, audited.stdout + audited.stderr
    taken: Counter[str] = Counter()
    for (lines,) in await query(url, "SELECT lines FROM orders WHERE state = 'confirmed'"):
        for line in json.loads(lines):
            taken[line["sku"]] += line["quantity"]
    moved = await query(url, f"SELECT sku, {on_hand} - on_hand FROM products")
    stock = [(sku, int(units), taken[sku]) for sku, units in moved if units or taken[sku]]
    return Account(accepted, await states(url), mailed_orders(ledger), json.loads(audited.stdout), stock)
