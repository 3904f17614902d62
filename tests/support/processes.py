"""Commands of the system as processes of their own, and whether processes are gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until_sync

DEADLINE_SECONDS = 90


def orders(*words: object) -> list[str]:
    """The command line of `orders …`."""
    return [sys.executable, "-m", "orders.cli", *map(str, words)]


async def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Runs `orders …` to its end."""
    return await asyncio.to_thread(
        subprocess.run, orders(*words), capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )


@contextmanager
def up(folder: Path, *words: object) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """`orders up`, ready: the process and its run.json. Stopped with SIGINT, as Ctrl-C does."""
    log = folder.parent / f"{folder.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(orders("up", "--folder", folder, *words), stdout=output, stderr=output)
    try:
        ready = folder / "run.json"
        wait_until_sync(lambda: ready.exists() or process.poll() is not None, DEADLINE_SECONDS)
        assert process.poll() is None, log.read_text()
        yield process, json.loads(ready.read_text())
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(DEADLINE_SECONDS)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@contextmanager
def taken(*ports: int) -> Iterator[None]:
    """Makes sure that the ports of 127.0.0.1 are in use."""
    with ExitStack() as stack:
        for port in ports:
            one = stack.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue  # somebody has it: all the better
            one.listen()
        yield
