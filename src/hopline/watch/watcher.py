"""The watcher outside: ends its parent when it gives no sign of life, that is when no thread of it runs.

    python -I -S watcher.py PID LIMIT_SECONDS DUMP_SIGNAL < PIPE

Each byte of the pipe is a sign of life. After LIMIT_SECONDS without one the parent gets DUMP_SIGNAL, at which it writes
its stacks to stderr, and then SIGKILL. Time in which the parent is stopped (SIGSTOP, a debugger), and in which this
process was frozen itself, does not count. It ends with its parent: the pipe is closed, or the parent is another one.

It imports a few modules of the standard library only, so that it is small, and runs by itself.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

TICK_SECONDS = 0.5
DUMP_SECONDS = 1.0
"""As long the parent has to write its stacks."""
STOPPED = frozenset("Tt")
"""The states of a process that is stopped, by a signal or by a debugger (proc(5))."""


def main(parent: int, limit_seconds: float, dump_signal: int) -> None:
    """Watches to the parent's end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # they are for the parent, which drains first
    silent, before = 0.0, time.monotonic()
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], TICK_SECONDS)
        now = time.monotonic()
        elapsed, before = min(now - before, 2 * TICK_SECONDS), now
        if readable:
            if not os.read(0, 65_536):
                return
            silent = 0.0
        elif is_stopped(parent):
            silent = 0.0
        else:
            silent += elapsed
        if silent > limit_seconds:
            end(parent, silent, dump_signal)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped as a whole. A process that is gone is not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode() in STOPPED
    except (OSError, IndexError):
        return False


def end(parent: int, silent: float, dump_signal: int) -> None:
    """Has the parent write its stacks, and kills it."""
    told = f"hopline: no thread of process {parent} has run for {silent:.0f} s: its stacks follow, then it is killed\n"
    if select.select([], [2], [], 0)[1]:  # a pipe that nobody reads must not keep it
        os.write(2, told.encode())
    os.kill(parent, dump_signal)
    select.select([], [], [], DUMP_SECONDS)
    if os.getppid() == parent:
        os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
