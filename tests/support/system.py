"""The whole system for a test: a running stack, load through its HTTP API, and what its clients were answered."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count, cycle, islice
from pathlib import Path

import aiohttp

from hopline import free_ports
from orders import dataset
from orders.dataset import Basket
from orders.replay import Record, Sent, replay
from orders.stack import Role, Stack, StackOptions, running
from tests.support import oracle
from tests.support.queues import sync_queues
from tests.support.waiting import wait_until

WORKER = [sys.executable, "-m", "hopline.cli", "worker"]
DEADLINE_SECONDS = 60.0
FAILPOINTS = "HOPLINE_FAILPOINTS"


@dataclass(frozen=True)
class Scale:
    """How hard a fault is tried."""

    baskets: int
    """At least so many orders are sent while it lasts."""
    rate: float
    """Orders a second."""
    seconds: float
    """How long something is frozen, blocked or locked."""
    broker_kills: int
    environment: Mapping[str, str]
    """What the roles are told."""


SHORT_LEASES = {"HOPLINE_LEASE_SECONDS": "4", "HOPLINE_CONFIRM_TIMEOUT_SECONDS": "2"}
"""The short form does not wait 30 s for what a dead process has leased."""
SHORT = Scale(baskets=150, rate=150.0, seconds=3.0, broker_kills=1, environment=SHORT_LEASES)
LONG = Scale(baskets=2_000, rate=200.0, seconds=30.0, broker_kills=5, environment={})


class Load:
    """Baskets on their way to the API, and the answers so far."""

    def __init__(self) -> None:
        self.answers: list[Sent] = []

    @property
    def accepted(self) -> set[str]:
        """The ids that must reach an end."""
        return {answer.order_id for answer in self.answers if answer.accepted}

    async def more(self, answers: int, what: str = "answers") -> None:
        """Waits for so many further answers."""
        goal = len(self.answers) + answers
        await wait_until(lambda: len(self.answers) >= goal, DEADLINE_SECONDS, f"{answers} more {what}")


class System:
    """A running stack, and what its clients were answered over its whole life."""

    def __init__(self, stack: Stack, scale: Scale, stock: Mapping[str, int]) -> None:
        self.stack = stack
        self.node = stack.node
        self.scale = scale
        self.known: set[str] = set()
        """Every id that a client was told."""
        self.oracle = oracle.Oracle(self.environment, stack.node, stack.ledger, stock)
        self.spoiled = False
        """Whether it is in an unknown state, or not what it was: nobody uses it any more."""
        self._baskets = cycle(_shipped())
        self._runs = count(1)
        self._touched: dict[str, int] = {}
        """Roles that run with a test's own variables, with their pid."""
        self._added: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """For the commands of the system."""
        return {**os.environ, **self.stack.environment}

    @property
    def database_url(self) -> str:
        return self.stack.database_url

    @property
    def is_postgres(self) -> bool:
        return self.database_url.startswith("postgres")

    def log_of(self, role: str) -> str:
        """All that a role ever said."""
        return (self.stack.data / "logs" / f"{role}.log").read_text()

    # -- load

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[Load]:
        """Sends real baskets while the block lasts, and afterwards until there are enough."""
        load, over = Load(), asyncio.Event()

        def baskets() -> Iterator[Basket]:
            yield from islice(self._baskets, self.scale.baskets)
            while not over.is_set():
                yield next(self._baskets)

        sending = asyncio.create_task(self._send(load, baskets(), self.scale.rate), name="load")
        try:
            yield load
        except BaseException:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            raise
        over.set()
        await sending

    def take(self, count: int) -> list[Basket]:
        """The next real baskets."""
        return list(islice(self._baskets, count))

    def take_clean(self, count: int) -> list[Basket]:
        """The next real baskets that the API does not refuse for a line without a quantity."""
        return list(islice((basket for basket in self._baskets if _is_clean(basket)), count))

    async def send(self, baskets: Sequence[Basket] | None = None) -> Load:
        """Sends baskets, real ones unless given, as fast as it goes."""
        load = Load()
        await self._send(load, iter(self.take(self.scale.baskets) if baskets is None else baskets), None)
        return load

    async def post(self, basket: Basket, key: str, url: str = "") -> tuple[int, str]:
        """One request, once; its status and the order's id, if there is one."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_SECONDS))
        async with (
            session,
            session.post(f"{url or self.stack.api_url}/orders", data=basket.body, headers=headers) as answer,
        ):
            identifier = str((await answer.json(content_type=None)).get("id", ""))
            if answer.status == 202:
                self.known.add(identifier)
            return answer.status, identifier

    async def _send(self, load: Load, baskets: Iterator[Basket], rate: float | None) -> None:
        def answered(sent: Sent) -> None:
            load.answers.append(sent)
            if sent.accepted:
                self.known.add(sent.order_id)

        run_id = f"load-{next(self._runs)}"
        async with Record(self.stack.folder / "answers.ndjson") as record:
            await replay(self.stack.api_url, baskets, rate=rate, on_progress=answered, record=record, run_id=run_id)

    # -- roles

    async def restart(self, name: str, **variables: str) -> Role:
        """Stops a role in order and starts it with variables that only this one process has."""
        role = self.stack.roles[name]
        await role.stop()
        await role.start(variables)
        self._touched[name] = role.pid
        return role

    async def arm(self, name: str, failpoints: str) -> Role:
        """Restarts a role with failpoints."""
        return await self.restart(name, **{FAILPOINTS: failpoints})

    @asynccontextmanager
    async def replaced(self, name: str, command: Sequence[str]) -> AsyncIterator[Role]:
        """Another program in the place of a role, and then the role again."""
        own = self.stack.roles[name]
        await own.stop()
        other = await self.stack.start_role(name, command, own.url)
        await self.ready()
        yield other
        await other.stop()
        self.stack.roles[name] = own
        await own.start()
        await self.ready()

    async def ready(self) -> None:
        """Waits until the API accepts and is connected."""
        await wait_until(lambda: is_ready(self.stack.api_url), DEADLINE_SECONDS, "the API is ready")

    async def add_worker(self, name: str, command: Sequence[str] = WORKER, **variables: str) -> Role:
        """One more worker, until the end of the test."""
        self._added.append(name)
        return await self.stack.start_role(name, command, environment=variables)

    async def add_api(self, name: str) -> str:
        """One more API on the same database, until the end of the test; gives its URL."""
        (port,) = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        self._added.append(name)
        await self.stack.start_role(name, [sys.executable, "-m", "orders.cli", "api", "--port", str(port)], url)
        await wait_until(lambda: is_ready(url), DEADLINE_SECONDS, f"{name} is ready")
        return url

    async def died(self, role: Role, deaths: int = 1) -> None:
        """Waits until a role has died of what it was told, and runs again."""
        before = role.restarts
        await wait_until(
            lambda: role.restarts >= before + deaths and bool(role.pid), DEADLINE_SECONDS, f"{role.name} dies"
        )

    async def frozen(self, role: Role) -> None:
        """Waits until a role has frozen itself (SIGSTOP)."""
        await wait_until(lambda: process_state(role.pid) == "T", DEADLINE_SECONDS, f"{role.name} is frozen")

    async def reset(self) -> None:
        """As at the begin: the roles of the stack, without any test's variables."""
        for name in self._added:
            role = self.stack.roles.pop(name)
            role.signal(signal.SIGCONT)
            await role.stop()
        self._added.clear()
        for name, pid in self._touched.items():
            role = self.stack.roles[name]
            if role.pid in {0, pid}:
                role.signal(signal.SIGCONT)
                await role.stop()
                await role.start()
        self._touched.clear()
        await self.ready()

    # -- the account

    async def account(self, load: Load) -> oracle.Account:
        """Waits until everything is settled, then reads all evidence."""
        return await self.oracle.account(self.known, load.accepted)

    async def assert_nothing_lost_nothing_twice(self, load: Load) -> oracle.Account:
        """Each accepted order in exactly one terminal state with a mail, no other orders, every effect once,
        nothing pending, the queues empty, and the audit clean, within 60 s."""
        account = await self.account(load)
        violations = account.violations(load.accepted)
        assert not violations, "\n".join(violations)
        return account


@cache
def _is_clean(basket: Basket) -> bool:
    return all(line["quantity"] > 0 for line in json.loads(basket.body)["lines"])


def _shipped() -> list[Basket]:
    return list(dataset.read())


async def is_ready(api_url: str) -> bool:
    """Whether an API says that it can accept, and is connected."""
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{api_url}/readyz") as answer:
            return answer.status == 200 and (await answer.json())["broker"] == "connected"
    except aiohttp.ClientError:
        return False


def process_state(pid: int) -> str:
    """The state's letter (proc(5)): R, S, D, T (stopped) …; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@asynccontextmanager
async def system(
    folder: Path, database_url: str = "", *, workers: int = 1, scale: Scale, console: bool = False
) -> AsyncIterator[System]:
    """Starts a stack below `folder`, and stops it."""
    options = StackOptions(folder, "test", workers, database_url, environment=scale.environment, console=console)
    async with running(options, lambda _role, _line: None) as stack:
        await asyncio.to_thread(sync_queues, stack.node)
        stock = dict(await oracle.query(stack.database_url, "SELECT sku, on_hand FROM products"))
        try:
            yield System(stack, scale, stock)
        finally:
            for role in stack.roles.values():
                role.signal(signal.SIGCONT)  # what a test has left frozen could not be stopped in order


Fault = Callable[[System], Awaitable[Load]]
"""Brings a fault about under load, heals it, and gives what was answered."""
