"""`./dev bench latency`: how long a message and an order take when there is room, at 1, 100 and 1,000 a second.

Open loops: things are sent at fixed times, and what is late counts from the time at which it was due. Publish to
handler is a no-op message of 1 KiB, from its sending to the first line of its handler in another process (for Hopline:
the commit of its row included). The floor is what the machine takes for that with no engine at all: one row committed,
then bare AMQP. POST to confirmed is from the due time of the request to the commit that decides the
order: by Postgres' own account of it (track_commit_timestamp), on SQLite by the time in the row, which is a little
earlier. A side that cannot keep up with a rate is said to be saturated, with the share that it did handle.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bench import load, machine, report
from bench.chart import COLOURS, Bar, bars
from bench.figures import Spread, percentile, significant, spread
from bench.processes import Condition, Group, run
from bench.programs import peers_python, say
from bench.sides import BEST, SIDES, Running, Side
from bench.site import Site, Stand, running
from bench.tally import FILE, Tally
from bench.tasks import LIBRARIES, Library, prepare_queue

RATES: Final = (1, 100, 1000)
PERCENTS: Final = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
WAIT_SECONDS: Final = 15.0
"""After the last one was sent; what has no end by then counts as none."""
BEHIND_MS: Final = 1000.0
"""A side whose median is beyond this does not keep up with the rate: it would get worse for as long as it lasts."""
LEAST_SAMPLES: Final = 20
"""A low rate is held for so many."""
START_SECONDS: Final = 1.0
"""Between the first sign of life and the measurement."""
FLOOR: Final = Library(
    "floor",
    "The floor: a row committed, then bare AMQP",
    lambda: [sys.executable, "-m", "bench.floor"],
    lambda: [sys.executable, "-m", "bench.floor", "work"],
)
SENDERS: Final = {FLOOR.name: FLOOR, **LIBRARIES}
PATHS: Final = {"handler": "publish to handler", "post": "POST to its answer", "confirmed": "POST to confirmed"}
PACKAGES: Final = ["celery", "dramatiq", "taskiq", "faststream", "fastapi", "sqlalchemy"]


@dataclass(frozen=True, slots=True)
class Times:
    """What one side did at one rate, in milliseconds, sorted; what had no end is infinite."""

    milliseconds: tuple[float, ...]

    @classmethod
    def of(cls, seconds: Sequence[float], expected: int) -> "Times":
        """So many were expected."""
        missing = max(0, expected - len(seconds))
        return cls((*sorted(1e3 * each for each in seconds), *[math.inf] * missing))

    def at(self, percent: float) -> float:
        """A percentile in milliseconds."""
        return percentile(self.milliseconds, percent)

    @property
    def ended(self) -> float:
        """The share that had an end."""
        return sum(map(math.isfinite, self.milliseconds)) / len(self.milliseconds)


Found = dict[tuple[str, str, int], Times]
"""By side, path and rate."""


def measure_library(site: Site, library: Library, rates: Sequence[int], seconds: float) -> Found:
    """Publish to handler, of one library."""
    found: Found = {}
    with site.stand(library.name.replace("-", "_"), sqlite=library.sqlite) as stand:
        environment = library.environment_on(stand)
        if library.setup is not None:
            run(library.setup(), environment, timeout_seconds=60)
        prepare_queue(site, stand, library, environment)
        group = Group(stand.folder / "logs")
        tally = Tally(Path(environment[FILE]))
        group.start("worker", library.worker(), environment)
        try:
            first = tally.count
            send = [*library.sender(), "paced"]
            run([*send, 1, 2], environment, timeout_seconds=60)  # the worker is up when this arrives
            group.wait_for(lambda: tally.count >= first + 2, f"{library.name} handles messages")
            for rate in rates:
                first, held = tally.count, _held_seconds(rate, seconds)
                told = json.loads(run([*send, held, rate], environment, timeout_seconds=600).output.splitlines()[-1])
                _wait(partial(_all_handled, tally, first + told["messages"]))
                found[library.name, "handler", rate] = Times.of(tally.seconds(first), told["messages"])
        finally:
            group.stop()
    return found


def measure_side(site: Site, side: Side, bodies: Path, rates: Sequence[int], seconds: float) -> Found:
    """POST to answer and to confirmed, of one stack."""
    found: Found = {}
    with site.stand(side.name.replace("-", "_"), sqlite=side.sqlite) as stand, side.running(stand) as started:
        load.post(started.url, bodies, 1)
        time.sleep(START_SECONDS)
        for rate in rates:
            held = _held_seconds(rate, seconds)
            answers = _post(stand, started, bodies, rate, held)
            expected = max(1, int(rate * held))
            _wait(partial(_all_decided, site, stand, answers))
            decided = _decided(site, stand)
            ends = [decided[each] - due_at for each, (due_at, _) in answers.items() if each in decided]
            found[side.name, "post", rate] = Times.of([took for _, took in answers.values()], expected)
            found[side.name, "confirmed", rate] = Times.of(ends, expected)
            if found[side.name, "confirmed", rate].ended < 1:
                break  # what is left over would spoil the next one
    return found


def _held_seconds(rate: int, seconds: float) -> float:
    return max(seconds, LEAST_SAMPLES / rate)


def _all_handled(tally: Tally, expected: int) -> bool:
    return tally.count >= expected


def _all_decided(site: Site, stand: Stand, answers: Mapping[str, object]) -> bool:
    return _decided(site, stand).keys() >= answers.keys()


def _wait(condition: Condition) -> None:
    give_up_at = time.monotonic() + WAIT_SECONDS
    while not condition() and time.monotonic() < give_up_at:
        time.sleep(0.1)


def _post(stand: Stand, side: Running, bodies: Path, rate: int, seconds: float) -> dict[str, tuple[float, float]]:
    """By order id: when it was due, and how long its answer took."""
    address = urlsplit(side.url)
    answers = stand.folder / "answers"
    words = [address.hostname, address.port, rate, seconds, bodies, answers]
    run([sys.executable, "-m", "bench.open_loop", *words], {}, timeout_seconds=seconds + 60)
    lines = (line.split() for line in answers.read_text().splitlines())
    return {identifier: (float(due_at), float(took)) for identifier, due_at, took in lines}


def _decided(site: Site, stand: Stand) -> dict[str, float]:
    """When each order was decided, in seconds since the epoch."""
    if stand.is_sqlite:
        rows = site.query(stand, "SELECT id, decided_at FROM orders WHERE decided_at IS NOT NULL")
        return {identifier: datetime.fromisoformat(f"{at}+00:00").timestamp() for identifier, at in rows}
    query = "SELECT id, extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM orders WHERE decided_at IS NOT NULL"
    return {identifier: float(at) for identifier, at in site.query(stand, query)}


def measure_all(site: Site, options: Any, bodies: Path) -> list[Found]:
    """All rounds; whoever was first in one round is last in the next."""
    results = []
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}")
        found: Found = {}
        for name in _turned(options.libraries, number):
            found |= _told(measure_library(site, SENDERS[name], options.rates, options.seconds))
        for name in _turned(options.sides, number):
            found |= _told(measure_side(site, SIDES[name], bodies, options.rates, options.seconds))
        results.append(found)
    return results


def _turned(names: Sequence[str], number: int) -> Sequence[str]:
    turn = number % len(names) if names else 0
    return (*names[turn:], *names[:turn])


def _told(found: Found) -> Found:
    """Says what was found, and gives it back."""
    for (side, path, rate), times in found.items():
        told = "  ".join(f"{key} {times.at(percent):.1f}" for key, percent in PERCENTS.items())
        say(f"  {side}, {PATHS[path]}, {rate}/s: {told} ms, {times.ended:.0%} of {len(times.milliseconds)}")
    return found


# what it comes to


def summary(results: Sequence[Found], seconds: float, where: Mapping[str, object]) -> dict[str, Any]:
    """What `--json` writes: by side, path and rate the percentiles in milliseconds (null: it never came)."""
    sides: dict[str, dict[str, dict[str, Any]]] = {}
    for key in dict.fromkeys(key for found in results for key in found):
        side, path, rate = key
        times = [found[key] for found in results if key in found]
        figures: dict[str, Any] = {
            name: {which: _finite(value) for which, value in spread([t.at(percent) for t in times]).rounded().items()}
            for name, percent in PERCENTS.items()
        }
        figures["ended"] = round(min(t.ended for t in times), 3)
        figures["samples"] = [len(t.milliseconds) for t in times]
        sides.setdefault(side, {}).setdefault(path, {})[str(rate)] = figures
    return {"sides": sides, "rounds": len(results), "seconds": seconds, "machine": where}


def _finite(value: float) -> float | None:
    return significant(value) if math.isfinite(value) else None


# how it is shown


def text(results: dict[str, Any], command: str) -> str:
    """A table for each path."""
    parts = []
    for path, title in PATHS.items():
        rows = [row for side, rates in _sides(results, path).items() for row in _rows(_title(side, path), rates)]
        parts += [f"**{title[0].upper()}{title[1:]}, ms**", report.table(("", "a second", *PERCENTS), rows)]
    return "\n\n".join([*parts, report.conditions(results["machine"], command)])


def _rows(title: str, rates: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for rate, figures in rates.items():
        if figures["ended"] < 1:
            rows.append((title, rate, f"saturated: {figures['ended']:.0%} were done", "", ""))
        else:
            behind = figures["p50"]["median"] > BEHIND_MS
            cells = (report.shown(Spread(**figures[name]), 1) for name in PERCENTS)
            rows.append((title, f"{rate}, falls behind" if behind else rate, *cells))
    return rows


def _sides(results: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """What was found on one path, by side, in the order in which the sides are declared everywhere."""
    found = results["sides"]
    declared: Sequence[str] = list(SENDERS) if path == "handler" else list(SIDES)
    return {side: found[side][path] for side in declared if path in found.get(side, {})}


def _title(side: str, path: str) -> str:
    return SENDERS[side].title if path == "handler" else SIDES[side].title


def chart(results: dict[str, Any]) -> str:
    """p50 and p99 of the two whole paths at 100 a second, and at 1,000 for those that bear it."""
    groups: dict[str, list[Bar]] = {}
    for path in ("handler", "confirmed"):
        for rate in ("100", "1000"):
            for percent in ("p50", "p99"):
                found = [
                    _a_bar(side, _title(side, path), Spread(**rates[rate][percent]), colour)
                    for (side, rates), colour in zip(_sides(results, path).items(), COLOURS, strict=False)
                    if _keeps_up(rates.get(rate))
                ]
                if found:
                    groups[f"{PATHS[path]}, {percent}, {int(rate):,} a second"] = found
    subtitle = f"milliseconds, open loop; {report.rounds(results['rounds'])}; {results['machine']['at']}"
    return bars("How long it takes", subtitle, groups)


def _keeps_up(figures: Mapping[str, Any] | None) -> bool:
    return figures is not None and figures["ended"] == 1 and figures["p50"]["median"] <= BEHIND_MS


def _a_bar(side: str, title: str, value: Spread, colour: str) -> Bar:
    return Bar(title, value, f"{value.median:,.1f} ms", colour, ours=side.startswith(("hopline", "orders")))


def main(arguments: Sequence[str]) -> int:
    parser = report.parser("latency", __doc__ or "")
    parser.add_argument("--seconds", type=float, default=10, help="how long each rate is held (10)")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="a second (1 100 1000)")
    parser.add_argument("--libraries", nargs="*", choices=list(SENDERS), default=list(SENDERS), help="(all)")
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), default=list(BEST), help=f"({' '.join(BEST)})")
    options = parser.parse_args(arguments)
    peers = machine.packages(peers_python(), PACKAGES)
    with running() as site:
        where = machine.describe(site.versions | peers)
        bodies = site.folder / "fixed.ndjson"
        load.write_bodies("fixed", bodies)
        results = summary(measure_all(site, options, bodies), options.seconds, where)
    command = report.command("latency", arguments)
    report.give("latency", text(results, command), results, {"latency": chart(results)}, options)
    return 0
