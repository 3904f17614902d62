"""`./dev bench NAME [options]`: runs the `main` of one benchmark; `./dev bench NAME --help` says what it takes."""

import sys
from collections.abc import Callable, Sequence
from typing import Final

from bench import wire

BENCHMARKS: Final[dict[str, Callable[[Sequence[str]], int]]] = {"wire": wire.main}


def main(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in BENCHMARKS:
        return BENCHMARKS[name](arguments[1:])
    sys.stderr.write(f"{__doc__}\nBenchmarks: {', '.join(BENCHMARKS)}\n")
    return 0 if name in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
