"""The stacks of `flow` and `latency`: how each is started on a stand. The job and its letter are the same for all.

`best` sides are what the other benchmarks compare; the rest of Celery's ways to run (its prefork pool of several
sizes, its solo and thread pools, publishing in the event loop) are there to show that the best was chosen.
"""

import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.processes import Group, run
from bench.programs import peers_python
from bench.site import Stand
from hopline import free_ports

ON_HAND: Final = 1_000_000_000
"""Units of every product: no order is refused for want of stock."""
SETUP_SECONDS: Final = 60
UVICORN: Final = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")


@dataclass(frozen=True, slots=True)
class Running:
    """A side that takes orders."""

    url: str
    group: Group


Start = Callable[[Stand, int, Group], None]


@dataclass(frozen=True, slots=True)
class Side:
    """One stack."""

    name: str
    title: str
    start: Start
    """Starts its processes on a stand, the API on a port."""
    sqlite: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    queues: tuple[str, ...] = ("orders",)

    @contextmanager
    def running(self, stand: Stand) -> Iterator[Running]:
        """Started and ready; stopped at the end."""
        (port,) = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        group = Group(stand.folder / "logs")
        try:
            self.start(stand, port, group)
            group.wait_for(lambda: _ready(url), f"{self.name} is ready")
            yield Running(url, group)
        finally:
            group.stop()


def _orders(stand: Stand, port: int, group: Group) -> None:
    environment = {
        "HOPLINE_APP": "orders.wiring:app",
        "HOPLINE_DATABASE_URL": stand.database_url,
        "HOPLINE_BROKER_URL": stand.broker_url,
        "ORDERS_SMTP_URL": stand.smtp_url,
    }
    orders = [sys.executable, "-m", "orders.cli"]
    run([*orders, "load-catalogue", "--on-hand", ON_HAND], environment, timeout_seconds=SETUP_SECONDS)
    group.start("api", [*orders, "api", "--port", port], environment)
    group.start("worker", [sys.executable, "-m", "hopline.cli", "worker"], environment)


def peer_environment(stand: Stand) -> dict[str, str]:
    """What the peers read."""
    return {
        "BENCH_DATABASE_URL": stand.database_url,
        "BENCH_BROKER_URL": stand.broker_url,
        "BENCH_SMTP_PORT": stand.smtp_url.rpartition(":")[2],
    }


def _celery(*, pool: str, concurrency: int, publish: str = "thread") -> Start:
    options = ("--loglevel", "warning", "--without-gossip", "--without-mingle", "--without-heartbeat")

    def start(stand: Stand, port: int, group: Group) -> None:
        environment = peer_environment(stand) | {
            "BENCH_CELERY_CONCURRENCY": str(concurrency),
            "BENCH_CELERY_PUBLISH": publish,
        }
        python = peers_python()
        _uvicorn(python, "bench.peers.celery_api:api", port, group, environment)
        worker = [python, "-m", "celery", "-A", "bench.peers.celery_flow", "worker", *options]
        group.start("worker", [*worker, "--pool", pool, "--concurrency", concurrency], environment)

    return start


def _faststream(stand: Stand, port: int, group: Group) -> None:
    environment = peer_environment(stand)
    python = peers_python()
    _uvicorn(python, "bench.peers.faststream_flow:api", port, group, environment)
    group.start("worker", [python, "-m", "bench.peers.faststream_flow"], environment)


def _uvicorn(python: Path, api: str, port: int, group: Group, environment: Mapping[str, str]) -> None:
    group.start("api", [python, "-m", "uvicorn", api, "--port", port, *UVICORN], environment)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 - our own API
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


HOPLINE: Final = ("orders", "emails")
SIDES: Final = {
    side.name: side
    for side in (
        Side("orders", "orders (Hopline), Postgres", _orders, queues=HOPLINE),
        Side("orders-sqlite", "orders (Hopline), SQLite", _orders, sqlite=True, queues=HOPLINE),
        Side("celery", "FastAPI + SQLAlchemy + Celery", _celery(pool="prefork", concurrency=8)),
        Side("faststream", "FastAPI + SQLAlchemy + FastStream", _faststream),
        Side("celery-prefork-2", "Celery, prefork, 2 processes", _celery(pool="prefork", concurrency=2)),
        Side("celery-prefork-4", "Celery, prefork, 4 processes", _celery(pool="prefork", concurrency=4)),
        Side("celery-solo", "Celery, solo", _celery(pool="solo", concurrency=1)),
        Side("celery-threads", "Celery, 16 threads", _celery(pool="threads", concurrency=16)),
        Side(
            "celery-direct", "Celery, published in the loop", _celery(pool="prefork", concurrency=8, publish="direct")
        ),
    )
}
BEST: Final = ("orders", "orders-sqlite", "celery", "faststream")
