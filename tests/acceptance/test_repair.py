"""Repair as an operator does it, with commands only: a handler fails, its group is seen, and replayed carefully."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pika
import pytest

from tests.acceptance.test_up import ORDER, ends_as, hopline, post
from tests.support import oracle
from tests.support.processes import up
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(240)

LOYALTY = """
from pathlib import Path

from hopline import Handlers, Hopline, RetryPolicy, Transaction
from orders.messages import OrderConfirmed

handlers = Handlers()


@handlers.on("loyalty", retry=RetryPolicy(attempts=1, immediate=0))
async def grant_points(order: OrderConfirmed, tx: Transaction) -> None:
    if Path(__file__).with_name("broken").exists():
        raise LookupError(f"no account for {order.customer.email}")


app = Hopline(handlers=[handlers])
"""
APP = ("--app", "loyalty:app")


@asynccontextmanager
async def worker(folder: Path) -> AsyncIterator[None]:
    """`hopline worker` of the loyalty program, until the end of the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOPLINE_")}
    command = [sys.executable, "-m", "hopline.cli", "worker", *APP]
    process = subprocess.Popen(command, cwd=folder, env=environment)  # noqa: ASYNC220
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0


async def answer(folder: Path, *words: str, status: int = 0) -> Any:
    """What a command says in JSON; it has to end with the given status."""
    done = await hopline(folder, *words, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


async def test_a_group_that_failed_is_replayed_with_a_canary_and_is_done(tmp_path: Path) -> None:
    (tmp_path / "loyalty.py").write_text(LOYALTY)
    (tmp_path / "broken").touch()
    folder = tmp_path / ".hopline"
    with up(folder) as (_, running):
        url, database = running["urls"]["api"], running["environment"]["HOPLINE_DATABASE_URL"]
        async with worker(tmp_path):
            known = "SELECT count(*) FROM hopline_endpoints WHERE endpoint = 'loyalty/order.confirmed'"
            await wait_until(lambda: _one(database, known), 30, "the worker has declared its queue")
            for _ in range(14):
                status, headers, _ = await post(url, "/orders", ORDER)
                assert status == 202
            await ends_as(url, headers["Location"], "confirmed")
            await wait_until(lambda: _parked(folder, 14), 30, "all are parked")

            (group,) = (await answer(folder, "dead", "groups", *APP))["groups"]
            assert (group["count"], group["error_type"], group["frame"]) == (14, "LookupError", "loyalty:grant_points")
            chosen = ("--group", group["fingerprint"], *APP)
            unasked = await hopline(folder, "dead", "replay", *chosen)
            assert (unasked.returncode, unasked.stdout) == (2, "")
            assert "Replay 14 letters?" in unasked.stderr
            assert (await answer(folder, "dead", "replay", *chosen, "--dry-run"))["ok"] == 14

            failed = await answer(folder, "dead", "replay", *chosen, "--canary", "--yes", status=1)
            assert (failed["ended"], failed["sent"], failed["failed"]) == ("failed-again", 1, 1)
            assert "no account for zoe@example.com" in failed["failures"][0]["error"]
            assert await _parked(folder, 14)

            (tmp_path / "broken").unlink()
            told = await hopline(folder, "dead", "replay", *chosen, "--canary", "--yes", "--who", "ann")
            assert told.returncode == 0, told.stdout + told.stderr
            assert "14 messages sent again, 14 done, 0 failed." in told.stdout
        assert await _parked(folder, 0)
        audited = await answer(folder, "audit", *APP)
        assert [(one["created"], one["done"]) for one in audited["endpoints"]] == [(14, 14)]
        story = await answer(folder, "trace", headers["Location"].rpartition("/")[2])
        assert [step["text"] for step in story["steps"] if step["what"] == "repair"][-1] == "replayed, by ann"


async def test_a_poison_message_is_mended_and_handled(tmp_path: Path) -> None:
    order_id = "6857a6ae-792d-4dc0-96e1-6c601ea1edac"
    good = {
        "order_id": order_id,
        "customer": ORDER["customer"],
        "lines": ORDER["lines"],
        "total_cents": 100,
        "placed_at": "2026-01-01T00:00:00Z",
    }
    folder = tmp_path / ".hopline"
    with up(folder) as (_, running):
        await asyncio.to_thread(_publish, running["environment"]["HOPLINE_BROKER_URL"], {**good, "total_cents": "one"})
        await wait_until(lambda: _parked(folder, 1), 30, "it is parked")
        (letter,) = (await answer(folder, "dead", "list", "--queue", "orders"))["letters"]
        assert (letter["reason"], letter["key"]) == ("undecodable", order_id)
        assert (await hopline(folder, "status")).returncode == 1
        refused = await hopline(folder, "dead", "replay", letter["id"])
        assert refused.returncode == 1
        assert "mend the body with `hopline dead edit`" in refused.stdout

        (tmp_path / "body.json").write_text(json.dumps(good))
        edit = ("dead", "edit", letter["id"], "--body-file", str(tmp_path / "body.json"))
        asked = await hopline(folder, *edit)
        assert asked.returncode == 2
        assert '+  "total_cents": 100,' in asked.stderr
        mended = await hopline(folder, *edit, "--yes", "--reason", "a number", "--who", "ann")
        assert mended.returncode == 0, mended.stderr
        assert f"hopline trace {order_id}" in mended.stdout

        database = running["environment"]["HOPLINE_DATABASE_URL"]
        handled = "SELECT count(*) FROM hopline_inbox WHERE endpoint = 'orders/order.placed'"
        await wait_until(lambda: _one(database, handled), 30, "the new message is handled")
        shown = await answer(folder, "dead", "show", letter["id"])
        assert shown["resolution"] == "edited"
        assert [(act["who"], act["action"], act["reason"]) for act in shown["acts"]] == [("ann", "edit", "a number")]
        assert await _parked(folder, 0)
        well = await hopline(folder, "status")
        assert well.returncode == 0, well.stdout
        assert "all is well" in well.stdout


def _publish(broker_url: str, body: object) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    properties = pika.BasicProperties(
        delivery_mode=2,
        type="order.placed",
        message_id="01a20e68-4f63-7966-b6b7-a4d6e27deeba",
        headers={"hopline-key": "6857a6ae-792d-4dc0-96e1-6c601ea1edac"},
    )
    connection.channel().basic_publish("", "orders", json.dumps(body).encode(), properties)
    connection.close()


async def _parked(folder: Path, wanted: int) -> bool:
    return bool((await answer(folder, "dead", "list", "--limit", "1"))["count"] == wanted)


async def _one(database: str, sql: str) -> bool:
    return (await oracle.query(database, sql)) == [(1,)]
