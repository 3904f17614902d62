"""The HTTP API: takes orders and registrations, stores them with their messages, answers 202.

A 202 means: committed, and it will be decided. Nothing here waits for RabbitMQ: requests that come together
share one transaction of the database, and with the broker down they go on being accepted until the outbox is
full. Whatever is not certainly stored is a 503 or 409 with Retry-After, never a 2xx.

Bodies are strict: unknown fields and wrong types are refused and named, sizes are bounded.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import NotFoundException

from hopline import (
    METRICS_CONTENT_TYPE,
    DatabaseError,
    Hopline,
    IdempotentRequest,
    Producer,
    Remembered,
    metrics_text,
    new_id,
    request_hash,
)
from orders import docs, placing, problems, store
from orders.domain import Customer, Line, Reason, Refused, check_customer, check_lines, money
from orders.placing import NewOrder, NewUser, Placed
from orders.problems import BODY_BYTES, IDEMPOTENCY_KEY, REQUEST_ID, BadRequest, request_id

READY_SECONDS = 2.0
"""How long /readyz waits for the database."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_JSON = re.compile(r"application/(?:[a-z0-9.+-]+\+)?json *(?:;.*)?", re.IGNORECASE)

Body = TypeVar("Body")
Http = Request[Any, Any, Any]


class CustomerBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Who orders."""

    email: str
    name: str = ""


class LineBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """One line; the price is kept as it was written, so that it never becomes a float."""

    sku: str
    quantity: int
    unit_price: msgspec.Raw


class OrderBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """POST /orders."""

    customer: CustomerBody
    lines: list[LineBody]


_order_decoder = msgspec.json.Decoder(OrderBody)
_user_decoder = msgspec.json.Decoder(CustomerBody)


class Desk:
    """What the routes work with: the running producer and its two group commits."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.place_order: Callable[[NewOrder], Awaitable[Placed | Remembered]] = producer.group(
            placing.place_orders, read_back=placing.read_back_orders
        )
        self.place_user: Callable[[NewUser], Awaitable[Placed | Remembered]] = producer.group(
            placing.place_users, read_back=placing.read_back_users
        )


def create_app(app: Hopline) -> Litestar:
    """The API of a program; its lifespan opens the database and the relay."""

    @asynccontextmanager
    async def producing(litestar: Litestar) -> AsyncIterator[None]:
        async with app.producing(role="api") as producer:
            litestar.state.desk = Desk(producer)
            yield

    return Litestar(
        route_handlers=[*ROUTES, docs.page, docs.openapi_json],
        lifespan=[producing],
        request_max_body_size=BODY_BYTES,
        exception_handlers={Exception: problems.answer},
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


@post("/orders", status_code=202)
async def place_order(request: Http) -> Response[bytes]:
    """Place an order. 202: it is stored and will be confirmed or rejected; `Location` says where to look."""
    body = await _decoded(request, _order_decoder)
    customer, lines = _checked(body)
    identifier = new_id()
    canonical = [customer, [(line.sku, line.quantity, line.unit_price.normalize()) for line in lines]]
    order = NewOrder(identifier, customer, lines, _origin(request), _idempotency(request, canonical, identifier))
    return _accepted(request, await _desk(request).place_order(order))


@get("/orders/{order_id:str}")
async def show_order(request: Http) -> Response[bytes]:
    """An order's state, the reasons if it was rejected, and when what happened."""
    row = await store.find_order(_desk(request).producer.database, _known(request.path_params["order_id"], "order"))
    if row is None:
        raise NotFoundException("there is no such order")
    total = {"lines": row.lines, "total": money(row.total_cents)}
    return _json(request, {"id": row.id, "state": row.state, "reasons": row.reasons, **total, "history": _history(row)})


@post("/users", status_code=202)
async def register_user(request: Http) -> Response[bytes]:
    """Register a user. 202 says nothing about whether the address is new: the account is opened, or not, later."""
    body = await _decoded(request, _user_decoder)
    customer = check_customer(body.email, body.name, place="")
    identifier = new_id()
    user = NewUser(identifier, customer, _origin(request), _idempotency(request, customer, identifier))
    return _accepted(request, await _desk(request).place_user(user))


@get("/users/{user_id:str}")
async def show_user(request: Http) -> Response[bytes]:
    """A registration's state: accepted, then registered, or refused with the reason."""
    row = await store.find_user(_desk(request).producer.database, _known(request.path_params["user_id"], "user"))
    if row is None:
        raise NotFoundException("there is no such user")
    return _json(request, {"id": row.id, "state": row.state, "reasons": row.reasons, "history": _history(row)})


@get("/livez")
async def livez(request: Http) -> Response[bytes]:
    """Whether this process answers at all."""
    return _json(request, {"alive": True})


@get("/readyz")
async def readyz(request: Http) -> Response[bytes]:
    """Whether orders can be accepted now. A broker that is down matters only when the outbox is full."""
    producer = _desk(request).producer
    why = ""
    try:
        async with asyncio.timeout(READY_SECONDS):
            await store.ping(producer.database)
    except (DatabaseError, TimeoutError) as error:
        why = f"the database cannot be reached: {type(error).__name__}"
    outbox = producer.outbox
    if not why and outbox.unsent >= outbox.limit:
        why = f"the outbox is full: {outbox.unsent} messages wait for the broker"
    state = {"ready": not why, "why": why, "broker": producer.trouble or "connected", "unsent": outbox.unsent}
    return _json(request, state, status=503 if why else 200)


@get("/metrics")
async def show_metrics(request: Http) -> Response[bytes]:
    """What this process counts, for Prometheus."""
    return Response(metrics_text(_desk(request).producer), media_type=METRICS_CONTENT_TYPE)


ROUTES = (place_order, show_order, register_user, show_user, livez, readyz, show_metrics)


def _desk(request: Http) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


async def _decoded(request: Http, decoder: msgspec.json.Decoder[Body]) -> Body:
    if not _JSON.fullmatch(request.headers.get("content-type", "")):
        raise BadRequest(415, "media-type", "send the body as JSON, with Content-Type: application/json")
    try:
        return decoder.decode(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise problems.unreadable(error) from None


def _checked(body: OrderBody) -> tuple[Customer, list[Line]]:
    """The parts of an order by the rules of the edge; Refused with the faults of both."""
    faults: list[Reason] = []
    customer: Customer | None = None
    lines: list[Line] = []
    try:
        customer = check_customer(body.customer.email, body.customer.name)
    except Refused as refused:
        faults += refused.reasons
    try:
        lines = check_lines([(line.sku, line.quantity, bytes(line.unit_price)) for line in body.lines])
    except Refused as refused:
        faults += refused.reasons
    if customer is None or faults:
        raise Refused(faults)
    return customer, lines


def _origin(request: Http) -> str:
    return f"{request.scope['method']} {request.scope['path']} {request_id(request)}"


def _idempotency(request: Http, canonical: object, identifier: str) -> IdempotentRequest | None:
    """The request's key, if it has one, with the hash of what it asks for, however it is laid out.

    There are no callers to tell apart yet, so the scope is the route.
    """
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise BadRequest(400, "idempotency-key", f"an {IDEMPOTENCY_KEY} has 1 to 255 visible ASCII characters")
    scope = f"anyone {request.scope['path']}"
    return IdempotentRequest(scope, key, request_hash(msgspec.json.encode(canonical)), identifier)


def _accepted(request: Http, result: Placed | Remembered) -> Response[bytes]:
    if isinstance(result, Placed):
        identifier = result.id
    elif result.same:
        identifier = result.response
    else:
        detail = f"this {IDEMPOTENCY_KEY} was used for another request before"
        raise BadRequest(422, "idempotency-key-reused", detail)
    path = f"{request.scope['path']}/{identifier}"
    return Response(
        b'{"id":"%b","state":"accepted","url":"%b"}' % (identifier.encode(), path.encode()),
        status_code=202,
        media_type="application/json",
        headers={"Location": path, REQUEST_ID: request_id(request)},
    )


def _known(identifier: str, what: str) -> str:
    """The identifier in lower case; 404 if no row can have it."""
    if not _UUID.fullmatch(identifier.lower()):
        raise NotFoundException(f"there is no such {what}: its id would be a UUID")
    return identifier.lower()


def _history(row: Any) -> list[dict[str, Any]]:
    decided = [{"state": row.state, "at": row.decided_at}] if row.decided_at else []
    return [{"state": store.ACCEPTED, "at": row.accepted_at}, *decided]


def _json(request: Http, value: Any, *, status: int = 200) -> Response[bytes]:
    headers = {REQUEST_ID: request_id(request), "Cache-Control": "no-store"}
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json", headers=headers)
