"""`orders demo`: real baskets through the whole system, then an account of every one of them.

The account is made from outside: what the HTTP client was answered, against the rows of the database, the
ledger of the mail server and the stock. An accepted order is *missing* without a terminal state or without
its email. *Duplicated* counts emails beyond one per Message-ID and products whose stock is not what the
confirmed orders took, once each.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import count, islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from hopline import Database, UsageError, utcnow
from orders import dataset, mailbox, store
from orders.replay import Sent, replay
from orders.stack import Stack, StackOptions, running
from orders.up import stop_event, welcome

_ORDER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

STALLED_SECONDS = 60.0
"""The demo gives up when nothing has changed for so long."""
POLL_SECONDS = 0.25
CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says."""

    folder: Path
    orders: int
    rate: float | None
    workers: int
    database_url: str
    report: Path | None
    keep: bool


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one demo; times in milliseconds, p50 and p99 over accepted (confirmed) orders."""

    sent: int
    accepted: int
    refused_at_the_edge: int
    failed: int
    """Answers that are neither 2xx nor a refusal: no answer within the deadline, or a 5xx."""
    confirmed: int
    rejected: int
    emails_delivered: int
    missing: int
    duplicated: int
    orders_per_second: float
    """Accepted orders over the time from the first POST to the last email."""
    post_p50_ms: float
    post_p99_ms: float
    confirmed_p50_ms: float
    """From the POST to the commit of the decision."""
    confirmed_p99_ms: float
    missing_ids: list[str] = field(default_factory=list)
    ran_on: dict[str, Any] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether every order is accounted for, once."""
        return not (self.missing or self.duplicated or self.failed) and self.accepted > 0


async def main(options: DemoOptions) -> int:
    """Runs the demo; the exit status is 0 only for a clean report."""
    if options.report is not None and not os.access(options.report.absolute().parent, os.W_OK):
        raise UsageError(f"the report cannot be written to {options.report}: no such folder, or not ours to write in")
    console = Console()
    stop = stop_event()
    stack_options = StackOptions(options.folder, "demo", options.workers, options.database_url, fresh=True)
    with console.status("Starting a private RabbitMQ node, the mailbox, the API and the worker …") as status:
        began = time.monotonic()
        async with running(stack_options, lambda _role, _line: None) as stack:
            status.stop()
            console.print(f"Everything is up after {time.monotonic() - began:.1f} s: {stack.api_url}, {stack.node.url}")
            report = await until(stop, send_and_account(stack, options, console))
            if report is None:
                console.print("Interrupted.", style="yellow")
                return 130
            show(report, console)
            if options.report is not None:
                options.report.write_text(json.dumps(asdict(report), indent=2) + "\n")
                console.print(f"The figures are in {options.report}.")
            if options.keep:
                console.print(welcome(stack), soft_wrap=True)
                await stop.wait()
            console.print("Stopping …")
    return 0 if report.is_clean else 1


async def until(stop: asyncio.Event, work: Any) -> Report | None:
    """The result of the work, or None if the stop came first."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return None
    report: Report = working.result()
    return report


async def send_and_account(stack: Stack, options: DemoOptions, console: Console) -> Report:
    """Sends the baskets, waits for all of them, and makes the report."""
    baskets = islice(repeated(), options.orders)
    database = Database(stack.database_url)
    began = utcnow()
    stock_before = await store.stock(database)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    try:
        with progress:
            watch = Watch(database, stack.ledger, began, progress, options.orders)
            watching = asyncio.create_task(watch.until_settled(), name="watch")
            answers = await replay(
                stack.api_url, baskets, rate=options.rate, concurrency=CONCURRENCY, on_progress=watch.answered
            )
            watch.all_sent.set()
            await watching
        return await account(database, stack, answers, stock_before, began)
    finally:
        await database.close()


def repeated() -> Iterator[dataset.Basket]:
    """The shipped baskets, over and over; from the second round on their ids (the idempotency keys) differ."""
    for turn in count():
        for basket in dataset.read():
            yield basket if turn == 0 else dataset.Basket(f"{basket.id}-{turn}", basket.body)


class Watch:
    """Follows a run, for the progress bars and to know when it is over."""

    def __init__(self, database: Database, ledger: Path, began: datetime, progress: Progress, total: int) -> None:
        self.all_sent = asyncio.Event()
        self._database = database
        self._ledger = ledger
        self._began = began
        self._progress = progress
        self._accepted = 0
        self._sending = progress.add_task("sent", total=total)
        self._deciding = progress.add_task("decided", total=total)
        self._mailing = progress.add_task("mailed", total=total)

    def answered(self, sent: Sent) -> None:
        """Takes one answer of the API."""
        self._accepted += sent.accepted
        self._progress.advance(self._sending)

    async def until_settled(self) -> None:
        """Returns when everything accepted is decided and mailed, or when nothing has changed for STALLED_SECONDS."""
        changed, last = time.monotonic(), (-1, -1)
        while time.monotonic() - changed < STALLED_SECONDS or not self.all_sent.is_set():
            known = (await self._decided(), count_lines(self._ledger))
            for task, completed in zip((self._deciding, self._mailing), known, strict=True):
                self._progress.update(
                    task, completed=completed, total=self._accepted if self.all_sent.is_set() else None
                )
            if self.all_sent.is_set() and min(known) >= self._accepted:
                return
            if known != last:
                changed, last = time.monotonic(), known
            await asyncio.sleep(POLL_SECONDS)

    async def _decided(self) -> int:
        columns = store.orders.c
        query = sa.select(sa.func.count()).where(columns.state != store.ACCEPTED, columns.accepted_at >= self._began)
        async with self._database.reading() as connection:
            count: int = (await connection.execute(query)).scalar_one()
        return count


def count_lines(path: Path) -> int:
    """The lines of a file; 0 while there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


async def account(
    database: Database, stack: Stack, answers: Sequence[Sent], before: dict[str, int], began: datetime
) -> Report:
    """Compares what was answered with what the database, the mailbox and the stock show."""
    accepted = {answer.order_id: answer for answer in answers if answer.accepted}
    async with database.reading() as connection:
        columns = store.orders.c
        query = sa.select(columns.id, columns.state, columns.lines, columns.decided_at).where(
            columns.accepted_at >= began
        )
        rows = {row.id: row for row in (await connection.execute(query)).fetchall()}
    confirmed = [
        identifier for identifier in accepted if identifier in rows and rows[identifier].state == store.CONFIRMED
    ]
    rejected = [
        identifier for identifier in accepted if identifier in rows and rows[identifier].state == store.REJECTED
    ]
    mails = list(mailbox.mails(stack.ledger))
    copies = Counter(mail.message_id for mail in mails)
    mailed = {found[0] for mail in mails if (found := _ORDER_ID.search(mail.subject))}
    missing = sorted(accepted.keys() - (set(confirmed) | set(rejected)) | accepted.keys() - mailed)
    taken = Counter[str]()
    for row in rows.values():
        if row.state == store.CONFIRMED:
            for line in row.lines:
                taken[line["sku"]] += line["quantity"]
    after = await store.stock(database)
    twice = sum(before[sku] - after.get(sku, 0) != taken[sku] for sku in before)
    last = max((mail.at for mail in mails), default=began)
    first = min((answer.started_at for answer in answers if answer.started_at), default=began)
    posts = [answer.latency_seconds for answer in accepted.values()]
    decisions = [
        (rows[identifier].decided_at - accepted[identifier].started_at).total_seconds() for identifier in confirmed
    ]
    return Report(
        sent=len(answers),
        accepted=len(accepted),
        refused_at_the_edge=sum(answer.refused for answer in answers),
        failed=sum(not answer.accepted and not answer.refused for answer in answers),
        confirmed=len(confirmed),
        rejected=len(rejected),
        emails_delivered=len(copies),
        missing=len(missing),
        duplicated=sum(copies.values()) - len(copies) + twice,
        orders_per_second=round(len(accepted) / max((last - first).total_seconds(), 0.001), 1),
        post_p50_ms=percentile_ms(posts, 0.50),
        post_p99_ms=percentile_ms(posts, 0.99),
        confirmed_p50_ms=percentile_ms(decisions, 0.50),
        confirmed_p99_ms=percentile_ms(decisions, 0.99),
        missing_ids=missing[:1_000],
        ran_on=machine(stack),
    )


def percentile_ms(seconds: Sequence[float], part: float) -> float:
    """The value that `part` of the values do not exceed (nearest rank), in milliseconds; 0 without values."""
    if not seconds:
        return 0.0
    ranked = sorted(seconds)
    return round(ranked[min(len(ranked) - 1, int(len(ranked) * part))] * 1000, 1)


def machine(stack: Stack) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "rabbitmq": stack.node.version,
        "database": stack.database_url.partition("://")[0],
        "workers": stack.options.workers,
        "at": utcnow().isoformat(timespec="seconds"),
        "command": " ".join(["./dev", "demo", *sys.argv[2:]]),
    }


def show(report: Report, console: Console) -> None:
    """The report as a person reads it."""
    table = Table(box=None, show_header=False, pad_edge=False, title="Every order accounted for" if report.is_clean
                  else "NOT every order is accounted for", title_justify="left",
                  title_style="bold green" if report.is_clean else "bold red")  # fmt: skip
    table.add_column(justify="left")
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    counts = (
        ("sent", report.sent, "real baskets, by POST /orders"),
        ("accepted", report.accepted, "answered 202"),
        ("refused at the edge", report.refused_at_the_edge, "answered 422, with the line and the reason"),
        ("failed", report.failed, "no answer, or 5xx after retries"),
        ("confirmed", report.confirmed, "stock reserved"),
        ("rejected", report.rejected, "by rule, with reasons"),
        ("emails delivered", report.emails_delivered, "distinct Message-IDs in the mailbox"),
        ("missing", report.missing, "accepted, but no terminal state or no email"),
        ("duplicated", report.duplicated, "emails or stock movements beyond one"),
    )
    for name, figure, note in counts:
        bad = figure and name in ("failed", "missing", "duplicated")
        table.add_row(name, f"{figure:,}", note, style="red" if bad else None)
    table.add_row("orders a second", f"{report.orders_per_second:,.0f}", "from the first POST to the last email")
    table.add_row("POST", f"{report.post_p50_ms:g} / {report.post_p99_ms:g} ms", "p50 / p99")
    table.add_row("POST to confirmed", f"{report.confirmed_p50_ms:g} / {report.confirmed_p99_ms:g} ms", "p50 / p99")
    console.print(table)
    for identifier in report.missing_ids:
        console.print(f"missing: {identifier}   (hopline trace {identifier})", style="red")
