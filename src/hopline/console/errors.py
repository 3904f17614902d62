"""What went wrong, as a page for people and as application/problem+json (RFC 9457) for programs.

Our own errors say what to do next and are shown; of an unforeseen one only a number is, by which its log line is found.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from hopline.clock import new_id
from hopline.console.desk import Desk
from hopline.console.live import TooManyStreams
from hopline.console.request import is_api, path_of, url_for
from hopline.console.sessions import Session
from hopline.errors import HoplineError, MessageError, OutboxFull, OutsideError, UsageError

PROBLEM = "application/problem+json"
RETRY_SECONDS = 5

log = structlog.get_logger("hopline.console")


class Problem(msgspec.Struct, frozen=True):
    """An error (RFC 9457, section 3)."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """The answer to any exception."""
    problem = problem_of(error)
    headers = _headers(error, problem)
    if is_api(request) or path_of(request) == "/events":
        body = msgspec.json.encode(problem)
        return Response(body, status_code=problem.status, media_type=PROBLEM, headers=headers)
    if problem.status == HTTPStatus.UNAUTHORIZED:
        return _to_sign_in(request)
    desk: Desk = request.app.state.desk
    page = desk.rendering.page(request, "pages/error.html", "", problem, status=problem.status)
    page.headers.update(headers)
    return page


def problem_of(error: Exception) -> Problem:
    """What is told of an error."""
    match error:
        case HTTPException():
            status, detail = error.status_code, str(error.detail)
        case TooManyStreams():
            status, detail = 503, str(error)
        case UsageError() | MessageError():
            status, detail = 400, str(error)
        case OutboxFull():
            status, detail = 503, f"nothing was sent: {error}"
        case OutsideError():
            status, detail = 503, str(error)
        case HoplineError():
            status, detail = 400, str(error)
        case _:
            number = new_id()
            log.error("unforeseen", number=number, exc_info=error)
            status, detail = 500, f"something unforeseen happened; the console's log has it as {number}"
    return Problem(HTTPStatus(status).phrase, status, detail)


def _headers(error: Exception, problem: Problem) -> dict[str, str]:
    given = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    retry = {"Retry-After": str(RETRY_SECONDS)} if problem.status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return {**retry, **given}


def _to_sign_in(request: Request[Any, Any, Any]) -> Response[Any]:
    """To the sign-in, and from there back to a page that was asked for by GET."""
    assert not isinstance(request.scope.get("user"), Session)
    path = path_of(request)
    asked = str(request.scope.get("query_string", b"").decode("ascii", "replace"))
    back = f"{path}?{asked}" if asked else path
    there = f"?{urlencode({'next': back})}" if request.method == "GET" and back != "/" else ""
    return Response(
        b"", status_code=303, media_type="text/plain", headers={"Location": url_for(request, f"/sign-in{there}")}
    )
