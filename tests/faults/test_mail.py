"""The mail server is away."""

from __future__ import annotations

import pytest

from tests.faults.forms import shortly_on
from tests.support import oracle
from tests.support.system import DEADLINE_SECONDS, Load, System
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


@shortly_on("sqlite")
async def test_a_mail_server_that_is_down(running: System) -> None:
    """Orders are decided without it; their mails wait, spend no end of attempts, and go out when it is back."""
    mailbox = running.stack.roles["mailbox"]
    await mailbox.stop()
    load = await running.send()
    await wait_until(lambda: _decided(running, load), DEADLINE_SECONDS, "orders are decided without the mail server")
    assert not load.accepted & running.oracle.ledger.mails().keys()

    await mailbox.start()

    await running.assert_nothing_lost_nothing_twice(load)


async def _decided(running: System, load: Load) -> bool:
    states = await oracle.states(running.database_url)
    return all(states[identifier] in oracle.TERMINAL for identifier in load.accepted)
