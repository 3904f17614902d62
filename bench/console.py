"""`./dev bench console`: what the operator's pages cost, and how long they take beside so many old rows. On Postgres.

pages  how long each page takes its reader, from the request to the last byte
live   CPU of console, Postgres and RabbitMQ while nobody looks, one Flow page is open, ten are; in percent of one core

The rows are messages with outbox and inbox rows, a tenth as many dead letters, a hundredth as many scheduled sends and
acts. A worker runs beside it, idle.
"""

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx

from bench import machine, report
from bench.figures import percentile, significant, spread
from bench.processes import Group, cpu_between, run, use
from bench.programs import ROOT, say
from bench.scale import OLD_ROWS_SQL
from bench.site import Site, Stand, running
from bench.tasks import LIBRARIES, prepare_queue
from hopline import free_ports

HOPLINE: Final = LIBRARIES["hopline"]
PASSWORD: Final = "operators only"  # noqa: S105 - of a console that lives for minutes, on this machine only
ROWS: Final = (0, 1_000_000, 10_000_000)
LIMIT: Final = 1_000_000
OLD_LETTERS_SQL: Final = ROOT / "bench" / "old_letters.sql"
REQUESTS: Final = 15
"""Of each page, one after the other, after one that does not count."""
OPEN_PAGES: Final = (0, 1, 10)
METERED: Final = ("console", "postgres", "rabbitmq")
DEADLINE_SECONDS: Final = 30.0
NAMES_SQL: Final = """
SELECT m.id, m.correlation_id, (SELECT id FROM hopline_dead_letters ORDER BY dead_at DESC LIMIT 1),
       (SELECT fingerprint FROM hopline_dead_letters ORDER BY dead_at DESC LIMIT 1)
FROM hopline_messages AS m ORDER BY m.id DESC LIMIT 1
"""
PAGES: Final = {
    "Flow": "/",
    "Flow, 24 hours": "/?window=24h",
    "Search, a hit": "/search?q={message}",
    "Search, nothing": "/search?q=4711",
    "An order's story": "/flows/{flow}",
    "A message": "/messages/{message}",
    "Dead letters": "/dead",
    "A group": "/dead/{group}",
    "Letters": "/dead/letters",
    "A letter": "/dead/letters/{letter}",
    "Queues": "/queues",
    "A queue": "/queues/noop",
    "Scheduled": "/scheduled",
    "Workers": "/workers",
    "Audit": "/audit",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One size in one round."""

    pages_ms: dict[str, tuple[float, ...]]
    """By page, sorted."""
    core_percent: dict[int, dict[str, float]]
    """By the number of open pages, and role."""


@contextmanager
def _console(stand: Stand, environment: Mapping[str, str]) -> Iterator[tuple[str, Group]]:
    """The console and a worker, ready; stopped at the end."""
    (port,) = free_ports(1)
    group = Group(stand.folder / "logs")
    hopline = [sys.executable, "-m", "hopline.cli"]
    try:
        group.start("worker", [*hopline, "worker"], environment)
        passwords = {"HOPLINE_CONSOLE_OPERATOR_PASSWORD": PASSWORD}
        group.start("console", [*hopline, "console", "--port", port], {**environment, **passwords})
        url = f"http://127.0.0.1:{port}"
        group.wait_for(lambda: _answers(url), "the console answers")
        yield url, group
    finally:
        group.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/sign-in", timeout=2).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def measure(site: Site, size: int, seconds: float) -> Measure:
    """Fills the tables, then looks at every page, then keeps pages open."""
    with site.stand("console") as stand:
        environment = HOPLINE.environment_on(stand)
        assert HOPLINE.setup is not None
        run(HOPLINE.setup(), environment, timeout_seconds=60)
        prepare_queue(site, stand, HOPLINE, environment)
        if size:
            say(f"  filling the tables with {size:,} old rows ...")
            for script in (OLD_ROWS_SQL, OLD_LETTERS_SQL):
                site.script(stand, script.read_text().replace(":rows", str(size)))
        site.settle(stand)
        with _console(stand, environment) as (url, group), _signed_in(url) as client:
            names = _names(site, stand)
            roles = {**site.roles, **group.roles}
            return Measure(
                {title: _look(client, path.format(**names)) for title, path in PAGES.items() if _is_there(path, names)},
                {count: asyncio.run(_keep_open(url, client.cookies, roles, count, seconds)) for count in OPEN_PAGES},
            )


@contextmanager
def _signed_in(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        answer = client.post("/sign-in", data={"password": PASSWORD})
        if answer.status_code != httpx.codes.SEE_OTHER:
            raise SystemExit(f"bench: the console does not sign in: {answer.status_code} {answer.text}")
        yield client


def _names(site: Site, stand: Stand) -> dict[str, str]:
    ((message, flow, letter, group),) = site.query(stand, NAMES_SQL)
    return {"message": message, "flow": flow, "letter": letter, "group": group}


def _is_there(path: str, names: Mapping[str, str]) -> bool:
    """Without old rows there is no dead letter to look at."""
    return all(value != "None" for name, value in names.items() if f"{{{name}}}" in path)


def _look(client: httpx.Client, path: str) -> tuple[float, ...]:
    times = []
    for _ in range(1 + REQUESTS):
        began = time.perf_counter()
        answer = client.get(path, follow_redirects=True)
        times.append(1e3 * (time.perf_counter() - began))
        if answer.status_code != httpx.codes.OK:
            raise SystemExit(f"bench: {path} was answered {answer.status_code}: {answer.text[:500]}")
    return tuple(sorted(times[1:]))


async def _keep_open(
    url: str, cookies: httpx.Cookies, roles: Mapping[str, Sequence[int]], count: int, seconds: float
) -> dict[str, float]:
    """CPU by role, in percent of a core, while so many Flow pages listen."""
    async with httpx.AsyncClient(base_url=url, cookies=cookies, timeout=DEADLINE_SECONDS) as client:
        first = [asyncio.Event() for _ in range(count)]
        listeners = [asyncio.create_task(_listen(client, one)) for one in first]
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await asyncio.gather(*(one.wait() for one in first))
            before, began = use(roles), time.perf_counter()
            await asyncio.sleep(seconds)
            after, lasted = use(roles), time.perf_counter() - began
        finally:
            for listener in listeners:
                listener.cancel()
            await asyncio.gather(*listeners, return_exceptions=True)
    used = cpu_between(before, after)
    return {role: 100 * used[role] / lasted for role in METERED}


async def _listen(client: httpx.AsyncClient, first: asyncio.Event) -> None:
    """Reads a Flow page's stream until it is cancelled; tells of the first piece."""
    async with client.stream("GET", "/events?html=flow") as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_raw():
            first.set()


def measure_all(site: Site, sizes: Sequence[int], rounds: int, seconds: float) -> dict[int, list[Measure]]:
    """By size, of each round."""
    results: dict[int, list[Measure]] = {size: [] for size in sizes}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for size in sizes:
            one = measure(site, size, seconds)
            results[size].append(one)
            slowest = max(one.pages_ms, key=lambda title: one.pages_ms[title][-1])
            live = ", ".join(f"{count} open {sum(one.core_percent[count].values()):.2f} %" for count in OPEN_PAGES)
            say(f"  {size:,} rows: slowest {slowest}, {one.pages_ms[slowest][-1]:.0f} ms at most; {live} of a core")
    return results


# what it comes to


def summary(results: Mapping[int, Sequence[Measure]], where: Mapping[str, object]) -> dict[str, Any]:
    """What `--json` writes: by size the pages' times in ms, and the percent of a core by open pages and role."""
    sizes = {}
    for size, rounds in results.items():
        pages = {
            title: {
                "p50": spread([percentile(one.pages_ms[title], 50) for one in rounds]).rounded(),
                "most": significant(max(one.pages_ms[title][-1] for one in rounds)),
            }
            for title in rounds[0].pages_ms
        }
        live = {
            str(count): {
                role: significant(spread([one.core_percent[count][role] for one in rounds]).median) for role in METERED
            }
            for count in OPEN_PAGES
        }
        sizes[str(size)] = {"pages_ms": pages, "core_percent": live}
    return {"sizes": sizes, "rounds": max(map(len, results.values())), "machine": where}


def text(results: dict[str, Any], command: str) -> str:
    """A table of the pages, and one of what an open page costs."""
    sizes = results["sizes"]
    head = ("", *(f"{int(size):,} rows" for size in sizes))
    pages = [(title, *(_page(found["pages_ms"].get(title)) for found in sizes.values())) for title in PAGES]
    live = [
        (f"{int(size):,}", count, f"{sum(used.values()):.2f}", *(f"{used[role]:.2f}" for role in METERED))
        for size, found in sizes.items()
        for count, used in found["core_percent"].items()
    ]
    return "\n\n".join(
        [
            "**A page, ms: median (most)**",
            report.table(head, pages),
            "**Open Flow pages, percent of one core**",
            report.table(("rows", "pages open", "all", *METERED), live),
            report.conditions(results["machine"], command),
        ]
    )


def _page(times: dict[str, Any] | None) -> str:
    return "" if times is None else f"{times['p50']['median']:.0f} ({times['most']:.0f})"


def main(arguments: Sequence[str]) -> int:
    parser = report.parser("console", __doc__ or "")
    parser.add_argument("--seconds", type=float, default=20, help="how long pages are kept open (20)")
    parser.add_argument("--limit", type=int, default=LIMIT, help="no more rows than this (1000000); also 10000000")
    options = parser.parse_args(arguments)
    with running() as site:
        where = machine.describe(site.versions)
        sizes = [size for size in ROWS if size <= options.limit]
        results = summary(measure_all(site, sizes, options.rounds, options.seconds), where)
    report.give("console", text(results, report.command("console", arguments)), results, {}, options)
    return 0
