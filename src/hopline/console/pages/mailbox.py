"""The development mailbox: the mails that were sent, newest first, and each as text and as its reader sees it.

A mail's HTML is a document of its own in a frame, without an origin: it runs no script, sends no form, and fetches
nothing from anywhere, whatever is in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler

from hopline.console.formatting import visible
from hopline.console.mailbox import Mail, Mailbox, WholeMail
from hopline.console.masking import Mask
from hopline.console.request import Http, query
from hopline.console.web import access, desk_of, page

PAGE = 50
SHOWN_CHARACTERS = 50_000
"""As much of each part of a mail is shown."""


SANDBOX_HEADERS = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
    ),
    "X-Frame-Options": "SAMEORIGIN",
}
"""For a mail's HTML: its own styles, for mails have no others, and nothing else."""


class MailList(msgspec.Struct, frozen=True):
    """A page of mails."""

    mails: tuple[Mail, ...]
    before: str
    """The last mail, if there is a next page."""


class MailPage(msgspec.Struct, frozen=True):
    """One mail."""

    mail: Mail
    headers: tuple[tuple[str, str], ...]
    text: str
    html: str
    raw: str


async def view_list(request: Http) -> MailList:
    """The latest mails."""
    mask = desk_of(request).mask_for(request)
    found = await _mailbox(request).page(limit=PAGE + 1, before=query(request, "before"))
    mails = tuple(_masked(one, mask) for one in found[:PAGE])
    return MailList(mails, mails[-1].id if len(found) > PAGE else "")


async def view_mail(request: Http) -> MailPage:
    """One mail."""
    mask, whole = desk_of(request).mask_for(request), await _found(request)
    headers = tuple((_shown(name, mask), _shown(value, mask)) for name, value in whole.headers)
    text, html, raw = (_shown(part, mask) for part in (whole.text, whole.html, whole.raw))
    return MailPage(_masked(whole.mail, mask), headers, text, html, raw)


@get("/mailbox/{mail:str}/html", opt=access("viewer"))
async def show_html(request: Http) -> Response[str]:
    """A mail's HTML, for the frame of its page."""
    html = _cut((await _found(request)).html, desk_of(request).mask_for(request))
    return Response(html, media_type="text/html", headers=SANDBOX_HEADERS)


def routes(mailbox: Mailbox | None) -> Sequence[HTTPRouteHandler]:
    """The routes, if there is a mailbox."""
    if mailbox is None:
        return []
    return [
        *page("/mailbox", "pages/mailbox.html", "mailbox", view_list),
        *page("/mailbox/{mail:str}", "pages/mail.html", "mailbox", view_mail),
        show_html,
    ]


def _mailbox(request: Http) -> Mailbox:
    mailbox = desk_of(request).mailbox
    assert mailbox is not None
    return mailbox


async def _found(request: Http) -> WholeMail:
    whole = await _mailbox(request).find(str(request.path_params["mail"]))
    if whole is None:
        raise NotFoundException("there is no such mail")
    return whole


def _shown(text: str, mask: Mask | None) -> str:
    return visible(_cut(text, mask))


def _cut(text: str, mask: Mask | None) -> str:
    cut = text[:SHOWN_CHARACTERS]
    return cut if mask is None else mask.text(cut)


def _masked(mail: Mail, mask: Mask | None) -> Mail:
    if mask is None:
        return mail
    to = tuple(mask.text(one) for one in mail.to)
    return msgspec.structs.replace(mail, to=to, subject=mask.text(mail.subject))
