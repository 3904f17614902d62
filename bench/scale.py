"""`./dev bench scale`: how Hopline's cost grows with what there is: flat, or not. On Postgres.

backlog  so many messages in the queue: how fast they are sent and drained, and the memory of sender and worker; then so
         many unsent in the outbox, as after an outage of RabbitMQ, and the memory of the relay that begins to send them
rows     so many old messages in outbox, inbox and messages: sending, handling, sweeping and purging beside them
workers  1, 2 and 4 worker processes on one backlog
lines    orders of 1 to 161 lines through the whole job
bytes    messages of 0.1 to 256 KiB

A cost is CPU of all processes. The slope is the exponent k of cost ~ size^k: 0 is flat, 1 is in proportion.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from bench import flow, load, machine, report
from bench.chart import Curve, lines
from bench.enqueueing import QUEUE
from bench.figures import slope, spread
from bench.processes import Group, cpu_between, run, use
from bench.programs import ROOT, say
from bench.sides import SIDES
from bench.site import Site, Stand, running
from bench.tasks import LIBRARIES, drain, enqueue, prepare_queue
from hopline import Database
from hopline.retention import MARGIN, purge

HOPLINE: Final = LIBRARIES["hopline"]
LIMIT: Final = 1_000_000
BACKLOGS: Final = (10_000, 100_000, 1_000_000)
OLD_ROWS: Final = (0, 100_000, 1_000_000, 10_000_000)
BESIDE_MESSAGES: Final = 20_000
"""Sent and drained beside the old rows."""
SWEPT_MESSAGES: Final = 10_000
PURGED_MESSAGES: Final = 5_000
WORKERS: Final = (1, 2, 4)
WORKERS_MESSAGES: Final = 60_000
LINES: Final = (1, 3, 10, 40, 161)
"""161 is the longest of 155,848 real baskets."""
BODIES_BYTES: Final = (128, 1024, 16_384, 262_144)
BODIES_TOTAL_BYTES: Final = 400_000_000
BODIES_MOST: Final = 20_000
OLD_ROWS_SQL: Final = ROOT / "bench" / "old_rows.sql"
DUE_SQL: Final = """
UPDATE hopline_outbox SET next_at = now(), sent_at = NULL
WHERE id IN (SELECT id FROM hopline_outbox ORDER BY id DESC LIMIT {})
"""
OLDEST_SQL: Final = """
SELECT extract(epoch FROM now() - created_at) FROM hopline_messages ORDER BY id OFFSET {} LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement."""

    what: str
    size: int
    per_second: float
    cpu_us: float
    """For one message, row or order, all processes."""
    rss_mb: float = math.nan
    """The largest of the process that did it."""


@contextmanager
def _stand(site: Site, environment: Mapping[str, str] = {}) -> Iterator[tuple[Stand, dict[str, str]]]:
    """A stand with Hopline's tables and queue."""
    with site.stand("scale") as stand:
        found = {**HOPLINE.environment_on(stand), **environment}
        assert HOPLINE.setup is not None
        run(HOPLINE.setup(), found, timeout_seconds=60)
        prepare_queue(site, stand, HOPLINE, found)
        yield stand, found


def backlog(site: Site, limit: int) -> list[Point]:
    """Sent, then drained; then due again, and sent by a relay."""
    points = []
    for size in (each for each in BACKLOGS if each <= limit):
        with _stand(site) as (stand, environment):
            points += _there_and_back(site, stand, environment, size, size)
            points.append(_sweep(site, stand, environment, size, due=size))
    return points


def _there_and_back(site: Site, stand: Stand, environment: Mapping[str, str], messages: int, size: int) -> list[Point]:
    sent = enqueue(site, HOPLINE, environment, ("count", messages))
    site.settle(stand)
    done = drain(site, stand, HOPLINE, environment, messages)
    return [
        Point("send", size, sent.per_second, sum(sent.cpu_us.values()), sent.peak_rss_mb),
        Point("handle", size, done.per_second, sum(done.cpu_us.values()), done.peak_rss_mb),
    ]


def rows(site: Site, limit: int) -> list[Point]:
    """Beside so many old rows: send, handle, sweep, purge."""
    points = []
    for size in (each for each in OLD_ROWS if each <= limit):
        with _stand(site) as (stand, environment):
            _fill(site, stand, size)
            points += _there_and_back(site, stand, environment, BESIDE_MESSAGES, size)
            points.append(_sweep(site, stand, environment, size, due=SWEPT_MESSAGES))
            if size >= PURGED_MESSAGES:
                points.append(_purge(site, stand, size))
    return points


def _fill(site: Site, stand: Stand, size: int) -> None:
    if size:
        say(f"  filling the tables with {size:,} old rows ...")
        site.script(stand, OLD_ROWS_SQL.read_text().replace(":rows", str(size)))
    site.script(stand, "VACUUM ANALYZE")


def _sweep(site: Site, stand: Stand, environment: Mapping[str, str], size: int, *, due: int) -> Point:
    """A relay finds so many rows that are due and unsent, as after a crash, and sends some of them."""
    site.script(stand, DUE_SQL.format(due))
    site.settle(stand)
    group = Group(stand.folder / "logs")
    relay = group.start("relay", [*HOPLINE.worker()[:-1], "relay"], environment)
    roles = {**site.roles, "relay": [relay]}
    try:
        group.wait_for(lambda: site.waiting(stand, [QUEUE]) > 0, "the relay begins")
        first, began, before = site.waiting(stand, [QUEUE]), time.perf_counter(), use(roles)
        group.wait_for(lambda: site.waiting(stand, [QUEUE]) >= SWEPT_MESSAGES, "the relay has sent some", seconds=300)
        sent = site.waiting(stand, [QUEUE]) - first
        seconds, after = time.perf_counter() - began, use(roles)
    finally:
        group.stop()
    cpu = sum(cpu_between(before, after).values())
    return Point("sweep", size, sent / seconds, cpu / sent * 1e6, after["relay"].peak_rss_bytes / 1e6)


def _purge(site: Site, stand: Stand, size: int) -> Point:
    """The oldest messages are past the retention and go, with all that belongs to them."""
    age = timedelta(seconds=float(site.query(stand, OLDEST_SQL.format(PURGED_MESSAGES))[0][0]))
    before, began, own = use(site.roles), time.perf_counter(), time.process_time()
    purged = asyncio.run(_purged(stand.database_url, age - MARGIN))
    seconds, cpu = time.perf_counter() - began, time.process_time() - own
    cpu += cpu_between(before, use(site.roles))["postgres"]
    return Point("purge", size, purged / seconds, cpu / purged * 1e6)


async def _purged(url: str, retention: timedelta) -> int:
    database = Database(url)
    try:
        return await purge(database, retention)
    finally:
        await database.close()


def workers(site: Site, limit: int) -> list[Point]:
    """So many processes on one backlog."""
    points = []
    for count in WORKERS:
        with _stand(site) as (stand, environment):
            messages = min(WORKERS_MESSAGES, limit)
            enqueue(site, HOPLINE, environment, ("count", messages))
            site.settle(stand)
            done = drain(site, stand, HOPLINE, environment, messages, workers=count)
            points.append(Point("handle", count, done.per_second, sum(done.cpu_us.values()), done.peak_rss_mb / count))
    return points


def order_lines(site: Site, _limit: int) -> list[Point]:
    """The whole job with orders of so many lines."""
    points = []
    bodies = site.folder / "lines.ndjson"
    for count in LINES:
        bodies.write_bytes(load.fixed(count, 0) + b"\n")
        measured = flow.measure_side(site, SIDES["orders"], {"fixed": bodies}, 3)["fixed"]
        rss = measured.peak_rss_mb["worker"]
        points.append(Point("order", count, measured.end_to_end_per_second, measured.cpu_ms_per_order * 1e3, rss))
    return points


def body_bytes(site: Site, limit: int) -> list[Point]:
    """Messages of so many bytes, sent and drained."""
    points = []
    for size in BODIES_BYTES:
        with _stand(site, {"BENCH_BODY_BYTES": str(size)}) as (stand, environment):
            messages = min(limit, BODIES_MOST, BODIES_TOTAL_BYTES // size)
            points += _there_and_back(site, stand, environment, messages, size)
    return points


@dataclass(frozen=True, slots=True)
class Part:
    """One of the questions."""

    title: str
    unit: str
    measure: Callable[[Site, int], list[Point]]


PARTS: Final = {
    "backlog": Part("Messages waiting in the queue", "messages in the queue", backlog),
    "rows": Part("Old rows in outbox, inbox and messages", "old rows in each table (0 is drawn at 1)", rows),
    "workers": Part("Worker processes on 2 cores", "worker processes", workers),
    "lines": Part("Lines of an order", "lines of an order", order_lines),
    "bytes": Part("Bytes of a message", "bytes of a body", body_bytes),
}


def measure_all(site: Site, names: Sequence[str], limit: int, rounds: int) -> dict[str, list[list[Point]]]:
    """By part, of each round its points."""
    results: dict[str, list[list[Point]]] = {name: [] for name in names}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name in names:
            points = PARTS[name].measure(site, limit)
            for point in points:
                say(
                    f"  {name} {point.size:,}: {point.what} {point.per_second:,.0f}/s, {point.cpu_us:,.0f} us, "
                    f"{point.rss_mb:,.0f} MB"
                )
            results[name].append(points)
    return results


# what it comes to


def summary(results: Mapping[str, Sequence[Sequence[Point]]], where: Mapping[str, object]) -> dict[str, Any]:
    """What `--json` writes: by part and kind of work the points, medians of the rounds, and the slope of the cost."""
    parts = {}
    for name, rounds in results.items():
        works: dict[str, Any] = {}
        for place, point in enumerate(rounds[0]):
            same = [points[place] for points in rounds]
            works.setdefault(point.what, {"points": []})["points"].append(
                {
                    "size": point.size,
                    "per_second": spread([each.per_second for each in same]).rounded(),
                    "cpu_us": spread([each.cpu_us for each in same]).rounded(),
                    "rss_mb": None if math.isnan(point.rss_mb) else round(max(each.rss_mb for each in same)),
                }
            )
        for work in works.values():
            sizes, costs = zip(*((p["size"], p["cpu_us"]["median"]) for p in work["points"]), strict=True)
            found = slope(sizes, costs)
            work["slope"] = None if math.isnan(found) else round(found, 3)
        parts[name] = works
    return {"parts": parts, "rounds": max(map(len, results.values())), "machine": where}


def text(results: dict[str, Any], command: str) -> str:
    """A table for each part."""
    blocks = []
    for name, works in results["parts"].items():
        head = ("", PARTS[name].unit, "a second", "CPU µs each", "RSS MB", "slope of the cost")
        table = []
        for what, work in works.items():
            for place, point in enumerate(work["points"]):
                slope_text = "" if place or work["slope"] is None else f"{work['slope']:+.2f}"
                rss = "" if point["rss_mb"] is None else f"{point['rss_mb']}"
                rate, cost = point["per_second"]["median"], point["cpu_us"]["median"]
                table.append((what, f"{point['size']:,}", f"{rate:,.0f}", f"{cost:,.0f}", rss, slope_text))
        blocks += [f"**{PARTS[name].title}**", report.table(head, table)]
    return "\n\n".join([*blocks, report.conditions(results["machine"], command)])


def charts(results: dict[str, Any]) -> dict[str, str]:
    """One for each part."""
    found = {}
    for name, works in results["parts"].items():
        curves = [
            Curve(what, [(max(1, p["size"]), p["cpu_us"]["median"]) for p in work["points"]])
            for what, work in works.items()
        ]
        subtitle = f"CPU of all processes; {report.rounds(results['rounds'])}; {results['machine']['at']}"
        found[f"scale-{name}"] = lines(PARTS[name].title, subtitle, (PARTS[name].unit, "CPU µs for each"), curves)
    return found


def main(arguments: Sequence[str]) -> int:
    parser = report.parser("scale", __doc__ or "")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="(all)")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, help="no more rows or messages than this (1000000); 10000000 takes an hour"
    )
    options = parser.parse_args(arguments)
    with running() as site:
        where = machine.describe(site.versions)
        results = summary(measure_all(site, options.parts, options.limit, options.rounds), where)
    report.give("scale", text(results, report.command("scale", arguments)), results, charts(results), options)
    return 0
