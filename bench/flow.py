"""`./dev bench flow`: the whole job, from POST /orders to the email, by Hopline's orders and by the usual stacks.

POST -> checked -> stored -> RabbitMQ -> worker -> row updated -> email to an SMTP sink -> acknowledged, under 32
kept connections of wrk (a closed loop). The sides take turns in each round on the same servers, each with a virtual
host and database of its own, one API and one worker process (Celery: one pool). After a warm-up that has drained, a
measurement goes from the first POST to the last email; a ratio is the median of the rounds' ratios.

CPU is user and system time of the processes, children included, for one order; the loader's is apart, not in the sum.
`fixed` is one body of three lines in 1 KiB, `baskets` are the shipped real ones.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench import load, machine, report
from bench.chart import COLOURS, Bar, bars
from bench.figures import Spread, paired_ratio, significant, spread
from bench.processes import Roles, cpu_between, until, use
from bench.programs import peers_python, say
from bench.sides import BEST, SIDES, Running, Side
from bench.site import Site, Stand, running

WARM_UP_SECONDS: Final = 2
DRAIN_SECONDS: Final = 300
QUIET_SECONDS: Final = 0.3
"""After wrk has cut its connections, until the requests that were under way are stored."""
PEERS: Final = ("celery", "faststream")
PACKAGES: Final = ["celery", "faststream", "fastapi", "sqlalchemy", "uvicorn", "aio-pika", "psycopg", "asyncpg"]
ROLES: Final = ("api", "worker", "postgres", "rabbitmq", "smtp")
GUARANTEES: Final = (
    ("", "after a 2xx", "the row's update", "the email"),
    (
        "orders (Hopline)",
        "decided for certain: order and message are one transaction; accepts with RabbitMQ down",
        "once: the inbox row is in its transaction",
        "at least once, always with the same Message-ID",
    ),
    (
        "FastAPI + Celery",
        "lost if the API dies between commit and publish; RabbitMQ down: stored, answered 500, never handled",
        "as often as it is delivered; here the state guards it",
        "at least once, a new Message-ID each time",
    ),
    (
        "FastAPI + FastStream",
        "lost if the API dies between commit and publish; RabbitMQ down: stored, answered 500, never handled",
        "as often as it is delivered; here the state guards it",
        "at least once, a new Message-ID each time; put back at once and for ever while it fails",
    ),
)


@dataclass(frozen=True, slots=True)
class Measure:
    """One side, one kind of body, one round."""

    orders: int
    accepted_per_second: float
    end_to_end_per_second: float
    """Orders over the time from the first POST to the last email."""
    post_p50_ms: float
    post_p99_ms: float
    post_p999_ms: float
    cpu_ms: dict[str, float]
    """For one order, by role."""
    loader_cpu_ms: float
    peak_rss_mb: dict[str, float]

    @property
    def cpu_ms_per_order(self) -> float:
        """All but the loader."""
        return sum(self.cpu_ms.values())


def measure(site: Site, stand: Stand, side: Running, bodies: Path, seconds: float) -> Measure:
    """Sends for so long, and waits for the last email. SystemExit if an order is not decided and mailed once."""
    roles: Roles = {**site.roles, **side.group.roles}
    orders_before, mails_before = _orders(site, stand), site.sink.mails()
    before, began = use(roles), time.perf_counter()
    answered = load.post(side.url, bodies, seconds)
    ended = drain(site, stand, side, mails_before - orders_before)
    after = use(roles)
    orders = _orders(site, stand) - orders_before
    if answered.refused or answered.failed or not orders:
        raise SystemExit(f"bench: {answered}; the API's log ends so:\n{side.group.tail('api')}")
    return Measure(
        orders=orders,
        accepted_per_second=answered.accepted / answered.seconds,
        end_to_end_per_second=orders / (ended - began),
        post_p50_ms=answered.p50_ms,
        post_p99_ms=answered.p99_ms,
        post_p999_ms=answered.p999_ms,
        cpu_ms={role: cpu / orders * 1e3 for role, cpu in cpu_between(before, after).items()},
        loader_cpu_ms=answered.cpu_seconds / orders * 1e3,
        peak_rss_mb={role: each.peak_rss_bytes / 1e6 for role, each in after.items()},
    )


def drain(site: Site, stand: Stand, side: Running, mails_of_others: int) -> float:
    """Waits until every stored order has its email; gives the time of the last (time.perf_counter)."""
    time.sleep(QUIET_SECONDS)
    expected = _orders(site, stand) + mails_of_others
    until(
        lambda: site.sink.mails() >= expected,
        f"{stand.name}: {expected} emails",
        seconds=DRAIN_SECONDS,
        check=side.group.check,
    )
    ended = time.perf_counter()
    undecided = _count(site, stand, "SELECT count(*) FROM orders WHERE state = 'accepted'")
    if undecided or site.sink.mails() != expected:
        raise SystemExit(f"bench: {stand.name}: {undecided} undecided, {site.sink.mails()} emails for {expected}")
    return ended


def _orders(site: Site, stand: Stand) -> int:
    return _count(site, stand, "SELECT count(*) FROM orders")


def _count(site: Site, stand: Stand, query: str) -> int:
    return int(site.query(stand, query)[0][0])


def measure_side(site: Site, side: Side, bodies: Mapping[str, Path], seconds: float) -> dict[str, Measure]:
    """Starts a side with nothing stored, warms it up, and measures it with each kind of body."""
    measures = {}
    with site.stand(side.name.replace("-", "_"), sqlite=side.sqlite) as stand, side.running(stand) as started:
        mails = site.sink.mails()
        for kind, file in bodies.items():
            load.post(started.url, file, WARM_UP_SECONDS)
            drain(site, stand, started, mails)
            site.settle(stand)
            measures[kind] = measure(site, stand, started, file, seconds)
            say(f"  {side.name}, {kind}: {_one_line(measures[kind])}")
    return measures


def _one_line(measured: Measure) -> str:
    cpu = "  ".join(f"{role} {value:.2f}" for role, value in measured.cpu_ms.items())
    return (
        f"accepted {measured.accepted_per_second:,.0f}/s, end to end {measured.end_to_end_per_second:,.0f}/s, "
        f"POST p50 {measured.post_p50_ms:.1f} p99 {measured.post_p99_ms:.1f} ms, "
        f"CPU {measured.cpu_ms_per_order:.2f} ms ({cpu})"
    )


Rounds = list[dict[str, dict[str, Measure]]]
"""Of each round: side, kind of body."""


def measure_all(site: Site, names: Sequence[str], bodies: Mapping[str, Path], seconds: float, rounds: int) -> Rounds:
    """All rounds; whoever was first in one round is last in the next."""
    results: Rounds = []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        turn = number % len(names)
        measured = {name: measure_side(site, SIDES[name], bodies, seconds) for name in (*names[turn:], *names[:turn])}
        results.append({name: measured[name] for name in names})
    return results


# what it comes to


def summary(results: Rounds, seconds: float, where: Mapping[str, object]) -> dict[str, Any]:
    """What `--json` writes."""
    names, kinds = list(results[0]), list(next(iter(results[0].values())))
    sides = {name: {kind: figures([each[name][kind] for each in results]) for kind in kinds} for name in names}
    ours = sides["orders"][kinds[0]] if "orders" in names else None
    return {
        "ratios": ratios(results),
        "cpu_ms_per_order": ours["cpu_ms_per_order"]["median"] if ours else None,
        "post_p99_ms": ours["post_p99_ms"]["median"] if ours else None,
        "sides": sides,
        "raw": [
            {name: {kind: asdict(measured) for kind, measured in kinds.items()} for name, kinds in each.items()}
            for each in results
        ],
        "rounds": len(results),
        "seconds": seconds,
        "machine": where,
    }


def ratios(results: Rounds) -> dict[str, float]:
    """End to end, `orders` on Postgres and SQLite to each peer; with what comes after the first kind of body named."""
    found = {}
    kinds = list(next(iter(results[0].values())))
    for ours, prefix in (("orders", ""), ("orders-sqlite", "sqlite_")):
        for peer in PEERS:
            for kind in kinds:
                if ours in results[0] and peer in results[0]:
                    name = f"{prefix}end_to_end_vs_{peer}{'' if kind == kinds[0] else '_' + kind}"
                    found[name] = significant(_ratio(results, ours, peer, kind).median)
    return found


def _ratio(results: Rounds, ours: str, peer: str, kind: str) -> Spread:
    rates = ([each[name][kind].end_to_end_per_second for each in results] for name in (ours, peer))
    return paired_ratio(*rates)


def figures(measures: Sequence[Measure]) -> dict[str, Any]:
    """Medians with their spread; of CPU and memory by role, the medians."""
    names = ("accepted_per_second", "end_to_end_per_second", "post_p50_ms", "post_p99_ms", "post_p999_ms")
    roles = [role for role in ROLES if role in measures[0].cpu_ms]
    return {
        **{name: spread([getattr(each, name) for each in measures]).rounded() for name in (*names, "cpu_ms_per_order")},
        "cpu_ms": {role: significant(spread([each.cpu_ms[role] for each in measures]).median) for role in roles},
        "loader_cpu_ms": significant(spread([each.loader_cpu_ms for each in measures]).median),
        "peak_rss_mb": {role: round(spread([each.peak_rss_mb[role] for each in measures]).median) for role in roles},
        "orders": [each.orders for each in measures],
    }


# how it is shown


def text(results: dict[str, Any], command: str) -> str:
    """The tables, in Markdown."""
    parts = []
    for kind in next(iter(results["sides"].values())):
        parts += [f"**{HEADS[kind]}**", _table(results, kind)]
    ratio_text = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in results["ratios"].items())
    parts += [f"Ratios: {ratio_text}.", "**Peak resident set, MB**", _memory(results)]
    parts += ["**What each side guarantees**", report.table(GUARANTEES[0], GUARANTEES[1:])]
    return "\n\n".join([*parts, report.conditions(results["machine"], command)])


HEADS: Final = {"fixed": "One body, 3 lines, 1 KiB", "baskets": "Real baskets, 10.6 lines"}


def _table(results: dict[str, Any], kind: str) -> str:
    head = ("", "accepted/s", "end to end/s", "POST p50 ms", "p99 ms", "CPU ms an order", *ROLES, "loader")
    rows = []
    for name, kinds in results["sides"].items():
        found = kinds[kind]
        cells = [report.shown(Spread(**found[key])) for key in ("accepted_per_second", "end_to_end_per_second")]
        cells += [report.shown(Spread(**found[key])) for key in ("post_p50_ms", "post_p99_ms")]
        cells.append(report.shown(Spread(**found["cpu_ms_per_order"]), 2))
        cells += [f"{found['cpu_ms'].get(role, 0):.2f}" for role in ROLES]
        rows.append((SIDES[name].title, *cells, f"{found['loader_cpu_ms']:.2f}"))
    return report.table(head, rows)


def _memory(results: dict[str, Any]) -> str:
    kind = list(next(iter(results["sides"].values())))[-1]
    rows = [
        (SIDES[name].title, *(f"{kinds[kind]['peak_rss_mb'].get(role, 0):,}" for role in ROLES))
        for name, kinds in results["sides"].items()
    ]
    return report.table(("", *ROLES), rows)


def chart(results: dict[str, Any]) -> str:
    """End to end and CPU, a group for each kind of body."""
    groups = {}
    for kind in next(iter(results["sides"].values())):
        groups[f"orders a second, from POST to email: {_in_a_sentence(HEADS[kind])}"] = _bars(
            results, kind, "end_to_end_per_second", "{:,.0f}/s"
        )
        groups[f"CPU for one order, all processes but the loader: {_in_a_sentence(HEADS[kind])}"] = _bars(
            results, kind, "cpu_ms_per_order", "{:.2f} ms"
        )
    where = results["machine"]
    subtitle = f"{report.rounds(results['rounds'])}; {where['cores']} cores for everything, {where['at']}"
    return bars("The whole job: POST, database, RabbitMQ, worker, database, email", subtitle, groups)


def _in_a_sentence(head: str) -> str:
    return head[0].lower() + head[1:]


def _bars(results: dict[str, Any], kind: str, figure: str, form: str) -> list[Bar]:
    found = [(name, Spread(**kinds[kind][figure])) for name, kinds in results["sides"].items()]
    return [
        Bar(SIDES[name].title, value, form.format(value.median), colour, ours=name.startswith("orders"))
        for (name, value), colour in zip(found, COLOURS, strict=False)
    ]


def main(arguments: Sequence[str]) -> int:
    parser = report.parser("flow", __doc__ or "")
    parser.add_argument("--seconds", type=float, default=8, help="how long orders are sent in one measurement (8)")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=BEST, help=f"({' '.join(BEST)})")
    parser.add_argument("--bodies", nargs="+", choices=load.BODIES, default=load.BODIES, help="(fixed baskets)")
    options = parser.parse_args(arguments)
    peers = machine.packages(peers_python(), PACKAGES)
    with running() as site:
        where = machine.describe(site.versions | peers)
        bodies = {kind: site.folder / f"{kind}.ndjson" for kind in options.bodies}
        for kind, file in bodies.items():
            load.write_bodies(kind, file)
        results = summary(
            measure_all(site, options.sides, bodies, options.seconds, options.rounds), options.seconds, where
        )
    report.give("flow", text(results, report.command("flow", arguments)), results, {"flow": chart(results)}, options)
    return 0
