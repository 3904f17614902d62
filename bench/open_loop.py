"""An open loop of POST /orders: a request at each due time, whatever became of the ones before.

    python -m bench.open_loop HOST PORT RATE SECONDS BODIES ANSWERS

What is late because no connection was free, or because this process was, counts from the time at which it was due:
coordinated omission (a slow server that slows down its own load) cannot make figures better. The event loop's timers
are up to 1 ms late, and that counts too. Each answer is a line of
the file ANSWERS: the order's id, when it was due (seconds since the epoch), how long its answer took from then on.
"""

import asyncio
import gc
import json
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

CONNECTIONS = 256
"""As many requests at a time; more wait, and their waiting counts."""
LAST_ANSWER_SECONDS = 20.0


class Connection(asyncio.Protocol):
    """One kept HTTP/1.1 connection with one request on it at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's transports say nothing of their kind

    def data_received(self, data: bytes) -> None:
        """A piece of an answer; the servers measured here all send Content-Length."""
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        lower = head.lower()
        place = lower.index(b"content-length:") + len(b"content-length:")
        length = int(lower[place:].split(b"\r\n", 1)[0])
        if len(rest) < length or self._answer is None:
            return
        answer, self._answer, self._buffer = self._answer, None, b""
        if not answer.done():
            answer.set_result((int(head[9:12]), rest[:length]))

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits learns of it."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed by the server"))

    def post(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        """Sends; the future gives status and body."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer


class Load:
    """Sends at fixed times over a pool of connections."""

    def __init__(self, host: str, port: int, requests: list[bytes]) -> None:
        self.answers: list[tuple[str, float, float]] = []
        self.failed = 0
        self._fault: BaseException | None = None
        self._address = (host, port)
        self._requests = requests
        self._idle: deque[Connection] = deque()
        self._slots = asyncio.Semaphore(CONNECTIONS)

    async def run(self, rate: float, seconds: float) -> None:
        """Returns when all answers are there, or will not come."""
        loop = asyncio.get_running_loop()
        began, wall = time.perf_counter(), time.time()
        tasks: set[asyncio.Task[None]] = set()
        for number in range(max(1, int(rate * seconds))):
            due = began + number / rate
            await asyncio.sleep(due - time.perf_counter())
            task = loop.create_task(self._post(number, due, wall + due - began))
            tasks.add(task)
            task.add_done_callback(partial(self._ended, tasks))
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=LAST_ANSWER_SECONDS)
            self.failed += len(late)
            for task in late:
                task.cancel()
        if self._fault is not None:
            raise self._fault

    def _ended(self, tasks: "set[asyncio.Task[None]]", task: "asyncio.Task[None]") -> None:
        tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = fault

    async def _post(self, number: int, due: float, due_at: float) -> None:
        try:
            async with self._slots:
                connection = self._idle.pop() if self._idle else await self._connect()
                status, body = await connection.post(self._requests[number % len(self._requests)])
                self._idle.append(connection)
        except OSError:
            self.failed += 1
            return
        seconds = time.perf_counter() - due
        if status == 202:
            self.answers.append((json.loads(body)["id"], due_at, seconds))
        else:
            self.failed += 1

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, *self._address)
        return connection


async def measure(address_and_pace: list[str], bodies: list[bytes]) -> Load:
    """Runs a whole load."""
    host, port, rate, seconds = address_and_pace
    head = f"POST /orders HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: "
    load = Load(host, int(port), [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies])
    gc.collect()
    gc.freeze()
    await load.run(float(rate), float(seconds))
    return load


def main() -> None:
    """The command line."""
    *address_and_pace, bodies, answers = sys.argv[1:]
    load = uvloop.run(measure(address_and_pace, Path(bodies).read_bytes().splitlines()))
    lines = [f"{identifier} {due_at:.6f} {took:.6f}\n" for identifier, due_at, took in load.answers]
    Path(answers).write_text("".join(lines))
    sys.stdout.write(json.dumps({"answered": len(lines), "failed": load.failed}) + "\n")


if __name__ == "__main__":
    main()
