"""Uncovering personal data: who looked at what, and why, is in the audit log before anything is shown."""

from __future__ import annotations

from litestar.exceptions import PermissionDeniedException

from hopline.auditlog import Entry, append
from hopline.console.request import Http, session_of, who
from hopline.console.web import desk_of
from hopline.errors import UsageError


async def reveal(request: Http, target: str, reason: str) -> None:
    """Writes down that this session sees the target's personal data. UsageError without a reason; 403."""
    desk = desk_of(request)
    if not session_of(request).is_operator and not desk.settings.viewer_reveals:
        raise PermissionDeniedException("here only operators see personal data")
    if not reason.strip():
        raise UsageError("say why: who looks at personal data is written down with a reason")
    async with desk.database.transaction() as tx:
        await append(tx, [Entry(who(request), "reveal", target, None, None, reason)])
