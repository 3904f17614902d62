"""`./dev bench wire`: hopline.amqp beside a C program on librabbitmq, pika and aio-pika, on one private node.

The machine drifts, so only ratios of one run count: the clients take turns, and each round is a comparison of its own.
In a round each client publishes to a fresh quorum queue (confirmed, window 1000, 1 KiB, persistent, message id, type,
timestamp, three headers) and consumes it; then each once more, and once more: acknowledging by the hundred and reading
body and message id, the same with all properties decoded (which the other libraries always do), and acknowledging
each. Then each does both at once. Every measurement is a process of its own (`wire_hopline.py` and its like, or the
program made from `wire.c`).

Figures are medians over the rounds; a ratio is the median of the rounds' ratios. `client_us` is user and system CPU of
the client's process for one message, building the message included.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from bench.wire_chart import chart
from hopline import Node
from hopline.amqp import connect, parse_url

FOLDER: Final = Path(__file__).parent
CLIENTS: Final = ("hopline", "c", "pika", "aio-pika")
ACK_BATCH: Final = 100
WORKS: Final = ("publish", "consume", "consume decoded", "consume each", "both")
LABELS: Final = {
    "c": "C (librabbitmq)",
    "hopline": "hopline.amqp",
    "pika": "pika SelectConnection",
    "aio-pika": "aio-pika",
}
QUEUE: Final = "bench-wire"
NO_LIMIT: Final = 1_000_000_000
WATERMARK: Final = "4GB"
"""Above what a run leaves in the write-ahead log, so that no alarm blocks a publisher in the middle of it."""
SLOWEST_SECONDS: Final = 600


class Measure(NamedTuple):
    """One client doing one work once."""

    rate: float
    client_us: float


@dataclass(frozen=True)
class Broker:
    """The node, and how each client is started against it."""

    url: str
    c_program: Path | None

    def command(self, client: str, work: str, setting: float, count: int) -> list[str]:
        address = parse_url(self.url)
        if client == "c":
            [(host, port)] = address.hosts
            login = (host, str(port), address.user, address.password, address.vhost)
            return [str(self.c_program), work, *login, QUEUE, f"{setting:g}", str(count)]
        module = f"bench.wire_{client.replace('-', '_')}"
        return [sys.executable, "-m", module, work, self.url, QUEUE, f"{setting:g}", str(count)]

    def start(self, client: str, work: str, setting: float, count: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(client, work, setting, count), stdout=subprocess.PIPE, cwd=FOLDER.parent, text=True
        )

    def run(self, client: str, work: str, setting: float, count: int = NO_LIMIT) -> tuple[Measure, int]:
        return finish(self.start(client, work, setting, count))

    def fresh_queue(self) -> None:
        asyncio.run(self._fresh_queue())

    async def _fresh_queue(self) -> None:
        async with await connect(self.url, name="bench wire") as connection:
            channel = await connection.channel()
            await channel.delete_queue(QUEUE)
            await channel.declare_queue(QUEUE, arguments={"x-queue-type": "quorum"})


def finish(process: subprocess.Popen[str]) -> tuple[Measure, int]:
    """Waits for a client's line of JSON; gives the measure, and how many messages there were."""
    output, _ = process.communicate(timeout=SLOWEST_SECONDS)
    if process.returncode:
        raise SystemExit(f"bench wire: {process.args!r} failed")
    report = json.loads(output)
    messages = int(report["messages"])
    return Measure(messages / report["seconds"], report["cpu_seconds"] / messages * 1e6), messages


CONSUMING: Final = (
    ("consume", "consume", ACK_BATCH),
    ("consume decoded", "decode", ACK_BATCH),
    ("consume each", "consume", 1),
)
"""Name of the measurement, work of the client, messages for one acknowledgement."""


def measure_round(broker: Broker, clients: Sequence[str], seconds: float) -> dict[str, dict[str, Measure]]:
    """Every work by every client; the clients take turns at each work, so that what is compared is close in time."""
    measures: dict[str, dict[str, Measure]] = {client: {} for client in clients}
    published: dict[str, list[Measure]] = {client: [] for client in clients}
    for name, work, ack_every in CONSUMING:
        for client in clients:
            broker.fresh_queue()
            measure, count = broker.run(client, "publish", seconds)
            published[client].append(measure)
            measures[client][name], _ = broker.run(client, work, ack_every, count)
    for client in clients:
        publish = Measure(*(median(values) for values in zip(*published[client], strict=True)))
        measures[client]["publish"] = publish
        measures[client]["both"] = measure_both(broker, client, max(1000, int(publish.rate * seconds)))
    return measures


def measure_both(broker: Broker, client: str, count: int) -> Measure:
    """Publishes and consumes `count` messages at once, each in a process of its own."""
    broker.fresh_queue()
    consumer = broker.start(client, "consume", ACK_BATCH, count)
    publisher, _ = broker.run(client, "publish", SLOWEST_SECONDS, count)
    consumed, _ = finish(consumer)
    return Measure(min(publisher.rate, consumed.rate), publisher.client_us + consumed.client_us)


def measure_all(
    broker: Broker, clients: Sequence[str], seconds: float, rounds: int
) -> list[dict[str, dict[str, Measure]]]:
    """All rounds; whoever was first in one round is last in the next."""
    results: list[dict[str, dict[str, Measure]]] = []
    for number in range(rounds):
        turn = number % len(clients)
        say(f"round {number + 1} of {rounds}")
        measures = measure_round(broker, (*clients[turn:], *clients[:turn]), seconds)
        results.append({client: measures[client] for client in clients})
    return results


def summary(results: list[dict[str, dict[str, Measure]]]) -> dict[str, object]:
    """What `--json` writes."""
    clients = list(results[0])
    figures = {
        client: {
            work: {
                "rate": round(median(each[client][work].rate for each in results)),
                "client_us": round(median(each[client][work].client_us for each in results), 2),
                "rates": [round(each[client][work].rate) for each in results],
            }
            for work in WORKS
        }
        for client in clients
    }
    ratios = {
        f"{work.replace(' ', '_')}_vs_{other.replace('-', '_')}": round(
            median(each["hopline"][work].rate / each[other][work].rate for each in results), 3
        )
        for other in clients
        if other != "hopline"
        for work in WORKS
    }
    return {
        "ratios": ratios,
        "client_us": {work.replace(" ", "_"): figures["hopline"][work]["client_us"] for work in WORKS},
        "clients": figures,
        "rounds": len(results),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def soak(broker: Broker, seconds: float, rate: float, json_file: Path | None) -> int:
    """Publishes and consumes at once for so long; says how the client's memory went."""
    broker.fresh_queue()
    command = [sys.executable, "-m", "bench.wire_soak", broker.url, QUEUE, f"{seconds:g}", f"{rate:g}"]
    done = subprocess.run(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout)
    warm, last = report["rss_warm_bytes"], report["rss_last_bytes"]
    sys.stdout.write(
        f"{report['messages']:,} messages in {report['seconds']:.0f} s, both ways at once; "
        f"resident set {warm / 1e6:.1f} MB after the warm-up, {last / 1e6:.1f} MB at the end ({last / warm - 1:+.1%})\n"
    )
    if json_file:
        json_file.write_text(json.dumps({"soak": report}, indent=2) + "\n")
    return 0


# how it is shown


def table(report: dict[str, object]) -> str:
    figures = report["clients"]
    assert isinstance(figures, dict)
    rows: list[tuple[str, ...]] = [("", *WORKS)]
    for client, works in figures.items():
        cells = (f"{works[work]['rate']:,}/s  {works[work]['client_us']:.1f} us" for work in WORKS)
        rows.append((LABELS[client], *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    ratios = report["ratios"]
    assert isinstance(ratios, dict)
    lines += ["", *(f"{name.replace('_', ' ')}: {value:.2f}" for name, value in ratios.items() if name.endswith("_c"))]
    return "\n".join(lines)


def say(text: str) -> None:
    sys.stderr.write(f"bench wire: {text}\n")


# what it needs


def build_c_program(folder: Path) -> Path | None:
    """The program from wire.c, None with a word why where it cannot be made."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    program = folder / "wire"
    if compiler is not None:
        command = [compiler, "-O2", "-o", str(program), str(FOLDER / "wire.c"), "-lrabbitmq"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return program
    say("without the C client: it needs a C compiler and librabbitmq-dev (apt-get install gcc librabbitmq-dev)")
    return None


@contextmanager
def running_node(url: str | None, folder: Path) -> Iterator[str]:
    """The URL that was given, or a private node's."""
    if url is not None:
        yield url
        return
    with Node(folder / "rabbitmq", management=False) as node:
        node.ctl("set_vm_memory_high_watermark", "absolute", WATERMARK)
        yield node.url


def chosen_clients(names: Sequence[str], c_program: Path | None) -> list[str]:
    modules = {"pika": "pika", "aio-pika": "aio_pika"}
    chosen = []
    for name in names:
        if name in modules and importlib.util.find_spec(modules[name]) is None:
            say(f"without {name}: pip install {name}")
        elif name != "c" or c_program is not None:
            chosen.append(name)
    return chosen


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="./dev bench wire", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5, help="length of one publishing measurement (5)")
    parser.add_argument("--rounds", type=int, default=3, help="comparisons, of which the median counts (3)")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=CLIENTS, help="hopline goes first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="write the chart there (docs/img/wire.svg is the published one)"
    )
    parser.add_argument(
        "--soak", type=float, metavar="SECONDS", help="only watch hopline's memory under load for so long"
    )
    parser.add_argument(
        "--rate", type=float, default=NO_LIMIT, metavar="N", help="messages a second of --soak (as many as go)"
    )
    parser.add_argument("--url", help="a RabbitMQ to use instead of a private node")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hopline-bench-") as name:
        folder = Path(name)
        c_program = build_c_program(folder) if "c" in options.clients else None
        clients = chosen_clients(options.clients, c_program)
        with running_node(options.url, folder) as url:
            broker = Broker(url, c_program)
            if options.soak:
                return soak(broker, options.soak, options.rate, options.json)
            report = summary(measure_all(broker, clients, options.seconds, options.rounds))
    sys.stdout.write(table(report) + "\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.svg:
        options.svg.write_text(chart(report, LABELS))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
