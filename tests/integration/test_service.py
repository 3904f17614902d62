"""A role as a process: what signals do to it, and with which status it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hopline.service import SAME_WISH_SECONDS
from tests.support.waiting import wait_until_sync

PROGRAM = """
    import asyncio, pathlib, sys, time
    from hopline import Settings, run
    from hopline.errors import EndlessHandler
    folder = pathlib.Path(sys.argv[1])

    async def drains(stop):
        (folder / "ready").touch()
        await stop.wait()
        (folder / "draining").touch()
        while not (folder / "go").exists():
            await asyncio.sleep(0.01)
        (folder / "drained").touch()

    async def leaves_a_thread(stop):
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
        (folder / "ready").touch()
        await stop.wait()

    async def endless(stop):
        raise EndlessHandler("queue/type", ["1"])

    sys.exit(run(globals()[sys.argv[2]], Settings(broker_url="amqp://me:s3cret@rabbit/shop"), role="worker"))
"""
DEADLINE_SECONDS = 30


@contextmanager
def role(folder: Path, main: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs one of the functions above; killed at the end if it is still there."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), main]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(path: Path) -> None:
    wait_until_sync(path.exists, DEADLINE_SECONDS, f"{path.name} is there")


def test_signals_close_together_drain(tmp_path: Path) -> None:
    with role(tmp_path, "drains") as process:
        until(tmp_path / "ready")

        process.send_signal(signal.SIGTERM)
        until(tmp_path / "draining")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        (tmp_path / "go").touch()

        assert process.wait(DEADLINE_SECONDS) == 0
    assert (tmp_path / "drained").exists()
    log = (tmp_path / "log").read_text()
    assert "stops at once, from 2 s on" in log
    assert "amqp://me:***@rabbit/shop" in log
    assert "s3cret" not in log


def test_a_later_signal_stops_at_once(tmp_path: Path) -> None:
    with role(tmp_path, "drains") as process:
        until(tmp_path / "ready")
        process.send_signal(signal.SIGTERM)
        until(tmp_path / "draining")

        with_a_further_signal = SAME_WISH_SECONDS + 0.2
        try:
            process.wait(with_a_further_signal)  # it drains, so this is the time between the signals
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)

        assert process.wait(DEADLINE_SECONDS) == 1
    assert not (tmp_path / "drained").exists()


def test_a_thread_that_a_handler_left_behind_does_not_keep_the_process(tmp_path: Path) -> None:
    with role(tmp_path, "leaves_a_thread") as process:
        until(tmp_path / "ready")

        process.send_signal(signal.SIGTERM)

        assert process.wait(DEADLINE_SECONDS) == 0


def test_an_endless_handler_has_a_status_of_its_own(tmp_path: Path) -> None:
    with role(tmp_path, "endless") as process:
        assert process.wait(DEADLINE_SECONDS) == 5
