"""The oracle is proven: on two mutants of the system, each with the fault that exposes it, it finds the loss."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.faults import scenarios
from tests.faults.forms import shortly_on
from tests.faults.mutants import command
from tests.support.system import System

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

LOSS = "accepted orders are not decided and mailed"


@shortly_on("postgres")
async def test_a_worker_that_acknowledges_before_its_commit_is_caught(spoiled: System) -> None:
    """What it had acknowledged when it was killed is lost, and is named."""
    async with spoiled.replaced("worker-1", command("acks-before-commit", "hopline", "worker")):
        load = await scenarios.worker_killed_before_its_commit(spoiled)

    with pytest.raises(AssertionError, match=LOSS):
        await spoiled.assert_nothing_lost_nothing_twice(load)


@shortly_on("postgres")
async def test_a_relay_that_skips_confirms_is_caught(spoiled: System) -> None:
    """What it had written to a broker that never took it is marked sent, is lost, and is named."""
    port = urlsplit(spoiled.stack.api_url).port
    async with spoiled.replaced("api", command("skips-confirms", "orders", "api", "--port", port)):
        load = await scenarios.broker_frozen_and_killed(spoiled)

    with pytest.raises(AssertionError, match=LOSS):
        await spoiled.assert_nothing_lost_nothing_twice(load)
