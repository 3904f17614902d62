from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from hopline.broker import Delivery
from hopline.errors import EndlessHandler
from hopline.handlers import Endpoint
from hopline.message import message, type_of
from hopline.retry import RetryPolicy
from hopline.watch.watch import TICK_SECONDS, Watch
from hopline.worker.calling import HandlerCall, Member
from hopline.worker.calls import CALLS, Call, Calls
from tests.support.engine import delivery_for, envelope_for
from tests.support.waiting import wait_until

DEADLINE_SECONDS = 1.0
OVERRUN_SECONDS = 2.0
LEAVE_SECONDS = 4.0


@message("thing.endless", key="id")
class Thing(msgspec.Struct):
    id: str = "a"


def endpoint(function: Callable[..., object] = print, *, blocking: bool = False) -> Endpoint:
    return Endpoint(
        name="things/thing.endless",
        queue="things",
        type=type_of(Thing),
        function=function,
        transactional=False,
        takes_list=False,
        takes_envelope=False,
        retry=RetryPolicy(),
        deadline_seconds=DEADLINE_SECONDS,
        blocking=blocking,
    )


def member() -> Member:
    envelope = envelope_for(Thing())
    delivery: Delivery = delivery_for("things", envelope)
    return Member(delivery, envelope, Thing())


def call(of: Endpoint) -> HandlerCall:
    return HandlerCall(of, abandoned=lambda: False, limit_bytes=1_000)


@dataclass
class Ends:
    """What the watch ended the process for."""

    told: list[tuple[str, Sequence[Call]]] = field(default_factory=list)

    def end(self, why: str, calls: Sequence[Call]) -> None:
        self.told.append((why, calls))


def make_watch(calls: Calls, ends: Ends) -> Watch:
    return Watch(DEADLINE_SECONDS, OVERRUN_SECONDS, LEAVE_SECONDS, calls=calls, end=ends.end)


async def look(watch: Watch, seconds: float) -> None:
    """Looks for so long, with a loop that turns."""
    for _ in range(round(seconds / TICK_SECONDS)):
        watch.look(TICK_SECONDS)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_call_in_its_time_is_left_alone() -> None:
    calls, ends = Calls(), Ends()
    watch = make_watch(calls, ends)

    with Call(endpoint(), [member()], calls=calls):
        await look(watch, DEADLINE_SECONDS + OVERRUN_SECONDS)
    await look(watch, 10)

    assert ends.told == []
    assert not watch.left_behind.done()


async def test_a_call_that_is_overdue_ends_the_process_and_is_named() -> None:
    calls, ends = Calls(), Ends()
    watch = make_watch(calls, ends)
    one = member()

    with Call(endpoint(), [one], calls=calls):
        await look(watch, DEADLINE_SECONDS + OVERRUN_SECONDS + TICK_SECONDS)

    assert [(call.endpoint, call.message_ids) for call in ends.told[0][1]] == [
        ("things/thing.endless", [one.envelope.id])
    ]


async def test_a_loop_that_stands_still_ends_the_process() -> None:
    calls, ends = Calls(), Ends()
    watch = make_watch(calls, ends)

    for _ in range(round((DEADLINE_SECONDS + OVERRUN_SECONDS) / TICK_SECONDS) + 1):
        watch.look(TICK_SECONDS)
    assert ends.told == []
    watch.look(TICK_SECONDS)

    assert ends.told == [("the event loop stands still", [])]


async def test_time_in_which_the_process_was_frozen_does_not_count() -> None:
    calls, ends = Calls(), Ends()
    watch = make_watch(calls, ends)

    with Call(endpoint(), [member()], calls=calls):
        watch.look(3600)
        watch.look(3600)

    assert ends.told == []


async def test_a_thread_that_is_overdue_has_the_process_drain() -> None:
    calls, ends = Calls(), Ends()
    watch = make_watch(calls, ends)

    with Call(endpoint(), [member()], in_thread=True, calls=calls):
        await look(watch, DEADLINE_SECONDS + OVERRUN_SECONDS + TICK_SECONDS)

    with pytest.raises(EndlessHandler, match=r"things/thing\.endless"):
        await watch.left_behind
    assert ends.told == []


async def test_a_thread_that_keeps_the_process_from_draining_ends_it() -> None:
    calls, ends = Calls(), Ends()
    watch = make_watch(calls, ends)

    with Call(endpoint(), [member()], in_thread=True, calls=calls):
        await look(watch, DEADLINE_SECONDS + OVERRUN_SECONDS + LEAVE_SECONDS)
        assert ends.told == []
        await look(watch, TICK_SECONDS)

    assert [why for why, _ in ends.told] == ["threads that handlers have left behind keep it from draining"]


async def test_a_thread_is_open_until_its_function_returns_whatever_its_deadline_says() -> None:
    may_end = threading.Event()

    def blocks(thing: Thing) -> None:
        may_end.wait(30)

    handled = await call(replace(endpoint(blocks, blocking=True), deadline_seconds=0.05)).effect(member())
    still_open = [call for call in CALLS.open if call.in_thread]
    may_end.set()

    assert handled.failure is not None
    assert handled.failure.timed_out
    assert [call.endpoint for call in still_open] == ["things/thing.endless"]
    await wait_until(lambda: not CALLS.open)


async def test_a_coroutine_is_open_until_it_ends_however_it_ends() -> None:
    seen = []

    async def fails(thing: Thing) -> None:
        seen.append(len(CALLS.open))
        raise RuntimeError("no")

    await call(endpoint(fails)).effect(member())

    assert set(seen) == {1}
    assert not CALLS.open
