"""A private RabbitMQ node: one broker of our own in one folder, for development, the demo and the tests.

    with Node(Path(".hopline/rabbitmq")) as node:
        print(node.url)

It shares nothing with the machine's own RabbitMQ: own ports, cookie, epmd, configuration and data, and it
listens on 127.0.0.1 only. It is ready when an AMQP login has succeeded and the broker that answered is this
one. Data survives `stop` and `kill`, and the URL stays the same for the life of a `Node`.

One process at a time owns a folder (a file lock says so). What an owner that was killed has left running is
found by the pid files in the folder and stopped by the next `start`; a process is signalled only after its
command line has shown that it is ours. It refuses to be a production broker: no TLS, the guest login, one node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from hopline.amqp import AMQPError, connect
from hopline.errors import OutsideError

if sys.platform != "win32":  # `import hopline` works there, a Node does not
    import fcntl

SBIN_VARIABLE: Final = "HOPLINE_RABBITMQ_SBIN"

_SERVER: Final = "rabbitmq-server"
_MARK: Final = "-hopline_node"
"""A flag without a meaning to Erlang: it puts the folder into the VM's command line, where `start` looks."""
_NODENAME: Final = "hopline@localhost"
"""The same for all: names are unique per epmd, and each node has its own. The data folder bears the name."""
_SBIN_PATTERNS: Final = (
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",  # Debian, Ubuntu: below the wrappers that switch user
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/home/linuxbrew/.linuxbrew/opt/rabbitmq/sbin",
    "/opt/rabbitmq/sbin",  # the official Docker image
)
_EXTRA_PATH: Final = "/opt/homebrew/bin:/usr/local/bin:/home/linuxbrew/.linuxbrew/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PORT_RANGE: Final = range(20_000, 32_000)
"""Below the ephemeral ports of Linux (32768) and macOS (49152): a client that reconnects to a stopped node's
port there could be given that very port as its own and connect to itself (RFC 9293, simultaneous open)."""
_PORT_TRIES: Final = 5
_MEMORY_BYTES: Final = 1 << 30
"""Memory watermark: absolute, because a share of a machine that runs other things says nothing."""
_DISK_FREE_BYTES: Final = 50_000_000
_REFRESH_MS: Final = 1000
"""How old the management API's counts may be. RabbitMQ's defaults add up to 10 s."""
_POLL_SECONDS: Final = 0.02
_TAIL_LINES: Final = 12
_LEFTOVER_SECONDS: Final = 15
"""What a killed owner's VM gets to stop in order, before it is killed."""

# A scheduler that spins for a moment before it sleeps: RabbitMQ's own default is `none`, with which each
# read of a file during the boot costs two wake-ups of a thread (ready in 5 s instead of 2.3 s on two
# virtual cores); an idle node still uses under 0.5 % of one core.
# https://www.erlang.org/doc/apps/erts/erl_cmd.html#+sbwt
_VM_FLAGS: Final = (
    *("+sbwt", "very_short", "+sbwtdio", "very_short"),
    *("-kernel", "inet_dist_use_interface", "{127,0,0,1}"),
)

# Run before SIGTERM: this handler, ended by the shutdown, calls the application controller, which waits for
# the shutdown: a deadlock that ends after 5 s. Taken out before, the whole stop needs 1.4 s instead of 6.
_QUIET_MANAGEMENT: Final = "gen_event:delete_handler(rabbit_event, rabbit_mgmt_db_handler, [])."


class NodeError(OutsideError):
    """The private node did not do what was asked; the text has the end of its log."""


class Ports(NamedTuple):
    """All on 127.0.0.1."""

    amqp: int
    management: int
    distribution: int
    epmd: int


class Node:
    """A private RabbitMQ node in `folder`.

    Every method blocks; from a coroutine, call it through `asyncio.to_thread`. Methods may be called from
    different threads. The owner calls `stop` (or leaves the `with` block).

    `port` is the AMQP port if it must be a certain one, else a free one is chosen. `management` is the plugin
    with the HTTP API. `sbin` is the folder of RabbitMQ's own scripts, found by `find_sbin` if not given.
    """

    def __init__(
        self, folder: Path, *, port: int | None = None, management: bool = True, sbin: Path | None = None
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.management = management
        self._sbin = sbin
        self._fixed_port = port
        self._ports = Ports(*free_ports(4))
        if port is not None:
            self._ports = self._ports._replace(amqp=port)
        self._started_once = False
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._lock_file: int | None = None
        self.version = ""
        """RabbitMQ's version, known after the first start."""
        self._guard = threading.RLock()
        self._identity = f"hopline-{secrets.token_hex(6)}"

    def __repr__(self) -> str:
        return f"<Node {self.url} in {self.folder}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The AMQP port."""
        return self._ports.amqp

    @property
    def ports(self) -> dict[str, int]:
        """Every port by its use: amqp, management, distribution, epmd."""
        return self._ports._asdict()

    @property
    def url(self) -> str:
        """The AMQP URL. Known before `start`; a start that finds its port taken meanwhile chooses another,
        the first time only."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    @property
    def management_url(self) -> str:
        """Where the management API and its pages are."""
        return f"http://guest:guest@127.0.0.1:{self._ports.management}"

    @property
    def pid(self) -> int | None:
        """The Erlang VM's process, None while there is none."""
        return next((pid for pid in self._recorded_pids() if self._is_ours(pid)), None)

    @property
    def exit_status(self) -> int | None:
        """How the process that was started has ended; None while it runs, or if there is none."""
        process = self._process
        return None if process is None else process.poll()

    def start(self, timeout_seconds: float = 60) -> None:
        """Starts the node and returns when a login has succeeded; does nothing if it runs.

        Raises NodeError with the end of the log if it does not get there, and leaves nothing running then.
        """
        with self._guard:
            if self._process is not None and self._process.poll() is None:
                return
            sbin = self._sbin or find_sbin()
            if sbin is None:
                raise NodeError(
                    "RabbitMQ is not installed. Install it (apt-get install rabbitmq-server, or "
                    f"brew install rabbitmq), or name the folder of its scripts in {SBIN_VARIABLE}."
                )
            self._sbin = sbin
            deadline = time.monotonic() + timeout_seconds
            self._own_folder()
            try:
                self._stop_what_was_left()
                self._start_on_free_ports(deadline)
            except BaseException:
                self._kill_all()
                self._disown_folder()
                raise

    def stop(self, timeout_seconds: float = 30) -> None:
        """Stops in order; what still runs after the deadline is killed (confirmed messages survive that too).
        Idempotent."""
        with self._guard:
            if self._lock_file is None:
                return
            self._terminate(timeout_seconds)
            self._kill_all()
            self._kill_other_epmd()
            self._disown_folder()

    def remove(self) -> None:
        """Removes the folder with all its data, after stopping what an owner that was killed has left running."""
        with self._guard:
            self.stop()
            self._own_folder()
            try:
                self._stop_what_was_left()
            finally:
                self._disown_folder()
            shutil.rmtree(self.folder)

    def kill(self) -> None:
        """SIGKILL, as a crash would. `start` afterwards recovers the data on the same ports."""
        with self._guard:
            self._kill_vm()

    def pause(self) -> None:
        """SIGSTOP: the node stays connected and says nothing more, until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def ctl(self, *args: str, timeout_seconds: float = 30) -> str:
        """Runs rabbitmqctl against this node and gives what it printed. Takes about 0.3 s."""
        if self._sbin is None:
            raise NodeError(f"the node in {self.folder} was never started")
        command = [str(self._sbin / "rabbitmqctl"), "--quiet", *args]
        try:
            done = subprocess.run(
                command,
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NodeError(f"rabbitmqctl {' '.join(args)} did not end within {timeout_seconds:g} s") from None
        if done.returncode != 0:
            detail = _tail((done.stderr + done.stdout).strip())
            raise NodeError(f"rabbitmqctl {' '.join(args)} failed ({done.returncode}): {detail}")
        return done.stdout

    # ports

    def _renew_taken_ports(self) -> None:
        """Chooses anew what another program has; what clients already know cannot be changed."""
        for name, number in self.ports.items():
            if _is_free(number) or (name == "epmd" and self._epmd is not None and self._epmd.poll() is None):
                continue
            known = name == "amqp" and self._fixed_port is not None
            if known or (self._started_once and name in {"amqp", "management"}):
                raise NodeError(f"port {number}, the node's {name} port, is used by another program")
            self._ports = self._ports._replace(**{name: free_ports(1)[0]})

    # start

    def _start_on_free_ports(self, deadline: float) -> None:
        for attempts_left in reversed(range(_PORT_TRIES)):
            self._renew_taken_ports()
            try:
                self._boot(deadline)
            except NodeError:
                self._kill_all()
                if attempts_left and not all(map(_is_free, self._ports)):
                    continue  # lost the race for a port: somebody took it after it was chosen
                raise
            self._started_once = True
            return

    def _boot(self, deadline: float) -> None:
        self._write_files()
        self._start_epmd(deadline)
        self._start_vm()
        problem: str | None = "nothing listened on its port"
        with ThreadPoolExecutor(1) as thread:  # `start` may be called where an event loop runs
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    raise NodeError(f"RabbitMQ ended during its start.\n{self._log_tail()}")
                if self._listens():
                    problem = thread.submit(lambda: asyncio.run(self._log_in())).result()
                    if problem is None:
                        return
                time.sleep(_POLL_SECONDS)
        raise NodeError(f"RabbitMQ was not ready in time: {problem}.\n{self._log_tail()}")

    def _listens(self) -> bool:
        ports = self._ports
        return _answers(ports.amqp) and (not self.management or _answers(ports.management))

    async def _log_in(self) -> str | None:
        """None if this very node lets us in, else why not yet; NodeError if another broker has got the port."""
        try:
            connection = await connect(self.url, name="hopline node readiness", timeout_seconds=5)
        except AMQPError as error:
            return str(error)
        name = connection.server_properties.get("cluster_name")
        self.version = str(connection.server_properties.get("version", ""))
        await connection.close()
        if name != self._identity:
            raise NodeError(f"the broker on port {self.port} is {name}, not this node")
        return None

    def _start_epmd(self, deadline: float) -> None:
        """Our own, as a child: the one that the VM would start is a daemon that outlives it unseen."""
        port = self._ports.epmd
        if self._epmd is not None and self._epmd.poll() is None:
            return
        program = _find_program("epmd")
        if program is None:
            raise NodeError("Erlang's epmd was not found; install Erlang in full (Debian: erlang-base)")
        self._epmd = subprocess.Popen(
            [program, "-port", str(port), "-address", "127.0.0.1"],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._record()
        while not _answers(port):
            if self._epmd.poll() is not None or time.monotonic() > deadline:
                raise NodeError(f"epmd did not start on port {port}")
            time.sleep(_POLL_SECONDS)

    def _start_vm(self) -> None:
        if self._sbin is None:
            raise NodeError("RabbitMQ's scripts are not known yet")
        self._path("pid").unlink(missing_ok=True)
        with self._path("start.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._sbin / _SERVER), *_VM_FLAGS, _MARK, str(self.folder)],
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for its owner, who stops it in order
            )
        self._record()

    def _environment(self) -> dict[str, str]:
        ports = self._ports
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_")) and name != "NOTIFY_SOCKET"
        }
        language = inherited.get("LANG", "")
        return {
            **inherited,
            "HOME": str(self.folder),  # the cookie's place
            "LANG": language if "UTF-8" in language.upper() else "C.UTF-8",
            "PATH": f"{inherited.get('PATH', '')}:{_EXTRA_PATH}",
            "ERL_EPMD_PORT": str(ports.epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": _NODENAME,
            "RABBITMQ_NODE_PORT": str(ports.amqp),
            "RABBITMQ_DIST_PORT": str(ports.distribution),
            "RABBITMQ_MNESIA_BASE": str(self._path("data")),
            "RABBITMQ_LOG_BASE": str(self._path("log")),
            "RABBITMQ_PID_FILE": str(self._path("pid")),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._path("enabled_plugins")),
            "RABBITMQ_CONFIG_FILE": str(self._path("rabbitmq.conf")),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._path("advanced.config")),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # rabbitmqctl is an Erlang node too; port 0 is any free one.
            "RABBITMQ_CTL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
            # The script replaces itself by the VM then, as under systemd: one process to wait for.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _write_files(self) -> None:
        ports = self._ports
        self._path("log").mkdir(exist_ok=True)
        cookie = self._path(".erlang.cookie")
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20))
            cookie.chmod(0o400)
        plugins = "rabbitmq_management" if self.management else ""
        self._path("enabled_plugins").write_text(f"[{plugins}].\n")
        settings = [
            f"cluster_name = {self._identity}",
            f"listeners.tcp.1 = 127.0.0.1:{ports.amqp}",
            f"vm_memory_high_watermark.absolute = {_MEMORY_BYTES}",
            f"disk_free_limit.absolute = {_DISK_FREE_BYTES}",
            f"collect_statistics_interval = {_REFRESH_MS}",
            "log.file = node.log",
            "log.console = false",
        ]
        if self.management:
            settings += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {ports.management}"]
            for kind in ("global", "basic", "detailed"):
                # One sample a second, kept a minute: the API's counts are as fresh as the samples.
                settings.append(f"management.sample_retention_policies.{kind}.minute = 1")
        self._path("rabbitmq.conf").write_text("\n".join(settings) + "\n")
        self._path("advanced.config").write_text(f"[{{rabbit, [{{quorum_tick_interval, {_REFRESH_MS}}}]}}].\n")

    # stop

    def _terminate(self, timeout_seconds: float) -> None:
        """SIGTERM, and wait until it is gone or the time is over."""
        pid = self.pid
        if pid is None:
            return
        deadline = time.monotonic() + timeout_seconds
        self._signal(signal.SIGCONT)
        if self.management:
            with contextlib.suppress(NodeError):
                self.ctl("eval", _QUIET_MANAGEMENT, timeout_seconds=min(5, timeout_seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        self._wait_gone(pid, deadline - time.monotonic())

    def _kill_all(self) -> None:
        self._kill_vm()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        self._path("node.json").unlink(missing_ok=True)

    def _kill_other_epmd(self) -> None:
        """The VM starts a daemon if it finds ours dead."""
        program = _find_program("epmd")
        if program is not None and _answers(self._ports.epmd):
            command = [program, "-port", str(self._ports.epmd), "-kill"]
            subprocess.run(command, env=self._environment(), capture_output=True, timeout=10, check=False)

    def _kill_vm(self) -> None:
        for pid in filter(self._is_ours, self._recorded_pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._wait_gone(pid, 10)
        if self._process is not None:
            self._process.kill()  # our child: no doubt whose it is
            self._process.wait()
            self._process = None

    def _stop_what_was_left(self) -> None:
        """Stops the VM and the epmd of an owner that was killed: we hold its lock, so it is gone."""
        record = _read_record(self._path("node.json"))
        if record is None or self._process is not None or self._epmd is not None:
            return
        chosen, self._ports = self._ports, record.ports
        try:
            self._terminate(_LEFTOVER_SECONDS)
            self._kill_vm()
        finally:
            self._ports = chosen
        if record.epmd is not None and f"epmd -port {record.ports.epmd} " in _command_line(record.epmd):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.epmd, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            raise NodeError(f"the node in {self.folder} does not run")
        os.kill(pid, number)

    def _wait_gone(self, pid: int, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while self._is_ours(pid) and time.monotonic() < deadline:
            if self._process is not None:
                self._process.poll()  # reaps it
            time.sleep(_POLL_SECONDS)

    # the folder and what is recorded in it

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _own_folder(self) -> None:
        """Takes the folder's lock, which ends with this process however it ends."""
        if self._lock_file is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock_file = os.open(self._path("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_file)
            raise NodeError(f"another program runs its node in {self.folder}; stop it or use another folder") from None
        self._lock_file = lock_file

    def _disown_folder(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _record(self) -> None:
        """Writes who runs, for an owner after us, before anything else can happen to this one."""
        record = {
            "vm": self._process.pid if self._process is not None else None,
            "epmd": self._epmd.pid if self._epmd is not None else None,
            "ports": self.ports,
        }
        self._path("node.json").write_text(json.dumps(record))

    def _recorded_pids(self) -> list[int]:
        """The VM's pid as RabbitMQ wrote it, and as we started it: the same where the script replaces itself."""
        found = [self._process.pid] if self._process is not None else []
        record = _read_record(self._path("node.json"))
        if record is not None and record.vm is not None:
            found.append(record.vm)
        with contextlib.suppress(OSError, ValueError):
            found.insert(0, int(self._path("pid").read_text()))
        return list(dict.fromkeys(found))

    def _is_ours(self, pid: int) -> bool:
        """Pids are used again: only a process that names the folder is the node."""
        return f"{_MARK} {self.folder} " in _command_line(pid)

    def _log_tail(self) -> str:
        parts = []
        for path in (self._path("start.log"), self._path("log") / "node.log"):
            with contextlib.suppress(OSError):
                tail = _tail(path.read_text(errors="replace").strip())
                if tail:
                    parts.append(f"The end of {path}:\n{tail}")
        return "\n".join(parts) or f"There is no log in {self.folder}."


class _Record(NamedTuple):
    vm: int | None
    epmd: int | None
    ports: Ports


def find_sbin() -> Path | None:
    """The folder of RabbitMQ's own scripts, None if RabbitMQ is not installed.

    $HOPLINE_RABBITMQ_SBIN goes first; NodeError if it names a folder without them. Debian's wrappers in
    /usr/sbin are never given: they switch to the user rabbitmq.
    """
    named = os.environ.get(SBIN_VARIABLE)
    if named:
        if not (Path(named) / _SERVER).is_file():
            raise NodeError(f"{SBIN_VARIABLE} is {named}, where there is no {_SERVER}")
        return Path(named)
    for pattern in _SBIN_PATTERNS:
        found = [path for path in Path("/").glob(pattern[1:]) if (path / _SERVER).is_file()]
        if found:
            return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))])
    return None


def _find_program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_EXTRA_PATH}")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now, below the ephemeral ones: no outgoing connection takes one meanwhile."""
    found = [port for port in random.sample(_PORT_RANGE, 64) if _is_free(port)]
    if len(found) < count:
        raise NodeError(f"no free ports between {_PORT_RANGE.start} and {_PORT_RANGE.stop}")
    return found[:count]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # A port whose last connections are in TIME_WAIT is free for a listener, which sets this too.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _command_line(pid: int) -> str:
    """Its words, each followed by a space; empty if there is no such process, or only its zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        if Path("/proc/self").exists():
            return ""
    command = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]  # macOS
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{listing.stdout.strip()} "


def _read_record(path: Path) -> _Record | None:
    try:
        record = json.loads(path.read_text())
        return _Record(record["vm"], record["epmd"], Ports(**record["ports"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_TAIL_LINES:])
