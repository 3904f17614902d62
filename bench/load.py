"""What is sent to POST /orders: bodies that every side takes, and wrk, which sends them over kept connections.

`fixed` is one order of three lines, padded with blanks to 1 KiB. `baskets` are the shipped real ones, one after the
other, without those that the edge refuses (a quantity of 0): 2,878 of them, 10.6 lines and 0.8 KiB on average.
"""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from bench.processes import run
from bench.programs import ROOT, find
from orders import catalogue, dataset

CONNECTIONS: Final = 32
BODY_BYTES: Final = 1024
LINES: Final = 3
TIMEOUT_SECONDS: Final = 30
"""A request that waits for so long has failed."""
BODIES: Final = ("fixed", "baskets")


class Answered(NamedTuple):
    """What wrk was answered. Times in milliseconds."""

    accepted: int
    refused: int
    """Answers that are not 2xx."""
    failed: int
    """Without an answer."""
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_seconds: float
    """wrk's own."""


def write_bodies(kind: str, file: Path) -> None:
    """Writes the bodies of one of BODIES, one a line."""
    bodies = [fixed()] if kind == "fixed" else list(baskets())
    file.write_bytes(b"\n".join(bodies) + b"\n")


def fixed(lines: int = LINES, padded_bytes: int = BODY_BYTES) -> bytes:
    """One order of so many lines, as JSON with blanks behind it."""
    products = (product for product, _ in catalogue.read() if product.list_price is not None)
    order = {
        "customer": {"email": "ada.lovelace@example.com", "name": "Ada Lovelace"},
        "lines": [
            {"sku": product.sku, "quantity": 2, "unit_price": str(product.list_price)}
            for product in islice(products, lines)
        ],
    }
    return json.dumps(order).encode().ljust(padded_bytes)


def baskets() -> Sequence[bytes]:
    """The real ones that are no fault of their sender."""
    return [basket.body for basket in dataset.read() if b'"quantity":0' not in basket.body]


def post(url: str, bodies: Path, seconds: float, connections: int = CONNECTIONS) -> Answered:
    """Sends for so long, a request a connection at a time: a closed loop."""
    wrk = find("wrk")
    script = ROOT / "bench" / "wrk.lua"
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", f"--timeout={TIMEOUT_SECONDS}s"]
    command = [wrk.path, *options, "-s", script, f"{url}/orders", "--", bodies]
    ended = run(command, wrk.environment, timeout_seconds=seconds + 2 * TIMEOUT_SECONDS)
    told = json.loads(ended.output.splitlines()[-1])
    accepted = told["requests"] - told["refused"]
    times = (told["seconds"], told["p50_ms"], told["p99_ms"], told["p999_ms"])
    return Answered(accepted, told["refused"], told["failed"], *times, ended.cpu_seconds)
