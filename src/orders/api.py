"""The HTTP API: takes orders and registrations, stores them with their messages, answers 202.

A 202 means: committed, and it will be decided. Nothing here waits for RabbitMQ: requests that come together
share one transaction of the database, and with the broker down they go on being accepted until the outbox is
full. Whatever is not certainly stored is a 503 or 409 with Retry-After, never a 2xx.

Bodies are strict: unknown fields and wrong types are refused and named, sizes are bounded.

The two routes that carry the load are bare ASGI in front of Litestar (`Api`): its routing, request and response
objects cost three times what taking an order does. Litestar has them as routes too, for their other methods and
spellings, and serves the rest.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import NotFoundException
from litestar.types import ASGIApp, Receive, Scope, Send

from hopline import (
    METRICS_CONTENT_TYPE,
    DatabaseError,
    Hopline,
    IdempotentRequest,
    Producer,
    Remembered,
    is_deeper,
    metrics_text,
    new_id,
    request_hash,
    started,
)
from orders import docs, placing, problems, store
from orders.domain import MAX_LINES, Customer, Line, Reason, Refused, check_customer, check_lines, money
from orders.json_keys import key_twice
from orders.placing import NewOrder, NewUser, Placed
from orders.problems import BODY_BYTES, IDEMPOTENCY_KEY, REQUEST_ID, BadRequest, named, request_id

READY_SECONDS = 2.0
"""How long /readyz waits for the database."""

LEVELS = 32
"""A body that is nested deeper is refused; an order has three levels."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_KEY = re.compile(rb"[\x21-\x7e]{1,255}")
_JSON = re.compile(rb"application/(?:[a-z0-9.+-]+\+)?json *(?:;.*)?", re.IGNORECASE)

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


def _customer_keys(body: CustomerBody) -> int:
    """How many keys it was read from at least: an empty name may be given or not."""
    return 2 if body.name else 1


def _order_keys(body: OrderBody) -> int:
    return 2 + _customer_keys(body.customer) + 3 * len(body.lines)


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


class Post:
    """One POST of the routes that carry the load: what they need of its head, and its body."""

    __slots__ = ("body", "key", "media_type", "path", "request_id")

    def __init__(self, scope: Scope) -> None:
        self.path = scope["path"]
        self.body = b""
        self.media_type = b""
        self.key: bytes | None = None
        given: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"content-type":
                self.media_type = value
            elif name == b"x-request-id":
                given = value
            elif name == b"idempotency-key":
                if self.key is not None:
                    raise BadRequest(400, "idempotency-key", f"send one {IDEMPOTENCY_KEY}; this request has several")
                self.key = value
            elif name == b"content-encoding" and value.lower() != b"identity":
                raise problems.encoded_body()
            elif name == b"content-length" and value.isdigit() and int(value) > BODY_BYTES:
                raise problems.too_large()
        self.request_id = named(scope, given)

    async def read(self, receive: Receive) -> bool:
        """Reads the body; whether the client is still there. BadRequest if it is over BODY_BYTES."""
        more = True
        while more:
            event = await receive()
            if event["type"] != "http.request":
                return False
            self.body = self.body + event["body"] if self.body else event["body"]
            more = event.get("more_body", False)
            if len(self.body) > BODY_BYTES:
                raise problems.too_large()
        return True

    @property
    def origin(self) -> str:
        """For the trace."""
        return f"POST {self.path} {self.request_id}"

    def decoded(self, decoder: msgspec.json.Decoder[Body], keys: Callable[[Body], int]) -> Body:
        """The body; BadRequest if it is none. `keys` tells how many keys it was read from at least."""
        if self.media_type != b"application/json" and not _JSON.fullmatch(self.media_type):
            raise BadRequest(415, "media-type", "send the body as JSON, with Content-Type: application/json")
        try:
            body = decoder.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise problems.unreadable(error) from None
        if self.body.count(b"[") > LEVELS or self.body.count(b"{") > MAX_LINES:
            self._check_depth()
        if (pointer := key_twice(self.body, keys(body))) is not None:
            raise problems.twice(pointer)
        return body

    def _check_depth(self) -> None:
        """Only a price can be nested, for it is kept as it was written; else the decoder has refused it."""
        if is_deeper(self.body, LEVELS):
            raise BadRequest(400, "json-too-deep", f"the body is nested deeper than {LEVELS} levels")

    def idempotency(self, canonical: object, identifier: str) -> IdempotentRequest:
        """Its key, with the hash of what it asks for, however it is laid out.

        There are no callers to tell apart yet, so the scope is the route.
        """
        assert self.key is not None
        if not _KEY.fullmatch(self.key):
            raise BadRequest(400, "idempotency-key", f"an {IDEMPOTENCY_KEY} has 1 to 255 visible ASCII characters")
        hashed = request_hash(msgspec.json.encode(canonical))
        return IdempotentRequest(f"anyone {self.path}", self.key.decode(), hashed, identifier)


Take = Callable[[Desk, Post], Awaitable[str]]
"""Takes what was posted; the id by which it can be looked at."""


async def take_order(desk: Desk, sent: Post) -> str:
    """POST /orders."""
    customer, lines = _checked(sent.decoded(_order_decoder, _order_keys))
    identifier = new_id()
    idempotency = None
    if sent.key is not None:
        canonical = [customer, [(line.sku, line.quantity, line.unit_price.normalize()) for line in lines]]
        idempotency = sent.idempotency(canonical, identifier)
    return _stored(await desk.place_order(NewOrder(identifier, customer, lines, sent.origin, idempotency)))


async def take_user(desk: Desk, sent: Post) -> str:
    """POST /users."""
    body = sent.decoded(_user_decoder, _customer_keys)
    customer = check_customer(body.email, body.name, place="")
    identifier = new_id()
    idempotency = None if sent.key is None else sent.idempotency(customer, identifier)
    return _stored(await desk.place_user(NewUser(identifier, customer, sent.origin, idempotency)))


TAKES: Mapping[str, Take] = {"/orders": take_order, "/users": take_user}


class Api(Litestar):
    """Litestar, with TAKES before its machinery."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["method"] == "POST" and (take := TAKES.get(scope["path"])) is not None:
            scope["app"] = scope["litestar_app"] = self
            await taking(take)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def taking(take: Take) -> ASGIApp:
    """An ASGI application that answers what was taken with 202, and everything else with its problem."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            sent = Post(scope)
            if not await sent.read(receive):
                return
            identifier = await take(scope["litestar_app"].state.desk, sent)
        except Exception as error:  # noqa: BLE001 - it is what is answered
            await problems.send(error, scope, receive, send)
            return
        url = f"{sent.path}/{identifier}".encode()
        body = b'{"id":"%b","state":"accepted","url":"%b"}' % (identifier.encode(), url)
        headers = [
            (b"content-type", b"application/json"),
            (b"location", url),
            (b"x-request-id", sent.request_id.encode()),
            (b"content-length", b"%d" % len(body)),
        ]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return answer


def create_app(app: Hopline) -> Litestar:
    """The API of a program; its lifespan opens the database and the relay."""

    @asynccontextmanager
    async def producing(litestar: Litestar) -> AsyncIterator[None]:
        async with app.producing(role="api") as producer:
            litestar.state.desk = Desk(producer)
            started()
            yield

    return Api(
        route_handlers=[*ROUTES, docs.page, docs.openapi_json],
        lifespan=[producing],
        request_max_body_size=BODY_BYTES,
        exception_handlers={Exception: problems.answer},
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


@post("/orders", status_code=202)
async def place_order() -> ASGIApp:
    """Place an order. 202: it is stored and will be confirmed or rejected; `Location` says where to look."""
    return taking(take_order)


@get("/orders/{order_id:str}")
async def show_order(request: Http) -> Response[bytes]:
    """An order's state, the reasons if it was rejected, and when what happened."""
    row = await store.find_order(_desk(request).producer.database, _known(request.path_params["order_id"], "order"))
    if row is None:
        raise NotFoundException("there is no such order")
    total = {"lines": row.lines, "total": money(row.total_cents)}
    return _json(request, {"id": row.id, "state": row.state, "reasons": row.reasons, **total, "history": _history(row)})


@post("/users", status_code=202)
async def register_user() -> ASGIApp:
    """Register a user. 202 says nothing about whether the address is new: the account is opened, or not, later."""
    return taking(take_user)


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
        why = f"the database cannot be used: {type(error).__name__}"
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


def _stored(result: Placed | Remembered) -> str:
    """The id under which it is stored; BadRequest for a key that was used for something else."""
    if isinstance(result, Placed):
        return result.id
    if result.same:
        return result.response
    raise BadRequest(422, "idempotency-key-reused", f"this {IDEMPOTENCY_KEY} was used for another request before")


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
