"""`hopline dead replay` and `discard`: acts on the letters that ids or a filter choose."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.console import Group as Lines
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from hopline import deadletter_queries, repair
from hopline.app import Hopline
from hopline.cli.acting import (
    AllOption,
    GroupFilter,
    IdsArgument,
    KeyOption,
    QueueOption,
    ReasonFilter,
    ReasonOption,
    SinceFilter,
    TypeOption,
    UntilFilter,
    WhoOption,
    YesOption,
    check_choice,
    confirmed,
    period,
    repairing,
    who_acts,
)
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.output import console, counted, one_line, print_json
from hopline.database import Database
from hopline.deadletter_queries import Filter
from hopline.errors import UsageError
from hopline.repair import Code, Failure, Judged, Plan, Selection, Tally, Verdict

NAMED = 1_000
"""So many letters of one command are named in its answer; the rest is counted."""


def add_to(group: typer.Typer) -> None:
    """Adds this module's commands."""
    group.command()(replay)
    group.command()(discard)
    group.command()(undo)


def replay(  # noqa: PLR0913 - a command's options
    ids: IdsArgument = None,
    queue: QueueOption = None,
    type_name: TypeOption = None,
    key: KeyOption = None,
    died_of: ReasonFilter = None,
    group: GroupFilter = None,
    since: SinceFilter = None,
    until: UntilFilter = None,
    everything: AllOption = False,
    canary: Annotated[
        bool, typer.Option("--canary", help="Send 1, then 10, 100, all; stop when one fails again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only decode and check each letter by today's code.")
    ] = False,
    as_new: Annotated[
        bool, typer.Option("--as-new", help="Send a new message with a new id, in the same flow.")
    ] = False,
    rate: Annotated[float, typer.Option(help="Messages a second.")] = repair.RATE,
    deadline: Annotated[
        float, typer.Option(help="Seconds that a canary waits without news.")
    ] = repair.DEADLINE_SECONDS,
    delay: Annotated[
        float, typer.Option(min=0, help="Send after so many seconds; until then `dead undo` takes it back.")
    ] = 0.0,
    reason: ReasonOption = "",
    who: WhoOption = "",
    yes: YesOption = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Send parked messages again, the oldest first, each to the queue in which it died.

    Exit status 1 if a letter was refused or (with --canary) a replay failed again or had no result in time: what
    was not sent stays parked. 2 if more than one would be sent without --yes.
    """
    which = _which(ids, Filter(queue, type_name, key, died_of, group, *period(since, until)), everything=everything)
    job = _Replaying(load(app), which, Plan(canary, rate, deadline, delay), who_acts(who), reason, as_new, as_json)
    raise typer.Exit(asyncio.run(job.check() if dry_run else job.run(yes=yes)))


def discard(  # noqa: PLR0913 - a command's options
    ids: IdsArgument = None,
    queue: QueueOption = None,
    type_name: TypeOption = None,
    key: KeyOption = None,
    died_of: ReasonFilter = None,
    group: GroupFilter = None,
    since: SinceFilter = None,
    until: UntilFilter = None,
    everything: AllOption = False,
    reason: ReasonOption = "",
    who: WhoOption = "",
    yes: YesOption = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give parked messages up for good, for a --reason. Their letters are kept.

    Exit status 1 if one could not be discarded, 2 if more than one would be without --yes.
    """
    if not reason.strip():
        raise UsageError("say why with --reason: a message that is given up for good needs a reason")
    which = _which(ids, Filter(queue, type_name, key, died_of, group, *period(since, until)), everything=everything)
    raise typer.Exit(asyncio.run(_discard(load(app), which, who_acts(who), reason, yes=yes, as_json=as_json)))


def undo(
    ids: Annotated[list[str], typer.Argument(help="Letters, as a list shows them.")],
    reason: ReasonOption = "",
    who: WhoOption = "",
    yes: YesOption = False,
    app: AppOption = "",
    as_json: JsonOption = False,
) -> None:
    """Park letters again: what was discarded, and what was replayed or edited while its message is still scheduled.

    Exit status 1 if one could not be parked again, 2 if more than one would be without --yes.
    """
    chosen = list(dict.fromkeys(ids))
    if len(chosen) > 1 and not confirmed(f"Park {counted(len(chosen), 'letter')} again?", yes=yes):
        raise typer.Exit(2)
    judged = asyncio.run(_undo(load(app), chosen, who_acts(who), reason))
    done = [one.letter_id for one in judged if one.verdict.ok]
    refused = [one for one in judged if not one.verdict.ok]
    if as_json:
        print_json({"parked": done, "refused": [{"letter": r.letter_id, "text": r.verdict.text} for r in refused]})
    else:
        for one in refused:
            console().print(Text.assemble(one.letter_id, (f"  {one.verdict.text}", "yellow")))
        console().print(f"{counted(len(done), 'letter')} parked again.")
    raise typer.Exit(1 if refused else 0)


async def _undo(program: Hopline, ids: list[str], who: str, reason: str) -> list[Judged]:
    judged: list[Judged] = []
    async with repairing(program) as (database, _):
        for start in range(0, len(ids), repair.ACT_LETTERS):
            some = ids[start : start + repair.ACT_LETTERS]
            judged += await repair.undo(database, some, who=who, reason=reason)
    return judged


def _which(ids: list[str] | None, chosen: Filter, *, everything: bool) -> Filter:
    """The filter of the given ids, or the given filter."""
    filtered = chosen != Filter()
    check_choice(ids or [], filtered=filtered, everything=everything)
    return Filter(ids=tuple(dict.fromkeys(ids)), state="any") if ids else chosen


async def _chosen(database: Database, which: Filter) -> tuple[Selection, list[Judged]]:
    """What a filter selects, and those of its ids that do not exist."""
    selection = await repair.select(database, which)
    if which.ids is None or selection.count == len(which.ids):
        return selection, []
    async with database.reading() as connection:
        found = {one.id for one in await deadletter_queries.find(connection, which, limit=len(which.ids))}
    nowhere = Verdict("not-found", "there is no such dead letter")
    return selection, [Judged(identifier, None, nowhere) for identifier in which.ids if identifier not in found]


@dataclass
class _Answer:
    """What a command has done so far, with a bounded number of letters named."""

    kinds: Counter[str] = field(default_factory=Counter)
    named: list[Judged] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, judged: list[Judged] | tuple[Judged, ...]) -> None:
        self.kinds.update(one.verdict.kind for one in judged)
        self.named += judged[: max(0, NAMED - len(self.named))]

    @property
    def refused(self) -> int:
        return self.kinds.total() - self.kinds["ok"]

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.kinds["ok"],
            "refused": self.refused,
            "verdicts": dict(self.kinds),
            "letters": [
                {
                    "letter_id": one.letter_id,
                    "verdict": one.verdict.kind,
                    "text": one.verdict.text,
                    "message_id": one.verdict.envelope.id if one.verdict.envelope else None,
                }
                for one in self.named
            ],
        }

    def print_refused(self, out: Console) -> None:
        for one in self.named:
            if not one.verdict.ok:
                text = f"  {one_line(one.verdict.text)}"
                out.print(Text.assemble(one.letter_id, "  ", (one.verdict.kind, "yellow"), text), soft_wrap=True)


@dataclass
class _Replaying:
    """One call of `hopline dead replay`."""

    program: Hopline
    which: Filter
    plan: Plan
    who: str
    reason: str
    as_new: bool
    json: bool

    async def check(self) -> int:
        """`--dry-run`: says of each letter what would become of it."""
        answer = _Answer()
        async with repairing(self.program) as (database, code):
            selection, nowhere = await _chosen(database, self.which)
            answer.add(nowhere)
            async for ids in repair.pages(database, selection):
                answer.add(await repair.check(database, code, ids, as_new=self.as_new))
        if self.json:
            print_json({"dry_run": True, **answer.as_json()})
        else:
            out = console()
            answer.print_refused(out)
            out.print(f"{counted(answer.kinds['ok'], 'letter')} can be replayed, {answer.refused:,} cannot.")
        return 1 if answer.refused else 0

    async def run(self, *, yes: bool) -> int:
        """Replays, and says how it went."""
        async with repairing(self.program) as (database, code):
            selection, nowhere = await _chosen(database, self.which)
            question = f"Replay {counted(selection.count, 'letter')}?"
            if selection.count > 1 and not confirmed(question, yes=yes):
                return 2
            answer = _Answer()
            answer.add(nowhere)
            tally, ended, waiting = await self._ramp(database, code, selection, answer)
        good = ended == "finished" and not answer.refused
        if self.json:
            figures = {**asdict(tally), "pending": tally.pending}
            failures = [asdict(one) for one in answer.failures]
            print_json({"ended": ended, **figures, **answer.as_json(), "failures": failures, "waiting": waiting})
        else:
            self._print(console(), answer, tally, ended, waiting)
        return 0 if good else 1

    async def _ramp(
        self, database: Database, code: Code, selection: Selection, answer: _Answer
    ) -> tuple[Tally, str, tuple[str, ...]]:
        tally, ended = Tally(selection.count), "finished"
        waiting: tuple[str, ...] = ()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        errors = Console(stderr=True)
        with Progress(*columns, console=errors, transient=True, disable=self.json or not errors.is_terminal) as bar:
            task = bar.add_task("replaying", total=selection.count)
            steps = repair.ramp(
                database, code, selection, self.plan, who=self.who, reason=self.reason, as_new=self.as_new
            )
            async for step in steps:
                answer.add(step.judged)
                answer.failures += step.failures
                if step.tally.stage > tally.stage and self.plan.canary and not self.json:
                    bar.console.print(f"{counted(step.tally.done, 'replay')} done without a failure", style="green")
                tally, ended, waiting = step.tally, step.ended or ended, step.waiting
                bar.update(task, completed=tally.sent + tally.refused)
        return tally, ended, waiting

    def _print(self, out: Console, answer: _Answer, tally: Tally, ended: str, waiting: tuple[str, ...]) -> None:
        answer.print_refused(out)
        for one in answer.failures:
            again = "parked again" if one.parked else "to be tried again by its handler's own retries"
            first = Text.assemble(one.letter_id, "  ", ("failed again", "red"), f" at {one.where}, {again}")
            error = f"  message {one.message_id}: {one_line(one.error)}"
            out.print(Lines(first, Text(error, no_wrap=True, overflow="ellipsis")))
        left = tally.chosen - tally.sent - tally.refused
        text = f"{counted(tally.sent, 'message')} sent again"
        text += f", {tally.done:,} done, {tally.failed:,} failed" if self.plan.canary else ""
        text += f", {answer.refused:,} refused" if answer.refused else ""
        text += f"; {left:,} not touched, still parked" if left else ""
        out.print(Text(f"{text}.", style="green" if ended == "finished" and not answer.refused else "yellow"))
        if ended == "no-result":
            out.print(
                f"Stopped: {counted(tally.pending, 'message')} had no result within {self.plan.deadline_seconds:g} s "
                f"({', '.join(waiting)}). Is a worker running, and its queue not paused? `hopline status` tells.",
                style="yellow",
            )
        elif ended == "failed-again":
            out.print("Stopped: a replay failed again.", style="yellow")


async def _discard(program: Hopline, which: Filter, who: str, reason: str, *, yes: bool, as_json: bool) -> int:
    answer = _Answer()
    async with repairing(program) as (database, _):
        selection, nowhere = await _chosen(database, which)
        if selection.count > 1 and not confirmed(f"Discard {counted(selection.count, 'letter')} for good?", yes=yes):
            return 2
        answer.add(nowhere)
        async for ids in repair.pages(database, selection):
            answer.add(await repair.discard(database, ids, who=who, reason=reason))
    if as_json:
        print_json(answer.as_json())
    else:
        out = console()
        answer.print_refused(out)
        out.print(f"{counted(answer.kinds['ok'], 'letter')} discarded.")
    return 1 if answer.refused else 0
