"""RabbitMQ that dies, freezes, refuses to take anything, and loses a queue."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults import scenarios
from tests.faults.forms import shortly_on
from tests.support import oracle
from tests.support.queues import sync_queues
from tests.support.system import DEADLINE_SECONDS, System
from tests.support.vhosts import delete_queue, queue_messages
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


@shortly_on("postgres")
async def test_a_broker_killed_again_and_again(running: System) -> None:
    """The API goes on accepting meanwhile, and every message is sent, at least once, and done once."""
    async with running.loading() as load:
        for _ in range(running.scale.broker_kills):
            await load.more(20)
            await asyncio.to_thread(running.node.kill)
            await load.more(20, "answers without a broker")
            await asyncio.to_thread(running.node.start)

    await running.assert_nothing_lost_nothing_twice(load)
    assert all(answer.accepted or answer.refused for answer in load.answers)


@shortly_on("sqlite")
async def test_a_broker_frozen_and_then_killed(running: System) -> None:
    """What was written to it and never confirmed is not taken for sent."""
    load = await scenarios.broker_frozen_and_killed(running)

    await running.assert_nothing_lost_nothing_twice(load)


@shortly_on("postgres")
async def test_a_broker_that_is_frozen_for_a_while(running: System) -> None:
    """Connections stay open and nothing is heard: the confirm deadline and the heartbeats decide, nothing hangs."""
    async with running.loading() as load:
        await load.more(20)
        running.node.pause()
        try:
            accepted = len(load.answers)
            await asyncio.sleep(running.scale.seconds)  # the length of the fault, not a wait for anything
        finally:
            running.node.resume()

    assert len(load.answers) > accepted, "the API went on"
    await running.assert_nothing_lost_nothing_twice(load)


@shortly_on("sqlite")
async def test_a_memory_alarm(running: System) -> None:
    """RabbitMQ blocks publishers: messages wait in the outbox, consumers and the API go on."""
    async with running.loading() as load:
        await load.more(20)
        await asyncio.to_thread(running.node.ctl, "set_vm_memory_high_watermark", "absolute", "1")
        try:
            await wait_until(lambda: _waiting(running, 50), DEADLINE_SECONDS, "messages wait in the outbox")
            await asyncio.sleep(running.scale.seconds)  # the length of the fault, not a wait for anything
        finally:
            await asyncio.to_thread(running.node.ctl, "set_vm_memory_high_watermark", "absolute", "1GiB")

    assert "broker alarm" in running.log_of("api")
    await running.assert_nothing_lost_nothing_twice(load)


async def test_the_queue_of_orders_is_deleted(running: System) -> None:
    """What was in it is found out by the event, not by its age: it is scheduled again, and done once."""
    worker = running.stack.roles["worker-1"]
    async with running.loading() as load:
        await worker.stop()
        await wait_until(lambda: _ready_orders(running, 20), DEADLINE_SECONDS, "orders wait in the queue")
        await asyncio.to_thread(delete_queue, running.node, "orders")
        await load.more(20, "answers after the queue was deleted")
        await worker.start()

    await running.assert_nothing_lost_nothing_twice(load)
    await asyncio.to_thread(sync_queues, running.node)


async def _ready_orders(running: System, at_least: int) -> bool:
    held = (await asyncio.to_thread(queue_messages, running.node)).get("orders")
    return held is not None and held >= at_least


async def _waiting(running: System, at_least: int) -> bool:
    return await oracle.unsent(running.database_url) >= at_least
