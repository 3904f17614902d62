"""The load: sends baskets to a running API, and writes down what it was answered.

Every basket has one Idempotency-Key for all its tries, so a request whose answer was lost is sent again
without becoming a second order. What is written down is the client's own evidence: a 202 in the file is an
order that must reach an end, whatever died in between.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from hopline import UsageError, new_id, utcnow
from orders.dataset import Basket

CONCURRENCY = 32
TRIES = 1_000
"""Of one basket, whatever happens to the others."""
DEADLINE_SECONDS = 120.0
"""Without an answer that counts, to any basket: longer than a broker or an API takes to come back."""
REQUEST_SECONDS = 30.0
PAUSE_CAP_SECONDS = 2.0
_AGAIN = frozenset({409, 429, 502, 503, 504})


class Sent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one basket."""

    basket_id: str
    status: int
    """The last HTTP status; 0: no answer came before the deadline."""
    order_id: str = ""
    tries: int = 1
    started_at: datetime | None = None
    """When the first try began."""
    latency_seconds: float = 0.0
    """Of the last try."""
    code: str = ""
    """The problem's code, or the error."""

    @property
    def accepted(self) -> bool:
        """Whether this order must reach an end."""
        return self.status == 202

    @property
    def refused(self) -> bool:
        """Whether the edge refused it for good."""
        return 400 <= self.status < 500 and self.status not in _AGAIN


class Record:
    """A file of Sent as NDJSON. What `add` has taken is on the disk, also after a power cut.

    An async context manager. Answers that come while one fsync runs share the next.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Record:
        try:
            self._file = self._path.open("ab")
        except OSError as error:
            raise UsageError(f"{self._path} cannot be written: {error}") from None
        self._task = asyncio.create_task(self._sync_forever(), name="record")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._sync([line for line, _ in self._waiting])
        self._file.close()

    async def add(self, sent: Sent) -> None:
        """Returns when it is on the disk; OSError if the disk does not take it."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((msgspec.json.encode(sent) + b"\n", written))
        self._wake.set()
        await written

    async def _sync_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            taken, self._waiting = self._waiting, []
            error: OSError | None = None
            try:
                await asyncio.shield(asyncio.to_thread(self._sync, [line for line, _ in taken]))
            except OSError as failed:
                error = failed
            for _, written in taken:
                if written.done():
                    continue  # its caller was cancelled
                if error is None:
                    written.set_result(None)
                else:
                    written.set_exception(error)

    def _sync(self, lines: Iterable[bytes]) -> None:
        self._file.writelines(lines)
        self._file.flush()
        os.fsync(self._file.fileno())


async def replay(
    url: str,
    baskets: Iterable[Basket],
    *,
    rate: float | None = None,
    concurrency: int = CONCURRENCY,
    on_progress: Callable[[Sent], None] | None = None,
    record: Record | None = None,
    run_id: str | None = None,
) -> list[Sent]:
    """Sends every basket to POST `url`/orders; returns what became of each, in the order of their ends.

    `rate` is baskets a second (None: as fast as `concurrency` requests at a time allow). `run_id` keeps apart
    the keys of two runs with the same baskets; give the same one to go on with an interrupted run. With a
    `record` an answer counts, for `on_progress` too, once it is on the disk.
    """
    pacer = _Pacer(baskets, rate)
    contact = _Contact()
    done: list[Sent] = []
    key_prefix = run_id or new_id()

    async def send_on(session: aiohttp.ClientSession) -> None:
        while (basket := await pacer.next()) is not None:
            sent = await _deliver(session, contact, f"{url.rstrip('/')}/orders", basket, f"{key_prefix}-{basket.id}")
            if record is not None:
                await record.add(sent)
            done.append(sent)
            if on_progress is not None:
                on_progress(sent)

    connector = aiohttp.TCPConnector(limit=concurrency)
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    cookies = aiohttp.DummyCookieJar()
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=cookies) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(concurrency):
            group.create_task(send_on(session))
    return done


class _Pacer:
    """Hands out baskets, each not before its turn."""

    def __init__(self, baskets: Iterable[Basket], rate: float | None) -> None:
        self._baskets: Iterator[Basket] = iter(baskets)
        self._interval = 1 / rate if rate else 0.0
        self._due = time.monotonic()

    async def next(self) -> Basket | None:
        """The next basket at its time; None when there is none left."""
        basket = next(self._baskets, None)
        if basket is not None and self._interval:
            due, self._due = self._due, self._due + self._interval
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
        return basket


class _Contact:
    """When an answer that counts came last: an API that is gone for good is waited for once, not once a basket."""

    def __init__(self) -> None:
        self.last = time.monotonic()


async def _deliver(session: aiohttp.ClientSession, contact: _Contact, url: str, basket: Basket, key: str) -> Sent:
    """Tries until there is an answer that counts, or there was none at all for the length of the deadline."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    pause, tries = 0.05, 0
    started_at = utcnow()
    while True:
        tries += 1
        sent = await _try(session, url, basket, headers, tries, started_at)
        if sent.status and sent.status not in _AGAIN:
            contact.last = time.monotonic()
            return sent
        if tries >= TRIES or time.monotonic() + pause > contact.last + DEADLINE_SECONDS:
            return sent
        await asyncio.sleep(pause)
        pause = min(PAUSE_CAP_SECONDS, pause * 2)


async def _try(
    session: aiohttp.ClientSession, url: str, basket: Basket, headers: dict[str, str], tries: int, started_at: datetime
) -> Sent:
    started = time.perf_counter()
    try:
        async with session.post(url, data=basket.body, headers=headers) as response:
            answer = _fields(await response.read())
            status = response.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return Sent(basket.id, 0, "", tries, started_at, time.perf_counter() - started, type(error).__name__)
    latency = round(time.perf_counter() - started, 6)
    return Sent(basket.id, status, str(answer.get("id", "")), tries, started_at, latency, str(answer.get("code", "")))


def _fields(body: bytes) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return answer if isinstance(answer, dict) else {}
