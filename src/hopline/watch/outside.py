"""The small process outside that ends this one when no thread of it runs any more: its start, and signs of life to it.

The worker starts it and not the other way round, so the process that was started is the one that works: signals, pids
and exit statuses are what they seem. It goes when the worker goes, however that ends, because its pipe is then closed.

Only on Linux, where it can tell a process that is frozen (SIGSTOP) from one that hangs. Elsewhere a handler that holds
the interpreter's lock for ever is ended by whoever supervises the process, by its health port for example.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Final

import structlog

STDERR: Final = 2
"""By its number: what is written there needs neither Python's buffers nor its locks."""
STOP_SECONDS: Final = 2.0

_WATCHER = Path(__file__).with_name("watcher.py")

log = structlog.get_logger("hopline.watch")


@contextmanager
def watched_from_outside(limit_seconds: float) -> Iterator[Callable[[], None]]:
    """To the end of the block: the process is killed unless the given function is called that often. On Linux only."""
    if sys.platform != "linux":
        yield lambda: None
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    pipe = FileIO(writing, "w")
    dumping = signal.SIGRTMAX  # a C handler writes all stacks, so it works without the interpreter's lock
    faulthandler.register(dumping, file=STDERR, all_threads=True)
    process = _start(reading, limit_seconds, dumping)
    try:
        yield _Signs(pipe).give
    finally:
        pipe.close()
        if process is not None:
            _end(process)
        faulthandler.unregister(dumping)


class _Signs:
    """Signs of life, written to the watcher."""

    def __init__(self, pipe: FileIO) -> None:
        self._pipe = pipe
        self._broken = False

    def give(self) -> None:
        """One more; of more than the watcher reads it has enough, so a full pipe is as good."""
        try:
            self._pipe.write(b".")
        except BrokenPipeError:
            if not self._broken:
                log.warning("the watcher outside is gone: a handler that lets no thread run is not ended any more")
            self._broken = True
        except ValueError:
            pass  # closed: the watch has ended


def _start(reading: int, limit_seconds: float, dumping: int) -> subprocess.Popen[bytes] | None:
    words = [sys.executable, "-I", "-S", str(_WATCHER), str(os.getpid()), str(limit_seconds), str(int(dumping))]
    try:
        return subprocess.Popen(words, stdin=reading, stdout=subprocess.DEVNULL, cwd="/", start_new_session=True)
    except OSError as error:
        log.warning("no watcher outside: a handler that lets no thread run is not ended", error=str(error))
        return None
    finally:
        os.close(reading)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
        return
    process.kill()
    process.wait()
