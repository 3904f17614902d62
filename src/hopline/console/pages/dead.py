"""The dead letters: the groups of one cause, the letters of one group, and lists by any filter.

Nothing is counted over all letters here but what the engine bounds; a page of letters is read by key. Acting on a
group means what it held when the button was pressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from urllib.parse import urlencode

import msgspec

from hopline import deadletter_queries, repair
from hopline.console.desk import Desk
from hopline.console.formatting import counted
from hopline.console.masking import Mask
from hopline.console.replays import WORDS, Job
from hopline.console.request import Http, query, who
from hopline.console.web import Done, Form, action, desk_of, page
from hopline.deadletter_queries import Filter, Group, Letter, State
from hopline.errors import UsageError
from hopline.repair import Plan

PAGE = 25
"""Letters of one page; all of them can be judged at once (repair.ACT_LETTERS)."""
DISCARD_MOST = 1_000
"""So many letters one press discards; it says how many are left."""
JOBS = 5
STATES: tuple[State, ...] = ("parked", "replayed", "edited", "discarded", "any")


class Row(msgspec.Struct, frozen=True):
    """One letter in a list."""

    letter: Letter
    error: str
    verdict: str = ""
    """What today's code says of a replay: ok, undecodable, done …; empty if it was not asked."""
    advice: str = ""


class GroupRow(msgspec.Struct, frozen=True):
    """One group in the list."""

    group: Group
    error: str
    trend: tuple[int, ...] = ()
    """Letters of each of the last 24 hours, oldest first."""
    is_least: bool = False
    """Whether there are more than were counted."""


class JobRow(msgspec.Struct, frozen=True):
    """A replay of this console, in a list."""

    id: str
    title: str
    who: str
    word: str
    tone: str
    started_at: datetime


class Groups(msgspec.Struct, frozen=True):
    """What is parked, by cause."""

    rows: tuple[GroupRow, ...]
    jobs: tuple[JobRow, ...]


class GroupPage(msgspec.Struct, frozen=True):
    """One cause, and letters that died of it."""

    group: Group | None
    """None: none of it is parked any more."""
    fingerprint: str
    rows: tuple[Row, ...]
    after: str
    """The last letter, if there is a next page."""
    replayable: int
    """Of the letters on this page."""
    is_least: bool = False


class LetterList(msgspec.Struct, frozen=True):
    """Letters by a filter."""

    state: str
    queue: str
    type: str
    key: str
    reason: str
    rows: tuple[Row, ...]
    after: str
    next_query: str
    """The query of the next page; empty if this is the last one."""
    states: tuple[str, ...] = STATES


async def view_groups(request: Http) -> Groups:
    """The groups of what is parked, the largest first."""
    desk, mask = desk_of(request), desk_of(request).mask_for(request)
    async with desk.database.reading() as connection:
        found = (await deadletter_queries.overview(connection)).groups
        trends = await deadletter_queries.trends(connection, [one.fingerprint for one in found])
    return Groups(tuple(_group_row(one, mask, trends.get(one.fingerprint, ())) for one in found), _jobs(desk))


def _group_row(group: Group, mask: Mask | None, trend: tuple[int, ...]) -> GroupRow:
    shown = _masked_group(group, mask)
    return GroupRow(shown, shown.sample_error, trend, group.count_is_least)


async def view_group(request: Http) -> GroupPage:
    """One group, with a page of its letters."""
    desk, mask = desk_of(request), desk_of(request).mask_for(request)
    fingerprint = str(request.path_params["fingerprint"])
    which = Filter(group=fingerprint)
    letters, after = await _letters(desk, which, query(request, "after"))
    async with desk.database.reading() as connection:
        found = (await deadletter_queries.overview(connection, fingerprint=fingerprint)).groups
    judged = await repair.check(desk.database, desk.code, [letter.id for letter in letters])
    verdicts = {one.letter_id: one.verdict for one in judged}
    rows = tuple(
        Row(masked(one, mask), masked(one, mask).error, verdicts[one.id].kind, verdicts[one.id].text) for one in letters
    )
    replayable = sum(one.verdict.ok for one in judged)
    group = _masked_group(found[0], mask) if found else None
    return GroupPage(group, fingerprint, rows, after, replayable, group is not None and group.count_is_least)


async def view_letters(request: Http) -> LetterList:
    """A page of letters by a filter of the URL."""
    desk, mask = desk_of(request), desk_of(request).mask_for(request)
    queue, type_name, key, reason = (query(request, name) for name in ("queue", "type", "key", "reason"))
    state = state_of(query(request, "state") or "parked")
    which = Filter(queue or None, type_name or None, key or None, reason or None, state=state)
    letters, after = await _letters(desk, which, query(request, "after"))
    rows = tuple(Row(masked(one, mask), masked(one, mask).error) for one in letters)
    next_query = ""
    if after:
        given = {"state": state, "queue": queue, "type": type_name, "key": key, "reason": reason, "after": after}
        next_query = urlencode({name: value for name, value in given.items() if value})
    return LetterList(state, queue, type_name, key, reason, rows, after, next_query)


async def replay_group(request: Http, form: Form) -> Done:
    """Begins to replay a whole group."""
    desk = desk_of(request)
    fingerprint = str(request.path_params["fingerprint"])
    job = await _start(request, form, desk, Filter(group=fingerprint), f"the group {fingerprint}")
    return Done(f"replaying {counted(job.tally.chosen, 'letter')}", f"/replays/{job.id}", "busy", {"job": job.id})


async def discard_group(request: Http, form: Form) -> Done:
    """Gives a group up, DISCARD_MOST letters at a time."""
    desk = desk_of(request)
    fingerprint = str(request.path_params["fingerprint"])
    which = Filter(group=fingerprint)
    selection = await repair.select(desk.database, which)
    done = 0
    async for ids in repair.pages(desk.database, selection):
        done += len([o for o in await _discard(request, form, desk, ids) if o.verdict.ok])
        if done >= DISCARD_MOST:
            break
    left = max(0, selection.count - done)
    text = f"{counted(done, 'letter')} discarded" + (f"; {counted(left, 'letter')} left, press again" if left else "")
    return Done(text, f"/dead/{fingerprint}" if left else "/dead", "ok", {"discarded": done, "left": left})


async def act_on_letters(request: Http, form: Form) -> Done:
    """Replays or discards the letters whose boxes are ticked."""
    desk = desk_of(request)
    ids = form.texts("id")
    if not ids:
        raise UsageError("no letter was chosen; tick the boxes of those to act on")
    if form.text("act") == "discard":
        judged = await _discard_all(request, form, desk, ids)
        return Done(judged, "/dead/letters", "ok")
    which = Filter(ids=tuple(ids), state="any")
    job = await _start(request, form, desk, which, counted(len(ids), "letter"))
    return Done(f"replaying {counted(len(ids), 'letter')}", f"/replays/{job.id}", "busy", {"job": job.id})


ROUTES = [
    *page("/dead", "pages/dead.html", "dead", view_groups),
    *page("/dead/letters", "pages/letters.html", "dead", view_letters),
    *page("/dead/{fingerprint:str}", "pages/group.html", "dead", view_group),
    *action("/dead/letters", act_on_letters),
    *action("/dead/{fingerprint:str}/replay", replay_group),
    *action("/dead/{fingerprint:str}/discard", discard_group),
]


def state_of(text: str) -> State:
    """A state of letters, by its name."""
    for state in STATES:
        if text == state:
            return state
    raise UsageError(f"the state of a letter is one of {', '.join(STATES)}")


def masked(letter: Letter, mask: Mask | None) -> Letter:
    """A letter as who is signed in may see it."""
    if mask is None:
        return letter
    return replace(letter, error=mask.text(letter.error), key=mask.text(letter.key) if letter.key else letter.key)


def plan_of(form: Form) -> Plan:
    """How to replay, as a form says it. UsageError if the rate is no number above 0."""
    try:
        rate = float(form.text("rate") or repair.RATE)
        deadline = float(form.text("deadline") or repair.DEADLINE_SECONDS)
    except ValueError:
        raise UsageError("the rate and the deadline are numbers: messages a second, and seconds") from None
    return Plan(form.flag("canary"), rate, deadline)


async def _start(request: Http, form: Form, desk: Desk, which: Filter, title: str) -> Job:
    return await desk.replays.start(
        which,
        plan_of(form),
        title=title,
        who=who(request),
        reason=form.text("reason"),
        as_new=form.flag("as_new"),
    )


async def _discard(request: Http, form: Form, desk: Desk, ids: list[str]) -> list[repair.Judged]:
    return await repair.discard(desk.database, ids, who=who(request), reason=form.text("reason"))


async def _discard_all(request: Http, form: Form, desk: Desk, ids: Sequence[str]) -> str:
    judged: list[repair.Judged] = []
    for start in range(0, len(ids), repair.ACT_LETTERS):
        judged += await _discard(request, form, desk, list(ids[start : start + repair.ACT_LETTERS]))
    good = sum(one.verdict.ok for one in judged)
    refused = [one for one in judged if not one.verdict.ok]
    text = f"{counted(good, 'letter')} discarded"
    return f"{text}; {counted(len(refused), 'letter')} refused: {refused[0].verdict.text}" if refused else text


async def _letters(desk: Desk, which: Filter, after: str) -> tuple[list[Letter], str]:
    """A page of letters, and the last one's id if there may be more."""
    async with desk.database.reading() as connection:
        place = None
        if after:
            last = await deadletter_queries.get(connection, after)
            place = last.letter.place if last else None
        found = await deadletter_queries.find(connection, which, limit=PAGE + 1, after=place)
    shown = found[:PAGE]
    return shown, shown[-1].id if len(found) > PAGE else ""


def _masked_group(group: Group, mask: Mask | None) -> Group:
    return group if mask is None else replace(group, sample_error=mask.text(group.sample_error))


def _jobs(desk: Desk) -> tuple[JobRow, ...]:
    """The latest replays of this console."""
    return tuple(
        JobRow(job.id, job.title, job.who, *WORDS[job.ended], job.started_at) for job in desk.replays.all()[:JOBS]
    )
