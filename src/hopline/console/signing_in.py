"""Signing in and out: by password, or in development by the one-time link of the log.

The link's page signs in by POST: a GET acts on nothing (a mail program or a chat that looks at a link does not use it
up), and the POST comes from our own page, so that a SameSite=Strict cookie goes with what follows, wherever the link
was clicked.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import structlog
from litestar import Response, get, post

from hopline.console.authenticating import REFUSED, check_rate
from hopline.console.desk import Desk
from hopline.console.rendering import SESSION_COOKIE, cookie_path, session_cookie
from hopline.console.request import Http, address_of, query
from hopline.console.sessions import Role, Session
from hopline.console.web import Form, access, checked_form, desk_of, read_form, redirect

LINK_PATH = "/once/"

_INSIDE = re.compile(r"/(?!/)[\x21-\x5b\x5d-\x7e]*")
"""A path within the console: no other host, no backslash that a browser would read as a slash."""

log = structlog.get_logger("hopline.console")


class SignIn(msgspec.Struct, frozen=True):
    """The page to sign in."""

    next: str
    by_link: bool
    """Whether there is no password, but a one-time link."""
    token: str = ""
    """The link's, on its own page."""
    failed: str = ""


@get("/sign-in", opt=access("anyone"))
async def show_sign_in(request: Http) -> Response[Any]:
    """The form for name and password."""
    return _page(request, SignIn(_inside(query(request, "next")), by_link=desk_of(request).link is not None))


@post("/sign-in", opt=access("anyone"), status_code=303)
async def sign_in(request: Http) -> Response[Any]:
    """Signs in with a password."""
    form = await read_form(request)
    desk = desk_of(request)
    check_rate(desk, request)
    role = desk.passwords.role_of(form.text("password"))
    if role is None:
        return _refused(request, form)
    return _begun(request, desk, role, form)


@get(LINK_PATH + "{token:str}", opt=access("anyone"))
async def show_link(request: Http) -> Response[Any]:
    """The page of the one-time link; it changes nothing."""
    token = str(request.path_params["token"])[:200]
    return _page(request, SignIn("/", by_link=True, token=token))


@post("/once", opt=access("anyone"), status_code=303)
async def use_link(request: Http) -> Response[Any]:
    """Signs in with the one-time link, as operator."""
    form = await read_form(request)
    desk = desk_of(request)
    check_rate(desk, request)
    if desk.link is None or not desk.link.use(form.text("token")):
        return _refused(request, form)
    log_link(desk)
    return _begun(request, desk, "operator", form)


@post("/sign-out", opt=access("viewer"), status_code=303)
async def sign_out(request: Http) -> Response[Any]:
    """Ends the session."""
    await checked_form(request)
    user = request.scope.get("user")
    if isinstance(user, Session):
        desk_of(request).sessions.end(user)
    answer = redirect(request, "/sign-in")
    answer.delete_cookie(SESSION_COOKIE, path=cookie_path(request))
    return answer


ROUTES = (show_sign_in, sign_in, show_link, use_link, sign_out)


def log_link(desk: Desk) -> None:
    """Says where the next one-time link is."""
    if desk.link is not None:
        log.info("a one-time link signs in as operator", path=f"{desk.settings.path}{LINK_PATH}{desk.link.token}")


def _begun(request: Http, desk: Desk, role: Role, form: Form) -> Response[Any]:
    session, cookie = desk.sessions.begin(role, form.text("name"))
    log.info("signed in", who=session.who(address_of(request)))
    answer = redirect(request, _inside(form.text("next")))
    answer.set_cookie(session_cookie(request, cookie, int(desk.settings.session_hours * 3_600)))
    return answer


def _refused(request: Http, form: Form) -> Response[Any]:
    desk = desk_of(request)
    address = address_of(request)
    desk.failures.add(address)
    log.warning("a sign-in failed", address=address)
    by_link = desk.link is not None
    return _page(request, SignIn(_inside(form.text("next")), by_link=by_link, failed=REFUSED), status=401)


def _page(request: Http, view: SignIn, status: int = 200) -> Response[Any]:
    return desk_of(request).rendering.page(request, "pages/sign-in.html", "", view, status=status)


def _inside(path: str) -> str:
    """The path if it leads within the console, else to its first page."""
    return path if _INSIDE.fullmatch(path) else "/"
