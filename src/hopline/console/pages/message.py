"""One message whole: its body and properties, where it was sent, and what came of it at each handler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from litestar import Response, get, post
from litestar.exceptions import NotFoundException

from hopline import messages
from hopline.auditlog import message_target
from hopline.console.bodies import Body, body_of, download, pretty
from hopline.console.desk import Desk
from hopline.console.masking import Mask
from hopline.console.request import Http
from hopline.console.revealing import reveal
from hopline.console.web import access, checked_form, desk_of, page
from hopline.json_text import encoded
from hopline.messages import Caused, DoneBy, FailedAttempt, Send, WholeMessage

MESSAGE = "/messages/{message:str}"


class MessagePage(msgspec.Struct, frozen=True):
    """The page. `letters` are those that the message ended in."""

    id: str
    type: str
    version: int
    key: str
    correlation_id: str
    cause_id: str | None
    body: Body
    properties: str
    """As JSON."""
    sends: tuple[Send, ...]
    attempts: tuple[FailedAttempt, ...]
    done: tuple[DoneBy, ...]
    letters: tuple[Any, ...]
    caused: tuple[Caused, ...]
    is_masked: bool


async def view(request: Http) -> MessagePage:
    """One message, masked for who may not act."""
    desk = desk_of(request)
    return _page(await whole_message(desk, _id(request)), desk.mask_for(request))


@get(MESSAGE + "/raw", opt=access("viewer"))
async def raw(request: Http) -> Response[bytes]:
    """The body byte for byte, as a file; masked for who may not act."""
    desk, identifier = desk_of(request), _id(request)
    whole = await whole_message(desk, identifier)
    return download(whole.body, f"message-{identifier}", desk.mask_for(request))


@post(MESSAGE + "/reveal", opt=access("viewer"), status_code=200)
async def uncover(request: Http) -> Response[Any]:
    """The page with its personal data, for a reason that is written down."""
    form = await checked_form(request)
    desk, identifier = desk_of(request), _id(request)
    whole = await whole_message(desk, identifier)
    await reveal(request, message_target(identifier), form.text("reason"))
    return desk.rendering.page(request, "pages/message.html", "search", _page(whole, None))


async def whole_message(desk: Desk, identifier: str) -> WholeMessage:
    """A message; 404 if there is none, 400 if this is no id."""
    whole = await messages.read(desk.database, identifier)
    if whole is None:
        raise NotFoundException(f"there is no message {identifier}: it never was here, or it was purged")
    return whole


def _id(request: Http) -> str:
    return str(request.path_params["message"])


def _page(whole: WholeMessage, mask: Mask | None) -> MessagePage:
    body = body_of(whole.body, mask)

    def shown(text: str) -> str:
        return text if mask is None else mask.text(text)

    properties: Any = dict(whole.properties)
    return MessagePage(
        id=whole.id,
        type=whole.type,
        version=whole.version,
        key=shown(whole.key),
        correlation_id=whole.correlation_id,
        cause_id=whole.cause_id,
        body=body,
        properties=pretty(encoded(properties if mask is None else mask.value(properties))),
        sends=whole.sends,
        attempts=tuple(
            msgspec.structs.replace(one, error=shown(one.error), stack=shown(one.stack)) for one in whole.attempts
        ),
        done=tuple(msgspec.structs.replace(one, note=shown(one.note)) for one in whole.done),
        letters=tuple(replace(one, error=shown(one.error), key=shown(one.key or "") or None) for one in whole.letters),
        caused=tuple(msgspec.structs.replace(one, key=shown(one.key)) for one in whole.caused),
        is_masked=mask is not None,
    )


ROUTES = [*page(MESSAGE, "pages/message.html", "search", view), raw, uncover]
