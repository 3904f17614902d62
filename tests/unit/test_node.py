"""What a node decides without starting anything: where RabbitMQ is, which ports, whose process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import hopline.node
from hopline import Node, find_sbin
from hopline.node import NodeError
from tests.support.waiting import wait_until_sync


def scripts(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "rabbitmq-server").touch()
    return folder


def test_the_newest_rabbitmq_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOPLINE_RABBITMQ_SBIN", raising=False)
    monkeypatch.setattr(hopline.node, "_SBIN_PATTERNS", (f"{tmp_path}/rabbitmq_server-*/sbin",))
    scripts(tmp_path / "rabbitmq_server-3.9.27" / "sbin")
    newest = scripts(tmp_path / "rabbitmq_server-3.10.8" / "sbin")
    (tmp_path / "rabbitmq_server-4.0.5" / "sbin").mkdir(parents=True)

    found = find_sbin()

    assert found == newest


def test_the_environment_names_rabbitmq_before_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = scripts(tmp_path / "mine")
    monkeypatch.setenv("HOPLINE_RABBITMQ_SBIN", str(named))

    found = find_sbin()

    assert found == named


def test_a_named_folder_without_rabbitmq_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPLINE_RABBITMQ_SBIN", str(tmp_path))

    with pytest.raises(NodeError, match=r"HOPLINE_RABBITMQ_SBIN is .* where there is no rabbitmq-server"):
        find_sbin()


def test_without_rabbitmq_a_start_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOPLINE_RABBITMQ_SBIN", raising=False)
    monkeypatch.setattr(hopline.node, "_SBIN_PATTERNS", (f"{tmp_path}/nowhere",))
    assert find_sbin() is None

    with pytest.raises(NodeError, match="apt-get install rabbitmq-server"):
        Node(tmp_path / "node").start()

    assert not (tmp_path / "node").exists()


def test_its_addresses_are_known_before_it_starts(tmp_path: Path) -> None:
    node = Node(tmp_path, port=29999)

    assert node.url == "amqp://guest:guest@127.0.0.1:29999/%2F"
    assert node.management_url == f"http://guest:guest@127.0.0.1:{node.ports['management']}"
    assert len(set(node.ports.values())) == 4
    assert node.pid is None


def test_no_port_is_ephemeral(tmp_path: Path) -> None:
    ports = [port for _ in range(20) for port in Node(tmp_path).ports.values()]

    assert all(20_000 <= port < 32_000 for port in ports)


def test_a_port_is_free_only_if_nothing_listens_on_it() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        assert not hopline.node._is_free(port)

    assert hopline.node._is_free(port)


def test_what_does_not_run_cannot_be_paused_and_is_stopped_already(tmp_path: Path) -> None:
    node = Node(tmp_path)

    node.stop()
    node.kill()

    with pytest.raises(NodeError, match="does not run"):
        node.pause()
    with pytest.raises(NodeError, match="never started"):
        node.ctl("status")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"vm": 1, "epmd": 2, "ports": {"amqp": 1}}', "\x00"])
def test_a_torn_record_of_an_earlier_owner_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.json").write_text(text)

    assert hopline.node._read_record(tmp_path / "node.json") is None


def test_a_process_is_ours_only_if_its_command_line_names_the_folder(tmp_path: Path) -> None:
    node, other = Node(tmp_path / "a"), Node(tmp_path / "a b")
    command = [sys.executable, "-c", "input()", "-hopline_node", str(node.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        # An exec clears the command line for a moment before the new one is there.
        wait_until_sync(lambda: node._is_ours(process.pid))
        others = other._is_ours(process.pid)
        process.kill()

    assert not others
    assert not node._is_ours(process.pid)
    assert not node._is_ours(os.getpid())
