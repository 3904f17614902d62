"""The audit: who did what; and the reconciliation, which accounts for every message by evidence.

The reconciliation reads every message, so it is made when somebody asks for it, one at a time, and never by itself;
its latest result stays with its time.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

import msgspec

from hopline import repair
from hopline.accounting import explained
from hopline.audit import Audit, EndpointAudit
from hopline.auditlog import LogFilter, Recorded, find
from hopline.clock import utcnow
from hopline.console.desk import Account, Desk
from hopline.console.formatting import counted
from hopline.console.request import Http, query, who
from hopline.console.web import Done, Form, action, desk_of, page
from hopline.errors import BrokerUnavailable, UsageError

PAGE = 50
ACCOUNT_SECONDS = 60.0
"""Deadline of a reconciliation; `hopline audit` has none."""


class AccountPart(msgspec.Struct, frozen=True):
    """The latest reconciliation."""

    account: Account | None
    endpoints: tuple[EndpointAudit, ...]
    missing: int
    unproven: int
    pending: int
    is_running: bool
    missing_is_least: bool = False
    notes: tuple[str, ...] = ()
    """What the figures mean, and what to do."""


class AuditPage(msgspec.Struct, frozen=True):
    """The page."""

    account: AccountPart
    acts: tuple[Recorded, ...]
    who: str
    action: str
    target: str
    next_query: str


async def view(request: Http) -> AuditPage:
    """The latest account, and a page of the log."""
    desk = desk_of(request)
    by, what, target = (query(request, name) for name in ("who", "action", "target"))
    which = LogFilter(who=by or None, action=what or None, target=target or None)
    async with desk.database.reading() as connection:
        found = await find(connection, which, limit=PAGE + 1, before=query(request, "before") or None)
    acts = tuple(found[:PAGE])
    given = {"who": by, "action": what, "target": target, "before": acts[-1].id} if len(found) > PAGE else {}
    next_query = urlencode({name: value for name, value in given.items() if value})
    return AuditPage(_account_part(desk), acts, by, what, target, next_query)


async def reconcile(request: Http, _form: Form) -> Done:
    """Accounts for every message now."""
    desk = desk_of(request)
    if desk.reconciling.locked():
        raise UsageError("a reconciliation is being made already; look again in a moment")
    async with desk.reconciling:
        desk.account = await _made(desk)
    audit = desk.account.audit
    if audit is None:
        return Done(f"the account could not be made: {desk.account.trouble}", "/audit", "warn")
    if audit.missing:
        least = "at least " if audit.missing_is_least else ""
        return Done(f"{least}{audit.missing:,} messages are missing", "/audit", "bad", {"missing": audit.missing})
    if audit.trouble:
        text = f"the account could not be made in full: {audit.trouble}; {counted(audit.unproven, 'message')} unproven"
        return Done(text, "/audit", "warn")
    if audit.unproven:
        return Done(f"{audit.unproven:,} messages could not be proven", "/audit", "warn")
    return Done("every message is accounted for", "/audit", "ok")


async def resend(request: Http, form: Form) -> Done:
    """Accounts for every message anew, and sends what it names as missing again: all of it, or the given ids."""
    desk, ids = desk_of(request), form.texts("id")
    if desk.reconciling.locked():
        raise UsageError("a reconciliation is being made already; look again in a moment")
    repair.check_act(who(request), form.text("reason"))
    sent: list[repair.Resent] = []
    async with desk.reconciling:
        desk.account = account = await _made(desk)
        if account.audit is None:
            return Done(f"nothing was sent again: {account.trouble}", "/audit", "warn")
        chosen = ids or [identifier for one in repair.named(account.audit) for identifier in one.missing_ids]
        endpoints = list(desk.app.handlers)
        acts = repair.resend(
            desk.database, endpoints, account.audit, who=who(request), reason=form.text("reason"), ids=chosen
        )
        async for part in acts:
            sent += part
        missing = account.audit.missing
    text = f"{counted(len(sent), 'message')} sent again"
    left = len(ids) - len({one.message_id for one in sent}) if ids else max(0, missing - len(sent))
    text += f"; {left:,} not: they are not missing by name" if left else "; account again when they are done"
    return Done(text, "/audit", "warn" if left else "ok", {"sent": [one.message_id for one in sent], "left": left})


ROUTES = [
    *page("/audit", "pages/audit.html", "audit", view),
    *action("/audit/reconcile", reconcile, "viewer"),
    *action("/audit/resend", resend),
]


async def _made(desk: Desk) -> Account:
    try:
        async with asyncio.timeout(ACCOUNT_SECONDS):
            audit: Audit | None = await desk.app.audit()
    except BrokerUnavailable as error:
        return Account(utcnow(), None, str(error))
    except TimeoutError:
        return Account(utcnow(), None, f"not within {ACCOUNT_SECONDS:g} s; `hopline audit` takes its time")
    return Account(utcnow(), audit, "")


def _account_part(desk: Desk) -> AccountPart:
    account, running = desk.account, desk.reconciling.locked()
    audit = account.audit if account else None
    if audit is None:
        return AccountPart(account, (), 0, 0, 0, running)
    figures = (audit.missing, audit.unproven, audit.pending)
    return AccountPart(account, audit.endpoints, *figures, running, audit.missing_is_least, explained(audit))
