"""The one sampler of a process: it measures the flow every few seconds, only while somebody looks, for all streams.

On a database where a measurement takes long it measures less often, down to once in LONGEST_SECONDS.
What cannot be measured is part of a sample, never an exception: with the database down the streams go on, and say so.
Everything is bounded: streams, the time of one measurement, and a page that asks takes the sample that there is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog

from hopline.errors import HoplineError
from hopline.history import Rate
from hopline.status import Status

MEASURE_SECONDS = 15.0
"""Deadline of one measurement: the broker's own is 10 s."""
SHARE = 0.02
"""Of the time, so much is spent measuring: where it takes longer, it is done less often."""
LONGEST_SECONDS = 8.0
"""But as often as this, so that a database or a broker that is slow to say no is seen to be back."""
HEARTBEAT_SECONDS = 15.0
"""A stream without news says at least that it is alive, so that no proxy cuts it."""

log = structlog.get_logger("hopline.console")

Measure = Callable[[], Awaitable[tuple[Status, Mapping[str, Rate]]]]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one measurement found."""

    taken_at: float
    """When its measurement began, by the monotonic clock."""
    status: Status | None
    """None: the database did not answer."""
    trouble: str = ""
    """Why not."""
    rates: Mapping[str, Rate] = field(default_factory=dict)
    """By endpoint, of the last minutes."""


def pause_seconds(interval: float, took: float) -> float:
    """How long to wait after a measurement that took so long."""
    return max(interval, min(took / SHARE, LONGEST_SECONDS))


class TooManyStreams(HoplineError):
    """More pages are live already than the console serves at once."""


class Live:
    """Measures while somebody listens. `close()` ends every stream at once."""

    def __init__(self, measure: Measure, *, seconds: float, streams: int) -> None:
        self._measure = measure
        self._seconds = seconds
        self._streams = streams
        self._listeners: set[asyncio.Event] = set()
        self._latest: Sample | None = None
        self._measuring: asyncio.Task[Sample] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._expired_at = 0.0

    @property
    def known(self) -> Sample | None:
        """The latest sample, however old; measures nothing."""
        return self._latest

    async def sample(self) -> Sample:
        """A sample that is no older than the interval; those who ask meanwhile share one measurement."""
        latest = self._latest
        if latest is not None and time.monotonic() - latest.taken_at < self._seconds and self._holds(latest):
            return latest
        while True:
            if self._measuring is None or self._measuring.done():
                self._measuring = asyncio.create_task(self._take(), name="console sample")
            found = await asyncio.shield(self._measuring)
            if self._holds(found):
                return found

    def expire(self) -> None:
        """Somebody has acted: no measurement that began before is an answer to who asks from now on."""
        self._expired_at = time.monotonic()

    def _holds(self, sample: Sample) -> bool:
        return sample.taken_at >= self._expired_at

    async def _take(self) -> Sample:
        began = time.monotonic()
        try:
            async with asyncio.timeout(MEASURE_SECONDS):
                status, rates = await self._measure()
            self._latest = Sample(began, status, rates=rates)
        except HoplineError as error:
            self._latest = Sample(began, None, str(error))
        except TimeoutError:
            self._latest = Sample(began, None, f"no answer within {MEASURE_SECONDS:g} s")
        except Exception as error:
            log.exception("the flow could not be measured")
            self._latest = Sample(began, None, f"it could not be measured: {type(error).__name__}")
            raise
        return self._latest

    def check_room(self) -> None:
        """TooManyStreams if there is no room for one more."""
        if len(self._listeners) >= self._streams:
            raise TooManyStreams(f"{self._streams} pages are live already; this one is not")

    @contextmanager
    def listening(self) -> Iterator[AsyncIterator[Sample | None]]:
        """A stream of samples; None where for HEARTBEAT_SECONDS there was none. It ends when the console does."""
        self.check_room()
        news = asyncio.Event()
        self._listeners.add(news)
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(), name="console sampler")
        try:
            yield self._stream(news)
        finally:
            self._listeners.discard(news)

    async def _stream(self, news: asyncio.Event) -> AsyncIterator[Sample | None]:
        if self._latest is not None and not self._closed.is_set():
            yield self._latest
        while not self._closed.is_set():
            told = False
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    told = await news.wait()
            news.clear()
            if self._closed.is_set():
                return
            yield self._latest if told else None

    async def _run(self) -> None:
        """Until nobody listens any more."""
        while self._listeners:
            began = time.monotonic()
            with suppress(Exception):  # it is logged and told in the sample
                await self.sample()
            took = time.monotonic() - began
            self._tell()
            await asyncio.sleep(pause_seconds(self._seconds, took))
        self._loop = None

    def _tell(self) -> None:
        for news in self._listeners:
            news.set()

    async def close(self) -> None:
        """Ends all streams, and what is being measured."""
        self._closed.set()
        self._tell()
        tasks = [task for task in (self._loop, self._measuring) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
