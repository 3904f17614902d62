"""The API and the relay in it, killed between two steps, and two APIs that get the same request."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from orders.dataset import Basket
from orders.replay import Sent
from tests.faults.forms import shortly_on
from tests.support.system import Load, System

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

PAIRS_AT_ONCE = 8
PAIR_TRIES = 100
UNDECIDED = {409, 503}


@shortly_on("sqlite")
async def test_a_relay_killed_after_the_confirm_and_before_the_mark(running: System) -> None:
    """What RabbitMQ has and no row says so is sent again when the lease ends, and done once."""
    async with running.loading() as load:
        api = await running.arm("api", "relay.after-confirm=kill@5")
        await running.died(api)

    await running.assert_nothing_lost_nothing_twice(load)


async def test_an_api_killed_after_the_commit_and_before_the_response(running: System) -> None:
    """The client asks again with the same key, and is told of the order that was stored: there is no second one."""
    async with running.loading() as load:
        api = await running.arm("api", "api.after-commit=kill@40")
        await running.died(api)

    await running.assert_nothing_lost_nothing_twice(load)
    assert any(answer.tries > 1 for answer in load.answers), "no client noticed"


async def test_two_apis_that_race_on_one_key(running: System) -> None:
    """Each key has one order, whichever API was asked, and both answer with its id (or 409 and 503 until then)."""
    urls = (running.stack.api_url, await running.add_api("api-2"))
    baskets = running.take(running.scale.baskets)
    first_statuses: Counter[tuple[int, ...]] = Counter()

    load = await _race(running, urls, baskets, first_statuses)

    await running.assert_nothing_lost_nothing_twice(load)
    assert len(load.accepted) == sum(answer.accepted for answer in load.answers), "two keys, one order"
    assert set(first_statuses) <= {(202, 202), (202, 409), (202, 503), (422, 422)}, first_statuses


async def _race(
    running: System, urls: tuple[str, str], baskets: list[Basket], first_statuses: Counter[tuple[int, ...]]
) -> Load:
    load, slots = Load(), asyncio.Semaphore(PAIRS_AT_ONCE)

    async def pair(number: int, basket: Basket) -> None:
        async with slots:
            key = f"race-{number}-{basket.id}"
            first = await asyncio.gather(*(running.post(basket, key, url) for url in urls))
            first_statuses[tuple(sorted(status for status, _ in first))] += 1
            ends = await asyncio.gather(*(_until_decided(running, basket, key, url) for url in urls))
            told = {identifier for status, identifier in (*first, *ends) if status == 202}
            assert len(told) <= 1, f"one key, two orders: {told}"
            load.answers.append(Sent(basket.id, *ends[0]))

    async with asyncio.TaskGroup() as group:
        for number, basket in enumerate(baskets):
            group.create_task(pair(number, basket))
    return load


async def _until_decided(running: System, basket: Basket, key: str, url: str) -> tuple[int, str]:
    for _ in range(PAIR_TRIES):
        status, identifier = await running.post(basket, key, url)
        if status not in UNDECIDED:
            return status, identifier
    raise AssertionError(f"still {status} after {PAIR_TRIES} tries")
