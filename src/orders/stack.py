"""The whole system on one machine: a private RabbitMQ node, the mailbox, the API and the workers, as processes.

`orders up`, `orders demo` and the tests start the same thing. Everything listens on 127.0.0.1, on ports that
are free at the start; everything is kept below one folder; everything is stopped by the pid that was started.
A role that dies is started again, and so is the RabbitMQ node, on the same ports and data. While a stack runs,
FOLDER/run.json says who and where; FOLDER/env.json stays behind, so that `hopline trace` and `hopline audit` find the
database afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hopline import Node, OutsideError, UsageError, find_sbin, free_ports, utcnow

READY_SECONDS = 20.0
STOP_SECONDS = 30.0
RESTART_SECONDS = 0.5
RESTART_CAP_SECONDS = 5.0
STEADY_SECONDS = 10.0
"""A role that has run for so long and dies is started again without delay."""
NODE_LOOK_SECONDS = 0.5
"""How often the supervisor looks whether the RabbitMQ node lives."""
LOG_LINE_BYTES = 1 << 16
APP = "orders.wiring:app"

Log = Callable[[str, str], None]
"""Takes (role, line)."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to start, and where to keep it."""

    folder: Path
    """Holds everything. One stack a folder."""
    name: str
    """The part of the folder for database, broker, mail ledger and logs."""
    workers: int = 1
    database_url: str = ""
    """Empty: a SQLite file in the folder."""
    fresh: bool = False
    """Begin with nothing: what an earlier run left in the part is removed."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further HOPLINE_* or ORDERS_* variables of every role."""
    console: bool = False
    """Whether the operator's pages are served too."""


class StackError(OutsideError):
    """A part of the stack did not start or stop; the text names the log to read."""


class Role:
    """One supervised process: started again when it dies, until it is stopped."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Log, url: str = ""
    ) -> None:
        self.name = name
        self.url = url
        self.restarts = 0
        self._command = tuple(command)
        self._environment = dict(environment)
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self.on_restart: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int:
        """The process's pid; 0 while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    async def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Starts the process and its supervision.

        `environment` has further variables for this very process: one that follows it when it dies has none of them.
        """
        self._stopping.clear()
        await self._spawn(environment or {})
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.name}")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process that was started."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self) -> None:
        """SIGTERM, which drains; SIGKILL after a deadline."""
        self._stopping.set()
        self.signal(signal.SIGTERM)
        if self._supervisor is None:
            return
        done, _ = await asyncio.wait([self._supervisor], timeout=STOP_SECONDS)
        if not done:
            self._log(self.name, f"did not stop within {STOP_SECONDS:g} s: killed")
            self.signal(signal.SIGKILL)
            await asyncio.wait([self._supervisor])

    async def _spawn(self, environment: Mapping[str, str]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self._environment, **environment},
            limit=LOG_LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for the supervisor, which then drains in order
            preexec_fn=_die_with_parent,
        )

    async def _supervise(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            status = await self._ended()
            if self._stopping.is_set():
                return
            failures = 0 if time.monotonic() - began > STEADY_SECONDS else failures + 1
            self._log(self.name, f"ended with status {status}; starting it again")
            with contextlib.suppress(TimeoutError):
                pause = min(RESTART_CAP_SECONDS, RESTART_SECONDS * 2 ** min(failures, 8))
                await asyncio.wait_for(self._stopping.wait(), pause)
                return
            self.restarts += 1
            await self._spawn({})
            self.on_restart()

    async def _ended(self) -> int:
        """Logs what the process says until it ends; its exit status."""
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the limit: asyncio has dropped it
                line = b"(a log line that was too long was left out)\n"
            if not line:
                return await self._process.wait()
            self._log(self.name, line.decode(errors="replace").rstrip())


class NodeSupervisor:
    """Starts a RabbitMQ node again when it dies, until it is stopped."""

    def __init__(self, node: Node, log: Log, on_restart: Callable[[], None]) -> None:
        self.restarts = 0
        self._node = node
        self._log = log
        self._on_restart = on_restart
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to watch a node that runs."""
        self._task = asyncio.create_task(self._supervise(), name="supervise rabbitmq")

    async def stop(self) -> None:
        """Ends the watch; a start that is under way is waited for, as a node must not be left behind."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _supervise(self) -> None:
        failures = 0
        while not await self._stopped_within(NODE_LOOK_SECONDS):
            status = self._node.exit_status
            if status is not None:
                self._log("rabbitmq", f"the node ended with status {status}; starting it again")
            elif not failures:
                continue
            pause = min(RESTART_CAP_SECONDS, RESTART_SECONDS * 2 ** min(failures, 8))
            if not await self._stopped_within(pause):
                failures = 0 if await self._start() else failures + 1

    async def _start(self) -> bool:
        try:
            await asyncio.to_thread(self._node.start)
        except (OutsideError, OSError) as error:
            self._log("rabbitmq", f"the node could not be started: {error}")
            return False
        self.restarts += 1
        self._log("rabbitmq", f"ready again at {self._node.url}")
        self._on_restart()
        return True

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        return self._stopping.is_set()


class Stack:
    """A running stack. Made by `running()`."""

    def __init__(self, options: StackOptions, log: Log) -> None:
        self.options = options
        self.folder = options.folder
        self.data = options.folder / options.name
        self.ledger = self.data / "mail.ndjson"
        self.node = Node(self.data / "rabbitmq")
        self.roles: dict[str, Role] = {}
        self.database_url = options.database_url or f"sqlite+aiosqlite:///{self.data / 'orders.db'}"
        self._mailbox_port, self._api_port, self._console_port = free_ports(3)
        self._console_token = secrets.token_urlsafe(24)
        self.api_url = f"http://127.0.0.1:{self._api_port}"
        self.console_url = f"http://127.0.0.1:{self._console_port}"
        self._log = log
        self._started_at = utcnow()
        self._node_supervisor = NodeSupervisor(self.node, log, self.write_files)

    @property
    def console_link(self) -> str:
        """Opens the console as an operator, once."""
        return f"{self.console_url}/once/{self._console_token}"

    @property
    def environment(self) -> dict[str, str]:
        """What each role needs to know."""
        return {
            "HOPLINE_APP": APP,
            "HOPLINE_DATABASE_URL": self.database_url,
            "HOPLINE_BROKER_URL": self.node.url,
            "HOPLINE_MANAGEMENT_URL": self.node.management_url,
            "ORDERS_SMTP_URL": f"smtp://127.0.0.1:{self._mailbox_port}",
            **self.options.environment,
        }

    async def start(self) -> None:
        """Starts everything; returns when the API is ready."""
        if find_sbin() is None:
            raise UsageError(
                "RabbitMQ is not installed; run ./dev, which installs it, or apt-get install rabbitmq-server"
            )
        mailbox = self._orders("mailbox", "--port", self._mailbox_port, "--ledger", self.ledger)
        await self.start_role("mailbox", mailbox, f"smtp://127.0.0.1:{self._mailbox_port}")
        self._log("rabbitmq", "starting a private node")
        node = asyncio.create_task(asyncio.to_thread(self.node.start))
        try:
            await self._run("catalogue", self._orders("load-catalogue"))
        finally:
            await node
        self._log("rabbitmq", f"ready at {self.node.url}")
        self._node_supervisor.start()
        await self.start_role("api", self._orders("api", "--port", self._api_port), self.api_url)
        for number in range(1, self.options.workers + 1):
            await self.start_role(f"worker-{number}", self._hopline("worker"))
        if self.options.console:
            await self._start_console()
        await self._until_ready()
        self.write_files()

    async def stop(self) -> None:
        """Drains and stops: the console and the API first, then the workers, then what they need."""
        for prefix in ("console", "api", "worker", "mailbox"):
            await asyncio.gather(*(role.stop() for name, role in self.roles.items() if name.startswith(prefix)))
        await self._node_supervisor.stop()
        await asyncio.to_thread(self.node.stop)
        (self.folder / "run.json").unlink(missing_ok=True)

    def write_files(self) -> None:
        """Writes run.json (who runs where) and env.json (how to reach it)."""
        roles = [
            {"role": role.name, "pid": role.pid, "url": role.url, "ports": _ports(role.url)}
            for role in self.roles.values()
        ]
        node = {"role": "rabbitmq", "pid": self.node.pid, "url": self.node.url, "ports": self.node.ports}
        urls = {"api": self.api_url, "docs": f"{self.api_url}/docs", "rabbitmq": self.node.management_url}
        if self.options.console:
            urls |= {"console": self.console_url, "console_link": self.console_link}
        run = {
            "supervisor_pid": os.getpid(),
            "started_at": self._started_at.isoformat(),
            "roles": [node, *roles],
            "urls": urls,
            "environment": self.environment,
            "mail_ledger": str(self.ledger),
        }
        _write_json(self.folder / "run.json", run)
        _write_json(self.folder / "env.json", self.environment)

    async def start_role(
        self, name: str, command: Sequence[object], url: str = "", environment: Mapping[str, str] | None = None
    ) -> Role:
        """Starts one more role beside the others; `environment` as in Role.start."""
        role = Role(name, [str(word) for word in command], self.environment, self._log, url)
        role.on_restart = self.write_files
        self.roles[name] = role
        await role.start(environment)
        return role

    async def _start_console(self) -> None:
        words = self._hopline("console", "--port", self._console_port, "--mailbox", "orders.console:mailbox")
        ledger = {"ORDERS_MAIL_LEDGER": str(self.ledger), "HOPLINE_CONSOLE_TITLE": "orders"}
        environment = {**self.environment, **ledger}
        role = Role("console", [str(word) for word in words], environment, self._log, self.console_url)
        role.on_restart = self.write_files
        self.roles[role.name] = role
        await role.start({"HOPLINE_CONSOLE_LINK_TOKEN": self._console_token})

    def _hopline(self, *words: object) -> list[object]:
        return [sys.executable, "-m", "hopline.cli", *words]

    def _orders(self, *words: object) -> list[object]:
        return [sys.executable, "-m", "orders.cli", *words]

    async def _run(self, name: str, command: Sequence[object]) -> None:
        """Runs a command of the system to its end; StackError if it fails."""
        process = await asyncio.create_subprocess_exec(
            *(str(word) for word in command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.environment},
        )
        output, _ = await process.communicate()
        for line in output.decode(errors="replace").splitlines():
            self._log(name, line)
        if process.returncode:
            raise StackError(
                f"{name} failed with status {process.returncode}: {output.decode(errors='replace')[-2000:]}"
            )

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            answer = await asyncio.to_thread(_get_json, f"{self.api_url}/readyz")
            ended = [role.name for role in self.roles.values() if role.restarts]
            if ended:
                raise StackError(f"{ended[0]} ended while it started; see {self.data / 'logs' / ended[0]}.log")
            ports = [self._mailbox_port, *([self._console_port] if self.options.console else [])]
            if answer.get("broker") == "connected" and all(map(_answers, ports)):
                return
            if time.monotonic() > deadline:
                raise StackError(f"the API is not ready after {READY_SECONDS:g} s ({answer}); see {self.data / 'logs'}")
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(options: StackOptions, log: Log) -> AsyncIterator[Stack]:
    """A stack, started and at the end stopped. UsageError if one runs in that folder already."""
    data = options.folder / options.name
    data.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        held.enter_context(locked(options.folder))
        if options.fresh:
            await asyncio.to_thread(remove, data)
        logging = held.enter_context(log_files(data / "logs", log))
        stack = Stack(options, logging)
        try:
            await stack.start()
            yield stack
        finally:
            await asyncio.shield(stack.stop())


def remove(data: Path) -> None:
    """Removes what an earlier run left, after stopping its broker if that was left running."""
    Node(data / "rabbitmq").remove()
    for path in data.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the kernel lets go of it however the process ends."""
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UsageError(
                f"a stack runs in {folder} already (supervisor pid {lock.read().strip() or 'unknown'}); stop it first"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def log_files(folder: Path, log: Log) -> Iterator[Log]:
    """A Log that also appends to one file a role."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, IO[str]] = {}

    def write(role: str, line: str) -> None:
        if role not in files:
            files[role] = (folder / f"{role}.log").open("a", buffering=1)
        files[role].write(line + "\n")
        log(role, line)

    try:
        yield write
    finally:
        for file in files.values():
            file.close()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _get_json(url: str) -> dict[str, object]:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own API
            answer: dict[str, object] = json.load(response)
    except urllib.error.HTTPError as error:
        return {"status": error.code}
    except (OSError, ValueError) as error:
        return {"error": str(error)}
    return answer


def _ports(url: str) -> dict[str, int]:
    scheme, _, rest = url.partition("://")
    return {scheme: int(rest.rpartition(":")[2])} if rest else {}


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def _die_with_parent() -> None:
    """On Linux a role gets SIGTERM when its supervisor is killed (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))
