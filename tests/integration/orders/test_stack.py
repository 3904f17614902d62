"""The supervisor of `orders up`: roles are started again when they die, and a folder has one stack."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import cast

import pytest

from hopline import Node, OutsideError, UsageError
from orders import stack
from orders.stack import NodeSupervisor, Role, locked, log_files
from tests.conftest import NodeFactory
from tests.support.processes import is_alive
from tests.support.waiting import wait_until

SLEEPER = [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(600)"]


async def test_a_role_that_dies_is_started_again_and_a_stopped_one_is_not() -> None:
    lines: list[tuple[str, str]] = []
    role = Role("sleeper", SLEEPER, {}, lambda name, line: lines.append((name, line)))
    await role.start()
    await wait_until(lambda: ("sleeper", "hello") in lines)
    first = role.pid

    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: role.restarts == 1 and role.pid not in (0, first))
    await wait_until(lambda: lines.count(("sleeper", "hello")) == 2)
    second = role.pid
    await role.stop()

    assert not is_alive(first)
    assert not is_alive(second)
    assert (role.pid, role.restarts) == (0, 1)
    assert ("sleeper", "ended with status -9; starting it again") in lines


async def test_a_line_without_end_is_left_out_and_the_log_goes_on() -> None:
    lines: list[str] = []
    noisy = "import sys, time; sys.stdout.write('x' * 200_000 + '\\nafter\\n'); sys.stdout.flush(); time.sleep(600)"
    role = Role("noisy", [sys.executable, "-c", noisy], {}, lambda _name, line: lines.append(line))

    await role.start()
    await wait_until(lambda: "after" in lines)
    await role.stop()

    assert "(a log line that was too long was left out)" in lines


def test_a_folder_has_one_stack(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match=f"supervisor pid {os.getpid()}"), locked(tmp_path):
        pass

    with locked(tmp_path):
        pass


def test_each_role_has_a_log_file_that_is_appended_to(tmp_path: Path) -> None:
    for line in ("one", "two"):
        with log_files(tmp_path / "logs", lambda _role, _line: None) as log:
            log("api", line)

    assert (tmp_path / "logs" / "api.log").read_text() == "one\ntwo\n"


async def test_a_rabbitmq_node_that_dies_is_named_and_started_again_where_it_was(rabbitmq_node: NodeFactory) -> None:
    node = rabbitmq_node()
    url, first = node.url, node.pid
    lines: list[tuple[str, str]] = []
    restarted: list[int | None] = []
    supervisor = NodeSupervisor(node, lambda role, line: lines.append((role, line)), lambda: restarted.append(node.pid))
    supervisor.start()
    try:
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: supervisor.restarts == 1, 60)
    finally:
        await supervisor.stop()

    assert restarted == [node.pid]
    assert node.pid not in (None, first)
    assert node.url == url
    assert lines == [
        ("rabbitmq", "the node ended with status -9; starting it again"),
        ("rabbitmq", f"ready again at {url}"),
    ]


class DyingNode:
    """A node that has died and cannot be started the first times."""

    url = "amqp://here/"

    def __init__(self, failures: int) -> None:
        self.exit_status: int | None = 1
        self.left = failures

    def start(self) -> None:
        self.exit_status = None  # as after a start that failed and left nothing running
        if self.left:
            self.left -= 1
            raise OutsideError("port 5672 is used by another program")


async def test_a_node_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "NODE_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(stack, "RESTART_SECONDS", 0.001)
    lines: list[str] = []
    supervisor = NodeSupervisor(
        cast("Node", DyingNode(failures=3)), lambda _role, line: lines.append(line), lambda: None
    )
    supervisor.start()

    await wait_until(lambda: supervisor.restarts == 1)
    await supervisor.stop()

    assert lines.count("the node could not be started: port 5672 is used by another program") == 3
    assert lines[-1] == "ready again at amqp://here/"
