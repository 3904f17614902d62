"""How a page and an action become routes: each is one function, and has an HTML and a JSON form.

A page's function returns a struct: the HTML form renders it with a template, the JSON twin under /api is the struct
itself. An action's function returns what was done: the HTML form redirects to a page that tells it, the JSON form
answers it. Nothing acts by GET; every action checks the session's token and the operator's role before it begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import parse_qsl

import msgspec
from litestar import Response, get, post
from litestar.exceptions import ClientException, PermissionDeniedException
from litestar.handlers import HTTPRouteHandler
from litestar.handlers.base import BaseRouteHandler

from hopline.console.desk import Desk
from hopline.console.request import API, Connection, Http, session_of, url_for
from hopline.console.sessions import Flash

CSRF_FIELD = "csrf"
CSRF_HEADER = "X-CSRF-Token"
FIELDS = 1_100
"""The most fields of one form: a page of ids, and a few more."""
FORM_BYTES = 4 << 20
"""The largest form: a body of 1 MiB in which most bytes are escaped."""

Access = Literal["anyone", "viewer", "operator"]
"""Who may call a route."""


@dataclass(frozen=True, slots=True)
class Goto:
    """A page's function may send the browser elsewhere instead: within the console only."""

    path: str


class Done(msgspec.Struct, frozen=True):
    """What an action did."""

    text: str
    to: str
    """The page that shows it, a path within the console."""
    tone: Literal["ok", "busy", "warn", "bad", "idle"] = "ok"
    detail: dict[str, Any] = {}
    """More, for programs."""


@dataclass(frozen=True, slots=True)
class Form:
    """What an action was given: the fields of a form, or of a JSON object."""

    fields: tuple[tuple[str, str], ...]

    def text(self, name: str) -> str:
        """A field's first value; empty if it was not given."""
        return next((value for key, value in self.fields if key == name), "")

    def texts(self, name: str) -> list[str]:
        """All values of a field, each once."""
        return list(dict.fromkeys(value for key, value in self.fields if key == name and value))

    def flag(self, name: str) -> bool:
        """Whether a box was ticked."""
        return self.text(name) in ("on", "1", "true", "yes")


PageFunction = Callable[[Http], Awaitable[msgspec.Struct | Goto]]
ActionFunction = Callable[[Http, Form], Awaitable[Done]]


def desk_of(connection: Connection) -> Desk:
    """What the pages of this console work with."""
    desk: Desk = connection.app.state.desk
    return desk


def page(path: str, template: str, key: str, view: PageFunction) -> list[HTTPRouteHandler]:
    """The two routes of a page. `key` is its place in the navigation."""

    async def html(request: Http) -> Response[Any]:
        found = await view(request)
        if isinstance(found, Goto):
            return redirect(request, found.path)
        return desk_of(request).rendering.page(request, template, key, found)

    async def twin(request: Http) -> Response[Any]:
        found = await view(request)
        if isinstance(found, Goto):
            return redirect(request, API + found.path)
        return json_answer(found)

    return [get(path, opt=access("viewer"))(html), get(API + twin_path(path), opt=access("viewer"))(twin)]


def twin_path(path: str) -> str:
    """The Flow page has no path of its own, its twin has."""
    return "/flow" if path == "/" else path


def action(path: str, act: ActionFunction, allowed: Access = "operator") -> list[HTTPRouteHandler]:
    """The two routes of an action."""

    async def acted(request: Http) -> Done:
        done = await act(request, await checked_form(request))
        desk_of(request).live.expire()
        return done

    async def html(request: Http) -> Response[Any]:
        done = await acted(request)
        answer = redirect(request, done.to)
        desk_of(request).rendering.tell(request, answer, Flash(done.tone, done.text))
        return answer

    async def twin(request: Http) -> Response[Any]:
        return json_answer(await acted(request))

    return [
        post(path, status_code=303, opt=access(allowed))(html),
        post(API + path, status_code=200, opt=access(allowed))(twin),
    ]


def access(allowed: Access) -> dict[str, Any]:
    """A route's option that `check_access` reads."""
    return {"access": allowed}


def check_access(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard for every route: who is signed in, with which role, and that no other site sent the browser.

    401, 403. A route that says nothing of access is for operators.
    """
    allowed: Access = handler.opt.get("access", "operator")
    if str(connection.scope.get("method", "GET")) not in ("GET", "HEAD"):
        _check_origin(connection)
    if allowed == "anyone":
        return
    session = session_of(connection)
    if allowed == "operator" and not session.is_operator:
        raise PermissionDeniedException("this needs the role operator; you are signed in as viewer")


def _check_origin(connection: Connection) -> None:
    """A second fence beside the token: browsers say which site made them send a form.

    Our own pages have no referrer, so that their forms come with `Origin: null` (Fetch standard, section 3.2).
    """
    site = connection.headers.get("sec-fetch-site")
    origin = connection.headers.get("origin", "null")
    if site is not None:
        same = site in ("same-origin", "none")
    else:
        same = origin == "null" or origin.partition("://")[2] == connection.headers.get("host", "")
    if not same:
        raise PermissionDeniedException("another site sent this form; nothing was done")


async def checked_form(request: Http) -> Form:
    """The form, if it carries the session's token; a program that signs each request in by password needs none."""
    form = await read_form(request)
    if request.scope.get("auth") == "password":
        return form
    token = request.headers.get(CSRF_HEADER) or form.text(CSRF_FIELD)
    if not desk_of(request).sessions.has_csrf(session_of(request), token):
        raise PermissionDeniedException("the form is of another session, or too old; nothing was done: open it again")
    return form


async def read_form(request: Http) -> Form:
    """The fields of a form, or of a JSON object whose values are texts, numbers, flags or lists of them. 400."""
    body = await request.body()
    if request.headers.get("content-type", "").startswith("application/json"):
        return Form(tuple(_json_fields(body)))
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS)
    except ValueError:
        raise ClientException(f"this is no form of at most {FIELDS:,} fields") from None
    return Form(tuple(fields))


def _json_fields(body: bytes) -> list[tuple[str, str]]:
    try:
        value = msgspec.json.decode(body or b"{}", type=dict[str, str | float | bool | list[str]])
    except ValueError as error:  # msgspec.DecodeError, UnicodeDecodeError
        raise ClientException(f"the body is no JSON object of texts, numbers, flags and lists: {error}") from None
    fields: list[tuple[str, str]] = []
    for name, given in value.items():
        fields += [(name, one) for one in given] if isinstance(given, list) else [(name, _as_text(given))]
    if len(fields) > FIELDS:
        raise ClientException(f"at most {FIELDS:,} fields")
    return fields


def _as_text(given: str | float | bool) -> str:
    if isinstance(given, bool):
        return "true" if given else "false"
    return given if isinstance(given, str) else f"{given:g}"


def redirect(connection: Connection, path: str) -> Response[bytes]:
    """To another page of the console, by GET."""
    return Response(
        b"", status_code=HTTPStatus.SEE_OTHER, media_type="text/plain", headers={"Location": url_for(connection, path)}
    )


def json_answer(value: Any, status: int = 200) -> Response[bytes]:
    """One JSON value."""
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
