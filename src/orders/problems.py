"""Errors over HTTP: RFC 9457 application/problem+json, whatever went wrong and wherever.

`type` is about:blank, so `title` is the status' own phrase; `code` is for programs, `detail` for people and
`errors` names each fault with its place. Nothing of the inside gets out: an unforeseen error is logged and
answered with the request's id, by which the log line can be found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import Receive, Scope, Send

from hopline import (
    CommitUnknown,
    DatabaseContention,
    DatabaseError,
    MessageTooLarge,
    OutboxFull,
    new_id,
)
from orders.domain import Reason, Refused

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "X-Request-Id"
IDEMPOTENCY_KEY = "Idempotency-Key"
BODY_BYTES = 1 << 20
DETAIL_CHARACTERS = 300

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_MSGSPEC_PLACE = re.compile(r" - at `(?:key in )?\$([^`]*)`$")
_UNKNOWN_FIELD = re.compile(r"unknown field `(.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"missing required field `(.*)`", re.DOTALL)
_LINE = re.compile(r"/lines/([0-9]+)")

log = structlog.get_logger("orders.api")


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of an error (RFC 9457, section 3)."""

    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: Sequence[Reason] = ()
    type: str = "about:blank"


class BadRequest(Exception):
    """A request that cannot be understood or may not be made, with its answer."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[Reason] = (),
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(detail)
        self.headers = headers
        self.status = status
        self.code = code
        self.errors = tuple(errors)


def request_id(request: Request[Any, Any, Any]) -> str:
    """The client's X-Request-Id if it is sane, else a new one; the same for the whole request."""
    given = request.headers.get(REQUEST_ID)
    return named(request.scope, given.encode("latin-1") if given is not None else None)


def named(scope: Scope, given: bytes | None) -> str:
    """As `request_id`, by the raw value of the header."""
    known: str | None = scope.get("orders_request_id")  # type: ignore[assignment]
    if known is None:
        known = given.decode() if given is not None and _SANE_REQUEST_ID.fullmatch(given) else new_id()
        scope["orders_request_id"] = known  # type: ignore[typeddict-unknown-key]
    return known


def too_large() -> BadRequest:
    """The answer to a body over BODY_BYTES."""
    return BadRequest(413, "too-large", f"the body is over {BODY_BYTES:,} bytes")


def encoded_body() -> BadRequest:
    """The answer to a body with a Content-Encoding (RFC 9110, section 15.5.16)."""
    headers = {"Accept-Encoding": "identity"}
    return BadRequest(415, "content-encoding", "send the body as it is, without Content-Encoding", headers=headers)


def twice(pointer: str) -> BadRequest:
    """The answer to a body of which an object has a key twice."""
    line = _LINE.match(pointer)
    number = int(line[1]) + 1 if line else None
    detail = _short(f"an object has a key twice, at {pointer}" + (f" (line {number})" if number else ""))
    return BadRequest(400, "key-twice", detail, [Reason("key-twice", detail, number, _short(pointer))])


def unreadable(error: Exception) -> BadRequest:
    """The answer to a body that does not decode: 400 if it is no JSON, else 422 with the place."""
    if not isinstance(error, msgspec.ValidationError):
        return BadRequest(400, "json-malformed", f"the body is no JSON: {_short(str(error))}")
    text = str(error)
    place = _MSGSPEC_PLACE.search(text)
    pointer = _pointer(place[1]) if place else ""
    what = text[: place.start()] if place else text
    code = "type-wrong"
    if unknown := _UNKNOWN_FIELD.search(what):
        code, pointer = "field-unknown", f"{pointer}/{_short(unknown[1])}"
    elif missing := _MISSING_FIELD.search(what):
        code, pointer = "field-missing", f"{pointer}/{missing[1]}"
    line = _LINE.match(pointer)
    number = int(line[1]) + 1 if line else None
    detail = _short(f"{what}, at {pointer or '/'}" + (f" (line {number})" if number else ""))
    return BadRequest(422, code, detail, [Reason(code, detail, number, pointer)])


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The problem document for any exception."""
    headers: dict[str, str] = {}
    errors: Sequence[Reason] = ()
    match error:
        case Refused(reasons=reasons):
            status, code, errors = 422, reasons[0].code, reasons
            detail = _short("; ".join(reason.detail for reason in reasons))
        case BadRequest(status=status, code=code, errors=errors):
            detail = str(error)
            headers.update(error.headers)
        case OutboxFull(retry_after_seconds=seconds):
            status, code, detail = 503, "outbox-full", "too many messages wait for the broker; nothing was stored"
            headers["Retry-After"] = str(seconds)
        case CommitUnknown():
            status, code = 503, "commit-unknown"
            detail = f"it is not known yet whether this was stored; send it again with the same {IDEMPOTENCY_KEY}"
            headers["Retry-After"] = "1"
        case DatabaseContention() if IDEMPOTENCY_KEY in request.headers:
            status, code = 409, "in-progress"
            detail = (
                f"another request with this {IDEMPOTENCY_KEY} seems to be in progress; nothing was stored by this one"
            )
            headers["Retry-After"] = "1"
        case DatabaseError():
            status, code, detail = 503, "database-unavailable", "the database cannot be used now; nothing was stored"
            headers["Retry-After"] = "2"
        case MessageTooLarge():
            status, code, detail = 413, "too-large", "this is more than one message may carry; nothing was stored"
        case HTTPException(status_code=413):
            return answer(request, too_large())
        case HTTPException(status_code=status, detail=detail) if status < 500:
            code = HTTPStatus(status).phrase.lower().replace(" ", "-")
            headers.update(error.headers or {})
        case _:
            status, code = 500, "internal"
            detail = "this is our fault; the log says more under this request id"
            log.error("request failed", request_id=request_id(request), path=request.scope["path"], exc_info=error)
    identifier = request_id(request)
    problem = Problem(HTTPStatus(status).phrase, status, detail, code, identifier, errors)
    headers[REQUEST_ID] = identifier
    return Response(msgspec.json.encode(problem), status_code=status, media_type=MEDIA_TYPE, headers=headers)


async def send(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Sends the problem document for any exception, where no framework does."""
    request: Request[Any, Any, Any] = Request(scope, receive, send)
    response = answer(request, error).to_asgi_response(app=None, request=request)
    await response(scope, receive, send)


def _pointer(path: str) -> str:
    """msgspec's `.lines[0].quantity` as an RFC 6901 pointer, `/lines/0/quantity`."""
    return path.replace("[", "/").replace("]", "").replace(".", "/")


def _short(text: str) -> str:
    return text if len(text) <= DETAIL_CHARACTERS else text[: DETAIL_CHARACTERS - 1] + "…"
