"""How a role is, over HTTP: /healthz, /readyz and /metrics, on a small server in threads of its own.

In threads, so that it answers when the event loop does not, and says so: the process's state is read on the loop,
within a deadline. /healthz is 200 while the process lives. /readyz is 200 when every link to RabbitMQ is ready and
the database can be written, else 503 with each reason; a paused queue is reported, but does not make it unready.
It refuses what is no GET of these three, has no TLS and no login: bind it to an address that only operators reach.
"""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6, socket
from socketserver import TCPServer
from typing import Any, Final

import msgspec
import structlog

from hopline import metrics
from hopline.app import Producer
from hopline.database import Database
from hopline.errors import DatabaseError, UsageError
from hopline.rabbitmq import ALARM
from hopline.settings import Settings

LOOP_SECONDS: Final = 1.0
"""How long the event loop may take to turn to a question; the usual deadline of a probe."""
DATABASE_SECONDS: Final = 2.0
"""How long the database may take to answer."""
REQUEST_SECONDS: Final = 2.0
"""How long a client may take to ask; a stopping process waits for it."""
HEAD_BYTES: Final = 16 * 1024
"""As much of a request is read."""
CONNECTIONS: Final = 16
"""At once, each with a thread; further ones are closed unanswered."""

Report = dict[str, Any]
"""What a process says of itself, with `ready`, `why` (a list of reasons) and `loop_lag_seconds`."""

log = structlog.get_logger("hopline.health")


class Health:
    """What is known of one role's process. `watch` and `draining` are for the loop, `report` is for other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._producer: Producer | None = None
        self._unready = "it is starting"

    def watch(self, producer: Producer) -> None:
        """The role runs: from now on its state decides."""
        self._producer, self._unready = producer, ""

    def draining(self) -> None:
        """The role has been told to stop."""
        self._unready = "it is draining"

    def report(self) -> Report:
        """The state now. Blocks for a few seconds at most, and longer than LOOP_SECONDS only for the database."""
        asked, turned = time.monotonic(), threading.Event()
        look = asyncio.run_coroutine_threadsafe(self._look(asked, turned), self._loop)
        try:
            if turned.wait(LOOP_SECONDS):
                return look.result(DATABASE_SECONDS + LOOP_SECONDS)
        except TimeoutError:
            pass
        look.cancel()
        lag = time.monotonic() - asked
        return _unready(f"the event loop has not answered for {lag:.1f} s", lag)

    async def _look(self, asked: float, turned: threading.Event) -> Report:
        lag = time.monotonic() - asked
        turned.set()
        if self._producer is None:
            return _unready(self._unready, lag)
        trouble = await _database_trouble(self._producer.database)
        return report_of(self._producer.state(), unready=self._unready, database=trouble, loop_lag_seconds=lag)


def _unready(why: str, loop_lag_seconds: float) -> Report:
    return {"ready": False, "why": [why], "loop_lag_seconds": loop_lag_seconds}


def report_of(state: metrics.State, *, unready: str = "", database: str = "", loop_lag_seconds: float) -> Report:
    """Decides readiness. `database` is why it does not answer, as found now; the state's own word is older."""
    links = _links(state)
    said = state.get("database", "ok")
    database = database or ("" if said == "ok" else said)
    why = [unready] if unready else []
    why += [f"{name}: {link['trouble'] or 'closed'}" for name, link in links.items() if not link["ready"]]
    why += [f"database: {database}"] if database else []
    told = {"ready": not why, "why": why, "loop_lag_seconds": loop_lag_seconds}
    return {**told, **state, "links": links, "database": database or "ok"}


def metrics_text(producer: Producer) -> bytes:
    """The metrics of a producer's process, for the /metrics of a web framework; call it in the producer's loop."""
    state = producer.state()
    return metrics.text({**state, "links": _links(state)})


def _links(state: metrics.State) -> dict[str, metrics.State]:
    """The links, each with whether an alarm of the broker blocks it."""
    return {
        name: {**link, "blocked": link["trouble"].startswith(ALARM)} for name, link in state.get("links", {}).items()
    }


async def _database_trouble(database: Database) -> str:
    try:
        async with asyncio.timeout(DATABASE_SECONDS):
            await database.check_writable()
    except TimeoutError:
        return f"no answer within {DATABASE_SECONDS:g} s"
    except DatabaseError as error:
        return str(error)
    return ""


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Health]:
    """Answers on HOPLINE_HEALTH_PORT to the end of the block; with port 0 nobody is told. UsageError if it is taken."""
    health = Health()
    if not settings.health_port:
        yield health
        return
    try:
        server = _Server((settings.health_host, settings.health_port), health)
    except OSError as error:
        where = f"HOPLINE_HEALTH_HOST={settings.health_host} HOPLINE_HEALTH_PORT={settings.health_port}"
        raise UsageError(f"cannot listen on {where}: {error}") from None
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    log.info("health", url=f"http://{settings.health_host}:{settings.health_port}/readyz")
    try:
        yield health
    finally:
        await asyncio.to_thread(server.stop)  # not here: what it still answers needs the loop


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = CONNECTIONS

    def __init__(self, address: tuple[str, int], health: Health) -> None:
        self.health = health
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Request)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask the DNS for a name that nobody needs

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        log.warning("a question about health was not answered", client=client_address, exc_info=True)

    def stop(self) -> None:
        """Takes no further connection, and returns when the last is answered."""
        self.shutdown()
        self.server_close()


class _Head(io.RawIOBase):
    """What a client sends, up to HEAD_BYTES and for REQUEST_SECONDS in all; a socket's own timeout is for each read."""

    def __init__(self, connection: socket) -> None:
        self._connection = connection
        self._left_bytes = HEAD_BYTES
        self._until = time.monotonic() + REQUEST_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Takes what is there; 0, as at the end of a connection, after HEAD_BYTES. TimeoutError."""
        left_seconds = self._until - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError(f"the request did not come within {REQUEST_SECONDS:g} s")
        if not self._left_bytes:
            return 0
        self._connection.settimeout(left_seconds)
        read = self._connection.recv_into(memoryview(buffer)[: self._left_bytes])
        self._left_bytes -= read
        return read


class _Request(BaseHTTPRequestHandler):
    server: _Server
    server_version = "hopline"
    sys_version = ""
    timeout = REQUEST_SECONDS

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Head(self.connection))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._answer(200, msgspec.json.encode({"alive": True}))
        elif path == "/readyz":
            report = self.server.health.report()
            self._answer(200 if report["ready"] else 503, msgspec.json.encode(report))
        elif path == "/metrics":
            self._answer(200, metrics.text(self.server.health.report()), metrics.CONTENT_TYPE)
        else:
            self._answer(404, msgspec.json.encode({"paths": ["/healthz", "/readyz", "/metrics"]}))

    def _answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.connection.settimeout(REQUEST_SECONDS)  # for the whole of a write
        self.send_response(status)
        for name, value in (("Content-Type", content_type), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Probes are many and say nothing."""
