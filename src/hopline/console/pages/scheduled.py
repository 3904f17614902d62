"""What will be sent later: retries, deferrals, delayed messages; to be sent now, or never.

Only what is not due yet can be changed; what became due meanwhile is told, and stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlencode

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline import repair, scheduled
from hopline.console.formatting import counted
from hopline.console.masking import Mask
from hopline.console.request import Http, query, who
from hopline.console.web import Done, Form, action, desk_of, page
from hopline.errors import UsageError
from hopline.scheduled import ScheduledFilter, ScheduledSend

PAGE = 50
"""As many sends of one page as one transaction may change (repair.ACT_LETTERS)."""


class Scheduled(msgspec.Struct, frozen=True):
    """A page of sends, the soonest first."""

    sends: tuple[ScheduledSend, ...]
    queue: str
    type: str
    key: str
    next_query: str
    """The query of the next page; empty if this is the last one."""


async def view(request: Http) -> Scheduled:
    """A page of what is scheduled, by a filter of the URL."""
    desk, mask = desk_of(request), desk_of(request).mask_for(request)
    queue, type_name, key = (query(request, name) for name in ("queue", "type", "key"))
    which = ScheduledFilter(queue or None, type_name or None, key or None)
    async with desk.database.reading() as connection:
        after = await _place(connection, query(request, "after"))
        found = await scheduled.find(connection, which, limit=PAGE + 1, after=after)
    sends = found[:PAGE]
    given = {"queue": queue, "type": type_name, "key": key, "after": sends[-1].id} if len(found) > PAGE else {}
    next_query = urlencode({name: value for name, value in given.items() if value})
    return Scheduled(tuple(_masked(one, mask) for one in sends), queue, type_name, key, next_query)


async def act(request: Http, form: Form) -> Done:
    """Sends the chosen ones now, or sees to it that they are never sent."""
    desk = desk_of(request)
    ids = form.texts("id")
    if not ids:
        raise UsageError("no send was chosen; tick the boxes of those to act on")
    cancelling = form.text("act") == "cancel"
    change = repair.cancel if cancelling else repair.run_now
    changed = await change(desk.database, ids, who=who(request), reason=form.text("reason"))
    late = len(ids) - len(changed)
    text = f"{counted(len(changed), 'send')} {'cancelled' if cancelling else 'due now'}"
    text += f"; {counted(late, 'send')} not scheduled any more: unknown, due or sent" if late else ""
    return Done(text, "/scheduled", "warn" if late else "ok", {"changed": sorted(changed), "not_scheduled": late})


ROUTES = [*page("/scheduled", "pages/scheduled.html", "scheduled", view), *action("/scheduled", act)]


def _masked(send: ScheduledSend, mask: Mask | None) -> ScheduledSend:
    return send if mask is None else replace(send, error=mask.text(send.error), key=mask.text(send.key))


async def _place(connection: AsyncConnection, identifier: str) -> scheduled.Place | None:
    """Where the page after a send begins; None if it is not scheduled any more: then it begins anew."""
    if not identifier:
        return None
    found = await scheduled.find(connection, ScheduledFilter(ids=(identifier,)), limit=1)
    return found[0].place if found else None
