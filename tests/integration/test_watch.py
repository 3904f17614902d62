"""The watch on real processes: each kind of a handler that never ends, and what must not be taken for one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from hopline.service import ENDLESS_STATUS
from tests.support.processes import is_alive
from tests.support.system import process_state
from tests.support.waiting import wait_until_sync

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the watcher outside is for Linux")

DEADLINE_SECONDS = 30
LIMIT_SECONDS = 1.0
PROGRAM = """
    import asyncio, ctypes, pathlib, re, sys, time
    from types import SimpleNamespace
    from hopline import Settings, run, until_stopped
    from hopline.watch import watch
    from hopline.worker.calls import CALLS, Call
    watch.WATCHER_SECONDS = watch.LEAVE_SECONDS = 0.5
    folder = pathlib.Path(sys.argv[1])
    members = [SimpleNamespace(envelope=SimpleNamespace(id="the odd one"))]

    async def spins():
        while True:
            pass

    async def holds_the_lock_in_a_regular_expression():
        re.match(r"(a|aa)+$", "a" * 100 + "b")

    async def holds_the_lock_asleep():
        ctypes.PyDLL(None).sleep(600)

    async def swallows_its_cancellation():
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                pass

    async def is_good():
        await asyncio.sleep(0)

    def a_thread_of_its_own():
        with call(True):
            time.sleep(600)

    async def leaves_a_thread_behind():
        if len(CALLS.open) == 1:  # its own
            asyncio.get_running_loop().run_in_executor(None, a_thread_of_its_own)
            await asyncio.sleep(600)

    async def leaves_more_threads_than_there_may_be():
        asyncio.get_running_loop().run_in_executor(None, a_thread_of_its_own)

    def call(in_thread=False):
        endpoint = SimpleNamespace(name="queue/type", deadline_seconds=0.2)
        return Call(endpoint, members, in_thread=in_thread)

    async def handle(handler):
        while True:
            try:
                async with asyncio.timeout(0.2):
                    with call():
                        await handler()
            except TimeoutError:
                pass
            await asyncio.sleep(0.01)

    async def work(stop):
        async with watch.watching(0.2, 0.8, 0.0) as watching:
            (folder / "ready").touch()
            task = asyncio.create_task(handle(globals()[sys.argv[2]]))
            try:
                await until_stopped(stop, watching.left_behind)
            finally:
                task.cancel()
                await asyncio.to_thread(time.sleep, 0)  # as the engine's own parts do when they stop
                (folder / "drained").touch()

    sys.exit(run(work, Settings()))
"""


@contextmanager
def worker(folder: Path, handler: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose handler is one of the functions above; killed at the end if it is still there."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), handler]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, cwd=folder)
    try:
        wait_until_sync((folder / "ready").exists, DEADLINE_SECONDS, "the worker is ready")
        yield process
    finally:
        process.kill()
        process.wait()


def watcher_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The process outside that watches it."""
    (found,) = psutil.Process(process.pid).children()
    return found


@pytest.mark.parametrize("handler", ["spins", "swallows_its_cancellation"])
def test_a_handler_that_keeps_the_loop_or_its_task_ends_the_process(tmp_path: Path, handler: str) -> None:
    with worker(tmp_path, handler) as process:
        status = process.wait(DEADLINE_SECONDS)

    log = (tmp_path / "log").read_text()
    assert status == ENDLESS_STATUS
    assert "queue/type" in log
    assert "the odd one" in log
    assert f"in {handler}" in log or handler == "swallows_its_cancellation"  # a task that waits has no thread's stack
    assert not (tmp_path / "drained").exists()


@pytest.mark.parametrize("handler", ["holds_the_lock_in_a_regular_expression", "holds_the_lock_asleep"])
def test_a_handler_that_lets_no_thread_run_is_ended_from_outside(tmp_path: Path, handler: str) -> None:
    with worker(tmp_path, handler) as process:
        status = process.wait(DEADLINE_SECONDS)

    log = (tmp_path / "log").read_text()
    assert status == -signal.SIGKILL
    assert "its stacks follow" in log
    assert f"in {handler}" in log


@pytest.mark.parametrize("handler", ["leaves_a_thread_behind", "leaves_more_threads_than_there_may_be"])
def test_a_thread_that_never_returns_has_the_process_drain_and_end(tmp_path: Path, handler: str) -> None:
    with worker(tmp_path, handler) as process:
        status = process.wait(DEADLINE_SECONDS)

    assert status == ENDLESS_STATUS
    assert (tmp_path / "drained").exists() is (handler == "leaves_a_thread_behind")
    assert "in a_thread_of_its_own" in (tmp_path / "log").read_text()


def test_a_good_worker_lives_and_its_watcher_goes_with_it(tmp_path: Path) -> None:
    with worker(tmp_path, "is_good") as process:
        watcher = watcher_of(process)
        seen_until = time.monotonic() + 3 * LIMIT_SECONDS
        wait_until_sync(lambda: time.monotonic() > seen_until or process.poll() is not None)
        assert process.poll() is None

        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0

    assert (tmp_path / "drained").exists()
    assert not is_alive(watcher.pid)


def test_a_watcher_goes_with_a_worker_that_was_killed(tmp_path: Path) -> None:
    with worker(tmp_path, "is_good") as process:
        watcher = watcher_of(process)

        process.kill()

        wait_until_sync(lambda: not is_alive(watcher.pid), DEADLINE_SECONDS, "the watcher is gone")


def test_a_worker_that_is_frozen_is_not_killed_and_has_its_time_again(tmp_path: Path) -> None:
    with worker(tmp_path, "is_good") as process:
        process.send_signal(signal.SIGSTOP)
        wait_until_sync(lambda: process_state(process.pid) == "T", DEADLINE_SECONDS)
        frozen_until = time.monotonic() + 4 * LIMIT_SECONDS
        wait_until_sync(lambda: time.monotonic() > frozen_until)
        process.send_signal(signal.SIGCONT)
        thawed_until = time.monotonic() + LIMIT_SECONDS
        wait_until_sync(lambda: time.monotonic() > thawed_until or process.poll() is not None)
        assert process.poll() is None

        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0


def test_a_worker_goes_on_without_its_watcher_and_says_so(tmp_path: Path) -> None:
    with worker(tmp_path, "is_good") as process:
        watcher_of(process).kill()

        wait_until_sync(lambda: "watcher outside is gone" in (tmp_path / "log").read_text(), DEADLINE_SECONDS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0


def test_what_holds_the_worker_open_is_not_in_the_watcher(tmp_path: Path) -> None:
    with worker(tmp_path, "is_good") as process:
        descriptors = os.listdir(f"/proc/{watcher_of(process).pid}/fd")

    assert sorted(descriptors) == ["0", "1", "2"]
