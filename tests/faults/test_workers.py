"""Workers that die or freeze at the worst moments, and messages that kill them or always fail."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

import pytest

from hopline.service import ENDLESS_STATUS, TASK_EXIT_STATUS
from tests.faults import scenarios
from tests.faults.forms import shortly_on
from tests.faults.programs import endless, troubled
from tests.faults.programs.running import Program, program
from tests.support import oracle
from tests.support.system import DEADLINE_SECONDS, System
from tests.support.vhosts import close_connections
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

TROUBLED = troubled.__name__
NEIGHBOURS = 500
STUCK_NEIGHBOURS = 60


async def test_a_worker_killed_before_its_commit(running: System) -> None:
    """What it had in hand is delivered again and done once: nothing of the open transaction is there."""
    load = await scenarios.worker_killed_before_its_commit(running)

    await running.assert_nothing_lost_nothing_twice(load)


async def test_a_worker_killed_after_its_commit_and_before_the_acknowledgement(running: System) -> None:
    """What it had in hand is delivered again and not run again: the inbox knows it."""
    async with running.loading() as load:
        worker = await running.arm("worker-1", "worker.after-commit=kill@3")
        await running.died(worker)

    await running.assert_nothing_lost_nothing_twice(load)


@shortly_on("postgres")
async def test_a_worker_frozen_with_an_open_group(running: System) -> None:
    """Another worker gets its deliveries; when it thaws, its group is not done a second time.

    On Postgres the other one is held up until Postgres ends the frozen transaction (10 s after the longest deadline of
    its handlers, which is 10 s). On SQLite the frozen
    writer holds the only lock: everybody waits, the API says 503, and all goes on when it thaws.
    """
    async with running.loading() as load:
        frozen = await running.arm("worker-1", "worker.before-commit=stop")
        await running.frozen(frozen)
        await running.add_worker("worker-2")
        await asyncio.to_thread(close_connections, running.node, f"-{frozen.pid}-")
        if running.is_postgres:
            before = frozenset(load.accepted)
            await wait_until(lambda: _decided(running, before), DEADLINE_SECONDS, "the other worker decides all")
        else:
            status, _ = await running.post(running.take_clean(1)[0], f"frozen-{frozen.pid}")
            assert status in {409, 503}
        assert frozen.pid
        frozen.signal(signal.SIGCONT)

    await running.assert_nothing_lost_nothing_twice(load)


@shortly_on("sqlite")
async def test_a_worker_that_is_told_to_stop_drains(running: System) -> None:
    """It finishes what it has in hand and acknowledges it, so that nothing is done again, not even a mail."""
    mailed_before = frozenset(running.oracle.ledger.mails())
    async with running.loading() as load:
        worker = running.stack.roles["worker-1"]
        await load.more(20)
        worker.signal(signal.SIGTERM)
        await running.died(worker)

    await running.assert_nothing_lost_nothing_twice(load)
    log = running.log_of("worker-1")
    assert "worker draining" in log
    assert "not drained in time" not in log
    mails = running.oracle.ledger.mails()
    assert {len(mails[order]) for order in load.accepted - mailed_before} == {1}, "a mail went out twice"


@shortly_on("postgres")
async def test_a_message_that_kills_its_worker(running: System) -> None:
    """It is parked after three kills; its neighbours are done, each once, and none of them is parked."""
    neighbours = max(NEIGHBOURS, running.scale.baskets)
    variables = {"HOPLINE_PREFETCH": "200", "HOPLINE_HEARTBEAT_SECONDS": "0.3"}
    async with program(running, TROUBLED, **variables) as troubled_program:
        await troubled_program.run(TROUBLED, "arrived", str(neighbours), "--killer")
        worker = await troubled_program.start_worker()
        await _until_quiet(troubled_program)

        parked = await troubled_program.rows("SELECT reason, body FROM hopline_dead_letters")
        taken = Counter(await troubled_program.rows("SELECT id FROM taken"))
    assert [(reason, b'"kills":true' in bytes(body)) for reason, body in parked] == [("killed-workers", True)]
    assert worker.restarts == 3
    assert len(taken) == neighbours
    assert set(taken.values()) == {1}


@shortly_on("postgres")
@pytest.mark.parametrize(
    ("way", "workers"), [("spins", 3), ("holds-the-lock", 1), ("swallows", 1), ("exits-in-a-task", 1)]
)
async def test_a_handler_that_never_ends(running: System, way: str, workers: int) -> None:
    """Its worker ends, by the watch or by the handler; three deaths park the message, and its neighbours are done."""
    variables = {"HOPLINE_PREFETCH": "20", "HOPLINE_HEARTBEAT_SECONDS": "0.3", "HOPLINE_OVERRUN_SECONDS": "1"}
    async with program(running, endless.__name__, **variables) as troubled_program:
        await troubled_program.run(endless.__name__, str(STUCK_NEIGHBOURS), way)
        roles = [await troubled_program.start_worker() for _ in range(workers)]
        await _until_quiet(troubled_program)

        parked = await troubled_program.rows("SELECT reason, body FROM hopline_dead_letters")
        taken = Counter(await troubled_program.rows("SELECT id FROM taken"))
    assert [(reason, f'"way":"{way}"'.encode() in bytes(body)) for reason, body in parked] == [("killed-workers", True)]
    assert 3 <= sum(role.restarts for role in roles) <= 3 + workers
    assert len(taken) == STUCK_NEIGHBOURS
    assert set(taken.values()) == {1}
    status = {"holds-the-lock": -signal.SIGKILL, "exits-in-a-task": TASK_EXIT_STATUS}.get(way, ENDLESS_STATUS)
    assert any(f"ended with status {status}" in line for line in troubled_program.log)


@shortly_on("sqlite")
async def test_a_handler_that_always_fails(running: System) -> None:
    """Every message climbs exactly the rungs of its policy and is parked; replayed after the repair it is done once."""
    healed = running.stack.folder / "healed"
    count = running.scale.baskets
    async with program(running, TROUBLED, **{troubled.HEALED: str(healed)}) as troubled_program:
        await troubled_program.run(TROUBLED, "refused", str(count))
        await troubled_program.start_worker()
        await _until_quiet(troubled_program)
        rungs = Counter(await troubled_program.rows("SELECT run, attempt, outcome FROM hopline_attempts"))
        letters = await troubled_program.rows("SELECT reason, resolution FROM hopline_dead_letters")
        assert rungs == {(0, attempt, "retry"): count for attempt in range(troubled.ATTEMPTS - 1)} | {
            (0, troubled.ATTEMPTS - 1, "dead"): count
        }
        assert Counter(letters) == {("exhausted", None): count}
        assert await troubled_program.rows("SELECT id FROM taken") == []

        healed.touch()
        await troubled_program.hopline("dead", "replay", "--all", "--yes", "--rate", "1000")
        await wait_until(lambda: _taken(troubled_program, count), DEADLINE_SECONDS, "all are done")
        await _until_quiet(troubled_program)

        taken = Counter(await troubled_program.rows("SELECT id FROM taken"))
        letters = await troubled_program.rows("SELECT resolution FROM hopline_dead_letters")
    healed.unlink()
    assert (len(taken), set(taken.values())) == (count, {1})
    assert Counter(letters) == {("replayed",): count}


async def _decided(running: System, orders: frozenset[str]) -> bool:
    states = await oracle.states(running.database_url)
    return all(states[order] in oracle.TERMINAL for order in orders)


async def _taken(troubled_program: Program, count: int) -> bool:
    return len(await troubled_program.rows("SELECT id FROM taken")) >= count


async def _until_quiet(troubled_program: Program) -> None:
    """Waits until nothing is unsent and the queues are empty, and have been so for longer than any figure's lag."""
    quiet_since: float | None = None

    async def is_still_quiet() -> bool:
        nonlocal quiet_since
        now = asyncio.get_running_loop().time()
        if not await troubled_program.is_quiet():
            quiet_since = None
        elif quiet_since is None:
            quiet_since = now
        return quiet_since is not None and now - quiet_since >= oracle.STILL_SECONDS

    await wait_until(is_still_quiet, DEADLINE_SECONDS, "nothing is on its way")
