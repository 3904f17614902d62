"""`./dev bench NAME [options]`: runs the `main` of one benchmark; `./dev bench NAME --help` says what it takes.

flow, tasks, latency, scale and console start all that they need and stop it; wire looks at the AMQP client alone.
`lock` makes bench/peers.txt anew, from which the other stacks' environment is made.
"""

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from hopline import HoplineError

BENCHMARKS: Final = ("flow", "tasks", "latency", "scale", "console", "wire")


def main(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, _terminated)
    name = arguments[0] if arguments else ""
    if name in BENCHMARKS:
        try:
            return int(importlib.import_module(f"bench.{name}").main(arguments[1:]))
        except HoplineError as error:
            sys.stderr.write(f"bench: {error}\n")
            return 3
    if name == "lock":
        return int(importlib.import_module("bench.programs").lock(arguments[1:]))
    sys.stderr.write(f"{__doc__}\nBenchmarks: {', '.join(BENCHMARKS)}\n")
    return 0 if name in ("-h", "--help") else 2


def _terminated(number: int, _frame: object) -> NoReturn:
    """As Ctrl-C: what was started is stopped."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
