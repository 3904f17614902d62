"""The development mailbox: the mails that were sent, newest first, and each as text.

A mail's HTML is shown as its source only: nothing in a mail is ever rendered.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler

from hopline.console.formatting import visible
from hopline.console.mailbox import Mail, Mailbox
from hopline.console.masking import Mask
from hopline.console.request import Http, query
from hopline.console.web import desk_of, page

PAGE = 50
SHOWN_CHARACTERS = 50_000
"""As much of each part of a mail is shown."""


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
    mask = desk_of(request).mask_for(request)
    whole = await _mailbox(request).find(str(request.path_params["mail"]))
    if whole is None:
        raise NotFoundException("there is no such mail")

    def shown(text: str) -> str:
        cut = text[:SHOWN_CHARACTERS]
        return visible(cut if mask is None else mask.text(cut))

    headers = tuple((shown(name), shown(value)) for name, value in whole.headers)
    return MailPage(_masked(whole.mail, mask), headers, shown(whole.text), shown(whole.html), shown(whole.raw))


def routes(mailbox: Mailbox | None) -> Sequence[HTTPRouteHandler]:
    """The routes, if there is a mailbox."""
    if mailbox is None:
        return []
    return [
        *page("/mailbox", "pages/mailbox.html", "mailbox", view_list),
        *page("/mailbox/{mail:str}", "pages/mail.html", "mailbox", view_mail),
    ]


def _mailbox(request: Http) -> Mailbox:
    mailbox = desk_of(request).mailbox
    assert mailbox is not None
    return mailbox


def _masked(mail: Mail, mask: Mask | None) -> Mail:
    if mask is None:
        return mail
    to = tuple(mask.text(one) for one in mail.to)
    return msgspec.structs.replace(mail, to=to, subject=mask.text(mail.subject))
