"""`./dev bench tasks`: no-op messages of 1 KiB, enqueued and drained, by Hopline and by the usual libraries.

Hopline with its outbox and inbox on (Postgres and SQLite): a message is a row first, and what was handled is a row
again. Celery, Dramatiq, Taskiq and FastStream have neither; they publish confirmed, to a quorum queue where they can.
One sending process, then one worker process on what was sent; the sides take turns on one RabbitMQ. `one` sends a
message after the other, `many` so many at a time as the side takes well (asyncio: 500; blocking: 8 threads). Enqueued
means confirmed by RabbitMQ; the drain runs from the first handler to the last. CPU is that of all processes.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench import machine, report
from bench.chart import COLOURS, Bar, bars
from bench.enqueueing import QUEUE
from bench.figures import Spread, paired_ratio, significant, spread
from bench.processes import Group, cpu_between, run, until, use
from bench.programs import peers_python, say
from bench.site import Site, Stand, running
from bench.tally import FILE, Tally

PACKAGES: Final = ["celery", "dramatiq", "taskiq", "taskiq-aio-pika", "faststream", "aio-pika", "pika", "amqp"]
DRAIN_SECONDS: Final = 600
SETTLE_SECONDS: Final = 30
WAYS: Final = ("one", "many")


@dataclass(frozen=True, slots=True)
class Library:
    """One side: how it sends, and how its worker is started."""

    name: str
    title: str
    sender: Callable[[], list[object]]
    worker: Callable[[], list[object]]
    setup: Callable[[], list[object]] | None = None
    sqlite: bool = False
    remembers: str = "nothing"
    """What the side keeps of a message outside RabbitMQ."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def environment_on(self, stand: Stand) -> dict[str, str]:
        """What its processes read."""
        return {
            "HOPLINE_APP": "bench.hopline_tasks:app",
            "HOPLINE_DATABASE_URL": stand.database_url,
            "HOPLINE_BROKER_URL": stand.broker_url,
            "BENCH_BROKER_URL": stand.broker_url,
            FILE: str(stand.folder / "tally"),
            **self.environment,
        }


def _hopline(*words: str) -> Callable[[], list[object]]:
    return lambda: [sys.executable, "-m", *words]


def _peer(*words: str) -> Callable[[], list[object]]:
    return lambda: [peers_python(), "-m", *words]


_CELERY: Final = (
    *("celery", "-A", "bench.peers.celery_tasks", "worker", "--loglevel", "warning", "--pool", "solo"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
)
_TASKIQ: Final = (
    *("taskiq", "worker", "bench.peers.taskiq_tasks:broker", "--workers", "1", "--log-level", "WARNING"),
    *("--max-async-tasks", "100", "--max-prefetch", "500"),
)
_OWN: Final = {
    "sender": _hopline("bench.hopline_tasks"),
    "worker": _hopline("hopline.cli", "worker"),
    "setup": _hopline("hopline.cli", "migrate"),
    "remembers": "outbox and inbox",
}
LIBRARIES: Final = {
    library.name: library
    for library in (
        Library("hopline", "Hopline, Postgres", **_OWN),  # type: ignore[arg-type]
        Library("hopline-sqlite", "Hopline, SQLite", sqlite=True, **_OWN),  # type: ignore[arg-type]
        Library("celery", "Celery", _peer("bench.peers.celery_tasks"), _peer(*_CELERY)),
        Library(
            "dramatiq",
            "Dramatiq",
            _peer("bench.peers.dramatiq_tasks"),
            _peer("dramatiq", "bench.peers.dramatiq_tasks", "--processes", "1", "--threads", "4"),
            environment={"dramatiq_queue_prefetch": "500"},
        ),
        Library("taskiq", "Taskiq", _peer("bench.peers.taskiq_tasks"), _peer(*_TASKIQ)),
        Library(
            "faststream",
            "FastStream",
            _peer("bench.peers.faststream_tasks"),
            _peer("bench.peers.faststream_tasks", "work"),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What a sending process did."""

    messages: int
    per_second: float
    cpu_us: dict[str, float]
    """For one message, by role."""
    peak_rss_mb: float


@dataclass(frozen=True, slots=True)
class Drained:
    """What a worker did."""

    messages: int
    per_second: float
    cpu_us: dict[str, float]
    peak_rss_mb: float


@dataclass(frozen=True, slots=True)
class Measure:
    """One side in one round."""

    enqueued: dict[str, Enqueued]
    """By way."""
    drained: Drained


def measure(site: Site, library: Library, seconds: float) -> Measure:
    """Sends in each way, then drains it all."""
    with site.stand(library.name.replace("-", "_"), sqlite=library.sqlite) as stand:
        environment = library.environment_on(stand)
        if library.setup is not None:
            run(library.setup(), environment, timeout_seconds=SETTLE_SECONDS)
        prepare_queue(site, stand, library, environment)
        site.settle(stand)
        enqueued = {way: enqueue(site, library, environment, (way, seconds)) for way in WAYS}
        sent = sum(each.messages for each in enqueued.values())
        site.settle(stand)
        return Measure(enqueued, drain(site, stand, library, environment, sent))


def prepare_queue(site: Site, stand: Stand, library: Library, environment: Mapping[str, str]) -> None:
    """Makes the queue as the library's own worker does it, by starting one for a moment."""
    group = Group(stand.folder / "logs")
    group.start("worker", library.worker(), environment)
    try:
        group.wait_for(lambda: _exists(site, stand), f"{library.name} declares its queue")
        tally = Tally(stand.folder / "tally")
        before = tally.count
        enqueue(site, library, environment, ("one", 0.01))
        group.wait_for(lambda: tally.count > before, f"{library.name} handles a message")
    except SystemExit as error:
        raise SystemExit(f"{error}\n{group.tail('worker')}") from None
    finally:
        group.stop()
    until(lambda: site.waiting(stand, [QUEUE]) == 0, "the queue is empty", seconds=SETTLE_SECONDS)


def _exists(site: Site, stand: Stand) -> bool:
    return any(line.split() == [QUEUE] for line in site.node.ctl("list_queues", "-p", stand.vhost, "name").splitlines())


def enqueue(site: Site, library: Library, environment: Mapping[str, str], words: Sequence[object]) -> Enqueued:
    """Runs the sending process."""
    before = use(site.roles)
    command = [*library.sender(), *words]
    told = json.loads(run(command, environment, timeout_seconds=600).output.splitlines()[-1])
    servers = cpu_between(before, use(site.roles))
    messages = told["messages"]
    cpu = {"sender": told["cpu_seconds"], **{role: servers[role] for role in ("postgres", "rabbitmq")}}
    cpu_us = {role: value / messages * 1e6 for role, value in cpu.items()}
    return Enqueued(messages, messages / told["seconds"], cpu_us, told["peak_rss_bytes"] / 1e6)


def drain(
    site: Site, stand: Stand, library: Library, environment: Mapping[str, str], messages: int, *, workers: int = 1
) -> Drained:
    """Starts workers, and watches them from their first message to the last. Each has a tally of its own."""
    group = Group(stand.folder / "logs")
    files = [stand.folder / ("tally" if number == 0 else f"tally-{number}") for number in range(workers)]
    tallies = [Tally(file) for file in files]

    def count() -> int:
        return sum(tally.count for tally in tallies)

    first = count()
    for file in files:
        group.start("worker", library.worker(), {**environment, FILE: str(file)})
    roles = {**site.roles, **group.roles}
    try:
        group.wait_for(lambda: count() > first, f"{library.name} begins")
        began, handled, before = time.perf_counter(), count() - first, use(roles)
        group.wait_for(lambda: count() - first >= messages, f"{library.name} is done", seconds=DRAIN_SECONDS)
        seconds, after = time.perf_counter() - began, use(roles)
        until(lambda: site.waiting(stand, [QUEUE]) == 0, "the queue is empty", seconds=SETTLE_SECONDS)
    finally:
        group.stop()
    if (twice := count() - first - messages) > 0:
        say(f"  {library.name}: {twice} messages were handled twice")
    counted = messages - handled
    cpu = {role: value / counted * 1e6 for role, value in cpu_between(before, after).items() if role != "smtp"}
    return Drained(counted, counted / seconds, cpu, after["worker"].peak_rss_bytes / 1e6)


def measure_all(site: Site, names: Sequence[str], seconds: float, rounds: int) -> list[dict[str, Measure]]:
    """All rounds; whoever was first in one round is last in the next."""
    results = []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        turn = number % len(names)
        measured = {}
        for name in (*names[turn:], *names[:turn]):
            measured[name] = measure(site, LIBRARIES[name], seconds)
            say(f"  {name}: {_one_line(measured[name])}")
        results.append({name: measured[name] for name in names})
    return results


def _one_line(measured: Measure) -> str:
    ways = ", ".join(f"{way} {each.per_second:,.0f}/s" for way, each in measured.enqueued.items())
    drained = measured.drained
    cpu = "  ".join(f"{role} {value:.0f}" for role, value in drained.cpu_us.items())
    return f"enqueue {ways}; drain {drained.per_second:,.0f}/s of {drained.messages:,} (us: {cpu})"


# what it comes to


def summary(results: Sequence[Mapping[str, Measure]], seconds: float, where: Mapping[str, object]) -> dict[str, Any]:
    """What `--json` writes."""
    names = list(results[0])
    return {
        "ratios": ratios(results),
        "sides": {name: figures([each[name] for each in results]) for name in names},
        "raw": [{name: asdict(measured) for name, measured in each.items()} for each in results],
        "rounds": len(results),
        "seconds": seconds,
        "machine": where,
    }


def ratios(results: Sequence[Mapping[str, Measure]]) -> dict[str, float]:
    """Hopline on Postgres to each of the others, by the best that each can do."""
    found: dict[str, float] = {}
    for other in results[0]:
        if "hopline" not in results[0] or other == "hopline":
            continue
        pairs = [(each["hopline"], each[other]) for each in results]
        enqueue_ratio = paired_ratio([_best(a) for a, _ in pairs], [_best(b) for _, b in pairs])
        drain_ratio = paired_ratio([a.drained.per_second for a, _ in pairs], [b.drained.per_second for _, b in pairs])
        name = other.replace("-", "_")
        found[f"enqueue_vs_{name}"] = significant(enqueue_ratio.median)
        found[f"drain_vs_{name}"] = significant(drain_ratio.median)
    return found


def _best(measured: Measure) -> float:
    return max(each.per_second for each in measured.enqueued.values())


def figures(measures: Sequence[Measure]) -> dict[str, Any]:
    """Medians with their spread."""
    found: dict[str, Any] = {
        f"enqueue_{way}": {
            "per_second": spread([each.enqueued[way].per_second for each in measures]).rounded(),
            "cpu_us": _medians([each.enqueued[way].cpu_us for each in measures]),
        }
        for way in WAYS
    }
    drains = [each.drained for each in measures]
    found["drain"] = {
        "per_second": spread([each.per_second for each in drains]).rounded(),
        "cpu_us": _medians([each.cpu_us for each in drains]),
        "peak_rss_mb": round(max(each.peak_rss_mb for each in drains)),
        "messages": [each.messages for each in drains],
    }
    return found


def _medians(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {role: significant(spread([each[role] for each in costs]).median) for role in costs[0]}


# how it is shown


def text(results: dict[str, Any], command: str) -> str:
    """The table, in Markdown."""
    head = ("", "keeps", "enqueue one/s", "enqueue many/s", "sender µs", "drain/s", "worker µs", "all µs", "RSS MB")
    rows = []
    for name, found in results["sides"].items():
        drained, many = found["drain"], found["enqueue_many"]
        rows.append(
            (
                LIBRARIES[name].title,
                LIBRARIES[name].remembers,
                report.shown(Spread(**found["enqueue_one"]["per_second"])),
                report.shown(Spread(**many["per_second"])),
                f"{many['cpu_us']['sender']:.0f}",
                report.shown(Spread(**drained["per_second"])),
                f"{drained['cpu_us']['worker']:.0f}",
                f"{sum(drained['cpu_us'].values()):.0f}",
                f"{drained['peak_rss_mb']}",
            )
        )
    told = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in results["ratios"].items())
    return "\n\n".join([report.table(head, rows), f"Ratios: {told}.", report.conditions(results["machine"], command)])


def chart(results: dict[str, Any]) -> str:
    """Enqueue and drain."""
    subtitle = f"1 KiB, one process; {report.rounds(results['rounds'])}; {results['machine']['at']}"
    heads = {
        "messages a second enqueued and confirmed, many at a time": "enqueue_many",
        "messages a second drained by one worker process": "drain",
    }
    groups = {
        head: [
            Bar(
                LIBRARIES[name].title,
                value := Spread(**found[key]["per_second"]),
                f"{value.median / 1000:.1f} k/s",
                colour,
                ours=name.startswith("hopline"),
            )
            for (name, found), colour in zip(results["sides"].items(), COLOURS, strict=False)
        ]
        for head, key in heads.items()
    }
    return bars("No-op messages; Hopline with outbox and inbox, the others with neither", subtitle, groups)


def main(arguments: Sequence[str]) -> int:
    parser = report.parser("tasks", __doc__ or "")
    parser.add_argument("--seconds", type=float, default=5, help="how long is sent, in each of the two ways (5)")
    parser.add_argument("--sides", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES), help="(all)")
    options = parser.parse_args(arguments)
    peers = machine.packages(peers_python(), PACKAGES)
    with running() as site:
        where = machine.describe(site.versions | peers)
        measures = measure_all(site, options.sides, options.seconds, options.rounds)
    results = summary(measures, options.seconds, where)
    command = report.command("tasks", arguments)
    report.give("tasks", text(results, command), results, {"tasks": chart(results)}, options)
    return 0
