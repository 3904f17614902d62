"""The audit: who did what; and the reconciliation, which accounts for every message by evidence.

The reconciliation reads every message, so it is made when somebody asks for it, one at a time, and never by itself;
its latest result stays with its time.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

import msgspec

from hopline.audit import Audit, EndpointAudit
from hopline.auditlog import LogFilter, Recorded, find
from hopline.clock import utcnow
from hopline.console.desk import Account, Desk
from hopline.console.request import Http, query
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
    who, what, target = (query(request, name) for name in ("who", "action", "target"))
    which = LogFilter(who=who or None, action=what or None, target=target or None)
    async with desk.database.reading() as connection:
        found = await find(connection, which, limit=PAGE + 1, before=query(request, "before") or None)
    acts = tuple(found[:PAGE])
    given = {"who": who, "action": what, "target": target, "before": acts[-1].id} if len(found) > PAGE else {}
    next_query = urlencode({name: value for name, value in given.items() if value})
    return AuditPage(_account_part(desk), acts, who, what, target, next_query)


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
        return Done(f"{audit.missing:,} messages are missing", "/audit", "bad", {"missing": audit.missing})
    if audit.unproven:
        return Done(f"{audit.unproven:,} messages could not be proven", "/audit", "warn")
    return Done("every message is accounted for", "/audit", "ok")


ROUTES = [
    *page("/audit", "pages/audit.html", "audit", view),
    *action("/audit/reconcile", reconcile, "viewer"),
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
    return AccountPart(account, audit.endpoints, audit.missing, audit.unproven, audit.pending, running)
