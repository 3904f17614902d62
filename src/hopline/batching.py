"""Group commit: many callers share one run of a function, and a lone caller waits for nobody.

There is no timer: while one group runs, the next one gathers. The running group is a task of its own, so a
caller that goes away (an HTTP client that disconnects) never cancels the others' work, and whatever a run
raises reaches every waiter: an exit, a cancellation that `abandon` did not ask for and a wrong number of results too,
each as a GroupFailed. Bounded: `max_members` a group, `max_waiting` items before `submit` waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from hopline.errors import text_of

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupFailed(RuntimeError):
    """A run of a group ended in a way that is no result and no ordinary exception."""


class Groups(Generic[Item, Result]):
    """Runs `run` with groups of items, one group at a time, in the order in which they came.

    `run` returns one result (or exception) an item. Items come by `submit`, which waits for the result, or by
    `put`, whose results nobody waits for: an exception then goes to `on_error`.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]],
        *,
        max_members: int,
        max_waiting: int = 100_000,
        name: str = "group",
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.busy = 0
        """Items that wait or are being run."""
        self._run = run
        self._max_members = max_members
        self._room = asyncio.Semaphore(max_waiting)
        self._waiting: deque[tuple[Item, asyncio.Future[Result] | None]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._abandoned = False
        self._name = name
        self._on_error = on_error

    async def submit(self, item: Item) -> Result:
        """Puts an item into the next group and waits for its own result or exception."""
        async with self._room:
            future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            self._add([(item, future)])
            return await future

    def put(self, items: Iterable[Item]) -> None:
        """Puts items into the next groups and returns at once; the caller bounds how many there are."""
        self._add([(item, None) for item in items])

    async def drained(self) -> None:
        """Returns when nothing waits or runs."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def abandon(self) -> None:
        """Cancels the running group and forgets the rest; their waiters are cancelled."""
        self._abandoned = True
        for _, future in self._waiting:
            if future is not None:
                future.cancel()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._abandoned = False

    def _add(self, entries: list[tuple[Item, asyncio.Future[Result] | None]]) -> None:
        self.busy += len(entries)
        self._waiting.extend(entries)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name=self._name)

    async def _work(self) -> None:
        try:
            while self._waiting:
                size = min(len(self._waiting), self._max_members)
                members = [self._waiting.popleft() for _ in range(size)]
                await self._run_one(members)
                self.busy -= size
        finally:
            self._task = None

    async def _run_one(self, members: list[tuple[Item, asyncio.Future[Result] | None]]) -> None:
        results: Sequence[Result | BaseException]
        try:
            results = _as_many(await self._run([item for item, _ in members]), len(members), self._name)
        except BaseException as error:  # every waiter gets it
            if isinstance(error, asyncio.CancelledError) and self._abandoned:
                for _, future in members:
                    if future is not None:
                        future.cancel()
                raise
            _take_back_cancellation()
            results = [_as_failure(error)] * len(members)
        for (_, future), result in zip(members, results, strict=True):
            self._resolve(future, result)

    def _resolve(self, future: asyncio.Future[Result] | None, result: Result | BaseException) -> None:
        if future is None:
            if isinstance(result, BaseException) and self._on_error is not None:
                self._on_error(result)
        elif future.done():
            pass  # its caller went away; the work was done all the same
        elif isinstance(result, BaseException):
            future.set_exception(_as_failure(result))
        else:
            future.set_result(result)


def _as_many(results: object, members: int, name: str) -> Sequence[Any]:
    """The results of a run; GroupFailed if they are not one for each member."""
    if not isinstance(results, Sequence) or len(results) != members:
        raise GroupFailed(f"{name}: the group's function must return one result for each of {members} items")
    return results


def _take_back_cancellation() -> None:
    """The group goes on: whoever cancelled the task was not its owner."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def _as_failure(error: BaseException) -> Exception:
    """An exception that a future can carry to its waiter without ending more than the waiter's own work."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    failed = GroupFailed(f"the group's function raised {type(error).__name__}: {text_of(error)}")
    failed.__cause__ = error
    return failed
