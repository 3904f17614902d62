"""The sending half of `tasks` and `latency`, the same for every side. Standard library only.

    python -m MODULE one SECONDS          one message after the other, each confirmed before the next
    python -m MODULE many SECONDS         so many at a time as the side takes well
    python -m MODULE paced SECONDS RATE   at fixed times, whatever became of the ones before
    python -m MODULE count MESSAGES       so many, many at a time

Prints a line of JSON: messages, seconds, the CPU seconds of this process in them, and its largest resident set. A
message is 1 KiB (or BENCH_BODY_BYTES): the time of its sending, and blanks.
"""

import asyncio
import gc
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable

PADDING = " " * (int(os.environ.get("BENCH_BODY_BYTES", "1024")) - 24)
"""The rest of a body is the time, and what the side puts around it."""
MANY = 500
THREADS = 8
QUEUE = "noop"

Send = Callable[[float, str], Awaitable[object]]
"""Sends one message with the time of its sending, and returns when it is certain."""


async def enqueue(send: Send, finish: Callable[[], Awaitable[object]] | None = None) -> None:
    """The command line of a side that sends with asyncio; `finish` returns when all that was sent is confirmed."""
    mode, seconds = sys.argv[1], float(sys.argv[2])
    gc.collect()
    gc.freeze()
    began, cpu = time.monotonic(), time.process_time()
    if mode == "paced":
        sent = await _paced(send, began, seconds, float(sys.argv[3]))
    elif mode == "count":
        sent = sum(await asyncio.gather(*(_count(send, share) for share in _shares(int(sys.argv[2])))))
    else:
        sent = sum(
            await asyncio.gather(*(_repeat(send, began + seconds) for _ in range(MANY if mode == "many" else 1)))
        )
    if finish is not None:
        await finish()
    _tell(sent, began, cpu)


async def _repeat(send: Send, until: float) -> int:
    sent = 0
    while (now := time.monotonic()) < until:
        await send(now, PADDING)
        sent += 1
    return sent


def _shares(messages: int) -> list[int]:
    return [messages // MANY + (place < messages % MANY) for place in range(MANY)]


async def _count(send: Send, messages: int) -> int:
    for _ in range(messages):
        await send(time.monotonic(), PADDING)
    return messages


async def _paced(send: Send, began: float, seconds: float, rate: float) -> int:
    """An open loop: what is late counts from the time at which it should have been sent."""
    async with asyncio.TaskGroup() as group:
        for number in range(max(1, int(seconds * rate))):
            due = began + number / rate
            await asyncio.sleep(due - time.monotonic())
            group.create_task(_discard(send(due, PADDING)))
    return number + 1


async def _discard(sending: Awaitable[object]) -> None:
    await sending


def enqueue_blocking(send: Callable[[float, str], object]) -> None:
    """The command line of a side whose sending blocks: many at a time means threads."""
    mode, seconds = sys.argv[1], float(sys.argv[2])
    gc.collect()
    gc.freeze()
    began, cpu = time.monotonic(), time.process_time()
    counts = [0] * (THREADS if mode == "many" else 1)

    def repeat(place: int) -> None:
        while (now := time.monotonic()) < began + seconds:
            send(now, PADDING)
            counts[place] += 1

    if mode == "paced":
        rate = float(sys.argv[3])
        for number in range(max(1, int(seconds * rate))):
            due = began + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            send(due, PADDING)
            counts[0] += 1
    else:
        threads = [threading.Thread(target=repeat, args=(place,)) for place in range(len(counts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    _tell(sum(counts), began, cpu)
    os._exit(0)  # without the seconds that some take to close their connections


def _tell(sent: int, began: float, cpu: float) -> None:
    told = {
        "messages": sent,
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    }
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
