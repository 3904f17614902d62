"""`hopline queue`: the queues with their handlers; pause one for all workers, resume it. And `hopline history`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Annotated, TypeVar

import typer
from rich.text import Text

from hopline import history, pausing
from hopline.app import Hopline
from hopline.cli.acting import ReasonOption, WhoOption, YesOption, confirmed, who_acts
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.output import bar, console, one_line, print_json, table, time_text
from hopline.clock import age_text
from hopline.database import Database
from hopline.errors import UsageError
from hopline.history import History, Rate, Window
from hopline.status import EndpointReport, QueueReport, queue_reports, snapshot

Answer = TypeVar("Answer")

QueueArgument = Annotated[str, typer.Argument(help="The queue's name.")]


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    group = typer.Typer(help="See the queues and their handlers; pause a queue, resume it.", no_args_is_help=True)
    group.command("list")(list_queues)
    group.command()(show)
    group.command()(pause)
    group.command()(resume)
    app.add_typer(group, name="queue")
    app.command("history")(show_history)


def list_queues(app: AppOption = "", as_json: JsonOption = False) -> None:
    """List the queues with what is in them, how fast they are handled (5 minutes), and whether they are paused."""
    found = asyncio.run(_reports(load(app)))
    if as_json:
        print_json({"queues": found})
        return
    figures = ("ready", "in flight", "consumers", "oldest", "done/s", "p50", "p99", "failed")
    made = table("queue", "handler", *figures, "", right=figures)
    for one in found:
        for index, endpoint in enumerate(one.endpoints):
            first = (one.name, *_depths(one)) if index == 0 else ("", "", "", "", "")
            name, *depths = first
            made.add_row(name, endpoint.name, *depths, *_rates(endpoint.rate), _state(one, endpoint))
    console().print(made)


def show(queue: QueueArgument, app: AppOption = "", as_json: JsonOption = False) -> None:
    """Show one queue: its state, and each handler's policy."""
    program = load(app)
    program.check_queue(queue)
    (one,) = [report for report in asyncio.run(_reports(program)) if report.name == queue]
    if as_json:
        print_json(one)
        return
    out = console()
    facts = table("", "")
    facts.show_header = False
    for name, value in _facts(one):
        facts.add_row(Text(name, style="dim"), value)
    out.print(facts)
    for endpoint in one.endpoints:
        out.print(Text(f"\n{endpoint.name}", style="bold"))
        for line in _policy_lines(endpoint):
            out.print(Text(f"  {line}"))


def pause(
    queue: QueueArgument,
    reason: ReasonOption = "",
    who: WhoOption = "",
    yes: YesOption = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Pause a queue for all workers, for a --reason: they take nothing from it until somebody resumes it.

    Workers follow with their next heartbeat. What a handler has begun is finished, what waits in memory goes back to
    the queue; no attempt is spent. Exit status 1 if it was paused already.
    """
    program = load(app)
    program.check_queue(queue)
    if not reason.strip():
        raise UsageError("say why with --reason: whoever finds the queue paused has to know when to resume it")
    if not confirmed(f"Pause the queue {queue} for all workers?", yes=yes):
        raise typer.Exit(2)
    name = who_acts(who)
    changed = asyncio.run(_with_database(program, lambda db: pausing.pause(db, queue, who=name, reason=reason)))
    _told(queue, changed, ("is paused", "was paused already"), as_json=as_json)


def resume(
    queue: QueueArgument,
    reason: ReasonOption = "",
    who: WhoOption = "",
    yes: YesOption = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """End the pause of a queue. Exit status 1 if there was none."""
    program = load(app)
    if not confirmed(f"Resume the queue {queue}?", yes=yes):
        raise typer.Exit(2)
    name = who_acts(who)
    changed = asyncio.run(_with_database(program, lambda db: pausing.resume(db, queue, who=name, reason=reason)))
    _told(queue, changed, ("is resumed", "was not paused"), as_json=as_json)


def show_history(
    endpoint: Annotated[str | None, typer.Option(help="Of this endpoint. Default: the whole system.")] = None,
    window: Annotated[str, typer.Option(help="15m, 1h or 24h.", metavar="WINDOW")] = "15m",
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show rates and latencies over the last 15 minutes, hour or day. Quantiles are estimates, by a histogram."""
    found = asyncio.run(_with_database(load(app), lambda database: history.read(database, _window(window), endpoint)))
    if as_json:
        print_json(found)
    else:
        _print_history(found)


def _window(text: str) -> Window:
    for window in history.WINDOWS:
        if text == window:
            return window
    raise UsageError(f"--window is one of {', '.join(history.WINDOWS)}, not {text!r}")


async def _with_database(program: Hopline, work: Callable[[Database], Awaitable[Answer]]) -> Answer:
    async with program.database() as database:
        await database.check()
        return await work(database)


async def _reports(program: Hopline) -> Sequence[QueueReport]:
    async def work(database: Database) -> Sequence[QueueReport]:
        status = await snapshot(database, program.handlers.queues(), program.settings)
        return queue_reports(status, program.handlers, await history.rates(database))

    return await _with_database(program, work)


def _told(queue: str, changed: bool, words: tuple[str, str], *, as_json: bool) -> None:
    if as_json:
        print_json({"queue": queue, "changed": changed})
    else:
        console().print(f"The queue {queue} {words[0] if changed else words[1]}.")
    raise typer.Exit(0 if changed else 1)


def _depths(one: QueueReport) -> Iterator[str]:
    status = one.status
    yield from ("?" if n is None else f"{n:,}" for n in (status.ready, status.unacked, status.consumers))
    sign = "over" if status.oldest_is_least else "about"
    yield "" if status.oldest_seconds is None else f"{sign} {age_text(status.oldest_seconds)}"


def _rates(rate: Rate | None) -> Iterator[str]:
    if rate is None:
        yield from ("", "", "", "")
        return
    yield f"{rate.per_second:,.1f}"
    yield from (_latency(rate.handler_p50), _latency(rate.handler_p99))
    yield "" if rate.retry_ratio is None else f"{rate.retry_ratio:.1%}"


def _latency(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else age_text(seconds)


def _state(one: QueueReport, endpoint: EndpointReport) -> Text:
    if one.held is not None:
        return Text(f"paused by {one.held.who}", style="yellow")
    return Text("paused: what it needs is down", style="red") if endpoint.paused is not None else Text("")


def _facts(one: QueueReport) -> Iterator[tuple[str, str]]:
    ready, in_flight, consumers, oldest = _depths(one)
    yield "queue", one.name
    yield "ready, in flight", f"{ready}, {in_flight}"
    expected = one.status.expected_consumers
    yield "consumers", consumers if expected is None else f"{consumers} of {expected} that workers tell of"
    yield "oldest", oldest or "none"
    if one.held is not None:
        held = one.held
        yield "paused by", f"{held.who}, {time_text(held.since)} UTC: {one_line(held.reason)}"
        yield "obeyed by", f"{held.workers} of {held.of_workers} workers"
    if one.paused is not None:
        yield "paused", f"{one.paused.endpoint}: {one_line(one.paused.reason)}"


def _policy_lines(endpoint: EndpointReport) -> Iterator[str]:
    policy, rate = endpoint.policy, endpoint.rate
    kind = "in the group's transaction" if endpoint.transactional else "an effect, no transaction held"
    yield f"{endpoint.type} v{endpoint.version}, {kind}, deadline {age_text(endpoint.deadline_seconds)}"
    delays = ", ".join(age_text(delay) for delay in policy.delays_seconds)
    more = " …" if policy.attempts - 1 > len(policy.delays_seconds) else ""
    yield f"{policy.attempts} attempts" + (f", after {delays}{more}" if delays else "")
    yield f"{policy.immediate} more tries at once; at the longest {age_text(policy.longest_seconds)} in all"
    for name, errors in (
        ("parked at once", policy.never),
        ("pauses the queue", policy.pause),
        ("own policy", policy.others),
    ):
        if errors:
            yield f"{name}: {', '.join(errors)}"
    if rate is not None:
        per_second, p50, p99, failed = _rates(rate)
        yield f"5 minutes: {per_second}/s done, p50 {p50}, p99 {p99} (estimates), {failed or '0%'} of attempts failed"


def _print_history(found: History) -> None:
    out = console()
    what = found.endpoint or "the whole system"
    done = sum(point.done for point in found.points)
    out.print(Text(f"{what}, the last {found.window}, {found.step_seconds} s a step: {done:,} done", style="bold"))
    bars = {
        "done/s": [point.rate for point in found.points],
        "failed/s": [(point.retried + point.dead) / point.seconds for point in found.points],
        "handler p99": [(point.handler_p99 or 0.0) * 1000 for point in found.points],
        "created to done p99": [(point.total_p99 or 0.0) * 1000 for point in found.points],
    }
    for name, values in bars.items():
        unit = "" if name.endswith("/s") else " ms"
        out.print(Text.assemble((f"{name:>20}  ", "dim"), bar(values), f"  max {max(values, default=0):,.1f}{unit}"))
