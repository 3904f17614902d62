"""The oracle is proven: on two mutants of the system, each with the fault that exposes it, it finds the loss."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.faults import scenarios
from tests.faults.mutants import command
from tests.support.system import System

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

LOSS = "accepted orders are not decided and mailed"


async def test_a_worker_that_acknowledges_before_its_commit_is_caught(running: System) -> None:
    """What it had acknowledged when it was killed is lost, and is named."""
    await running.replace("worker-1", command("acks-before-commit", "hopline", "worker"))

    load = await scenarios.worker_killed_before_its_commit(running)

    with pytest.raises(AssertionError, match=LOSS):
        await running.assert_nothing_lost_nothing_twice(load)


async def test_a_relay_that_skips_confirms_is_caught(running: System) -> None:
    """What it had written to a broker that never took it is marked sent, is lost, and is named."""
    port = urlsplit(running.stack.api_url).port
    await running.replace("api", command("skips-confirms", "orders", "api", "--port", port))

    load = await scenarios.broker_frozen_and_killed(running)

    with pytest.raises(AssertionError, match=LOSS):
        await running.assert_nothing_lost_nothing_twice(load)
