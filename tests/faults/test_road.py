"""Faults on the road from POST to email. The invariant of each test: every order that was answered 202 reaches
exactly one terminal state and has at least one email, stock moves exactly once, and the audit is clean.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from tests.support import oracle
from tests.support.system import System, system
from tests.support.waiting import wait_until

BASKETS = 600
pytestmark = pytest.mark.timeout(240)


def stack_database(database_url: str) -> str:
    """The stack has a SQLite file of its own."""
    return "" if database_url.startswith("sqlite") else database_url


async def test_a_worker_killed_in_mid_run_loses_and_repeats_nothing(tmp_path: Path, database_url: str) -> None:
    async with system(tmp_path, stack_database(database_url)) as running:
        killed = 0

        def kill() -> None:
            nonlocal killed
            killed = running.kill("worker-1")

        await running.load_with(BASKETS, kill, at=BASKETS // 3)

        (await running.account()).assert_nothing_lost_nothing_twice()
        assert running.stack.roles["worker-1"].restarts == 1
        assert running.stack.roles["worker-1"].pid != killed


async def test_an_api_killed_in_mid_run_loses_and_repeats_nothing(tmp_path: Path, database_url: str) -> None:
    async with system(tmp_path, stack_database(database_url)) as running:
        answers = await running.load_with(BASKETS, lambda: running.kill("api"), at=BASKETS // 3)

        (await running.account()).assert_nothing_lost_nothing_twice()
        assert any(answer.tries > 1 for answer in answers), "no client noticed"
        assert len(answers) == BASKETS


async def test_a_broker_killed_and_restarted_in_mid_run_loses_and_repeats_nothing(
    tmp_path: Path, database_url: str
) -> None:
    async with system(tmp_path, stack_database(database_url)) as running:
        node = running.stack.node

        async def kill_and_restart() -> None:
            await asyncio.to_thread(node.kill)
            accepted = len(running.answers)
            await wait_until(lambda: len(running.answers) >= accepted + 50, 30, "the API goes on without the broker")
            await asyncio.to_thread(node.start)

        answers = await running.load_with(BASKETS, kill_and_restart, at=BASKETS // 3)

        (await running.account()).assert_nothing_lost_nothing_twice()
        assert all(answer.accepted or answer.refused for answer in answers)


async def test_emails_wait_for_a_mailbox_that_is_down_for_ten_seconds(tmp_path: Path) -> None:
    async with system(tmp_path) as running:
        mailbox = running.stack.roles["mailbox"]
        await mailbox.stop()
        await running.load(200)
        decided = {answer.order_id for answer in running.answers if answer.accepted}
        await wait_until(lambda: _decided(running, decided), 30, "orders are decided without the mailbox")
        assert oracle.mails(running.stack.ledger) == []
        await wait_until(lambda: _failed_mails(running, older_than_seconds=10), 30, "mails were tried for ten seconds")

        await mailbox.start()

        (await running.account()).assert_nothing_lost_nothing_twice()


async def _decided(running: System, wanted: set[str]) -> bool:
    known = await oracle.states(running.stack.database_url)
    return all(known.get(identifier) in oracle.TERMINAL for identifier in wanted)


async def _failed_mails(running: System, *, older_than_seconds: float) -> bool:
    rows = await oracle.query(
        running.stack.database_url,
        "SELECT (julianday('now') - julianday(min(started_at))) * 86400 FROM hopline_attempts WHERE outcome = 'retry'",
    )
    return bool(rows[0][0]) and rows[0][0] >= older_than_seconds


async def test_stock_that_runs_out_half_way_is_never_oversold(tmp_path: Path, database_url: str) -> None:
    async with system(tmp_path, stack_database(database_url), workers=3) as running:
        await _one_product(running, tmp_path, on_hand=60)
        answered = await asyncio.gather(*(_order(running, "scarce", quantity=2) for _ in range(50)))
        await oracle.settled(running.stack.database_url, running.stack.ledger, answered)

        found = await oracle.states(running.stack.database_url)
        left = await oracle.query(running.stack.database_url, "SELECT on_hand FROM products WHERE sku = 'scarce'")
        audited = await oracle.command(running.environment, "audit", "--json")
        rejected = await oracle.query(running.stack.database_url, "SELECT reasons FROM orders WHERE state = 'rejected'")
    assert Counter(found.values()) == {"confirmed": 30, "rejected": 20}
    assert left == [(0,)]
    assert audited.returncode == 0
    assert all("stock" in str(reasons) for (reasons,) in rejected)


async def _one_product(running: System, folder: Path, *, on_hand: int) -> None:
    line = '{"sku": "scarce", "name": "Last chance", "department": "Test", "list_price": "1.00", "on_hand": %d}'
    (folder / "catalogue.ndjson").write_text(line % on_hand + "\n")
    loaded = await oracle.command(
        running.environment, "load-catalogue", "--file", str(folder / "catalogue.ndjson"), module="orders.cli"
    )
    assert loaded.returncode == 0, loaded.stderr


async def _order(running: System, sku: str, *, quantity: int) -> str:
    body = {
        "customer": {"name": "Ann", "email": "ann@example.com"},
        "lines": [{"sku": sku, "quantity": quantity, "unit_price": "1.00"}],
    }
    async with aiohttp.ClientSession() as session, session.post(f"{running.stack.api_url}/orders", json=body) as answer:
        assert answer.status == 202, await answer.text()
        identifier: str = (await answer.json())["id"]
        return identifier


async def test_a_worker_that_is_told_to_stop_drains(tmp_path: Path) -> None:
    async with system(tmp_path) as running:
        worker = running.stack.roles["worker-1"]
        await running.load_with(BASKETS, lambda: worker.signal(signal.SIGTERM), at=BASKETS // 2)

        (await running.account()).assert_nothing_lost_nothing_twice()
        log = (tmp_path / "test" / "logs" / "worker-1.log").read_text()
        mails = oracle.mailed_orders(running.stack.ledger)
    assert "worker draining" in log
    assert "not drained in time" not in log
    assert "ended with status 0" in log
    assert max(mails.values()) == 1  # a drained worker leaves nothing half done, so no mail goes out twice
