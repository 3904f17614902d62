"""The programs that only the benchmarks need, all below .hopline/bench: nothing is installed into the system.

The peers' packages (bench/peers.txt) get a virtual environment of their own, so that Hopline's has none of them. wrk
and postfix's smtp-sink come out of Debian's packages, unpacked and not installed: a mail server would otherwise be
configured and started. Where they are installed already, or there is no apt, those of the PATH are used.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / ".hopline" / "bench"
VENV: Final = FOLDER / "venv"
PEERS: Final = ROOT / "bench" / "peers.txt"
PEERS_IN: Final = ROOT / "bench" / "peers" / "requirements.in"
PACKAGES: Final = FOLDER / "packages"
DEBIAN: Final = {"wrk": "wrk", "smtp-sink": "postfix"}
"""The Debian package of each program."""
PIP_QUIETLY: Final = ("--quiet", "--disable-pip-version-check", "--no-input")


@dataclass(frozen=True, slots=True)
class Program:
    """How to start one: the file, and what it needs in its environment."""

    path: Path
    environment: dict[str, str]


def say(text: str) -> None:
    """Progress, on stderr: stdout is for the result."""
    sys.stderr.write(f"bench: {text}\n")


def peers_python() -> Path:
    """The Python of the peers' virtual environment, which is made or renewed as bench/peers.txt says."""
    python = VENV / "bin" / "python"
    stamp = VENV / "peers-setup.json"
    wanted = {"peers": hashlib.sha256(PEERS.read_bytes()).hexdigest(), "python": sys.version}
    if _read(stamp) != wanted:
        say(f"making {VENV.relative_to(ROOT)} from {PEERS.relative_to(ROOT)} ...")
        _run(sys.executable, "-m", "venv", "--clear", VENV)
        _run(python, "-m", "pip", *PIP_QUIETLY, "install", "--no-deps", "--require-hashes", "--requirement", PEERS)
        stamp.write_text(json.dumps(wanted))
    return python


def lock(options: Sequence[str]) -> int:
    """Makes bench/peers.txt anew from bench/peers/requirements.in, as `./dev lock` makes requirements.lock."""
    with tempfile.TemporaryDirectory(prefix="hopline-lock-") as folder:
        _run(sys.executable, "-m", "venv", folder)
        _run(f"{folder}/bin/pip", *PIP_QUIETLY, "install", "uv")
        output = "--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header"
        command = [f"{folder}/bin/uv", "pip", "compile", "--quiet", *output.split(), "-o", _short(PEERS)]
        _run(*command, _short(PEERS_IN), *options)
    return 0


def find(name: str) -> Program:
    """`wrk` or `smtp-sink`: the system's if it has one, else unpacked from its Debian package."""
    installed = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/opt/homebrew/bin:/usr/local/bin")
    if installed:
        return Program(Path(installed), {})
    found = _unpacked(name)
    if found is None:
        if shutil.which("apt-get") is None:
            raise SystemExit(f"bench: {name} is missing; install {DEBIAN[name]} (brew install {DEBIAN[name]})")
        _unpack(DEBIAN[name])
        found = _unpacked(name)
    if found is None:
        raise SystemExit(f"bench: the package {DEBIAN[name]} has no {name}; install it by hand, on the PATH")
    libraries = [*PACKAGES.glob("usr/lib/*-linux-*"), PACKAGES / "usr/lib/postfix"]
    return Program(found, {"LD_LIBRARY_PATH": ":".join(map(str, libraries))})


def _unpacked(name: str) -> Path | None:
    return next((path for each in ("bin", "sbin") if (path := PACKAGES / "usr" / each / name).exists()), None)


def _unpack(package: str) -> None:
    """The package and what it depends on as far as it is not installed, into .hopline/bench/packages."""
    say(f"unpacking {package} into {PACKAGES.relative_to(ROOT)} ...")
    plan = subprocess.run(
        ["/usr/bin/apt-get", "install", "--simulate", "--no-install-recommends", package],
        capture_output=True,
        text=True,
        check=False,
    )
    names = [line.split()[1] for line in plan.stdout.splitlines() if line.startswith("Inst ")]
    if not names:
        raise SystemExit(f"bench: apt does not know {package}; run `apt-get update` as root, or install it by hand")
    PACKAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hopline-bench-") as folder:
        _run("apt-get", "download", *names, folder=Path(folder))
        for file in Path(folder).glob("*.deb"):
            _run("dpkg", "-x", file, PACKAGES)


def _run(*command: str | Path, folder: Path = ROOT) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"bench: {' '.join(words)} failed:\n{done.stdout}{done.stderr}")


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
