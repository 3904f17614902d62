from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from hopline.batching import GroupFailed, Groups


class Recorder:
    """Runs groups when it is let, and remembers them."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.started = asyncio.Event()

    async def __call__(self, items: list[int]) -> Sequence[int | BaseException]:
        self.groups.append(items)
        self.started.set()
        await self.gate.wait()
        return [ValueError("odd one") if item == 13 else item * 10 for item in items]


async def test_a_lone_caller_waits_for_nobody() -> None:
    recorder = Recorder()
    recorder.gate.set()

    assert await Groups(recorder, max_members=10).submit(1) == 10
    assert recorder.groups == [[1]]


async def test_while_one_group_runs_the_next_one_gathers() -> None:
    recorder = Recorder()
    groups: Groups[int, int] = Groups(recorder, max_members=3)

    first = asyncio.ensure_future(groups.submit(0))
    await recorder.started.wait()
    rest = [asyncio.ensure_future(groups.submit(number)) for number in range(1, 6)]
    await asyncio.sleep(0)
    recorder.gate.set()

    assert await asyncio.gather(first, *rest) == [0, 10, 20, 30, 40, 50]
    assert recorder.groups == [[0], [1, 2, 3], [4, 5]]
    assert groups.busy == 0


async def test_an_item_can_fail_alone() -> None:
    recorder = Recorder()
    recorder.gate.set()
    groups: Groups[int, int] = Groups(recorder, max_members=10)

    results = await asyncio.gather(*(groups.submit(n) for n in (1, 13, 2)), return_exceptions=True)

    assert results[0] == 10
    assert isinstance(results[1], ValueError)
    assert results[2] == 20


async def test_an_exception_of_the_run_reaches_every_waiter() -> None:
    async def broken(items: list[int]) -> Sequence[int]:
        raise OSError("no database")

    groups: Groups[int, int] = Groups(broken, max_members=10)

    results = await asyncio.gather(*(groups.submit(n) for n in range(3)), return_exceptions=True)

    assert [type(result) for result in results] == [OSError] * 3


async def test_a_caller_that_goes_away_does_not_cancel_the_others() -> None:
    recorder = Recorder()
    groups: Groups[int, int] = Groups(recorder, max_members=10)
    leaving = asyncio.ensure_future(groups.submit(1))
    await recorder.started.wait()
    staying = asyncio.ensure_future(groups.submit(2))
    await asyncio.sleep(0)

    leaving.cancel()
    recorder.gate.set()

    assert await staying == 20
    assert recorder.groups == [[1], [2]]
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_errors_of_items_that_nobody_waits_for_are_reported() -> None:
    seen: list[BaseException] = []
    recorder = Recorder()
    recorder.gate.set()
    groups: Groups[int, int] = Groups(recorder, max_members=10, on_error=seen.append)

    groups.put([1, 13])
    await groups.drained()

    assert [str(error) for error in seen] == ["odd one"]


async def test_abandoning_cancels_the_running_group_and_the_waiters() -> None:
    recorder = Recorder()
    groups: Groups[int, int] = Groups(recorder, max_members=1)
    waiters = [asyncio.ensure_future(groups.submit(n)) for n in range(3)]
    await recorder.started.wait()

    await groups.abandon()

    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 3
    assert recorder.groups == [[0]]


def ends() -> list[BaseException]:
    return [
        asyncio.CancelledError(),
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(),
        StopAsyncIteration(),
    ]


@pytest.mark.parametrize("end", ends(), ids=lambda end: type(end).__name__)
async def test_however_a_run_ends_its_waiters_get_an_exception_and_the_next_group_runs(end: BaseException) -> None:
    async def run(items: list[int]) -> Sequence[int | BaseException]:
        if 0 in items:
            raise end
        return [end if item == 1 else item for item in items]

    groups: Groups[int, int] = Groups(run, max_members=1)

    results = await asyncio.gather(*(groups.submit(n) for n in (0, 1, 2)), return_exceptions=True)

    assert [type(result) for result in results[:2]] in ([GroupFailed] * 2, [RuntimeError, GroupFailed])
    assert results[2] == 2
    assert groups.busy == 0


async def test_a_run_that_cancels_its_own_task_fails_that_group_only() -> None:
    async def run(items: list[int]) -> Sequence[int]:
        if 0 in items:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        return items

    groups: Groups[int, int] = Groups(run, max_members=1)

    results = await asyncio.gather(*(groups.submit(n) for n in (0, 1)), return_exceptions=True)

    assert isinstance(results[0], GroupFailed)
    assert results[1] == 1


@pytest.mark.parametrize("answer", [[], [1, 2], None, 5])
async def test_a_run_with_another_number_of_results_fails_its_group(answer: object) -> None:
    async def run(items: list[int]) -> Sequence[int]:
        return answer  # type: ignore[return-value]  # what a program may do

    groups: Groups[int, int] = Groups(run, max_members=1)

    with pytest.raises(GroupFailed, match="one result for each of 1 items"):
        await groups.submit(1)


async def test_what_nobody_waits_for_goes_to_the_owner_however_it_ends() -> None:
    async def run(items: list[int]) -> Sequence[None]:
        raise asyncio.CancelledError

    errors: list[BaseException] = []
    groups: Groups[int, None] = Groups(run, max_members=10, on_error=errors.append)

    groups.put([1, 2])
    await groups.drained()

    assert [type(error) for error in errors] == [GroupFailed] * 2
    assert groups.busy == 0
