"""The health port of a role, over HTTP, with a real broker that comes and goes."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import pytest

from hopline import free_ports, health
from hopline.app import Hopline, Producer
from hopline.cli import roles
from hopline.errors import UsageError
from hopline.handlers import Handlers
from hopline.health import serving
from hopline.message import message
from hopline.settings import Settings
from tests.conftest import NodeFactory
from tests.support.raw_http import answer_to
from tests.support.waiting import wait_until

NO_BROKER = "amqp://127.0.0.1:1/"


@message("health.checked", key="id")
class Checked(msgspec.Struct):
    id: str


@dataclass(frozen=True)
class Port:
    """What answers on a health port; every call blocks."""

    number: int

    def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        try:
            with urlopen(f"http://127.0.0.1:{self.number}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    async def ready(self) -> tuple[int, dict[str, Any]]:
        """What /readyz says; 0 while nothing listens."""
        try:
            status, body = await asyncio.to_thread(self.get, "/readyz")
        except OSError:
            return 0, {}
        return status, json.loads(body)

    async def is_ready(self) -> bool:
        return (await self.ready())[0] == 200


def program(database_url: str, broker_url: str, **settings: Any) -> Hopline:
    handlers = Handlers()

    @handlers.on("checks")
    async def check(_one: Checked) -> None:
        return

    return Hopline(handlers=[handlers], settings=Settings(database_url=database_url, broker_url=broker_url, **settings))


@asynccontextmanager
async def role(app: Hopline, name: str) -> AsyncIterator[Port]:
    """A role as its command runs it."""
    await app.migrate()
    stop = asyncio.Event()
    work = roles._work(app, (), stop) if name == "worker" else roles._relay(app, stop)
    task = asyncio.create_task(work)
    try:
        yield Port(app.settings.health_port)
    finally:
        stop.set()
        await task


@asynccontextmanager
async def watched(app: Hopline) -> AsyncIterator[tuple[Port, Producer]]:
    await app.migrate()
    async with serving(app.settings) as health, app.producing() as producer:
        health.watch(producer)
        yield Port(app.settings.health_port), producer


async def test_a_worker_is_unready_with_the_reason_while_the_broker_is_away(
    rabbitmq_node: NodeFactory, sqlite_database_url: str
) -> None:
    # Given a worker that is ready
    node = rabbitmq_node(management=False)
    (port,) = free_ports(1)
    async with role(program(sqlite_database_url, node.url, health_port=port), "worker") as at:
        await wait_until(at.is_ready, 20)
        _, before = await at.ready()

        # When RabbitMQ goes away. In order: RabbitMQ 3.10 finds no leader again for a queue that was made about a
        # second or less before a SIGKILL, and the worker is then rightly unready
        await asyncio.to_thread(node.stop)
        await wait_until(lambda: _unready(at, "publish", "consume"), 20)
        status, away = await at.ready()
        _, text = await asyncio.to_thread(at.get, "/metrics")
        alive, _ = await asyncio.to_thread(at.get, "/healthz")

        # Then both links say so, and the process lives
        assert status == 503
        assert before["why"] == []
        assert {reason.partition(":")[0] for reason in away["why"]} == {"publish", "consume"}
        assert away["links"]["consume"]["trouble"]
        assert away["database"] == "ok"
        assert 'hopline_link_ready{link="consume"} 0.0' in text
        assert alive == 200

        # And when it is back, the worker is ready again, and has counted
        await asyncio.to_thread(node.start)
        await wait_until(at.is_ready, 30)
        _, after = await at.ready()
        assert after["links"]["consume"]["reconnects"] == before["links"]["consume"]["reconnects"] + 1


async def test_a_relay_has_one_link(broker_url: str, sqlite_database_url: str) -> None:
    (port,) = free_ports(1)
    async with role(program(sqlite_database_url, broker_url, health_port=port), "relay") as at:
        await wait_until(at.is_ready, 20)

        _, state = await at.ready()

    assert list(state["links"]) == ["publish"]
    assert (await at.ready())[0] == 0


async def test_a_blocked_event_loop_is_told(sqlite_database_url: str) -> None:
    (port,) = free_ports(1)
    async with watched(program(sqlite_database_url, NO_BROKER, health_port=port)) as (at, _):
        with ThreadPoolExecutor(1) as thread:  # waited for here, in the loop's own thread: it turns to nothing else
            status, body = thread.submit(at.get, "/readyz").result(20)
            counted, text = thread.submit(at.get, "/metrics").result(20)
            alive, _ = thread.submit(at.get, "/healthz").result(20)

    assert status == 503
    assert json.loads(body)["why"][0].startswith("the event loop has not answered for ")
    assert json.loads(body)["loop_lag_seconds"] >= 1
    assert counted == 200
    assert "hopline_ready 0.0" in text
    assert alive == 200


async def test_a_database_that_is_gone_is_a_reason(tmp_path: Path, broker_url: str) -> None:
    (port,) = free_ports(1)
    folder = tmp_path / "data"
    folder.mkdir()
    app = program(f"sqlite+aiosqlite:///{folder / 'test.db'}", broker_url, health_port=port)
    async with watched(app) as (at, producer):
        await wait_until(at.is_ready, 20)

        await producer.database.close()
        folder.rename(tmp_path / "elsewhere")
        status, state = await at.ready()
        (tmp_path / "elsewhere").rename(folder)

    assert status == 503
    assert state["why"] == [f"database: {state['database']}"]
    assert state["database"] != "ok"


async def test_before_and_after_its_work_a_role_is_not_ready(sqlite_database_url: str, broker_url: str) -> None:
    (port,) = free_ports(1)
    app = program(sqlite_database_url, broker_url, health_port=port)
    await app.migrate()
    at = Port(port)
    async with serving(app.settings) as health:
        starting = await at.ready()
        async with app.producing() as producer:
            health.watch(producer)
            await wait_until(at.is_ready, 20)
            health.draining()
            draining = await at.ready()

    assert (starting[0], starting[1]["why"]) == (503, ["it is starting"])
    assert (draining[0], draining[1]["why"]) == (503, ["it is draining"])


async def test_anything_else_is_not_found(sqlite_database_url: str) -> None:
    (port,) = free_ports(1)
    async with watched(program(sqlite_database_url, NO_BROKER, health_port=port)) as (at, _):
        status, body = await asyncio.to_thread(at.get, "/secrets?x=/readyz")

    assert status == 404
    assert json.loads(body) == {"paths": ["/healthz", "/readyz", "/metrics"]}


async def test_without_a_port_nothing_listens(sqlite_database_url: str) -> None:
    async with watched(program(sqlite_database_url, NO_BROKER)):
        threads = [thread.name for thread in threading.enumerate()]

    assert "health" not in threads


async def test_a_port_that_is_taken_stops_the_role_with_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(health_port=taken.getsockname()[1])

        with pytest.raises(UsageError, match=r"cannot listen on .*HOPLINE_HEALTH_PORT=\d+: .*in use"):
            async with serving(settings):
                pass


async def test_more_connections_than_are_allowed_are_closed_unanswered(sqlite_database_url: str) -> None:
    (port,) = free_ports(1)
    async with watched(program(sqlite_database_url, NO_BROKER, health_port=port)) as (at, _):
        silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(17)]

        ends = await asyncio.to_thread(silent[16].recv, 1)
        for each in silent:
            each.close()
        await wait_until(lambda: _answers(at))

    assert ends == b""


async def _unready(at: Port, *links: str) -> bool:
    status, state = await at.ready()
    return status == 503 and not any(state["links"][link]["ready"] for link in links)


async def _answers(at: Port) -> bool:
    try:
        return (await asyncio.to_thread(at.get, "/healthz"))[0] == 200
    except OSError:
        return False


@pytest.mark.parametrize(
    ("first", "again"),
    [(b"", b""), (b"GET /healthz HT", b"x"), (b"GET /healthz HTTP/1.1\r\n", b"a: b\r\n")],
    ids=["nothing", "a-slow-line", "slow-headers"],
)
async def test_a_client_that_asks_slowly_is_closed(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch, first: bytes, again: bytes
) -> None:
    monkeypatch.setattr(health, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(health._Request, "timeout", 0.3)
    (port,) = free_ports(1)
    async with watched(program(sqlite_database_url, NO_BROKER, health_port=port)):
        answer = await answer_to(port, first, (lambda: again) if again else bytes)

    assert answer == b""


def test_a_head_is_read_up_to_a_bound() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, io.BufferedReader(health._Head(ours)) as head:
        theirs.sendall(b"x" * (health.HEAD_BYTES + 1))

        assert len(head.read()) == health.HEAD_BYTES
