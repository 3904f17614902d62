"""The private RabbitMQ node against the installed RabbitMQ: it shares nothing, loses nothing and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from urllib.request import HTTPBasicAuthHandler, HTTPPasswordMgrWithDefaultRealm, build_opener

import psutil
import pytest

import hopline.node
from hopline import Node
from hopline.amqp import AMQPError, Outgoing, Properties, connect
from hopline.node import NodeError
from tests.conftest import NodeFactory
from tests.support.queues import sync_queues
from tests.support.waiting import wait_until, wait_until_sync

QUORUM = {"x-queue-type": "quorum"}


async def publish(url: str, queue: str, body: bytes) -> None:
    """Returns when the broker has confirmed it."""
    connection = await connect(url, name="node tests")
    channel = await connection.channel()
    await channel.confirm_select()
    await channel.declare_queue(queue, arguments=QUORUM)
    await channel.publish([Outgoing("", queue, Properties(delivery_mode=2), body)])
    await connection.close()


async def count_of(url: str, queue: str) -> int:
    connection = await connect(url, name="node tests")
    channel = await connection.channel()
    state = await channel.declare_queue(queue, arguments=QUORUM)
    await connection.close()
    return state.messages


async def count_is(expected: int, url: str, queue: str) -> bool:
    return await count_of(url, queue) == expected


def management_count(node: Node, queue: str) -> int | None:
    """Ready messages as the management API's own list of queues has them."""
    passwords = HTTPPasswordMgrWithDefaultRealm()
    base = f"http://127.0.0.1:{node.ports['management']}"
    passwords.add_password(None, base, "guest", "guest")
    with build_opener(HTTPBasicAuthHandler(passwords)).open(f"{base}/api/queues/%2F", timeout=5) as response:
        queues = json.load(response)
    return next((each.get("messages_ready") for each in queues if each["name"] == queue), None)


def listening_addresses(pid: int) -> set[str]:
    connections = psutil.Process(pid).net_connections(kind="inet")
    return {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}


def processes_of(folder: Path) -> list[str]:
    """Whatever runs with `folder` as its home: the VM, epmd and their children."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.name()}")
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def owner_of(folder: Path) -> subprocess.Popen[str]:
    """Another process, which starts a node, tells its pid and URL, and then waits."""
    code = "import sys, hopline; n = hopline.Node(sys.argv[1]); n.start(); print(n.pid, n.url, flush=True); input()"
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def test_two_nodes_run_where_every_usual_port_is_taken(rabbitmq_node: NodeFactory) -> None:
    with ExitStack() as stack:
        for port in (4369, 5672, 15672, 25672):
            taken = stack.enter_context(socket.socket())
            try:
                taken.bind(("127.0.0.1", port))
                taken.listen()
            except OSError:
                continue  # something else has it: just as good

        one, other = rabbitmq_node(), rabbitmq_node(management=False)
        await publish(one.url, "orders", b"for one")

        assert await count_of(one.url, "orders") == 1
        assert await count_of(other.url, "orders") == 0
        assert "orders" in one.ctl("list_queues", "name")


def test_it_listens_on_the_loopback_address_only(rabbitmq: Node) -> None:
    vm = rabbitmq.pid
    assert vm is not None

    addresses = listening_addresses(vm)

    assert addresses == {"127.0.0.1"}


async def test_the_management_api_counts_within_three_seconds(rabbitmq: Node) -> None:
    await publish(rabbitmq.url, "fresh-counts", b"one")

    await wait_until(lambda: management_count(rabbitmq, "fresh-counts") == 1, deadline_seconds=3)


async def test_what_was_confirmed_survives_kill_minus_9_on_the_same_url(rabbitmq_node: NodeFactory) -> None:
    node = rabbitmq_node()
    url = node.url
    await publish(url, "orders", b"confirmed")
    sync_queues(node)

    node.kill()
    assert node.pid is None
    with pytest.raises(AMQPError):
        await connect(url, timeout_seconds=2)
    node.start()

    assert node.url == url
    # A queue says 0 until it has elected its leader again.
    await wait_until(lambda: count_is(1, url, "orders"))

    node.stop()

    assert processes_of(node.folder) == []


def test_an_epmd_that_the_vm_started_in_place_of_a_lost_one_is_stopped_too(rabbitmq_node: NodeFactory) -> None:
    node = rabbitmq_node(management=False)
    assert node._epmd is not None
    node._epmd.kill()
    node._epmd.wait()
    program = hopline.node._find_program("epmd")
    assert program is not None
    subprocess.run([program, "-daemon"], env=node._environment(), check=True)  # the VM does this, once a minute

    node.stop()

    assert processes_of(node.folder) == []


def test_stop_leaves_no_process_and_no_port_and_may_be_repeated(rabbitmq_node: NodeFactory) -> None:
    node = rabbitmq_node()
    ports = node.ports
    assert len(processes_of(node.folder)) >= 2

    node.stop()
    node.stop()

    assert node.pid is None
    assert processes_of(node.folder) == []
    assert all(hopline.node._is_free(port) for port in ports.values())


async def test_a_paused_node_says_nothing_until_it_is_resumed(rabbitmq_node: NodeFactory) -> None:
    node = rabbitmq_node(management=False)

    node.pause()
    with pytest.raises(AMQPError):
        await connect(node.url, timeout_seconds=0.5)
    node.resume()

    assert await count_of(node.url, "orders") == 0


@pytest.mark.usefixtures("rabbitmq_installed")
async def test_what_a_killed_owner_left_running_is_stopped_and_its_data_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces" / ("and a long name " * 8).strip()
    with owner_of(folder) as owner:
        assert owner.stdout is not None
        left, url = owner.stdout.readline().split()
        await publish(url, "orders", b"confirmed")
        owner.kill()
    assert psutil.pid_exists(int(left))

    with Node(folder) as node:
        assert not psutil.pid_exists(int(left)) or psutil.Process(int(left)).status() == psutil.STATUS_ZOMBIE
        await wait_until(lambda: count_is(1, node.url, "orders"))

    wait_until_sync(lambda: processes_of(folder) == [])


def test_the_folder_of_a_living_owner_is_refused(rabbitmq: Node) -> None:
    pid = rabbitmq.pid

    with pytest.raises(NodeError, match="another program runs its node in"):
        Node(rabbitmq.folder).start()

    assert rabbitmq.pid == pid


def test_a_reused_pid_is_never_signalled(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('ready', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bystander:
        assert bystander.stdout is not None
        assert bystander.stdout.readline() == "ready\n"
        (tmp_path / "pid").write_text(f"{bystander.pid}\n")
        node = Node(tmp_path)

        node.kill()

        assert node.pid is None
        assert bystander.poll() is None
        bystander.kill()


async def test_a_port_lost_to_another_broker_is_noticed_and_replaced(
    rabbitmq: Node, rabbitmq_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = rabbitmq_node(start=False)
    node._ports = node._ports._replace(amqp=rabbitmq.port)
    looks = iter([True] * len(node.ports))
    is_free = hopline.node._is_free
    monkeypatch.setattr(hopline.node, "_is_free", lambda port: next(looks, None) or is_free(port))

    node.start()

    assert node.port != rabbitmq.port
    assert await count_of(node.url, "orders") == 0


def test_a_port_that_was_asked_for_is_never_replaced(rabbitmq: Node, rabbitmq_node: NodeFactory) -> None:
    node = rabbitmq_node(start=False, port=rabbitmq.port)

    with pytest.raises(NodeError, match=f"port {rabbitmq.port}, the node's amqp port, is used by another program"):
        node.start()


def test_a_failed_start_shows_the_end_of_the_log_and_leaves_nothing(rabbitmq_node: NodeFactory) -> None:
    node = rabbitmq_node(start=False)
    node.folder.mkdir()
    (node.folder / "data").write_text("a file where RabbitMQ wants a folder")

    with pytest.raises(NodeError, match=r"(?s)ended during its start.*The end of .*start\.log:\n.*\S"):
        node.start()

    assert processes_of(node.folder) == []


def test_ctl_says_what_rabbitmqctl_said(rabbitmq: Node) -> None:
    with pytest.raises(NodeError, match="no_such_command"):
        rabbitmq.ctl("no_such_command")


@pytest.mark.usefixtures("rabbitmq_installed")
def test_a_node_needs_no_root() -> None:
    nobody = 65534
    code = "import os, sys, encodings.idna, hopline\n"  # what Python would load later may be closed to nobody
    with tempfile.TemporaryDirectory(prefix="hopline-node-") as folder:  # pytest's own folders are closed to others
        if os.geteuid() == 0:
            os.chown(folder, nobody, nobody)
            code += f"os.setgid({nobody}); os.setuid({nobody})\n"
        code += "with hopline.Node(sys.argv[1]) as node: print(node.pid)"

        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)

    if done.returncode != 0 and re.search("^unshare: ", done.stderr, re.MULTILINE):
        pytest.skip("RabbitMQ 4 of ./dev runs in mounts of its own, which this system grants to root only")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdigit()
