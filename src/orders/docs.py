"""The OpenAPI description and its page under /docs: HTML made here, without a script or anything from elsewhere.

A page from a CDN would not open on a machine without the Internet, nor under a strict content security policy.
The description is data, written beside the rules that it states; a test holds its paths and methods equal to
the application's. The machine-readable form is /docs/openapi.json.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2
import msgspec
from litestar import Response, get

from orders.domain import (
    MAX_EMAIL_CHARACTERS,
    MAX_LINES,
    MAX_NAME_CHARACTERS,
    MAX_QUANTITY,
    PRICE_PLACES,
    SKU_PATTERN,
)

Json = dict[str, Any]

VERSION = "1"
"""Of the API, not of the program: it grows with an incompatible change of what is described here."""


def _text(**more: Any) -> Json:
    return {"type": "string", **more}


def _object(properties: Json, *required: str, strict: bool = False) -> Json:
    shape = {"type": "object", "properties": properties, "required": list(required)}
    return {**shape, "additionalProperties": False} if strict else shape


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _array(name: str) -> Json:
    return {"type": "array", "items": _ref(name)}


_PRICE = {
    "description": "A number or a string of one, exactly as the customer saw it; never rounded.",
    "anyOf": [
        _text(pattern=rf"^[0-9]{{1,6}}(\.[0-9]{{1,{PRICE_PLACES}}})?$"),
        {"type": "number", "minimum": 0},
    ],
}

SCHEMAS: Json = {
    "Customer": _object(
        {
            "email": _text(format="idn-email", maxLength=MAX_EMAIL_CHARACTERS),
            "name": _text(maxLength=MAX_NAME_CHARACTERS, default="", description="Any script; no control characters."),
        },
        "email",
        strict=True,
    ),
    "Line": _object(
        {
            "sku": _text(pattern=f"^{SKU_PATTERN}$"),
            "quantity": {"type": "integer", "minimum": 1, "maximum": MAX_QUANTITY},
            "unit_price": _PRICE,
        },
        "sku",
        "quantity",
        "unit_price",
        strict=True,
    ),
    "NewOrder": _object(
        {"customer": _ref("Customer"), "lines": {**_array("Line"), "minItems": 1, "maxItems": MAX_LINES}},
        "customer",
        "lines",
        strict=True,
    ),
    "Accepted": _object(
        {"id": _text(format="uuid"), "state": {"const": "accepted"}, "url": _text()}, "id", "state", "url"
    ),
    "Reason": _object(
        {
            "code": _text(description="For programs."),
            "detail": _text(description="For people."),
            "line": {"type": "integer", "description": "The order line, counted from 1."},
            "pointer": _text(description="RFC 6901 pointer into the request."),
        },
        "code",
        "detail",
    ),
    "Event": _object({"state": _text(), "at": _text(format="date-time")}, "state", "at"),
    "Order": _object(
        {
            "id": _text(format="uuid"),
            "state": {"enum": ["accepted", "confirmed", "rejected"]},
            "reasons": _array("Reason"),
            "lines": _array("Line"),
            "total": _text(description="With two places."),
            "history": _array("Event"),
        },
        "id",
        "state",
        "reasons",
        "lines",
        "total",
        "history",
    ),
    "User": _object(
        {
            "id": _text(format="uuid"),
            "state": {"enum": ["accepted", "registered", "refused"]},
            "reasons": _array("Reason"),
            "history": _array("Event"),
        },
        "id",
        "state",
        "reasons",
        "history",
    ),
    "Problem": _object(
        {
            "type": _text(),
            "title": _text(),
            "status": {"type": "integer"},
            "detail": _text(),
            "code": _text(description="For programs."),
            "request_id": _text(),
            "errors": _array("Reason"),
        },
        "title",
        "status",
        "detail",
        "code",
        "request_id",
    ),
}

_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "1 to 64 of A-Z a-z 0-9 . _ -; echoed, and the start of the order's trace. Made up if missing.",
    "schema": _text(),
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Sending the same request again with the same key gives the same answer and does the work once.",
    "schema": _text(minLength=1, maxLength=255, pattern="^[!-~]+$"),
}
_ID = {"name": "id", "in": "path", "required": True, "schema": _text(format="uuid")}

_PROBLEMS = {
    "400": "The body is no JSON, is nested too deep or has a key twice, or a header is malformed.",
    "404": "There is no such thing.",
    "409": "A request with this Idempotency-Key is in progress; see Retry-After.",
    "413": "The body is over 1 MiB.",
    "415": "The body is not declared as JSON, or has a Content-Encoding.",
    "422": "The request is understood and refused; `errors` names each fault.",
    "503": "It cannot be stored now; nothing was promised. See Retry-After.",
}


def _answers(good: str, schema: Json, description: str, *bad: str) -> Json:
    answers: Json = {good: {"description": description, "content": {"application/json": {"schema": schema}}}}
    problem = {"application/problem+json": {"schema": _ref("Problem")}}
    return answers | {status: {"description": _PROBLEMS[status], "content": problem} for status in bad}


def _creation(tag: str, summary: str, description: str, body: str) -> Json:
    return {
        "tags": [tag],
        "summary": summary,
        "description": description,
        "parameters": [_IDEMPOTENCY_KEY, _REQUEST_ID],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": _answers(
            "202", _ref("Accepted"), "Stored; `Location` says where to look.", "400", "409", "413", "415", "422", "503"
        ),
    }


def _look(tag: str, summary: str, schema: str) -> Json:
    answers = _answers("200", _ref(schema), "Its state, and when what happened.", "404", "503")
    return {"tags": [tag], "summary": summary, "parameters": [_ID], "responses": answers}


def _health(summary: str, *unwell: str) -> Json:
    plain = {"content": {"application/json": {"schema": {"type": "object"}}}}
    answers = {status: {"description": summary, **plain} for status in ("200", *unwell)}
    return {"tags": ["health"], "summary": summary, "responses": answers}


PATHS: Json = {
    "/orders": {
        "post": _creation(
            "orders",
            "Place an order",
            "202 means stored: the order will be confirmed or rejected, whatever happens to this service.",
            "NewOrder",
        )
    },
    "/orders/{id}": {"get": _look("orders", "Look at an order", "Order")},
    "/users": {
        "post": _creation(
            "users",
            "Register a user",
            "An address that already has an account is not told apart here; the registration is then refused later.",
            "Customer",
        )
    },
    "/users/{id}": {"get": _look("users", "Look at a registration", "User")},
    "/livez": {"get": _health("Whether this process answers")},
    "/readyz": {"get": _health("Whether orders can be accepted now, and why not", "503")},
    "/metrics": {
        "get": {
            "tags": ["health"],
            "summary": "What this process counts, for Prometheus",
            "responses": {
                "200": {
                    "description": "Prometheus' text format",
                    "content": {"text/plain": {"schema": {"type": "string"}}},
                }
            },
        }
    },
}


def description() -> Json:
    """The OpenAPI 3.1 document."""
    info = {"title": "Orders", "version": VERSION}
    return {"openapi": "3.1.0", "info": info, "paths": PATHS, "components": {"schemas": SCHEMAS}}


@get("/docs/openapi.json")
async def openapi_json() -> Response[bytes]:
    """The document for programs."""
    return Response(msgspec.json.encode(description()), media_type="application/vnd.oai.openapi+json")


@get("/docs")
async def page() -> Response[bytes]:
    """The page for people."""
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(_page(), media_type="text/html", headers=headers)


@cache
def _page() -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orders"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["pretty"] = lambda value: msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return environment.get_template("docs.html.j2").render(description()).encode()
