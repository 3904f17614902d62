"""Where a benchmark ran and on what: printed beside every figure, because without it a figure says nothing."""

import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
VERSIONS: Final = (
    "import json, sys; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
)


def describe(more: dict[str, str]) -> dict[str, object]:
    """The machine, the versions that are always of interest, `more` of them, and the load that was there before."""
    return {
        "at": time.strftime("%Y-%m-%d %H:%M %Z"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": _system(),
        "python": platform.python_version(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "3 million additions in Python": f"{_loop_seconds():.2f} s",
        **more,
    }


def _loop_seconds() -> float:
    """How fast a core is just now, the best of three: a shared machine's differ by half within an hour."""
    found = []
    for _ in range(3):
        began, total = time.perf_counter(), 0
        for number in range(3_000_000):
            total += number
        found.append(time.perf_counter() - began)
    return min(found)


def packages(python: Path, names: list[str]) -> dict[str, str]:
    """The versions of packages as the given Python has them."""
    done = subprocess.run([str(python), "-c", VERSIONS, *names], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _cpu() -> str:
    found = re.search(r"model name\s*: (.+)", CPUINFO.read_text()) if CPUINFO.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.platform(terse=True)
