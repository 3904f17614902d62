"""What the Python clients of `wire.py` have in common: the work, the message, the meter and the command line.

    python -m bench.wire_hopline publish URL QUEUE SECONDS COUNT
    python -m bench.wire_hopline consume URL QUEUE ACK_EVERY COUNT
    python -m bench.wire_hopline decode URL QUEUE ACK_EVERY COUNT

The work is that of `wire.c`: publish confirmed with a window of 1000, persistent, 1 KiB, message id, type, timestamp
and three headers; consume with a prefetch of 1000, reading the body and the message id, acknowledging every ACK_EVERY
messages (1: each); decode: the same with all properties read, which the other libraries do always. One process for
each measurement, so that its CPU is its own; it prints one line of JSON.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, Final

WINDOW: Final = 1000
PREFETCH: Final = 1000
BODY: Final = b"x" * 1024
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

Report = dict[str, float]


class Meter:
    """Wall clock and CPU from its creation on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._cpu = self._used()

    @staticmethod
    def _used() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def report(self, messages: int) -> Report:
        return {"messages": messages, "seconds": self.seconds, "cpu_seconds": self._used() - self._cpu}


def message_id(number: int) -> str:
    return f"0190f3c8-7b6a-7c3e-9d2a-{number:012x}"


def headers(number: int) -> dict[str, object]:
    return {"hopline-version": 1, "hopline-key": f"order-{number}", "traceparent": TRACE}


def properties(number: int, now: int) -> dict[str, Any]:
    """Of message `number`, by the names that all three libraries use."""
    return {
        "content_type": "application/json",
        "headers": headers(number),
        "delivery_mode": 2,
        "message_id": message_id(number),
        "timestamp": now,
        "type": "order.placed",
    }


def run(
    publish: Callable[[str, str, float, int], Report],
    consume: Callable[[str, str, int, int], Report],
    decode: Callable[[str, str, int, int], Report],
) -> None:
    """The command line of a client."""
    gc.collect()
    gc.freeze()  # as a service does after its start: what was imported is not looked through again and again
    _, work, url, queue, setting, count = sys.argv
    if work == "publish":
        report = publish(url, queue, float(setting), int(count))
    else:
        report = {"consume": consume, "decode": decode}[work](url, queue, int(setting), int(count))
    sys.stdout.write(json.dumps(report) + "\n")
