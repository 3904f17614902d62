"""The processes of a benchmark: started in groups of their own, metered with all their children, stopped by pid.

A role (API, worker, Postgres, RabbitMQ, SMTP) may be several processes, and those may have children that come and go:
a process's CPU counts its own, its living descendants', and that of the dead ones which they have waited for.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from bench.programs import ROOT

STOP_SECONDS: Final = 30.0
START_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.02

Condition = Callable[[], object]
Roles = Mapping[str, Sequence[int]]
"""The root pids of each role."""


class Use(NamedTuple):
    """What a role has used so far."""

    cpu_seconds: float
    peak_rss_bytes: int
    """The sum of the processes' largest resident sets, without memory that they share."""
    rss_bytes: int


def use(roles: Roles) -> dict[str, Use]:
    """What each role has used until now."""
    return {role: _use(pids) for role, pids in roles.items()}


def cpu_between(before: Mapping[str, Use], after: Mapping[str, Use]) -> dict[str, float]:
    """CPU seconds of each role between two readings."""
    return {role: after[role].cpu_seconds - before[role].cpu_seconds for role in before}


def _use(pids: Iterable[int]) -> Use:
    cpu, peak, now = 0.0, 0, 0
    for process in _with_children(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            cpu += times.user + times.system + times.children_user + times.children_system
            own_peak, own_now = _resident(process)
            peak += own_peak
            now += own_now
    return Use(cpu, peak, now)


def _resident(process: psutil.Process) -> tuple[int, int]:
    """The largest resident set so far and that of now, in bytes, without shared memory (Postgres' buffers)."""
    now = process.memory_info().rss
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        fields = {line.partition(":")[0]: line.split() for line in lines}
        if "VmHWM" in fields:
            shared = int(fields["RssShmem"][1]) * 1024
            return int(fields["VmHWM"][1]) * 1024 - shared, now - shared
    return now, now


def _with_children(pids: Iterable[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            yield from (root, *root.children(recursive=True))


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that ran to its end."""

    output: str
    seconds: float
    cpu_seconds: float


def run(command: Sequence[object], environment: Mapping[str, str], *, timeout_seconds: float) -> Ended:
    """Runs a command to its end, with its own CPU; SystemExit with what it said if it fails."""
    words = [str(word) for word in command]
    before, began = _children_cpu(), time.perf_counter()
    done = subprocess.run(
        words,
        env={**os.environ, **environment},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"bench: {' '.join(words)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return Ended(done.stdout, seconds, _children_cpu() - before)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Group:
    """Processes that are started one after the other and stopped in the same order; each has a log file."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, role: str, command: Sequence[object], environment: Mapping[str, str]) -> int:
        """Starts one; gives its pid."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{role}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, **environment},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - the benchmark has no threads
            )
        self._processes.append((role, process))
        return process.pid

    @property
    def roles(self) -> dict[str, list[int]]:
        """The pids by role."""
        found: dict[str, list[int]] = {}
        for role, process in self._processes:
            found.setdefault(role, []).append(process.pid)
        return found

    def check(self) -> None:
        """SystemExit with the end of its log if one has ended by itself."""
        for role, process in self._processes:
            if process.poll() is not None:
                raise SystemExit(f"bench: {role} ended with status {process.returncode}\n{self.tail(role)}")

    def tail(self, role: str) -> str:
        """The end of a role's log."""
        return "\n".join((self._logs / f"{role}.log").read_text(errors="replace").splitlines()[-25:])

    def wait_for(self, condition: Condition, what: str, *, seconds: float = START_SECONDS) -> None:
        """Waits until it holds, while all processes run."""
        until(condition, what, seconds=seconds, check=self.check)

    def stop(self, *, at_once: bool = False) -> None:
        """SIGTERM one after the other, SIGKILL after a deadline or, `at_once`, without one; children too."""
        for _, process in self._processes:
            children = list(_with_children([process.pid]))[1:]
            process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            for left in (child for child in children if child.is_running()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            process.kill()
            process.wait()
        self._processes.clear()


def _die_with_parent() -> None:
    """On Linux it gets SIGTERM when the benchmark is killed (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))


def stop_leftover(pid_file: Path, marker: str) -> None:
    """Ends what a killed benchmark left running, if the command line of the pid in the file shows that it is that."""
    with contextlib.suppress(OSError, psutil.NoSuchProcess, psutil.TimeoutExpired):
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        if any(marker in word for word in process.cmdline()):
            process.send_signal(signal.SIGQUIT)
            process.wait(STOP_SECONDS)


def until(condition: Condition, what: str, *, seconds: float, check: Condition = bool) -> None:
    """Waits until the condition holds; SystemExit says what did not come to be."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        check()
        if time.monotonic() > give_up_at:
            raise SystemExit(f"bench: {what}: not within {seconds:g} s")
        time.sleep(POLL_SECONDS)
