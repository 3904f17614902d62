"""The examples of the documentation run as they stand."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.acceptance.test_up import ORDER, ends_as, post
from tests.support import oracle
from tests.support.processes import up
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(240)
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


async def test_a_queue_is_added_by_one_small_file(tmp_path: Path) -> None:
    (example,) = python_blocks(DOCS / "how-to" / "add-a-queue.md")
    (tmp_path / "loyalty.py").write_text(example)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOPLINE_")}
    command = [sys.executable, "-m", "hopline.cli"]
    with up(tmp_path / ".hopline") as (_, running):
        url = running["urls"]["api"]
        database = running["environment"]["HOPLINE_DATABASE_URL"]
        migrated = await asyncio.to_thread(
            subprocess.run, [*command, "migrate", "--app", "loyalty:app"], cwd=tmp_path, env=environment, check=False
        )
        assert migrated.returncode == 0
        worker = subprocess.Popen(  # noqa: ASYNC220
            [*command, "worker", "--app", "loyalty:app"], cwd=tmp_path, env=environment
        )
        try:
            known = "SELECT count(*) FROM hopline_endpoints WHERE endpoint = 'loyalty/order.confirmed'"
            await wait_until(lambda: _one(database, known), 30, "the worker has declared its queue")

            order = {**ORDER, "lines": [{**ORDER["lines"][0], "quantity": 7}]}
            for _ in range(3):
                status, headers, _ = await post(url, "/orders", order)
                assert status == 202
                await ends_as(url, headers["Location"], "confirmed")

            granted = "SELECT points FROM loyalty_points WHERE email = 'zoe@example.com' AND points = 9"
            await wait_until(lambda: _row(database, granted), 20, "three orders of 3.50 are nine points")
        finally:
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait, 30) == 0
        audited = await asyncio.to_thread(
            subprocess.run, [*command, "audit", "--app", "loyalty:app"], cwd=tmp_path, env=environment, check=False
        )
    assert audited.returncode == 0


async def test_the_example_of_the_readme_confirms_an_order(
    tmp_path: Path, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = python_blocks(ROOT / "README.md")
    monkeypatch.setenv("HOPLINE_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
    monkeypatch.setenv("HOPLINE_BROKER_URL", broker_url)
    shop = ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", shop)  # where annotations are looked up
    exec(compile(example, "README.md", "exec"), shop.__dict__)

    await shop.app.migrate()
    await shop.main()
    async with shop.app.working():
        confirmed = "SELECT count(*) FROM orders WHERE id = 'order-1' AND state = 'confirmed'"
        await wait_until(lambda: _one(shop.app.settings.database_url, confirmed), 20)


async def _one(database: str, sql: str) -> bool:
    return (await oracle.query(database, sql)) == [(1,)]


async def _row(database: str, sql: str) -> bool:
    return bool(await oracle.query(database, sql))
